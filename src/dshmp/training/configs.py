"""`dshmp configs`: which recipes there are, what of the paper each reproduces, and what it needs of a GPU."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from dshmp.checkpoint import empty_model
from dshmp.training.recipe import About, Recipe, recipes

# The one published fact on time: the authors' training on MeViS takes about 17 hours on 8 RTX 3090. The clips that it
# sees, and the operations of the forward pass of one (`about.tflop` of the recipe paper/mevis_release).
GPU_HOURS, CLIPS, TFLOP = 8 * 17, 55_000 * 8, 1.79
CAPTION = """GB: estimate for each GPU in float32, weights and AdamW's moments included. GPU hours: estimate for RTX \
3090s, from the authors' 17 hours on 8 of them and the operations of a clip. What comes after a run stands in its \
recipe: about.then."""


@dataclass(frozen=True)
class Needs:
    trained: int  # parameters that learn
    parameters: int
    memory_gb: float | None  # None where `about` does not give what the estimate starts from
    gpu_hours: float | None


def needs(recipe: Recipe) -> Needs:
    """Counted on the meta device, which holds no numbers, and estimated from the recipe's `about`. Raises UserError."""
    model = empty_model(recipe.model, "the recipe's model")
    parameters = sum(each.numel() for each in model.parameters())
    keeps = "perception." if recipe.task == "motion" else "nothing"
    learn = [each for name, each in model.named_parameters() if each.requires_grad and not name.startswith(keeps)]
    trained = sum(each.numel() for each in learn)
    about, run = recipe.about or About(reproduces=""), recipe.run
    memory = hours = None
    if about.memory_gb is not None:  # of the clips learned from at once; weights, gradients and AdamW's two moments
        memory = about.memory_gb * (run.micro_batch or recipe.batch) + 4 * (parameters + 3 * trained) / 1e9
    if about.tflop is not None:
        passes = 4 / 3 if run.checkpointing else 1  # the backward pass costs two forward passes, or one more
        hours = GPU_HOURS * (recipe.steps * recipe.batch / CLIPS) * (passes * about.tflop / TFLOP)
    return Needs(trained, parameters, memory, hours)


def overview(folder: Path) -> Table:
    """The recipes of a folder that say what they are about, a row each. Raises UserError."""
    table = Table(caption=CAPTION, caption_justify="left")
    for name in ("recipe", "reproduces", "paper", "data"):
        table.add_column(name, overflow="fold")
    for name in ("trained", "parameters", "GB", "GPU hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for path, recipe in recipes(folder).items():
        assert recipe.about is not None
        name, found = path.relative_to(folder).with_suffix("").as_posix(), needs(recipe)
        counts = [f"{count / 1e6:.1f} M" for count in (found.trained, found.parameters)]
        costs = [_number(value) for value in (found.memory_gb, found.gpu_hours)]
        data = ", ".join(recipe.data)
        table.add_row(name, recipe.about.reproduces, recipe.about.paper or "", data, *counts, *costs)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.{0 if value >= 1 else 1}f}"
