"""Tracks made elsewhere: of each object its mask in the frames where it is seen, from files of other tools or arrays.

    <file>.json    YouTube-VIS: videos, and annotations with one mask per frame (run lengths, polygons or null);
                   the same as a bare list, as results are exchanged; or COCO video: videos, images and one annotation
                   per image and object
    <folder>/<track>/<frame>.png    a folder for each object, called as the track is; masks that are not 0
    <folder>/<frame>.png            one PNG per frame, with an index per object: DAVIS (8 bits, 255 is void) or MOTS
                                    (16 bits, class * 1000 + number, 10000 is void)
    <file>.txt     MOTS: per line frame, track, class, height, width, compressed run lengths

PNGs are called as the video's frames are, else by their number in the video.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from dshmp.data.base import Side, Size, Text, read_shape, read_text
from dshmp.data.images import decode_mask, open_data_image
from dshmp.errors import UserError
from dshmp.rle import Rle, decode, encode
from dshmp.video.source import VideoSource

VOID, MOTS_VOID = 255, 10_000  # what index PNGs say of pixels that nobody judged
MOTS_CLASS = 1000  # a MOTS index is class * 1000 + number
MOTS_NAMES = {1: ("car",), 2: ("pedestrian", "person")}
INSTEAD = "give JSON (YouTube-VIS, COCO video), MOTS text, a folder of index PNGs, or one with a folder per object"


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


class _Category(BaseModel):
    id: int
    name: Text


class _Video(BaseModel):
    id: int
    name: Text | None = None
    file_names: list[Text] = []
    height: Side | None = None
    width: Side | None = None


class _Image(BaseModel):
    id: int
    video_id: int
    file_name: Text = ""
    frame_id: int | None = None
    frame_index: int | None = None
    height: Side
    width: Side


Number = Annotated[int, Field(ge=0)]


class _Annotation(BaseModel):
    id: int | None = None
    video_id: int | None = None
    image_id: int | None = None
    instance_id: Number | None = None
    track_id: Number | None = None
    category_id: int | None = None
    segmentations: list[Any] | None = None  # per frame of the video
    segmentation: Any = None  # of one image
    attributes: dict[str, Any] = {}


class _Document(BaseModel):
    videos: list[_Video] = []
    images: list[_Image] = []
    categories: list[_Category] = []
    annotations: list[_Annotation]


TracksInput = str | Path | Tracks | Any  # ... or masks (K, T, H, W), or supervision's Detections of every frame


def find_tracks(given: TracksInput, source: VideoSource) -> Tracks:
    """Tracks of this video, from what a caller may give. Raises TypeError, UserError."""
    size = source.height, source.width
    if isinstance(given, Tracks):
        return checked_tracks(given, source)
    if isinstance(given, str | Path):
        return read_tracks(Path(given), source)
    if hasattr(given, "shape") or hasattr(given, "__array__"):
        return array_tracks(given, size)
    if not isinstance(given, Iterable):
        raise TypeError(f"tracks must be a path, masks (K, T, H, W) or detections, not {type(given).__name__}")
    return detection_tracks(given, size)


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


def read_tracks(path: Path, source: VideoSource) -> Tracks:
    """The tracks of a file or folder that belong to this video. Raises UserError."""
    if path.is_dir():
        return _read_folder(path, source)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {INSTEAD}")
    if path.suffix.lower() == ".json":
        return _read_json(path, source)
    if path.suffix.lower() == ".txt":
        return _read_mots(path, source)
    raise UserError(f"{path}: is no kind of tracks that is read here; {INSTEAD}")


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
                raise UserError(f"the detections of frame {t} are {mask.shape[1]}x{mask.shape[0]}, {_of(size)}")
            if mask.any():
                found[int(number)][t] = encode(mask)
            if labels is not None:
                words[int(number)] = tuple(str(labels[row]).lower().split())
    named = {str(number): (masks, words.get(number, ())) for number, masks in sorted(found.items())}
    return _tracks(size, named, length, "detections")


def _of(size: Size) -> str:
    return f"the video's frames are {size[1]}x{size[0]}"


def _tracks(
    size: Size, found: Mapping[str, tuple[Mapping[int, Rle], tuple[str, ...]]], length: int | None, where: object
) -> Tracks:
    items = tuple(Track(name, masks, words) for name, (masks, words) in found.items() if masks)
    if not items:
        raise UserError(f"{where}: no object is seen in any frame of these tracks; {INSTEAD}")
    return Tracks(*size, items, length)


def _read_json(path: Path, source: VideoSource) -> Tracks:
    document = read_shape(path, _Document | list[_Annotation])  # type: ignore[arg-type]
    if isinstance(document, list):
        document = _Document(annotations=document)
    size = source.height, source.width
    labels = {each.id: tuple(each.name.lower().split()) for each in document.categories}
    video = _chosen(document, source, path)
    rows = document.annotations if video is None else [a for a in document.annotations if a.video_id == video.id]
    if document.images:
        return _coco_video(document, video, labels, size, path)
    if video is not None and video.height is not None and (video.height, video.width) != size:
        raise UserError(f"{path}: the video is {video.width}x{video.height} there, {_of(size)}")
    lengths = {len(row.segmentations) for row in rows if row.segmentations is not None}
    if len(lengths) > 1:
        raise UserError(f"{path}: tracks of one video have {sorted(lengths)[0]} and {sorted(lengths)[-1]} frames")
    found: dict[str, tuple[dict[int, Rle], tuple[str, ...]]] = {}
    for place, row in enumerate(rows):
        if row.segmentations is None:
            raise UserError(f"{path}: annotations.{place} has no segmentations, one mask or null per frame")
        name = str(row.id if row.id is not None else place + 1)
        if name in found:
            raise UserError(f"{path}: two tracks have the id {name}; give each one of its own")
        masks = {}
        for t, codes in enumerate(row.segmentations):
            if codes and (mask := decode_mask(codes, size, f"{path}: frame {t} of track {name}")).any():
                masks[t] = encode(mask)
        found[name] = masks, _words(row, labels)
    return _tracks(size, found, lengths.pop() if lengths else None, path)


def _words(row: _Annotation, labels: Mapping[int, tuple[str, ...]]) -> tuple[str, ...]:
    """Label and other words that an annotation carries, such as its colour."""
    told = [word.lower() for value in row.attributes.values() if isinstance(value, str) for word in value.split()]
    return (*(labels.get(row.category_id, ()) if row.category_id is not None else ()), *told)


def _chosen(document: _Document, source: VideoSource, path: Path) -> _Video | None:
    """Which of the file's videos is meant: the only one, or that of this name."""
    ids = {row.video_id for row in document.annotations if row.video_id is not None}
    if not document.videos:
        if len(ids) > 1:
            raise UserError(f"{path}: holds tracks of {len(ids)} videos without their names; give those of one")
        return None
    if len(document.videos) == 1:
        return document.videos[0]
    for video in document.videos:
        folders = {Path(name).parent.name for name in video.file_names}
        if source.name in {Path(video.name).stem if video.name else None, *folders}:
            return video
    known = ", ".join(str(video.name or video.id) for video in document.videos[:5])
    raise UserError(f"{path}: holds {len(document.videos)} videos, none called {source.name!r}: {known} ...")


def _coco_video(
    document: _Document, video: _Video | None, labels: Mapping[int, tuple[str, ...]], size: Size, path: Path
) -> Tracks:
    """One annotation per image and object, whose `instance_id` or `track_id` says which they are of."""
    images = [each for each in document.images if video is None or each.video_id == video.id]
    order = [each.frame_id if each.frame_id is not None else each.frame_index for each in images]
    if None in order:
        images = sorted(images, key=lambda each: each.file_name)
        order = list(range(len(images)))
    first = min((n for n in order if n is not None), default=0)
    position = {each.id: n - first for each, n in zip(images, order, strict=True) if n is not None}
    if wrong := [each for each in images if (each.height, each.width) != size]:
        raise UserError(f"{path}: image {wrong[0].id} is {wrong[0].width}x{wrong[0].height}, {_of(size)}")
    masks: dict[str, dict[int, Rle]] = defaultdict(dict)
    words: dict[str, tuple[str, ...]] = {}
    for place, row in enumerate(document.annotations):
        if row.image_id not in position:
            continue
        number = row.instance_id if row.instance_id is not None else row.track_id
        number = number if number is not None else row.attributes.get("track_id")  # as CVAT writes it
        if number is None:
            raise UserError(f"{path}: annotations.{place} has no instance_id or track_id; which object is it?")
        t, name = position[row.image_id], str(number)
        mask = decode_mask(row.segmentation, size, f"{path}: frame {t} of track {name}")
        _add(masks, name, t, mask, path)
        words[name] = _words(row, labels)
    return _tracks(size, {name: (each, words[name]) for name, each in masks.items()}, None, path)


def _add(masks: dict[str, dict[int, Rle]], name: str, t: int, mask: NDArray[np.bool_], where: object) -> None:
    """Keep the mask of a track in frame t, unless it is empty. Raises UserError where there is one."""
    if t in masks[name]:
        raise UserError(f"{where}: track {name} has two masks in frame {t}; keep one")
    if mask.any():
        masks[name][t] = encode(mask)


def _read_mots(path: Path, source: VideoSource) -> Tracks:
    size = source.height, source.width
    masks: dict[str, dict[int, Rle]] = defaultdict(dict)
    words: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            *numbers, counts = line.split()
            t, index, label, *own = map(int, numbers)
        except ValueError:
            raise UserError(f"{where} is no MOTS: frame, track, class, height, width, run lengths") from None
        mask = decode_mask({"size": own, "counts": counts}, size, where)
        if index == MOTS_VOID or label == MOTS_VOID // MOTS_CLASS:
            continue
        name = str(index)
        _add(masks, name, t, mask, where)
        words[name] = MOTS_NAMES.get(label, ())
    return _tracks(size, {name: (each, words[name]) for name, each in masks.items()}, None, path)


def _read_folder(path: Path, source: VideoSource) -> Tracks:
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    size = source.height, source.width
    found: dict[str, tuple[dict[int, Rle], tuple[str, ...]]] = {}
    if folders:
        for folder in folders:
            masks = {}
            for t, file in _frames(folder, source):
                values = _values(file, size)
                mask = values > (127 if values.max() > 1 else 0)  # drawn with soft edges, or as 0 and 1
                if mask.any():
                    masks[t] = encode(mask)
            found[folder.name] = masks, ()
        return _tracks(size, found, None, path)
    for t, file in _frames(path, source):
        values = _values(file, size)
        for index in np.unique(values).tolist():
            if index in (0, VOID if values.dtype == np.uint8 else MOTS_VOID):
                continue
            label = index // MOTS_CLASS if values.dtype != np.uint8 else 0
            found.setdefault(str(index), ({}, MOTS_NAMES.get(label, ())))[0][t] = encode(values == index)
    return _tracks(size, dict(sorted(found.items(), key=lambda each: int(each[0]))), None, path)


def _frames(folder: Path, source: VideoSource) -> list[tuple[int, Path]]:
    """The PNGs of a folder, with the positions of their frames in the video."""
    files = sorted(each for each in folder.iterdir() if each.suffix.lower() == ".png")
    known = {name: place for place, name in enumerate(source.names or ())}
    found = []
    for file in files:
        place = known.get(file.stem)
        if place is None and not known and re.fullmatch(r"\d{1,9}", file.stem):
            place = int(file.stem)
        if place is None:
            names = f"such as {next(iter(known))}.png" if known else "their numbers in the video, such as 00000.png"
            raise UserError(f"{file}: is called as no frame of the video is; the names are {names}")
        found.append((place, file))
    return found


def _values(file: Path, size: Size) -> NDArray[Any]:
    """The numbers of a PNG's pixels (H, W): uint8, or more bits where it has them."""
    with open_data_image(file, "mask") as image:
        values = np.asarray(image if image.mode in ("P", "L", "1", "I", "I;16") else image.convert("L"))
    if values.shape != size:
        raise UserError(f"{file}: is {values.shape[1]}x{values.shape[0]}, {_of(size)}")
    return values.astype(np.uint8) if values.dtype == bool else values
