"""Clips per second and peak memory of training a recipe of stage `whole` on MeViS, the paper's by default (Swin-T), and
where the time goes: waiting for data, forward pass, matching, losses, backward pass, optimiser.

Usage: python benchmarks/train.py [--recipe paper/mevis] [--size 192 320] [--steps 2] [--device cuda]
    [key=value ...]

The weights are random, so the text encoder is not frozen and learns too. The data are clips of a small synthetic data
set, scaled to `--size` (height and width; 360 640 is the paper's). How fast the loader would be by itself, on one
thread, stands beside what is waited for it. A step has one clip; the recipe's keys can be changed: batch=8,
run.micro_batch=1, precision=bfloat16, run.checkpointing=true, augmentation.frames=6,
model.backbone.language_fusion=false ...
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dshmp.common.device import find_device
from dshmp.recipes import find_recipe
from dshmp.synthetic.make import make_synthetic
from dshmp.training.engine import Trainer, processes
from dshmp.training.logging import peak_memory
from dshmp.training.losses import SetCriterion
from dshmp.training.recipe import load_recipe
from dshmp.training.task import open_splits
from dshmp.training.train import start_model
from dshmp.training.video_losses import VideoCriterion
from dshmp.training.whole_task import WholeTask

WARM = 1
"""Steps before the clock starts."""


class Clock:
    """Seconds by part of a step; a part inside another is not counted twice."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.open: list[str] = []
        self.since = 0.0

    def _lap(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self.open:
            self.seconds[self.open[-1]] += now - self.since
        self.since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._lap()
        self.open.append(name)
        try:
            yield
        finally:
            self._lap()
            self.open.pop()

    def wrap(self, place: Any, attribute: str, name: str) -> None:
        """Count a function's time as this part's."""
        plain: Callable[..., Any] = getattr(place, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return plain(*args, **kwargs)

        setattr(place, attribute, timed)


def at_hand(synthetic: Path, size: tuple[int, int], steps: int) -> list[str]:
    """What a recipe is changed to so that it runs here: these data, no published weights, everything from step 0."""
    height, width = size
    return [
        f"data.mevis.root={json.dumps(str(synthetic))}",
        "text_encoder=null",
        "mask2former=null",
        "video_swin=null",
        "model.language.frozen=false",
        f"steps={steps + WARM}",
        "batch=1",
        "warmup=1",
        "contrast_start=0",
        f"augmentation.short_sides=[{min(size)}]",
        f"augmentation.long_side={max(size)}",
        "augmentation.crop=0.0",
        f"model.input.short_side={min(height, width)}",
        f"model.input.long_side={max(height, width)}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("paper/mevis"))
    parser.add_argument("--size", type=int, nargs=2, default=(192, 320))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_synthetic(folder / "synthetic", train=16, valid=1, test=1, version=1, workers=1)
        changes = at_hand(folder / "synthetic", tuple(chosen.size), chosen.steps)
        recipe = load_recipe(find_recipe(chosen.recipe), [*changes, *chosen.overrides])
        torch.manual_seed(recipe.seed)
        splits = open_splits(recipe)
        model, tokenizer = start_model(recipe, splits.values())
        with processes(recipe, find_device(chosen.device)) as accelerator:
            task = WholeTask(recipe, model, tokenizer, splits)
            task.prepare(folder / "cache")
            measure(Trainer(task, folder, accelerator))


def machine(device: torch.device) -> str:
    """What it runs on."""
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        place = f"{torch.get_num_threads()} of {os.cpu_count()} cores ({platform.machine()})"
    return f"{place}, Python {platform.python_version()}, PyTorch {torch.__version__}"


def measure(trainer: Trainer) -> None:
    """Run the recipe's steps and print what they took."""
    recipe, clock = trainer.recipe, Clock(trainer.device)
    clock.wrap(SetCriterion, "match", "matching")
    clock.wrap(SetCriterion, "losses", "losses")
    clock.wrap(VideoCriterion, "losses", "losses")
    clock.wrap(trainer.accelerator, "backward", "backward")
    clock.wrap(trainer.optimizer, "step", "optimiser")
    clock.wrap(trainer.accelerator, "clip_grad_norm_", "optimiser")
    trainer.model.train()
    trainer.task.batches(0, trainer.share)  # which loads the parser
    started = time.perf_counter()
    alone = sum(len(trainer.task.batches(step, trainer.share)) > 0 for step in range(recipe.steps))
    loading = (time.perf_counter() - started) / alone
    waited = 0.0
    for batches, seconds in trainer._batches():
        if trainer.step == WARM:
            clock.seconds.clear()
            waited = 0.0
            if trainer.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
        waited += seconds
        with clock.part("forward"):
            trainer._step(batches)
        trainer.step += 1
    steps = recipe.steps - WARM
    parts = {"data": waited, **clock.seconds}
    total = sum(parts.values()) / steps
    parameters = sum(p.numel() for p in trainer.model.parameters())
    _, frames, _, height, width = batches[0].images.shape
    print(
        f"{parameters / 1e6:.1f} M parameters; a step has {recipe.batch} clips of {frames} frames, the last one of "
        f"{width}x{height}; {recipe.precision} on {machine(trainer.device)}"
    )
    print(f"{recipe.batch / total:8.3f} clips a second")
    print(f"{peak_memory():8.2f} GiB at most")
    for name, seconds in parts.items():
        print(f"{seconds / steps:8.3f} s {100 * seconds / steps / total:5.1f} %  {name}")
    print(
        f"{recipe.batch / loading:8.3f} clips a second from one loading thread by itself; "
        f"training has {recipe.run.workers}"
    )
    print(json.dumps({name: round(seconds / steps, 4) for name, seconds in parts.items()}))


if __name__ == "__main__":
    main()
