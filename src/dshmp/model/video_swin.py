"""Video-Swin's blocks (https://arxiv.org/abs/2106.13230): Swin's windows and shifts, reaching over time too.

Patches are one frame deep, so that every frame has its own features; then embedding and merging of patches are
Swin's, frame by frame, and only the blocks differ.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.swin.modeling_swin import SwinPatchMerging

from dshmp.config import BackboneConfig
from dshmp.model.layers import drop_path

Size = tuple[int, int, int]
"""Frames, rows, columns."""

BLOCKED = -100.0
"""Added to the score of two tokens that only the shift has brought into one window (as in Swin)."""


@dataclass(frozen=True)
class ClipLayout:
    """Where the S tokens of a clip lie in W windows of N places; a shared table, so never written to."""

    windows: int
    token: Tensor
    """(W*N,) long: the token in each place; S where the place is padding."""
    place: Tensor
    """(S,) long: the place of each token."""
    padded: bool
    groups: tuple[tuple[slice, Tensor | None], ...]
    """Windows that share a mask (N, N), one after the other: only the last window of a shifted axis has one."""


@lru_cache(maxsize=32)
def layout(size: Size, window: Size, shifted: bool, device: torch.device) -> ClipLayout:
    """How a block's windows divide a clip.

    Along an axis no longer than the window there is one window, of the axis's length, and no shift. Every other axis
    is padded at its end to whole windows and then, in a shifted block, rolled back by half a window.
    """
    with torch.inference_mode(False):
        window = (min(size[0], window[0]), min(size[1], window[1]), min(size[2], window[2]))
        shifts = [w // 2 if shifted and s > w else 0 for s, w in zip(size, window, strict=True)]
        grid = torch.zeros((1,) * 6, dtype=torch.long)  # (windows and places along each axis) of the values below
        token, real, kind, region = grid, grid == 0, grid, []
        for axis, (s, w, shift) in enumerate(zip(size, window, shifts, strict=True)):
            count = -(-s // w)
            position = ((torch.arange(count * w) + shift) % (count * w)).view(_axes(axis, count, w))
            token = token * s + position
            real = real & (position < s)
            last = (torch.arange(count) == count - 1) & (shift > 0)
            kind = kind * 2 + last.long().view(_axes(axis, count, 1))
            region.append((torch.arange(w) >= w - shift).view(_axes(axis, 1, w)))
        tokens = math.prod(size)
        kinds = kind.flatten()
        order = kinds.argsort(stable=True)
        token = token.where(real, tokens).flatten(0, 2).flatten(1)[order].flatten()  # (T', H', W', t, h, w) -> (W*N)
        place = torch.empty(tokens + 1, dtype=torch.long)
        place[token] = torch.arange(len(token))
        groups = []
        start = 0
        for which, count in enumerate(kinds.bincount().tolist()):
            crossed = [flag for axis, flag in enumerate(region) if which >> (2 - axis) & 1]
            if count:
                groups.append((slice(start, start + count), _mask(crossed, window).to(device) if crossed else None))
            start += count
        return ClipLayout(start, token.to(device), place[:-1].to(device), not bool(real.all()), tuple(groups))


def _axes(axis: int, count: int, width: int) -> list[int]:
    """The view of a vector along one axis: its windows stand in dimension `axis`, their places in `axis` + 3."""
    shape = [1] * 6
    shape[axis], shape[axis + 3] = count, width
    return shape


def _mask(crossed: list[Tensor], window: Size) -> Tensor:
    """(N, N): what is added to the scores of a window in which the regions' borders run along some axes."""
    blocked = torch.zeros(math.prod(window), math.prod(window), dtype=torch.bool)
    for flag in crossed:
        side = flag.expand(1, 1, 1, *window).flatten()
        blocked |= side[:, None] != side
    return torch.zeros(blocked.shape).masked_fill(blocked, BLOCKED)


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


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias for every relative position."""

    def __init__(self, channels: int, heads: int, window: Size) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        self.heads = heads
        self.window = window
        self.position_bias = nn.Parameter(torch.empty(math.prod(2 * width - 1 for width in window), heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.position_bias, std=0.02)

    def forward(self, x: Tensor, places: ClipLayout) -> Tensor:
        """x (B, S, C) -> (B, S, C)."""
        x = F.pad(x, (0, 0, 0, 1)) if places.padded else x  # padding is one more token, of zeros
        x = x.index_select(1, places.token).unflatten(1, (places.windows, -1))  # (B, S, C) -> (B, W, N, C)
        # (B, W, N, 3*H*d) -> 3 x (B, W, H, N, d)
        query, key, value = self.qkv(x).unflatten(3, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        # A window cut short by the clip's size still counts its places as the first N of a whole one: so the published
        # weights were trained.
        index = relative_position(self.window, x.device)[: x.shape[2], : x.shape[2]]
        bias = self.position_bias.t()[:, index]  # (H, N, N)
        outputs = []
        for group, mask in places.groups:
            # (B, W', H, N, d) -> (B*W', H, N, d)
            q, k, v = (part[:, group].flatten(0, 1) for part in (query, key, value))
            added = bias if mask is None else bias + mask.to(bias.dtype)
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=added[None])
            outputs.append(output.transpose(1, 2).flatten(2).unflatten(0, (len(x), -1)))  # -> (B, W', N, H*d)
        x = torch.cat(outputs, dim=1).flatten(1, 2)  # (B, W, N, C) -> (B, W*N, C)
        attended: Tensor = self.output(x.index_select(1, places.place))
        return attended


class VideoSwinBlock(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), both under stochastic depth, clip by clip."""

    def __init__(self, channels: int, heads: int, window: Size, shifted: bool, drop: float) -> None:
        super().__init__()
        self.shifted = shifted
        self.drop = drop
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """x (B, T*h*w, C), size (T, h, w) -> (B, T*h*w, C)."""
        places = layout(size, self.attention.window, self.shifted, x.device)
        x = x + drop_path(self.attention(self.norm1(x), places), self.drop, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop, self.training)


class VideoSwinStage(nn.Module):
    """The blocks of a stage, every second one shifted; merging patches is the caller's, words come in between."""

    def __init__(self, channels: int, heads: int, window: Size, drops: list[float], last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            VideoSwinBlock(channels, heads, window, shifted=i % 2 == 1, drop=drop) for i, drop in enumerate(drops)
        )
        self.downsample = None if last else SwinPatchMerging(channels)

    def forward(self, x: Tensor, size: tuple[int, int], length: int) -> Tensor:
        """x (F, h*w, C), every `length` frames one clip -> (F, h*w, C)."""
        clips: Tensor = x.unflatten(0, (-1, length)).flatten(1, 2)  # (B*T, h*w, C) -> (B, T*h*w, C)
        for block in self.blocks:
            clips = block(clips, (length, *size))
        return clips.reshape_as(x)  # (B, T*h*w, C) -> (B*T, h*w, C)


def video_swin_stages(config: BackboneConfig, temporal_window: int) -> nn.ModuleList:
    """All stages, initialised as Swin is.

    Published: T has embed_dim 96, depths 2 2 6 2, heads 3 6 12 24; B has embed_dim 128, depths 2 2 18 2, heads
    4 8 16 32; both windows of 8 frames x 7 x 7.
    """
    window = (temporal_window, config.window_size, config.window_size)
    blocks = sum(config.depths)
    drops = iter([config.drop_path * i / max(blocks - 1, 1) for i in range(blocks)])
    stages = nn.ModuleList(
        VideoSwinStage(
            config.embed_dim * 2**i, heads, window, [next(drops) for _ in range(depth)], i == len(config.depths) - 1
        )
        for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True))
    )
    for module in stages.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return stages
