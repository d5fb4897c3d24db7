"""What a task is to the training loop, and what tasks share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dshmp.data.base import Split, target_rows
from dshmp.data.registry import open_split
from dshmp.errors import UserError
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import TextTokenizer
from dshmp.training.contrastive import Contrast, MemoryBank, TargetGroups
from dshmp.training.losses import Counts, SetCriterion
from dshmp.training.recipe import Recipe
from dshmp.training.sampling import ALL, Share
from dshmp.training.video_losses import VideoCriterion


@dataclass(frozen=True)
class Metrics:
    """What is measured on held-out data."""

    values: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # (H, W, 3) RGB by name


class Task(ABC):
    """What is learned of a model from which data. A step's data are a function of the recipe and the step alone."""

    counted: ClassVar[tuple[str, ...]]
    """Names of `counts`."""
    contrast: Contrast | None = None
    """The memory bank, where there is one."""
    modules: nn.ModuleDict
    """What is learned or kept beside the model: in checkpoints, not in the model that is saved."""

    def __init__(self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, splits: Mapping[str, Split]) -> None:
        self.recipe, self.model, self.tokenizer, self.splits = recipe, model, tokenizer, splits
        self.setup()

    @abstractmethod
    def setup(self) -> None:
        """Choose the parameters that learn. Raises UserError where the task cannot learn this model or these data."""

    def prepare(self, cache: Path) -> None:  # noqa: B027
        """Make what is kept in files and takes a while: parsed sentences, object tokens."""

    @abstractmethod
    def batches(self, step: int, share: Share = ALL) -> Sequence[Any]:
        """A process's part of a step's data, in as many batches as it is learned in, whose `names` tell their samples;
        called in other threads."""

    @abstractmethod
    def counts(self, batch: Any, step: int) -> Counts:
        """What this batch adds to the divisors of the step's losses."""

    @abstractmethod
    def losses(self, batch: Any, step: int, counts: Counts) -> dict[str, Tensor]:
        """Weighted losses, whose sum is minimised, divided by the counts of the whole step."""

    def validate(self) -> Metrics:
        """Metrics and pictures of held-out data; none where losses alone are recorded."""
        return Metrics()

    def one_split(self, objects: bool = True, held_out: bool = False) -> Split:
        """The one split to learn from, or that for validation; `objects`: all those of its videos must be listed.

        Raises UserError.
        """
        task, splits = self.recipe.task, self.splits
        if len(splits) > 1:
            raise UserError(f"task {task} learns from one data set, not from {', '.join(splits)}")
        if held_out and not (splits := open_splits(self.recipe, held_out=True)):
            raise UserError(f"task {task} needs a held-out split: name it, such as data.mevis.validation=valid_u")
        (split,) = splits.values()
        if objects and not all(video.objects for video in split.videos.values()):
            raise UserError(
                f"{split.folder}: does not list all objects of its videos, as a synthetic data set does, which task "
                f"{task} needs; train task: whole on it"
            )
        return split

    def keep_sentences(self, splits: Sequence[Split], cache: Path) -> None:
        """Parse the sentences once."""
        self.tokenizer.keep((item.text for split in splits for item in split.expressions), cache)

    def set_criterion(self) -> SetCriterion:
        """The set losses with the recipe's numbers."""
        weights = self.recipe.weights
        return SetCriterion(self.recipe.points, (weights.label, weights.mask, weights.dice), self.recipe.no_object)

    def video_criterion(self) -> VideoCriterion:
        """The losses of the video level with the recipe's numbers, and a memory bank for the targets of the splits."""
        recipe, config = self.recipe, self.model.config
        rows, groups = target_groups(self.splits)
        bank = MemoryBank(len(groups.video), config.motion.contrast_size, recipe.run.bank == "host")
        numbers = recipe.negatives, recipe.contrast_start, recipe.bank_delta, recipe.temperature
        self.contrast = Contrast(bank, rows, groups, *numbers)
        queries = config.frame_decoder.queries, config.motion.queries
        return VideoCriterion(self.set_criterion(), recipe.weights, self.contrast, *queries)


def open_splits(recipe: Recipe, held_out: bool = False) -> dict[str, Split]:
    """The splits to learn from, or those for validation where the recipe names any, by the data sets' names.

    Raises:
        UserError: one is not there, or its masks are not public.
    """
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
    rows: list[int] = []
    places: list[tuple[int, int]] = []
    for name, split in splits.items():
        first = len(places)
        for item, row in zip(split.expressions, target_rows(split.expressions), strict=True):
            rows.append(first + row)
            if first + row == len(places):
                video = videos.setdefault((name, item.video), len(videos))
                places.append((video, categories.setdefault(item.category, len(categories) - 1)))
    return torch.tensor(rows), TargetGroups(*torch.tensor(places).T)
