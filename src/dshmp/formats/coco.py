"""COCO's JSON of images, with an object's mask per annotation and a track's number (COCO video, CVAT's COCO).

Written are the answers' frames as images and a mask, compressed run lengths, per object and frame where it is seen.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from dshmp.common.errors import UserError
from dshmp.common.files import to_json
from dshmp.common.rle import Rle, area, box
from dshmp.data.base import Side, Text, read_shape
from dshmp.data.images import decode_mask
from dshmp.formats.answers import Answers
from dshmp.formats.tracks import Tracks, add_mask, seen_tracks, told
from dshmp.video.source import VideoSource


class _Category(BaseModel):
    id: int
    name: Text


class Video(BaseModel):
    id: int
    name: Text | None = None
    file_names: list[Text] = []
    height: Side | None = None
    width: Side | None = None


class _Image(BaseModel):
    id: int
    video_id: int | None = None
    file_name: Text = ""
    frame_id: int | None = None
    frame_index: int | None = None
    height: Side
    width: Side


Number = Annotated[int, Field(ge=0)]


class Annotation(BaseModel):
    id: int | None = None
    video_id: int | None = None
    image_id: int | None = None
    instance_id: Number | None = None
    track_id: Number | None = None
    category_id: int | None = None
    segmentations: list[Any] | None = None  # per frame of the video
    segmentation: Any = None  # of one image
    attributes: dict[str, Any] = {}


class Document(BaseModel):
    videos: list[Video] = []
    images: list[_Image] = []
    categories: list[_Category] = []
    annotations: list[Annotation]


def read_document(path: Path) -> Document:
    """A file's content; of a bare list of annotations, too. Raises UserError."""
    document = read_shape(path, Document | list[Annotation])  # type: ignore[arg-type]
    return Document(annotations=document) if isinstance(document, list) else document


def labels_of(document: Document) -> dict[int, tuple[str, ...]]:
    """The words of each category."""
    return {each.id: tuple(each.name.lower().split()) for each in document.categories}


def words_of(row: Annotation, labels: Mapping[int, tuple[str, ...]]) -> tuple[str, ...]:
    """Label and other words that an annotation carries, such as its colour."""
    others = [word.lower() for value in row.attributes.values() if isinstance(value, str) for word in value.split()]
    return (*(labels.get(row.category_id, ()) if row.category_id is not None else ()), *others)


def chosen_video(document: Document, source: VideoSource, path: Path) -> Video | None:
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


def read(document: Document, source: VideoSource, path: Path) -> Tracks:
    """One annotation per image and object, whose `instance_id` or `track_id` says which they are of."""
    video, labels, size = chosen_video(document, source, path), labels_of(document), (source.height, source.width)
    images = [each for each in document.images if video is None or each.video_id == video.id]
    position = _positions(images, source)
    if wrong := [each for each in images if (each.height, each.width) != size]:
        raise UserError(f"{path}: image {wrong[0].id} is {wrong[0].width}x{wrong[0].height}, {told(size)}")
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
        add_mask(masks, name, t, mask, path)
        words[name] = words_of(row, labels)
    return seen_tracks(size, {name: (each, words[name]) for name, each in masks.items()}, None, path)


def _positions(images: Sequence[_Image], source: VideoSource) -> dict[int, int]:
    """The place in the video of each image: by the name of a folder's frame, else by `frame_index`, which counts from
    the video's start, or `frame_id`, which counts from the first image, else by the order of the names."""
    stems = [Path(each.file_name).stem for each in images]
    known = {name: place for place, name in enumerate(source.names or ())}
    if known.keys() >= set(stems):
        return {each.id: known[stem] for each, stem in zip(images, stems, strict=True)}
    indices = {each.id: each.frame_index for each in images if each.frame_index is not None}
    if len(indices) == len(images):
        return indices
    numbers = {each.id: each.frame_id for each in images if each.frame_id is not None}
    if len(numbers) == len(images):
        return {key: number - min(numbers.values()) for key, number in numbers.items()}
    return {each.id: place for place, each in enumerate(sorted(images, key=lambda each: each.file_name))}


def document(answers: Answers) -> dict[str, Any]:
    """Answers as COCO's JSON."""
    first, size = answers.results[0], {"height": answers.height, "width": answers.width}
    images = [
        {"id": t + 1, "video_id": 1, "frame_id": n, "frame_index": n, "file_name": name, **size}
        for t, (n, name) in enumerate(zip(answers.positions, answers.files, strict=True))
    ]
    rows = [(t, each, each.object.rle[t]) for t in range(first.frame_count) for each in answers.seen(t)]
    annotations = [
        {
            **{"id": number, "image_id": t + 1, "video_id": 1, "category_id": each.category, "track_id": each.id},
            **{"segmentation": rle, "area": area(rle), "bbox": box(rle), "iscrowd": 0, "score": each.score},
            "attributes": {"track_id": each.id, "score": each.score},
        }
        for number, (t, each, rle) in enumerate(rows, 1)
    ]
    video = {"id": 1, "name": answers.name, "fps": first.fps, **size}
    return {"videos": [video], "images": images, "categories": categories(answers), "annotations": annotations}


def categories(answers: Answers) -> list[dict[str, Any]]:
    """Each sentence is one."""
    return [{"id": k, "name": name, "supercategory": "object"} for k, name in enumerate(answers.names, 1)]


def save(answers: Answers, path: Path) -> None:
    path.write_text(to_json(document(answers)), encoding="utf-8")
