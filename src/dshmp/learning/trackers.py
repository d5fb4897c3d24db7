"""Where else the curves and pictures of a run go: TensorBoard, Weights & Biases, Trackio.

A run that goes on adds to the same curve. What a killed run recorded after its last checkpoint comes again; TensorBoard
forgets the first time, the others show both.
"""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dshmp.config import to_dict
from dshmp.errors import UserError
from dshmp.files import reason
from dshmp.learning.recipe import Recipe

PROJECT = "dshmp"
"""Name under which the runs stand together."""


class Tracker(Protocol):
    """One of them, for one run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after this step."""

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
