"""Answers about a video that may never end, frame by frame.

The video is read in windows that overlap. A window is answered as a clip is, by one who remembers the candidates of
some time before it. Its new frames are given out then, never to be revised. Objects of a window are those of the window
before whose masks they share in the overlap.
"""

import itertools
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from dshmp.common.arguments import checked
from dshmp.common.errors import UserError
from dshmp.common.rle import Rle, area, decode, intersection
from dshmp.inference.encoded import Memory
from dshmp.results.result import Result
from dshmp.video.live import LiveSource
from dshmp.video.source import Frame, Pixels, VideoSource

TRAINED = 16  # frames of a clip that the default model was trained on, at the pace `input.motion_fps`
LONGEST = 4096  # frames of a window, all of which are held
SAME = 0.3  # IoU in the overlap from which on objects of two windows can be the same
Extent = int | str  # frames, or seconds as "2s"


@dataclass(frozen=True)
class FrameObject:
    """One object that is meant, in one frame."""

    id: int  # the same in all windows; counts from 1
    score: float  # probability that it is meant, told by its window
    rle: Rle
    track: str | None = None  # the candidate that it is, where something else found those; of its window alone

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, decoded on every call."""
        return np.asarray(decode([self.rle])[0])

    def to_json(self) -> dict[str, Any]:
        plain = {"id": self.id, "score": round(self.score, 6), "rle": self.rle}
        return plain if self.track is None else plain | {"track": self.track}


@dataclass(frozen=True)
class FrameResult:
    """The answer to one expression in one frame, as its window knows it."""

    expression: str
    number: int  # of the frame, from the source's beginning
    time: float  # seconds since the first frame
    found: bool  # False: nothing in the window matches
    score: float  # probability of the window's best video token
    objects: tuple[FrameObject, ...]  # those meant in the window, seen in this frame or not
    rle: Rle  # their union
    unknown: tuple[str, ...]  # words that nothing could check; scores are halved then
    image: Pixels = field(repr=False, compare=False)  # the frame (H, W, 3), RGB

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, the union, decoded on every call."""
        return np.asarray(decode([self.rle])[0])

    def to_json(self) -> dict[str, Any]:
        """Plain containers: everything but the picture and the union."""
        plain = {"expression": self.expression, "found": self.found, "score": round(self.score, 6)}
        return plain | {"objects": [each.to_json() for each in self.objects], "unknown": list(self.unknown)}


def window_frames(
    window: Extent | None, overlap: Extent | None, memory: Extent | None, fps: float | None, pace: float | None
) -> tuple[int, int, int]:
    """Frames of a window, of the overlap and of the memory. By default a window is as long as the clips that the
    default model was trained on, `TRAINED` frames at its `pace`, the overlap half of it, and the memory twice as long.
    Raises TypeError, UserError."""
    stride = max(1, round(fps / pace)) if fps and pace else 1
    length = TRAINED * stride if window is None else _frames("window", window, fps)
    shared = length // 2 if overlap is None else _frames("overlap", overlap, fps)
    past = 2 * length if memory is None else _frames("memory", memory, fps)
    if not 2 <= length <= LONGEST:
        raise UserError(f"a window of {length} frames; choose 2 to {LONGEST}")
    if not 1 <= shared < length:
        raise UserError(f"an overlap of {shared} frames in windows of {length}; choose 1 to {length - 1}")
    if past > LONGEST:
        raise UserError(f"a memory of {past} frames; choose at most {LONGEST}")
    return length, shared, past


def _frames(name: str, extent: Extent, fps: float | None) -> int:
    known = "a number of frames, or of seconds such as 2s"
    if isinstance(extent, str) and (seconds := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*s", extent.strip())):
        if fps is None:
            raise UserError(
                f"{name} {extent}: it is not known how many frames that is; give fps, or a number of frames"
            )
        return round(float(seconds[1]) * fps)
    number = int(extent) if isinstance(extent, str) and re.fullmatch(r"\d{1,9}", extent) else extent
    if isinstance(number, str):
        raise UserError(f"{name} must be {known}, not {number[:40]!r}")
    return int(checked(name, number, Annotated[int, Field(ge=0)], known))


def windows(frames: Iterator[Frame], length: int, overlap: int) -> Iterator[tuple[list[Frame], int]]:
    """Windows of `length` frames, each with how many of them, the last ones, are new. The first one is all new; the
    last one ends with the source, so it overlaps by more. A source that is shorter is one window. No frame beyond a
    window is held."""
    held: deque[Frame] = deque(maxlen=length)
    fresh, wanted = 0, length
    for frame in frames:
        held.append(frame)
        fresh += 1
        if fresh == wanted:
            yield list(held), fresh
            fresh, wanted = 0, length - overlap
    if fresh:
        yield list(held), fresh


class Identities:
    """Which objects of one expression are the same in windows that follow each other."""

    def __init__(self) -> None:
        self.start = 0  # number of the last window's first frame
        self.last: dict[int, Sequence[Rle]] = {}  # masks of its objects
        self.new = itertools.count(1)

    def __call__(self, start: int, masks: Sequence[Sequence[Rle]]) -> list[int]:
        """Ids of the objects of the next window, whose first frame is `start`: those of the last window's objects with
        most IoU over the frames of both windows, the best pairs in all; what is left gets a new one."""
        known = list(self.last)
        table = np.zeros((len(known), len(masks)))
        for row, number in enumerate(known):
            before = self.last[number][start - self.start :]
            for column, now in enumerate(masks):
                table[row, column] = _iou(before, now)
        pairs = zip(*linear_sum_assignment(-table), strict=True)
        same = {int(column): known[row] for row, column in pairs if table[row, column] >= SAME}
        ids = [same[column] if column in same else next(self.new) for column in range(len(masks))]
        self.start, self.last = start, dict(zip(ids, masks, strict=True))
        return ids


def _iou(one: Sequence[Rle], other: Sequence[Rle]) -> float:
    """Of two objects over the frames that both have; 0 where neither is seen."""
    pairs = list(zip(one, other, strict=False))
    shared = sum(intersection(a, b) for a, b in pairs)
    return shared / max(sum(area(a) + area(b) for a, b in pairs) - shared, 1)


class _Once(logging.Filter):
    """Lets this thread tell each message once: each window would repeat it."""

    def __init__(self) -> None:
        super().__init__()
        self.thread, self.told = threading.get_ident(), set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        if threading.get_ident() != self.thread:
            return True
        fresh = (message := record.getMessage()) not in self.told
        self.told.add(message)
        return fresh


def answers(
    answer: Callable[[VideoSource, Memory], list[Result]], source: LiveSource, length: int, overlap: int, past: int
) -> Iterator[list[FrameResult]]:
    """Per frame one result for each sentence. `answer` answers them all about a window, as a clip, with a memory of at
    most `past` frames before it."""
    log, once = logging.getLogger("dshmp"), _Once()
    identities: list[Identities] = []
    memory = Memory(past)
    end = 0  # frames read
    for frames, fresh in windows(source.frames, length, overlap):
        end += fresh
        start = end - len(frames)
        memory = memory.moved_to(start)
        log.addFilter(once)
        try:
            results = answer(_clip(source, frames), memory)
        finally:
            log.removeFilter(once)
        identities = identities or [Identities() for _ in results]
        ids = [known(start, [each.rle for each in own.objects]) for known, own in zip(identities, results, strict=True)]
        for place in range(len(frames) - fresh, len(frames)):
            told = zip(results, ids, strict=True)
            yield [_frame_result(result, own, frames[place], place, start) for result, own in told]


def _clip(source: LiveSource, frames: Sequence[Frame]) -> VideoSource:
    height, width, _ = frames[0].image.shape
    times = tuple(frame.time for frame in frames)
    again = partial(_from, frames)
    return VideoSource(source.name, None, height, width, source.fps, len(frames), again, times=times)


def _from(frames: Sequence[Frame], start: int) -> Iterator[Frame]:
    return iter(frames[start:])


def _frame_result(result: Result, ids: Sequence[int], frame: Frame, place: int, start: int) -> FrameResult:
    objects = zip(ids, result.objects, strict=True)
    return FrameResult(
        expression=result.expression,
        number=start + place,
        time=frame.time,
        found=result.found,
        score=result.score,
        objects=tuple(FrameObject(number, each.score, each.rle[place], each.track) for number, each in objects),
        rle=result.rle[place],
        unknown=result.unknown,
        image=frame.image,
    )
