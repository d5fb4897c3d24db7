"""The zip files that the servers of MeViS and Ref-YouTube-VOS take: written from predictions, and validated.

Every frame has its PNG, grey with 8 bits, of the frame's size, 0 and 255; nothing else lies in the file. The layout is
that of predictions (`predict`).
"""

import contextlib
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
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


def write_zip(out: Path, split: Split, layout: str) -> Path:
    """Zip the predictions in `out` as `<out>.zip`; a second run writes the same, byte by byte.

    Raises UserError where the layout has no submission, a file of the split is missing, what is there is not valid, or
    the zip file is there and not what is to be written.
    """
    path = zip_beside(out)
    with packed(out, split, layout, path) as made:
        if os.path.lexists(path) and not (path.is_file() and digest(path) == digest(made)):
            raise UserError(f"{path}: is there, and not of the predictions in {out}; move it away")
    return path


@contextlib.contextmanager
def packed(out: Path, split: Split, layout: str, path: Path) -> Iterator[Path]:
    """A valid zip file of the predictions in `out`, which gets its name `path` in the end. Raises as `write_zip`."""
    wanted = _wanted(split, layout)
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
            raise UserError(f"{out}: no valid submission ({findings[0]}); predict again")
        yield part


def validate_zip(path: Path, split: Split, layout: str) -> list[str]:
    """What is wrong with a submission, one line for the files of a folder that are wrong alike.

    Raises UserError where the layout has no submission, or a frame of the split cannot be read.
    """
    wanted = _wanted(split, layout)
    size = cache(partial(frame_size, split))
    try:
        with open(path, "rb", opener=regular):
            file = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UNREADABLE as error:
        return [f"is no readable zip file ({error}); it may be cut off"]
    with file:
        names = Counter(file.namelist())
        if wanted.keys().isdisjoint(names):
            return [f"holds no mask of this split, such as {next(iter(wanted), '')}; mind the folders above"]
        faults: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

        def note(name: str, fault: str) -> None:
            faults[str(PurePosixPath(name).parent), fault].append(name)

        for name, video in track(wanted.items(), "validating", total=len(wanted)):
            if name not in names:
                note(name, "is missing")
            elif fault := _fault(file, name, size(video)):
                note(name, fault)
        folders = {f"{parent}/" for name in wanted for parent in PurePosixPath(name).parents}
        for name, times in names.items():
            if name not in wanted and name not in folders:
                note(name, "the split has nothing of this name")
            elif times > 1:
                note(name, f"is there {times} times")
    more = {key: f" (and {len(found) - 1} more of this folder)" for key, found in faults.items() if len(found) > 1}
    return [f"{found[0]}: {key[1]}{more.get(key, '')}" for key, found in faults.items()]


def _wanted(split: Split, layout: str) -> dict[str, str]:
    """All names in a submission, in the split's order, and the video of each. Raises UserError where the layout has
    none."""
    if layout not in TOPS:
        raise UserError("only MeViS and Ref-YouTube-VOS take submissions; `dshmp score` scores this data set")
    return {
        f"{TOPS[layout]}{item.video}/{item.id}/{frame}.png": item.video
        for item in split.expressions
        for frame in split.videos[item.video].frames
    }


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
