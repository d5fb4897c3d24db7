"""Answers about one video, as all formats are written from them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from dshmp.common.errors import UserError, printable
from dshmp.common.files import name_fault
from dshmp.common.rle import area
from dshmp.results.answer import Answer, ObjectResult
from dshmp.video.source import VideoSource


class Shown(NamedTuple):
    """An object that a sentence means."""

    id: int  # from 1 on, through all sentences
    category: int  # the number of its sentence, from 1 on
    name: str  # its sentence
    score: float
    object: ObjectResult


@dataclass(frozen=True)
class Answers:
    """Results of one video, and the video: its frames' names and, for what needs them, pixels. Without a video, frames
    are counted from 0. Raises UserError where results are not of one video, or not of this one."""

    results: tuple[Answer, ...]
    video: VideoSource | None = None

    def __post_init__(self) -> None:
        if not self.results:
            raise UserError("there is no answer to write; ask something first")
        kinds = {(each.width, each.height, each.frame_count) for each in self.results}
        if len(kinds) > 1:
            raise UserError(f"the answers are of several videos or ranges of frames: {sorted(kinds)}; write each alone")
        if self.video is not None and (self.video.height, self.video.width) != (self.height, self.width):
            given = f"the video is {self.video.width}x{self.video.height}"
            raise UserError(f"{given}, the answer {self.width}x{self.height}; give the video that was asked about")
        if self.video is not None and self.video.names and self.positions.stop > (count := len(self.video.names)):
            told = f"has {count} frames, the answer goes on to frame {self.positions.stop - 1}"
            raise UserError(f"{self.name}: {told}; give the video that was asked about")

    @property
    def height(self) -> int:
        return self.results[0].height

    @property
    def width(self) -> int:
        return self.results[0].width

    @property
    def name(self) -> str:
        """The video's."""
        return self.video.name if self.video is not None else "video"

    @property
    def names(self) -> list[str]:
        """What objects are called: their sentences, printable."""
        return [printable(result.expression) or "object" for result in self.results]

    @cached_property
    def positions(self) -> range:
        """The answered frames, counted from the video's start."""
        start = self.video.start if self.video is not None else 0
        return range(start, start + self.results[0].frame_count)

    @cached_property
    def files(self) -> list[str]:
        """What the answered frames are called, with their suffixes."""
        return self._files(self.positions)

    @cached_property
    def earlier(self) -> list[str]:
        """What frames before the answered ones are called."""
        return self._files(range(self.positions.start))

    def _files(self, positions: range) -> list[str]:
        names = frame_names(self.video) if self.video is not None else None
        if self.video is None or self.video.path is None or not names:
            return [f"{position:05d}.jpg" for position in positions]
        suffixes = {file.stem: file.suffix for file in self.video.path.iterdir()}
        return [f"{name}{suffixes.get(name, '.jpg')}" for name in names[positions.start : positions.stop]]

    @cached_property
    def objects(self) -> tuple[Shown, ...]:
        found = [(k, item) for k, result in enumerate(self.results, 1) for item in result.objects]
        names = self.names
        return tuple(
            Shown(number, k, names[k - 1], round(item.score, 6), item) for number, (k, item) in enumerate(found, 1)
        )

    def seen(self, t: int) -> list[Shown]:
        """Those that have a mask in frame t, counted from the first answered one."""
        return [each for each in self.objects if area(each.object.rle[t])]

    def apart(self) -> list["Answers"]:
        """One for each sentence."""
        return [replace(self, results=(result,)) for result in self.results]


def frame_names(source: VideoSource) -> list[str] | None:
    """What a folder's frames are called, where all can be names of files anywhere."""
    names = list(source.names or ())
    return names if names and not any(map(name_fault, names)) else None
