"""Swin (https://arxiv.org/abs/2103.14030) and Video-Swin (https://arxiv.org/abs/2106.13230), whose windows and shifts
reach over time too. Patches are one frame deep: every frame has its own features."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import BackboneConfig
from dshmp.model.layers import drop_path

Size = tuple[int, ...]  # frames, rows, columns
BLOCKED = -100.0  # added to the score of two tokens that only the shift has brought into one window
PATCH = 4  # side of a patch, in pixels


def partition(x: Tensor, window: Size) -> Tensor:
    """(B, T, H, W, ...) -> (B, windows, N, ...): windows one after the other, N = t*h*w."""
    for axis, width in enumerate(window):
        x = x.unflatten(2 * axis + 1, (-1, width))
    # (B, T/t, t, H/h, h, W/w, w, ...) -> (B, T/t, H/h, W/w, t, h, w, ...)
    return x.movedim((1, 3, 5), (1, 2, 3)).flatten(4, 6).flatten(1, 3)


def join(x: Tensor, window: Size, size: Size) -> Tensor:
    """The inverse of `partition`: (B, windows, N, C) -> (B, T, H, W, C)."""
    x = x.unflatten(1, [s // w for s, w in zip(size, window, strict=True)]).unflatten(4, window)
    return x.movedim((1, 2, 3), (1, 3, 5)).flatten(5, 6).flatten(3, 4).flatten(1, 2)


@lru_cache(maxsize=32)
def window_groups(size: Size, window: Size, shift: Size, device: torch.device) -> list[tuple[Tensor, Tensor | None]]:
    """The windows of a rolled clip by what is added to their scores: numbers of windows, and (N, N) or None. Only the
    last windows along a shifted axis hold tokens from both ends of the clip. Shared, so never written to."""
    with torch.inference_mode(False):
        region = torch.zeros(size, dtype=torch.long)
        for axis, (length, step) in enumerate(zip(size, shift, strict=True)):
            wrapped = torch.arange(length) >= length - step
            region = 2 * region + wrapped.view([-1 if each == axis else 1 for each in range(3)])
        kinds, kind = partition(region[None], window)[0].unique(dim=0, return_inverse=True)
        groups = []
        for index, regions in enumerate(kinds):
            mask = BLOCKED * (regions[:, None] != regions).float()
            groups.append(((kind == index).nonzero()[:, 0].to(device), mask.to(device) if mask.any() else None))
        return groups


@lru_cache(maxsize=4)
def relative_position(window: Size, device: torch.device) -> Tensor:
    """(N, N) long: row of the bias table for every two places of a whole window; shared, so never written to."""
    with torch.inference_mode(False):
        places = torch.cartesian_prod(*(torch.arange(width) for width in window))  # (N, 3)
        index = torch.zeros(len(places), len(places), dtype=torch.long)
        for axis, width in enumerate(window):
            step = places[:, None, axis] - places[:, axis]
            index = index * (2 * width - 1) + step + width - 1
        return index.to(device)


class PatchEmbedding(nn.Module):
    """Patches of an image, padded at its right and bottom to whole ones, as normalised vectors."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, channels, PATCH, PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (F, 3, H, W) -> (F, h*w, C) and (h, w)."""
        height, width = images.shape[2:]
        patches = self.projection(F.pad(images, (0, -width % PATCH, 0, -height % PATCH)))
        return self.norm(patches.flatten(2).transpose(1, 2)), (patches.shape[2], patches.shape[3])


class PatchMerging(nn.Module):
    """Four neighbours become one vector of twice the channels; odd sides are padded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """x (F, h*w, C) -> (F, ceil(h/2) * ceil(w/2), 2C)."""
        height, width = size
        x = F.pad(x.unflatten(1, size), (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (F, h/2, 2, w/2, 2, C)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)  # of a column's two pixels the upper one comes first
        return cast(Tensor, self.reduction(self.norm(x)))


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias for every relative position. Every axis is padded at its
    end to whole windows and then, if `shifted`, rolled back by half a window. But if windows `shrink`, an axis no
    longer than the window has one, of the axis's length, and no shift."""

    def __init__(self, channels: int, heads: int, window: Size, shrink: bool, shifted: bool) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        self.heads = heads
        self.window = window
        self.shrink = shrink
        self.shifted = shifted
        self.position_bias = nn.Parameter(torch.empty(math.prod(2 * width - 1 for width in window), heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.position_bias, std=0.02)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """x (B, T*H*W, C), size (T, H, W) -> (B, T*H*W, C)."""
        window = tuple(map(min, size, self.window)) if self.shrink else self.window
        moved = [self.shifted and (s > w or not self.shrink) for s, w in zip(size, window, strict=True)]
        shift = tuple(w // 2 * each for w, each in zip(window, moved, strict=True))
        padding = [-s % w for s, w in zip(size, window, strict=True)]
        x = x.unflatten(1, size)
        if any(padding):
            x = F.pad(x, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
        whole = tuple(x.shape[1:4])
        if any(shift):
            x = x.roll([-step for step in shift], (1, 2, 3))
        x = partition(x, window)  # (B, W, N, C)
        # As the published weights were trained, a window cut short counts its places as the first N of a whole one.
        index = relative_position(self.window, x.device)[: x.shape[2], : x.shape[2]]
        bias = self.position_bias.t()[:, index]  # (H, N, N)
        groups = [
            (numbers, bias if mask is None else bias + mask.to(bias.dtype))
            for numbers, mask in window_groups(whole, window, shift, x.device)
        ]
        if len(groups) == 1:
            x = self._attend(x, groups[0][1])
        else:
            outputs = [self._attend(x[:, numbers], added) for numbers, added in groups]
            order = torch.cat([numbers for numbers, _ in groups]).argsort()
            x = torch.cat(outputs, dim=1)[:, order]
        x = join(x, window, whole)
        if any(shift):
            x = x.roll(shift, (1, 2, 3))
        return cast(Tensor, self.output(x[:, : size[0], : size[1], : size[2]].flatten(1, 3)))

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """Windows (B, W, N, C), added to their scores (H, N, N) -> (B, W, N, C)."""
        qkv = self.qkv(x).unflatten(3, (3, self.heads, -1))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)  # (B, W, N, 3, H, d) -> 3 x (B*W, H, N, d)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return cast(Tensor, output.transpose(1, 2).flatten(2).unflatten(0, (x.shape[0], -1)))


class SwinBlock(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), both under stochastic depth, clip by clip."""

    def __init__(self, channels: int, heads: int, window: Size, shrink: bool, shifted: bool, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window, shrink, shifted)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """x (B, T*h*w, C), size (T, h, w) -> (B, T*h*w, C)."""
        x = x + drop_path(self.attention(self.norm1(x), size), self.drop, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop, self.training)


class SwinStage(nn.Module):
    """The blocks of a stage, every second one shifted; merging patches is the caller's, words come in between."""

    def __init__(
        self, channels: int, heads: int, window: Size, shrink: bool, drops: Sequence[float], last: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, shrink, shifted=i % 2 == 1, drop=drop) for i, drop in enumerate(drops)
        )
        self.downsample = None if last else PatchMerging(channels)

    def forward(self, x: Tensor, size: tuple[int, int], length: int) -> Tensor:
        """x (F, h*w, C), every `length` frames one clip -> (F, h*w, C)."""
        clips: Tensor = x.unflatten(0, (-1, length)).flatten(1, 2)  # (B*T, h*w, C) -> (B, T*h*w, C)
        for block in self.blocks:
            clips = block(clips, (length, *size))
        return clips.reshape_as(x)  # (B, T*h*w, C) -> (B*T, h*w, C)


def swin_stages(config: BackboneConfig) -> nn.ModuleList:
    """All stages, initialised as published. T has embed_dim 96, depths 2 2 6 2, heads 3 6 12 24; B has 128, 2 2 18 2,
    4 8 16 32; windows of 7 x 7 and, with a `temporal_window` (Video-Swin), 8 frames. Windows shrink in Video-Swin
    only: in Swin, as Mask2Former runs it, small maps are padded."""
    video = config.temporal_window is not None
    window = (config.temporal_window or 1, config.window_size, config.window_size)
    blocks = sum(config.depths)
    rates = iter([config.drop_path * i / max(blocks - 1, 1) for i in range(blocks)])
    stages = nn.ModuleList()
    for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        drops = [next(rates) for _ in range(depth)]
        stages.append(SwinStage(config.embed_dim * 2**i, heads, window, video, drops, i == len(config.depths) - 1))
    for module in stages.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return stages
