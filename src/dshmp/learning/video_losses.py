"""Losses at video level (section 3.3): set losses, similarity, contrast, and the trajectories' own question."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dshmp.data.dataset import Split
from dshmp.learning.contrastive import MemoryBank, TargetGroups, anchor, contrastive_loss, sample_negatives
from dshmp.learning.losses import deep_supervision, similarity_loss
from dshmp.learning.matching import SetPrediction, SetTargets
from dshmp.learning.recipe import Recipe
from dshmp.model import DsHmp
from dshmp.motion.decoder import VideoTokens, trajectory_masks


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


def supervise(
    recipe: Recipe, predictions: Sequence[SetPrediction], targets: SetTargets, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Set losses of all layers with the recipe's weights, and the matches (layers, B, Q)."""
    weights = recipe.weights
    return deep_supervision(
        predictions,
        targets,
        targets.present.sum(),
        num_points=recipe.points,
        weights=(weights.label, weights.mask, weights.dice),
        no_object_weight=recipe.no_object,
        generator=generator,
    )


def pointed_masks(video: VideoTokens, mask_logits: Tensor) -> list[Tensor]:
    """Mask logits (B, N_v, T, h, w) of every decoder layer, read along the trajectories from those of the object
    tokens (B, T, N, h, w)."""
    masks = []
    for layer in video.layers:
        assert layer.pointer is not None
        masks.append(trajectory_masks(layer.pointer, mask_logits))
    return masks


class Contrast:
    """Contrastive learning: which targets the splits have, and the memory bank of their centroids."""

    def __init__(self, recipe: Recipe, model: DsHmp, splits: Sequence[Split]) -> None:
        self.recipe = recipe
        targets: dict[tuple[int, str, frozenset[int]], int] = {}
        videos: dict[tuple[int, str], int] = {}
        categories: dict[str | None, int] = {None: -1}
        rows: list[int] = []
        video: list[int] = []
        category: list[int] = []
        for source, split in enumerate(splits):
            for item in split.expressions:
                row = targets.setdefault((source, *item.target), len(targets))
                rows.append(row)
                if row == len(video):
                    video.append(videos.setdefault((source, item.video), len(videos)))
                    category.append(categories.setdefault(item.category, len(categories) - 1))
        self.rows = torch.tensor(rows)
        """Row of the bank of every sentence, those of all splits in turn."""
        self.groups = TargetGroups(torch.tensor(video), torch.tensor(category))
        self.bank = MemoryBank(len(targets), model.config.motion.contrast_size)

    def loss(
        self,
        video: VideoTokens,
        indices: Tensor,
        expressions: Sequence[int],
        step: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Eq. 9 on the matched tokens of these sentences, with the bank as it stands; then the bank takes them up
        (Eq. 8)."""
        recipe = self.recipe
        anchors, found = anchor(video.contrast, indices)
        anchors, rows = anchors[found], self.rows[list(expressions)].to(found.device)[found]
        loss = video.contrast.sum() * 0
        if step >= recipe.contrast_start and len(rows):
            negatives, mask = sample_negatives(rows, self.groups, self.bank.visited, recipe.negatives, generator)
            loss = contrastive_loss(anchors, rows, negatives, mask, self.bank, recipe.temperature)
        self.bank.update(rows, F.normalize(anchors.detach(), dim=1), recipe.bank_delta)
        return loss


def video_losses(
    recipe: Recipe,
    contrast: Contrast,
    video: VideoTokens,
    masks: Sequence[Tensor],
    owner: Tensor,
    labelled: Tensor,
    targets: VideoTargets,
    step: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Weighted losses of B clips of T frames, all of them real.

    Args:
        labelled: (B, T) bool, frames whose masks are known; masks are compared there alone.
        masks: mask logits (B, N_v, T, h, w) of every decoder layer.
        owner: (B, T, N) long, the object that a token has found as an index of the clip's objects, or -1.
    """
    weights = recipe.weights
    predictions = [SetPrediction(layer.logits, logits) for layer, logits in zip(video.layers, masks, strict=True)]
    losses, indices = supervise(recipe, predictions, SetTargets(targets.masks, targets.valid, labelled), generator)
    matched = indices[-1]
    # the same numbering of objects for frames and video: indices of the clip's objects
    video_object = torch.where(matched >= 0, targets.objects.gather(1, matched.clamp(min=0)), -1)
    asked = owner >= 0
    is_meant = targets.meant[:, None, None].expand(*owner.shape, -1)
    wanted = is_meant.gather(3, owner.clamp(min=0)[..., None])[..., 0] & asked  # (B, T, N)
    if weights.similarity:
        frame_object = torch.where(wanted, owner, -1)
        losses["similarity"] = weights.similarity * similarity_loss(
            video.frame_similarity, frame_object, video.similarity, video_object
        )
    if weights.trajectory and video.track_logits is not None:
        said = torch.stack([layer.track_logits for layer in video.layers if layer.track_logits is not None])
        answer = wanted.float().expand_as(said)
        entropy = F.binary_cross_entropy_with_logits(said, answer, reduction="none").sum(0)
        emphasis = torch.where(asked, 1.0, 0.1)
        losses["trajectory"] = weights.trajectory * (entropy * emphasis).sum() / emphasis.sum().clamp(min=1)
    if recipe.negatives:
        losses["contrast"] = weights.contrast * contrast.loss(video, matched, targets.expressions, step, generator)
    return losses
