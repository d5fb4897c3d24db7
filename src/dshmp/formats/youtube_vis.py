"""YouTube-VIS' JSON: videos, and per track a list with a mask or null for each frame of its video."""

from itertools import repeat
from pathlib import Path
from typing import Any

from dshmp.common.errors import UserError
from dshmp.common.files import to_json
from dshmp.common.rle import Rle, area, box, encode
from dshmp.data.images import decode_mask
from dshmp.formats.answers import Answers
from dshmp.formats.coco import Document, categories, chosen_video, labels_of, words_of
from dshmp.formats.tracks import Tracks, seen_tracks, told
from dshmp.video.source import VideoSource


def read(document: Document, source: VideoSource, path: Path) -> Tracks:
    """Per track a list with a mask or null for each frame."""
    size, labels = (source.height, source.width), labels_of(document)
    video = chosen_video(document, source, path)
    rows = document.annotations if video is None else [a for a in document.annotations if a.video_id == video.id]
    if video is not None and video.height is not None and (video.height, video.width) != size:
        raise UserError(f"{path}: the video is {video.width}x{video.height} there, {told(size)}")
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
        found[name] = masks, words_of(row, labels)
    return seen_tracks(size, found, lengths.pop() if lengths else None, path)


def document(answers: Answers) -> dict[str, Any]:
    """Answers as YouTube-VIS' JSON. Frames before the answers' first have no mask, so that a place in a list is one in
    the video."""
    before = len(answers.earlier)
    annotations = []
    for each in answers.objects:
        masks = [*repeat(None, before), *(rle if area(rle) else None for rle in each.object.rle)]
        annotations.append(
            {
                **{"id": each.id, "video_id": 1, "category_id": each.category, "segmentations": masks},
                **{"areas": [rle and area(rle) for rle in masks], "bboxes": [rle and box(rle) for rle in masks]},
                **{"height": answers.height, "width": answers.width, "iscrowd": 0, "score": each.score},
            }
        )
    files = [f"{answers.name}/{name}" for name in (*answers.earlier, *answers.files)]
    video = {"id": 1, "name": answers.name, "file_names": files, "length": len(files), "height": answers.height}
    video |= {"width": answers.width}
    return {"videos": [video], "categories": categories(answers), "annotations": annotations}


def save(answers: Answers, path: Path) -> None:
    path.write_text(to_json(document(answers)), encoding="utf-8")
