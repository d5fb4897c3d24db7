"""Two more figures where a split names all objects of its videos, as the synthetic data set does.

The *static oracle* is what perfect masks of all objects that fit the static words would score: a model that sees
everything and understands no motion. *Right of pair*: of two look-alikes told apart by direction only, the answer
meets the right one better over the whole clip than any other object.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dshmp.data.base import Expression, Split
from dshmp.evaluation.metrics import jf
from dshmp.evaluation.predictions import Predictions, Problem

Masks = NDArray[np.bool_]
Terms = dict[str, tuple[float, float]]


def synthetic_terms(
    split: Split, predictions: Predictions, video: str, item: Expression, size: tuple[int, int]
) -> Terms:
    """The figures that apply to an expression, each a numerator and a denominator; none for other data sets."""
    objects = split.videos[video].objects
    if "static_ids" not in item.extra or not objects:
        return {}
    positions = range(len(split.videos[video].frames))

    def covered(annotations: Sequence[int]) -> Masks:
        return np.asarray(split.masks(video, annotations, positions, size).any(0))

    truth = covered(item.annotations)
    fitting = covered([objects[each]["anno_id"] for each in item.extra["static_ids"]])
    terms: Terms = {"static oracle": (sum(jf(fitting, truth)) / 2, 1.0)}
    if "direction pairs" in item.subsets and len(item.objects) == 1:
        answer = np.zeros_like(truth)
        for t, name in enumerate(split.videos[video].frames):
            mask = predictions.mask(f"{video}/{item.id}/{name}.png", size)
            if not isinstance(mask, Problem):
                answer[t] = mask
        others = [entry["anno_id"] for key, entry in objects.items() if key not in item.objects]
        rivals = split.masks(video, others, positions, size)
        right = _overlap(answer, truth) > max((_overlap(answer, rival) for rival in rivals), default=0.0)
        terms["right of pair"] = (float(right), 1.0)
    return terms


def _overlap(a: Masks, b: Masks) -> float:
    """IoU over the whole clip."""
    return float((a & b).sum() / max(int((a | b).sum()), 1))
