"""Which prediction answers for which target: the bipartite matching of the set losses (section 3.3, Total).

One form serves both levels: frame level has T = 1 and frames as the batch, video level has whole clips. Masks
are compared on random points, as in Mask2Former (Cheng et al., CVPR 2022, section 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

Randomness = torch.Generator | Sequence[torch.Generator] | None
"""One source of random numbers, or one for each sample of a batch, so that what a sample draws does not depend on
the others it is learned with."""
Weights = tuple[float, float, float]
"""Of class, mask and dice, in matching costs and losses."""
DEFAULT: Weights = (2.0, 5.0, 5.0)


@dataclass(frozen=True)
class SetTargets:
    """What there is to find.

    masks  (B, G, T, H, W) bool or uint8, at the resolution of the (padded) images
    valid  (B, G) bool, False where a row only fills the batch; G may be 0
    frames (B, T) bool, False where a frame only fills the batch: it takes no part in matching or loss
    """

    masks: Tensor
    valid: Tensor
    frames: Tensor

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
    """What Q queries found.

    logits (B, Q, 2), index 0 = object, 1 = none
    masks  (B, Q, T, h, w) mask logits, at stride 4 of the images
    """

    logits: Tensor
    masks: Tensor


def uniform(
    *shape: int, device: torch.device, generator: Randomness = None, rows: Sequence[int] | None = None
) -> Tensor:
    """Random numbers in [0, 1) of this shape, such as (N, P, 2) for N sets of points (x, y). A generator may live on
    another device.

    Args:
        rows: of several generators, how many rows (of the first axis) each one draws; as many each by default.
    """
    if isinstance(generator, Sequence):
        counts = rows or [shape[0] // len(generator)] * len(generator)
        drawn = [uniform(n, *shape[1:], device=device, generator=g) for n, g in zip(counts, generator, strict=True)]
        return torch.cat(drawn)
    source = device if generator is None else generator.device
    return torch.rand(*shape, generator=generator, device=source).to(device)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps (N, C, H, W) at points (N, P, 2), (x, y) in [0, 1] -> (N, C, P) float32.

    (0, 0) is the outer corner of the first pixel, so that one point names one place at every resolution;
    beyond the centres of the outermost pixels a map fades to 0.
    """
    if 0 in maps.shape:
        return maps.new_zeros(*maps.shape[:2], points.shape[1], dtype=torch.float32)
    grid = (2 * points[:, :, None] - 1).float()  # (N, P, 1, 2)
    return F.grid_sample(maps.float(), grid, align_corners=False).squeeze(3)


@dataclass(frozen=True)
class Level:
    """Frame level or video level: what every decoder layer found, and what there is to find."""

    predictions: Sequence[SetPrediction]
    targets: SetTargets


@torch.no_grad()
def matching_costs(
    prediction: SetPrediction,
    targets: SetTargets,
    points: Tensor,
    weights: Weights = DEFAULT,
    truth: Tensor | None = None,
) -> Tensor:
    """Cost of each pair (B, Q, G) = w_class * -p(object) + w_mask * cross-entropy + w_dice * dice, float32.

    Args: points (B, P, 2), shared by all frames of a sample; truth (B, G, T, P), the targets' values there where they
    are known already.
    """
    with torch.autocast(prediction.masks.device.type, enabled=False):
        logits = _sample_frames(prediction.masks, points)  # (B, Q, T, P)
        truth = _sample_frames(targets.masks, points) if truth is None else truth  # (B, G, T, P)
        real = targets.frames[:, None, :, None].float()  # (B, 1, T, 1)
        count = (real.sum((2, 3)) * points.shape[1]).clamp(min=1)[:, None]  # (B, 1, 1) points that count
        truth = (truth * real).flatten(2)  # (B, G, T*P)
        probability = (logits.sigmoid() * real).flatten(2)  # (B, Q, T*P)
        # cross-entropy of logit x and target t is softplus(x) - t x
        background = (F.softplus(logits) * real).sum((2, 3))[:, :, None]  # (B, Q, 1)
        entropy = (background - logits.flatten(2) @ truth.mT) / count
        overlap = 2 * probability @ truth.mT
        total = probability.sum(2)[:, :, None] + truth.sum(2)[:, None]
        dice = 1 - (overlap + 1) / (total + 1)
        object_probability = prediction.logits.float().softmax(2)[:, :, :1]
        w_class, w_mask, w_dice = weights
        return -w_class * object_probability + w_mask * entropy + w_dice * dice


def assign(tables: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Cheapest one-to-one assignment of each sample.

    Args: tables, costs (B, Q, G) and present (B, G) bool, the targets that take part; each of its own B, Q and G. All
    of them cross to the CPU at once, and so do the answers on their way back.
    Returns: of each table (B, Q) long, the target of each query or -1, on the device of the costs.

    Costs that are not finite count as very high, so that every process goes on to the end of its step: the losses
    then are not finite either, and the step is left out.
    """
    joined = [torch.cat([costs.detach(), present[:, None].to(costs)], 1) for costs, present in tables]  # (B, Q+1, G)
    there = torch.cat([each.flatten() for each in joined]).cpu().split([each.numel() for each in joined])
    solved = [_solve(part.view(each.shape).numpy()) for part, each in zip(there, joined, strict=True)]
    back = torch.cat([each.flatten() for each in solved]).to(joined[0].device)
    parts = back.split([each.numel() for each in solved])
    return [part.view(each.shape) for part, each in zip(parts, solved, strict=True)]


def _solve(joined: NDArray[np.float32]) -> Tensor:
    """Costs above which targets take part (B, Q+1, G) -> the target of each query (B, Q) long or -1."""
    joined = np.nan_to_num(joined, nan=1e9, posinf=1e9, neginf=1e9)
    indices = torch.full((len(joined), joined.shape[1] - 1), -1)
    for sample, table in enumerate(joined):
        columns = table[-1].nonzero()[0]
        rows, chosen = linear_sum_assignment(table[:-1, columns])
        indices[sample, rows] = torch.from_numpy(columns[chosen])
    return indices


@torch.no_grad()
def match_levels(
    levels: Sequence[Level], num_points: int, weights: Weights = DEFAULT, generator: Randomness = None
) -> list[Tensor]:
    """Match every decoder layer of every level by itself, on points of its own: (layers, B, Q) long, or -1, of each
    level. The devices meet once, however many levels and layers there are (`assign`)."""
    tables = []
    for level in levels:
        targets, layers = level.targets, len(level.predictions)
        batch, device = len(targets.masks), targets.masks.device
        points = [uniform(batch, num_points, 2, device=device, generator=generator) for _ in range(layers)]
        # the targets are sampled at all layers' points at once: (B, G, T, P) each
        truths = _sample_frames(targets.masks, torch.cat(points, 1)).split(num_points, dim=3)
        costs = [
            matching_costs(prediction, targets, at, weights, truth)
            for prediction, at, truth in zip(level.predictions, points, truths, strict=True)
        ]
        tables.append((torch.cat(costs), targets.present.repeat(layers, 1)))
    found = assign(tables)
    return [each.unflatten(0, (len(level.predictions), -1)) for each, level in zip(found, levels, strict=True)]


def _sample_frames(masks: Tensor, points: Tensor) -> Tensor:
    """Masks (B, N, T, H, W) at points (B, P, 2), the same in every frame -> (B, N, T, P)."""
    sampled = sample_points(masks.flatten(1, 2), points)  # (B, N, T, H, W) -> (B, N*T, P)
    return sampled.reshape(*masks.shape[:3], points.shape[1])
