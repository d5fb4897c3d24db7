"""The scores of all finished runs side by side, and how far a difference of rows may be off.

Rows are compared sentence by sentence and seed by seed. Two things vary: what a run drew at random (its seed), and
which videos the held-out split happens to hold, whose sentences are about the same pixels and so no independent ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from dshmp.ablation.rows import Row
from dshmp.ablation.runs import SCORES, Found, Run
from dshmp.common.errors import UserError
from dshmp.config import from_dict
from dshmp.data.base import read_json

# What rows are compared on, per cent: everything, sentences that need motion, the right one of direction pairs, and
# absent targets that are answered with nothing. The data set's other subsets are shown, not compared.
ALL, CRITICAL, PAIRS, ABSENT = "all", "motion-critical", "right of pair", "N-acc"
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval at `LEVEL`: half its width, infinite where one video says nothing of others."""

    mean: float
    half: float

    def __str__(self) -> str:
        """Bold where 0 lies outside the interval."""
        text = f"{self.mean:+.1f} [{self.mean - self.half:+.1f}, {self.mean + self.half:+.1f}]"
        return f"**{text}**" if abs(self.mean) > self.half else text


def estimate(values: NDArray[Any], videos: Sequence[str]) -> Estimate:
    """The mean of paired differences, or of any other contrast of rows, and its Student interval.

    The variance is that of the seeds' means, divided by their number, plus that of the mean over sentences, robust to
    sentences of one video going together, of the values averaged over the seeds. The degrees of freedom are Welch's
    and Satterthwaite's. (The second part still holds some of the first, so the interval is rather too wide.)
    `values` are (S, E), a value per seed and sentence; `videos` the video of each sentence.
    """
    seeds, mean = len(values), float(values.mean())
    parts = [_of_videos(values.mean(0), videos)]
    if seeds > 1:
        parts.append((float(values.mean(1).var(ddof=1)) / seeds, seeds - 1))
    variance = sum(part for part, _ in parts)
    if not 0 < variance < math.inf:
        return Estimate(mean, variance)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return Estimate(mean, float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance))


def _of_videos(values: NDArray[Any], videos: Sequence[str]) -> tuple[float, int]:
    """Variance of the mean of values (E,), with sentences of one video as a cluster, and its degrees of freedom."""
    names, cluster = np.unique(np.asarray(videos), return_inverse=True)
    count = len(names)
    if count == 1:
        return math.inf, 1
    sums = np.bincount(cluster, values - values.mean(), count)
    return float((sums**2).sum()) / len(values) ** 2 * count / (count - 1), count - 1


def spread(values: Sequence[float] | NDArray[Any], form: str) -> str:
    mean = format(np.mean(values), form)
    return f"{mean} ± {format(np.std(values, ddof=1), form)}" if len(values) > 1 else mean


class Results:
    """Of the runs that are finished: those in `runs`, else as they were `recorded`. Raises UserError where a file is
    damaged, or sentences differ."""

    def __init__(
        self, rows: Mapping[str, Row], runs: Sequence[Run], recorded: Mapping[str, Found] | None = None
    ) -> None:
        self.rows = rows
        self.runs = {(run.row, run.seed): run for run in runs}
        self.found: dict[tuple[str, int], Found] = {}
        for key, run in self.runs.items():
            if run.finished:
                self.found[key] = from_dict(Found, read_json(run.folder / SCORES), str(run.folder / SCORES))
            elif run.folder.name in (recorded or {}):
                self.found[key] = (recorded or {})[run.folder.name]
        first = next(iter(self.found.values()), Found("", 0.0, "", ()))
        self.measure, self.sentences = first.measure, first.expressions
        asked = [(each.video, each.id) for each in self.sentences]
        for key, found in self.found.items():
            if [(each.video, each.id) for each in found.expressions] != asked:
                raise UserError(f"{self.runs[key].folder}: was scored on other sentences than the runs beside it")
        every = [{ALL: True, PAIRS: each.right is not None, ABSENT: each.empty is not None} for each in self.sentences]
        names = (ALL, CRITICAL, PAIRS, ABSENT, *sorted({name for each in self.sentences for name in each.subsets}))
        self.places = {
            name: np.flatnonzero(
                [own.get(name, name in each.subsets) for own, each in zip(every, self.sentences, strict=True)]
            )
            for name in dict.fromkeys(names)
        }
        self.places = {name: each for name, each in self.places.items() if len(each)}  # those that the data set has

    @property
    def subsets(self) -> list[str]:
        """What rows are compared on."""
        return [name for name in (ALL, CRITICAL, PAIRS, ABSENT) if name in self.places]

    @property
    def abilities(self) -> list[str]:
        """What else the data set tells apart."""
        return [name for name in self.places if name not in (*self.subsets, "absent", "direction pairs")]

    def run(self, row: str, seed: int) -> Run:
        """A row's run, which may be another row's too."""
        return self.runs[self.rows[row].runs, seed]

    def seeds(self, *rows: str) -> list[int]:
        """Seeds with which all these rows are finished; none where a row is not of this ablation."""
        if not self.rows.keys() >= set(rows):
            return []
        every = dict.fromkeys(seed for _, seed in self.runs)
        return [seed for seed in every if all((self.rows[row].runs, seed) in self.found for row in rows)]

    def trained(self, *rows: str) -> list[int]:
        """Of these seeds those whose models are at hand, and not only what they scored."""
        return [seed for seed in self.seeds(*rows) if all(self.run(row, seed).finished for row in rows)]

    def differs(self, row: str, other: str) -> dict[str, float]:
        """The difference of two rows as weights of rows; none where they are the same runs over this base."""
        return {row: 1.0, other: -1.0} if self.rows[row].runs != self.rows[other].runs else {}

    def values(self, row: str, seeds: Sequence[int], subset: str) -> NDArray[np.float64]:
        """(S, E) scores, per cent, of the sentences of a subset."""
        runs = [self.found[self.rows[row].runs, seed].expressions for seed in seeds]
        tell = {PAIRS: lambda each: 100.0 * bool(each.right), ABSENT: lambda each: 100.0 * bool(each.empty)}.get(
            subset, lambda each: each.score
        )
        return np.array([[tell(each) for each in run] for run in runs], dtype=np.float64)[:, self.places[subset]]

    def contrast(self, weights: Mapping[str, float], seeds: Sequence[int], subset: str) -> Estimate:
        """Of the weighted sum of rows, paired by seed and sentence."""
        total = sum(weight * self.values(row, seeds, subset) for row, weight in weights.items())
        return estimate(np.asarray(total), [self.sentences[i].video for i in self.places[subset]])

    def paper(self, weights: Mapping[str, float]) -> float | None:
        """The same sum of the paper's figures, where it has them all."""
        figures = [(weight, self.rows[row].paper) for row, weight in weights.items()]
        known = [weight * figure for weight, figure in figures if figure is not None]
        return sum(known) if len(known) == len(figures) else None


def average(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """The mean over (without, with) pairs of the differences with minus without, as weights of rows."""
    return {row: sign / len(pairs) for pair in pairs for row, sign in zip(pair, (-1, 1), strict=True)}
