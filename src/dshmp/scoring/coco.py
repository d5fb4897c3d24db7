"""The protocol of A2D-Sentences, JHMDB-Sentences and RefCOCO: COCO's results, one sample per sentence and frame.

`predictions.json` is a list of {"image_id", "category_id", "segmentation": RLE, "score"}, any number per sample.

- mAP: COCO's AP@[.5:.95] over all detections, categories ignored, at most 100 detections per sample;
- P@K, oIoU and mIoU look at the best detection of each sample (the last one, of equals): the share with an IoU
  above K, the sum of intersections over the sum of unions, the mean IoU. Two empty masks have IoU 1.

A sample without a detection counts 0, and its target adds to the unions. mAP is no ratio of sums over videos and has
no bootstrap interval.
"""

import contextlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dshmp.data.dataset import Expression, Split
from dshmp.data.mevis_index import rle_fault
from dshmp.errors import UserError
from dshmp.result import Rle, encode
from dshmp.scoring.predictions import Predictions, Problem
from dshmp.scoring.protocols import Row, frame_size, target

FILE = "predictions.json"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
EPSILON = np.float32(1e-6)  # in single precision as in MTTR: it leaves the IoU of 40 in 80 pixels at 0.5, not above

Truths = dict[str, Rle]
"""Run lengths of the target by image id."""
Detections = dict[str, list[dict[str, Any]]]
"""COCO results by image id, in the order of the file."""


def image_id(item: Expression) -> str:
    """What the sample is called in COCO's results."""
    return str(item.extra.get("image_id", item.id))


def truths(split: Split, video: str, items: Sequence[Expression]) -> Truths:
    """Run lengths of the targets of one video's samples, each scored in one frame.

    Raises UserError where two samples have one id.
    """
    positions = [0 if item.scored is None else item.scored[0] for item in items]
    size = frame_size(split, video, positions[0])
    found = {}
    for item, position in zip(items, positions, strict=True):
        if image_id(item) in found:
            raise UserError(
                f"{split.folder}: two samples of {video} are called {image_id(item)}; detections can't tell them apart"
            )
        found[image_id(item)] = encode(target(split, video, item.annotations, [position], size)[0])
    return found


def read_detections(predictions: Predictions, truth: Mapping[str, Rle]) -> tuple[Detections, list[Problem]]:
    """Readable detections, and those that are no mask of their frame. Raises UserError where the file is not
    COCO's results or speaks of other samples."""
    path = predictions.path / FILE
    content = predictions.read_top(FILE)
    if content is None:
        raise UserError(f"{path}: missing; predictions of this data set are one file of COCO results")
    try:
        entries = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); it may be cut off, write it again") from None
    if not isinstance(entries, list):
        raise UserError(f"{path}: must be a list of COCO results")
    detections: Detections = defaultdict(list)
    problems: list[Problem] = []
    for index, entry in enumerate(entries):
        try:
            key, rle, score = str(entry["image_id"]), entry["segmentation"], float(entry["score"])
        except (TypeError, KeyError, ValueError):
            raise UserError(
                f"{path}: entry {index} is no COCO result; it needs image_id, segmentation (RLE) and score"
            ) from None
        if key not in truth:
            raise UserError(f"{path}: entry {index}: the split has no sample {key!r}; was it made for another split?")
        height, width = truth[key]["size"]
        reason = rle_fault(rle, (height, width)) if math.isfinite(score) else f"has the score {score}"
        if reason:
            problems.append(Problem("damaged", f"{FILE}, entry {index} ({key})", reason))
        else:
            detections[key].append(entry)
    return detections, problems


def score_samples(
    items: Sequence[Expression], truth: Mapping[str, Rle], detections: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[list[Row], list[Problem]]:
    """P@K, oIoU and mIoU of each sample's best detection."""
    from pycocotools import mask as coco

    rows, problems = [], []
    for item in items:
        key = image_id(item)
        candidates = detections.get(key, ())
        if candidates:
            best = sorted(candidates, key=lambda entry: float(entry["score"]))[-1]["segmentation"]
            intersection = int(coco.area(coco.merge([truth[key], best], intersect=True)))
            union = int(coco.area(coco.merge([truth[key], best])))
            iou = (np.float32(intersection) + EPSILON) / (np.float32(union) + EPSILON)
        else:
            problems.append(Problem("expression", key, "has no detection"))
            intersection, union, iou = 0, int(coco.area(truth[key])), np.float32(0)
        terms: dict[str, tuple[float, float]] = {"oIoU": (intersection, union), "mIoU": (float(iou), 1.0)}
        terms |= {f"P@{threshold}": (float(iou > threshold), 1.0) for threshold in THRESHOLDS}
        rows.append(Row(item.video, key, item.text, item.subsets, terms, bool(candidates)))
    return rows, problems


def mean_average_precision(truth: Mapping[str, Rle], detections: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    """AP@[.5:.95] of pycocotools, 0 to 1."""
    from pycocotools import mask as coco
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    entries = [{**entry, "image_id": key, "category_id": 1} for key, group in detections.items() for entry in group]
    if not entries:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its steps
        ground = COCO()
        ground.dataset = {
            "info": {},
            "images": [{"id": key, "height": rle["size"][0], "width": rle["size"][1]} for key, rle in truth.items()],
            "annotations": [
                {
                    "id": index,
                    "image_id": key,
                    "category_id": 1,
                    "segmentation": rle,
                    "area": int(coco.area(rle)),
                    "bbox": coco.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
                for index, (key, rle) in enumerate(truth.items(), 1)
            ],
            "categories": [{"id": 1, "name": "target"}],
        }
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(entries), "segm")
        evaluation.params.useCats = 0
        evaluation.evaluate()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])  # (IoUs, recalls, categories, areas, limits)
    values = precision[:, :, :, 0, -1]
    known = values[values > -1]
    return float(known.mean()) if known.size else 0.0
