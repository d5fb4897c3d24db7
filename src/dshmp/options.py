"""The options that `dshmp segment`, `batch`, `predict` and `evaluate` share."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Targets = Literal["many", "single"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which model answers, and how."""

    model: str = "default"
    """`default`, a folder, or a hub id."""
    device: str = "auto"
    precision: Precision = "auto"
    threshold: float | None = None
    """Probability above which an object is meant; None is the model's own."""
    targets: Targets | None = None
    """None is the data set's or, without one, the model's own."""
    overwrite: bool = False
    """Answer anew what was answered before."""
