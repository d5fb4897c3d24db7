"""What motion perception and the motion decoder read of a clip: in every frame some candidates, whoever found them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from dshmp.config import ModelConfig
from dshmp.model.camera import camera_motion, followed, grey_frames
from dshmp.model.geometry import BOX, CHANNELS, LEAST, every, grid_size, mask_geometry
from dshmp.model.trajectories import gather, link

OBJECT = 0.2  # least probability that a candidate is an object at all
DUPLICATE = 0.6  # IoU from which on two candidates of a frame are one object


@dataclass(frozen=True)
class Candidates:
    """B clips of T frames with N candidates each, N being free. A model that reads geometry reads tokens, geometry or
    both; others read tokens alone, and take every candidate for one that is there."""

    frames: Tensor  # (B, T) bool, real frames; padding stands at the end
    tokens: Tensor | None = None  # (B, T, N, C), object tokens
    geometry: Tensor | None = None  # (B, T, N, G) of `model.geometry`
    present: Tensor | None = None  # (B, T, N) bool, candidates that are there; None: all
    camera: Tensor | None = None  # (B, T, 2, 3), the background's motion since the frame before; None: none
    sure: Tensor | None = None  # (B, T) how sure that is, 0 to 1
    fits: Tensor | None = None  # (B, T, N) logits that each fits the static words, where that is known; else NaN
    appearance: Tensor | None = None  # (B, T, N, A) what each looks like, of any length; zeros where that is not known
    linked: bool = False  # candidate i is of the same object in all frames

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, T, N)."""
        one = self.tokens if self.tokens is not None else self.geometry
        if one is None:
            raise ValueError("candidates need tokens or geometry")
        return one.shape[0], one.shape[1], one.shape[2]

    @property
    def seen(self) -> Tensor:
        """(B, T, N) bool: what is there in a real frame."""
        frames = self.frames[..., None].expand(self.shape)
        return frames if self.present is None else frames & self.present

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """With every tensor changed in the same way."""
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)

    def interleaved(self, start: int, stride: int) -> Self:
        """Frames `start`, `start + stride` and so on; the camera's motion is that of all frames between."""
        camera = None if self.camera is None or stride == 1 else every(self.camera, stride)
        return replace(self, camera=camera).each(lambda value: value[:, start::stride]) if stride > 1 else self

    def in_order(self, order: Tensor) -> Self:
        """Candidates in the order (B, T, N) of trajectories."""
        vectors, numbers = ("tokens", "geometry", "appearance"), ("present", "fits")
        changed: dict[str, Any] = {
            name: gather(value, order) if name in vectors else value.gather(2, order)
            for name in (*vectors, *numbers)
            if (value := getattr(self, name)) is not None
        }
        return replace(self, linked=True, **changed)

    def order(self) -> Tensor:
        """Of the trajectories, (B, T, N) long: `trajectories.link`."""
        boxes = None if self.geometry is None else self.geometry[..., BOX]
        return link(self.tokens, boxes, self.seen, self.camera)


class Detected(NamedTuple):
    """Of F frames, what static perception has found."""

    present: Tensor  # (F, N) bool, candidates that are there
    geometry: Tensor  # (F, N, CHANNELS)
    covered: Tensor  # (F, h, w) bool on the grid, where any of them is


@torch.no_grad()
def detect(logits: Tensor, masks: Tensor, size: tuple[int, int]) -> Detected:
    """Candidates that are objects and have a mask, less sure duplicates left out.

    logits (F, N, 2), index 0 = object; mask logits (F, N, h, w) at stride 4 of the padded input, of which the frames
    take up `size`.
    """
    score = logits.float().softmax(-1)[..., 0]
    inside = on_grid(masks, size) > 0
    found = (score > OBJECT) & (inside.flatten(2).sum(2) >= LEAST)
    rows = inside.flatten(2).to(masks.dtype)
    area = rows.sum(2)
    overlap = rows @ rows.mT
    iou = overlap / (area[:, :, None] + area[:, None] - overlap).clamp(min=1)
    order = score.argsort(1, descending=True)
    kept = torch.zeros_like(found)
    for rank in order.T:  # the surest first
        own = rank[:, None]
        double = (iou.gather(1, own[..., None].expand(-1, -1, iou.shape[2]))[:, 0] > DUPLICATE) & kept
        kept.scatter_(1, own, found.gather(1, own) & ~double.any(1, keepdim=True))
    geometry = masks.new_zeros(*found.shape, CHANNELS, dtype=torch.float32)
    geometry[kept] = mask_geometry(inside[kept])
    return Detected(kept, geometry, (inside & kept[..., None, None]).any(1))


def on_grid(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (F, N, h, w) as in `detect` on the grid of the frames, without the padding."""
    rows, columns = grid_size(*size)
    whole = round(rows * 4 * masks.shape[2] / size[0]), round(columns * 4 * masks.shape[3] / size[1])
    return F.interpolate(masks.float(), whole, mode="bilinear")[..., :rows, :columns]


def clip_candidates(
    images: Tensor, size: tuple[int, int], tokens: Tensor, logits: Tensor, masks: Tensor, config: ModelConfig
) -> Candidates:
    """Of one whole clip (B = 1), from what static perception says of its T frames: images (T, 3, h, w) as of
    `prepare_frames`, of which the frames take up `size`, object tokens (T, N, C), their logits (T, N, 2) and mask
    logits (T, N, h/4, w/4). Tokens alone where the model reads no geometry."""
    frames = torch.ones(1, len(tokens), dtype=torch.bool, device=tokens.device)
    if not config.motion.geometry:
        return Candidates(frames, tokens[None])
    found = detect(logits, masks, size)
    corners = list(followed(grey_frames(images, size, config.input)))
    camera, sure = (each.to(tokens.device) for each in camera_motion(corners, found.covered.cpu().numpy()))
    known = tokens[None], found.geometry[None], found.present[None]
    return Candidates(frames, *known, camera[None], sure[None])
