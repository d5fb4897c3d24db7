"""The benchmarks' protocols for masks on disk, one video at a time.

    mevis, youtube_vos   <video>/<expression>/<frame>.png, any pixel that is not 0 is foreground
    davis                anno_<a>/<video>/<frame>.png, pixel values are object ids; a = 0 ... 3

What is missing or damaged counts 0, also in frames where nothing is to be found. (MeViS's script gives 0 where a
video's folder is missing; at a missing expression or frame it stops and leaves the expression out of the mean.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dshmp.data.base import Expression, Split, frame_size
from dshmp.data.ref_davis import ANNOTATORS, VOID
from dshmp.evaluation.metrics import MaskScores, jf_frames
from dshmp.evaluation.predictions import Predictions, Problem
from dshmp.evaluation.synthetic import synthetic_terms

CHUNK = 8  # frames of all of a video's targets in memory
PROPOSALS = 20  # as many objects as the DAVIS evaluation takes


@dataclass(frozen=True)
class SampleScore:
    """How one expression was answered; in DAVIS one object under one annotator, in COCO's layout one sample."""

    video: str
    id: str
    text: str
    subsets: tuple[str, ...]
    terms: Mapping[str, tuple[float, float]]
    """Figure -> (numerator, denominator): the figure over many rows is the ratio of their sums."""
    complete: bool = True
    """Whether the prediction was there and readable in full."""


@dataclass(frozen=True)
class VideoScores:
    """The rows of one video and what stood in the way."""

    rows: tuple[SampleScore, ...]
    problems: tuple[Problem, ...]


VideoScorer = Callable[[Split, Predictions, str, Sequence[Expression]], VideoScores]


class IndexedSplit(Split, Protocol):
    """A split whose annotation is object ids per pixel."""

    def index_masks(self, video: str, positions: Sequence[int]) -> NDArray[np.uint8]:
        """(T, H, W) uint8 object ids, 0 = none, `VOID` = not scored."""


def target(
    split: Split, video: str, annotations: Sequence[int], positions: Sequence[int], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """(T, H, W): what any of the annotated masks covers; nothing where there are none."""
    union: NDArray[np.bool_] = np.asarray(split.masks(video, annotations, positions, size).any(0))
    return union


def score_expressions(split: Split, predictions: Predictions, video: str, items: Sequence[Expression]) -> VideoScores:
    """J and F of each expression, the mean over its scored frames, and whether an absent target was recognised.

    N-acc is the share of absent targets answered with no pixel at all, T-acc that of present ones answered with
    some; they stand in the rows of a split that has absent targets. The synthetic data set adds figures of its own.
    """
    names = split.videos[video].frames
    wanted = np.ones((len(items), len(names)), bool)
    for e, item in enumerate(items):
        if item.scored is not None:
            wanted[e] = np.isin(np.arange(len(names)), item.scored)
    j, f = np.zeros(wanted.shape), np.zeros(wanted.shape)
    there, found = np.zeros_like(wanted), np.zeros(len(items), bool)
    problems: list[Problem] = []
    folders = [f"{video}/{item.id}" for item in items]
    answered = [e for e, folder in enumerate(folders) if predictions.holds(folder)]
    if predictions.holds(video):
        problems += [Problem("expression", folder) for e, folder in enumerate(folders) if e not in answered]
    else:
        problems.append(Problem("video", video))
    size = frame_size(split, video)
    for start in range(0, len(names), CHUNK):
        truths: dict[tuple[int, ...], NDArray[np.bool_]] = {}  # expressions share targets
        positions = range(start, min(start + CHUNK, len(names)))
        for e in answered:
            annotations = items[e].annotations
            for t in (t for t in positions if wanted[e, t]):
                mask = predictions.mask(f"{folders[e]}/{names[t]}.png", size)
                if isinstance(mask, Problem):
                    problems.append(mask)
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
        if absent and not item.annotations:
            terms["N-acc"] = (float(complete[e] and not found[e]), 1.0)
        elif absent:
            terms["T-acc"] = (float(found[e]), 1.0)
        terms |= synthetic_terms(split, predictions, video, item, size)
        rows.append(SampleScore(video, item.id, item.text, item.subsets, terms, bool(complete[e])))
    return VideoScores(tuple(rows), tuple(problems))


def score_objects(split: Split, predictions: Predictions, video: str, items: Sequence[Expression]) -> VideoScores:
    """DAVIS's unsupervised protocol under each annotator: a row per object of the first frame.

    Predicted objects are matched to the annotated ones by their mean (J + F) / 2 over the video, so that swapped
    identities are forgiven; the `identity-fixed` figures compare each object with the prediction of its own id. Void
    pixels do not count.
    """
    names = split.videos[video].frames
    labels = cast(IndexedSplit, split).index_masks(video, range(len(names)))
    size = (labels.shape[1], labels.shape[2])
    texts = {(item.extra["annotator"], *item.objects): item.text for item in items}
    count = int(labels[0][labels[0] != VOID].max(initial=0))
    rows: list[SampleScore] = []
    problems: list[Problem] = []
    for annotator in range(len(ANNOTATORS)):
        folder = f"anno_{annotator}/{video}"
        answer = np.zeros_like(labels)
        there = np.zeros(len(names), bool)
        if not predictions.holds(folder):
            problems.append(Problem("video", folder))
        else:
            for t, name in enumerate(names):
                indices = predictions.indices(f"{folder}/{name}.png", size)
                if not isinstance(indices, Problem) and indices.max(initial=0) > PROPOSALS:
                    reason = f"holds object id {indices.max()}; the DAVIS evaluation takes at most {PROPOSALS}"
                    indices = Problem("damaged", f"{folder}/{name}.png", reason)
                if isinstance(indices, Problem):
                    problems.append(indices)
                else:
                    answer[t], there[t] = indices, True
        j, f = _pairwise(answer, labels, count, there)
        quality = (j.mean(2) + f.mean(2)) / 2  # (proposals, objects)
        match = dict(zip(*reversed(linear_sum_assignment(-quality)), strict=True))
        for k in range(count):
            terms = _means(j[match[k], k], f[match[k], k])
            terms |= {f"{name} identity-fixed": value for name, value in _means(j[k, k], f[k, k]).items()}
            text = texts.get((annotator, k + 1), "")
            rows.append(SampleScore(video, f"anno_{annotator}/{k + 1}", text, (), terms, bool(there.all())))
    return VideoScores(tuple(rows), tuple(problems))


def _pairwise(
    answer: NDArray[np.uint8], labels: NDArray[np.uint8], count: int, there: NDArray[np.bool_]
) -> tuple[MaskScores, MaskScores]:
    """J and F (proposals, objects, T) of every predicted object against every annotated one; at least as many
    proposals as objects, those beyond the highest predicted id being empty."""
    proposals = max(int(answer.max(initial=0)), count)
    j, f = np.zeros((2, proposals, count, len(labels)))
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        void = labels[part] == VOID
        for k in range(count):
            truth = labels[part] == k + 1
            for r in range(proposals):
                j[r, k, part], f[r, k, part] = jf_frames(answer[part] == r + 1, truth, void)
    j[..., ~there], f[..., ~there] = 0, 0
    return j, f


def _means(j: MaskScores, f: MaskScores) -> dict[str, tuple[float, float]]:
    mean_j, mean_f = float(j.mean()), float(f.mean())
    return {"J&F": ((mean_j + mean_f) / 2, 1.0), "J": (mean_j, 1.0), "F": (mean_f, 1.0)}


SCORERS: dict[str, VideoScorer] = {
    "mevis": score_expressions,
    "youtube_vos": score_expressions,
    "davis": score_objects,
}
"""By the layout of the predictions."""
