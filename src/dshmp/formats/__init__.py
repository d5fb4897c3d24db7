"""What other tools read and write: a module for each format or family of formats, for both directions if there are two.

`write` writes answers, `dshmp.formats.reading` reads tracks.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dshmp.common.errors import UserError
from dshmp.common.files import atomic_folder, new_file, new_folder
from dshmp.formats.answers import Answers

if TYPE_CHECKING:
    from dshmp.results.answer import Answer
    from dshmp.video.source import VideoSource


class Kind(NamedTuple):
    """How a format is written."""

    module: str
    suffix: str = ""  # of its file; without, it is a folder
    apart: bool = False  # it holds one answer


KINDS = {
    "coco": Kind("coco", ".json"),
    "ytvis": Kind("youtube_vis", ".json"),
    "yolo": Kind("yolo"),
    "cvat": Kind("cvat", ".xml"),
    "labelstudio": Kind("label_studio"),
    "mots": Kind("mots", ".txt", apart=True),
    "davis": Kind("index_pngs", apart=True),
    "alpha": Kind("cutouts", apart=True),
    "csv": Kind("table"),
}


def check_kinds(kinds: Sequence[str]) -> list[str]:
    """The kinds, each once. Raises UserError where one is not known."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"{kind!r} is no format that is written here; choose from {', '.join(KINDS)}")
    return list(dict.fromkeys(kinds))


def write(kinds: Sequence[str], results: Sequence["Answer"], video: "VideoSource", folder: Path) -> list[Path]:
    """Write answers to one video as `folder/<kind>.<suffix>` or in `folder/<kind>/`: all that is asked for, or nothing.

    Formats that hold one answer (mots, davis, alpha) have a file or folder for each, `<kind>/01`, `<kind>/02` ..., if
    there are several. Masks are decoded one by one, and the video only for alpha. Returns the files. Raises UserError
    for an unknown kind, results of another video, and where one of the files is there already.
    """
    chosen, answers = check_kinds(kinds), Answers(tuple(results), video)
    with atomic_folder(folder) as work:
        for name in chosen:
            kind = KINDS[name]
            if not kind.apart or len(results) == 1:
                _save(kind, answers, work / f"{name}{kind.suffix}")
                continue
            (work / name).mkdir()
            for number, each in enumerate(answers.apart(), 1):
                _save(kind, each, work / name / f"{number:02d}{kind.suffix}")
        files = [folder / file.relative_to(work) for file in sorted(work.rglob("*")) if file.is_file()]
        if taken := [file for file in files if os.path.lexists(file)]:
            raise UserError(f"{taken[0]}: is there already; remove it, or choose another folder")
    return files


def save(name: str, answers: Answers, path: str | Path) -> None:
    """Write one format as a new file or folder. Raises UserError where that is there already."""
    kind = KINDS[name]
    with (new_file if kind.suffix else new_folder)(Path(path)) as part:
        _save(kind, answers, part)


def _save(kind: Kind, answers: Answers, path: Path) -> None:
    if not kind.suffix:
        path.mkdir(exist_ok=True)
    import_module(f"{__name__}.{kind.module}").save(answers, path)
