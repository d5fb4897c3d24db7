"""Tracks: of each object of a video its mask in the frames where it is seen; from arrays, too."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.common.errors import UserError
from dshmp.common.rle import Rle, decode, encode
from dshmp.data.base import Size
from dshmp.video.source import VideoSource

Found = Mapping[str, tuple[Mapping[int, Rle], tuple[str, ...]]]  # masks and words of each track, by its name


@dataclass(frozen=True)
class Track:
    """One object through a video."""

    name: str
    masks: Mapping[int, Rle]  # by the position of the frame in the video; where it is not seen there is none
    words: tuple[str, ...] = ()  # what it is said to be: its label, its colour
    appearance: NDArray[np.float32] | None = field(default=None, compare=False)
    """(A,) what it looks like, such as the mean of an image encoder's features inside its masks."""


@dataclass(frozen=True)
class Tracks:
    """All objects of a video, in frames of one size."""

    height: int
    width: int
    items: tuple[Track, ...]
    length: int | None = None  # frames of the video, where the file tells
    vocabulary: frozenset[str] = frozenset()  # words that could have been a track's, besides those that are

    @property
    def labels(self) -> frozenset[str]:
        """All words that these tracks can be told apart by."""
        return self.vocabulary.union(*(track.words for track in self.items))

    def masks(self, position: int, wanted: Collection[str] | None = None) -> dict[str, NDArray[np.bool_]]:
        """Of those, or of the wanted ones, that are seen in a frame, by their name: masks (H, W)."""
        chosen = [track for track in self.items if wanted is None or track.name in wanted]
        return {each.name: decode([each.masks[position]])[0] for each in chosen if position in each.masks}


def checked_tracks(tracks: Tracks, source: VideoSource) -> Tracks:
    """Raises UserError where they are of frames of another size, or two have one name."""
    size = source.height, source.width
    for height, width in [(tracks.height, tracks.width), *(m["size"] for t in tracks.items for m in t.masks.values())]:
        if (height, width) != size:
            raise UserError(f"tracks are of {width}x{height} pixels, the video of {size[1]}x{size[0]}")
    names = Counter(track.name for track in tracks.items)
    if (most := max(names.values(), default=1)) > 1:
        raise UserError(f"{most} tracks are called {names.most_common(1)[0][0]}; give each a name of its own")
    return tracks


def array_tracks(masks: object, size: Size) -> Tracks:
    """Of masks (K, T, H, W), array or tensor, what is not 0 being the object, in frames of this size. Raises TypeError,
    UserError."""
    array = np.asarray(masks)
    if array.dtype.kind not in "biu":
        raise TypeError(f"tracks must be masks of bool or integers, not {array.dtype}")
    if array.ndim != 4 or not len(array):
        raise UserError(f"tracks have shape {array.shape}; give masks (K, T, H, W) of at least one object")
    if array.shape[2:] != size:
        raise UserError(f"tracks are of {array.shape[3]}x{array.shape[2]} pixels, the video of {size[1]}x{size[0]}")
    seen = [{t: encode(mask) for t, mask in enumerate(track != 0) if mask.any()} for track in array]
    return Tracks(*size, tuple(Track(str(k), masks) for k, masks in enumerate(seen, 1)), array.shape[1])


def detection_tracks(frames: Iterable[Any], size: Size) -> Tracks:
    """Of a `supervision.Detections` per frame, with masks and `tracker_id`. Raises TypeError, UserError."""
    found: dict[int, dict[int, Rle]] = defaultdict(dict)
    words: dict[int, tuple[str, ...]] = {}
    length = 0
    for t, each in enumerate(frames):
        length = t + 1
        if not hasattr(each, "mask") or not hasattr(each, "tracker_id"):
            raise TypeError(f"tracks must be masks or supervision's Detections, not {type(each).__name__}")
        if not len(each):
            continue
        if each.mask is None or each.tracker_id is None:
            lacks = "masks" if each.mask is None else "tracker_id"
            raise UserError(f"the detections of frame {t} have no {lacks}; tracks need both")
        labels = each.data.get("class_name") if isinstance(each.data, Mapping) else None
        for row, (mask, number) in enumerate(zip(each.mask, each.tracker_id, strict=True)):
            if mask.shape != size:
                raise UserError(f"the detections of frame {t} are {mask.shape[1]}x{mask.shape[0]}, {told(size)}")
            if mask.any():
                found[int(number)][t] = encode(mask)
            if labels is not None:
                words[int(number)] = tuple(str(labels[row]).lower().split())
    named = {str(number): (masks, words.get(number, ())) for number, masks in sorted(found.items())}
    return seen_tracks(size, named, length, "detections")


def told(size: Size) -> str:
    """What is said where something is of another size."""
    return f"the video's frames are {size[1]}x{size[0]}"


def seen_tracks(size: Size, found: Found, length: int | None, where: object) -> Tracks:
    """Those that are seen at all. Raises UserError where none is."""
    items = tuple(Track(name, masks, words) for name, (masks, words) in found.items() if masks)
    if not items:
        raise UserError(f"{where}: no object is seen in any frame of these tracks; give those of this video")
    return Tracks(*size, items, length)


def add_mask(masks: dict[str, dict[int, Rle]], name: str, t: int, mask: NDArray[np.bool_], where: object) -> None:
    """Keep the mask of a track in frame t, unless it is empty. Raises UserError where there is one."""
    if t in masks[name]:
        raise UserError(f"{where}: track {name} has two masks in frame {t}; keep one")
    if mask.any():
        masks[name][t] = encode(mask)
