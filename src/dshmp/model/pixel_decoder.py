"""Mask2Former's pixel decoder (https://arxiv.org/abs/2112.01527): multi-scale deformable attention (Deformable DETR,
https://arxiv.org/abs/2010.04159) and a step of a feature pyramid. It also hands out the map that video masks are read
from. Names of parameters are those of transformers' Mask2Former."""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import PixelDecoderConfig

LEVELS, POINTS = 3, 4
CACHED = 8192  # pixels of all levels, of several small frames, that are read at once
Sizes = list[tuple[int, int]]  # (h, w) of each level


class PixelFeatures(NamedTuple):
    """Features of every pixel of F frames."""

    mask_features: Tensor  # (F, C, h, w) at stride 4, for the masks of a frame
    video_features: Tensor  # likewise, the map that mask_features are projected from, for the masks of the video
    levels: list[Tensor]  # three maps (F, C, h_i, w_i), coarse (stride 32) to fine (stride 8)

    def frames(self, index: Tensor) -> "PixelFeatures":
        """Those of some frames, any number of times: index (F',) long."""
        levels = [level[index] for level in self.levels]
        return PixelFeatures(self.mask_features[index], self.video_features[index], levels)


@lru_cache(maxsize=12)
def sine_position(height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sine embedding (1, channels, height, width) of normalised coordinates (DETR); shared, so never written to."""
    with torch.inference_mode(False):
        half = channels // 2
        period = 10_000 ** (2 * torch.arange(half, device=device).to(dtype).div(2, rounding_mode="floor") / half)

        def embed(length: int) -> Tensor:  # (length, half): sine and cosine in turn
            place = torch.arange(1, length + 1, dtype=dtype, device=device)
            angle = (place / (length + 1e-6) * (2 * math.pi))[:, None] / period
            return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

        rows, columns = embed(height)[:, None].expand(-1, width, -1), embed(width).expand(height, -1, -1)
        return torch.cat([rows, columns], dim=2).permute(2, 0, 1)[None]


@lru_cache(maxsize=4)
def _places(sizes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x and y (S, LEVELS) in pixels of every level, of the centres of all S pixels of all levels."""
    with torch.inference_mode(False):
        centres = []
        for height, width in sizes:
            y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
            x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
            centres.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=2).flatten(0, 1))
        scale = torch.tensor([[w, h] for h, w in sizes], device=device, dtype=dtype)
        x, y = (torch.cat(centres)[:, None] * scale - 0.5).unbind(dim=2)
        return x.contiguous(), y.contiguous()


class DeformableAttention(nn.Module):
    """Every pixel reads a few points around its place on every level, whose offsets and weights it tells itself."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        self.heads = heads
        self.sampling_offsets = nn.Linear(channels, heads * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(channels, heads * LEVELS * POINTS)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    def forward(self, pixels: Tensor, position: Tensor, sizes: Sizes) -> Tensor:
        """pixels (F, S, C) of all levels, their position (1, S, C) -> (F, S, C)."""
        query, shape = pixels + position, (*pixels.shape[:2], self.heads, LEVELS, POINTS)
        values = self.value_proj(pixels).to(pixels.dtype).unflatten(2, (self.heads, -1))
        with torch.autocast(pixels.device.type, enabled=False):  # sampling points need precision
            weights = self.attention_weights(query).unflatten(2, (self.heads, -1)).softmax(dim=-1).view(shape)
            linear = self.sampling_offsets
            x, y = (  # each contiguous by itself
                F.linear(query, linear.weight[axis::2], linear.bias[axis::2]).view(shape) + place[:, None, :, None]
                for axis, place in enumerate(_places(tuple(sizes), pixels.device, pixels.dtype))
            )
            gather = pixels.device.type == "cpu" and not torch.onnx.is_in_onnx_export()
            found = (read_points if gather else sample_points)(values, sizes, x, y, weights)
        return cast(Tensor, self.output_proj(found))


def sample_points(values: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of values at points between pixels, bilinear, zero outside, by `grid_sample`: values
    (F, S, H, d), points in pixels and weights (F, Q, H, LEVELS, POINTS) -> (F, Q, H*d)."""
    total = values.new_zeros(1)
    for level, part in enumerate(values.split([h * w for h, w in sizes], dim=1)):
        height, width = sizes[level]
        maps = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))  # (F*H, d, h, w)
        places = [(2 * each[:, :, :, level] + 1) / size - 1 for each, size in ((x, width), (y, height))]
        grid = torch.stack(places, dim=-1).transpose(1, 2).flatten(0, 1)  # (F*H, Q, P, 2)
        found = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (found * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(dim=-1)
    joined: Tensor = total.unflatten(0, (values.shape[0], -1)).permute(0, 3, 1, 2).flatten(2)
    return joined


def read_points(values: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """As `sample_points`, on CPUs in a third of the time and memory of large maps; as many frames at once as a cache
    holds."""
    most = max(1, CACHED // values.shape[1])
    parts = zip(*(each.split(most) for each in (values, x, y, weights)), strict=True)
    return torch.cat([_read(v, sizes, *places) for v, *places in parts])


def _read(values: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """All levels of all frames, each within a border of zeros, are one table, from which a point takes its four
    neighbours, weighted; `embedding_bag` sums them without writing them down."""
    frames, queries, heads = x.shape[:3]
    maps = values.flatten(2).split([h * w for h, w in sizes], dim=1)
    padded = [F.pad(part.unflatten(1, size), (0, 0, 1, 1, 1, 1)) for part, size in zip(maps, sizes, strict=True)]
    counts = [each.shape[1] * each.shape[2] for each in padded]
    table = torch.cat([each.flatten(1, 2) for each in padded], dim=1)  # (F, pixels, H*d)
    table = table.view(-1, values.shape[3])  # row: (frame * pixels + pixel) * H + head
    whole = torch.int32 if len(table) < 2**31 else torch.int64

    def of_levels(numbers: Iterable[int]) -> Tensor:  # (LEVELS, 1)
        return torch.tensor(list(numbers), device=values.device, dtype=whole)[:, None]

    def split(place: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """The pixel before, counted with the border; and how far the point lies beyond it. All that lies outside goes
        onto the border. What is no number is no pixel, but stays in the rest, and so in the result."""
        most = side.to(place.dtype)
        place = place.clamp(min=-1).minimum(most)
        before = place.detach().floor().minimum(most - 1)
        return before.nan_to_num(0).to(whole) + 1, place - before

    column, right = split(x, of_levels(w for _, w in sizes))
    row, down = split(y, of_levels(h for h, _ in sizes))
    step = of_levels(w + 2 for _, w in sizes)
    begins = of_levels(sum(counts[:level]) for level in range(len(sizes)))
    frame, head = (torch.arange(count, device=values.device, dtype=whole) for count in (frames, heads))
    pixel = row * step + column + begins + frame.view(-1, 1, 1, 1, 1) * sum(counts)
    first = pixel * heads + head[:, None, None]
    below = first + step * heads
    across, upper = weights * right, weights - weights * down
    lower_right, upper_right = across * down, across - across * down
    corners = [first, first + heads, below, below + heads]
    shares = [upper - upper_right, upper_right, weights * down - lower_right, lower_right]
    bags = frames * queries * heads
    index, share = (torch.cat([each.reshape(bags, -1) for each in kind], 1) for kind in (corners, shares))
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=share).view(frames, queries, -1)


class EncoderLayer(nn.Module):
    """LN(x + deformable attention), then LN(x + MLP)."""

    def __init__(self, channels: int, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(channels, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, config.ffn)
        self.fc2 = nn.Linear(config.ffn, channels)
        self.final_layer_norm = nn.LayerNorm(channels)

    def forward(self, pixels: Tensor, position: Tensor, sizes: Sizes) -> Tensor:
        pixels = self.self_attn_layer_norm(pixels + self.self_attn(pixels, position, sizes))
        return cast(Tensor, self.final_layer_norm(pixels + self.fc2(F.relu(self.fc1(pixels)))))


class Encoder(nn.Module):
    def __init__(self, channels: int, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(channels, config) for _ in range(config.layers))

    def forward(self, pixels: Tensor, position: Tensor, sizes: Sizes) -> Tensor:
        for layer in self.layers:
            pixels = layer(pixels, position, sizes)
        return pixels


class Pyramid(nn.Module):
    """Deformable attention over strides 32, 16, 8, then one step of a feature pyramid to stride 4."""

    def __init__(self, config: PixelDecoderConfig, channels: list[int], hidden: int) -> None:
        super().__init__()
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(each, hidden, kernel_size=1), nn.GroupNorm(32, hidden)) for each in channels[:0:-1]
        )
        self.level_embed = nn.Parameter(torch.empty(LEVELS, hidden))
        self.encoder = Encoder(hidden, config)
        self.adapter_1 = nn.Sequential(nn.Conv2d(channels[0], hidden, 1, bias=False), nn.GroupNorm(32, hidden))
        smooth = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, bias=False)
        self.layer_1 = nn.Sequential(smooth, nn.GroupNorm(32, hidden), nn.ReLU())

    def forward(self, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Backbone maps (F, C_i, h_i, w_i), strides 4 to 32 -> the map at stride 4, and those at 32, 16, 8."""
        maps = [project(x) for project, x in zip(self.input_projections, features[:0:-1], strict=True)]
        sizes = [(each.shape[2], each.shape[3]) for each in maps]
        positions = [
            sine_position(*each.shape[2:], len(embed), each.device, each.dtype).flatten(2).transpose(1, 2) + embed
            for each, embed in zip(features[:0:-1], self.level_embed, strict=True)
        ]
        pixels = torch.cat([each.flatten(2).transpose(1, 2) for each in maps], dim=1).to(features[0].dtype)  # (F, S, C)
        pixels = self.encoder(pixels, torch.cat(positions, dim=1), sizes)
        parts = pixels.split([h * w for h, w in sizes], dim=1)
        levels = [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
        finest: Tensor = self.adapter_1(features[0])
        return self.layer_1(finest + F.interpolate(levels[-1], finest.shape[2:], mode="bilinear")), levels


class PixelDecoder(nn.Module):
    """The pyramid, and the projection of its finest map that a frame's masks are read from."""

    def __init__(self, config: PixelDecoderConfig, channels: list[int], hidden: int) -> None:
        super().__init__()
        if hidden % 32:
            raise ValueError(f"the pixel decoder has 32 norm groups, hidden size {hidden} cannot be split so")
        self.decoder = Pyramid(config, channels, hidden)
        self.mask_projection = nn.Conv2d(hidden, hidden, kernel_size=1)
        _initialise(self)

    def forward(self, features: list[Tensor]) -> PixelFeatures:
        """Backbone maps (F, C_i, h_i, w_i), strides 4 to 32 -> features of every pixel."""
        kind, features = features[0].device.type, [x.to(torch.promote_types(x.dtype, torch.float32)) for x in features]
        # float16 stays out, as in the release
        lower = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=lower):
            finest, levels = self.decoder(features)
            finest = finest.to(features[0].dtype)
            return PixelFeatures(self.mask_projection(finest).to(finest.dtype), finest, levels)


@torch.no_grad()
def _initialise(module: PixelDecoder) -> None:
    """Start as Mask2Former does. Sampling points: head h looks in direction 2 pi h / H, its p-th point p + 1 steps
    away, all points weighted alike."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    nn.init.normal_(module.decoder.level_embed)
    for projection in module.decoder.input_projections:
        nn.init.zeros_(projection.get_parameter("0.bias"))
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            heads, points = (torch.arange(count, device="cpu") for count in (part.heads, POINTS))
            angles = heads * (2 * math.pi / part.heads)
            direction = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (H, 2)
            direction = direction / direction.abs().amax(dim=-1, keepdim=True)
            offsets = direction[:, None, None, :] * (points + 1)[:, None]  # (H, 1, P, 2)
            part.sampling_offsets.bias.copy_(offsets.expand(-1, LEVELS, -1, -1).flatten())
            for zero in (part.sampling_offsets.weight, *part.attention_weights.parameters()):
                nn.init.zeros_(zero)
            nn.init.zeros_(part.value_proj.bias)
            nn.init.zeros_(part.output_proj.bias)
