"""Ours: where an object is and what its outline is like, from its mask alone, and how both change along its trajectory.

It is one function of binary masks on a fixed grid, without gradient, so that masks of our static perception and tracks
made elsewhere say the same. Lengths are in short sides of the picture, places are measured from its middle, y down.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.common.device import widest
from dshmp.model.layers import MLP
from dshmp.model.trajectories import LONGEST_GAP, at_frames, neighbours, rate

GRID = 64  # cells on a picture's short side
LEAST = 4  # cells of a mask that counts as one
OUTLINE = 12  # the outline is resampled to so many cells each way
PLACE, BOX = 10, slice(10, 14)  # how many numbers come before the box, and the box
NUMBERS = 14  # before the outline
CHANNELS = NUMBERS + OUTLINE**2
SHAPE = 16  # channels that the outline's network makes
STATE = PLACE + SHAPE  # numbers whose change along the trajectory is told
SPEED = 16.0  # what changes within one motion frame is small; times this it is as large as the other numbers


def grid_size(height: int, width: int) -> tuple[int, int]:
    """The grid of a picture: square cells, `GRID` on its short side."""
    scale = GRID / min(height, width)
    return round(height * scale), round(width * scale)


def masks_on_grid(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Masks (..., H, W), 0 or 1, at the size of their frames -> (..., *grid) bool: cells that they cover by half."""
    flat = masks.flatten(0, -3)[:, None].float()
    share: Tensor = F.interpolate(flat, grid, mode="area")[:, 0].unflatten(0, masks.shape[:-2])
    return share >= 0.5


@torch.no_grad()
def mask_geometry(masks: Tensor) -> Tensor:
    """Masks (M, h, w) bool on a picture's grid -> (M, CHANNELS) float32, zero where a mask has less than `LEAST` cells.

    In this order: centre (x, y); log of the root of the area; form, that is (variance in x less that in y, twice the
    covariance) over the sum of the variances, and the share of its box that it fills; the length of its contact with
    the picture's left, top, right and bottom border over the root of its area; box (x0, y0, x1, y1); outline.
    """
    if not len(masks):
        return torch.zeros(0, CHANNELS, device=masks.device)
    height, width = masks.shape[1:]
    cell = 1 / min(height, width)
    x = (torch.arange(width, device=masks.device) + 0.5 - width / 2) * cell
    y = (torch.arange(height, device=masks.device) + 0.5 - height / 2) * cell
    inside = masks.float()
    columns, rows = inside.sum(1), inside.sum(2)  # (M, w), (M, h)
    cells = columns.sum(1)
    area = cells.clamp(min=1)
    mean_x, mean_y = columns @ x / area, rows @ y / area
    # a cell is no point: the variance within it counts, too
    var_x, var_y = (each + cell**2 / 12 for each in (columns @ x**2 / area - mean_x**2, rows @ y**2 / area - mean_y**2))
    covariance = ((inside @ x) @ y) / area - mean_x * mean_y
    (x0, x1), (y0, y1) = _ends(columns, x, cell), _ends(rows, y, cell)
    box = torch.stack([x0, y0, x1, y1], 1)
    edges = inside[:, :, 0].sum(1), inside[:, 0].sum(1), inside[:, :, -1].sum(1), inside[:, -1].sum(1)
    numbers = (
        *(mean_x, mean_y, (area * cell**2).log() / 2),
        *((var_x - var_y) / (var_x + var_y), 2 * covariance / (var_x + var_y)),
        area * cell**2 / ((x1 - x0) * (y1 - y0)),
        *((edge / area.sqrt()).clamp(max=1) for edge in edges),
    )
    found = torch.cat([torch.stack(numbers, 1), box, _outline(inside, box)], 1)
    return found.masked_fill((cells < LEAST)[:, None], 0.0)


def _ends(counts: Tensor, place: Tensor, cell: float) -> tuple[Tensor, Tensor]:
    """The outer edges of the first and the last cell that is not empty: counts (M, n), centres of the cells (n,)."""
    full = (counts > 0).byte()
    first, last = full.argmax(1), full.shape[1] - 1 - full.flip(1).argmax(1)
    return place[first] - cell / 2, place[last] + cell / 2


def _outline(inside: Tensor, box: Tensor) -> Tensor:
    """Masks (M, h, w), each in the square around its box, on OUTLINE x OUTLINE cells: (M, OUTLINE**2)."""
    height, width = inside.shape[1:]
    middle, half = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).amax(1) / 2
    steps = (torch.arange(OUTLINE, device=inside.device) + 0.5) / OUTLINE * 2 - 1
    square = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)  # (S, S, 2), x first
    places = middle[:, None, None] + half[:, None, None, None] * square
    places = places * (2 * min(height, width) / places.new_tensor([width, height]))  # in grid_sample's -1 to 1
    return F.grid_sample(inside[:, None], places, align_corners=False).flatten(1)


class MotionGeometry(nn.Module):
    """Geometry of candidates, its rates of change, and the camera's motion, for the tokens of motion perception."""

    def __init__(self, channels: int, window: int, camera: bool) -> None:
        super().__init__()
        # one frame's change shows what is fleeting but is mostly noise; a window's shows the direction
        self.reaches = ((1, 0), (window // 4, window // 4), (window // 2, window // 2))
        self.camera = camera
        self.outline = MLP(OUTLINE**2, 4 * SHAPE, SHAPE, 2)
        scene = 2 * len(self.reaches) + 1 if camera else 0
        self.read = MLP((1 + len(self.reaches)) * STATE + scene, 2 * channels, channels, 2)

    def forward(
        self,
        geometry: Tensor,
        seen: Tensor,
        camera: Tensor | None,
        sure: Tensor | None,
        position: Tensor,
        stride: int,
        part: slice,
    ) -> Tensor:
        """Of the frames `part`: (B, F, N, C).

        Args:
            geometry, seen: (B, T, N, CHANNELS) and (B, T, N) bool, in the order of trajectories.
            camera, sure: (B, T, 2, 3) and (B, T) as in `Candidates`; None for a camera that keeps still.
            position: (B, T) of frames in the video, of which `stride` are one motion frame.
        """
        start, stop, _ = part.indices(geometry.shape[1])
        first = max(0, start - LONGEST_GAP)
        near, here = slice(first, stop + LONGEST_GAP), slice(start - first, stop - first)
        geometry, seen, position = geometry[:, near].float(), seen[:, near], position[:, near]
        state = torch.cat([geometry[..., :PLACE], self.outline(geometry[..., NUMBERS:])], -1)
        told = [state[:, here]]
        if self.camera:
            motion = _still(geometry) if camera is None else camera[:, near]
            pose = cumulative(motion)[:, :, None]  # (B, t, 1, 3, 3), from the first of these frames to each
            scene = _turned(pose[..., :2, :2].inverse(), state[..., :2] - pose[..., :2, 2])
            turn = pose[:, here, :, :2, :2]
            known = torch.ones_like(position) if sure is None else sure[:, near]
            told.append(known[:, here, None, None].expand(*told[0].shape[:3], 1))
        for before, after in self.reaches:
            earlier, later = (each[:, here] for each in neighbours(seen, before, after))
            factor = SPEED * rate(position, earlier, later, stride)[..., None]
            told.append((at_frames(state, later) - at_frames(state, earlier)) * factor)
            if self.camera:
                moved = at_frames(scene, later) - at_frames(scene, earlier)
                told.append(_turned(turn, moved).to(factor.dtype) * factor)
        return cast(Tensor, self.read(torch.cat(told, -1)))


def _turned(linear: Tensor, vectors: Tensor) -> Tensor:
    """Maps (..., 2, 2) of vectors (..., 2)."""
    return (linear @ vectors.to(linear.dtype)[..., None])[..., 0]


def _still(geometry: Tensor) -> Tensor:
    """The motion of a camera that keeps still, (B, T, 2, 3)."""
    return torch.eye(2, 3, device=geometry.device).expand(*geometry.shape[:2], 2, 3)


def cumulative(camera: Tensor) -> Tensor:
    """From the first frame to each: motion from the frame before (B, T, 2, 3) -> (B, T, 3, 3), in float64 where there
    is such. The first frame's own is not read."""
    pose = _square(camera)
    reach = 1
    while reach < pose.shape[1]:  # each is a product of `reach` neighbours, then of twice as many
        pose = torch.cat([pose[:, :reach], pose[:, reach:] @ pose[:, :-reach]], 1)
        reach *= 2
    return pose


def every(camera: Tensor, stride: int) -> Tensor:
    """The background's motion over `stride` frames, those up to each; at the start over as many as there are."""
    pose = found = _square(camera)
    for back in range(1, min(stride, camera.shape[1])):
        before = torch.cat([torch.eye(3).to(pose).expand(len(pose), back, 3, 3), pose[:, :-back]], 1)
        found = found @ before
    return found[:, :, :2].to(camera.dtype)


def _square(camera: Tensor) -> Tensor:
    """(B, T, 2, 3) -> (B, T, 3, 3), none in the first frame."""
    pose = F.pad(camera.to(widest(camera.device)), (0, 0, 0, 1))
    pose[..., 2, 2] = 1
    pose[:, 0] = torch.eye(3).to(pose)
    return pose
