"""Region similarity J and boundary measure F of DAVIS (Perazzi et al., CVPR 2016, section 4), frame by frame.

A mask is any array whose non-zero pixels belong to the object, of one frame (H, W) or a video (T, H, W). Conventions,
those of the benchmarks: two empty masks agree, J = F = 1; the border of the image is no boundary, so that a mask that
fills it has none; a boundary is matched within a disk of ``ceil(0.008 * diagonal of the image)`` pixels.
"""

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
MaskScores = NDArray[np.float64]

BOUNDARY_TOLERANCE = 0.008  # of the image's diagonal


def jf(pred: NDArray, truth: NDArray) -> tuple[float, float]:
    """Mean J and mean F over the frames of a video, masks (T, H, W). ValueError where there is none."""
    j, f = jf_frames(pred, truth)
    if not j.size:
        raise ValueError("cannot score a video without frames: give masks (T, H, W) with T at least 1")
    return float(j.mean()), float(f.mean())


def jf_frames(pred: NDArray, truth: NDArray, void: NDArray | None = None) -> tuple[MaskScores, MaskScores]:
    """J, the intersection over the union, and F, the harmonic mean of the boundary's precision and recall, of every
    frame; pixels of `void` do not count.

    Args: masks (H, W) or (T, H, W) of one shape. Returns: two arrays float64 of shape () or (T,).
    """
    shapes = [masks.shape for masks in (pred, truth, void) if masks is not None]
    if len(set(shapes)) > 1 or truth.ndim not in (2, 3):
        raise ValueError(f"masks to compare must have one shape, (H, W) or (T, H, W), not {shapes}")
    *frames, height, width = truth.shape
    counted = 1 if void is None else 1 - _binary(void)
    pairs = [(_binary(masks) & counted).reshape(-1, height, width) for masks in (pred, truth)]
    radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(height, width))
    scores = [_jf_frame(a, b, radius) for a, b in zip(*pairs, strict=True)]
    j, f = np.array(scores, np.float64).reshape(-1, 2).T
    return j.reshape(frames), f.reshape(frames)


def _binary(masks: NDArray) -> Mask:
    return np.ascontiguousarray(masks if masks.dtype == np.bool_ else masks != 0).view(np.uint8)


def _jf_frame(pred: Mask, truth: Mask, radius: int) -> tuple[float, float]:
    # one pixel around both masks holds their boundaries, and the image's border where they touch it
    left, top, width, height = cv2.boundingRect(pred | truth)
    window = np.s_[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1]
    pred, truth = pred[window], truth[window]
    union = np.count_nonzero(pred | truth)
    return np.count_nonzero(pred & truth) / union if union else 1.0, _boundary(pred, truth, radius)


def _boundary(pred: Mask, truth: Mask, radius: int) -> float:
    if np.array_equal(pred, truth):
        return 1.0
    lines = _boundary_map(pred), _boundary_map(truth)
    lengths = [np.count_nonzero(line) for line in lines]
    if not all(lengths):
        return float(lengths[0] == lengths[1])
    near = [cv2.dilate(line, _disk(radius)) for line in reversed(lines)]
    precision, recall = (np.count_nonzero(lines[i] & near[i]) / lengths[i] for i in (0, 1))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary_map(mask: Mask) -> Mask:
    """Pixels that differ from their right, lower or lower right neighbour, as far as the image has one."""
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8), anchor=(0, 0)), np.uint8)


@lru_cache
def _disk(radius: int) -> Mask:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(x**2 + y**2 <= radius**2, np.uint8)
