"""Frames as image files."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dshmp.data.base import DataSplit
from dshmp.errors import UserError
from dshmp.files import reason
from dshmp.video.images import DATA_FORMATS, DECODER_ERRORS, open_image


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
