"""Reading predictions: a folder of PNGs, or the zip file that is sent to a benchmark's server.

What is read may come from anywhere: no more than `LARGEST` bytes of a mask are ever unpacked, nothing but PNG is
decoded, and that only where its header has the frame's size.
"""

import io
import lzma
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dshmp.errors import UserError
from dshmp.files import reason, regular
from dshmp.video.images import DECODER_ERRORS

TOP = "Annotations"
TOPS = {"mevis": "", "youtube_vos": f"{TOP}/"}
"""Layouts that have a submission, and what its paths begin with."""
LARGEST = 64 * 2**20
"""Bytes; no mask is larger."""
LARGEST_JSON = 2**30
UNREADABLE = (*DECODER_ERRORS, lzma.LZMAError, zipfile.BadZipFile)
"""What decoders of PNG, zip and JSON raise on damage; a zip file's password is a RuntimeError, as is deep nesting."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"

Kind = Literal["video", "expression", "frame", "damaged"]


@dataclass(frozen=True)
class Problem:
    """Something of a prediction that cannot be scored and therefore counts 0."""

    kind: Kind
    """What is missing; or `damaged`, where something is there that is no mask of this frame."""
    path: str
    reason: str = "missing"


class Predictions:
    """Files below a folder or inside a zip file, named by paths with slashes.

    Args:
        top: what may lie above them, as Ref-YouTube-VOS's server wants it; it is there or not.

    Raises:
        UserError: it is neither.
    """

    def __init__(self, path: Path, top: str = "") -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        if self.path.is_dir():
            self._prefix = top if (self.path / top).is_dir() else ""
            return
        if not self.path.exists():
            raise UserError(f"{path}: no such predictions; name the folder or zip file that holds them")
        try:
            with open(self.path, "rb", opener=regular):
                self._zip = zipfile.ZipFile(self.path)
        except UNREADABLE as error:
            raise UserError(f"{path}: is neither a folder nor a readable zip file ({reason(error)})") from None
        self._files = set(self._zip.namelist())
        self._folders = {str(parent) for name in self._files for parent in PurePosixPath(name).parents}
        self._prefix = top if top.rstrip("/") in self._folders else ""

    def holds(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        name = self._prefix + name
        return (self.path / name).exists() if self._zip is None else name in self._files or name in self._folders

    def read_json(self, name: str) -> bytes | None:
        """A file that lies at the very top, whatever lies above the others; None where it is missing.

        Raises UserError where it cannot be read.
        """
        path = self.path / name
        try:
            content = self._read(name, LARGEST_JSON)
        except UNREADABLE as error:
            raise UserError(f"{path}: cannot be read ({reason(error)}); write it again") from None
        if content is not None and len(content) > LARGEST_JSON:
            raise UserError(f"{path}: is larger than {LARGEST_JSON:,} bytes; is it what it should be?")
        return content

    def mask(self, name: str, size: tuple[int, int]) -> NDArray[np.bool_] | Problem:
        """Any PNG as a mask (H, W) bool: a pixel is foreground where any channel but alpha is not 0."""
        image = self._image(name, size)
        if isinstance(image, Problem):
            return image
        foreground: NDArray[np.bool_] = np.asarray(image) != 0
        if foreground.ndim == 3:
            foreground = np.asarray(foreground[..., : 1 if image.mode == "LA" else 3].any(-1))
        return foreground

    def indices(self, name: str, size: tuple[int, int]) -> NDArray[np.uint8] | Problem:
        """A palette or grey PNG as object ids (H, W) uint8, the raw values."""
        image = self._image(name, size)
        if isinstance(image, Problem):
            return image
        if image.mode not in ("P", "L", "1"):
            return Problem("damaged", name, f"is a {image.mode} image; object ids are told by a palette or grey PNG")
        return np.asarray(image, dtype=np.uint8)

    def _image(self, name: str, size: tuple[int, int]) -> Image.Image | Problem:
        try:
            content = self._read(self._prefix + name, LARGEST)
            if content is None:
                return Problem("frame", name)
            image = open_png(content, size)
        except UNREADABLE as error:
            return Problem("damaged", name, f"cannot be read ({reason(error)})")
        return Problem("damaged", name, image) if isinstance(image, str) else image

    def _read(self, name: str, limit: int) -> bytes | None:
        """A file's content up to the first byte beyond the limit; None where there is none. Raises `UNREADABLE`."""
        if self._zip is not None:
            return read_entry(self._zip, name, limit) if name in self._files else None
        try:
            with open(self.path / name, "rb", opener=regular) as file:
                return file.read(limit + 1)
        except FileNotFoundError:
            return None


def read_entry(file: zipfile.ZipFile, name: str, limit: int = LARGEST) -> bytes:
    """An entry of a zip file up to the first byte beyond the limit. Raises `UNREADABLE`."""
    stream: IO[bytes]
    with file.open(name) as stream:
        return stream.read(limit + 1)


def open_png(content: bytes, size: tuple[int, int]) -> Image.Image | str:
    """A decoded PNG of `size` (H, W), or what is wrong with it. Raises `UNREADABLE`."""
    if len(content) > LARGEST:
        return "is far too large for a mask"
    if not content.startswith(SIGNATURE):
        return "is no PNG"
    if not is_whole_png(content):  # decoders forgive
        return "is cut off or damaged"
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    if (height, width) != size:
        return f"is {width}x{height}, its frame is {size[1]}x{size[0]}"
    image = Image.open(io.BytesIO(content), formats=("PNG",))
    if image.size != (width, height):  # by a second header
        return "is damaged"
    image.load()
    return image


def is_whole_png(content: bytes) -> bool:
    """Whether every chunk of a PNG has its checksum, and the last byte is the end's. What decodes is not told."""
    if not content.startswith(SIGNATURE):
        return False
    start = 8
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])
        if zlib.crc32(content[start + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
            return False
        if content[start + 4 : start + 8] == b"IEND":
            return end == len(content)
        start = end
    return False
