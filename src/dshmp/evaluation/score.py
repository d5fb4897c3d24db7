"""`dshmp score` and `evaluate`: predictions against a split's annotation, by the data set's own protocol."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dshmp.common.errors import UserError
from dshmp.common.files import check_owned, destination
from dshmp.common.options import Options
from dshmp.common.processes import worker_pool
from dshmp.common.progress import track
from dshmp.data.base import Expression, Split, by_video, expression_name, mask_size, read_shape, shaped
from dshmp.data.registry import Dataset, dataset
from dshmp.evaluation import coco, report
from dshmp.evaluation.predictions import FACTS, TOPS, Predictions
from dshmp.evaluation.protocols import PROTOCOLS, score_expressions, score_objects
from dshmp.evaluation.report import Scores, figures, intervals

if TYPE_CHECKING:
    from dshmp.common.progress import Progress

log = logging.getLogger(__name__)
PREDICTIONS = "predictions"
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
    as_json: bool = False,
) -> Scores:
    """Score in `workers` processes, all cores by default; print the table, and write `report.FILES` into `out`. With
    `as_json` stdout is what results.json holds, and the table goes to stderr. The figures of `compare`, a results.json,
    stand beside, with a warning where they are not comparable; the card of the model that predicted, in the folder
    `card`, takes the figures."""
    other = read_shape(compare, report.Results).model_dump() if compare else None
    if out is not None:
        out = destination(out, folder=True)
        check_owned(out, report.FILES)
    facts = Predictions(pred).read_json(FACTS)
    if not isinstance(facts, dict | None):
        raise UserError(f"{pred}/predict.json: expected a JSON object at the top")
    facts = facts or {}
    if card is not None:
        card = report.own_card(card, pred, facts)
    data = dataset(name)
    scores = score_split(data, root, split_name, pred, workers or os.cpu_count() or 1)
    results = report.document(scores, name, split_name, pred, facts) | {"protocol": PROTOCOLS[data.layout]}
    report.warn(scores, data.layout)
    report.print_table(results, other, str(compare), stderr=as_json)
    for difference in report.differences(results, other) if other else ():
        log.warning("not comparable with %s: %s", compare, difference)
    if out is not None:
        report.write(out, scores, results)
    if card is not None:
        report.fill_card(card, scores, results, root, data.targets)
    if as_json:
        print(json.dumps(results), flush=True)
    return scores


def evaluate(
    name: str,
    root: Path,
    split_name: str,
    out: Path,
    options: Options,
    workers: int | None = None,
    compare: Path | None = None,
    progress: "Progress | None" = None,
    update_card: bool = False,
    as_json: bool = False,
) -> Scores | None:
    """Predict into `out/predictions`, going on where an earlier run stopped, then score into `out`; with
    `update_card` the model's own card takes the figures. Of several processes the first one scores, and the others
    return None. What can be refused is refused (UserError) before anything is predicted."""
    from dshmp.checkpoint import own_folder
    from dshmp.evaluation import predict

    card = own_folder(options.model) if update_card else None
    if card and options.overrides:
        raise UserError("--update-card: the card is of the model as it is; leave out --set")
    out = destination(out, folder=True)
    check_owned(out, report.FILES)
    _open(dataset(name), root, split_name)
    pred = out / PREDICTIONS
    if predict.run(name, root, split_name, pred, options, zipped=False, progress=progress) is None:
        return None
    return run(name, root, split_name, pred, out, workers, compare, card, as_json)


def score_split(data: Dataset, root: Path, split_name: str, pred: Path, workers: int = 1) -> Scores:
    """Score all expressions of a split, video by video in `workers` processes; their number changes no figure. Raises
    UserError where the split's masks are not public, the predictions are of something else, or a process dies."""
    split = _open(data, root, split_name)
    predictions = Predictions(pred, TOPS.get(data.layout, ""))
    items = by_video(split)
    for item in split.expressions:
        shaped(list[str], item.extra.get("subsets", []), f"{split.folder}: subsets of {expression_name(item)}")
        if not split.videos[item.video].frames:
            raise UserError(f"{split.folder}: video {item.video} has no frames; see `dshmp data check`")
    if workers > 1:  # a split may index its masks at the first one: not in every process
        with contextlib.suppress(UserError, StopIteration):
            item = next(item for item in split.expressions if item.annotations)
            split.masks(item.video, item.annotations[:1], [0], mask_size(split, item.video, item.annotations))
    parts = _map(partial(_job, data.layout, pred, split, items), items, workers)
    if data.layout == "coco":
        truth: coco.Truths = dict(pair for part in parts for pair in part.items())
        detections, damaged = coco.read_detections(predictions, truth, split)
        crowds = {coco.image_id(item) for item in split.expressions if item.extra.get("iscrowd")}
        rows, missing = coco.score_samples([item for group in items.values() for item in group], truth, detections)
        problems = [*damaged, *missing]
        known = {"mAP": 100 * coco.mean_average_precision(truth, detections, crowds)} | figures(rows)
    else:
        top, below = ("anno_0/", "") if data.layout == "davis" else ("", "/<expression>")
        if not any(predictions.holds(top + video) for video in items):
            example = f"{top}{next(iter(items))}{below}/<frame>.png"
            raise UserError(f"{pred}: holds no video of this split; files such as {example} are needed")
        scored = list(parts)
        rows = [row for part, _ in scored for row in part]
        problems = [problem for _, part in scored for problem in part]
        known = figures(rows)
    return Scores(split, tuple(rows), known, intervals(rows), tuple(problems))


def _open(data: Dataset, root: Path, split_name: str) -> Split:
    split = data.open(root, split_name)
    if not split.has_truth:
        raise UserError(f"{split.folder}: its masks are not public, so nothing can be scored; use dshmp predict")
    return split


def _job(layout: str, pred: Path, split: Split, items: Mapping[str, Sequence[Expression]]) -> Job:
    """What is done with a video. Each process makes it anew, as an open file cannot be shared."""
    if layout == "coco":
        return lambda video: coco.truths(split, video, items[video])
    predictions = Predictions(pred, TOPS.get(layout, ""))
    score = score_objects if layout == "davis" else score_expressions
    return lambda video: score(split, predictions, video, items[video])


def _map(make_job: Callable[[], Job], videos: Mapping[str, Any], workers: int) -> Iterator[Any]:
    """The job's result for every video, in their order."""
    workers = min(workers, len(videos))
    if workers == 1:
        yield from track(map(make_job(), videos), "scoring", total=len(videos))
        return
    try:
        with worker_pool(workers, _start, make_job) as pool:
            yield from track(pool.map(_run, videos), "scoring", total=len(videos))
    except BrokenProcessPool:
        raise UserError("a scoring process died, perhaps for want of memory; take fewer --workers") from None


_own_job: Job  # of this process


def _start(make_job: Callable[[], Job]) -> None:
    global _own_job
    import cv2

    cv2.setNumThreads(1)
    _own_job = make_job()


def _run(video: str) -> Any:
    return _own_job(video)
