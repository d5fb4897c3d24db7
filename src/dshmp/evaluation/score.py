"""`dshmp score`: predictions on disk against a split's annotation, by the data set's own protocol."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from dshmp.data.base import Expression, Split, by_video, frame_size
from dshmp.data.registry import Dataset, dataset
from dshmp.errors import UserError
from dshmp.evaluation import coco, report
from dshmp.evaluation.figures import Scores, figures, intervals
from dshmp.evaluation.predictions import TOPS, Predictions
from dshmp.evaluation.protocols import score_expressions, score_objects
from dshmp.files import check_owned, output_folder
from dshmp.processes import worker_pool
from dshmp.progress import track

log = logging.getLogger(__name__)
Items = Mapping[str, Sequence[Expression]]
Job = Callable[[str], Any]  # takes the name of a video


def run(
    name: str,
    root: Path,
    split_name: str,
    pred: Path,
    out: Path | None = None,
    workers: int | None = None,
    compare: Path | None = None,
    card: Path | None = None,
) -> Scores:
    """Score, print the table to stdout, and write results.json, expressions.csv and videos.csv into `out` if given.

    `workers` processes share the videos, all cores by default. `compare` is a results.json whose figures stand beside;
    where the two are not comparable, a warning says why. `card` is the folder of the model that predicted, whose card
    takes the figures.
    """
    other = report.read_results(compare) if compare else None
    if out is not None:
        out = output_folder(out)
        check_owned(out, report.FILES)
    facts = report.read_facts(pred)
    if card is not None:
        card = report.own_card(card, pred, facts)
    data = dataset(name)
    scores = score_split(data, root, split_name, pred, workers or os.cpu_count() or 1)
    results = report.document(scores, name, split_name, pred, facts)
    report.warn(scores, data.layout)
    report.print_table(results, other, str(compare))
    for difference in report.differences(results, other) if other else ():
        log.warning("not comparable with %s: %s", compare, difference)
    if out is not None:
        report.write(out, scores, results)
    if card is not None:
        report.fill_card(card, scores, results, root, data.targets)
    return scores


def score_split(data: Dataset, root: Path, split_name: str, pred: Path, workers: int = 1) -> Scores:
    """Score all expressions of a split, video by video in `workers` processes; their number changes no figure.

    Raises UserError where the split's masks are not public, the predictions are of something else, or a process dies.
    """
    split = data.open(root, split_name)
    if not split.has_truth:
        raise UserError(f"{split.folder}: its masks are not public, so nothing can be scored; name another split")
    predictions = Predictions(pred, TOPS.get(data.layout, ""))
    items = by_video(split)
    for item in split.expressions:
        subsets: Any = item.extra.get("subsets", [])
        named = isinstance(subsets, list | tuple) and all(isinstance(name, str) for name in subsets)
        if not named or not split.videos[item.video].frames:
            fault = "has no frames" if named else f"expression {item.id}: its subsets are no list of names"
            raise UserError(f"{split.folder}: video {item.video}, {fault}; see `dshmp data check`")
    if workers > 1:
        _read_once(split)
    parts = _map(partial(_job, data.layout, pred, split, items), items, workers)
    if data.layout == "coco":
        truth: coco.Truths = {}
        for part in parts:
            truth |= part
        detections, damaged = coco.read_detections(predictions, truth)
        rows, missing = coco.score_samples([item for group in items.values() for item in group], truth, detections)
        problems = [*damaged, *missing]
        known = {"mAP": 100 * coco.mean_average_precision(truth, detections)} | figures(rows)
    else:
        folder = "anno_0/{}" if data.layout == "davis" else "{}"
        if not any(predictions.holds(folder.format(video)) for video in items):
            example = folder.format(next(iter(items))) + ("" if data.layout == "davis" else "/<expression>")
            raise UserError(f"{pred}: holds no video of this split; files such as {example}/<frame>.png are needed")
        scored = list(parts)
        rows = [row for part, _ in scored for row in part]
        problems = [problem for _, part in scored for problem in part]
        known = figures(rows)
    return Scores(split, tuple(rows), known, intervals(rows), tuple(problems))


def _read_once(split: Split) -> None:
    """Read a mask, as a split may index its file of masks at the first one: once, not in every process."""
    item = next((item for item in split.expressions if item.annotations), None)
    if item is not None:
        position = item.scored[0] if item.scored else 0
        with contextlib.suppress(UserError):  # which is told in its turn
            split.masks(item.video, item.annotations[:1], [position], frame_size(split, item.video, position))


def _job(layout: str, pred: Path, split: Split, items: Items) -> Job:
    """What is done with a video. Each process makes it anew, as an open file cannot be shared."""
    if layout == "coco":
        return lambda video: coco.truths(split, video, items[video])
    predictions = Predictions(pred, TOPS.get(layout, ""))
    score = score_objects if layout == "davis" else score_expressions
    return lambda video: score(split, predictions, video, items[video])


def _map(make_job: Callable[[], Job], videos: Mapping[str, Any], workers: int) -> Iterator[Any]:
    """The job's result for every video, in their order; with more than one worker in processes of their own."""
    workers = min(workers, len(videos))
    if workers == 1:
        yield from track(map(make_job(), videos), "scoring", total=len(videos))
        return
    try:
        with worker_pool(workers, _start, (make_job,)) as pool:
            yield from track(pool.map(_run, videos), "scoring", total=len(videos))
    except BrokenProcessPool:
        raise UserError("a scoring process died, perhaps for want of memory; take fewer --workers") from None


_own_job: Job | None = None  # of this process


def _start(make_job: Callable[[], Job]) -> None:
    global _own_job
    import cv2

    cv2.setNumThreads(1)
    _own_job = make_job()


def _run(video: str) -> Any:
    assert _own_job is not None
    return _own_job(video)
