"""What a difference of two rows is, and how far it may be off.

Rows are compared sentence by sentence and seed by seed. Two things vary: what a run drew at random (its seed), and
which videos the held-out split happens to hold, whose sentences are about the same pixels and so no independent ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval at `LEVEL`."""

    mean: float
    half: float
    """Half the interval's width; infinite where one video says nothing of others."""
    seeds: int
    """With one, the interval is about videos alone."""
    expressions: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def beyond(self) -> bool:
        """Whether 0 lies outside the interval."""
        return not self.low <= 0 <= self.high


def estimate(values: NDArray[Any], videos: Sequence[str]) -> Estimate:
    """The mean of paired differences, or of any other contrast of rows, and its Student interval.

    The variance is that of the seeds' means, divided by their number, plus that of the mean over sentences, robust to
    sentences of one video going together, of the values averaged over the seeds. The degrees of freedom are Welch's
    and Satterthwaite's. (The second part still holds some of the first, so the interval is rather too wide.)

    Args:
        values: (S, E), a value per seed and sentence.
        videos: the video of each sentence.

    Raises:
        ValueError: no values.
    """
    seeds, expressions = values.shape
    if not values.size:
        raise ValueError(f"no values of {seeds} seeds and {expressions} sentences")
    mean = float(values.mean())
    parts = [_of_videos(values.mean(0), videos)]
    if seeds > 1:
        parts.append((float(values.mean(1).var(ddof=1)) / seeds, seeds - 1))
    variance = sum(part for part, _ in parts)
    if not 0 < variance < math.inf:
        return Estimate(mean, variance, seeds, expressions)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Estimate(mean, half, seeds, expressions)


def _of_videos(values: NDArray[Any], videos: Sequence[str]) -> tuple[float, int]:
    """Variance of the mean of values (E,), with sentences of one video as a cluster, and its degrees of freedom."""
    names, cluster = np.unique(np.asarray(videos), return_inverse=True)
    count = len(names)
    if count == 1:
        return math.inf, 1
    sums = np.bincount(cluster, values - values.mean(), count)
    return float((sums**2).sum()) / len(values) ** 2 * count / (count - 1), count - 1


def spread(values: NDArray[Any]) -> tuple[float, float]:
    """Mean over seeds of the seeds' means of values (S, E), and their standard deviation (NaN of one seed)."""
    means = values.mean(1)
    return float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else math.nan
