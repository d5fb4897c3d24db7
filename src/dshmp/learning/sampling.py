"""Which items a step sees: a function of (seed, step) alone, so a resumed run sees what an undisturbed one would
have seen."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def step_generator(seed: int, step: int) -> np.random.Generator:
    """Random numbers of one step."""
    return np.random.default_rng([seed, step])


class EpochSampler:
    """Batches of indices whose items share a bucket; every item once an epoch, the order new in each."""

    def __init__(self, buckets: Sequence[Any], batch: int, seed: int) -> None:
        groups: dict[Any, list[int]] = defaultdict(list)
        for index, bucket in enumerate(buckets):
            groups[bucket].append(index)
        self.groups = [np.array(groups[key]) for key in sorted(groups)]
        self.batch, self.seed = batch, seed
        self.per_epoch = sum(-(-len(group) // batch) for group in self.groups)
        self._epoch: tuple[int, list[NDArray[np.int64]]] | None = None

    def __call__(self, step: int) -> NDArray[np.int64]:
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([self.seed, 7, epoch])
            shuffled = [rng.permutation(group) for group in self.groups]
            batches = [group[i : i + self.batch] for group in shuffled for i in range(0, len(group), self.batch)]
            self._epoch = epoch, [batches[i] for i in rng.permutation(len(batches))]
        return self._epoch[1][place]
