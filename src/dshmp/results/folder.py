"""Answers as a folder, one per video: masks, overlays and result.json. They are added: what another sentence was
answered before stays, and so does whatever people put beside it. An answer is written wholly or not at all."""

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dshmp.common import files as disk
from dshmp.common.errors import UserError
from dshmp.results.answer import EVIDENCE, RESULTS, Answer

OVERLAY, MASKS, EXPORT = "overlay.mp4", "masks", "export"
GENERATOR = "dshmp segment"  # says in result.json that the folder is ours


def answer_folder(video: Path, out: Path, name: str | None = None) -> tuple[Path, dict[str, Any]]:
    """The folder for answers about a video, and its result.json or {}. UserError where it holds something else."""
    folder = disk.destination(out / (name or folder_name(video)), folder=True)
    document = read_document(folder)
    if document is None and os.path.lexists(folder):
        raise UserError(f"{folder}: exists and is not a result of dshmp; choose another --out")
    if document and document["video"] != str(video.resolve()):
        raise UserError(f"{folder}: holds the result of {document['video']}; choose another --out")
    return folder, document or {}


def save_result(result: Answer, folder: Path) -> Path:
    """Add an answer from Python to a folder of answers about one video, or replace that to the same sentence: masks
    `<NN-slug>/masks/<frame>.png` and `result.json`. Raises UserError where the folder holds anything else."""
    from dshmp.video.overlay import save_png

    known = result.origin
    video, first = (str(known.path or "an array"), known.start) if known else ("unknown", 0)
    folder = disk.destination(folder, folder=True)
    document = read_document(folder)
    if document is None and os.path.lexists(folder):
        raise UserError(f"{folder}: exists and is not a result of dshmp; choose another folder")
    about = {"video": video, "height": result.height, "width": result.width}
    if document and any(document.get(key) != value for key, value in about.items()):
        raise UserError(f"{folder}: holds answers about {document['video']}, not {video}; choose another folder")
    with disk.scratch(folder if folder.is_dir() else folder.parent) as work, disk.writing(folder, work):
        (work / "0" / MASKS).mkdir(parents=True)
        for t in range(result.frame_count):
            save_png(work / "0" / MASKS / f"{first + t:05d}.png", result.mask(t).astype(np.uint8) * 255)
        answer: dict[str, Any] = {"sentence": result.expression, "folder": "", "settings": {}, "first_frame": first}
        fresh = {"generator": GENERATOR, **about, "evidence": EVIDENCE, "results": []}
        publish(work, folder, fresh, [answer | result.to_json()])
    return folder


def publish(work: Path, folder: Path, fresh: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    """Give what was written its place: from the renaming on it is done, by the next run if need be. `fresh` is
    result.json where there is none yet."""
    ready = work / "ready"
    ready.mkdir()
    with disk.locked(folder):
        _settle(folder)
        document = read_document(folder) or fresh
        known = {answer["sentence"]: answer for answer in document["results"]}
        taken = [item.name for item in folder.iterdir()] + [answer["folder"] for answer in known.values()]
        number = max((int(found[1]) for name in taken if (found := re.match(r"(\d+)-", name))), default=0)
        for index, answer in enumerate(answers):
            before = known.get(answer["sentence"])
            number += before is None
            answer["folder"] = before["folder"] if before else f"{number:02d}-{slug(answer['sentence'])}"
            if before and _bare(before) == _bare(answer):
                answer["exports"] = before.get("exports", {}) | answer.get("exports", {})
            os.replace(work / str(index), ready / answer["folder"])
            if before:
                _check_foreign(folder / answer["folder"], ready / answer["folder"], before)
            known[answer["sentence"]] = answer
        disk.save_json(ready / RESULTS, document | {"results": list(known.values())})
        os.replace(ready, folder / f".dshmp-{secrets.token_hex(6)}.ready")
        _settle(folder)


def _bare(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what it was also written as."""
    return {key: value for key, value in answer.items() if key != "exports"}


def _settle(folder: Path) -> None:
    """Move what is ready to its place, and remove what only the answer before it had; other files stay."""
    for ready in folder.glob(".dshmp-*.ready"):
        old, new = (
            {answer["folder"]: set(answer_files(answer)) for answer in (read_document(place) or {}).get("results", ())}
            for place in (folder, ready)
        )
        for name in (name for name in new.keys() & old.keys() if (ready / name).is_dir()):
            _remove(folder / name, old[name] - new[name])
        disk.move_into(ready, folder)


def remove_answers(folder: Path) -> None:
    """Remove all answers in a folder of ours; other files stay."""
    with disk.locked(folder):
        _settle(folder)
        answers = (read_document(folder) or {}).get("results", ())
        (folder / RESULTS).unlink(missing_ok=True)
        for answer in answers:
            _remove(folder / answer["folder"], answer_files(answer))


def _remove(own: Path, names: Iterable[str]) -> None:
    places = {own, own / MASKS}
    for name in names:
        (own / name).unlink(missing_ok=True)
        places |= {own / place for place in Path(name).parents}
    for place in sorted(places, key=lambda place: len(place.parts), reverse=True):
        with contextlib.suppress(OSError):  # something else is in it
            place.rmdir()


def answer_files(answer: Mapping[str, Any]) -> list[str]:
    """What was written for an answer, below its folder."""
    first = answer["first_frame"]
    names = answer.get("frames") or [f"{number:05d}" for number in range(first, first + len(answer["times"]))]
    overlay = [OVERLAY] if answer.get("settings", {}).get("overlay", True) else []
    exported = [f"{EXPORT}/{name}" for written in answer.get("exports", {}).values() for name in written]
    return [*overlay, *(f"{MASKS}/{name}.png" for name in names), *exported]


def _check_foreign(there: Path, new: Path, answer: dict[str, Any]) -> None:
    """Raises UserError where an answer would replace what is not of the answer before it."""
    ours = set(answer_files(answer))
    for path in sorted(new.rglob("*")):
        name = path.relative_to(new).as_posix()
        folders = path.is_dir(), (there / name).is_dir()  # one joins the other
        if os.path.lexists(there / name) and not all(folders) and (any(folders) or name not in ours):
            raise UserError(f"{there / name}: is not of the answer that is replaced; move it away")


def read_document(folder: Path) -> dict[str, Any] | None:
    """The result.json of a folder; None where there is none or it isn't ours, and `{}` where the folder is vacant."""
    try:
        with open(folder / RESULTS, encoding="utf-8", opener=disk.regular) as file:
            document: dict[str, Any] = json.load(file)
        # the files of an answer, which may be removed, lie where they should
        answers = document["results"]
        names = [name for answer in answers for name in (answer["folder"], *answer.get("frames", ()))]
        exported = [name for answer in answers for written in answer.get("exports", {}).values() for name in written]
        names += [part for name in exported for part in name.split("/")]
        faults = [*map(disk.name_fault, names), *(not isinstance(answer["first_frame"], int) for answer in answers)]
        return document if document["generator"] == GENERATOR and not any(faults) else None
    except FileNotFoundError:
        return {} if folder.is_dir() and disk.is_vacant(folder) else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def slug(text: str, longest: int = 40) -> str:
    """A sentence as part of a folder's name."""
    short = "-".join(re.findall(r"\w+", text.lower()))[:longest].strip("-_")
    return disk.file_name(short, "expression")


def folder_name(video: Path) -> str:
    """A video's stem or a folder's name, as far as it can be one."""
    return disk.file_name(video.resolve().name if os.path.isdir(video) else video.stem, "video")


def folder_names(videos: Sequence[Path], owners: Callable[[Sequence[str]], Mapping[str, str]]) -> dict[Path, str]:
    """A folder's name for each of these videos: of the one that holds its answers, else the video's, which is marked
    where another video has that. `owners` tells of names of folders which video each one's answers are about."""
    paths = {video: str(video.resolve()) for video in videos}
    marks = {video: hashlib.sha256(os.fsencode(path)).hexdigest()[:8] for video, path in paths.items()}
    choices = {video: (plain := folder_name(video), f"{plain}-{marks[video]}") for video in videos}
    known = owners(list(dict.fromkeys(name for pair in choices.values() for name in pair)))
    names: dict[Path, str] = {}
    used: set[str] = set()
    for video, (plain, marked) in choices.items():
        owner = known.get(plain)
        taken = owner or marked in known or plain.casefold() in used
        names[video] = marked if taken and owner != paths[video] else plain
        used.add(names[video].casefold())
    return names


def owners_in(out: Path) -> Callable[[Sequence[str]], Mapping[str, str]]:
    """For `folder_names`, of the folders in `out`."""
    return lambda names: {name: document["video"] for name in names if (document := read_document(out / name))}


def video_state(path: Path, pattern: str = "*") -> list[int] | None:
    """Files, bytes and time of the last change of a video or a folder of frames, or of tracks (`**/*`: folders in it,
    too); None where it cannot be read."""
    try:
        files = [item for item in path.glob(pattern) if item.is_file()] if path.is_dir() else [path]
        states = [file.stat() for file in files]
    except OSError:
        return None
    return [len(files), sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)]
