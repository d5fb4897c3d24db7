"""Set losses of matched predictions, at frame and at video level, and the similarity loss (section 3.3).

Class cross-entropy, mask cross-entropy and dice are those of Mask2Former (Cheng et al., CVPR 2022), the
similarity loss that of VITA (Heo et al., NeurIPS 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dshmp.training.matching import (
    DEFAULT,
    Level,
    Randomness,
    SetPrediction,
    SetTargets,
    Weights,
    match_levels,
    sample_points,
    uniform,
)

Counts = dict[str, Tensor]
"""Divisors of losses, by name. They are known from the targets alone, so that they can be counted over a whole step
before any part of it is learned: a loss of a part is its sum divided by the step's count."""
OVERSAMPLE = 3.0  # candidates drawn for each point of the loss
IMPORTANCE = 0.75  # share of the points taken where the prediction is least certain


@dataclass(frozen=True)
class SetCriterion:
    """Matching and set losses of a level, all decoder layers."""

    points: int
    """Points for each mask and frame."""
    weights: Weights = DEFAULT
    no_object: float = 0.1
    """Weight of unmatched queries in the class loss, a weighted mean."""
    counted = ("masks", "queries")

    def counts(self, targets: SetTargets, queries: int) -> Counts:
        """Targets, and the sum of the queries' weights in the class loss, known before anything is matched: every
        target finds a query as long as there are any."""
        matched = targets.present.sum(1).clamp(max=queries)
        weight = (matched + self.no_object * (queries - matched)) * targets.frames.any(1)
        return {"masks": targets.present.sum(), "queries": weight.sum()}

    def match(self, levels: Sequence[Level], generator: Randomness = None) -> list[Tensor]:
        """The matches (layers, B, Q) of each level, as `match_levels`."""
        return match_levels(levels, self.points, self.weights, generator)

    def losses(
        self, level: Level, indices: Tensor, counts: Counts, generator: Randomness = None, prefix: str = ""
    ) -> dict[str, Tensor]:
        """Weighted `cls`, `mask` and `dice`, summed over the decoder layers, from the matches (layers, B, Q).

        `prefix` stands before the names of losses and counts.
        """
        masks, queries = counts[f"{prefix}masks"], counts[f"{prefix}queries"]
        by_layer = [
            set_losses(
                prediction, level.targets, matched, masks, self.points, self.no_object, queries, generator=generator
            )
            for prediction, matched in zip(level.predictions, indices, strict=True)
        ]
        return {
            f"{prefix}{name}": weight * torch.stack([losses[name] for losses in by_layer]).sum()
            for name, weight in zip(("cls", "mask", "dice"), self.weights, strict=True)
        }


def set_losses(
    prediction: SetPrediction,
    targets: SetTargets,
    indices: Tensor,
    num_masks: Tensor | float,
    num_points: int,
    no_object: float = 0.1,
    query_weight: Tensor | None = None,
    *,
    generator: Randomness = None,
    points: Tensor | None = None,
) -> dict[str, Tensor]:
    """Unweighted losses `cls`, `mask` and `dice` of one layer, each a float32 scalar.

    Args:
        indices: (B, Q) long, the target of each query or -1.
        num_masks: divisor of the mask losses; values below 1 count as 1.
        query_weight: divisor of the class loss; by default the sum of these queries' weights.
        points: (M*T, num_points, 2) for the M matches in order of (sample, query), in place of drawn ones.

    Samples without targets bear the class loss only; samples and frames that fill the batch bear none.
    """
    matched = indices >= 0
    entropy = F.cross_entropy(prediction.logits.float().mT, (~matched).long(), reduction="none")  # (B, Q)
    weight = torch.where(matched, 1.0, no_object) * targets.frames.any(1, keepdim=True)
    total = weight.sum() if query_weight is None else query_weight
    mask, dice = _mask_losses(prediction, targets, indices, num_points, generator, points)
    divisor = torch.as_tensor(num_masks, device=mask.device).clamp(min=1)
    return {
        "cls": (entropy * weight).sum() / total.clamp(min=1e-6),
        "mask": mask / divisor,
        "dice": dice / divisor,
    }


def _mask_losses(
    prediction: SetPrediction,
    targets: SetTargets,
    indices: Tensor,
    num_points: int,
    generator: Randomness,
    points: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice, summed over the M matches; zeros that keep the graph where there is none."""
    sample, query = (indices >= 0).nonzero(as_tuple=True)  # (M,) each
    masks = prediction.masks[sample, query].float()  # (M, T, h, w)
    if not len(sample):
        return masks.sum(), masks.sum()
    truth = targets.masks[sample, indices[sample, query]]  # (M, T, H, W)
    real = targets.frames[sample][:, :, None].float()  # (M, T, 1)
    matches, frames = masks.shape[:2]
    masks, truth = masks.flatten(0, 1), truth.flatten(0, 1)  # (M, T, H, W) -> (M*T, H, W)
    if points is None:
        rows = None
        if isinstance(generator, Sequence):  # the matches of each sample, times their frames
            owner = sample // (len(prediction.masks) // len(generator))
            rows = (owner.bincount(minlength=len(generator)) * frames).tolist()
        points = importance_points(masks, num_points, generator, rows)
    logits = sample_points(masks[:, None], points).view(matches, frames, -1)  # (M*T, 1, P) -> (M, T, P)
    label = sample_points(truth[:, None], points).view(matches, frames, -1)
    entropy = F.binary_cross_entropy_with_logits(logits, label, reduction="none") * real
    mask = entropy.sum((1, 2)) / (real.sum((1, 2)) * logits.shape[2]).clamp(min=1)
    probability, label = logits.sigmoid() * real, label * real
    total = probability.sum((1, 2)) + label.sum((1, 2))
    dice = 1 - (2 * (probability * label).sum((1, 2)) + 1) / (total + 1)
    return mask.sum(), dice.sum()


@torch.no_grad()
def importance_points(
    logits: Tensor, num_points: int, generator: Randomness = None, rows: Sequence[int] | None = None
) -> Tensor:
    """Points for the loss of mask logits (N, h, w) -> (N, num_points, 2), drawn as in `uniform`.

    Three quarters are the least certain of three times as many candidates, the rest are uniform.
    """
    masks, many, uncertain = len(logits), int(num_points * OVERSAMPLE), int(num_points * IMPORTANCE)
    candidates = uniform(masks, many, 2, device=logits.device, generator=generator, rows=rows)
    certainty = sample_points(logits[:, None], candidates)[:, 0].abs()  # (N, candidates)
    chosen = certainty.topk(uncertain, dim=1, largest=False).indices
    rest = uniform(masks, num_points - uncertain, 2, device=logits.device, generator=generator, rows=rows)
    return torch.cat([candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2)), rest], 1)


def similarity_loss(
    frame_embeddings: Tensor,
    frame_indices: Tensor,
    video_embeddings: Tensor,
    video_indices: Tensor,
    samples: Tensor | None = None,
) -> Tensor:
    """Matched embeddings of one target shall agree, across frames and with the video's; others shall not.

    Cross-entropy on the raw dot products of all pairs of matched embeddings of a sample (frame with frame,
    video with video and each with itself included), 1 for pairs of one target; mean over the pairs of a
    sample, then over the samples that have any.

    Args:
        frame_embeddings: (B, T, N_s, C); frame_indices: (B, T, N_s) long, the matched target or -1.
        video_embeddings: (B, N_v, C); video_indices: (B, N_v) long, numbering the same targets.
        samples: divisor; by default the number of samples with a matched embedding.
    """
    # (B, T, N_s, C) and (B, N_v, C) -> (B, T*N_s + N_v, C)
    embeddings = torch.cat([frame_embeddings.flatten(1, 2), video_embeddings], 1).float()
    identity = torch.cat([frame_indices.flatten(1, 2), video_indices], 1)
    # most tokens have found nothing that counts: only as many rows as the fullest sample has are compared
    most = int((identity >= 0).sum(1).max())
    rows = (identity < 0).byte().argsort(dim=1, stable=True)[:, :most]
    identity = identity.gather(1, rows)
    embeddings = embeddings.gather(1, rows[..., None].expand(-1, -1, embeddings.shape[-1]))
    matched = identity >= 0
    pairs = (matched[:, :, None] & matched[:, None]).float()
    same = (identity[:, :, None] == identity[:, None]).float()
    with torch.autocast(embeddings.device.type, enabled=False):
        products = embeddings @ embeddings.mT
    entropy = F.binary_cross_entropy_with_logits(products, same, reduction="none")
    by_sample = (entropy * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
    return by_sample.sum() / (matched.any(1).sum() if samples is None else samples).clamp(min=1)
