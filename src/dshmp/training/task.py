"""What a task is to the training loop, and what tasks share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dshmp.data.base import Split
from dshmp.data.registry import open_split
from dshmp.errors import UserError
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import TextTokenizer
from dshmp.training.contrastive import Contrast
from dshmp.training.losses import Counts, SetCriterion
from dshmp.training.recipe import Recipe
from dshmp.training.sampling import ALL, Share
from dshmp.training.targets import target_groups
from dshmp.training.video_losses import VideoCriterion


@dataclass(frozen=True)
class Metrics:
    """What is measured on held-out data."""

    values: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """(H, W, 3) RGB by name."""


class Task(ABC):
    """What is learned of a model from which data. A step's data are a function of the recipe and the step alone.

    The constructor chooses the parameters that learn, and raises UserError where the task cannot learn this model or
    from these data.
    """

    counted: ClassVar[tuple[str, ...]]
    """Names of `counts`."""
    contrast: Contrast | None = None
    """The memory bank, where there is one."""
    modules: nn.ModuleDict
    """What is learned or kept beside the model: in checkpoints, not in the model that is saved."""

    def __init__(self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, splits: Mapping[str, Split]) -> None:
        self.recipe, self.model, self.tokenizer = recipe, model, tokenizer
        self.splits = list(splits.values())

    def prepare(self, cache: Path) -> None:  # noqa: B027
        """Make what is kept in files and takes a while: parsed sentences, object tokens."""

    @abstractmethod
    def batches(self, step: int, share: Share = ALL) -> Sequence[Any]:
        """A process's part of a step's data, in as many batches as it is learned in; called in other threads."""

    @abstractmethod
    def names(self, batch: Any) -> list[str]:
        """Its samples, for messages."""

    @abstractmethod
    def counts(self, batch: Any, step: int) -> Counts:
        """What this batch adds to the divisors of the step's losses."""

    @abstractmethod
    def losses(self, batch: Any, step: int, counts: Counts) -> dict[str, Tensor]:
        """Weighted losses, whose sum is minimised, divided by the counts of the whole step."""

    def validate(self) -> Metrics:
        """Metrics and pictures of held-out data; none where losses alone are recorded."""
        return Metrics()

    def only_split(self) -> Split:
        """Raises UserError where there are several."""
        if len(self.splits) > 1:
            raise UserError(f"task {self.recipe.task} learns from one data set, not from {', '.join(self.recipe.data)}")
        return self.splits[0]

    def check_objects(self, split: Split) -> None:
        """Raises UserError unless all objects of the videos are listed."""
        if not all(video.objects for video in split.videos.values()):
            raise UserError(
                f"{split.folder}: does not list all objects of its videos, as a synthetic data set does, which task "
                f"{self.recipe.task} needs; train task: whole on it"
            )

    def keep_sentences(self, splits: Sequence[Split], cache: Path) -> None:
        """Parse the sentences once."""
        self.tokenizer.keep((item.text for split in splits for item in split.expressions), cache)


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


def set_criterion(recipe: Recipe) -> SetCriterion:
    """The set losses with the recipe's numbers."""
    weights = recipe.weights
    return SetCriterion(recipe.points, (weights.label, weights.mask, weights.dice), recipe.no_object)


def video_criterion(recipe: Recipe, model: DsHmp, splits: Mapping[str, Split]) -> VideoCriterion:
    """The losses of the video level with the recipe's numbers, and a memory bank for the targets of the splits."""
    config = model.config
    contrast = Contrast(
        *target_groups(splits),
        config.motion.contrast_size,
        negatives=recipe.negatives,
        start=recipe.contrast_start,
        delta=recipe.bank_delta,
        temperature=recipe.temperature,
        host=recipe.run.bank == "host",
    )
    queries = config.frame_decoder.queries, config.motion.queries
    return VideoCriterion(set_criterion(recipe), recipe.weights, contrast, *queries)
