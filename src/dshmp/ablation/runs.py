"""The runs of an ablation: a row with a seed each, ordinary training runs in processes of their own, then scored.

A run's folder is that of `dshmp train`, with log.txt and, once it is finished, scores.json beside. A run that was
stopped goes on from its last checkpoint; once it is trained, its checkpoints are removed.

Rows of the motion task are compared at thresholds of their own, each tuned on other videos than it is used on: half of
the videos says it for the other half. So no row gains by a threshold that suits it.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing import connection
from pathlib import Path

import numpy as np
import torch
from rich.progress import TaskID

from dshmp.ablation.rows import Row
from dshmp.checkpoint import CONFIG, load_config, load_model
from dshmp.common.device import find_device
from dshmp.common.errors import UserError, printable
from dshmp.common.files import locked, save_json
from dshmp.common.options import Options
from dshmp.common.processes import QuietProcess, after_parent
from dshmp.common.progress import progress_bars
from dshmp.data.base import read_json
from dshmp.evaluation import score
from dshmp.training.cache import CachedSplit
from dshmp.training.held_out import SentenceScore, sentence_scores
from dshmp.training.logging import read_metrics
from dshmp.training.recipe import RECIPE, Recipe, Source, check_run_folder, load_recipe, save_recipe
from dshmp.training.task import open_splits
from dshmp.training.train import run as train

log = logging.getLogger("dshmp")

SCORES, LOG = "scores.json", "log.txt"
THRESHOLDS = tuple(number / 20 for number in range(1, 20))


@dataclass(frozen=True)
class Run:
    """A row with a seed."""

    row: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def finished(self) -> bool:
        return (self.folder / SCORES).is_file()

    def step(self) -> int:
        with contextlib.suppress(UserError, IndexError):
            return int(read_metrics(self.folder / "metrics.jsonl")[-1]["step"])
        return 0


@dataclass(frozen=True)
class Score:
    """How an expression was answered, per cent, whether the right one of a direction pair was chosen, and whether it
    was answered with nothing (of absent ones)."""

    video: str
    id: str
    subsets: tuple[str, ...]
    score: float
    right: bool | None
    empty: bool | None


@dataclass(frozen=True)
class Found:
    """What the scores.json of a finished run holds; `seconds` of training, without reading and scoring."""

    measure: str
    seconds: float
    machine: str
    expressions: tuple[Score, ...]


def plan(rows: Sequence[Row], out: Path) -> list[Run]:
    """All runs, seed by seed, so that an ablation that is stopped has whole seeds; rows that say the same run once.

    Raises UserError where a row cannot be run or compared, or a folder holds a run of another recipe.
    """
    runs = []
    most = max(row.seeds for row in rows)
    for number, row in product(range(most), [each for each in rows if each.runs == each.name]):
        if number >= row.seeds:
            continue
        recipe = replace(row.recipe, seed=row.recipe.seed + number)
        if recipe.task not in ("motion", "whole"):
            raise UserError(f"{row.name}: task {recipe.task} has nothing that the rows change; use motion or whole")
        if not held_out_sources(recipe):
            raise UserError(f"{row.name}: no held-out split to compare on, such as data.mevis.validation=valid_u")
        if recipe.task == "motion" and recipe.run.cache is None:
            recipe = replace(recipe, run=replace(recipe.run, cache=str(out / "cache")))
        name = f"{Path(row.name).name.removesuffix('.yaml')}-{recipe.seed}"
        runs.append(Run(row.name, recipe.seed, recipe, out / "runs" / name))
    for run in runs:
        check_run_folder(run.folder, run.recipe)
    return runs


def held_out_sources(recipe: Recipe) -> list[tuple[str, str, Source]]:
    """The data that runs are scored on, with their names, which of several stand before those of the videos."""
    sources = {name: source for name, source in recipe.data.items() if source.validation}
    return [(f"{name}/" if len(sources) > 1 else "", name, source) for name, source in sources.items()]


def devices(name: str) -> list[str]:
    """What runs share: all GPUs for `auto` and `cuda` where there are any, a core each on the CPU."""
    device = find_device(name)
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(device)] * ((os.cpu_count() or 1) if device.type == "cpu" else 1)


def shard(runs: Sequence[Run], text: str) -> list[Run]:
    """The part "i/n" of the runs, for a machine of several. Raises UserError."""
    part, _, of = text.partition("/")
    if not (part.isdecimal() and of.isdecimal() and 1 <= int(part) <= int(of)):
        raise UserError(f"--shard: must be i/n, the i-th of n parts, as 1/2, found {text!r}")
    return list(runs)[int(part) - 1 :: int(of)]


def run_all(runs: Sequence[Run], places: Sequence[str], jobs: int) -> list[str]:
    """Train and score what is not finished, `jobs` at once, each in a process; tells of those that failed, a line each.

    Stopped by Ctrl-C or SIGTERM the processes save their state first.
    """
    waiting = deque(run for run in runs if not run.finished)
    if waiting and "LOCAL_RANK" in os.environ:
        raise UserError("dshmp ablate starts its own processes; run it without accelerate or torchrun")
    for run in waiting:
        threads = max(1, (os.cpu_count() or 1) // jobs) if places[0] == "cpu" else run.recipe.run.threads
        save_recipe(run.folder, replace(run.recipe, run=replace(run.recipe.run, threads=threads)))
    failures = []
    active: dict[QuietProcess, tuple[Run, int, TaskID]] = {}
    try:
        with progress_bars() as bars:
            finished = bars.add_task("runs", total=len(runs), completed=len(runs) - len(waiting))
            while waiting or active:
                free = min(set(range(jobs)) - {slot for _, slot, _ in active.values()}, default=None)
                # object tokens and parses are made by the first that needs them, so one run begins at a time
                begun = all((run.folder / "run.json").exists() for run, _, _ in active.values())
                if waiting and begun and free is not None:
                    run = waiting.popleft()
                    process = QuietProcess(target=_work, args=(run.folder, places[free % len(places)]))
                    process.start()
                    active[process] = run, free, bars.add_task(printable(run.folder.name), total=run.recipe.steps)
                connection.wait([process.sentinel for process in active], timeout=1)
                for process, (run, _, bar) in list(active.items()):
                    bars.update(bar, completed=run.step())
                    if not process.is_alive():
                        del active[process]
                        bars.remove_task(bar)
                        bars.advance(finished)
                        if not run.finished:
                            failures.append(_why(run, process.exitcode))
    except BaseException:
        if active:
            how = "1 run saves its state" if len(active) == 1 else f"{len(active)} runs save their state"
            log.warning("stopping; %s, and the same command goes on from there", how)
        raise
    finally:
        _stop(list(active))
    return failures


def _stop(processes: Sequence[QuietProcess]) -> None:
    """By SIGTERM, again and again: a run that has just learned its last step takes none for its scoring."""
    while processes := [process for process in processes if process.is_alive()]:
        for process in processes:
            process.terminate()
        connection.wait([process.sentinel for process in processes], timeout=5)


def _why(run: Run, code: int | None) -> str:
    reason = f"killed by signal {-code}, perhaps for want of memory" if code and code < 0 else "failed"
    with contextlib.suppress(OSError, IndexError):
        if code and code > 0:
            text = (run.folder / LOG).read_text(encoding="utf-8", errors="replace")
            reason = text.rstrip().splitlines()[-1].strip().removeprefix("dshmp: ")
    return f"{run.folder.name}: {reason} (see {run.folder / LOG})"


def _work(folder: Path, device: str) -> None:
    """Train and score the run whose recipe lies in `folder`, in a process of its own; what it says goes to its log."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    after_parent(_terminate)
    with open(folder / LOG, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with locked(folder):  # another one, whose parent was killed, may be at work on it
        if (folder / SCORES).is_file():
            return
        try:
            train_and_score(folder, device)
        except UserError as error:
            print(f"dshmp: {error}", file=sys.stderr)
            sys.exit(2)


def _terminate() -> None:
    """Stop as by SIGTERM: the first one may come before training listens, or while something else swallows it."""
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def train_and_score(folder: Path, device: str) -> None:
    recipe = load_recipe(folder / RECIPE)
    steps = None
    with contextlib.suppress(UserError):
        steps = load_config(folder / "model" / CONFIG).card.recipe.get("trained_steps")
    if steps != recipe.steps:
        train(folder / RECIPE, [], folder, device)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    measure, scores = (_score_motion if recipe.task == "motion" else _score_whole)(recipe, folder, device)
    found = Found(measure, round(_seconds(folder, recipe), 1), _machine(folder), tuple(scores))
    save_json(folder / SCORES, asdict(found))


def _machine(folder: Path) -> str:
    """Machine, versions and commit, as run.json tells; a damaged one says nothing."""
    with contextlib.suppress(UserError, LookupError, TypeError):
        start = read_json(folder / "run.json")["starts"][-1]
        place = ", ".join(start["gpus"]) or f"{start['cpus']} CPU cores, {start['threads']} thread(s) each run"
        versions = ", ".join(f"{name} {each}" for name, each in start["packages"].items() if each)
        git = start.get("git")
        commit = f" Commit: {git['commit'][:12]}{' with changes' * git['changed']}." if git else ""
        return f"Machine: {place}. Versions: {versions}.{commit}"
    return ""


def _score_motion(recipe: Recipe, folder: Path, device: str) -> tuple[str, list[Score]]:
    (split,), cache = open_splits(recipe, held_out=True).values(), Path(str(recipe.run.cache))
    model, tokenizer = load_model(folder)
    tokenizer.keep((item.text for item in split.expressions), cache)
    held_out = CachedSplit.build(model, tokenizer, split, cache)
    found = sentence_scores(model.to(find_device(device)), held_out, THRESHOLDS)
    fitted = cross_fitted(found, [item.video for item in split.expressions])
    scores = [
        Score(item.video, item.id, item.subsets, each.iou, each.right, each.empty if "absent" in item.subsets else None)
        for item, each in zip(split.expressions, fitted, strict=True)
    ]
    return "IoU on the grid", scores


def cross_fitted(scores: Sequence[Sequence[SentenceScore]], videos: Sequence[str]) -> list[SentenceScore]:
    """Of the scores of all sentences at several thresholds, each sentence's at the one that is best, in the mean, for
    the other half of the videos; `videos` the video of each sentence."""
    number = {video: place for place, video in enumerate(dict.fromkeys(videos))}
    side = np.array([number[video] % 2 for video in videos])
    iou = np.array([[each.iou for each in at_one] for at_one in scores])  # (thresholds, sentences)
    best = [int(iou[:, side != own if side.any() else side == own].mean(1).argmax()) for own in sorted(set(side))]
    return [scores[best[own]][place] for place, own in enumerate(side)]


def _score_whole(recipe: Recipe, folder: Path, device: str) -> tuple[str, list[Score]]:
    """With several data sets, their names stand before those of the videos."""
    scores: list[Score] = []
    measures: dict[str, None] = {}
    for prefix, name, source in held_out_sources(recipe):
        out, root, split = folder / "evaluation" / name, Path(source.root), str(source.validation)
        result = score.evaluate(name, root, split, out, Options(model=str(folder), device=device), workers=1)
        assert result is not None
        for row in result.rows:
            figure = "J&F" if "J&F" in row.terms else "mIoU"
            measures[figure] = None
            above, below = row.terms[figure]
            right = bool(row.terms["right of pair"][0]) if "right of pair" in row.terms else None
            empty = bool(row.terms["N-acc"][0]) if "N-acc" in row.terms else None
            scores.append(Score(f"{prefix}{row.video}", row.id, row.subsets, 100 * above / below, right, empty))
        shutil.rmtree(out / score.PREDICTIONS)
    return " / ".join(measures), scores


def _seconds(folder: Path, recipe: Recipe) -> float:
    """Of training, without what came between the steps."""
    total, before = 0.0, 0
    for values in read_metrics(folder / "metrics.jsonl"):
        if "seconds_per_step" in values:
            total += values["seconds_per_step"] * (values["step"] - before)
            before = values["step"]
    return total * recipe.steps / before if before else 0.0
