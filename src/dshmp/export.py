"""Answers as a folder, one per video: masks, overlays and result.json.

Answers are added: what another sentence was answered before stays, and so does whatever people put beside it. An
answer is written wholly or not at all.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dshmp.errors import UserError
from dshmp.files import (
    disk_full,
    file_name,
    is_vacant,
    locked,
    move_into,
    name_fault,
    output_folder,
    regular,
    same_name,
    save_json,
    scratch,
)
from dshmp.predictor import EncodedClip, Progress, Rles, Segmenter, Targets
from dshmp.result import EVIDENCE, Result
from dshmp.video.io import VideoSource, open_video

RESULTS, OVERLAY, MASKS = "result.json", "overlay.mp4", "masks"
GENERATOR = "dshmp segment"
"""Says in result.json that the folder is ours."""
VIDEO_STATE = "video_state"
"""Among the settings: tells whether a video has changed since."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides an answer beside the video and the sentence; noted with it."""

    model: str
    threshold: float | None = None
    targets: Targets | None = None
    frames: str | None = None
    fps: float | None = None
    precision: str = "auto"


@dataclass(frozen=True)
class Answers:
    """The answers about one video: those on disk, and those that are wanted."""

    folder: Path
    video: Path
    expressions: tuple[str, ...]
    settings: dict[str, Any]
    document: dict[str, Any]
    """What result.json says; empty where there is none."""
    overwrite: bool = False
    """Whether wanted sentences that were answered before are answered anew."""

    @classmethod
    def open(
        cls,
        video: str | Path,
        expressions: Sequence[str],
        out: Path,
        settings: Settings,
        name: str | None = None,
        overwrite: bool = False,
    ) -> "Answers":
        """Look at `out/<name>`, by default named as the video, before any work is done.

        Raises:
            UserError: the folder is there and not of answers about this video, or one of the sentences was answered
                with other settings and is not to be overwritten.
        """
        if not expressions:
            raise UserError("no expression given; say in words what to segment")
        path = Path(video)
        folder = output_folder(out / (name or folder_name(path)))
        document = read_document(folder)
        if document is None and os.path.lexists(folder):
            raise UserError(f"{folder}: exists and is not a result of dshmp; choose another --out")
        if document and document["video"] != str(path.resolve()):
            raise UserError(f"{folder}: holds the result of {document['video']}; choose another --out")
        own = asdict(settings) | {VIDEO_STATE: video_state(path)}
        answers = cls(folder, path, tuple(dict.fromkeys(expressions)), own, document or {}, overwrite)
        for text in answers.pending if not overwrite else ():
            if found := answers.find(text):
                before = found["settings"]
                key = next(key for key in own if before.get(key) != own[key])
                how = f"with {key} {before.get(key)}, not {own[key]}"
                raise UserError(
                    f"{folder / found['folder']}: {text!r} was answered "
                    f"{'before the video changed' if key == VIDEO_STATE else how}; replace the answer with "
                    "--overwrite, or choose another --out"
                )
        return answers

    def find(self, sentence: str) -> dict[str, Any] | None:
        """The answer on disk to this sentence."""
        answers = self.document.get("results", [])
        return next((answer for answer in answers if answer["sentence"] == sentence), None)

    @property
    def pending(self) -> list[str]:
        """The wanted sentences that are to be answered: all, or those that were not with these settings."""
        answered = {text: self.find(text) or {} for text in self.expressions}
        return [text for text, found in answered.items() if self.overwrite or found.get("settings") != self.settings]


def segment_to_folder(
    answers: Answers, segmenter: Callable[[], Segmenter], progress: Progress | None = None
) -> tuple[Path, list[Result]]:
    """Answer the sentences that are pending, and add the answers to the folder: all or none, whatever interrupts it.

    Writes `<NN-slug>/masks/<frame>.png` (0 and 255, in the frame's size; numbers count from the video's start) and
    `<NN-slug>/overlay.mp4` per expression, and one `result.json`.

    Args:
        segmenter: makes the model, if there is anything to answer.

    Returns:
        The folder, and the results in the order of the expressions.

    Raises:
        UserError: the video can't be read, or an answer can't be written.
    """
    folder = answers.folder
    if pending := answers.pending:
        settings = answers.settings
        source = open_video(answers.video, settings["frames"], settings["fps"])
        with scratch(folder if folder.is_dir() else folder.parent) as work, disk_full(folder, work):
            with segmenter().encode(source, pending, settings["threshold"], settings["targets"], progress) as clip:
                found = _write(work, clip, progress)
            _publish(work, answers, source, dict(zip(pending, found, strict=True)))
    document = read_document(folder)
    assert document is not None
    by_text = {answer["sentence"]: answer for answer in document["results"]}
    size = document["height"], document["width"]
    return folder, [Result.from_json(by_text[text], *size) for text in answers.expressions]


def _write(work: Path, clip: EncodedClip, progress: Progress | None) -> list[Result]:
    """The second pass: masks and overlay of every answer, in folders 0, 1 ..."""
    from dshmp.video.overlay import Caption, OverlayPainter, OverlayWriter, add_sound, save_png

    source = clip.source
    outputs = []
    with contextlib.ExitStack() as stack:
        for index, answer in enumerate(clip.answers):
            folder = work / str(index)
            (folder / MASKS).mkdir(parents=True)
            query, count = answer.query, len(answer.chosen)
            caption = Caption(query.expression, query.words, answer.best, count, answer.mean_evidence, clip.times)
            painter = OverlayPainter(source.height, source.width, caption)
            writer = stack.enter_context(OverlayWriter(folder / OVERLAY, *painter.size, clip.fps))
            outputs.append((folder, painter, writer, Rles(count)))
        for index, (frame, masks) in enumerate(clip.frames(pixels=True)):
            assert frame is not None
            for (folder, painter, writer, rles), mask in zip(outputs, masks, strict=True):
                union = rles.add(mask)
                save_png(folder / MASKS / _png(source.start + index), union.astype(np.uint8) * 255)
                writer.write(painter(frame.image, mask, index), frame.time)
            if progress:
                progress("masks", index + 1, len(clip.times))
    for folder, *_ in outputs:
        add_sound(folder / OVERLAY, source.path, clip.times[0])
    return [clip.result(answer, rles) for answer, (*_, rles) in zip(clip.answers, outputs, strict=True)]


def _png(frame: int) -> str:
    return f"{frame:05d}.png"


# In the folder ----------------------------------------------------------------------------------------------------


def _publish(work: Path, answers: Answers, source: VideoSource, found: dict[str, Result]) -> None:
    """Give what was written its place. From the one renaming on it is done, by the next run if need be."""
    folder = answers.folder
    with locked(folder):
        _settle(folder)
        document = read_document(folder) or {
            "generator": GENERATOR,
            "video": str(answers.video.resolve()),
            "height": source.height,
            "width": source.width,
            "evidence": EVIDENCE,
            "results": [],
        }
        known = {answer["sentence"]: answer for answer in document["results"]}
        taken = {item.name for item in folder.iterdir()} | {answer["folder"] for answer in known.values()}
        ready = work / "ready"
        ready.mkdir()
        for index, (text, result) in enumerate(found.items()):
            own = known[text]["folder"] if text in known else _free(text, taken)
            taken.add(own)
            os.replace(work / str(index), ready / own)
            if text in known:
                _check_foreign(folder / own, ready / own, known[text])
            facts = {"sentence": text, "folder": own, "settings": answers.settings, "first_frame": source.start}
            known[text] = facts | result.to_json()
        save_json(ready / RESULTS, document | {"results": list(known.values())})
        os.replace(ready, folder / f".dshmp-{secrets.token_hex(6)}.ready")
        _settle(folder)


def _settle(folder: Path) -> None:
    """Move what is ready to its place, and remove what only the answer before it had; other files stay. Where a process
    was killed here, the next one goes on."""
    for ready in folder.glob(".dshmp-*.ready"):
        old, new = (
            {answer["folder"]: set(_files(answer)) for answer in (read_document(place) or {}).get("results", ())}
            for place in (folder, ready)
        )
        for own in (folder / name for name in new.keys() & old.keys() if (ready / name).is_dir()):
            for name in old[own.name] - new[own.name]:
                (own / name).unlink(missing_ok=True)
        move_into(ready, folder)


def _files(answer: dict[str, Any]) -> list[str]:
    """What was written for an answer, below its folder."""
    frames = range(answer["first_frame"], answer["first_frame"] + len(answer["times"]))
    return [OVERLAY, *(f"{MASKS}/{_png(frame)}" for frame in frames)]


def _check_foreign(there: Path, new: Path, answer: dict[str, Any]) -> None:
    """Raises UserError where an answer would replace what is not of the answer before it."""
    ours = {MASKS, *_files(answer)}
    for path in sorted(new.rglob("*")):
        name = path.relative_to(new).as_posix()
        if os.path.lexists(there / name) and (name not in ours or (there / name).is_dir() != path.is_dir()):
            raise UserError(f"{there / name}: is not of the answer that is replaced; move it away")


def _free(text: str, taken: set[str]) -> str:
    """A folder's name for a new answer: the next number, and the sentence."""
    numbers = [int(match[1]) for name in taken if (match := re.match(r"(\d+)-", name))]
    return f"{max(numbers, default=0) + 1:02d}-{slug(text)}"


def read_document(folder: Path) -> dict[str, Any] | None:
    """The result.json of a folder; None where there is none or it isn't ours, and `{}` where the folder is vacant."""
    try:
        with open(folder / RESULTS, encoding="utf-8", opener=regular) as file:
            document: dict[str, Any] = json.load(file)
        # the files of an answer, which may be removed, lie where they should
        faults = [name_fault(a["folder"]) or not isinstance(a["first_frame"], int) for a in document["results"]]
        return document if document["generator"] == GENERATOR and not any(faults) else None
    except FileNotFoundError:
        return {} if folder.is_dir() and is_vacant(folder) else None
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


# Names ------------------------------------------------------------------------------------------------------------


def slug(text: str, longest: int = 40) -> str:
    """A sentence as part of a folder's name."""
    short = "-".join(re.findall(r"\w+", text.lower()))[:longest].strip("-_")
    return file_name(short, "expression")


def folder_name(video: Path) -> str:
    """A video's stem or a folder's name, as far as it can be one."""
    return file_name(video.resolve().name if video.is_dir() else video.stem, "video")


def folder_names(videos: Sequence[Path], out: Path) -> dict[Path, str]:
    """A folder in `out` for each of these videos, whatever others there are: the one that holds its answers, else
    the one of its name, which is marked where another video has that."""
    names: dict[Path, str] = {}
    owners: dict[str, str] = {}
    for video in videos:
        plain, path = folder_name(video), str(video.resolve())
        names[video] = f"{plain}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
        if owner := (read_document(out / plain) or {}).get("video"):
            owners[same_name(plain)] = owner
        elif read_document(out / names[video]):
            owners.setdefault(same_name(plain), "")
    for video in videos:
        plain, path = folder_name(video), str(video.resolve())
        if owners.setdefault(same_name(plain), path) == path:
            names[video] = plain
    return names


def video_state(path: Path) -> list[int] | None:
    """Bytes and time of the last change of a video, of all files together where it is a folder; None where it cannot
    be read."""
    try:
        files = [item for item in path.iterdir() if item.is_file()] if path.is_dir() else [path]
        states = [file.stat() for file in files]
    except OSError:
        return None
    return [len(files), sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)]
