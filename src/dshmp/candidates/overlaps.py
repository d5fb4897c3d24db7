"""Which boxes and masks are the same object."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def boxes_of(masks: Iterable[NDArray[np.bool_]]) -> Tensor:
    """K masks (H, W), none empty -> boxes (K, 4) float, x0, y0, x1, y1, the outer edges of their pixels."""
    places = []
    for mask in masks:
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        places.append([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    return torch.tensor(np.array(places, np.float32).reshape(-1, 4))


def box_overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (K, 4) and (M, 4): (K, M)."""
    a, b = a[:, None], b[None]
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return inner / union.clamp(min=1e-6)


def mask_overlap(masks: Tensor) -> Tensor:
    """IoU of masks (K, h, w) bool with each other: (K, K); 0 of empty ones."""
    flat = masks.flatten(1).float()
    inner = flat @ flat.T
    return inner / (inner.diag()[:, None] + inner.diag() - inner).clamp(min=1)


def first_of_each(same: Tensor) -> list[int]:
    """Of K things, the surest first, those that are not the same, (K, K) bool, as an earlier one of them."""
    kept: list[int] = []
    for k, row in enumerate(same.tolist()):
        if not any(row[j] for j in kept):
            kept.append(k)
    return kept


def is_new(mask: NDArray[np.bool_], others: Iterable[NDArray[np.bool_]], most: float) -> bool:
    """Whether a mask (H, W) has an IoU of at most `most` with each of the others."""
    return all((mask & each).sum() <= most * (mask | each).sum() for each in others)
