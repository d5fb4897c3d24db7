"""The protocol of A2D-Sentences, JHMDB-Sentences and RefCOCO: COCO's results, one sample per sentence and frame.

`predictions.json` is a list of {"image_id", "category_id", "segmentation": RLE, "score"}, any number per sample.

- mAP: COCO's AP@[.5:.95] over all detections, categories ignored, at most 100 detections per sample;
- P@K, oIoU and mIoU are of the best detection of each sample (the last one, of equals): the share with an IoU
  above K, the sum of intersections over the sum of unions, the mean IoU. Two empty masks have IoU 1. An IoU of K
  itself is not above it, which is decided in whole numbers of pixels. (MTTR's script adds 1e-6 and rounds to single
  precision: there 0.6 and 0.8 themselves count as above, and in masks of a few pixels all five do.)

A sample without a detection counts 0, and its target adds to the unions. mAP is no ratio of sums over videos and has
no bootstrap interval. It leaves out targets that are crowds (`iscrowd`); the other figures count them.
"""

import contextlib
import io
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from operator import itemgetter
from typing import Any, cast

import cv2
import numpy as np
from pycocotools import mask as coco

from dshmp.common.errors import UserError
from dshmp.common.rle import Rle, decode, encode
from dshmp.data.base import Expression, Size, Split, frame_size, mask_size
from dshmp.data.images import rle_fault
from dshmp.evaluation.predictions import Predictions, Problem
from dshmp.evaluation.protocols import SampleScore, Terms, VideoScores, target

FILE = "predictions.json"
TENTHS = (5, 6, 7, 8, 9)  # of P@K

ImageId = str | int  # COCO takes samples in the order of their ids, numbers as numbers: where scores tie, it matters
Truths = dict[ImageId, Rle]  # run lengths of the target by image id
Detections = dict[ImageId, list[dict[str, Any]]]  # COCO results by image id, in the order of the file


def image_id(item: Expression) -> ImageId:
    """What the sample is called in COCO's results, a number where the data set counts its samples."""
    return cast(ImageId, item.extra.get("image_id", item.id))


def frame_list(split: Split) -> str | None:
    """Where a split's frames are named, for a data set that leaves it open."""
    return getattr(split, "frame_list", None)


def truths(split: Split, video: str, items: Sequence[Expression]) -> Truths:
    """Run lengths of the targets of one video's samples, each scored in one frame. Raises UserError where two samples
    have one id."""
    found: Truths = {}
    for item in items:
        if image_id(item) in found:
            told = f"two samples of {video} are called {image_id(item)}"
            raise UserError(f"{split.folder}: {told}; give them ids of their own")
        position = item.scored[0] if item.scored else 0
        size = mask_size(split, video, item.annotations, position)
        found[image_id(item)] = encode(target(split, video, item.annotations, [position], size)[0])
    return found


def read_detections(predictions: Predictions, truth: Truths, split: Split) -> tuple[Detections, list[Problem]]:
    """Readable detections, and those that are no mask of their frame. They are scored at the size of the annotated
    mask; those of the frame's size, where a data set has a mask of another, are resized. Raises UserError where the
    file is not COCO's results or speaks of other samples."""
    path = predictions.path / FILE
    entries = predictions.read_json(FILE)
    if not isinstance(entries, list):
        raise UserError(f"{path}: is missing or no list; predictions of this data set are one file of COCO results")
    detections: Detections = defaultdict(list)
    items = {str(image_id(item)): item for item in split.expressions}  # a number may stand as text
    frame = cache(partial(frame_size, split))
    problems: list[Problem] = []
    for index, entry in enumerate(entries):
        try:
            name, rle, score = str(entry["image_id"]), entry["segmentation"], entry["score"] + 0.0
        except (TypeError, KeyError, OverflowError):
            needed = "it needs image_id, segmentation (RLE) and a number as score"
            raise UserError(f"{path}: entry {index} is no COCO result; {needed}") from None
        if name not in items:
            raise UserError(f"{path}: entry {index}: the split has no sample {name!r}; was it made for another split?")
        key = image_id(items[name])
        mask: Rle | str = f"has the score {entry['score']}"
        if math.isfinite(score):
            mask = _fitted(rle, truth[key], partial(frame, items[name].video, *(items[name].scored or ())[:1]))
        if isinstance(mask, str):
            problems.append(Problem("damaged", f"{FILE}, entry {index} ({key})", mask))
        else:
            detections[key].append({"image_id": key, "category_id": 1, "segmentation": mask, "score": score})
    return detections, problems


def _fitted(rle: Any, truth: Rle, frame: Callable[[], Size]) -> Rle | str:
    """A mask at its target's size, or what is wrong with it; one of another size than its target's frame is wrong."""
    size = truth["size"][0], truth["size"][1]
    fault = rle_fault(rle, size)
    if fault is None:
        return {"size": truth["size"], "counts": rle["counts"]}
    with contextlib.suppress(UserError):
        if (own := frame()) != size and rle_fault(rle, own) is None:
            mask = decode([rle])[0].astype(np.uint8)
            return encode(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST) > 0)
    return fault


def score_samples(items: Sequence[Expression], truth: Truths, detections: Detections) -> VideoScores:
    """P@K, oIoU and mIoU of each sample's best detection."""
    rows, problems = [], []
    for item in items:
        key = image_id(item)
        found = sorted(detections.get(key, ()), key=itemgetter("score"))[-1:]
        masks = [truth[key], *(entry["segmentation"] for entry in found)]
        union = int(coco.area(coco.merge(masks)))
        intersection = int(coco.area(coco.merge(masks, intersect=True))) if found else 0
        if not found:
            problems.append(Problem("expression", str(key), "has no detection"))
        agree = bool(found) and not union
        iou = 1.0 if agree else intersection / max(union, 1)
        terms: Terms = {"oIoU": (intersection, union), "mIoU": (iou, 1.0)}
        terms |= {f"P@{k / 10}": (float(agree or 10 * intersection > k * union), 1.0) for k in TENTHS}
        rows.append(SampleScore(item.video, str(key), item.text, item.subsets, terms, bool(found)))
    return rows, problems


def mean_average_precision(truth: Truths, detections: Detections, crowds: Collection[ImageId] = ()) -> float:
    """AP@[.5:.95] of pycocotools, 0 to 1, which leaves out the targets that are `crowds`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    entries = [dict(entry) for group in detections.values() for entry in group]  # pycocotools adds to them
    if not entries:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its steps
        ground = COCO()
        ground.dataset = {
            "info": {},
            "images": [{"id": key, "height": rle["size"][0], "width": rle["size"][1]} for key, rle in truth.items()],
            "annotations": [
                {"id": i, "image_id": key, "category_id": 1, "iscrowd": int(key in crowds)}
                | {"segmentation": rle, "area": int(coco.area(rle))}
                for i, (key, rle) in enumerate(truth.items(), 1)
            ],
            "categories": [{"id": 1, "name": "target"}],
        }
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(entries), "segm")
        evaluation.params.useCats = 0
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return max(float(evaluation.stats[0]), 0.0)  # at all areas, at most 100 detections; -1 where all are crowds
