"""Reading predictions: a folder of PNGs, or the zip file that is sent to a benchmark's server.

What is read may come from anywhere: no more than `LARGEST` bytes of a mask are ever unpacked, nothing but PNG is
decoded, and that only where its header has the frame's size.
"""

import io
import json
import lzma
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dshmp.errors import UserError
from dshmp.files import reason, regular
from dshmp.video.images import DECODER_ERRORS

TOPS = {"mevis": "", "youtube_vos": "Annotations/"}
"""Layouts that have a submission, and what its paths begin with."""
LARGEST = 64 * 2**20
"""Bytes of a mask."""
LARGEST_JSON = 2**30
PROPOSALS = 20
"""As many objects as the DAVIS evaluation takes."""
UNREADABLE = (*DECODER_ERRORS, lzma.LZMAError, zipfile.BadZipFile)
"""What decoders of PNG, zip and JSON raise on damage; a zip file's password is a RuntimeError, as is deep nesting."""


@dataclass(frozen=True)
class Problem:
    """What is missing of a prediction, or there and no mask of its frame (`damaged`), and therefore counts 0."""

    kind: Literal["video", "expression", "frame", "damaged"]
    path: str
    reason: str = "missing"


class Predictions:
    """Files below a folder or inside a zip file, named by paths with slashes. `top` may lie above them or not, as
    Ref-YouTube-VOS's server wants it. Raises UserError where it is neither.
    """

    def __init__(self, path: Path, top: str = "") -> None:
        self.path = Path(path)
        self._root: Path | zipfile.Path = self.path
        if not self.path.exists():
            raise UserError(f"{path}: no such predictions; name the folder or zip file that holds them")
        if not self.path.is_dir():
            try:
                with open(self.path, "rb", opener=regular):
                    self._root = zipfile.Path(zipfile.ZipFile(self.path))
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
            content = _read(self._root / name, LARGEST_JSON)
            return None if content is None else json.loads(content)
        except UNREADABLE as error:
            raise UserError(f"{self.path / name}: is not valid JSON ({reason(error)}); write it again") from None

    def mask(self, name: str, size: tuple[int, ...]) -> NDArray[np.bool_] | Problem:
        """Any PNG as a mask (H, W) bool: a pixel is foreground where any channel but alpha is not 0."""
        image = self._image(name, size)
        if isinstance(image, Problem):
            return image
        foreground: NDArray[np.bool_] = np.asarray(image) != 0
        if foreground.ndim == 3:
            foreground = np.asarray(foreground[..., : 1 if image.mode == "LA" else 3].any(-1))
        return foreground

    def object_ids(self, name: str, size: tuple[int, ...]) -> NDArray[np.uint8] | Problem:
        """A palette or grey PNG as object ids (H, W) uint8, the raw values."""
        image = self._image(name, size)
        if isinstance(image, Problem):
            return image
        if image.mode not in ("P", "L", "1"):
            return Problem("damaged", name, f"is a {image.mode} image; object ids are told by a palette or grey PNG")
        ids = np.asarray(image, dtype=np.uint8)
        if (most := ids.max(initial=0)) > PROPOSALS:
            return Problem("damaged", name, f"holds object id {most}; the DAVIS evaluation takes at most {PROPOSALS}")
        return ids

    def _image(self, name: str, size: tuple[int, ...]) -> Image.Image | Problem:
        try:
            content = _read(self._masks / name, LARGEST)
            if content is None:
                return Problem("frame", name)
            image = open_png(content, size)
        except UNREADABLE as error:
            image = f"cannot be read ({reason(error)})"
        return Problem("damaged", name, image) if isinstance(image, str) else image


def _read(path: Path | zipfile.Path, limit: int) -> bytes | None:
    """A file's content up to the first byte beyond the limit; None where there is none. Raises `UNREADABLE`."""
    try:
        with path.open("rb") if isinstance(path, zipfile.Path) else open(path, "rb", opener=regular) as file:
            content: bytes = file.read(limit + 1)
            return content
    except FileNotFoundError:
        return None


def open_png(content: bytes, size: tuple[int, ...]) -> Image.Image | str:
    """A decoded PNG of `size` (H, W), or what is wrong with it. Raises `UNREADABLE`."""
    if len(content) > LARGEST:
        return "is far too large for a mask"
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG",))
    except UnidentifiedImageError:
        return "is no PNG"
    if image.size != size[::-1]:
        return f"is {image.width}x{image.height}, its frame is {size[1]}x{size[0]}"
    image.verify()  # all checksums up to the end, as decoders forgive what is cut off
    image = Image.open(io.BytesIO(content), formats=("PNG",))
    image.load()
    return image
