"""Losses at video level (section 3.3): set losses, similarity, contrast, and that of the trajectories."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dshmp.config import ModelConfig
from dshmp.data.base import Expression
from dshmp.model.motion_decoder import VideoTokens
from dshmp.training.contrastive import Contrast
from dshmp.training.losses import Counts, Level, SetCriterion, SetPrediction, SetTargets, similarity_loss
from dshmp.training.recipe import LossWeights

NOTHING_FOUND = 0.1  # weight of tokens that have found no object, in the trajectories' loss


@dataclass(frozen=True)
class VideoTargets:
    expressions: tuple[int, ...]  # the B sentences, counted through all splits
    meant: Tensor  # (B, G_all) bool: which of the clip's objects are meant
    fitting: Tensor  # (B, G_all) bool: which fit the static words
    told: Tensor  # (B,) bool: whether the data set tells that of a sentence
    masks: Tensor  # (B, G, T, h, w) bool: masks of the objects meant
    objects: Tensor  # (B, G) long: those as indices of the clip's objects, -1 where a row only fills the batch

    @property
    def valid(self) -> Tensor:
        """(B, G) bool: the objects meant that can be seen."""
        return self.masks.flatten(2).any(2)


def video_targets(
    expressions: Sequence[int], items: Sequence[Expression], known: Sequence[Sequence[int]], truths: Sequence[Tensor]
) -> tuple[Tensor, VideoTargets]:
    """The masks of all objects of the clips, padded to one number of them (B, G_all, T, h, w), and the targets; `known`
    and `truths`: of each sentence, the ids of its clip's objects and their masks (G, T, h, w) bool."""
    index = [torch.tensor([ids.index(i) for i in item.objects]).long() for item, ids in zip(items, known, strict=True)]
    # padded to one object at least
    shown = pad_sequence([*truths, truths[0].new_zeros(1, *truths[0].shape[1:])], batch_first=True)[:-1]
    objects = pad_sequence([*index, torch.zeros(1).long()], batch_first=True, padding_value=-1)[:-1]
    meant = torch.stack([torch.zeros(shown.shape[1], dtype=torch.bool).index_fill(0, each, 1) for each in index])
    told = torch.tensor(["static_ids" in item.extra for item in items])
    fitting = torch.zeros_like(meant)
    for row, (item, ids) in enumerate(zip(items, known, strict=True)):
        fitting[row, [ids.index(i) for i in item.extra.get("static_ids", ())]] = True
    masks = shown[torch.arange(len(items))[:, None], objects.clamp(min=0)]
    masks &= (objects >= 0)[:, :, None, None, None]
    return shown, VideoTargets(tuple(expressions), meant, fitting, told, masks, objects)


def video_level(video: VideoTokens, masks: Sequence[Tensor], labelled: Tensor, targets: VideoTargets) -> Level:
    """From the mask logits (B, N_v, T, h, w) of every decoder layer; only frames labelled (B, T) bool teach."""
    predictions = [SetPrediction(layer.logits, logits) for layer, logits in zip(video.layers, masks, strict=True)]
    return Level(predictions, SetTargets(targets.masks, targets.valid, labelled))


@dataclass(frozen=True)
class VideoCriterion:
    sets: SetCriterion
    weights: LossWeights
    contrast: Contrast
    config: ModelConfig

    def counts(self, targets: VideoTargets, labelled: Tensor, found: Tensor, there: Tensor, step: int) -> Counts:
        """found (B, T) long: candidates of each frame that find an object; there (B, T) long: how many there are."""
        sets = SetTargets(targets.masks, targets.valid, labelled)
        present, finding = sets.present.any(1), (found * labelled).sum()
        return self.sets.counts(sets, self.config.motion.queries) | {
            "samples": present.sum(),
            "tokens": finding + NOTHING_FOUND * ((there * labelled).sum() - finding),
            "anchors": self.contrast.count(targets.expressions, present, step),
        }

    def losses(
        self,
        video: VideoTokens,
        level: Level,
        indices: Tensor,
        owner: Tensor,
        seen: Tensor,
        targets: VideoTargets,
        step: int,
        generators: Sequence[torch.Generator],
        counts: Counts,
        contrasts: bool = True,
    ) -> dict[str, Tensor]:
        """Weighted losses of B clips, from the matches (layers, B, N_v) of `video_level` and owner (B, T, N) long, the
        object that a token has found as an index of the clip's objects, or -1, and seen (B, T, N or 1) bool, which of
        the candidates are there. With `contrasts` the memory bank takes part."""
        weights = self.weights
        losses = self.sets.losses(level, indices, counts, generators)
        matched, found = indices[-1], owner >= 0
        is_meant = targets.meant[:, None, None].expand(*owner.shape, -1)
        wanted = is_meant.gather(3, owner.clamp(min=0)[..., None])[..., 0] & found  # (B, T, N)
        if weights.similarity:
            # the same numbering for frames and video: indices of the clip's objects
            frames = video.frame_similarity, torch.where(wanted, owner, -1)
            clip = video.similarity, torch.where(matched >= 0, targets.objects.gather(1, matched.clamp(min=0)), -1)
            losses["similarity"] = weights.similarity * similarity_loss(*frames, *clip, counts["samples"])
        if weights.trajectory and video.track_logits is not None:
            logits = torch.stack([layer.track_logits for layer in video.layers if layer.track_logits is not None])
            entropy = F.binary_cross_entropy_with_logits(logits, wanted.float().expand_as(logits), reduction="none")
            emphasis = torch.where(found, 1.0, NOTHING_FOUND) * level.targets.frames[..., None] * seen
            total = (entropy.sum(0) * emphasis).sum()
            losses["trajectory"] = weights.trajectory * total / counts["tokens"].clamp(min=1)
        if weights.static and video.static_logits is not None and targets.told.any():
            fitting = targets.fitting[:, None, None].expand(*owner.shape, -1)
            fits = fitting.gather(3, owner.clamp(min=0)[..., None])[..., 0]
            entropy = F.binary_cross_entropy_with_logits(video.static_logits, fits.float(), reduction="none")
            known = found * targets.told[:, None, None] * level.targets.frames[..., None]
            losses["static"] = weights.static * (entropy * known).sum() / counts["tokens"].clamp(min=1)
        if contrasts and self.contrast.negatives:
            tokens = video.contrast, matched, targets.expressions
            losses["contrast"] = weights.contrast * self.contrast.loss(*tokens, step, generators, counts["anchors"])
        return losses
