"""A video whose candidates are tracks made elsewhere: the motion part says which of them a sentence means."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, repeat, takewhile

import numpy as np
import torch
from numpy.typing import NDArray

from dshmp.common.errors import UserError
from dshmp.common.progress import Progress
from dshmp.config import InputConfig
from dshmp.formats.tracks import Tracks
from dshmp.inference.encoded import Masks, Query, Selection, again, answered
from dshmp.model.camera import NO_CORNERS, Points, background_motion, follow_corners, grey_frames
from dshmp.model.candidates import Candidates
from dshmp.model.frames import input_size, prepare_frames
from dshmp.model.geometry import CHANNELS, LEAST, grid_size, mask_geometry, masks_on_grid
from dshmp.model.motion_decoder import VideoTokens
from dshmp.model.parser import Word
from dshmp.model.readout import TrajectoryReadout
from dshmp.model.words import COMMON
from dshmp.results.result import Result
from dshmp.video.source import Frame, VideoSource

KNOWN = 4.0  # logit that a track fits the static words, or not, where its labels tell


@dataclass
class TrackedVideo:
    """What `encoded.AskedVideo` is, for tracks: a video token means one of them, in all frames where that is seen."""

    source: VideoSource
    tracks: Tracks
    fps: float | None
    times: list[float]
    progress: Progress
    answers: tuple[Selection, ...] = ()

    def frames(self, pixels: bool) -> Iterator[tuple[Frame | None, list[Masks]]]:
        """Per frame its picture, if wanted, and per answer the masks (K, H, W) of its tracks."""
        frames: Iterator[Frame | None] = again(self.source) if pixels else repeat(None)
        empty = np.zeros((self.source.height, self.source.width), bool)
        wanted = {name for answer in self.answers for name in answer.tracks}
        for t, frame in zip(range(len(self.times)), frames, strict=False):
            there = self.tracks.masks(self.source.start + t, wanted)
            masks = [[there.get(name, empty) for name in answer.tracks] for answer in self.answers]
            yield frame, [np.stack(each) if each else empty[None][:0] for each in masks]
            self.progress("masks", t + 1, len(self.times))

    def result(self, answer: Selection) -> Result:
        """An answer whose masks have been added, frame by frame."""
        return answered(answer, self.source, self.fps, self.times)


@dataclass
class FramesRead:
    """What is noted of each frame of a video when it is first read, by whomever: its time and, unless the camera is
    held to be `still`, the corners that are followed to it from the frame before. So no frame is decoded for that
    alone where candidates are found in the same pictures."""

    source: VideoSource
    config: InputConfig
    still: bool
    times: list[float] = field(default_factory=list)
    corners: list[Points] = field(default_factory=list)
    last: NDArray[np.uint8] | None = None  # frame, grey

    def noting(self) -> VideoSource:
        """The same video; who reads it in order leaves notes."""
        return replace(self.source, frames=self._frames)

    def finish(self, progress: Progress) -> None:
        """Read what nobody has read; nothing where times are known and nobody asks for the camera's motion."""
        source = self.source
        if self.still and source.times is not None and (known := source.times[source.start : source.stop]):
            self.times = list(known)
            return
        left = None if source.stop is None else source.stop - self._next
        rest = islice(self._frames(self._next), left) if self.times else iter(self.noting())
        for _ in rest:
            progress("frames", len(self.times), source.count)

    @property
    def _next(self) -> int:
        return self.source.start + len(self.times)

    def _frames(self, start: int) -> Iterator[Frame]:
        for number, frame in enumerate(self.source.frames(start), start):
            if number == self._next:
                self.times.append(frame.time)
                if not self.still:
                    self._follow(frame)
            yield frame

    def _follow(self, frame: Frame) -> None:
        size = input_size((self.source.height, self.source.width), self.config)
        before, self.last = self.last, grey_frames(prepare_frames([frame.image], self.config), size, self.config)[0]
        self.corners.append(NO_CORNERS if before is None else follow_corners(before, self.last))


def track_candidates(read: FramesRead, tracks: Tracks) -> Candidates:
    """Geometry of the tracks in the frames read, and the camera's motion, which is none where it is held to be still.
    Raises UserError where the tracks are not of this video."""
    source, length, count = read.source, len(read.times), len(tracks.items)
    grid = grid_size(source.height, source.width)
    places = {track.name: place for place, track in enumerate(tracks.items)}
    present = torch.zeros(length, count, dtype=torch.bool)
    geometry = torch.zeros(length, count, CHANNELS)
    camera, sure = torch.eye(2, 3).repeat(length, 1, 1), torch.ones(length)
    before = over = np.zeros(grid, bool)
    for t in range(length):
        before, over = over, np.zeros(grid, bool)
        if masks := tracks.masks(source.start + t):  # by the track's name
            inside = torch.cat([masks_on_grid(torch.from_numpy(mask)[None], grid) for mask in masks.values()])
            rows = torch.tensor([places[name] for name in masks])
            present[t, rows], geometry[t, rows] = inside.flatten(1).sum(1) >= LEAST, mask_geometry(inside)
            over = inside.any(0).numpy()
        if not read.still:
            motion, sure[t] = background_motion(read.corners[t], (before, over))
            camera[t] = torch.from_numpy(motion)
    end = source.start + length
    last = max((max(track.masks) for track in tracks.items), default=-1)
    if source.stop is None and (last >= end if tracks.length is None else tracks.length != end):
        fault = f"have a mask in frame {last}" if tracks.length is None else f"are of {tracks.length} frames"
        raise UserError(f"the tracks {fault}, the video has {end} frames; give those of this video")
    whole = torch.ones(1, length, dtype=torch.bool)
    return Candidates(whole, None, geometry[None], present[None], camera[None], sure[None], linked=True)


def nothing(query: Query, threshold: float, length: int) -> Selection:
    """The answer where a video has no tracks: no object, each of `length` frames as good a reason as the others."""
    return Selection(query, None, (), (), 0.0, threshold, (), np.full((1, length), 1 / length))


def with_labels(candidates: Candidates, query: Query, tracks: Tracks) -> Candidates:
    """Told which tracks fit what the sentence is about, by the labels that they carry: those that match most of its
    static words, none where another label would match them."""
    asked = [_forms(word.text) for word in query.words if word in _subject(query)]
    matched = [sum(bool(forms & set(track.words)) for forms in asked) for track in tracks.items]
    most = max(matched, default=0)
    if not most and not any(forms & tracks.labels for forms in asked):
        return candidates
    known = torch.tensor([KNOWN if each and each == most else -KNOWN for each in matched]).expand(candidates.shape)
    return replace(candidates, fits=known)


def unchecked(query: Query, tracks: Tracks, looks: bool) -> tuple[Word, ...]:
    """The words of a sentence that neither the motion part nor the tracks' labels tell anything about; `looks`: the
    model sees what the tracks look like, and knows more static words than are labels."""
    told = tracks.labels | COMMON
    cue = next((word.start for word in query.words if word.group == "motion"), math.inf)

    def silent(word: Word) -> bool:
        if word.group != "static" or not word.text.isalpha():
            return word in query.unknown
        # after the first motion cue known ones mostly belong to it: "gets bigger", "in a circle"
        return not _forms(word.text) & told and (word in query.unknown or not (looks or word.start > cue))

    return tuple(filter(silent, query.words))


def _subject(query: Query) -> list[Word]:
    """Static words of what the sentence is about: those before its first motion cue, if there are any."""
    before = takewhile(lambda word: word.group != "motion", query.words)
    static = [word for word in before if word.group == "static" and not _forms(word.text) & COMMON]
    return static or [word for word in query.words if word.group == "static" and not _forms(word.text) & COMMON]


def _forms(word: str) -> frozenset[str]:
    """A word, also as it would be if it were a plural."""
    text = word.lower()
    return frozenset({text, *(text.removesuffix(end) for end in ("s", "es"))})


def with_appearance(candidates: Candidates, tracks: Tracks, numbers: int) -> Candidates:
    """Told what the tracks look like, if any says so, for a model that reads so many numbers, 0 for none. Raises
    UserError where there are more or fewer."""
    told = [track for track in tracks.items if track.appearance is not None]
    if not numbers or not told:
        return candidates
    rows = torch.zeros(len(tracks.items), numbers)
    for row, track in zip(rows, tracks.items, strict=True):
        if track.appearance is not None:
            own = torch.as_tensor(track.appearance, dtype=torch.float32)
            if own.shape != row.shape or not own.isfinite().all():
                fault = f"has an appearance of shape {tuple(own.shape)}, or one that is not finite"
                raise UserError(f"track {track.name} {fault}; this model reads {numbers} numbers")
            row.copy_(own)
    return replace(candidates, appearance=rows.expand(*candidates.shape, numbers))


def pointed_tracks(video: VideoTokens) -> list[int]:
    """The track that each video token of a clip (B = 1) points at most, (N_v)."""
    assert isinstance(video.readout, TrajectoryReadout)
    share = video.readout.pointer[0].float().softmax(-1)[..., :-1]  # (N_v, T, N)
    found: list[int] = share.sum(1).argmax(-1).tolist()
    return found
