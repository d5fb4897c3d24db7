"""Answers as a folder: masks, overlays and result.json, wholly or not at all."""

import contextlib
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dshmp.errors import UserError
from dshmp.files import is_vacant, regular, whole_folder
from dshmp.result import Result, save_results
from dshmp.segmenter import Progress, Rles, Segmenter, Targets
from dshmp.video import open_video


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a run's result, noted in result.json so that a batch knows what is finished."""

    model: str
    expressions: tuple[str, ...]
    threshold: float | None = None
    targets: Targets | None = None
    frames: str | None = None
    fps: float | None = None
    precision: str = "auto"

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "expressions": list(self.expressions)}


def segment_to_folder(
    segmenter: Segmenter,
    video: str | Path,
    out: Path,
    settings: Settings,
    name: str | None = None,
    progress: Progress | None = None,
) -> tuple[Path, list[Result]]:
    """Segment a video into `out/<name>/`: wholly or not at all, whatever interrupts it.

    Writes `<NN-slug>/masks/<frame>.png` (0 and 255, in the frame's size; numbers count from the video's start) and
    `<NN-slug>/overlay.mp4` per expression, and one `result.json`. An earlier result of the same video is replaced.

    Args:
        name: of the folder; the video's stem by default.

    Returns:
        The folder, and the results in the order of the expressions.

    Raises:
        UserError: the video can't be read, or the folder exists and holds something else.
    """
    from dshmp.overlay import Caption, OverlayPainter, OverlayWriter, save_png

    source = open_video(video, settings.frames, settings.fps)
    target = out / (name or source.name)
    _check_target(target, Path(video))
    folders = [f"{i:02d}-{slug(text)}" for i, text in enumerate(settings.expressions, 1)]
    with whole_folder(target) as work:
        with (
            segmenter.ask(source, settings.expressions, settings.threshold, settings.targets, progress) as clip,
            contextlib.ExitStack() as stack,
        ):
            painters, writers, collected = [], [], [Rles(len(answer.chosen)) for answer in clip.answers]
            for folder, answer in zip(folders, clip.answers, strict=True):
                (work / folder / "masks").mkdir(parents=True)
                question = answer.question
                caption = Caption(
                    question.expression,
                    question.words,
                    answer.best,
                    len(answer.chosen),
                    answer.mean_evidence,
                    clip.times,
                )
                painter = OverlayPainter(source.height, source.width, caption)
                path, audio = work / folder / "overlay.mp4", source.path
                writer = OverlayWriter(path, *painter.size, clip.fps, audio)
                painters.append(painter)
                writers.append(stack.enter_context(writer))
            for index, (frame, masks) in enumerate(clip.frames(True)):
                assert frame is not None
                for folder, rles, painter, writer, mask in zip(
                    folders, collected, painters, writers, masks, strict=True
                ):
                    union = rles.add(mask)
                    png = work / folder / "masks" / f"{source.start + index:05d}.png"
                    save_png(png, union.astype(np.uint8) * 255)
                    writer.write(painter(frame.image, mask, index), frame.time)
                if progress:
                    progress("masks", index + 1, len(clip.times))
        results = [clip.result(answer, rles) for answer, rles in zip(clip.answers, collected, strict=True)]
        save_results(
            work / "result.json",
            results,
            video=str(Path(video).resolve()),
            first_frame=source.start,
            settings=settings.to_json(),
            folders=folders,
        )
    return target, results


def slug(text: str, longest: int = 40) -> str:
    """A sentence as part of a folder's name."""
    short = "-".join(re.findall(r"\w+", text.lower()))[:longest].strip("-_")
    return short or "expression"


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result.json of a folder; None where there is none or it isn't ours."""
    import json

    try:
        with open(folder / "result.json", encoding="utf-8", opener=regular) as file:
            document = json.load(file)
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and "settings" in document and "video" in document else None


def finished(folder: Path, video: str | Path, settings: Settings) -> bool:
    """Whether `folder` holds a whole result of this very run."""
    document = read_result(folder)
    if document is None or document["settings"] != settings.to_json():
        return False
    return bool(document["video"] == str(Path(video).resolve()))


def _check_target(target: Path, video: Path) -> None:
    """An earlier result of the same video may be replaced, nothing else."""
    if not target.exists():
        return
    document = read_result(target)
    if document is None:
        if target.is_dir() and is_vacant(target):
            return
        raise UserError(f"{target}: exists and is not a result of dshmp; choose another --out")
    if document["video"] != str(video.resolve()):
        raise UserError(f"{target}: holds the result of {document['video']}; choose another --out")
