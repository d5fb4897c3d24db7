"""Frames and masks as files hold them: images, and COCO's run lengths and polygons, judged before they are decoded."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from dshmp.common.errors import UserError
from dshmp.common.files import reason
from dshmp.data.base import DataSplit, Size
from dshmp.video.images import DATA_FORMATS, DECODER_ERRORS, open_image

# DAVIS's palette: an index's bits, lowest first, are the highest of red, green and blue, then the second highest ...
_PALETTE = bytes(
    sum((index >> 3 * place + channel & 1) << 7 - place for place in range(3))
    for index in range(256)
    for channel in range(3)
)


@contextlib.contextmanager
def open_data_image(path: Path, what: str = "frame") -> Iterator[Image.Image]:
    """An image of which only the header is read yet. Raises UserError."""
    try:
        with open_image(path, DATA_FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"{path}: {what} is missing; the data set is not complete") from None
    except DECODER_ERRORS as error:
        raise UserError(f"{path}: cannot be read as an image ({reason(error)})") from None


def read_frame(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB. Raises UserError."""
    with open_data_image(path) as image:
        return np.asarray(image.convert("RGB"))


def read_frames(
    folder: Path, names: Sequence[str], positions: Sequence[int] | None = None, suffix: str = ".jpg"
) -> list[NDArray[np.uint8]]:
    """The frames (H, W, 3) at these positions of a video's names, each file decoded once; all by default."""
    chosen = names if positions is None else [names[i] for i in positions]
    frames = {name: read_frame(folder / f"{name}{suffix}") for name in dict.fromkeys(chosen)}
    return [frames[name] for name in chosen]


def save_jpeg(path: Path, frame: NDArray[np.uint8]) -> None:
    """Write a frame (H, W, 3) uint8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame).save(path, quality=92)


def mask_fault(codes: object, size: Size) -> str | None:
    """What is wrong with a mask of this size (H, W), run lengths or polygons, or None.

    Found without decoding, as decoders read and write beyond their memory, or never end, where a mask is damaged.
    """
    if isinstance(codes, list):
        if not codes or any(not isinstance(each, list) or len(each) < 6 or len(each) % 2 for each in codes):
            return "is no list of polygons, each of three or more x, y"
        far = 2 * max(size)
        inside = all(type(v) in (int, float) and abs(v) <= far for polygon in codes for v in polygon)
        return None if inside else "has a polygon that leaves its image"
    if not isinstance(codes, dict) or not isinstance(counts := codes.get("counts"), str | list):
        return "is no COCO run lengths"
    own = codes.get("size")
    if own != list(size) or any(type(side) is not int for side in own):
        return f"has size {str(own)[:50]}, its frames have {list(size)}"
    runs = run_lengths(counts) if isinstance(counts, str) else counts
    if not runs or not all(type(run) is int and run >= 0 for run in runs):
        return "has run lengths that are damaged"
    if sum(runs) != size[0] * size[1]:
        return f"has run lengths that cover {sum(runs):,} of {size[0] * size[1]:,} pixels"
    return None


def rle_fault(rle: object, size: Size) -> str | None:
    """What is wrong with COCO's compressed run lengths of a mask of this size (H, W), or None."""
    is_compressed = isinstance(rle, dict) and isinstance(rle.get("counts"), str)
    return mask_fault(rle, size) if is_compressed else "is no COCO run lengths"


def decode_mask(codes: Any, size: Size, where: str) -> NDArray[np.bool_]:
    """(H, W) bool of COCO's run lengths, compressed or not, or polygons.

    Raises UserError, whose message begins with `where`, for what is no mask of this size.
    """
    fault = mask_fault(codes, size)
    if fault is None:
        try:
            if isinstance(codes, list):
                codes = coco.merge(coco.frPyObjects(codes, *size))
            elif isinstance(codes["counts"], list):
                codes = coco.frPyObjects(codes, *size)
            return np.asarray(coco.decode(codes), dtype=bool)
        except (ValueError, TypeError, MemoryError) as error:
            fault = f"cannot be decoded ({error})"
    raise UserError(f"{where} {fault}; mend it, or fetch the file again")


def run_lengths(counts: str) -> list[int]:
    """The numbers of compressed run lengths; none where they are no run lengths.

    A number is written in digits of 5 bits, lowest first, as characters from "0" on; bit 5 says that more follow and
    bit 4 of the last digit is the sign; six are the most. From the fourth on, numbers are added to the last but one.
    """
    runs: list[int] = []
    number = bits = 0
    for digit in (ord(character) - 48 for character in counts):
        if not 0 <= digit < 64 or bits == 30:
            return []
        number |= (digit & 31) << bits
        bits += 5
        if not digit & 32:
            number -= (digit >> 4 & 1) << bits
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = bits = 0
    return [] if bits else runs


def read_index_mask(path: Path, size: Size | None = None) -> NDArray[np.uint8]:
    """(H, W) uint8, the raw indices of a palette or grey PNG. Raises UserError, also where they are not of `size`."""
    with open_data_image(path, "mask") as image:
        if image.mode not in ("P", "L", "1"):
            raise UserError(f"{path}: is a {image.mode} image, masks are palette or grey; fetch it again")
        if size is not None and (image.height, image.width) != tuple(size):
            told = f"is {image.width}x{image.height}, its frame is {size[1]}x{size[0]}"
            raise UserError(f"{path}: {told}; fetch it again")
        return np.asarray(image, dtype=np.uint8)


def index_mask(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Masks (K, H, W) of objects 1 to K -> (H, W) uint8 indices, 0 = none; visible masks do not overlap."""
    return np.asarray((masks * np.arange(1, len(masks) + 1, dtype=np.uint8)[:, None, None]).max(0, initial=0))


def save_palette_png(path: Path, indices: NDArray[np.uint8]) -> None:
    """Write (H, W) uint8 object ids as a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indices, mode="P")
    # all 256 colours: Pillow packs the indices into as few bits as the palette needs, and would cut off 255
    image.putpalette(_PALETTE)
    image.save(path)


class ImageSplit(DataSplit):
    """A split whose frames are image files in `image_folder`."""

    suffix = ".jpg"

    def image_folder(self, video: str) -> Path:
        return self.folder / "JPEGImages" / video

    def frame_files(self, video: str) -> list[Path]:
        return [self.image_folder(video) / f"{frame}{self.suffix}" for frame in self.videos[video].frames]

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """As `Split.frames`."""
        return read_frames(self.image_folder(video), self.videos[video].frames, positions, self.suffix)


class IndexMaskSplit(ImageSplit):
    """A split with a palette PNG per frame in `mask_folder`, whose indices are the objects' ids."""

    def mask_folder(self, video: str) -> Path:
        return self.folder / "Annotations" / video

    def mask_files(self, video: str) -> list[Path]:
        return [self.mask_folder(video) / f"{frame}.png" for frame in self.videos[video].frames]

    def mask_size(self, video: str, annotations: Sequence[int], position: int) -> Size:
        """(H, W) of masks, without their frame."""
        with open_data_image(self.mask_files(video)[position], "mask") as image:
            return image.height, image.width

    def masks(self, video: str, annotations: Sequence[int], positions: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """As `Split.masks`; a frame's file, which holds all objects, is read once."""
        out, files = np.zeros((len(annotations), len(positions), *size), dtype=bool), self.mask_files(video)
        for t, position in enumerate(positions if annotations else ()):
            out[:, t] = read_index_mask(files[position], size) == np.array(annotations)[:, None, None]
        return out
