"""The one place where image files are opened: regular files, of a fixed list of formats."""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dshmp.common.errors import UserError
from dshmp.common.files import regular

# what people's frames are read in, by Pillow's names; others stay shut: for PostScript Pillow starts Ghostscript
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "AVIF")
DATA_FORMATS = ("JPEG", "PNG")  # what data sets and predictions consist of
# how names of files in `FORMATS` end
SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".apng", ".bmp", ".webp", ".tif", ".tiff", ".avif"})
MAX_SIDE = 65_536
MAX_PIXELS = 8192 * 8192
DECODER_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, ArithmeticError, LookupError),
    *(MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for damaged files: its PNG reader a SyntaxError, for one."""


@contextlib.contextmanager
def open_image(path: Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """An image of which only the header is read yet. Raises UserError where it has more than `MAX_PIXELS`, and one of
    `DECODER_ERRORS` where it cannot be read or is of none of the formats."""
    with open(path, "rb", opener=regular) as file:
        try:
            image = Image.open(file, formats=formats)
        except UnidentifiedImageError:
            raise ValueError(f"it is no {' or '.join(formats)}") from None
        with image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                most = f"8192x8192 pixels, and {MAX_SIDE} on a side"
                raise UserError(f"{path}: {image.width}x{image.height} pixels, the most is {most}; scale it down first")
            yield image


def scaled_size(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """(H, W) of a frame -> (h, w) it is resized to: the short side becomes `short_side`, less where the long side
    would then exceed `long_side`; in two steps and with int(x + 0.5), so to the pixel as in the authors' release."""
    scale = short_side / min(size)
    sides = [float(short_side) if side == min(size) else side * scale for side in size]
    if (longest := max(sides)) > long_side:
        sides = [side * (long_side / longest) for side in sides]
    height, width = (max(1, int(side + 0.5)) for side in sides)
    return height, width
