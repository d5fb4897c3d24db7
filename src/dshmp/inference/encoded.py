"""A video that has been perceived, and what is answered of it, in two passes.

The first pass decodes frames in chunks and keeps their object tokens, which are small; feature maps go to a temporary
file, as reading takes a twentieth of the time of perceiving anew; beyond the file's limit the rest is perceived anew.
Then the model understands the whole clip. The second pass makes the masks chunk by chunk.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, repeat
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dshmp.candidates import CandidateSource
from dshmp.common.errors import UserError
from dshmp.common.options import Kind, Targets
from dshmp.common.progress import Progress
from dshmp.common.rle import Rle, encode
from dshmp.formats.reading import TracksInput
from dshmp.inference.runtime import Runtime
from dshmp.inference.spill import Spill
from dshmp.model.camera import Points, followed, grey_frames
from dshmp.model.candidates import Candidates
from dshmp.model.frames import input_masks, input_size, output_masks, prepare_frames
from dshmp.model.layers import joined
from dshmp.model.pixel_decoder import PixelFeatures
from dshmp.results.answer import ObjectResult
from dshmp.results.result import Result
from dshmp.video.source import Frame, VideoSource

if TYPE_CHECKING:
    from dshmp.model.motion_decoder import VideoTokens
    from dshmp.model.parser import Word
    from dshmp.model.text import TextFeatures

Masks = NDArray[np.bool_]
Part = PixelFeatures | Tensor  # of a chunk what no word changes: pixel features, or images where words reach those
T = TypeVar("T")

# what is kept of F frames with N candidates: tokens and mask embeddings (F, N, C), and for a model that reads geometry
# what `model.candidates` tells of each
KEPT = ("tokens", "mask_embed", "present", "geometry", "camera", "sure")

# perceived at once; at 448x796 two frames take four fifths of the time of eight, and half the memory
CPU_PIXELS = 2**20


class Asked(TypedDict, total=False):
    """How sentences are asked about a video, as `Segmenter` says."""

    threshold: float | None
    targets: Targets | None
    progress: Progress | None
    all_objects: bool
    tracks: TracksInput | None
    candidates: Kind | CandidateSource | None
    still_camera: bool


@dataclass(frozen=True)
class Query:
    """An expression, ready for the model."""

    expression: str
    words: "tuple[Word, ...]"
    text: "TextFeatures"
    unknown: "tuple[Word, ...]" = ()  # words that say nothing to the model


class Quality:
    """How sure masks of K objects are of themselves: the mean probability inside a mask, over all frames, at the size
    of the network's input (as in the release)."""

    def __init__(self, objects: int) -> None:
        self.sums, self.pixels = np.zeros(objects), np.zeros(objects)

    def add(self, logits: Tensor) -> None:
        """Take the mask logits (K, F, h, w) of some frames."""
        inside = logits > 0
        self.sums += (logits.sigmoid() * inside).sum((1, 2, 3)).cpu().double().numpy()
        self.pixels += inside.sum((1, 2, 3)).cpu().numpy()

    def means(self) -> list[float]:
        """One per object, 0 to 1; 0 where its mask is empty in all frames."""
        return list((self.sums / (self.pixels + 1e-6)).tolist())


@dataclass
class Selection:
    """What the model answers to a query; the last two fields come with the second pass."""

    query: Query
    # of this expression alone (B = 1), its read-out of the kept tokens alone; None where there are no candidates
    video: "VideoTokens | None"
    chosen: tuple[int, ...]  # video tokens meant, best first; empty where nothing matches
    scores: tuple[float, ...]  # probability that each of the kept tokens is meant
    best: float
    threshold: float
    kept: tuple[int, ...]  # video tokens whose masks are made: the chosen ones, then, if asked for, all others
    evidence: NDArray[np.float64]  # (kept or 1, T): share of each frame in the tokens' attention; rows sum to 1
    tracks: tuple[str, ...] = ()  # the kept tokens' tracks, where candidates are tracks made elsewhere
    quality: Quality | None = None  # of the kept tokens' masks; None where the model's scores are without
    rles: list[list[Rle]] = field(default_factory=list)  # per frame added the masks' union, then each kept token's

    @property
    def mean_evidence(self) -> tuple[float, ...]:
        return tuple(self.evidence[: max(1, len(self.chosen))].mean(axis=0).tolist())

    def add(self, masks: Masks) -> Masks:
        """Keep the masks (K, H, W) of the next frame as run lengths; returns their union (H, W)."""
        union, rles = np.asarray(masks[: len(self.chosen)].any(axis=0)), [encode(mask) for mask in masks]
        self.rles.append([rles[0] if len(rles) == len(self.chosen) == 1 else encode(union), *rles])
        return union


@dataclass
class EncodedVideo:
    """A video of which all is computed that no word changes; a call asks about it, as often as one likes.

    That is: decoding and resizing; the backbone and the pixel decoder where they hear no words; the object tokens where
    these hear none either. It lies in a temporary file, which is gone with this object. The video must stay as it is.
    Threads that ask take turns.

    >>> with segmenter.encode("clip.mp4") as video:
    ...     result = video("the one that turns back")
    ...     others = video(["the dog", "the one that keeps still"], threshold=0.3)
    """

    runtime: Runtime
    source: VideoSource
    answer: "Callable[[EncodedVideo, str | Sequence[str], Asked], list[Result]]"
    spill: Spill | None  # None for a video that is asked about once
    fps: float | None  # average over the frames read; None where the rate isn't known
    times: list[float] = field(default_factory=list)
    corners: list[list[Points]] = field(default_factory=list)  # of each chunk's frames, for a model that reads geometry
    chunks: list[int] = field(default_factory=list)  # frames of each
    objects: Spill | None = None  # as of `AskedVideo`, where no word changes them
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # threads take turns with the files

    @overload
    def __call__(self, expression: str, **asked: Unpack[Asked]) -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, expression: Sequence[str], **asked: Unpack[Asked]) -> list[Result]: ...

    def __call__(self, expression: str | Sequence[str], **asked: Unpack[Asked]) -> Result | list[Result]:
        """As of a `Segmenter`, with its arguments but those of the video."""
        if self.spill is not None and self.spill.file.closed:
            raise UserError(f"{self.source.name}: the encoded video is closed; encode it again")
        with self.lock:
            results = self.answer(self, expression, asked)
        return results[0] if isinstance(expression, str) else results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary files. Nothing can be asked any more."""
        for file in filter(None, (self.spill, self.objects)):
            file.close()

    def parts(self, progress: Progress) -> Iterator[Part]:
        """Chunk by chunk. The first time frames are decoded, and `times`, `chunks` and the file are filled."""
        if not self.chunks:
            yield from self._first(progress)
            return
        frames = iter(()) if self.spill and self.spill.complete else again(self.source)
        done = 0
        for chunk, length in enumerate(self.chunks):
            yield self.part(chunk, list(islice(frames, length)))
            progress("frames", done := done + length, len(self.times))

    def _first(self, progress: Progress) -> Iterator[Part]:
        frames, config = iter(self.source), self.runtime.config.input
        size, before = input_size((self.source.height, self.source.width), config), None
        # each frame is resized as it comes, so no chunk of full frames is held
        while chunk := [(f.time, prepare_frames([f.image], config)) for f in islice(frames, self._at_once())]:
            times, images = zip(*chunk, strict=True)
            self.times += times
            self.chunks.append(len(times))
            batch = torch.cat(images)
            if self.runtime.config.motion.geometry:
                grey = grey_frames(batch, size, config)
                chain = grey if before is None else np.concatenate([before[None], grey])
                self.corners.append(list(followed(chain))[-len(grey) :])
                before = grey[-1]
            part = self._perceive(batch)
            if self.spill is not None:
                self.spill.write([part] if isinstance(part, Tensor) else [*part[:2], *part.levels])
            yield part
            progress("frames", len(self.times), self.source.count)
        progress("frames", len(self.times), len(self.times))  # the header only estimates how many there are
        self.fps = average_rate(self.fps, self.times)

    def part(self, chunk: int, frames: Iterable[Frame]) -> Part:
        """Of a chunk, from the file or, where that does not hold it, from its frames."""
        if kept := self.spill.read(chunk) if self.spill else []:
            kept = [tensor.to(self.runtime.device) for tensor in kept]
            return PixelFeatures(kept[0], kept[1], kept[2:]) if len(kept) > 1 else kept[0]
        config = self.runtime.config.input
        return self._perceive(torch.cat([prepare_frames([frame.image], config) for frame in frames]))

    def pixels(self, part: Part, queries: Sequence[Query]) -> list[PixelFeatures]:
        """A chunk's pixel features: one for all queries where no word reaches them, or one each."""
        if not isinstance(part, Tensor):
            return [part]
        run = self.runtime
        with run.inference():
            return [run.model.encode_pixels(part.to(run.device), query.text) for query in queries]

    def _perceive(self, images: Tensor) -> Part:
        """Of a chunk's images what no word changes."""
        run = self.runtime
        if run.config.backbone.language_fusion:
            return images
        with run.inference():
            return run.model.encode_pixels(images.to(run.device))

    def _at_once(self) -> int:
        """Frames of a chunk: fewer of large ones on a CPU, whose caches what lies between two layers should fit."""
        run = self.runtime
        height, width = input_size((self.source.height, self.source.width), run.config.input)
        most = CPU_PIXELS // (height * width) if run.device.type == "cpu" else run.config.input.chunk
        return run.model.whole_clips(max(1, min(most, run.config.input.chunk)))


@dataclass
class Memory:
    """Of a stream: the candidates of at most `most` frames before the window that begins with frame `start`, and of
    that window itself once it has been read."""

    most: int
    start: int = 0
    first: int = 0  # the first frame that is remembered
    kept: dict[int, Candidates] = field(default_factory=dict)  # by the query's number, on the CPU

    @property
    def before(self) -> int:
        """How many frames before the window are remembered."""
        return self.start - self.first

    def moved_to(self, start: int) -> "Memory":
        """For the next window, without what is too old by then."""
        first = max(self.first, start - self.most)
        kept = {query: own.each(lambda value: value[:, first - self.first :]) for query, own in self.kept.items()}
        return Memory(self.most, start, first, kept)

    def joined(self, query: int, own: Candidates) -> Candidates:
        """The window's candidates after those before it. How the camera got to its first frame is remembered, too."""
        if (known := self.kept.get(query)) is not None and self.before:
            parts: dict[str, Any] = {}
            for name, value in vars(own).items():
                if isinstance(value, Tensor):
                    past = getattr(known, name)
                    link = past[:, self.before : self.before + 1] if name in ("camera", "sure") else value[:, :1]
                    parts[name] = torch.cat([past[:, : self.before], link, value[:, 1:]], 1)
            own = replace(own, **parts)
        self.kept[query] = own
        return own


@dataclass
class AskedVideo:
    """A video that has been understood under some sentences; `decode_masks` is the second pass."""

    video: EncodedVideo
    progress: Progress
    maps: Spill | None  # per chunk what masks need beside the candidates; None where the video's own file gives it
    objects: Spill  # per chunk what `KEPT` names, of every query, or once for all
    answers: tuple[Selection, ...] = ()
    memory: Memory | None = None

    @property
    def source(self) -> VideoSource:
        return self.video.source

    @property
    def before(self) -> int:
        """How many frames before the video are remembered."""
        return self.memory.before if self.memory is not None else 0

    @property
    def fps(self) -> float | None:
        return self.video.fps

    @property
    def times(self) -> list[float]:
        return self.video.times

    def decode_masks(self, make: Callable[[Tensor], T], pixels: bool) -> Iterator[tuple[Frame | None, list[T]]]:
        """Per frame the decoded picture (certain only with `pixels`) and per expression what `make` makes of its
        objects' mask logits (K, H, W), float32: at once, so that only one expression's are in memory. Frames are
        decoded again only where their pixels are wanted or perceived anew."""
        video, answers = self.video, self.answers
        run = video.runtime
        for answer in answers:
            answer.quality = Quality(len(answer.kept)) if run.config.release.score == "quality" else None
        wanted = any(answer.kept for answer in answers)
        stored = self.maps or video.spill
        whole = stored is not None and stored.complete
        decoded = again(video.source) if pixels or (wanted and not whole) else repeat(None)
        start = 0
        for chunk, length in enumerate(video.chunks):
            frames: Iterable[Frame | None] = islice(decoded, length)
            maps = [torch.empty(0)]
            if wanted and not whole:
                frames = list(frames)
            if wanted:
                maps = self._maps(chunk, () if whole else [frame for frame in frames if frame is not None])
            first = self.before + start
            place, embed = slice(first, first + length), self.objects.read(chunk)[1 :: self.kinds]
            with run.inference():
                logits = [  # of the kept video tokens (K, F, h, w)
                    run.model.decode_masks(answer.video, place, each, own.to(run.device))
                    if answer.kept and answer.video is not None
                    else torch.empty(0, 1)
                    for answer, own, each in zip(answers, cycle(embed), cycle(maps), strict=False)
                ]
            for t, frame in enumerate(frames):
                pairs = zip(answers, logits, strict=True)
                yield frame, [make(self._at_size(answer, each[:, t : t + 1].float())) for answer, each in pairs]
                self.progress("masks", start + t + 1, len(video.times))
            start += length

    @property
    def kinds(self) -> int:
        """How many tensors are kept of each query and chunk."""
        return len(KEPT) if self.video.runtime.config.motion.geometry else 2

    def candidates(self, query: int) -> Candidates:
        """Of the whole video, and of what is remembered before, for a query, by its number, on the CPU."""

        def parts() -> Iterator[tuple[Tensor, ...]]:
            for chunk in range(len(self.video.chunks)):
                kept = self.objects.read(chunk)
                start = query * self.kinds % len(kept)
                own = dict(zip(KEPT, kept[start : start + self.kinds], strict=False))
                yield tuple(value[None] for name, value in own.items() if name != "mask_embed")

        names = [name for name in KEPT[: self.kinds] if name != "mask_embed"]
        found = zip(names, joined(parts(), len(self.times)), strict=True)
        own = replace(Candidates(torch.ones(1, len(self.times), dtype=torch.bool)), **dict[str, Any](found))
        return own if self.memory is None else self.memory.joined(query, own)

    def _maps(self, chunk: int, frames: Sequence[Frame]) -> list[Tensor]:
        """What masks of a chunk need: one map for all queries where it does not depend on the words, or one each."""
        run = self.video.runtime
        if self.maps is not None and (kept := self.maps.read(chunk)):
            return [tensor.to(run.device) for tensor in kept]
        pixels = self.video.pixels(self.video.part(chunk, frames), [answer.query for answer in self.answers])
        with run.inference():
            return [run.model.mask_pixels(features) for features in pixels]

    def _at_size(self, answer: Selection, logits: Tensor) -> Tensor:
        """One frame's mask logits (K, 1, h, w) -> (K, H, W) at the frame's own size."""
        size = (self.video.source.height, self.video.source.width)
        if not answer.kept:
            return torch.zeros(0, *size)
        logits = input_masks(logits, size, self.video.runtime.config.input)
        if answer.quality is not None:
            answer.quality.add(logits)
        return output_masks(logits, size)[:, 0]

    def frames(self, pixels: bool) -> Iterator[tuple[Frame | None, list[Masks]]]:
        """The second pass over masks (K, H, W) bool."""
        return self.decode_masks(lambda logits: np.asarray((logits > 0).cpu().numpy()), pixels)

    def result(self, answer: Selection) -> Result:
        """An answer whose masks have been added, frame by frame."""
        return answered(answer, self.source, self.fps, self.times)


def average_rate(told: float | None, times: Sequence[float]) -> float | None:
    """Frames per second over the frames read, as the header does not know it where it varies; None where no rate is."""
    return (len(times) - 1) / (times[-1] - times[0]) if told is not None and len(times) > 1 else told


def answered(answer: Selection, source: VideoSource, fps: float | None, times: Sequence[float]) -> Result:
    """An answer about a video, whose masks have been added, frame by frame."""
    union, *objects = zip(*answer.rles, strict=True)
    means = repeat(1.0) if answer.quality is None else answer.quality.means()
    names = answer.tracks or repeat(None)
    rows = zip(answer.scores, means, objects, answer.evidence, names, strict=False)
    items = [ObjectResult(score * mean, rles, tuple(row.tolist()), name) for score, mean, rles, row, name in rows]
    result = Result(
        expression=answer.query.expression,
        words=answer.query.words,
        found=bool(answer.chosen),
        score=answer.best,
        threshold=answer.threshold,
        height=source.height,
        width=source.width,
        fps=fps,
        times=tuple(times),
        evidence=answer.mean_evidence,
        objects=tuple(items[: len(answer.chosen)]),
        rle=union,
        others=tuple(items[len(answer.chosen) :]),
        unknown=tuple(word.text for word in answer.query.unknown),
    )
    return result.of(source)


def again(source: VideoSource) -> Iterator[Frame]:
    """The frames of a video that was read before; UserError where they become fewer."""
    yield from source
    raise UserError(f"{source.name}: changed while it was being read")
