"""Matching and set losses of predictions, at frame and at video level, and the similarity loss (section 3.3).

One form serves both levels: frame level has T = 1 and frames as the batch. Matching on random points and set losses are
those of Mask2Former (Cheng et al., CVPR 2022), the similarity loss that of VITA (Heo et al., NeurIPS 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

Randomness = torch.Generator | Sequence[torch.Generator] | None  # several: one for each sample of a batch
# Divisors of losses, by name, known from the targets alone. They are counted over a whole step before any part of it is
# learned: a loss of a part is its sum divided by the step's count.
Counts = dict[str, Tensor]
Weights = tuple[float, float, float]
DEFAULT: Weights = (2.0, 5.0, 5.0)  # of class, mask and dice, in matching costs and losses
OVERSAMPLE = 3.0  # candidates drawn for each point of the loss
IMPORTANCE = 0.75  # share of the points taken where the prediction is least certain


@dataclass(frozen=True)
class SetTargets:
    masks: Tensor  # (B, G, T, H, W) bool or uint8, at the resolution of the (padded) images
    valid: Tensor  # (B, G) bool, False where a row only fills the batch; G may be 0
    frames: Tensor  # (B, T) bool, False where a frame only fills the batch: it takes no part in matching or loss

    @property
    def present(self) -> Tensor:
        """(B, G) bool: the targets that take part, `valid` and in a real frame; their sum normalises."""
        return self.valid & self.frames.any(1, keepdim=True)

    def by_frame(self) -> "SetTargets":
        """The same targets at frame level, batch B*T: a target is valid in the frames where it is seen."""
        masks = self.masks.transpose(1, 2).flatten(0, 1)  # (B, G, T, H, W) -> (B*T, G, H, W)
        frames = self.frames.flatten()
        seen = masks.flatten(2).any(2).bool()
        valid = self.valid.repeat_interleave(self.frames.shape[1], 0) & seen & frames[:, None]
        return SetTargets(masks[:, :, None], valid, frames[:, None])


@dataclass(frozen=True)
class SetPrediction:
    logits: Tensor  # (B, Q, 2), index 0 = object, 1 = none
    masks: Tensor  # (B, Q, T, h, w) mask logits, at stride 4 of the images


@dataclass(frozen=True)
class Level:
    predictions: Sequence[SetPrediction]  # of every decoder layer
    targets: SetTargets


@dataclass(frozen=True)
class SetCriterion:
    """Matching and set losses of a level, every decoder layer by itself."""

    points: int  # for each mask and frame
    weights: Weights = DEFAULT
    no_object: float = 0.1  # weight of unmatched queries in the class loss, a weighted mean

    def counts(self, targets: SetTargets, queries: int) -> Counts:
        """Targets, and the sum of the queries' weights in the class loss; every target finds one of them."""
        matched = targets.present.sum(1).clamp(max=queries)
        weight = (matched + self.no_object * (queries - matched)) * targets.frames.any(1)
        return {"masks": targets.present.sum(), "queries": weight.sum()}

    @torch.no_grad()
    def match(self, level: Level, generator: Randomness = None) -> Tensor:
        """(layers, B, Q) long, the target of each query or -1; every layer on points of its own."""
        targets, layers = level.targets, len(level.predictions)
        shape, device = (len(targets.masks), self.points, 2), targets.masks.device
        points = [uniform(*shape, device=device, generator=generator) for _ in range(layers)]
        # the targets are sampled at all layers' points at once: (B, G, T, P) each
        truths = _sample_frames(targets.masks, torch.cat(points, 1)).split(self.points, dim=3)
        drawn = zip(level.predictions, points, truths, strict=True)
        costs = [matching_costs(prediction, targets, at, self.weights, truth) for prediction, at, truth in drawn]
        matches = assign(torch.cat(costs), targets.present.repeat(layers, 1))
        return matches.view(layers, len(targets.masks), -1)

    def losses(
        self, level: Level, indices: Tensor, counts: Counts, generator: Randomness = None, prefix: str = ""
    ) -> dict[str, Tensor]:
        """Weighted `cls`, `mask` and `dice`, summed over the decoder layers, from the matches (layers, B, Q); `prefix`
        stands before their names and those of the counts."""
        numbers = counts[f"{prefix}masks"], self.points, self.no_object, counts[f"{prefix}queries"], generator
        layers = zip(level.predictions, indices, strict=True)
        by_layer = [set_losses(prediction, level.targets, matched, *numbers) for prediction, matched in layers]
        return {
            f"{prefix}{name}": weight * torch.stack([losses[name] for losses in by_layer]).sum()
            for name, weight in zip(("cls", "mask", "dice"), self.weights, strict=True)
        }


@torch.no_grad()
def matching_costs(
    found: SetPrediction, targets: SetTargets, points: Tensor, weights: Weights = DEFAULT, truth: Tensor | None = None
) -> Tensor:
    """Cost of each pair (B, Q, G) = w_class * -p(object) + w_mask * cross-entropy + w_dice * dice, float32, on points
    (B, P, 2), shared by all frames of a sample, where the targets' values, if known already, are truth (B, G, T, P)."""
    with torch.autocast(found.masks.device.type, enabled=False):
        logits = _sample_frames(found.masks, points)  # (B, Q, T, P)
        truth = _sample_frames(targets.masks, points) if truth is None else truth  # (B, G, T, P)
        real = targets.frames[:, None, :, None].float()  # (B, 1, T, 1)
        count = (real.sum((2, 3)) * points.shape[1]).clamp(min=1)[:, None]  # (B, 1, 1) points that count
        truth = (truth * real).flatten(2)  # (B, G, T*P)
        probability = (logits.sigmoid() * real).flatten(2)  # (B, Q, T*P)
        # cross-entropy of logit x and target t is softplus(x) - t x
        background = (F.softplus(logits) * real).sum((2, 3))[:, :, None]  # (B, Q, 1)
        entropy = (background - logits.flatten(2) @ truth.mT) / count
        overlap = 2 * probability @ truth.mT
        dice = 1 - (overlap + 1) / (probability.sum(2)[:, :, None] + truth.sum(2)[:, None] + 1)
        object_probability = found.logits.float().softmax(2)[:, :, :1]
        w_class, w_mask, w_dice = weights
        return -w_class * object_probability + w_mask * entropy + w_dice * dice


def assign(costs: Tensor, present: Tensor) -> Tensor:
    """Cheapest one-to-one assignment of each sample: costs (B, Q, G) and present (B, G) bool, the targets that take
    part -> (B, Q) long, the target of each query or -1. Costs that are not finite count as very high, so that every
    process goes on to the end of its step, which is left out then."""
    indices = torch.full(costs.shape[:2], -1)
    tables = costs.detach().nan_to_num(1e9, 1e9, 1e9).cpu().numpy()
    for sample, (table, taking_part) in enumerate(zip(tables, present.cpu().numpy(), strict=True)):
        columns = taking_part.nonzero()[0]
        rows, chosen = linear_sum_assignment(table[:, columns])
        indices[sample, rows] = torch.from_numpy(columns[chosen])
    return indices.to(costs.device)


def set_losses(
    prediction: SetPrediction,
    targets: SetTargets,
    indices: Tensor,
    num_masks: Tensor | float,
    num_points: int,
    no_object: float = 0.1,
    query_weight: Tensor | None = None,
    generator: Randomness = None,
    *,
    points: Tensor | None = None,
) -> dict[str, Tensor]:
    """Unweighted losses `cls`, `mask` and `dice` of one layer, each a float32 scalar; what fills the batch bears none.

    Args: indices (B, Q) long, the target of each query or -1; num_masks, divisor of the mask losses, at least 1;
    query_weight, divisor of the class loss, by default the sum of these queries' weights; points (M*T, num_points, 2)
    of the M matches in order of (sample, query), in place of drawn ones.
    """
    matched = indices >= 0
    entropy = F.cross_entropy(prediction.logits.float().mT, (~matched).long(), reduction="none")  # (B, Q)
    weight = torch.where(matched, 1.0, no_object) * targets.frames.any(1, keepdim=True)
    total = weight.sum() if query_weight is None else query_weight
    cls = (entropy * weight).sum() / total.clamp(min=1e-6)
    sample, query = matched.nonzero(as_tuple=True)  # (M,) each
    masks = prediction.masks[sample, query].float()  # (M, T, h, w)
    mask = dice = masks.sum()  # where nothing is matched, zeros that keep the graph
    if len(sample):
        truth = targets.masks[sample, indices[sample, query]]  # (M, T, H, W)
        real = targets.frames[sample][:, :, None].float()  # (M, T, 1)
        matches, frames = masks.shape[:2]
        masks, truth = masks.flatten(0, 1), truth.flatten(0, 1)  # (M, T, H, W) -> (M*T, H, W)
        if points is None:
            rows = None
            if isinstance(generator, Sequence):  # the matches of each sample, times their frames
                owner = sample // (len(indices) // len(generator))
                rows = (owner.bincount(minlength=len(generator)) * frames).tolist()
            points = importance_points(masks, num_points, generator, rows)
        logits = sample_points(masks[:, None], points).view(matches, frames, -1)  # (M*T, 1, P) -> (M, T, P)
        label = sample_points(truth[:, None], points).view(matches, frames, -1)
        entropy = F.binary_cross_entropy_with_logits(logits, label, reduction="none") * real
        mask = (entropy.sum((1, 2)) / (real.sum((1, 2)) * logits.shape[2]).clamp(min=1)).sum()
        probability, label = logits.sigmoid() * real, label * real
        both = probability.sum((1, 2)) + label.sum((1, 2))
        dice = (1 - (2 * (probability * label).sum((1, 2)) + 1) / (both + 1)).sum()
    divisor = torch.as_tensor(num_masks, device=mask.device).clamp(min=1)
    return {"cls": cls, "mask": mask / divisor, "dice": dice / divisor}


def uniform(
    *shape: int, device: torch.device, generator: Randomness = None, rows: Sequence[int] | None = None
) -> Tensor:
    """Random numbers in [0, 1); a generator may live on another device. Of several generators each draws as many rows
    (of the first axis) as `rows` says, the same number by default."""
    if isinstance(generator, Sequence):
        counts = rows or [shape[0] // len(generator)] * len(generator)
        drawn = [uniform(n, *shape[1:], device=device, generator=g) for n, g in zip(counts, generator, strict=True)]
        return torch.cat(drawn)
    source = device if generator is None else generator.device
    return torch.rand(*shape, generator=generator, device=source).to(device)


@torch.no_grad()
def importance_points(
    logits: Tensor, num_points: int, generator: Randomness = None, rows: Sequence[int] | None = None
) -> Tensor:
    """Points for the loss of mask logits (N, h, w) -> (N, num_points, 2), drawn as in `uniform`, most of them the least
    certain of many candidates."""
    masks, many, uncertain = len(logits), int(num_points * OVERSAMPLE), int(num_points * IMPORTANCE)
    candidates = uniform(masks, many, 2, device=logits.device, generator=generator, rows=rows)
    certainty = sample_points(logits[:, None], candidates)[:, 0].abs()  # (N, candidates)
    chosen = certainty.topk(uncertain, dim=1, largest=False).indices
    rest = uniform(masks, num_points - uncertain, 2, device=logits.device, generator=generator, rows=rows)
    return torch.cat([candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2)), rest], 1)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps (N, C, H, W) at points (N, P, 2), (x, y) in [0, 1] -> (N, C, P) float32. (0, 0) is the
    outer corner of the first pixel, whatever the resolution; beyond the outermost pixels' centres a map fades to 0."""
    if 0 in maps.shape:
        return maps.new_zeros(*maps.shape[:2], points.shape[1], dtype=torch.float32)
    grid = (2 * points[:, :, None] - 1).float()  # (N, P, 1, 2)
    return F.grid_sample(maps.float(), grid, align_corners=False).squeeze(3)


def _sample_frames(masks: Tensor, points: Tensor) -> Tensor:
    """Masks (B, N, T, H, W) at points (B, P, 2), the same in every frame -> (B, N, T, P)."""
    return sample_points(masks.flatten(1, 2), points).reshape(*masks.shape[:3], points.shape[1])


def similarity_loss(
    frames: Tensor, frame_indices: Tensor, video: Tensor, video_indices: Tensor, samples: Tensor | None = None
) -> Tensor:
    """Cross-entropy on the raw dot products of all pairs of matched embeddings of a sample (frames and video, each with
    itself included), 1 for pairs of one target; mean over pairs, then over `samples`, by default those that have any.

    Args: embeddings, frames (B, T, N_s, C) and video (B, N_v, C); frame_indices (B, T, N_s) long, the matched target or
    -1; video_indices (B, N_v) long, numbering the same targets.
    """
    embeddings = torch.cat([frames.flatten(1, 2), video], 1).float()  # (B, T*N_s + N_v, C)
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
