"""Candidates that the model's own perception does not find: objects of real footage, for a sentence to choose among.

`open`, `coco` and `sam3` are public models, which transformers runs; `moving` needs no download.
"""

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, get_args

import torch

from dshmp.common.arguments import checked
from dshmp.common.assignments import assign
from dshmp.common.options import Kind
from dshmp.common.progress import Progress
from dshmp.config import from_dict
from dshmp.formats.tracks import Tracks
from dshmp.video.source import VideoSource

# a video, the noun phrases of all sentences, where to compute, and whom to tell how far it is
CandidateSource = Callable[[VideoSource, Sequence[str], torch.device, Progress], Tracks]
_CLASSES = {
    "open": "open_vocabulary.OpenVocabulary",
    "coco": "coco_instances.CocoInstances",
    "sam3": "concepts.Sam3",
    "moving": "moving.Moving",
}


def find_source(kind: Kind, settings: Iterable[str] = ()) -> CandidateSource:
    """The source of this name; `settings` are `key=value` of its fields. Raises TypeError, UserError."""
    module, name = _CLASSES[checked("candidates", kind, Kind, " or ".join(get_args(Kind)))].split(".")
    source: Any = getattr(import_module(f"{__name__}.{module}"), name)
    found: CandidateSource = from_dict(source, assign({}, settings), "candidates")
    return found
