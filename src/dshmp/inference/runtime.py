"""A model where it computes, as all that answers shares it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dshmp.common.arguments import checked
from dshmp.common.errors import UserError
from dshmp.common.options import Precision

if TYPE_CHECKING:
    from dshmp.config import ModelConfig
    from dshmp.model.dshmp import DsHmp


@dataclass(frozen=True)
class Runtime:
    """A model, on its device, and the precision of what need not be exact."""

    model: "DsHmp"
    device: torch.device
    precision: torch.dtype

    @property
    def config(self) -> "ModelConfig":
        return self.model.config

    @contextlib.contextmanager
    def inference(self, exact: bool = False) -> Iterator[None]:
        """The chosen precision; float32 for what shall be `exact`, if the model's config says so."""
        lower = self.precision != torch.float32 and not (exact and self.config.release.exact)
        autocast = torch.autocast(self.device.type, dtype=self.precision, enabled=lower)
        with told_of_memory(self.device), torch.inference_mode(), autocast:
            yield


@contextlib.contextmanager
def told_of_memory(device: torch.device) -> Iterator[None]:
    """Where memory is not enough, a UserError says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        ways = "--device cpu, --precision bfloat16, a range of --frames, or a model with a smaller input.chunk"
        raise UserError(f"not enough memory on {device}; use {ways}") from None


def dtype(name: Precision, device: torch.device, own: str) -> torch.dtype:
    """Of a precision by name; "auto" is the model's `own` on a GPU that has it, else float32."""
    checked("precision", name, Precision, "auto, float32, bfloat16 or float16")
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        able = device.type == "cuda" and (own != "bfloat16" or torch.cuda.is_bf16_supported(including_emulation=False))
        return known[own] if able else torch.float32
    return known[name]
