"""The runs of an ablation: a row with a seed each, ordinary training runs in processes of their own, then scored.

A run's folder is that of `dshmp train`, with log.txt and, once it is finished, scores.json beside; its checkpoints are
removed then. A run that was stopped goes on from its last checkpoint.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dshmp.ablation.rows import Row
from dshmp.checkpoint import CONFIG, load_card
from dshmp.data.base import read_json
from dshmp.data.mevis import MevisSplit
from dshmp.device import find_device
from dshmp.errors import UserError
from dshmp.files import locked, save_json
from dshmp.processes import after_parent, spawning
from dshmp.training.recipe import RECIPE, Recipe, check_run_folder, load_recipe, save_recipe

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from rich.console import RenderableType

log = logging.getLogger("dshmp")

SCORES, LOG = "scores.json", "log.txt"


@dataclass(frozen=True)
class Run:
    """A row with a seed."""

    row: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether it is trained and scored."""
        return (self.folder / SCORES).is_file()

    def step(self) -> int:
        """The last step that its record tells of."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, IndexError, ValueError, KeyError):
            return 0


@dataclass(frozen=True)
class Score:
    """How an expression of the held-out split was answered."""

    video: str
    id: str
    subsets: tuple[str, ...]
    score: float
    """Of the run's measure, per cent."""
    right: bool | None
    """Of a direction pair: whether the right one was chosen."""


def plan(rows: Sequence[Row], seeds: int, out: Path) -> list[Run]:
    """All runs, seed by seed, so that an ablation that is stopped has whole seeds; rows that say the same run once.

    Raises UserError where a row cannot be run or compared, or a folder holds a run of another recipe.
    """
    if seeds < 1:
        raise UserError(f"--seeds: must be at least 1, found {seeds}")
    own = [row for row in rows if row.runs == row.name]
    for row in own:
        _check(row)
    runs = []
    for number in range(seeds):
        for row in own:
            recipe = replace(row.recipe, seed=row.recipe.seed + number)
            if recipe.task == "motion" and recipe.cache is None:
                recipe = replace(recipe, cache=str(out / "cache"))
            runs.append(Run(row.name, recipe.seed, recipe, out / "runs" / f"{row.name}-{recipe.seed}"))
    for run in runs:
        check_run_folder(run.folder, run.recipe)
    return runs


def _check(row: Row) -> None:
    recipe = row.recipe
    if recipe.task not in ("motion", "whole"):
        raise UserError(
            f"{row.name}: task {recipe.task} holds nothing that the rows change; give a base of task motion or whole"
        )
    if not any(source.validation for source in recipe.data.values()):
        raise UserError(f"{row.name}: no held-out split to compare on; name one, such as data.mevis.validation=valid_u")


# --- all runs ---


def devices(name: str) -> list[str]:
    """What runs share: all GPUs for `auto` and `cuda` where there are any, a core each on the CPU."""
    device = find_device(name)
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(device)] * ((os.cpu_count() or 1) if device.type == "cpu" else 1)


def run_all(runs: Sequence[Run], places: Sequence[str], jobs: int) -> list[str]:
    """Train and score what is not finished, `jobs` at once, each in a process; tells of those that failed, a line each.

    Stopped by Ctrl-C or SIGTERM the processes save their state first.
    """
    waiting = deque(run for run in runs if not run.finished)
    for run in runs:
        if run.finished:
            _tidy(run.folder)
    if not waiting:
        return []
    if "LOCAL_RANK" in os.environ:
        raise UserError("dshmp ablate starts its own processes; run it without accelerate or torchrun")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    for run in waiting:
        recipe = replace(run.recipe, threads=threads) if places[0] == "cpu" else run.recipe
        save_recipe(run.folder, recipe)
    board = Board(runs)
    active: dict[SpawnProcess, tuple[Run, int]] = {}
    context = spawning()
    try:
        with board.live():
            while waiting or active:
                free = min(set(range(jobs)) - {slot for _, slot in active.values()}, default=None)
                # object tokens and parses are made by the first that needs them, so one run begins at a time
                begun = all((run.folder / "run.json").exists() for run, _ in active.values())
                if waiting and begun and free is not None:
                    run = waiting.popleft()
                    process = context.Process(target=_work, args=(run.folder, places[free % len(places)]))
                    process.start()
                    active[process] = run, free
                board.running = {run.folder for run, _ in active.values()}
                connection.wait([process.sentinel for process in active], timeout=1)
                for process in [each for each in active if not each.is_alive()]:
                    run, _ = active.pop(process)
                    if not run.finished:
                        board.failed[run.folder] = _why(run, process.exitcode)
    except BaseException:
        if active:
            count = len(active)
            how = "1 run saves its state" if count == 1 else f"{count} runs save their state"
            log.warning("stopping; %s, and the same command goes on from there", how)
        raise
    finally:
        _stop(list(active))
    return list(board.failed.values())


def _stop(processes: Sequence["SpawnProcess"]) -> None:
    """By SIGTERM, again and again: a run that has just learned its last step takes none for its scoring."""
    while processes := [process for process in processes if process.is_alive()]:
        for process in processes:
            process.terminate()
        connection.wait([process.sentinel for process in processes], timeout=5)


def _tidy(folder: Path) -> None:
    """Remove what a finished run needs no more."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _why(run: Run, code: int | None) -> str:
    """Why a run failed, in a line."""
    reason = f"killed by signal {-code}, perhaps for want of memory" if code is not None and code < 0 else "failed"
    with contextlib.suppress(OSError):
        lines = (run.folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if code is not None and code > 0:
            reason = last.removeprefix("dshmp: ")
    return f"{run.row}-{run.seed}: {reason} (see {run.folder / LOG})"


class Board:
    """Rows and seeds with the state of each run, on stderr."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.running: set[Path] = set()
        self.failed: dict[Path, str] = {}

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Shown as long as it lasts."""
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), get_renderable=self._view, refresh_per_second=1):
            yield

    def state(self, run: Run) -> str:
        """Of a run, in a word."""
        if run.finished:
            return "done"
        if run.folder in self.failed:
            return "failed"
        if run.folder not in self.running:
            return "waiting"
        step = run.step()
        return "scoring" if step >= run.recipe.steps else f"{step}/{run.recipe.steps}"

    def _view(self) -> "RenderableType":
        from rich.table import Table

        seeds = list(dict.fromkeys(run.seed for run in self.runs))
        states = {(run.row, run.seed): self.state(run) for run in self.runs}
        counts = Counter(states.values())
        table = Table(title=f"{counts['done']} of {len(self.runs)} runs are finished", title_justify="left")
        table.add_column("row")
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right", min_width=9)
        for row in dict.fromkeys(run.row for run in self.runs):
            table.add_row(row, *(states[row, seed] for seed in seeds))
        return table


# --- one run, in a process of its own ---


def _work(folder: Path, device: str) -> None:
    """Train and score the run whose recipe lies in `folder`; what it says goes to its log."""
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
    """Bring the run whose recipe lies in `folder` to its end."""
    from dshmp.training.train import run as train

    recipe = load_recipe(folder / RECIPE)
    if not _trained(folder, recipe):
        train(folder / RECIPE, [], folder, device)
    score = _score_motion if recipe.task == "motion" else _score_whole
    measure, scores = score(recipe, folder, device)
    document = {
        "measure": measure,
        "seconds": round(_seconds(folder, recipe), 1),
        "expressions": [asdict(each) for each in scores],
    }
    save_json(folder / SCORES, document)
    _tidy(folder)


def _trained(folder: Path, recipe: Recipe) -> bool:
    """Whether the model of the last step is there; a run that was scored once has no checkpoints."""
    with contextlib.suppress(UserError):
        return bool(load_card(folder / "model" / CONFIG).recipe.get("trained_steps") == recipe.steps)
    return False


def _score_motion(recipe: Recipe, folder: Path, device: str) -> tuple[str, list[Score]]:
    from dshmp.checkpoint import load_model
    from dshmp.training.cache import TokenCache
    from dshmp.training.motion_task import CachedSplit, sentence_scores

    ((source,), model_and_tokenizer) = recipe.data.values(), load_model(folder)
    model, tokenizer = model_and_tokenizer
    assert source.validation is not None
    assert recipe.cache is not None
    split = MevisSplit(Path(source.root), source.validation)
    tokenizer.keep((item.text for item in split.expressions), Path(recipe.cache))
    held_out = CachedSplit(split, TokenCache.build(model, tokenizer, split, Path(recipe.cache)), tokenizer)
    found = sentence_scores(model.to(find_device(device)), held_out)
    return "IoU on the grid", [
        Score(item.video, item.id, item.subsets, each.iou, each.right)
        for item, each in zip(split.expressions, found, strict=True)
    ]


def _score_whole(recipe: Recipe, folder: Path, device: str) -> tuple[str, list[Score]]:
    from dshmp.evaluation import evaluate
    from dshmp.options import Options

    scores: list[Score] = []
    measure = ""
    looked_at = {name: source for name, source in recipe.data.items() if source.validation}
    for name, source in looked_at.items():
        out = folder / "evaluation" / name
        assert source.validation is not None
        options = Options(model=str(folder), device=device)
        result = evaluate.run(name, Path(source.root), source.validation, out, options, workers=1)
        assert result is not None
        prefix = f"{name}/" if len(looked_at) > 1 else ""
        for row in result.rows:
            figure = "J&F" if "J&F" in row.terms else "mIoU"
            above, below = row.terms[figure]
            right = row.terms.get("right of pair")
            scores.append(
                Score(
                    f"{prefix}{row.video}",
                    row.id,
                    row.subsets,
                    100 * above / below,
                    None if right is None else right[0] > 0,
                )
            )
            measure = measure if figure in measure else " / ".join(filter(None, (measure, figure)))
        shutil.rmtree(out / evaluate.PREDICTIONS)
    return measure, scores


def _seconds(folder: Path, recipe: Recipe) -> float:
    """That training took, without reading and scoring."""
    total, before = 0.0, 0
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "seconds_per_step" in values:
            total += values["seconds_per_step"] * (values["step"] - before)
            before = values["step"]
    return total * recipe.steps / before if before else 0.0


# --- what they found ---


@dataclass(frozen=True)
class Found:
    """The scores of a finished run."""

    measure: str
    seconds: float
    scores: tuple[Score, ...]


def read_scores(run: Run) -> Found:
    """Raises UserError where the file is damaged."""
    path = run.folder / SCORES
    values = read_json(path)
    try:
        scores = tuple(
            Score(item["video"], item["id"], tuple(item["subsets"]), float(item["score"]), item["right"])
            for item in values["expressions"]
        )
        return Found(str(values["measure"]), float(values["seconds"]), scores)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: is no file of scores ({error}); remove it, and the same command scores again"
        ) from None
