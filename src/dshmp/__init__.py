"""Referring video segmentation with decoupled static and hierarchical motion perception (DsHmp). The public names are
loaded when they are first used, so that `import dshmp` is instant."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dshmp.checkpoint import load_model
    from dshmp.common.errors import UserError
    from dshmp.config import ModelConfig
    from dshmp.inference.encoded import EncodedVideo
    from dshmp.inference.segmenter import Segmenter
    from dshmp.inference.stream import FrameObject, FrameResult
    from dshmp.model.dshmp import DsHmp
    from dshmp.results.answer import ObjectResult
    from dshmp.results.result import Result, load_results

__version__ = "0.1.0"

__all__ = ["DsHmp", "EncodedVideo", "FrameObject", "FrameResult", "ModelConfig", "ObjectResult", "Result"]
__all__ += ["Segmenter", "UserError", "load_model", "load_results"]

_HOME = {
    "DsHmp": "model.dshmp",
    "EncodedVideo": "inference.encoded",
    "FrameObject": "inference.stream",
    "FrameResult": "inference.stream",
    "ModelConfig": "config",
    "ObjectResult": "results.answer",
    "Result": "results.result",
    "Segmenter": "inference.segmenter",
    "UserError": "common.errors",
    "load_model": "checkpoint",
    "load_results": "results.result",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"dshmp.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
