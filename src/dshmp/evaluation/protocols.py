"""The benchmarks' protocols for masks on disk, one video at a time.

    mevis, youtube_vos   <video>/<expression>/<frame>.png, foreground is what is not black when read as grey
    davis                anno_<a>/<video>/<frame>.png, pixel values are object ids; a = 0 ... 3

What is missing or damaged counts 0, also in frames where nothing is to be found. (MeViS's script gives 0 where a
video's folder is missing; at a missing expression or frame it stops and leaves the expression out of the mean.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dshmp.data.base import Expression, Size, Split, mask_size
from dshmp.data.ref_davis import ANNOTATORS, VOID
from dshmp.evaluation.metrics import MaskScores, jf, jf_frames
from dshmp.evaluation.predictions import Predictions, Problem

PROTOCOLS = {  # by layout: what a figure is, for results.json
    "mevis": "MeViS: J and F, mean over all frames, then over expressions; masks read as grey",
    "youtube_vos": "Ref-YouTube-VOS: J and F, mean over all frames, then over expressions; masks read as grey",
    "davis": "DAVIS 2017 unsupervised: objects matched, mean over objects and four annotators",
    "coco": "MTTR: COCO's AP without crowds; P@K is an IoU above K, compared exactly; of the best detection",
}
CHUNK = 8  # frames of all of a video's targets in memory
Masks = NDArray[np.bool_]
# figure -> (numerator, denominator): the figure over many rows is the ratio of their sums
Terms = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class SampleScore:
    """How one expression was answered; in DAVIS one object under one annotator, in COCO's layout one sample."""

    video: str
    id: str
    text: str
    subsets: tuple[str, ...]
    terms: Terms
    complete: bool = True  # whether the prediction was there and readable in full


VideoScores = tuple[list[SampleScore], list[Problem]]  # rows, as of one video, and what stood in the way


def target(split: Split, video: str, annotations: Sequence[int], positions: Sequence[int], size: Size) -> Masks:
    """(T, H, W): what any of the annotated masks covers; nothing where there are none."""
    return np.asarray(split.masks(video, annotations, positions, size).any(0))


def score_expressions(split: Split, predictions: Predictions, video: str, items: Sequence[Expression]) -> VideoScores:
    """J and F of each expression, the mean over its scored frames, and whether an absent target was recognised.

    N-acc is the share of absent targets answered with no pixel at all, T-acc that of present ones answered with
    some; they stand in the rows of a split that has absent targets. The synthetic data set adds figures of its own.
    """
    names = split.videos[video].frames
    wanted = np.array([np.isin(range(len(names)), range(len(names)) if i.scored is None else i.scored) for i in items])
    j, f = np.zeros((2, *wanted.shape))
    there, found = np.zeros_like(wanted), np.zeros(len(items), bool)
    folders = [f"{video}/{item.id}" for item in items]
    answered = [e for e, folder in enumerate(folders) if predictions.holds(folder)]
    problems = [Problem("expression", folder) for e, folder in enumerate(folders) if e not in answered]
    if not predictions.holds(video):
        problems = [Problem("video", video)]
    size = mask_size(split, video, [annotation for item in items for annotation in item.annotations])
    for start in range(0, len(names), CHUNK):
        truths: dict[tuple[int, ...], Masks] = {}  # expressions share targets
        positions = range(start, min(start + CHUNK, len(names)))
        for e in answered:
            annotations = items[e].annotations
            for t in (t for t in positions if wanted[e, t]):
                mask = predictions.mask(f"{folders[e]}/{names[t]}.png", size, problems)
                if mask is None:
                    continue
                if annotations not in truths:
                    truths[annotations] = target(split, video, annotations, positions, size)
                there[e, t] = True
                found[e] |= mask.any()
                j[e, t], f[e, t] = jf_frames(mask, truths[annotations][t - start])
    complete = np.asarray((there | ~wanted).all(1))
    absent = any(not item.annotations for item in split.expressions)
    rows = []
    for e, item in enumerate(items):
        terms = _means(j[e, wanted[e]], f[e, wanted[e]])
        if absent:
            right = found[e] if item.annotations else complete[e] and not found[e]
            terms["T-acc" if item.annotations else "N-acc"] = (float(right), 1.0)
        terms |= synthetic_terms(split, predictions, video, item, size)
        rows.append(SampleScore(video, item.id, item.text, item.subsets, terms, bool(complete[e])))
    return rows, problems


def synthetic_terms(split: Split, predictions: Predictions, video: str, item: Expression, size: Size) -> Terms:
    """Two more figures where a split names all objects of its videos, as the synthetic data set does.

    The *static oracle* is what perfect masks of all objects that fit the static words would score: a model that sees
    everything and understands no motion. *Right of pair*: of two look-alikes told apart by direction only, the answer
    meets the right one better over the whole clip than any other object.
    """
    names, objects = split.videos[video].frames, split.videos[video].objects
    if "static_ids" not in item.extra or not objects:
        return {}
    positions = range(len(names))
    truth = target(split, video, item.annotations, positions, size)
    static = [objects[each]["anno_id"] for each in item.extra["static_ids"]]
    terms = {"static oracle": (sum(jf(target(split, video, static, positions, size), truth)) / 2, 1.0)}
    if "direction pairs" in item.subsets and len(item.objects) == 1:
        masks = [predictions.mask(f"{video}/{item.id}/{name}.png", size, []) for name in names]
        answer = np.stack([np.zeros(size, bool) if mask is None else mask for mask in masks])
        rest = [entry["anno_id"] for key, entry in objects.items() if key not in item.objects]
        rivals = split.masks(video, rest, positions, size)
        first, *others = ((answer & mask).sum() / max((answer | mask).sum(), 1) for mask in (truth, *rivals))
        terms["right of pair"] = (float(first > max(others, default=0.0)), 1.0)
    return terms


def score_objects(split: Split, predictions: Predictions, video: str, items: Sequence[Expression]) -> VideoScores:
    """DAVIS's unsupervised protocol under each annotator: a row per object of the first frame.

    Predicted objects are matched to the annotated ones by their mean (J + F) / 2 over the video, so that swapped
    identities are forgiven; the `identity-fixed` figures compare each object with the prediction of its own id. Void
    pixels do not count.
    """
    names = split.videos[video].frames
    # (T, H, W) object ids, 0 = none, VOID = not scored
    labels: NDArray[np.uint8] = cast(Any, split).index_masks(video, range(len(names)))
    void = labels == VOID
    texts = {(item.extra["annotator"], *item.objects): item.text for item in items}
    count = int(labels[0][~void[0]].max(initial=0))
    rows: list[SampleScore] = []
    problems: list[Problem] = []
    for annotator in range(len(ANNOTATORS)):
        folder = f"anno_{annotator}/{video}"
        answer = np.zeros_like(labels)
        there = np.zeros(len(names), bool)
        if not (held := predictions.holds(folder)):
            problems.append(Problem("video", folder))
        for t, name in enumerate(names if held else ()):
            ids = predictions.object_ids(f"{folder}/{name}.png", labels.shape[1:])
            if isinstance(ids, Problem):
                problems.append(ids)
            else:
                answer[t], there[t] = ids, True
        proposals = max(int(answer.max(initial=0)), count)  # those beyond the highest predicted id are empty
        j, f = np.zeros((2, proposals, count, len(names)))
        for r, k in np.ndindex(proposals, count):
            j[r, k], f[r, k] = there * jf_frames(answer == r + 1, labels == k + 1, void)
        quality = (j.mean(2) + f.mean(2)) / 2  # (proposals, objects)
        match = dict(zip(*reversed(linear_sum_assignment(-quality)), strict=True))
        for k in range(count):
            terms = _means(j[match[k], k], f[match[k], k])
            terms |= {f"{name} identity-fixed": value for name, value in _means(j[k, k], f[k, k]).items()}
            text = texts.get((annotator, k + 1), "")
            rows.append(SampleScore(video, f"anno_{annotator}/{k + 1}", text, (), terms, bool(there.all())))
    return rows, problems


def _means(j: MaskScores, f: MaskScores) -> Terms:
    mean_j, mean_f = float(j.mean()), float(f.mean())
    return {"J&F": ((mean_j + mean_f) / 2, 1.0), "J": (mean_j, 1.0), "F": (mean_f, 1.0)}
