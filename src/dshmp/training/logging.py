"""What can be seen of a run: a live view on stderr, metrics.jsonl, pictures, the recipe's trackers (TensorBoard,
Weights & Biases, Trackio), and run.json with what the run was made with.

A run that goes on adds to the same curve. What a killed run recorded after its last checkpoint comes again; TensorBoard
forgets the first time, the others show both.
"""

import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from dshmp.config import to_dict
from dshmp.errors import UserError
from dshmp.files import atomic_write, reason, save_json
from dshmp.training.recipe import Recipe
from dshmp.video.overlay import save_png

if TYPE_CHECKING:
    from rich.console import RenderableType

PACKAGES = ("dshmp", "torch", "accelerate", "transformers", "numpy", "spacy")

MEASURED = ("seconds_per_step", "waited", "memory_gib")
"""Metrics of the machine, not of what is learned."""


@dataclass(frozen=True)
class Metrics:
    """What a look at the held-out split gives."""

    values: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """(H, W, 3) RGB by name."""


class RunLogger:
    """Shows and records one run; by the first process alone."""

    def __init__(self, recipe: Recipe, folder: Path, step: int) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.recipe, self.folder, self.step = recipe, folder, step
        self.shown: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        self.progress = Progress(*columns)
        self.task = self.progress.add_task(recipe.task, total=recipe.steps, completed=step)
        self.live = Live(console=Console(stderr=True), get_renderable=self._view, refresh_per_second=2)
        self.trackers: list[Tracker] = []

    def __enter__(self) -> Self:
        forget(self.folder / "metrics.jsonl", self.step)
        identity = describe(self.folder / "run.json", self.step)
        self.trackers = open_trackers(self.recipe, self.folder, self.step, identity)
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last view standing."""
        self.live.stop()
        while self.trackers:
            self.trackers.pop().close()

    def tick(self, step: int) -> None:
        """A step is done."""
        self.progress.update(self.task, completed=step)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Losses and pace of the last steps."""
        self.shown = {"memory_gib": round(peak_memory(), 3), **figures}
        self._write(step, self.shown, "train")
        self.tick(step)

    def validated(self, step: int, figures: Metrics) -> None:
        """Metrics and pictures of the held-out split; a picture replaces the one of the same name."""
        if figures.values:
            self.validation = figures.values
            self._write(step, figures.values, "held out")
        for name, picture in figures.pictures.items():
            (self.folder / "pictures").mkdir(exist_ok=True)
            with atomic_write(self.folder / "pictures" / f"{name}.png") as part:
                save_png(part, picture)
            for tracker in self.trackers:
                tracker.show(step, f"held out/{name}", picture)

    def _write(self, step: int, values: Mapping[str, float], group: str) -> None:
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self.trackers:
            tracker.log(step, {f"{group}/{name}": value for name, value in values.items()})

    def _view(self) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table

        losses = {name: value for name, value in self.shown.items() if name not in (*MEASURED, "skipped")}
        table = Table.grid(padding=(0, 2))
        if self.shown:
            table.add_row("loss", f"{sum(losses.values()):.3f}", _line(losses, 3))
            pace = self.shown["seconds_per_step"]
            speed = f"{self.recipe.batch / pace:.2f} a second" if pace else ""
            waited = f"{100 * self.shown['waited']:.0f} % waiting for data"
            memory = f"{self.shown['memory_gib']:.2f} GiB"
            skipped = f", {self.shown['skipped']:.0f} steps left out" if "skipped" in self.shown else ""
            table.add_row("pace", speed, f"{waited}, {memory}{skipped}")
        if self.validation:
            table.add_row("held out", "", _line(self.validation, 2))
        return Group(self.progress, table)


def _line(values: Mapping[str, float], digits: int) -> str:
    return "  ".join(f"{name} {value:.{digits}f}" for name, value in values.items())


def forget(path: Path, step: int) -> None:
    """Remove what a stopped run recorded after its last checkpoint; those steps come again."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]
    with atomic_write(path) as part:
        part.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


def peak_memory() -> float:
    """The most that this process has held, GiB: of a GPU's memory where one is used, of the machine's elsewhere."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        import psutil  # type: ignore[import-untyped]

        return float(psutil.Process().memory_info().peak_wset / 2**30)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def describe(path: Path, step: int) -> str:
    """Add to run.json with what the run was started, or went on, at this step; returns what tells the run from all
    others."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        identity, starts = str(known["id"]), known["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        identity, starts = secrets.token_hex(4), []
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    start = {
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(Path(__file__).parent),
    }
    save_json(path, {"id": identity, "starts": [*starts, start]})
    return identity


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether anything was changed since, where this program runs from a git repository."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # a file that git knows: an installed package may lie in somebody else's repository
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": bool(changed)} if commit else None


PROJECT = "dshmp"
"""Name under which the runs stand together."""


class Tracker(Protocol):
    """One of them, for one run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics after this step."""

    def show(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """A picture (H, W, 3) RGB after this step."""

    def close(self) -> None:
        """There is no more to come."""


def open_trackers(recipe: Recipe, folder: Path, step: int, identity: str) -> list[Tracker]:
    """Those that the recipe names, for a run that begins or goes on after this step.

    `identity` tells the run from others of the same folder's name.

    Raises:
        UserError: one is not installed or refuses to begin.
    """
    modules = {name: _module(name) for name in recipe.trackers}
    opened: list[Tracker] = []
    for name, module in modules.items():
        try:
            with redirect_stdout(sys.stderr):
                opened.append(TRACKERS[name](module, recipe, folder, step, identity))
        except Exception as error:  # each has errors of its own
            for tracker in opened:
                tracker.close()
            raise UserError(f"trackers: {name} cannot begin ({reason(error)}); mend it or leave it out") from error
    return opened


def _module(name: str) -> Any:
    try:
        return import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError:
        raise UserError(f"trackers: {name} is not installed; run pip install {name}, or leave it out") from None


class TensorBoard:
    """Files in the run's folder."""

    def __init__(self, module: Any, recipe: Recipe, folder: Path, step: int, identity: str) -> None:
        self.writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def show(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Files in the run's folder for `wandb sync`, or sent at once where WANDB_MODE is online."""

    def __init__(self, module: Any, recipe: Recipe, folder: Path, step: int, identity: str) -> None:
        self.module = module
        self.run = module.init(
            project=PROJECT,
            name=folder.name,
            id=identity,
            resume="allow",
            config=to_dict(recipe),
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),  # online it would ask for a key, and wait for an answer
            settings=module.Settings(console="off"),  # the live view is no record
        )
        # its own count of steps never goes back, as a run does that goes on from a checkpoint
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "step": step})

    def show(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        self.run.log({name: self.module.Image(picture), "step": step})

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A data base of its own, in TRACKIO_DIR where that is set."""

    def __init__(self, module: Any, recipe: Recipe, folder: Path, step: int, identity: str) -> None:
        self.module = module
        self.run = module.init(
            project=PROJECT, name=f"{folder.name}-{identity}", resume="allow", config=to_dict(recipe), embed=False
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def show(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        self.run.log({name: self.module.Image(picture)}, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self.run.finish()


TRACKERS: dict[str, Callable[[Any, Recipe, Path, int, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}
