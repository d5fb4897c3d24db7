"""The protocol of A2D-Sentences, JHMDB-Sentences and RefCOCO: COCO's results, one sample per sentence and frame.

`predictions.json` is a list of {"image_id", "category_id", "segmentation": RLE, "score"}, any number per sample.

- mAP: COCO's AP@[.5:.95] over all detections, categories ignored, at most 100 detections per sample;
- P@K, oIoU and mIoU are of the best detection of each sample (the last one, of equals): the share with an IoU
  above K, the sum of intersections over the sum of unions, the mean IoU. Two empty masks have IoU 1. An IoU of K
  itself is not above it, which is decided in whole numbers of pixels. (MTTR's script adds 1e-6 and rounds to single
  precision: there 0.6 and 0.8 themselves count as above, and in masks of a few pixels all five do.)

A sample without a detection counts 0, and its target adds to the unions. mAP is no ratio of sums over videos and has
no bootstrap interval.
"""

import contextlib
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from pycocotools import mask as coco

from dshmp.data.base import Expression, Split, frame_size
from dshmp.data.images import rle_fault
from dshmp.errors import UserError
from dshmp.evaluation.predictions import Predictions, Problem
from dshmp.evaluation.protocols import SampleScore, Terms, VideoScores, target
from dshmp.rle import Rle, encode

FILE = "predictions.json"
TENTHS = (5, 6, 7, 8, 9)  # of P@K

Truths = dict[str, Rle]  # run lengths of the target by image id
Detections = dict[str, list[dict[str, Any]]]  # COCO results by image id, in the order of the file


def image_id(item: Expression) -> str:
    """What the sample is called in COCO's results."""
    return str(item.extra.get("image_id", item.id))


def frame_list(split: Split) -> str | None:
    """Where a split's frames are named, for a data set that leaves it open."""
    return getattr(split, "frame_list", None)


def truths(split: Split, video: str, items: Sequence[Expression]) -> Truths:
    """Run lengths of the targets of one video's samples, each scored in one frame. Raises UserError where two samples
    have one id."""
    size = frame_size(split, video)  # of the first frame: a clip is decoded no further
    found: Truths = {}
    for item in items:
        if image_id(item) in found:
            raise UserError(f"{split.folder}: two samples of {video} are called {image_id(item)}; fetch it again")
        position = item.scored[0] if item.scored else 0
        found[image_id(item)] = encode(target(split, video, item.annotations, [position], size)[0])
    return found


def read_detections(predictions: Predictions, truth: Truths) -> tuple[Detections, list[Problem]]:
    """Readable detections, and those that are no mask of their frame. Raises UserError where the file is not
    COCO's results or speaks of other samples."""
    path = predictions.path / FILE
    entries = predictions.read_json(FILE)
    if not isinstance(entries, list):
        raise UserError(f"{path}: is missing or no list; predictions of this data set are one file of COCO results")
    detections: Detections = defaultdict(list)
    problems: list[Problem] = []
    for index, entry in enumerate(entries):
        try:
            key, rle, score = str(entry["image_id"]), entry["segmentation"], entry["score"] + 0.0
        except (TypeError, KeyError, OverflowError):
            needed = "it needs image_id, segmentation (RLE) and a number as score"
            raise UserError(f"{path}: entry {index} is no COCO result; {needed}") from None
        if key not in truth:
            raise UserError(f"{path}: entry {index}: the split has no sample {key!r}; was it made for another split?")
        size = truth[key]["size"]
        if fault := rle_fault(rle, (size[0], size[1])) if math.isfinite(score) else f"has the score {entry['score']}":
            problems.append(Problem("damaged", f"{FILE}, entry {index} ({key})", fault))
        else:
            mask = {"size": size, "counts": rle["counts"]}
            detections[key].append({"image_id": key, "category_id": 1, "segmentation": mask, "score": score})
    return detections, problems


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
            problems.append(Problem("expression", key, "has no detection"))
        agree = bool(found) and not union
        iou = 1.0 if agree else intersection / max(union, 1)
        terms: Terms = {"oIoU": (intersection, union), "mIoU": (iou, 1.0)}
        terms |= {f"P@{k / 10}": (float(agree or 10 * intersection > k * union), 1.0) for k in TENTHS}
        rows.append(SampleScore(item.video, key, item.text, item.subsets, terms, bool(found)))
    return rows, problems


def mean_average_precision(truth: Truths, detections: Detections) -> float:
    """AP@[.5:.95] of pycocotools, 0 to 1."""
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
                {"id": i, "image_id": key, "category_id": 1, "iscrowd": 0}
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
    return float(evaluation.stats[0])  # at all areas, at most 100 detections
