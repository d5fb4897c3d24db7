"""Predictions on disk: a folder of PNGs, or the zip file that a benchmark's server takes, written and validated here.

What is read may come from anywhere: no more than `limits.MASK` bytes of a mask are ever unpacked, nothing but PNG and
JPEG is decoded, and that only where its header has the frame's size. In a zip file for the servers of MeViS and
Ref-YouTube-VOS every frame has its PNG, grey with 8 bits, of the frame's size, 0 and 255, and nothing else lies in it.
"""

import contextlib
import io
import json
import lzma
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dshmp.common import limits
from dshmp.common.errors import UserError, printable
from dshmp.common.files import atomic_write, destination, digest, reason, regular
from dshmp.common.progress import track
from dshmp.data.base import Split, frame_size
from dshmp.video.images import DATA_FORMATS, DECODER_ERRORS

TOPS = {"mevis": "", "youtube_vos": "Annotations/"}  # layouts that have a submission, and what its paths begin with
FACTS = "predict.json"  # which says how predictions were made
DATE = (1980, 1, 1, 0, 0, 0)  # of every file in a zip file
PROPOSALS = 20  # objects that the DAVIS evaluation takes at most
UNREADABLE = (*DECODER_ERRORS, lzma.LZMAError, zipfile.BadZipFile)  # what decoders of PNG, zip and JSON raise


@dataclass(frozen=True)
class Problem:
    """What is missing of a prediction, or there and no mask of its frame (`damaged`), and therefore counts 0; or read,
    and surely not as it was meant (`palette`)."""

    kind: Literal["video", "expression", "frame", "damaged", "palette"]
    path: str
    reason: str = "missing"


class Predictions:
    """Files below a folder or inside a zip file, named by paths with slashes. `top` may lie above them or not, as
    Ref-YouTube-VOS's server wants it. Raises UserError where it is neither."""

    def __init__(self, path: Path, top: str = "") -> None:
        self.path = Path(path)
        self._root: Path | zipfile.Path = self.path
        if not self.path.exists():
            raise UserError(f"{path}: no such predictions; name the folder or zip file that holds them")
        if not self.path.is_dir():
            try:
                self._root = zipfile.Path(_open_zip(self.path))
            except UNREADABLE as error:
                raise UserError(f"{path}: is neither a folder nor a readable zip file ({reason(error)})") from None
        below = self._root / top.rstrip("/")
        self._masks = below if below.is_dir() else self._root

    def holds(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        return (self._masks / name).exists()

    def read_json(self, name: str) -> Any:
        """A JSON file at the very top; None where it is missing. Raises UserError where it cannot be read."""
        try:
            most = limits.SETTINGS if name == FACTS else limits.DETECTIONS
            content = _read(self._root / name, most)
            if len(content) > most:
                raise ValueError(f"is larger than {most:,} bytes")
            return json.loads(content)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            raise UserError(f"{self.path / name}: is not valid JSON ({reason(error)}); write it again") from None

    def mask(self, name: str, size: tuple[int, ...], problems: list[Problem]) -> NDArray[np.bool_] | None:
        """A PNG or JPEG as a mask (H, W) bool, foreground where its grey is not 0; or None, and a problem more.

        Grey is what OpenCV makes of it, as MeViS's script reads masks: of a palette its colours, of 16 bits the upper
        ones, turned as EXIF says. A palette whose index 0 is not its black is a problem too.
        """
        found = self._decoded(name, size, DATA_FORMATS)
        if isinstance(found, Problem):
            problems.append(found)
            return None
        image, content = found
        grey = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
        if grey is None or grey.shape != tuple(size):
            told = "cannot be read by OpenCV" if grey is None else "is of its frame's size, and turned by its EXIF"
            problems.append(Problem("damaged", name, told))
            return None
        if image.mode == "P" and np.any((np.asarray(image) > 0) != (grey > 0)):
            problems.append(Problem("palette", name, "is read as grey, and black is not the index 0 of its palette"))
        return np.asarray(grey > 0)

    def object_ids(self, name: str, size: tuple[int, ...]) -> NDArray[np.uint8] | Problem:
        """A palette or grey PNG as object ids (H, W) uint8, the raw values."""
        image = self.image(name, size)
        if isinstance(image, Problem):
            return image
        if image.mode not in ("P", "L", "1"):
            return Problem("damaged", name, f"is a {image.mode} image; object ids are told by a palette or grey PNG")
        ids = np.asarray(image, dtype=np.uint8)
        if (most := ids.max(initial=0)) > PROPOSALS:
            return Problem("damaged", name, f"holds object id {most}; the DAVIS evaluation takes at most {PROPOSALS}")
        return ids

    def image(self, name: str, size: tuple[int, ...]) -> Image.Image | Problem:
        """A decoded PNG of `size` (H, W)."""
        found = self._decoded(name, size, ("PNG",))
        return found if isinstance(found, Problem) else found[0]

    def _decoded(
        self, name: str, size: tuple[int, ...], formats: tuple[str, ...]
    ) -> tuple[Image.Image, bytes] | Problem:
        """An image of `size` (H, W), and its file."""
        try:
            content = _read(self._masks / name, limits.MASK)
            if len(content) > limits.MASK:
                return Problem("damaged", name, "is far too large for a mask")
            image = Image.open(io.BytesIO(content), formats=formats)
            if image.size != size[::-1]:
                return Problem("damaged", name, f"is {image.width}x{image.height}, its frame is {size[1]}x{size[0]}")
            image.verify()  # all checksums up to the end, as decoders forgive what is cut off
            image = Image.open(io.BytesIO(content), formats=formats)
            image.load()
            return image, content
        except FileNotFoundError:
            return Problem("frame", name)
        except UnidentifiedImageError:
            return Problem("damaged", name, "is no PNG")
        except UNREADABLE as error:
            return Problem("damaged", name, f"cannot be read ({reason(error)})")


def _open_zip(path: Path) -> zipfile.ZipFile:
    """Raises one of `UNREADABLE`, also for names of any depth, whose folders would fill the memory."""
    with open(path, "rb", opener=regular):
        file = zipfile.ZipFile(path)
    if (longest := max(map(len, file.namelist()), default=0)) > limits.PATH:
        file.close()
        raise zipfile.BadZipFile(f"a name in it has {longest:,} characters")
    return file


def _read(path: Path | zipfile.Path, limit: int) -> bytes:
    """A file's content up to the first byte beyond the limit. Raises FileNotFoundError and others of `UNREADABLE`."""
    if isinstance(path, zipfile.Path) and path.is_file() and path.suffix == ".json":
        entry = path.root.getinfo(path.at)
        if entry.file_size > limits.SETTINGS + limits.PACKED * entry.compress_size:
            raise zipfile.BadZipFile(f"unpacks to {entry.file_size:,} bytes")
    with path.open("rb") if isinstance(path, zipfile.Path) else open(path, "rb", opener=regular) as file:
        return bytes(file.read(limit + 1))


def zip_of(out: Path, path: Path | None = None) -> Path:
    """Where the zip file of a folder goes: `path`, or beside it."""
    return destination(path or Path(f"{destination(out)}.zip"))


def write_zip(out: Path, split: Split, layout: str) -> Path:
    """Zip the predictions in `out` as `<out>.zip`; a second run writes the same, byte by byte. Raises UserError where
    something is missing or not valid, or the zip file is there and not what is to be written."""
    path = zip_of(out)
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
    """What is wrong with a submission, one line for the files of a folder that are wrong alike. Raises UserError where
    the layout has no submission, or a frame of the split cannot be read."""
    wanted = _wanted(split, layout)
    try:
        with _open_zip(path) as file:
            names = Counter(file.namelist())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UNREADABLE as error:
        return [f"is no readable zip file ({error}); it may be cut off"]
    faults: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    if wanted.keys().isdisjoint(names):
        return [f"holds no mask of this split, such as {next(iter(wanted), '')}; mind the folders above"]
    for name, fault in _faults(Predictions(path), names, wanted, split):
        faults[str(PurePosixPath(name).parent), fault].append(name)
    more = {key: f" (and {len(found) - 1} more of this folder)" for key, found in faults.items() if len(found) > 1}
    return [printable(f"{found[0]}: {key[1]}{more.get(key, '')}") for key, found in faults.items()]


def _faults(files: Predictions, names: Counter[str], wanted: dict[str, str], split: Split) -> Iterator[tuple[str, str]]:
    """Names in a zip file and what is wrong with each."""
    size = cache(partial(frame_size, split))
    for name, video in track(wanted.items(), "validating", total=len(wanted)):
        if name not in names:
            yield name, "is missing"
            continue
        image = files.image(name, size(video))
        if isinstance(image, Problem):
            yield name, image.reason
        elif image.mode != "L":
            yield name, f"is a PNG of mode {image.mode}, not L (grey, 8 bits)"
        elif other := [value for value, count in enumerate(image.histogram()) if count and value not in (0, 255)]:
            yield name, f"holds the value {other[0]}; only 0 and 255 are allowed"
    folders = {f"{parent}/" for name in wanted for parent in PurePosixPath(name).parents}
    for name, times in names.items():
        if name not in wanted and name not in folders:
            yield name, "the split has nothing of this name"
        elif times > 1:
            yield name, f"is there {times} times"


def _wanted(split: Split, layout: str) -> dict[str, str]:
    """All names in a submission, in the split's order, and the video of each."""
    if layout not in TOPS:
        raise UserError("only MeViS and Ref-YouTube-VOS take submissions; `dshmp score` scores this data set")
    return {
        f"{TOPS[layout]}{item.video}/{item.id}/{frame}.png": item.video
        for item in split.expressions
        for frame in split.videos[item.video].frames
    }
