"""Devices that lack something: Apple's GPUs have no float64, Windows no fcntl and no resource."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dshmp.common.device import find_device, widest
from dshmp.common.errors import UserError
from dshmp.inference.encoded import Quality
from dshmp.training import engine


class WithoutDoubles(Tensor):
    """As on a device that refuses float64; what is copied from it is an ordinary tensor."""

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def test_sums_need_no_float64_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 3, 4, 5)
    found = []
    for values in (logits, logits.as_subclass(WithoutDoubles)):
        quality = Quality(2)
        quality.add(values)
        found.append(quality.means())
    assert found[0] == found[1]
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cpu")) == torch.float64
    monkeypatch.setattr(engine, "widest", lambda device: torch.float32)
    record = engine.Record()
    for value in (0.5, 0.25):
        record.add({"loss": torch.tensor(value).as_subclass(WithoutDoubles)})
    assert float(record.losses["loss"]) == 0.75


def test_what_is_taken_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, name in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert find_device("auto").type == name
    with pytest.raises(UserError, match="'abacus' is not there; use auto, cpu, cuda or mps"):
        find_device("abacus")


@pytest.mark.slow
def test_modules_that_windows_lacks(tmp_path: Path) -> None:
    """All of the package is imported without them."""
    script = """
import builtins, importlib, os, pkgutil, sys
imported = builtins.__import__
def on_windows(name, globals=None, *rest, **named):  # other packages have their own ways there
    if name in ("fcntl", "resource") and globals and str(globals.get("__name__")).startswith("dshmp"):
        raise ImportError(name)
    return imported(name, globals, *rest, **named)
builtins.__import__ = on_windows
for name in ("fstatvfs", "statvfs", "fchmod"):
    delattr(os, name)
import dshmp
for module in pkgutil.walk_packages(dshmp.__path__, "dshmp."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from dshmp.common.files import locked, scratch
from pathlib import Path
with scratch(Path(sys.argv[1])), locked(Path(sys.argv[1]) / "a"):
    pass
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], check=True, timeout=120)
