"""What a question to a video answers, and all that can be made of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dshmp.common.errors import UserError
from dshmp.common.files import new_file, reason, regular
from dshmp.results.answer import RESULTS, Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dshmp.formats.answers import Answers
    from dshmp.video.io import Video
    from dshmp.video.source import VideoSource


@dataclass(frozen=True, repr=False)
class Result(Answer):
    """An answer that shows itself in notebooks, and is written in other tools' formats. Those know the plain answer."""

    def _repr_html_(self) -> str:
        from dshmp.results.show import to_html

        return to_html(self)

    def plot(self, video: "Video | None" = None) -> "Figure":
        """A figure of matplotlib: a few frames, and the evidence over time. The video is found again where it was a
        path, or an array that is still there; else give it, or see the masks alone. Raises UserError."""
        from dshmp.results.show import plot

        return plot(self, video)

    def video(self, path: str | Path, video: "Video | None" = None) -> Path:
        """Write the overlay that `dshmp segment` makes, an MP4; `video` as of `plot`, but it is needed. Returns the
        path. Raises UserError, above all where another file is there."""
        from dshmp.results.show import write_video

        return write_video(self, Path(path), video)

    def save(self, folder: str | Path) -> Path:
        """Write masks and result.json as `dshmp segment` does, which `load_results` reads; answers to other sentences
        about the same video stay. Returns the folder. Raises UserError where it holds something else."""
        from dshmp.results.folder import save_result

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
