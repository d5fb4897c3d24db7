"""The zip files that the servers of MeViS and Ref-YouTube-VOS take: written from predictions, and validated.

    mevis          <video>/<expression>/<frame>.png
    youtube_vos    Annotations/<video>/<expression>/<frame>.png

Every frame has its PNG, grey with 8 bits, of the frame's size, 0 and 255; nothing else lies in the file.
"""

import contextlib
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath

from dshmp.data.base import Split, frame_size
from dshmp.errors import UserError
from dshmp.evaluation.predictions import LARGEST, TOPS, UNREADABLE, open_png
from dshmp.files import atomic_write, destination, digest, regular
from dshmp.progress import track

DATE = (1980, 1, 1, 0, 0, 0)


def zip_beside(out: Path) -> Path:
    """Where the zip file of a folder goes by default."""
    target = destination(out)
    return target.with_name(f"{target.name or 'predictions'}.zip")


def write_zip(out: Path, split: Split, layout: str, path: Path | None = None) -> Path:
    """Zip the predictions in `out`; what a second run writes is equal byte by byte.

    Args:
        path: of the zip file; `<out>.zip` beside the folder by default. It appears only once it is valid.

    Raises:
        UserError: the layout has no submission, a file of the split is missing, what is there is not valid, or `path`
            is there and not what is to be written.
    """
    path = path or zip_beside(out)
    with packed(out, split, layout, path) as made:
        if os.path.lexists(path) and not (path.is_file() and digest(path) == digest(made)):
            raise UserError(f"{path}: is there, and not of the predictions in {out}; move it away")
    return path


@contextlib.contextmanager
def packed(out: Path, split: Split, layout: str, path: Path) -> Iterator[Path]:
    """A valid zip file of the predictions in `out`, which gets its name `path` in the end. Raises as `write_zip`."""
    wanted = [name for folder in _wanted(split, layout) for name in folder.files]
    missing = [name for name in wanted if not (out / name).is_file()]
    if missing:
        raise UserError(f"{out / missing[0]}: missing, {len(missing):,} of {len(wanted):,} masks are; predict again")
    with atomic_write(path) as part:
        with zipfile.ZipFile(part, "w") as file:  # stored: PNGs are compressed
            for name in track(sorted(wanted), "zipping"):
                entry = zipfile.ZipInfo(name, DATE)
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                file.writestr(entry, (out / name).read_bytes())
        findings = validate_zip(part, split, layout)
        if findings:
            more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
            raise UserError(f"{out}: no valid submission ({findings[0]}{more}); predict again")
        yield part


def validate_zip(path: Path, split: Split, layout: str) -> list[str]:
    """What is wrong with a submission, a line each: what, where, and how it should be; nothing where it is valid.

    Raises UserError where the layout has no submission, or a frame of the split cannot be read.
    """
    wanted = _wanted(split, layout)
    try:
        with open(path, "rb", opener=regular):
            file = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UNREADABLE as error:
        return [f"is no readable zip file ({error}); it may be cut off"]
    with file:
        names = Counter(file.namelist())
        if not any(name in names for folder in wanted for name in folder.files):
            return [f"holds no mask of this split; they must be called so: {wanted[0].path}/<frame>.png"]
        return [
            *(f"{name}: is there {times} times" for name, times in names.items() if times > 1),
            *_missing(wanted, names),
            *_extra(wanted, names),
            *_damaged(wanted, names, file, split),
        ]


@dataclass(frozen=True)
class _Folder:
    """The masks of one expression."""

    path: str
    video: str
    files: tuple[str, ...]


def _wanted(split: Split, layout: str) -> list[_Folder]:
    """All that a submission holds, in the split's order. Raises UserError where the layout has none."""
    if layout not in TOPS:
        raise UserError("only MeViS and Ref-YouTube-VOS take submissions; `dshmp score` scores this data set")
    folders = []
    for item in split.expressions:
        path = f"{TOPS[layout]}{item.video}/{item.id}"
        files = dict.fromkeys(f"{path}/{frame}.png" for frame in split.videos[item.video].frames)
        folders.append(_Folder(path, item.video, tuple(files)))
    return folders


def _missing(wanted: Sequence[_Folder], names: Container[str]) -> Iterator[str]:
    for folder in wanted:
        missing = [name for name in folder.files if name not in names]
        if len(missing) == len(folder.files):
            yield f"{folder.path}: the expression is missing"
        elif missing:
            yield f"{missing[0]}: {_many(len(missing), 'frame')} of {len(folder.files)} missing"


def _extra(wanted: Sequence[_Folder], names: Iterable[str]) -> Iterator[str]:
    files = {file for folder in wanted for file in folder.files}
    folders = {str(parent) for folder in wanted for parent in PurePosixPath(folder.path, "_").parents}
    unknown: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        if name not in files and name.rstrip("/") not in folders:
            above = [str(parent) for parent in reversed(PurePosixPath(name).parents)]
            unknown[next((folder for folder in above if folder not in folders), name)].append(name)
    for where, found in unknown.items():
        more = f" ({_many(len(found), 'entry', 'entries')})" if where != found[0] else ""
        yield f"{where}: the split has nothing of this name{more}"


def _damaged(wanted: Sequence[_Folder], names: Container[str], file: zipfile.ZipFile, split: Split) -> Iterator[str]:
    size = cache(partial(frame_size, split))
    for folder in track(wanted, "validating"):
        wrong: defaultdict[str, list[str]] = defaultdict(list)
        for name in folder.files:
            if name in names and (fault := _fault(file, name, size(folder.video))):
                wrong[fault].append(name)
        for fault, found in wrong.items():
            more = f" (and {len(found) - 1} more of this expression)" if len(found) > 1 else ""
            yield f"{found[0]}: {fault}{more}"


def _fault(file: zipfile.ZipFile, name: str, size: tuple[int, int]) -> str | None:
    """What is wrong with a mask of a frame of `size` (H, W)."""
    try:
        with file.open(name) as stream:
            image = open_png(stream.read(LARGEST + 1), size)
    except UNREADABLE as error:
        return f"cannot be read ({error})"
    if isinstance(image, str):
        return image
    if image.mode != "L":
        return f"is a PNG of mode {image.mode}, not L (grey, 8 bits)"
    other = [value for value, count in enumerate(image.histogram()) if count and value not in (0, 255)]
    return f"holds the value {other[0]}; only 0 and 255 are allowed" if other else None


def _many(count: int, one: str, several: str | None = None) -> str:
    return f"1 {one}" if count == 1 else f"{count:,} {several or one + 's'}"
