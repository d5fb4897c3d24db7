"""Losses at video level (section 3.3): set losses, similarity, contrast, and the trajectories' own question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dshmp.data.base import Split, target_rows
from dshmp.model.dshmp import DsHmp
from dshmp.model.motion_decoder import VideoTokens
from dshmp.training.contrastive import MemoryBank, TargetGroups, anchor, contrastive_loss, sample_negatives
from dshmp.training.losses import deep_supervision, query_weight, similarity_loss
from dshmp.training.matching import Level, Randomness, SetPrediction, SetTargets, match_levels
from dshmp.training.recipe import Recipe

Counts = dict[str, Tensor]
"""Divisors of losses, by name. They are known from the targets alone, so that they can be counted over a whole step
before any part of it is learned: a loss of a part is its sum divided by the step's count."""
SET_COUNTS = ("masks", "queries")
VIDEO_COUNTS = (*SET_COUNTS, "samples", "tokens", "anchors")
UNASKED = 0.1
"""Weight of tokens that have found nothing, in the trajectories' own question."""


@dataclass(frozen=True)
class VideoTargets:
    """What B sentences mean in their clips."""

    expressions: tuple[int, ...]
    """Which sentences these are, counted through all splits."""
    meant: Tensor
    """(B, G_all) bool: which of the clip's objects are meant."""
    masks: Tensor
    """(B, G, T, h, w) bool: masks of the objects meant."""
    valid: Tensor
    """(B, G) bool."""
    objects: Tensor
    """(B, G) long: the objects meant as indices of the clip's objects, -1 where a row only fills the batch."""


def set_counts(recipe: Recipe, targets: SetTargets, queries: int) -> Counts:
    """`SET_COUNTS` of targets that so many queries look for."""
    return {"masks": targets.present.sum(), "queries": query_weight(targets, queries, recipe.no_object)}


def match_all(recipe: Recipe, levels: Sequence[Level], generator: Randomness) -> list[Tensor]:
    """The matches (layers, B, Q) of each level with the recipe's weights and points."""
    return match_levels(levels, recipe.points, _set_weights(recipe), generator)


def supervise(
    recipe: Recipe, level: Level, indices: Tensor, generator: Randomness, counts: Counts, prefix: str = ""
) -> dict[str, Tensor]:
    """Set losses of all layers with the recipe's weights, from the matches (layers, B, Q).

    `prefix` stands before the names of losses and counts.
    """
    losses = deep_supervision(
        level,
        indices,
        counts[f"{prefix}masks"],
        num_points=recipe.points,
        weights=_set_weights(recipe),
        no_object_weight=recipe.no_object,
        query_weight=counts[f"{prefix}queries"],
        generator=generator,
    )
    return {f"{prefix}{name}": value for name, value in losses.items()}


def _set_weights(recipe: Recipe) -> tuple[float, float, float]:
    return recipe.weights.label, recipe.weights.mask, recipe.weights.dice


class Contrast:
    """Contrastive learning: which targets the splits have, and the memory bank of their centroids.

    Every part of a step meets the bank as it stood before the step, which `commit` then writes at once: the result is
    the same in however many parts and processes the step is learned.
    """

    def __init__(self, recipe: Recipe, model: DsHmp, splits: Sequence[Split]) -> None:
        self.recipe = recipe
        videos: dict[tuple[int, str], int] = {}
        categories: dict[str | None, int] = {None: -1}
        rows: list[int] = []
        video: list[int] = []
        category: list[int] = []
        for source, split in enumerate(splits):
            first = len(video)
            for item, row in zip(split.expressions, target_rows(split.expressions), strict=True):
                rows.append(first + row)
                if first + row == len(video):
                    video.append(videos.setdefault((source, item.video), len(videos)))
                    category.append(categories.setdefault(item.category, len(categories) - 1))
        self.rows = torch.tensor(rows)
        """Row of the bank of every sentence, those of all splits in turn."""
        self.groups = TargetGroups(torch.tensor(video), torch.tensor(category))
        self.bank = MemoryBank(len(video), model.config.motion.contrast_size, host=recipe.bank == "host")
        self._seen: list[tuple[Tensor, Tensor]] = []

    def count(self, targets: VideoTargets, present: Tensor, step: int) -> Tensor:
        """How many of these sentences, which have a target where `present` (B,), the loss looks at."""
        if step < self.recipe.contrast_start:
            return present.sum() * 0
        return (present & self.bank.visited[self._rows(targets.expressions)]).sum()

    def loss(
        self,
        video: VideoTokens,
        indices: Tensor,
        expressions: Sequence[int],
        step: int,
        generator: Sequence[torch.Generator],
        count: Tensor,
    ) -> Tensor:
        """Eq. 9 on the matched tokens of these sentences, each with its own generator; they are noted for the bank."""
        recipe = self.recipe
        anchors, found = anchor(video.contrast, indices)
        anchors, rows = anchors[found], self._rows(expressions)[found]
        self._seen.append((rows, F.normalize(anchors.detach().float(), dim=1)))
        if step < recipe.contrast_start or not len(rows):
            return video.contrast.sum() * 0
        own = [each for each, is_found in zip(generator, found.tolist(), strict=True) if is_found]
        negatives, mask = sample_negatives(rows, self.groups, self.bank.visited, recipe.negatives, own)
        return contrastive_loss(anchors, rows, negatives, mask, self.bank, recipe.temperature, count)

    def commit(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Eq. 8 for all sentences since the last time: the end of a step. `gather` puts the rows of all processes
        together, the first process's first."""
        device = self.bank.visited.device
        rows = torch.cat([rows for rows, _ in self._seen] or [torch.zeros(0, dtype=torch.long, device=device)])
        anchors = torch.cat([each for _, each in self._seen] or [self.bank.rows(rows)])
        self._seen.clear()
        rows, anchors = gather(rows), gather(anchors)
        if len(rows):
            self.bank.update(rows, anchors, self.recipe.bank_delta)

    def forget(self) -> None:
        """Leave out what was noted: the step is not taken."""
        self._seen.clear()

    def _rows(self, expressions: Sequence[int]) -> Tensor:
        return self.rows[list(expressions)].to(self.bank.visited.device)


def video_counts(
    recipe: Recipe, model: DsHmp, contrast: Contrast, found: Tensor, labelled: Tensor, targets: VideoTargets, step: int
) -> Counts:
    """`VIDEO_COUNTS` of what `video_losses` divides; found (B, T) long: tokens of each frame that find an object."""
    sets = SetTargets(targets.masks, targets.valid, labelled)
    present = sets.present.any(1)
    tokens = model.config.frame_decoder.queries * labelled.sum()
    asked = (found * labelled).sum()
    return set_counts(recipe, sets, model.config.motion.queries) | {
        "samples": present.sum(),
        "tokens": asked + UNASKED * (tokens - asked),
        "anchors": contrast.count(targets, present, step),
    }


def video_level(video: VideoTokens, masks: Sequence[Tensor], labelled: Tensor, targets: VideoTargets) -> Level:
    """Video level of B clips of T frames, all of them real.

    Args:
        masks: mask logits (B, N_v, T, h, w) of every decoder layer.
        labelled: (B, T) bool, frames whose masks are known; only they teach.
    """
    predictions = [SetPrediction(layer.logits, logits) for layer, logits in zip(video.layers, masks, strict=True)]
    return Level(predictions, SetTargets(targets.masks, targets.valid, labelled))


def video_losses(
    recipe: Recipe,
    contrast: Contrast,
    video: VideoTokens,
    level: Level,
    indices: Tensor,
    owner: Tensor,
    targets: VideoTargets,
    step: int,
    generator: Sequence[torch.Generator],
    counts: Counts,
) -> dict[str, Tensor]:
    """Weighted losses of B clips.

    Args:
        level: of `video_level`; indices: its matches (layers, B, N_v).
        owner: (B, T, N) long, the object that a token has found as an index of the clip's objects, or -1.
        generator: one for each clip.
        counts: `video_counts` of the whole step.
    """
    weights = recipe.weights
    losses = supervise(recipe, level, indices, generator, counts)
    matched = indices[-1]
    # the same numbering of objects for frames and video: indices of the clip's objects
    video_object = torch.where(matched >= 0, targets.objects.gather(1, matched.clamp(min=0)), -1)
    asked = owner >= 0
    is_meant = targets.meant[:, None, None].expand(*owner.shape, -1)
    wanted = is_meant.gather(3, owner.clamp(min=0)[..., None])[..., 0] & asked  # (B, T, N)
    if weights.similarity:
        frame_object = torch.where(wanted, owner, -1)
        losses["similarity"] = weights.similarity * similarity_loss(
            video.frame_similarity, frame_object, video.similarity, video_object, counts["samples"]
        )
    if weights.trajectory and video.track_logits is not None:
        said = torch.stack([layer.track_logits for layer in video.layers if layer.track_logits is not None])
        answer = wanted.float().expand_as(said)
        entropy = F.binary_cross_entropy_with_logits(said, answer, reduction="none").sum(0)
        emphasis = torch.where(asked, 1.0, UNASKED) * level.targets.frames[..., None]
        losses["trajectory"] = weights.trajectory * (entropy * emphasis).sum() / counts["tokens"].clamp(min=1)
    if recipe.negatives:
        contrasted = contrast.loss(video, matched, targets.expressions, step, generator, counts["anchors"])
        losses["contrast"] = weights.contrast * contrasted
    return losses
