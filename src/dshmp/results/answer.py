"""What is answered about a video: scores, masks as run lengths, and when the model saw it."""

import reprlib
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dshmp.common.rle import Rle, decode
from dshmp.model.parser import Word

if TYPE_CHECKING:
    from dshmp.video.source import VideoSource

RESULTS = "result.json"
EVIDENCE = (
    "attention mass that the chosen video tokens (of all objects, averaged) lay on each frame; sums to 1 over the "
    "clip, so values compare across all its frames"
)


@dataclass(frozen=True, repr=False)
class ObjectResult:
    """One object: of those meant, or of the candidates that were not."""

    score: float  # probability that its video token is meant, 0 to 1
    rle: tuple[Rle, ...]  # its mask in every frame
    evidence: tuple[float, ...]  # attention mass of its video token per frame; sums to 1
    track: str | None = None  # the name of the track that it is, where candidates are tracks made elsewhere

    def __repr__(self) -> str:
        return f"ObjectResult(score={self.score:.3f}, frames={len(self.rle)})"

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(T, H, W) bool, decoded on every call."""
        return decode(self.rle)

    def to_json(self) -> dict[str, Any]:
        plain = {"score": round(self.score, 6), "evidence": [round(v, 7) for v in self.evidence], "rle": list(self.rle)}
        return plain if self.track is None else plain | {"track": self.track}


@dataclass(frozen=True)
class Origin:
    """Which video a result is about: a file or folder, or an array as long as somebody else holds it."""

    path: Path | None
    array: "weakref.ref[Any] | None"
    start: int
    stop: int | None

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, (self.path, None, self.start, self.stop)  # an array does not go along

    def open(self) -> "VideoSource | None":
        from dshmp.video.io import open_video

        video = self.path if self.array is None else self.array()
        return None if video is None else open_video(video, (self.start, self.stop))


def origin(source: "VideoSource") -> Origin | None:
    """Of what was opened, if it can be opened again."""
    if source.path is None and source.array is None:
        return None
    return Origin(source.path and source.path.resolve(), source.array, source.start, source.stop)


@dataclass(frozen=True, repr=False)
class Answer:
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
    others: tuple[ObjectResult, ...] = ()  # candidates that are not meant, best first; only where they were asked for
    unknown: tuple[str, ...] = ()  # words that nothing could check; scores are halved then
    origin: Any = field(default=None, init=False, compare=False)  # its video, an `Origin`, to show it again

    def __repr__(self) -> str:
        size = f"frames={self.frame_count}, size={self.width}x{self.height}"
        found = f"found={self.found}, score={self.score:.3f}, objects={len(self.objects)}"
        return f"{type(self).__name__}({reprlib.repr(self.expression)}, {found}, {size})"

    @property
    def frame_count(self) -> int:
        return len(self.times)

    @property
    def verdict(self) -> str:
        """How many objects are meant, in words."""
        count = len(self.objects)
        return "nothing matches" if not self.found else "1 object" if count == 1 else f"{count} objects"

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(T, H, W) bool, decoded on every call: for long videos take `mask(t)`."""
        return decode(self.rle)

    def mask(self, frame: int) -> NDArray[np.bool_]:
        """(H, W) bool, the union in one frame."""
        return np.asarray(decode([self.rle[frame]])[0])

    def to_json(self) -> dict[str, Any]:
        """Plain containers: everything but the size of the frames."""
        plain = {key: value for key, value in vars(self).items() if key not in ("height", "width", "origin")}
        return plain | {
            "words": [word._asdict() for word in self.words],
            "unknown": list(self.unknown),
            "score": round(self.score, 6),
            "frame_count": self.frame_count,
            "times": [round(time, 6) for time in self.times],
            "evidence": [round(value, 7) for value in self.evidence],
            "objects": [item.to_json() for item in self.objects],
            "rle": list(self.rle),
            "others": [item.to_json() for item in self.others],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], height: int, width: int) -> Self:
        """What `to_json` gave, of a video with frames of this size."""
        return TypeAdapter(cls).validate_python(values | {"height": height, "width": width})

    def of(self, source: "VideoSource") -> Self:
        """This result, which remembers its video, if that can be opened again."""
        object.__setattr__(self, "origin", origin(source))
        return self
