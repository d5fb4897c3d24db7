"""Candidates without any download: what moves by itself, against the background, in any video.

Per frame a small network (`dshmp.model.moving`) tells from optical flow what moves and which pixels are of one object;
its answers are averaged over a few frames along the flow, cut out along the edges of the picture, and linked over time.
Frames are read once and a few are held.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from dshmp.checkpoint import load_tensors
from dshmp.common.progress import Progress
from dshmp.common.rle import Rle, encode
from dshmp.config import Count, Share
from dshmp.formats.tracks import Track, Tracks
from dshmp.model.moving import SHORT, MovingObjects, flow_input, flow_size, optical_flow
from dshmp.video.source import VideoSource

Array = NDArray[np.float32]
OVERLAP = 0.25  # IoU from which on two masks of neighbouring frames can be of one object
UNSURE = 0.05, 0.95  # chances between which colours decide
AROUND = 0.3  # of an object's size, how far around it colours are compared
REACH = 0.25  # short sides within which votes are for one object
TOUCHING = 0.6  # share of an object that lies in what was found, if that is two objects that touch
STEADY = 10  # frames that an object has been seen in, before it may be told apart from one that it touches


@dataclass(frozen=True)
class Moving:
    """What moves by itself."""

    threshold: Share = 0.35
    """Chance of moving, above which a pixel is of an object."""
    objects: Count = 6
    """At most so many in a frame, the largest."""
    least: Share = 0.002
    """Share of the frame that an object covers at least."""
    window: Annotated[int, Field(ge=0, le=8)] = 2
    """Frames before and after, over which the network's answers are averaged."""
    shortest: Count = 5
    """Frames that a track is seen in at least."""
    hold: Count = 24
    """Frames that an object is carried along after it has stopped."""

    def __call__(self, video: VideoSource, phrases: Sequence[str], device: torch.device, progress: Progress) -> Tracks:
        """Tracks of what moves, without words: nothing is known of what it is."""
        network = _network().to(device)
        size = flow_size(video.height, video.width)
        small = (cv2.resize(frame.image, size[::-1], interpolation=cv2.INTER_AREA) for frame in video)
        tracks: dict[int, dict[int, Rle]] = defaultdict(dict)
        length = 0
        for frame, objects in _followed(_averaged(_seen(small, network, device), self.window), self):
            for number, chance in objects.items():
                mask = _cut_out(chance, frame.picture)
                if mask.mean() >= self.least:
                    tracks[number][video.start + length] = encode(_resized(mask, video.height, video.width))
            length += 1
            progress("objects", length, video.count)
        kept = [track for track in tracks.values() if len(track) >= min(self.shortest, length)]
        named = tuple(Track(str(number), track) for number, track in enumerate(kept, 1))
        return Tracks(video.height, video.width, named)


@cache
def _network() -> MovingObjects:
    network = MovingObjects()
    weights = load_tensors(Path(str(resources.files("dshmp") / "assets" / "moving.safetensors")))
    network.load_state_dict({name: each.float() for name, each in weights.items()})
    return network.eval()


@dataclass
class _Frame:
    picture: NDArray[np.uint8]
    output: Array  # (3, h, w) of the network
    forward: Array  # flow (h, w, 2) to the next frame and to the one before, in pixels of the output
    backward: Array


def _seen(pictures: Iterable[NDArray[np.uint8]], network: MovingObjects, device: torch.device) -> Iterator[_Frame]:
    """Each frame with the network's answer. The first and the last one know the flow to one side only."""
    last: NDArray[np.uint8] | None = None
    back: Array | None = None  # flow from the last frame to that before
    for picture in pictures:
        if last is not None:
            forward = optical_flow(last, picture)
            yield _frame(last, forward, -forward if back is None else back, network, device)
            back = optical_flow(picture, last)
        last = picture
    if last is not None:
        back = np.zeros((*last.shape[:2], 2), np.float32) if back is None else back
        yield _frame(last, -back, back, network, device)


def _frame(
    picture: NDArray[np.uint8], forward: Array, backward: Array, network: MovingObjects, device: torch.device
) -> _Frame:
    given = torch.from_numpy(flow_input(picture, forward, backward))[None].to(device)
    with torch.inference_mode():
        output = network(given)[0].float().cpu().numpy()
    output[0] = 1 / (1 + np.exp(-output[0]))
    half = [cv2.resize(each, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) / 2 for each in (forward, backward)]
    return _Frame(picture, output, *half)


def _averaged(frames: Iterator[_Frame], window: int) -> Iterator[_Frame]:
    """Each frame with the mean of the answers of the frames around it, each seen from this frame."""
    held: deque[_Frame] = deque()
    place = 0  # of the next frame to give, among those held
    for frame in frames:
        held.append(frame)
        if len(held) > place + window:
            yield replace(held[place], output=_mean(held, place, window))
            place += 1
        if place > window:
            held.popleft()
            place -= 1
    for rest in range(place, len(held)):
        yield replace(held[rest], output=_mean(held, rest, window))


def _mean(held: Sequence[_Frame], place: int, window: int) -> Array:
    """The mean over the frames around that at `place`, followed along the flow."""
    outputs = [held[place].output]
    for step in (1, -1):
        where = _grid(*held[place].output.shape[1:])
        for other in range(place + step, place + step * (window + 1), step):
            if not 0 <= other < len(held):
                break
            before = held[other - step]
            where = where + _sampled(before.forward if step > 0 else before.backward, where)
            outputs.append(_sampled(held[other].output.transpose(1, 2, 0), where).transpose(2, 0, 1))
    return np.asarray(np.mean(outputs, axis=0), np.float32)


def _grid(height: int, width: int) -> Array:
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y], 2).astype(np.float32)


def _sampled(values: Array, where: Array) -> Array:
    """values (h, w, C) at places (h, w, 2) x, y."""
    return np.asarray(
        cv2.remap(values, where[..., 0], where[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )


@dataclass
class _Object:
    chance: Array  # (h, w) in the last frame
    seen: int = 1  # frames in which it moved
    unseen: int = 0  # frames since


def _followed(frames: Iterator[_Frame], settings: Moving) -> Iterator[tuple[_Frame, dict[int, Array]]]:
    """Each frame with the chances of its objects, by the number of their track. An object goes on in the one that it
    overlaps most after the flow has carried it along; what stands still is carried along for a while."""
    active: dict[int, _Object] = {}
    count = 0
    for frame in frames:
        found = _objects(frame.output, settings)
        where = _grid(*frame.output.shape[1:]) + frame.backward
        carried = {number: _sampled(each.chance, where) for number, each in active.items()}
        steady = {n: carried[n] for n, each in active.items() if each.seen >= STEADY and not each.unseen}
        found = [part for each in found for part in _parted(each, steady)]
        for number, place in _matched(carried, found).items():
            each = active[number]
            active[number] = _Object(found[place], each.seen + 1)
            carried.pop(number)
            found[place] = np.zeros(0, np.float32)
        taken = np.max([each.chance for number, each in active.items() if number not in carried], axis=0, initial=0.0)
        for number, chance in carried.items():
            each = active.pop(number)
            chance = np.where(taken > 0.5, 0, chance).astype(np.float32)
            if each.unseen < settings.hold and each.seen >= settings.shortest and _area(chance) >= settings.least:
                active[number] = replace(each, chance=chance, unseen=each.unseen + 1)
        for chance in found:
            if len(chance):
                active[count] = _Object(chance)
                count += 1
        yield frame, {number: each.chance for number, each in active.items()}


def _parted(chance: Array, objects: Mapping[int, Array]) -> list[Array]:
    """The chances (h, w) of what was found, or of each of its parts where it is several objects that touch: those that
    were seen before and now lie in it; each pixel is of the nearest."""
    whole = chance > 0.5
    inside = [
        each
        for each in objects.values()
        if _area(each) > 0.1 * whole.mean() and (whole & (each > 0.5)).mean() > TOUCHING * _area(each)
    ]
    if len(inside) < 2:
        return [chance]
    away = [cv2.distanceTransform((each <= 0.5).astype(np.uint8), cv2.DIST_L2, 3) - each for each in inside]
    nearest = np.argmin(away, axis=0)
    return [np.where(nearest == k, chance, 0).astype(np.float32) for k in range(len(inside))]


def _area(chance: Array) -> float:
    return float((chance > 0.5).mean())


def _matched(carried: Mapping[int, Array], found: Sequence[Array]) -> dict[int, int]:
    """Which object is which: those that overlap, the best pairs in all."""
    if not carried or not found:
        return {}
    numbers = list(carried)
    before, now = (np.stack(each).reshape(len(each), -1) > 0.5 for each in (list(carried.values()), list(found)))
    inner = before.astype(np.float32) @ now.T.astype(np.float32)
    overlap = inner / np.maximum(before.sum(1)[:, None] + now.sum(1) - inner, 1)
    pairs = zip(*linear_sum_assignment(-overlap), strict=True)
    return {numbers[row]: int(column) for row, column in pairs if overlap[row, column] >= OVERLAP}


def _objects(found: Array, settings: Moving) -> list[Array]:
    """The chances (h, w) of each object, the largest first: pixels that move vote for the middle of their object; the
    places with most votes are objects, and each pixel is of the nearest."""
    chance, votes = _shifted(found[0], settings.threshold), found[1:].transpose(1, 2, 0) * SHORT / 2
    height, width = chance.shape
    ys, xs = np.nonzero(chance > 0.5)
    if not len(ys):
        return []
    ends = np.stack([xs, ys], 1) + votes[ys, xs]
    heap = np.zeros((height, width), np.float32)
    x, y = np.clip(np.rint(ends).astype(int), 0, (width - 1, height - 1)).T
    np.add.at(heap, (y, x), chance[ys, xs])
    reach = REACH * SHORT / 2  # in pixels of the output
    heap = cv2.GaussianBlur(heap, (0, 0), reach / 2)
    peaks = np.argwhere((heap == cv2.dilate(heap, np.ones((2 * int(reach) + 1,) * 2))) & (heap > 0.02 * heap.max()))
    peaks = peaks[np.argsort(-heap[tuple(peaks.T)])][: 3 * settings.objects, ::-1]
    owner = np.linalg.norm(ends[:, None] - peaks[None], axis=2).argmin(1)
    parts = []
    for k in range(len(peaks)):
        rows = ys[owner == k], xs[owner == k]
        if len(rows[0]) >= settings.least * height * width:
            # around it, chances fall off smoothly; on the others there is none
            others = np.zeros((height, width), bool)
            others[ys[owner != k], xs[owner != k]] = True
            own = np.zeros((height, width), np.uint8)
            own[rows] = 1
            near = cv2.dilate(own, np.ones((7, 7), np.uint8)) > 0
            parts.append((len(rows[0]), np.where(near & ~others, chance, 0).astype(np.float32)))
    parts.sort(key=lambda each: -each[0])
    return [part for _, part in parts[: settings.objects]]


def _shifted(chance: Array, threshold: float) -> Array:
    """Chances, the odds of which are such that the threshold is one half."""
    against = (1 - chance) * threshold
    return np.asarray(chance * (1 - threshold) / np.maximum(chance * (1 - threshold) + against, 1e-6), np.float32)


def _cut_out(chance: Array, picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The mask (H, W) of an object in the picture (H, W, 3), whose edges it follows: GrabCut (Rother et al., SIGGRAPH
    2004), sure of what is far from the edge of the chances; where that ends up elsewhere, the chances alone."""
    height, width = picture.shape[:2]
    likely = cv2.resize(chance, (width, height), interpolation=cv2.INTER_LINEAR)
    whole = likely > 0.5
    if not whole.any():
        return np.asarray(whole)
    ys, xs = np.nonzero(likely > UNSURE[0])
    side = int(AROUND * max(np.ptp(ys), np.ptp(xs))) + 8
    part = np.s_[max(ys.min() - side, 0) : ys.max() + side, max(xs.min() - side, 0) : xs.max() + side]
    inside = likely[part]
    labels = np.where(inside > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    labels[inside > UNSURE[1]], labels[inside < UNSURE[0]] = cv2.GC_FGD, cv2.GC_BGD
    labels = labels.astype(np.uint8)
    if not ((labels & 1) == 1).any() or not ((labels & 1) == 0).any():
        return np.asarray(whole)
    cv2.setRNGSeed(0)  # it draws at random
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(picture[part]), labels, None, *models, 2, cv2.GC_INIT_WITH_MASK)
    cut = np.zeros_like(whole)
    cut[part] = (labels & 1) == 1
    agree = (cut & whole).sum() / (cut | whole).sum()
    return np.asarray(cut if agree > 0.5 else whole)


def _resized(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    return np.asarray(cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5)
