"""`dshmp configs`: which recipes there are, what of the paper each reproduces, and what it asks of a GPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dshmp.checkpoint import build_model
from dshmp.training.recipe import About, Recipe, recipes

if TYPE_CHECKING:
    from rich.table import Table

GPU_HOURS = 8 * 17
"""The one published fact on time: the authors' training on MeViS takes about 17 hours on 8 RTX 3090."""
CLIPS = 55_000 * 8
"""Clips that it sees."""
TFLOP = 1.79
"""Of a clip's forward pass there: `about.tflop` of the recipe paper/mevis_release."""


@dataclass(frozen=True)
class Needs:
    """What a recipe asks of a GPU."""

    trained: int
    """Parameters that learn."""
    parameters: int
    """All of them."""
    memory_gb: float | None
    """Estimate for one GPU in float32: what is kept of the clips that are learned at once, weights, gradients, AdamW's
    moments."""
    gpu_hours: float | None
    """Estimate for RTX 3090s: the published hours, times clips, times operations per clip."""


def needs(recipe: Recipe) -> Needs:
    """Counted on the meta device, which holds no numbers, and estimated from the recipe's `about`.

    Raises:
        UserError: the model's numbers do not fit together.
    """
    with torch.device("meta"):
        model = build_model(recipe.model, "the recipe's model")
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    parameters = sum(size for size, _ in sizes)
    trained = sum(size for size, learns in sizes if learns)
    about = recipe.about or About(reproduces="")
    memory = hours = None
    if about.memory_gb is not None:
        memory = about.memory_gb * (recipe.micro_batch or recipe.batch) + 4 * (parameters + 3 * trained) / 1e9
    if about.tflop is not None:
        passes = 4 / 3 if recipe.checkpointing else 1  # the backward pass costs two forward passes, or one more
        hours = GPU_HOURS * (recipe.steps * recipe.batch / CLIPS) * (passes * about.tflop / TFLOP)
    return Needs(trained, parameters, memory, hours)


def overview(folder: Path) -> "Table":
    """The recipes of a folder that say what they are about, a row each. Raises UserError."""
    from rich.table import Table

    table = Table(
        caption=(
            "GB: estimate for each GPU in float32, weights and AdamW's moments included. GPU hours: estimate for RTX "
            "3090s, from the authors' 17 hours on 8 of them and the operations of a clip. "
            "What comes after a run stands in its recipe: about.then."
        ),
        caption_justify="left",
    )
    for name in ("recipe", "reproduces", "paper", "data"):
        table.add_column(name, overflow="fold")
    for name in ("trained", "parameters", "GB", "GPU hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for path, recipe in recipes(folder):
        assert recipe.about is not None
        asked = needs(recipe)
        table.add_row(
            path.relative_to(folder).with_suffix("").as_posix(),
            recipe.about.reproduces,
            recipe.about.paper or "",
            ", ".join(recipe.data),
            _millions(asked.trained),
            _millions(asked.parameters),
            "" if asked.memory_gb is None else f"{asked.memory_gb:.0f}",
            "" if asked.gpu_hours is None else f"{asked.gpu_hours:.0f}",
        )
    return table


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"
