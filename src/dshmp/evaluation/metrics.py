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

Mask = NDArray[np.uint8]
MaskScores = NDArray[np.float64]

BOUNDARY_TOLERANCE = 0.008  # of the image's diagonal


def region_similarity(pred: NDArray, truth: NDArray, void: NDArray | None = None) -> MaskScores:
    """J, the intersection over the union; pixels of `void` do not count.

    Args: masks (H, W) or (T, H, W) of one shape. Returns: float64 of shape () or (T,).
    Raises: ValueError where the shapes differ.
    """
    pairs, _, shape = _windows(pred, truth, void)
    return np.array([_region(*pair) for pair in pairs], np.float64).reshape(shape)


def boundary_measure(pred: NDArray, truth: NDArray, void: NDArray | None = None) -> MaskScores:
    """F, the harmonic mean of the boundary's precision and recall; pixels of `void` count as background.

    Args: masks (H, W) or (T, H, W) of one shape. Returns: float64 of shape () or (T,).
    Raises: ValueError where the shapes differ.
    """
    pairs, radius, shape = _windows(pred, truth, void)
    return np.array([_boundary(*pair, radius) for pair in pairs], np.float64).reshape(shape)


def jf_frames(pred: NDArray, truth: NDArray, void: NDArray | None = None) -> tuple[MaskScores, MaskScores]:
    """J and F of every frame, as `region_similarity` and `boundary_measure` give them, in one pass."""
    pairs, radius, shape = _windows(pred, truth, void)
    scores = [(_region(*pair), _boundary(*pair, radius)) for pair in pairs]
    j, f = np.array(scores, np.float64).reshape(-1, 2).T
    return j.reshape(shape), f.reshape(shape)


def jf(pred: NDArray, truth: NDArray) -> tuple[float, float]:
    """Mean J and mean F over the frames of a video, masks (T, H, W).

    Raises: ValueError where the shapes differ or there is no frame.
    """
    j, f = jf_frames(pred, truth)
    if not j.size:
        raise ValueError("cannot score a video without frames: give masks (T, H, W) with T at least 1")
    return float(j.mean()), float(f.mean())


def _windows(
    pred: NDArray, truth: NDArray, void: NDArray | None
) -> tuple[list[tuple[Mask, Mask]], int, tuple[int, ...]]:
    """Each frame's two masks cut to where they are, the tolerance in pixels, the shape of the answer."""
    if pred.shape != truth.shape or pred.ndim not in (2, 3):
        raise ValueError(
            f"masks to compare must have one shape, (H, W) or (T, H, W): "
            f"the prediction has {pred.shape}, the annotation {truth.shape}"
        )
    if void is not None and void.shape != truth.shape:
        raise ValueError(f"the void mask must have the annotation's shape {truth.shape}: it has {void.shape}")
    height, width = truth.shape[-2:]
    frames = [_binary(masks).reshape(-1, height, width) for masks in (pred, truth)]
    if void is not None:
        counted = 1 - _binary(void).reshape(-1, height, width)
        frames = [masks & counted for masks in frames]
    radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(height, width))
    return [_window(*pair) for pair in zip(*frames, strict=True)], radius, truth.shape[:-2]


def _binary(masks: NDArray) -> Mask:
    binary: Mask = np.ascontiguousarray(masks if masks.dtype == np.bool_ else masks != 0).view(np.uint8)
    return binary


def _window(pred: Mask, truth: Mask) -> tuple[Mask, Mask]:
    """Cut both masks to their common bounding box and one pixel around it, as far as the image goes.

    The boundary runs at most one pixel outside a mask, and is matched only where the other boundary is, so
    nothing that counts lies outside; a side of the window on the image's border keeps the border's rule.
    """
    boxes = [box for box in (_box(pred), _box(truth)) if box]
    if not boxes:
        return pred[:0, :0], truth[:0, :0]
    left, top, right, bottom = zip(*boxes, strict=True)
    window = np.s_[max(min(top) - 1, 0) : max(bottom) + 1, max(min(left) - 1, 0) : max(right) + 1]
    return pred[window], truth[window]


def _box(mask: Mask) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of a mask, the latter two exclusive; None where it is empty."""
    if not cv2.hasNonZero(mask):
        return None
    columns = np.flatnonzero(np.bitwise_or.reduce(mask, 0))  # first, as rows are then short
    left, right = int(columns[0]), int(columns[-1]) + 1
    _, top, _, height = cv2.boundingRect(mask[:, left:right])
    return left, top, right, top + height


def _region(pred: Mask, truth: Mask) -> float:
    union = np.count_nonzero(pred | truth)
    return np.count_nonzero(pred & truth) / union if union else 1.0


def _boundary(pred: Mask, truth: Mask, radius: int) -> float:
    if np.array_equal(pred, truth):
        return 1.0
    pred_line, truth_line = _boundary_map(pred), _boundary_map(truth)
    pred_length, truth_length = np.count_nonzero(pred_line), np.count_nonzero(truth_line)
    if not pred_length or not truth_length:
        return float(pred_length == truth_length)
    near = _near(pred_line, truth_line, radius)
    if near is None:
        return 0.0
    pred_line, truth_line = pred_line[near], truth_line[near]
    precision = _matched(pred_line, truth_line, radius) / pred_length
    recall = _matched(truth_line, pred_line, radius) / truth_length
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary_map(mask: Mask) -> Mask:
    """Pixels that differ from their right, lower or lower right neighbour, as far as the image has one."""
    line: Mask = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8), anchor=(0, 0))
    return line


def _near(a: Mask, b: Mask, radius: int) -> tuple[slice, slice] | None:
    """Where pixels of two lines can be within reach of each other; None where they cannot."""
    boxes = [box for box in (_box(a), _box(b)) if box]
    left, top = (max(0, *(box[side] - radius for box in boxes)) for side in (0, 1))
    right, bottom = (min(box[side] + radius for box in boxes) for side in (2, 3))
    return np.s_[top:bottom, left:right] if left < right and top < bottom else None


def _matched(line: Mask, other: Mask, radius: int) -> int:
    """How many pixels of a line have one of the other within the disk.

    Squares are dilated with several times as fast as a disk: what the square inside the disk reaches is matched,
    what the square around it does not reach is not, and the few pixels between are looked up one by one.
    """
    inside, ring = _disk(radius)
    surely = line & cv2.dilate(other, _square(inside))
    perhaps = (line & cv2.dilate(other, _square(radius))) ^ surely
    y, x = np.divmod(np.flatnonzero(perhaps.view(np.bool_)), perhaps.shape[1])
    padded = cv2.copyMakeBorder(other, radius, radius, radius, radius, cv2.BORDER_CONSTANT)
    width = padded.shape[1]
    places = (ring[:, 0] * width + ring[:, 1])[:, None] + ((y + radius) * width + x + radius)  # (offsets, P)
    return int(np.count_nonzero(surely) + np.count_nonzero(np.bitwise_or.reduce(padded.ravel()[places], 0)))


def _square(reach: int) -> Mask:
    return np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)


@lru_cache
def _disk(radius: int) -> tuple[int, NDArray[np.intp]]:
    """The reach of the largest square inside the disk, and the disk's offsets (y, x) outside that square."""
    reach = math.isqrt(radius**2 // 2)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    ring = (x**2 + y**2 <= radius**2) & (np.maximum(abs(x), abs(y)) > reach)
    return reach, np.stack([y[ring], x[ring]], 1)
