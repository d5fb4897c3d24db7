"""The Dockerfile, without Docker: its steps are run in a virtual environment."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
import typer.main

from dshmp.cli import app

ROOT = Path(__file__).resolve().parents[1]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def steps() -> list[tuple[str, str]]:
    """Instructions and their arguments, in order."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def arguments(instruction: str) -> list[str]:
    return [rest for word, rest in steps() if word == instruction]


def test_the_steps_are_what_the_test_below_runs() -> None:
    assert {word for word, _ in steps()} == {"FROM", "ENV", "WORKDIR", "RUN", "COPY", "USER", "EXPOSE", "CMD"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"].removeprefix(">=") in arguments("FROM")[0]
    assert "web" in project["optional-dependencies"]
    (torch,) = (
        pin for pin in (ROOT / "constraints.txt").read_text(encoding="utf-8").split() if pin.startswith("torch=")
    )
    assert f"pip install --no-deps {torch} --index-url {TORCH_INDEX}" in arguments("RUN")
    assert arguments("USER") == ["dshmp"]


def test_what_is_copied_is_not_ignored_and_nothing_else_is_sent() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert kept == {name for rest in arguments("COPY") for name in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in kept)


def test_the_command_is_one_of_ours() -> None:
    (command,) = map(json.loads, arguments("CMD"))
    name, serve, *options = command
    assert name == "dshmp"
    assert options == ["--host", "0.0.0.0"]
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    context = known[serve].make_context(serve, options)
    assert context.params["port"] == int(*arguments("EXPOSE"))


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/torch/", timeout=20):
            return True
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or sys.version_info[:2] != (3, 11), reason="as in the image")
def test_the_steps_run_and_what_they_make_works(tmp_path: Path) -> None:
    """The tracked files alone are copied. Where torch's index is out of reach, torch is that of the ordinary one. The
    package is used by who may not write in it."""
    tools, image = tmp_path / "tools", tmp_path / "image"
    tools.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    (tools / "useradd").write_text(f'#!/bin/sh\nmkdir -p "{image}/home/$4"\n')  # no user is made here
    (tools / "useradd").chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = os.pathsep.join([str(tmp_path / "venv" / "bin"), str(tools), environment["PATH"]])
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = [Path(name) for name in listed.splitlines()]
    here = image

    def call(words: list[str], *, fails: bool = False) -> str:
        done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    for word, rest in steps():
        if word == "ENV":
            environment |= dict(each.split("=") for each in rest.split())
        elif word == "WORKDIR":
            here = image / rest.lstrip("/")
            here.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            *sources, target = rest.split()
            for path in (path for path in tracked for source in sources if path.is_relative_to(source)):
                (here / target / path.relative_to(target)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, here / target / path.relative_to(target))
        elif word == "RUN":
            call(["sh", "-c", rest if reachable(TORCH_INDEX) else rest.replace(f"--index-url {TORCH_INDEX}", "")])

    assert here == image / "home" / "dshmp"
    environment["HOME"] = str(here)
    (package,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages/dshmp")
    call(["chmod", "-R", "a-w", str(package)])
    # root may write everywhere, unless it has no capabilities
    user = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    call([*user, "touch", str(package / "new.py")], fails=True)
    assert call([*user, "dshmp", "--version"]).startswith("dshmp ")
    assert "codec libx264: yes" in call([*user, "dshmp", "info"])
    assert call([*user, "dshmp", "demo", "--out", "demo"]).count("IoU") == 3
    assert (here / "demo" / "contact-sheet.png").is_file()
    call([*user, "python", "-c", "import gradio"])
