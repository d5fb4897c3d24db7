"""What a question to a video answers: scores, masks as run lengths, and when the model saw it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dshmp.parser import Word
from dshmp.rle import Rle, decode

EVIDENCE = (
    "attention mass that the chosen video tokens (of all objects, averaged) lay on each frame; sums to 1 over the "
    "clip, so values compare across all its frames"
)


@dataclass(frozen=True)
class ObjectResult:
    """One object meant."""

    score: float  # probability that its video token is meant, 0 to 1
    rle: tuple[Rle, ...]  # its mask in every frame
    evidence: tuple[float, ...]  # attention mass of its video token per frame; sums to 1

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(T, H, W) bool, decoded on every call."""
        return decode(self.rle)


@dataclass(frozen=True)
class Result:
    """The answer to one expression over one video (or the chosen range of its frames)."""

    expression: str
    words: tuple[Word, ...]  # in order, each "static", "motion" or neither (None)
    found: bool  # False: nothing in the video matches; all masks are empty then
    score: float  # probability of the best video token, whether it passed the threshold or not
    threshold: float
    height: int
    width: int
    fps: float | None
    times: tuple[float, ...]  # seconds of every frame
    # per frame, when the model saw it: the attention mass of the chosen video tokens (of the best one where nothing
    # matches), averaged over them; sums to 1 over the clip
    evidence: tuple[float, ...]
    objects: tuple[ObjectResult, ...]
    rle: tuple[Rle, ...]  # the union of all objects in every frame

    @property
    def frame_count(self) -> int:
        return len(self.times)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(T, H, W) bool, decoded on every call: for long videos take `mask(t)`."""
        return decode(self.rle)

    def mask(self, frame: int) -> NDArray[np.bool_]:
        """(H, W) bool, the union in one frame."""
        return np.asarray(decode([self.rle[frame]])[0])

    def to_json(self) -> dict[str, Any]:
        """Plain containers: everything but the size of the frames."""
        plain = {key: value for key, value in vars(self).items() if key not in ("height", "width")}
        return plain | {
            "words": [word._asdict() for word in self.words],
            "score": round(self.score, 6),
            "frame_count": self.frame_count,
            "times": [round(time, 6) for time in self.times],
            "evidence": [round(value, 7) for value in self.evidence],
            "objects": [
                {"score": round(o.score, 6), "evidence": [round(v, 7) for v in o.evidence], "rle": list(o.rle)}
                for o in self.objects
            ],
            "rle": list(self.rle),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], height: int, width: int) -> "Result":
        """What `to_json` gave, of a video with frames of this size."""
        return TypeAdapter(cls).validate_python(values | {"height": height, "width": width})
