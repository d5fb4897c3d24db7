"""Which items a step sees: a function of (seed, step) alone, so that a resumed run sees what an undisturbed one would
have seen. What is drawn for a sample is a function of (seed, step, its place in the step), whichever process learns
from it and together with whichever others."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The samples of a step that a process learns from, and how many of them at once; by default all."""

    rank: int = 0
    processes: int = 1
    at_once: int | None = None

    def places(self, samples: int) -> range:
        """Of so many samples of a step."""
        return range(samples * self.rank // self.processes, samples * (self.rank + 1) // self.processes)

    def parts(self, items: Sequence[T]) -> list[Sequence[T]]:
        """The process's items, as many at once as it takes."""
        size = self.at_once or max(len(items), 1)
        return [items[i : i + size] for i in range(0, len(items), size)]

    def of(self, items: Sequence[T]) -> list[Sequence[T]]:
        """The process's part of a step's items, in parts."""
        own = self.places(len(items))
        return self.parts(items[own.start : own.stop])


ALL = Share()


def sample_generator(seed: int, step: int, place: int) -> np.random.Generator:
    """Random numbers of the sample at this place in a step."""
    return np.random.default_rng([seed, step, 1 + place])


def torch_generators(seeds: Sequence[tuple[int, ...]], device: torch.device) -> list[torch.Generator]:
    """A generator for each sample, on the device, from numbers that tell it from the others."""
    states = [int(np.random.SeedSequence([*seed, 13]).generate_state(1, np.uint32)[0]) for seed in seeds]
    return [torch.Generator(device).manual_seed(state) for state in states]


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
        known = self._epoch  # read once: threads may be in different epochs
        if known is None or known[0] != epoch:
            rng = np.random.default_rng([self.seed, 7, epoch])
            shuffled = [rng.permutation(group) for group in self.groups]
            batches = [group[i : i + self.batch] for group in shuffled for i in range(0, len(group), self.batch)]
            self._epoch = known = epoch, [batches[i] for i in rng.permutation(len(batches))]
        return known[1][place]
