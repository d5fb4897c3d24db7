"""From rows to figures: ratios of sums, and how far they may be off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dshmp.data.base import Split
from dshmp.evaluation.predictions import Problem
from dshmp.evaluation.protocols import SampleScore

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Scores:
    """All rows of a split in the split's order, figures over them in per cent, and what stood in the way."""

    split: Split
    rows: tuple[SampleScore, ...]
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    problems: tuple[Problem, ...]

    @property
    def damaged(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.kind == "damaged"]


def figures(rows: Sequence[SampleScore]) -> dict[str, float]:
    """Each figure over all rows that have it, per cent."""
    return {name: float(100 * n.sum() / d.sum()) for name, (n, d) in _sums(rows).items()}


def by_subset(
    rows: Sequence[SampleScore], names: Callable[[SampleScore], Sequence[str]] = lambda row: row.subsets
) -> dict[str, dict[str, float]]:
    """Figures and the number of expressions of each named subset, in the order in which they occur."""
    groups: dict[str, list[SampleScore]] = {}
    for row in rows:
        for name in names(row):
            groups.setdefault(name, []).append(row)
    return {name: {"expressions": len(group), **figures(group)} for name, group in groups.items()}


def intervals(rows: Sequence[SampleScore], seed: int = SEED) -> dict[str, tuple[float, float]]:
    """Bootstrap percentile intervals of each figure at `LEVEL`, per cent.

    Videos are drawn with replacement, not expressions: those of one video are about the same pixels. Draws in which
    a figure is not defined are left out of its interval.
    """
    videos = len({row.video for row in rows})
    rng = np.random.default_rng(seed)
    # how often each video is drawn: (RESAMPLES, V)
    drawn = rng.multinomial(videos, np.full(videos, 1 / videos), RESAMPLES).astype(np.float64)
    tails = [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)]
    found = {}
    for name, (n, d) in _sums(rows).items():
        above, below = drawn @ n, drawn @ d
        low, high = np.percentile(100 * above[below > 0] / below[below > 0], tails)
        found[name] = (float(low), float(high))
    return found


def _sums(rows: Sequence[SampleScore]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Figure -> numerators and denominators, both (V,), summed per video; undefined figures are left out."""
    number = {video: v for v, video in enumerate(dict.fromkeys(row.video for row in rows))}
    names = dict.fromkeys(name for row in rows for name in row.terms)
    sums = {name: np.zeros((2, len(number))) for name in names}
    for row in rows:
        for name, term in row.terms.items():
            sums[name][:, number[row.video]] += term
    return {name: (n, d) for name, (n, d) in sums.items() if d.sum() > 0}
