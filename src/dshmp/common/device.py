"""Where tensors are computed."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from dshmp.common.errors import UserError
from dshmp.config import ReleaseConfig

T = TypeVar("T")


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name, or a UserError; `auto` is a CUDA GPU, or Apple's, where there is one."""
    if name == "auto":
        apple = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else apple)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"device {str(name)!r} is not there; use auto, cpu, cuda or mps") from None
    return device


def widest(device: torch.device) -> torch.dtype:
    """The floats for sums over many steps; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def exactly(config: ReleaseConfig, device: torch.device) -> AbstractContextManager[None]:
    """Float32 where the model asks for it (`exact`), whatever the precision of the rest."""
    return torch.autocast(device.type, enabled=False) if config.exact else nullcontext()


def to_device(batch: T, device: torch.device) -> T:
    """A tensor, or a dataclass of such and of tensors, on the device; whatever else it holds stays as it is."""
    if isinstance(batch, Tensor):
        return cast(T, batch.to(device))
    if not is_dataclass(batch) or isinstance(batch, type):
        return batch
    return replace(batch, **{item.name: to_device(getattr(batch, item.name), device) for item in fields(batch)})
