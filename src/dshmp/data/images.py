"""Frames and index masks as image files."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dshmp.errors import UserError
from dshmp.files import reason
from dshmp.images import DATA_FORMATS, DECODER_ERRORS, open_image

PALETTE = np.array(
    [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128]],
    np.uint8,
)
"""Colours of DAVIS's palette for the first object ids."""


def read_frame(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB. Raises UserError."""
    with _opened(path, "frame") as image:
        return np.asarray(image.convert("RGB"))


def read_frames(
    folder: Path, names: Sequence[str], positions: Sequence[int] | None = None, suffix: str = ".jpg"
) -> list[NDArray[np.uint8]]:
    """The frames (H, W, 3) at these positions of a video's names, each file decoded once; all by default."""
    chosen = names if positions is None else [names[i] for i in positions]
    frames = {name: read_frame(folder / f"{name}{suffix}") for name in dict.fromkeys(chosen)}
    return [frames[name] for name in chosen]


def read_index_mask(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """(H, W) uint8, the raw indices of a palette or grey PNG. Raises UserError, also where they are not of `size`."""
    with _opened(path, "mask") as image:
        if image.mode not in ("P", "L", "1"):
            raise UserError(f"{path}: is a {image.mode} image, masks are palette or grey; fetch it again")
        if size is not None and (image.height, image.width) != tuple(size):
            raise UserError(
                f"{path}: is {image.width}x{image.height}, its frame is {size[1]}x{size[0]}; fetch it again"
            )
        return np.asarray(image, dtype=np.uint8)


@contextlib.contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    """An image of which only the header is read yet."""
    try:
        with open_image(path, DATA_FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"{path}: {what} is missing; the data set is not complete") from None
    except DECODER_ERRORS as error:
        raise UserError(f"{path}: cannot be read as an image ({reason(error)})") from None


def index_mask(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Masks (K, H, W) of objects 1 to K -> (H, W) uint8 indices, 0 = none; visible masks do not overlap."""
    indices: NDArray[np.uint8] = (masks * np.arange(1, len(masks) + 1, dtype=np.uint8)[:, None, None]).max(0, initial=0)
    return indices


def save_jpeg(path: Path, frame: NDArray[np.uint8], quality: int = 92) -> None:
    """Write a frame (H, W, 3) uint8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame).save(path, quality=quality)


def save_palette_png(path: Path, indices: NDArray[np.uint8]) -> None:
    """Write (H, W) uint8 object ids as a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indices, mode="P")
    # all 256 colours: Pillow packs the indices into as few bits as the palette needs, and would cut off 255
    image.putpalette(PALETTE.flatten().tolist() + [255] * (768 - PALETTE.size))
    image.save(path)
