"""`dshmp score`: predictions on disk against a split's annotation, by the data set's own protocol."""

import contextlib
import gc
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from dshmp.data.base import Expression, Split, by_video, frame_size
from dshmp.data.registry import Dataset, dataset
from dshmp.errors import UserError
from dshmp.evaluation import coco, report
from dshmp.evaluation.figures import Scores, figures, intervals
from dshmp.evaluation.predictions import TOPS, Predictions
from dshmp.evaluation.protocols import SCORERS, VideoScores
from dshmp.files import check_owned, output_folder
from dshmp.processes import worker_pool
from dshmp.progress import track

log = logging.getLogger(__name__)
T = TypeVar("T")
Items = Mapping[str, Sequence[Expression]]


def score_split(data: Dataset, root: Path, split_name: str, pred: Path, workers: int = 1) -> Scores:
    """Score all expressions of a split, video by video in `workers` processes; their number changes no figure.

    Raises UserError where the split's masks are not public, the predictions are of something else, or a process dies.
    """
    split = data.open(root, split_name)
    if not split.has_truth:
        raise UserError(f"{split.folder}: its masks are not public, so nothing can be scored; name another split")
    predictions = Predictions(pred, TOPS.get(data.layout, ""))
    items = by_video(split)
    _check(split, items)
    if data.layout == "coco":
        truth: coco.Truths = {}
        for part in _each(_Work(_truths, split, items), workers):
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
        parts = list(_each(_Work(partial(_scorer, data.layout, pred), split, items), workers))
        rows = [row for part in parts for row in part.rows]
        problems = [problem for part in parts for problem in part.problems]
        known = figures(rows)
    return Scores(split, tuple(rows), known, intervals(rows), tuple(problems))


def _check(split: Split, items: Items) -> None:
    """Raises UserError where a split's files say what no figure can be made of."""
    for video, group in items.items():
        if not split.videos[video].frames:
            raise UserError(f"{split.folder}: video {video} has no frames; check the data set with `dshmp data check`")
        for item in group:
            names: Any = item.extra.get("subsets", [])
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                raise UserError(f"{split.folder}: the subsets of {video}, expression {item.id} must be a list of names")


# Every video is a job of its own; answers come in the order of the videos.

Job = Callable[[Split, str, Sequence[Expression]], T]


def _truths() -> Job[coco.Truths]:
    return coco.truths


def _scorer(layout: str, pred: Path) -> Job[VideoScores]:
    predictions = Predictions(pred, TOPS.get(layout, ""))

    def score(split: Split, video: str, items: Sequence[Expression]) -> VideoScores:
        return SCORERS[layout](split, predictions, video, items)

    return score


@dataclass(frozen=True)
class _Work(Generic[T]):
    """What is done with every video. Each process makes the job anew, as an open file cannot be shared."""

    make: Callable[[], Job[T]]
    split: Split
    items: Items

    def results(self) -> Iterator[T]:
        job = self.make()
        for video, group in self.items.items():
            yield job(self.split, video, group)


def _each(work: _Work[T], workers: int) -> Iterator[T]:
    """The job's result for every video; with more than one worker in processes of their own."""
    workers = min(workers, len(work.items))
    if workers == 1:
        yield from track(work.results(), "scoring", total=len(work.items))
        return
    _read_once(work)
    # torch has threads, and perhaps a GPU, that do not outlive a fork
    try:
        with worker_pool(workers, _start, (work,), fork="torch" not in sys.modules) as pool:
            waiting = iter(work.items)
            # processes are forked here, before the progress bar starts a thread
            running: deque[Future[T]] = deque(pool.submit(_run, video) for video in islice(waiting, 2 * workers))

            def results() -> Iterator[T]:
                while running:
                    yield running.popleft().result()
                    running.extend(pool.submit(_run, video) for video in islice(waiting, 1))

            yield from track(results(), "scoring", total=len(work.items))
    except BrokenProcessPool:
        raise UserError(
            "a scoring process died, perhaps for want of memory; nothing was written: take fewer --workers"
        ) from None


def _read_once(work: _Work[T]) -> None:
    """Read a mask, as a split may index its file of masks at the first one: once, not in every process."""
    first = next((item for group in work.items.values() for item in group if item.annotations), None)
    if first is not None:
        position = first.scored[0] if first.scored else 0
        with contextlib.suppress(UserError):  # which is told in its turn
            size = frame_size(work.split, first.video, position)
            work.split.masks(first.video, first.annotations[:1], [position], size)


_here: tuple[_Work[Any], Job[Any]] | None = None


def _start(work: _Work[Any]) -> None:
    global _here
    import cv2

    gc.freeze()  # what is shared stays so: collecting garbage would write to all of it
    cv2.setNumThreads(1)
    _here = work, work.make()


def _run(video: str) -> Any:
    assert _here is not None
    work, job = _here
    return job(work.split, video, work.items[video])


def run(
    name: str,
    root: Path,
    split_name: str,
    pred: Path,
    out: Path | None = None,
    workers: int = 1,
    compare: Path | None = None,
    card: Path | None = None,
) -> Scores:
    """Score, print the table to stdout, and write results.json, expressions.csv and videos.csv into `out` if given.

    `compare`: a results.json whose figures stand beside; where the two are not comparable, a warning says why.
    `card`: the folder of the model that predicted, whose card takes the figures.
    """
    other = report.read_results(compare) if compare else None
    if out is not None:
        out = output_folder(out)
        check_owned(out, report.FILES)
    facts = report.read_facts(pred)
    if card is not None:
        from dshmp.evaluation.card import check, fill

        card = check(card, pred, facts)
    data = dataset(name)
    scores = score_split(data, root, split_name, pred, workers)
    results = report.document(scores, name, split_name, pred, facts)
    report.tell(scores, data.layout)
    report.print_table(results, other, str(compare))
    for difference in report.differences(results, other) if other else ():
        log.warning("not comparable with %s: %s", compare, difference)
    if out is not None:
        report.write(out, scores, results)
    if card is not None:
        fill(card, scores, name, root, split_name, facts)
    return scores
