"""The scores of all finished runs side by side: rows, seeds, expressions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dshmp.ablation.rows import Row, Table
from dshmp.ablation.runs import Found, Run, read_scores
from dshmp.ablation.statistics import Estimate, estimate, spread
from dshmp.errors import UserError

ALL, CRITICAL, PAIRS = "all", "motion-critical", "right of pair"
SUBSETS = (ALL, CRITICAL, PAIRS)
"""What rows are compared on: everything, sentences that need motion, and the right one of direction pairs, per cent."""

Values = NDArray[np.float64]


class Results:
    """Of the runs that are finished. Raises UserError where they answered different sentences."""

    def __init__(self, rows: Mapping[str, Row], runs: Sequence[Run]) -> None:
        self.rows = rows
        self.runs = {(run.row, run.seed): run for run in runs}
        self.found: dict[tuple[str, int], Found] = {
            key: read_scores(run) for key, run in self.runs.items() if run.finished
        }
        self.sentences = next(iter(self.found.values())).scores if self.found else ()
        for key, found in self.found.items():
            if [(each.video, each.id) for each in found.scores] != [(each.video, each.id) for each in self.sentences]:
                raise UserError(f"{self.runs[key].folder}: was scored on other sentences than the runs beside it")
        chosen = {
            ALL: [True for _ in self.sentences],
            CRITICAL: [CRITICAL in each.subsets for each in self.sentences],
            PAIRS: [each.right is not None for each in self.sentences],
        }
        self.chosen = {name: np.flatnonzero(flags) for name, flags in chosen.items() if any(flags)}

    @property
    def subsets(self) -> list[str]:
        """Those that the data set has."""
        return list(self.chosen)

    def run(self, row: str, seed: int) -> Run:
        """A row's run, which may be another row's too."""
        return self.runs[self.rows[row].runs, seed]

    def seeds(self, rows: Sequence[str]) -> list[int]:
        """Seeds with which all these rows are finished."""
        every = dict.fromkeys(seed for _, seed in self.runs)
        return [seed for seed in every if all((self.rows[row].runs, seed) in self.found for row in rows)]

    def ran(self, table: Table) -> tuple[Table, list[str]]:
        """The table's rows that have any finished run, and the labels of those that have none."""
        known = {row for row, _ in self.found}
        labels = {row: label for row, label in table.labels.items() if self.rows[row].runs in known}
        return replace(table, labels=labels), [label for row, label in table.labels.items() if row not in labels]

    def values(self, row: str, seeds: Sequence[int], subset: str) -> Values:
        """(S, E) scores, per cent, of the sentences of a subset."""
        found = [self.found[self.rows[row].runs, seed].scores for seed in seeds]
        table = [[each.score if subset != PAIRS else 100.0 * bool(each.right) for each in scores] for scores in found]
        return np.array(table, dtype=np.float64)[:, self.chosen[subset]]

    def level(self, row: str, seeds: Sequence[int], subset: str) -> tuple[float, float]:
        """Mean and standard deviation over the seeds."""
        return spread(self.values(row, seeds, subset))

    def contrast(self, weights: Mapping[str, float], seeds: Sequence[int], subset: str) -> Estimate:
        """Of the sum of rows, each times its weight; paired by seed and sentence."""
        total = sum(weight * self.values(row, seeds, subset) for row, weight in weights.items())
        return estimate(np.asarray(total), [self.sentences[i].video for i in self.chosen[subset]])

    def difference(self, row: str, other: str, seeds: Sequence[int], subset: str) -> Estimate:
        """The row minus the other."""
        return (
            self.contrast({row: 1.0, other: -1.0}, seeds, subset)
            if row != other
            else self.contrast({row: 0.0}, seeds, subset)
        )

    def paper(self, weights: Mapping[str, float]) -> float | None:
        """The same sum of the paper's figures, where it has them all."""
        figures = [(weight, self.rows[row].paper) for row, weight in weights.items()]
        return (
            sum(weight * figure for weight, figure in figures if figure is not None)
            if all(figure is not None for _, figure in figures)
            else None
        )


def average(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """The mean over (without, with) pairs of the differences with minus without, as weights of rows."""
    weights: dict[str, float] = {}
    for without, with_it in pairs:
        weights[with_it] = weights.get(with_it, 0.0) + 1 / len(pairs)
        weights[without] = weights.get(without, 0.0) - 1 / len(pairs)
    return weights
