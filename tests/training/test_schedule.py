"""The learning rate: warmed up, then lowered where the recipe's documentation says."""

from pathlib import Path

import pytest

import tiny
from dshmp.config import from_dict
from dshmp.training.engine import schedule
from dshmp.training.recipe import Recipe


def recipe(steps: int, decay: str = "steps", warmup: int = 100) -> Recipe:
    more = {"steps": steps, "decay": decay, "warmup": warmup, "contrast_start": 0}
    return from_dict(Recipe, tiny.recipe("whole", Path("nowhere")) | more)


@pytest.mark.parametrize(("steps", "first", "second"), [(55_000, 40_000, 50_000), (50_000, 36_364, 45_455)])
def test_two_drops(steps: int, first: int, second: int) -> None:
    """Where the release has them, and in the same parts of the paper's run."""
    factors = [schedule(recipe(steps), step) for step in (first - 1, first, second - 1, second, steps - 1)]
    assert factors == [1.0, 0.1, 0.1, 0.01, 0.01]


def test_warming_up() -> None:
    assert [schedule(recipe(1000, warmup=4), step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule(recipe(1000, warmup=0), 0) == 1.0


def test_cosine() -> None:
    values = [schedule(recipe(1000, "cosine", 0), step) for step in range(0, 1000, 100)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0
    assert schedule(recipe(1000, "cosine", 0), 500) == pytest.approx(0.505)
