"""Answers as `supervision.Detections`, one per frame."""

from typing import TYPE_CHECKING

import numpy as np

from dshmp.common.errors import UserError
from dshmp.common.rle import box, decode
from dshmp.formats.answers import Answers

if TYPE_CHECKING:
    from supervision import Detections


def detections(answers: Answers) -> "list[Detections]":
    """With mask, confidence, class_id and class_name of the sentence, tracker_id. Raises UserError where the library is
    not installed."""
    try:
        from supervision import Detections
    except ImportError:
        raise UserError("supervision is not installed; run `pip install supervision`") from None
    found = []
    for t in range(answers.results[0].frame_count):
        there = answers.seen(t)
        masks = [each.object.rle[t] for each in there]
        boxes = np.array([box(rle) for rle in masks], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.append(
            Detections(
                xyxy=boxes,
                mask=decode(masks),
                confidence=np.array([each.score for each in there], np.float32),
                class_id=np.array([each.category - 1 for each in there]),
                tracker_id=np.array([each.id for each in there]),
                data={"class_name": np.array([each.name for each in there])},
            )
            if there
            else Detections.empty()
        )
    return found
