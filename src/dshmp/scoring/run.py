"""`dshmp score`: predictions on disk against a split's annotation, by the data set's own protocol."""

import logging
import multiprocessing
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from dshmp.data.catalogue import Dataset, dataset
from dshmp.data.dataset import Expression, Split
from dshmp.errors import UserError
from dshmp.progress import track
from dshmp.scoring import coco, report
from dshmp.scoring.figures import Scores, figures, intervals
from dshmp.scoring.predictions import Predictions
from dshmp.scoring.protocols import SCORERS, VideoScorer, VideoScores

log = logging.getLogger(__name__)
T = TypeVar("T")


def score_split(data: Dataset, root: Path, split_name: str, pred: Path, workers: int = 1) -> Scores:
    """Score all expressions of a split, video by video in `workers` processes; their number changes no figure.

    Raises UserError where the split's masks are not public, the predictions are of something else, or a process dies.
    """
    opening = partial(data.open, root, split_name)
    split = opening()
    if not split.has_truth:
        raise UserError(f"{split.folder}: its masks are not public, so nothing can be scored; name another split")
    predictions = Predictions(pred)
    items = by_video(split)
    if data.layout == "coco":
        truth: coco.Truths = {}
        for part in _each(coco.truths, opening, items, workers):
            truth |= part
        detections, damaged = coco.read_detections(predictions, truth)
        rows, missing = coco.score_samples([item for group in items.values() for item in group], truth, detections)
        problems = [*damaged, *missing]
        known = {"mAP": 100 * coco.mean_average_precision(truth, detections)} | figures(rows)
    else:
        prefix = "anno_0/" if data.layout == "davis" else ""
        if not any(predictions.holds(prefix + video) for video in items):
            example = f"{prefix}{next(iter(items))}{'' if prefix else '/<expression>'}/<frame>.png"
            raise UserError(f"{pred}: holds no video of this split; files such as {example} are needed")
        parts = list(_each(partial(_score_video, SCORERS[data.layout], pred), opening, items, workers))
        rows = [row for part in parts for row in part.rows]
        problems = [problem for part in parts for problem in part.problems]
        known = figures(rows)
    return Scores(split, tuple(rows), known, intervals(rows), tuple(problems))


def by_video(split: Split) -> dict[str, list[Expression]]:
    """The expressions of each video that has any, in the split's order."""
    found: dict[str, list[Expression]] = defaultdict(list)
    for item in split.expressions:
        found[item.video].append(item)
    return dict(found)


# Every video is a job of its own; answers come in the order of the videos.

Job = Callable[[Split, str, Sequence[Expression]], T]


def _score_video(scorer: VideoScorer, pred: Path, split: Split, video: str, items: Sequence[Expression]) -> VideoScores:
    return scorer(split, _opened(pred), video, items)


_opened = lru_cache(maxsize=1)(Predictions)  # a zip file's list of names is read once per process


def _each(job: Job[T], opening: Callable[[], Split], items: dict[str, list[Expression]], workers: int) -> Iterator[T]:
    """job(split, video, expressions) for every video; with more than one worker in processes of their own."""
    return track(_results(job, opening, items, workers), "scoring", total=len(items))


def _results(
    job: Job[T], opening: Callable[[], Split], items: dict[str, list[Expression]], workers: int
) -> Iterator[T]:
    workers = min(workers, len(items))
    if workers == 1:
        split = opening()
        for video, group in items.items():
            yield job(split, video, group)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(opening,))
    try:
        waiting = iter(items.items())
        running: deque[Future[T]] = deque()
        while True:
            for video, group in islice(waiting, 2 * workers - len(running)):
                running.append(pool.submit(_run, job, video, group))
            if not running:
                return
            yield running.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a scoring process died, perhaps for want of memory; nothing was written: take fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_split: Split | None = None


def _start(opening: Callable[[], Split]) -> None:
    global _split
    import cv2

    cv2.setNumThreads(1)
    _split = opening()


def _run(job: Job[T], video: str, items: Sequence[Expression]) -> T:
    assert _split is not None
    return job(_split, video, items)


def run(
    name: str,
    root: Path,
    split_name: str,
    pred: Path,
    out: Path | None = None,
    workers: int = 1,
    compare: Path | None = None,
) -> Scores:
    """Score, print the table to stdout, and write results.json, expressions.csv and videos.csv into `out` if given.

    `compare`: a results.json whose figures stand beside; where the two are not comparable, a warning says why.
    """
    other = report.read_results(compare) if compare else None
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the results")
    data = dataset(name)
    scores = score_split(data, root, split_name, pred, workers)
    results = report.document(scores, name, split_name, pred)
    if out is not None:
        report.write(out, scores, results)
    report.tell(scores, data.layout)
    report.print_table(results, other, str(compare))
    for difference in report.differences(results, other) if other else ():
        log.warning("not comparable with %s: %s", compare, difference)
    return scores
