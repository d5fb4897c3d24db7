"""What a task is to the training loop, and what tasks share.

Which items a step sees is a function of (seed, step), what is drawn for a sample of (seed, step, place in the step):
neither depends on where a run was stopped, nor on which process learns from a sample together with which others.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dshmp.common.errors import UserError
from dshmp.data.base import Split
from dshmp.data.registry import open_split
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import TextTokenizer
from dshmp.training.contrastive import Contrast, MemoryBank, TargetGroups
from dshmp.training.losses import Counts, SetCriterion
from dshmp.training.recipe import Recipe
from dshmp.training.video_losses import VideoCriterion

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The samples of a step that a process learns from, and how many of them at once; by default all."""

    rank: int = 0
    processes: int = 1
    at_once: int | None = None

    def places(self, samples: int) -> range:
        return range(samples * self.rank // self.processes, samples * (self.rank + 1) // self.processes)

    def parts(self, items: Sequence[T]) -> list[Sequence[T]]:
        size = self.at_once or max(len(items), 1)
        return [items[i : i + size] for i in range(0, len(items), size)]

    def of(self, items: Sequence[T]) -> list[Sequence[T]]:
        """The process's part of a step's items, in parts that it takes at once."""
        own = self.places(len(items))
        return self.parts(items[own.start : own.stop])


ALL = Share()


def sample_generator(seed: int, step: int, place: int) -> np.random.Generator:
    return np.random.default_rng([seed, step, 1 + place])


def torch_generators(seeds: Sequence[tuple[int, ...]], device: torch.device) -> list[torch.Generator]:
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

    def __call__(self, step: int) -> NDArray[np.int64]:
        epoch, place = divmod(step, self.per_epoch)
        rng = np.random.default_rng([self.seed, 7, epoch])
        shuffled = [rng.permutation(group) for group in self.groups]
        batches = [group[i : i + self.batch] for group in shuffled for i in range(0, len(group), self.batch)]
        chosen: NDArray[np.int64] = batches[rng.permutation(len(batches))[place]]
        return chosen


@dataclass(frozen=True)
class Metrics:
    values: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # (H, W, 3) RGB by name


class Task(ABC):
    contrast: Contrast | None = None  # the memory bank, where there is one
    modules: nn.ModuleDict  # what is learned or kept beside the model: in checkpoints, not in the model that is saved

    def __init__(self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, splits: Mapping[str, Split]) -> None:
        self.recipe, self.model, self.tokenizer, self.splits = recipe, model, tokenizer, splits
        self.held_out: Mapping[str, Split] = {}
        weights = recipe.weights
        self.sets = SetCriterion(recipe.points, (weights.label, weights.mask, weights.dice), recipe.no_object)
        self.setup()

    @abstractmethod
    def setup(self) -> None:
        """Choose the parameters that learn. Raises UserError where the task cannot learn this model or these data."""

    def prepare(self, cache: Path) -> None:
        """Make what is kept in files and takes a while: by default, parse the sentences."""
        splits = [*self.splits.values(), *self.held_out.values()]
        self.tokenizer.keep((item.text for split in splits for item in split.expressions), cache)

    @abstractmethod
    def batches(self, step: int, share: Share = ALL) -> Sequence[Any]:
        """A process's part of a step's data, in parts, whose `names` tell their samples; called in other threads."""

    @abstractmethod
    def counts(self, batch: Any, step: int) -> Counts:
        """What this batch adds to the divisors of the step's losses."""

    @abstractmethod
    def losses(self, batch: Any, step: int, counts: Counts) -> dict[str, Tensor]:
        """Weighted losses, whose sum is minimised, divided by the counts of the whole step."""

    def validate(self) -> Metrics:
        return Metrics()

    def one_split(self, splits: Mapping[str, Split], objects: bool = True) -> Split:
        """The one split to learn from, or for validation; `objects`: all those of its videos must be listed."""
        task = self.recipe.task
        if len(splits) > 1:
            raise UserError(f"task {task} learns from one data set, not from {', '.join(splits)}")
        (split,) = splits.values()
        if objects and not all(video.objects for video in split.videos.values()):
            fault = "does not list all objects of its videos, as a synthetic data set does"
            raise UserError(f"{split.folder}: {fault}, which task {task} needs; train task: whole on it")
        return split

    def video_criterion(self) -> VideoCriterion:
        """With a memory bank for the targets of the splits."""
        recipe, config = self.recipe, self.model.config
        rows, groups = target_groups(self.splits)
        bank = MemoryBank(len(groups.video), config.motion.contrast_size, recipe.run.bank == "host")
        numbers = recipe.negatives, recipe.contrast_start, recipe.bank_delta, recipe.temperature
        self.contrast = Contrast(bank, rows, groups, *numbers)
        return VideoCriterion(self.sets, recipe.weights, self.contrast, config)


def open_splits(recipe: Recipe, held_out: bool = False) -> dict[str, Split]:
    """The splits to learn from, or those for validation where the recipe names any, by the data sets' names."""
    found = {}
    for name, source in recipe.data.items():
        if part := source.validation if held_out else source.split:
            found[name] = split = open_split(name, Path(source.root), part)
            if not split.has_truth:
                raise UserError(f"{split.folder}: its masks are not public; name another split to learn from or score")
    return found


def target_groups(splits: Mapping[str, Split]) -> tuple[Tensor, TargetGroups]:
    """The memory bank's row of every sentence, those of all splits in turn, and where each row comes from."""
    videos: dict[tuple[str, str], int] = {}
    categories: dict[str | None, int] = {None: -1}
    known: dict[tuple[str, Any], int] = {}
    rows, places = [], []
    for name, item in ((name, item) for name, split in splits.items() for item in split.expressions):
        if (name, item.target) not in known:
            video = videos.setdefault((name, item.video), len(videos))
            places.append((video, categories.setdefault(item.category, len(categories) - 1)))
        rows.append(known.setdefault((name, item.target), len(known)))
    return torch.tensor(rows), TargetGroups(*torch.tensor(places).T)
