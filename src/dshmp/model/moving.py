"""Ours: where a picture moves by itself, from optical flow and colour; a small U-Net (Ronneberger et al., MICCAI 2015)
that has seen synthetic scenes alone (`dshmp.synthetic.moving`)."""

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

SHORT = 192  # short side in pixels of the pictures whose flow is taken; the network sees half of that
LONG = 768  # the long side at most
WIDTHS = (16, 40, 80, 128, 160)  # channels of the network at each of its scales
CHANNELS = 9
OUTPUTS = 3  # logit of moving by itself; x, y from a pixel to the middle of its object, in short sides
GRID = 8  # pixels between the places that the background's motion is fitted to
ROUNDS = 8  # of the robust fit


def flow_size(height: int, width: int) -> tuple[int, int]:
    """Height and width to take the flow at, multiples of 32; of very long pictures the short side is shorter."""
    scale = min(SHORT / min(height, width), LONG / max(height, width))
    return max(32, round(height * scale / 32) * 32), max(32, round(width * scale / 32) * 32)


def optical_flow(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Where the pixels of one RGB picture (H, W, 3) uint8 are in another, (H, W, 2): x, y in pixels (Kroeger et al.,
    ECCV 2016)."""
    grey = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (before, after)]
    method: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(method.calc(*grey, None))


def flow_input(
    now: NDArray[np.uint8], forward: NDArray[np.float32], backward: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the network sees of an RGB picture (H, W, 3), (CHANNELS, H / 2, W / 2), with its flow to the picture after
    and to that before: both flows without the background's, how large they are against the noise, how unlike, colours.
    """
    forward, backward = _own(forward), -_own(backward)
    size = np.linalg.norm((forward + backward) / 2, axis=2, keepdims=True)
    parts = [
        _compressed(forward),
        _compressed(backward),
        np.log1p(size / (np.median(size) + 0.1)),
        np.log1p(np.linalg.norm(forward - backward, axis=2, keepdims=True)),
        now.astype(np.float32) / 255 - 0.5,
    ]
    half = cv2.resize(np.concatenate(parts, axis=2), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(half.transpose(2, 0, 1), dtype=np.float32)


def _compressed(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.sign(flow) * np.log1p(np.abs(flow)), np.float32)


def _own(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flow (H, W, 2) without that of a plane seen by a moving camera (quadratic in x and y), which is fitted to what
    most of the picture does."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x - width / 2) / SHORT, (y - height / 2) / SHORT
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2)  # (H, W, 6)
    places = np.s_[GRID // 2 :: GRID, GRID // 2 :: GRID]
    a, b = terms[places].reshape(-1, 6), flow[places].reshape(-1, 2)
    weight = np.ones(len(a), np.float32)
    for _ in range(ROUNDS):
        scaled = a * weight[:, None]
        fit = np.linalg.solve(scaled.T @ a + 1e-3 * np.eye(6, dtype=np.float32), scaled.T @ b)
        off = np.linalg.norm(b - a @ fit, axis=1)
        scale = 1.5 * np.median(off) + 0.05
        weight = 1 / (1 + (off / scale) ** 2) ** 2
    return np.asarray(flow - terms @ fit, np.float32)


def _layer(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.GroupNorm(8, outer), nn.SiLU())


class MovingObjects(nn.Module):
    """(B, CHANNELS, h, w) -> (B, OUTPUTS, h, w); h and w are multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(WIDTHS))
        self.stem = _layer(CHANNELS, WIDTHS[0])
        self.down = nn.ModuleList(nn.Sequential(_layer(fine, coarse), _layer(coarse, coarse)) for fine, coarse in pairs)
        self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in reversed(pairs))
        self.up = nn.ModuleList(_layer(fine, fine) for fine, _ in reversed(pairs))
        self.head = nn.Conv2d(WIDTHS[0], OUTPUTS, 1)

    def forward(self, x: Tensor) -> Tensor:
        scales = [self.stem(x)]
        for block in self.down:
            scales.append(block(F.max_pool2d(scales[-1], 2)))
        found = scales.pop()
        for narrow, block in zip(self.narrow, self.up, strict=True):
            found = block(F.interpolate(narrow(found), scale_factor=2.0, mode="bilinear") + scales.pop())
        result: Tensor = self.head(found)
        return result
