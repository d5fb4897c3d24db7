"""What can be seen of a run: a live view on stderr, metrics.jsonl, pictures, trackers, and run.json."""

import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from pydantic import BaseModel
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dshmp import __version__
from dshmp.common.errors import UserError
from dshmp.common.files import atomic_write, reason, regular, save_json, writing
from dshmp.common.revision import revision
from dshmp.config import to_dict
from dshmp.data.base import Text, read_shape
from dshmp.training.recipe import Recipe
from dshmp.training.task import Metrics
from dshmp.video.overlay import save_png

PACKAGES = ("torch", "accelerate", "transformers", "numpy", "spacy")
MEASURED = ("seconds_per_step", "waited", "memory_gib")  # of the machine, not of what is learned


class _Starts(BaseModel):  # run.json
    id: Text
    starts: list[dict[str, Any]]


class RunLogger:
    """Shows and records one run; by the first process alone."""

    def __init__(self, recipe: Recipe, folder: Path, step: int, accelerator: Accelerator) -> None:
        self.recipe, self.folder, self.step, self.accelerator = recipe, folder, step, accelerator
        self.shown: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self.progress = Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.task = self.progress.add_task(recipe.task, total=recipe.steps, completed=step)
        self.live = Live(console=Console(stderr=True), get_renderable=self._view, refresh_per_second=2)

    def __enter__(self) -> Self:
        forget(self.folder / "metrics.jsonl", self.step)
        identity = describe(self.folder / "run.json", self.step)
        start_trackers(self.accelerator, self.recipe, self.folder, self.step, identity)
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()
        if not self.live.console.is_interactive:  # where it leaves its last line open
            self.live.console.print()

    def tick(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Losses and pace of the last steps."""
        self.shown = {"memory_gib": round(peak_memory(), 3), **figures}
        self._write(step, self.shown, "train")

    def validated(self, step: int, figures: Metrics) -> None:
        if figures.values:
            self.validation = figures.values
            self._write(step, figures.values, "held out")
        for name, picture in figures.pictures.items():
            (self.folder / "pictures").mkdir(exist_ok=True)
            with atomic_write(self.folder / "pictures" / f"{name}.png") as part:
                save_png(part, picture)
            for tracker in self.accelerator.trackers:
                if tracker.name == "trackio":  # for which accelerate has no pictures
                    tracker.log({f"held out/{name}": import_module("trackio").Image(picture)}, step=step)
                else:
                    how = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({f"held out/{name}": picture[None]}, step=step, **how)

    def _write(self, step: int, values: Mapping[str, float], group: str) -> None:
        path = self.folder / "metrics.jsonl"
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log({f"{group}/{name}": value for name, value in values.items()}, step)

    def _view(self) -> Group:
        def line(title: str, values: Mapping[str, float]) -> str:
            return f"{title}  " + "  ".join(f"{name} {value:.3f}" for name, value in values.items())

        rows = [line("held out", self.validation)] if self.validation else []
        if shown := self.shown:
            losses = {name: value for name, value in shown.items() if name not in (*MEASURED, "skipped")}
            speed, waited = self.recipe.batch / max(shown["seconds_per_step"], 1e-4), 100 * shown["waited"]
            pace = f"{speed:.2f} a second, {waited:.0f} % waiting for data, {shown['memory_gib']:.2f} GiB"
            pace += f", {shown['skipped']:.0f} steps left out" if "skipped" in shown else ""
            rows = [line(f"loss {sum(losses.values()):.3f}", losses), pace, *rows]
        return Group(self.progress, *rows)


def forget(path: Path, step: int) -> None:
    """Remove what a stopped run recorded after its last checkpoint, as those steps come again, and damaged lines."""
    if os.path.lexists(path):
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        with atomic_write(path) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The figures in a metrics.jsonl, a mapping of numbers a line; damaged lines are left out. Raises UserError."""
    try:
        with open(path, "rb", opener=regular) as file:
            lines = file.readlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); move it away") from None
    rows = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            numbers = isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values())
            rows += [row] if numbers and isinstance(row.get("step"), int) else []
    return rows


def peak_memory() -> float:
    """GiB of the GPU's memory where one is used, of the machine's elsewhere."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset / 2**30)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def describe(path: Path, step: int) -> str:
    """Add to run.json with what the run was started, or went on, at this step; returns the run's id."""
    known = _Starts(id=secrets.token_hex(4), starts=[])
    with suppress(UserError):
        known = read_shape(path, _Starts)
    git = revision()
    start = {
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "packages": {"dshmp": __version__} | {name: version(name) for name in PACKAGES},
        "git": git and {"commit": git.rstrip("+"), "changed": git.endswith("+")},
    }
    save_json(path, {"id": known.id, "starts": [*known.starts, start]})
    return known.id


def start_trackers(accelerator: Accelerator, recipe: Recipe, folder: Path, step: int, identity: str) -> None:
    """Those that the recipe names; TensorBoard's files lie in the run's folder, and W&B's unless WANDB_MODE is online.
    `identity` tells the run from others of the same folder's name. Raises UserError."""
    shared = {"resume": "allow", "config": to_dict(recipe)}
    mode = os.environ.get("WANDB_MODE", "offline")  # online it would wait for a key to be typed
    quiet = {"console": "off"}  # the live view is no record
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": folder.name, "id": identity, "dir": str(folder), "mode": mode, "settings": quiet, **shared},
        "trackio": {"name": f"{folder.name}-{identity}", "embed": False, **shared},
    }
    accelerator.log_with = list(recipe.run.trackers)
    accelerator.project_configuration.logging_dir = str(folder / "tensorboard")
    try:
        with redirect_stdout(sys.stderr):
            accelerator.init_trackers("dshmp", init_kwargs=options)
    except Exception as error:  # each has errors of its own
        accelerator.trackers.clear()
        fault = f"{', '.join(recipe.run.trackers)} cannot begin ({reason(error)})"
        raise UserError(f"trackers: {fault}; install or mend it, or leave it out") from error
