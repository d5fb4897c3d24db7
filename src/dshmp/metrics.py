"""Region similarity J and boundary measure F of DAVIS (Perazzi et al., CVPR 2016, section 4), frame by frame.

A mask is any array whose non-zero pixels belong to the object. All functions take one frame (H, W) or a video
(T, H, W) and work on the smallest window that holds both masks, so that small objects cost little.

Conventions, those of the benchmarks:

- two empty masks agree: J = F = 1;
- the border of the image is no boundary: a mask that fills the image has none;
- a boundary is matched within a disk of ``ceil(0.008 * diagonal of the image)`` pixels.
"""

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dshmp.errors import UserError

Mask = NDArray[np.uint8]
Scores = NDArray[np.float64]

BOUNDARY_TOLERANCE = 0.008  # of the image's diagonal


def region_similarity(pred: NDArray, truth: NDArray, void: NDArray | None = None) -> Scores:
    """J, the intersection over the union; pixels of `void` do not count.

    Args: masks (H, W) or (T, H, W) of one shape. Returns: float64 of shape () or (T,).
    Raises: UserError where the shapes differ.
    """
    pairs, _, shape = _windows(pred, truth, void)
    return np.array([_region(*pair) for pair in pairs], np.float64).reshape(shape)


def boundary_measure(pred: NDArray, truth: NDArray, void: NDArray | None = None) -> Scores:
    """F, the harmonic mean of the boundary's precision and recall; pixels of `void` count as background.

    Args: masks (H, W) or (T, H, W) of one shape. Returns: float64 of shape () or (T,).
    Raises: UserError where the shapes differ.
    """
    pairs, radius, shape = _windows(pred, truth, void)
    return np.array([_boundary(*pair, radius) for pair in pairs], np.float64).reshape(shape)


def jf(pred: NDArray, truth: NDArray) -> tuple[float, float]:
    """Mean J and mean F over the frames of a video, masks (T, H, W).

    Raises: UserError where the shapes differ or there is no frame.
    """
    pairs, radius, _ = _windows(pred, truth, None)
    if not pairs:
        raise UserError("cannot score a video without frames: give masks (T, H, W) with T at least 1")
    return (
        float(np.mean([_region(*pair) for pair in pairs])),
        float(np.mean([_boundary(*pair, radius) for pair in pairs])),
    )


def _windows(
    pred: NDArray, truth: NDArray, void: NDArray | None
) -> tuple[list[tuple[Mask, Mask]], int, tuple[int, ...]]:
    """Each frame's two masks cut to where they are, the tolerance in pixels, the shape of the answer."""
    if pred.shape != truth.shape or pred.ndim not in (2, 3):
        raise UserError(
            f"masks to compare must have one shape, (H, W) or (T, H, W): "
            f"the prediction has {pred.shape}, the annotation {truth.shape}"
        )
    if void is not None and void.shape != truth.shape:
        raise UserError(f"the void mask must have the annotation's shape {truth.shape}: it has {void.shape}")
    height, width = truth.shape[-2:]
    frames = [_binary(masks).reshape(-1, height, width) for masks in (pred, truth)]
    if void is not None:
        counted = 1 - _binary(void).reshape(-1, height, width)
        frames = [masks & counted for masks in frames]
    radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(height, width))
    return [_window(*pair) for pair in zip(*frames, strict=True)], radius, truth.shape[:-2]


def _binary(masks: NDArray) -> Mask:
    binary: Mask = (masks if masks.dtype == np.bool_ else masks != 0).view(np.uint8)
    return binary


def _window(pred: Mask, truth: Mask) -> tuple[Mask, Mask]:
    """Cut both masks to their common bounding box and one pixel around it, as far as the image goes.

    The boundary runs at most one pixel outside a mask, and is matched only where the other boundary is, so
    nothing that counts lies outside; a side of the window on the image's border keeps the border's rule.
    """
    x, y, width, height = cv2.boundingRect(pred | truth)  # all 0 where both are empty
    window = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1] if width else np.s_[:0, :0]
    return pred[window], truth[window]


def _region(pred: Mask, truth: Mask) -> float:
    union = np.count_nonzero(pred | truth)
    return np.count_nonzero(pred & truth) / union if union else 1.0


def _boundary(pred: Mask, truth: Mask, radius: int) -> float:
    if not pred.size:
        return 1.0
    pred_line, truth_line = _boundary_map(pred), _boundary_map(truth)
    pred_length, truth_length = np.count_nonzero(pred_line), np.count_nonzero(truth_line)
    if not pred_length or not truth_length:
        return float(pred_length == truth_length)
    disk = _disk(radius)
    precision = np.count_nonzero(pred_line & cv2.dilate(truth_line, disk)) / pred_length
    recall = np.count_nonzero(truth_line & cv2.dilate(pred_line, disk)) / truth_length
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary_map(mask: Mask) -> Mask:
    """Pixels that differ from their right, lower or lower right neighbour, as far as the image has one."""
    line = np.zeros_like(mask)
    line[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    line[:-1] |= mask[:-1] ^ mask[1:]
    line[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return line


@lru_cache
def _disk(radius: int) -> Mask:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk: Mask = (x**2 + y**2 <= radius**2).astype(np.uint8)
    return disk
