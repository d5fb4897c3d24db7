"""The learning rate over a run."""

import math

from dshmp.training.recipe import Recipe


def schedule(recipe: Recipe, step: int) -> float:
    """Factor of the learning rate at a step."""
    warm = min(1.0, (step + 1) / max(recipe.warmup, 1))
    done = step / recipe.steps
    if recipe.decay == "cosine":
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
    return warm * (1.0 if done < 40 / 55 else 0.1 if done < 50 / 55 else 0.01)
