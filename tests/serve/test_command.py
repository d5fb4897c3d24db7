"""`dshmp serve`: what is wrong is told in one line, before a model is loaded."""

import importlib.util
import socket

import pytest
from typer.testing import CliRunner

from dshmp.cli import app
from dshmp.common.errors import UserError

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="the command is not tested; pip install 'dshmp[web]'"
)


def fault(*arguments: str) -> str:
    """The line that the command ends with."""
    error = CliRunner().invoke(app, ["serve", *arguments]).exception
    assert isinstance(error, UserError), error
    return str(error)


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    assert fault() == "gradio: is not installed, but the page needs it; pip install 'dshmp[web]'"


@needs_gradio
def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = fault("--port", str(port))
    assert told.startswith(f"127.0.0.1:{port}: another program listens there")


@needs_gradio
def test_an_address_that_is_not_this_machines_is_told() -> None:
    assert fault("--host", "192.0.2.1").startswith("192.0.2.1:7860: another program listens there, or it is no address")
