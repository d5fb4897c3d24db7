"""What a question to a video answers: scores, masks as run lengths, and when the model saw it."""

import json
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dshmp.errors import UserError
from dshmp.files import new_file, reason, regular
from dshmp.parser import Word
from dshmp.rle import Rle, decode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dshmp.formats.answers import Answers
    from dshmp.video.io import Video
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


@dataclass(frozen=True, repr=False)
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
    others: tuple[ObjectResult, ...] = ()  # candidates that are not meant, best first; only where they were asked for
    unknown: tuple[str, ...] = ()  # words that nothing could check; scores are halved then
    origin: Any = field(default=None, init=False, compare=False)  # its video (`dshmp.show.Origin`), to show it again

    def __repr__(self) -> str:
        size = f"frames={self.frame_count}, size={self.width}x{self.height}"
        found = f"found={self.found}, score={self.score:.3f}, objects={len(self.objects)}"
        return f"Result({reprlib.repr(self.expression)}, {found}, {size})"

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
    def from_json(cls, values: dict[str, Any], height: int, width: int) -> "Result":
        """What `to_json` gave, of a video with frames of this size."""
        return TypeAdapter(cls).validate_python(values | {"height": height, "width": width})

    def of(self, source: "VideoSource") -> Self:
        """This result, which remembers its video, if that can be opened again."""
        from dshmp.show import origin

        object.__setattr__(self, "origin", origin(source))
        return self

    def _repr_html_(self) -> str:
        from dshmp.show import to_html

        return to_html(self)

    def plot(self, video: "Video | None" = None) -> "Figure":
        """A figure of matplotlib: a few frames, and the evidence over time. The video is found again where it was a
        path, or an array that is still there; else give it, or see the masks alone. Raises UserError."""
        from dshmp.show import plot

        return plot(self, video)

    def video(self, path: str | Path, video: "Video | None" = None) -> Path:
        """Write the overlay that `dshmp segment` makes, an MP4; `video` as of `plot`, but it is needed. Returns the
        path. Raises UserError, above all where another file is there."""
        from dshmp.show import write_video

        return write_video(self, Path(path), video)

    def save(self, folder: str | Path) -> Path:
        """Write masks and result.json as `dshmp segment` does, which `load_results` reads; answers to other sentences
        about the same video stay. Returns the folder. Raises UserError where it holds something else."""
        from dshmp.export import save_result

        return save_result(self, Path(folder))

    # For other tools: docs/formats.md. A video gives the frames' names, their places in it and their pixels; without
    # one, frames are counted from 0. Files and folders must be new, else that is a UserError.

    def to_coco(self, video: "Video | VideoSource | None" = None) -> dict[str, Any]:
        """COCO's JSON of images, with run lengths and track ids."""
        from dshmp.formats import coco

        return coco.document(self._answers(video))

    def to_ytvis(self, video: "Video | VideoSource | None" = None) -> dict[str, Any]:
        """YouTube-VIS' JSON."""
        from dshmp.formats import youtube_vis

        return youtube_vis.document(self._answers(video))

    def to_label_studio(self, video: "Video | VideoSource | None" = None) -> list[dict[str, Any]]:
        """Label Studio's tasks: one per frame, with brush masks as predictions."""
        from dshmp.formats import label_studio

        return list(label_studio.tasks(self._answers(video)))

    def to_supervision(self) -> list[Any]:
        """A `supervision.Detections` per frame, with masks, `tracker_id` and confidence."""
        from dshmp.formats.detections import detections

        return detections(self._answers(None))

    def to_yolo(self, folder: str | Path, video: "Video | VideoSource | None" = None) -> None:
        """Polygons for Ultralytics: labels/<frame>.txt and data.yaml."""
        self._save("yolo", folder, video)

    def to_cvat(self, path: str | Path, video: "Video | VideoSource | None" = None) -> None:
        """XML of CVAT for video 1.1, with masks."""
        self._save("cvat", path, video)

    def to_mots(self, path: str | Path, video: "Video | VideoSource | None" = None) -> None:
        """MOTS' text."""
        self._save("mots", path, video)

    def to_davis(self, folder: str | Path, video: "Video | VideoSource | None" = None) -> None:
        """A PNG per frame, with an index per object."""
        self._save("davis", folder, video)

    def to_alpha(self, video: "Video | VideoSource", folder: str | Path) -> None:
        """Cut-outs with alpha (PNGs, ProRes 4444, VP9), and a cropped clip of each object."""
        self._save("alpha", folder, video)

    def to_csv(self, path: str | Path, video: "Video | VideoSource | None" = None) -> None:
        """A row per frame and object."""
        from dshmp.formats.table import save_csv

        with new_file(Path(path)) as part:
            save_csv(self._answers(video), part)

    def _answers(self, video: "Video | VideoSource | None") -> "Answers":
        from dshmp.formats.answers import Answers
        from dshmp.video.io import open_video
        from dshmp.video.source import VideoSource

        source = video if video is None or isinstance(video, VideoSource) else open_video(video)
        return Answers((self,), source)

    def _save(self, kind: str, path: str | Path, video: "Video | VideoSource | None") -> None:
        from dshmp import formats

        formats.save(kind, self._answers(video), path)


def load_results(path: str | Path) -> list[Result]:
    """The answers that a `result.json` holds, by it or its folder. They equal those saved, but for rounding: scores
    and times to 6 decimals, evidence to 7. Raises UserError where it cannot be read."""
    file = Path(path)
    try:
        file = file / RESULTS if file.is_dir() else file
        with open(file, encoding="utf-8", opener=regular) as opened:
            document = json.load(opened)
        size = document["height"], document["width"]
        return [Result.from_json(answer, *size) for answer in document["results"]]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        fault = f"cannot be read as a result of dshmp ({reason(error)})"
        raise UserError(f"{file}: {fault}; give a result.json or its folder") from None
