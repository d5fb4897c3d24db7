"""Reading predictions: a folder of PNGs, or the zip file that is sent to a benchmark's server."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dshmp.errors import UserError

TOP = "Annotations"  # what Ref-YouTube-VOS's server wants on top; may be there or not


Kind = Literal["video", "expression", "frame", "damaged"]


@dataclass(frozen=True)
class Problem:
    """Something of a prediction that cannot be scored and therefore counts 0."""

    kind: Kind
    """What is missing; or `damaged`, where something is there that is no mask of this frame."""
    path: str
    reason: str = "missing"


class Predictions:
    """Files below a folder or inside a zip file, named by paths with slashes. Raises UserError if it is neither."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        if self.path.is_dir():
            self._prefix = f"{TOP}/" if (self.path / TOP).is_dir() else ""
            return
        if not self.path.exists():
            raise UserError(f"{path}: no such predictions; name the folder or zip file that holds them")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: is neither a folder nor a readable zip file ({error})") from None
        files = set(self._zip.namelist())
        folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
        self._names = files | folders
        self._prefix = f"{TOP}/" if TOP in folders else ""

    def holds(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        name = self._prefix + name
        return (self.path / name).exists() if self._zip is None else name in self._names

    def read(self, name: str) -> bytes | None:
        """A file's content, None where it is missing. Raises OSError or BadZipFile where it cannot be read."""
        return self.read_top(self._prefix + name)

    def read_top(self, name: str) -> bytes | None:
        """The same, of a file that lies at the very top whether there is a folder `Annotations` or not."""
        if self._zip is not None:
            return self._zip.read(name) if name in self._names else None
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

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
            content = self.read(name)
            if content is None:
                return Problem("frame", name)
            image = Image.open(io.BytesIO(content))
            image.load()
        except UnidentifiedImageError:
            return Problem("damaged", name, "is no image")
        # decoders raise various errors on damage, and a password of a zip file is a RuntimeError
        except (
            OSError,
            ValueError,
            SyntaxError,
            RuntimeError,
            zipfile.BadZipFile,
            Image.DecompressionBombError,
        ) as error:
            return Problem("damaged", name, f"cannot be read as an image ({error})")
        if image.size != size[::-1]:
            found, wanted = (f"{width}x{height}" for width, height in (image.size, size[::-1]))
            return Problem("damaged", name, f"is {found}, its frame is {wanted}")
        return image
