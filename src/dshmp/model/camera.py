"""Ours: how the background moves between two frames, so that motion can be told relative to it.

Corners are followed by sparse optical flow (Lucas and Kanade, with pyramids), and a similarity (shift, turn, zoom) is
fitted to those outside of the candidates by RANSAC. Lengths are in short sides, places are measured from the middle.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dshmp.config import InputConfig

Points = NDArray[np.float32]  # (K, 4): x, y in the frame before and in this one, in short sides from the middle
NO_CORNERS: Points = np.zeros((0, 4), np.float32)

CORNERS, QUALITY = 300, 0.003  # at most so many, at least this good relative to the best
WINDOW, LEVELS = (13, 13), 3  # of the optical flow; pixels at each level of the pyramid
ERROR = 0.5  # pixels that a corner may be off when it is followed back
TOLERANCE = 0.006  # short sides that a corner may be off the background's motion
FEWEST, LEAST_SHARE = 8, 0.2  # corners that must agree, and their share; with fewer the motion is unknown
ZOOM = 0.5, 2.0  # what a camera can do from one frame to the next


def grey_frames(images: Tensor, size: tuple[int, int], config: InputConfig) -> NDArray[np.uint8]:
    """Normalised input (F, 3, h, w), whose frames are of this size before padding -> grey (F, *size) uint8."""
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (config.mean, config.std))
    grey = (images[..., : size[0], : size[1]] * std + mean).mean(1)
    return np.ascontiguousarray(grey.clamp(0, 255).byte().cpu().numpy())


def follow_corners(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Points:
    """Corners of one grey frame (h, w) that are found again in another of the same size."""
    short = min(before.shape)
    corners = cv2.goodFeaturesToTrack(before, CORNERS, QUALITY, max(3, short // 24), blockSize=5)
    if corners is None:
        return NO_CORNERS
    found, there, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None, winSize=WINDOW, maxLevel=LEVELS)
    back, again, _ = cv2.calcOpticalFlowPyrLK(after, before, found, None, winSize=WINDOW, maxLevel=LEVELS)
    kept = (there & again)[:, 0].astype(bool) & (np.abs(back - corners).max((1, 2)) < ERROR)
    middle = np.array([before.shape[1], before.shape[0]]) / 2 - 0.5
    pairs = (corners[kept, 0] - middle) / short, (found[kept, 0] - middle) / short
    return np.concatenate(pairs, 1).astype(np.float32)


def background_motion(points: Points, covered: Sequence[NDArray[np.bool_]] = ()) -> tuple[NDArray[np.float32], float]:
    """The motion (2, 3) that carries places of the frame before to this one, and the share of the corners that agree;
    no motion and 0 where too few do. `covered`: where candidates are in the two frames, (h, w) each."""
    outside = np.ones(len(points), bool)
    for mask, columns in zip(covered, (slice(0, 2), slice(2, 4)), strict=False):
        height, width = mask.shape
        places = points[:, columns] * min(height, width) + np.array([width, height]) / 2
        x, y = np.clip(places.astype(int), 0, (width - 1, height - 1)).T
        outside &= ~mask[y, x]
    chosen = points[outside]
    if len(chosen) >= FEWEST:
        motion, agree = cv2.estimateAffinePartial2D(
            chosen[:, None, :2].copy(),
            chosen[:, None, 2:].copy(),
            method=cv2.RANSAC,
            ransacReprojThreshold=TOLERANCE,
            maxIters=500,
        )
        zoom = 0.0 if motion is None else np.hypot(*motion[:, 0])
        if ZOOM[0] < zoom < ZOOM[1] and agree.sum() >= FEWEST and agree.mean() >= LEAST_SHARE:
            return motion.astype(np.float32), float(agree.mean())
    return np.eye(2, 3, dtype=np.float32), 0.0


def followed(frames: Iterator[NDArray[np.uint8]] | NDArray[np.uint8]) -> Iterator[Points]:
    """Of each grey frame the corners since the one before; none for the first."""
    before = None
    for frame in frames:
        yield NO_CORNERS if before is None else follow_corners(before, frame)
        before = frame


def camera_motion(
    points: Sequence[Points], covered: NDArray[np.bool_], before: NDArray[np.bool_] | None = None
) -> tuple[Tensor, Tensor]:
    """Of T frames and their corners, where candidates cover (T, h, w) and, in the frame before the first, (h, w):
    motions (T, 2, 3) and how sure they are (T,), float32. A first frame's is none, and not sure."""
    last = [covered[0] if before is None else before, *covered[:-1]]
    found = [background_motion(*each) for each in zip(points, zip(last, covered, strict=True), strict=True)]
    motions, sure = zip(*found, strict=True)
    return torch.from_numpy(np.stack(motions)), torch.tensor(sure)
