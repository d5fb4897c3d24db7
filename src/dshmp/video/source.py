"""A video as an iterable of frames, whatever it is made of."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from dshmp.common.errors import UserError

Pixels = NDArray[np.uint8]  # (H, W, 3) uint8, RGB
UNKNOWN_RATE = 10.0  # frames per second at which a folder or an array is played back when nobody says how fast it is


@dataclass(frozen=True)
class Frame:
    """One frame: RGB uint8 `image` (H, W, 3) and its `time` in seconds from the start of the video."""

    image: Pixels
    time: float


@dataclass(frozen=True)
class VideoSource:
    """A video whose frames can be iterated over again and again."""

    name: str  # for messages: the file's stem, the folder's name, or "video"
    path: Path | None
    height: int
    width: int
    fps: float | None  # average frames per second; None where it isn't known (images, arrays)
    expected: int | None  # frames that an iteration will give, as far as the header tells; only an estimate
    frames: Callable[[int], Iterator[Frame]]  # from the frame of this number on
    begin: float = 0.0  # seconds on the file's own clock, as of its sound, at which the first frame is shown
    start: int = 0
    stop: int | None = None
    positions: tuple[int, ...] | None = None  # places in time of all frames, counted in frames; None: 0, 1, 2 ...
    names: tuple[str, ...] | None = None  # of a folder's frames, without their suffixes
    times: tuple[float, ...] | None = None  # of all frames, where they are known without decoding: of images and arrays
    array: ref[Any] | None = None  # what was given, where that is one

    def __iter__(self) -> Iterator[Frame]:
        """Decode from the range's beginning; raises UserError where it holds no frame."""
        frames = itertools.islice(self.frames(self.start), self.stop and self.stop - self.start)
        if (first := next(frames, None)) is None:
            length = f" (about {self.expected} frames)" if self.expected is not None else ""
            chosen = f"{self.start}:{self.stop or ''}{length}"
            raise UserError(f"{self.name}: no frame in the range {chosen}; choose an earlier one")
        yield first
        yield from frames

    @property
    def count(self) -> int | None:
        """Frames in the chosen range, as far as known."""
        ends = [end for end in (self.stop, self.expected) if end is not None]
        return max(min(ends) - self.start, 0) if ends else None
