"""Mask2Former's pixel decoder, which also hands out the map that the video masks are read from."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    Mask2FormerSinePositionEmbedding,
)

from dshmp.config import PixelDecoderConfig


@lru_cache(maxsize=12)
def sine_position(height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sine embedding (1, channels, height, width) of normalised coordinates; shared, so never written to."""
    embed = Mask2FormerSinePositionEmbedding(channels // 2, normalize=True)
    with torch.inference_mode(False):
        position: Tensor = embed(torch.Size((1, channels, height, width)), device, dtype)
    return position


class _SinePosition(nn.Module):
    """Stands in for transformers' module, which computes the same map for each image in each call."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        return sine_position(shape[-2], shape[-1], self.channels, device, dtype)


class PixelFeatures(NamedTuple):
    """Features of every pixel of F frames."""

    mask_features: Tensor  # (F, C, h, w) at stride 4, for the masks of a frame
    video_features: Tensor  # likewise, the map that mask_features are projected from, for the masks of the video
    levels: list[Tensor]  # three maps (F, C, h_i, w_i), coarse (stride 32) to fine (stride 8)

    def frames(self, index: Tensor) -> "PixelFeatures":
        """Those of some frames, any number of times: index (F',) long."""
        levels = [level[index] for level in self.levels]
        return PixelFeatures(self.mask_features[index], self.video_features[index], levels)


class PixelDecoder(nn.Module):
    """Multi-scale deformable attention over strides 32, 16, 8, then one FPN step to stride 4."""

    def __init__(self, config: PixelDecoderConfig, channels: list[int], hidden: int) -> None:
        super().__init__()
        if hidden % 32:
            raise ValueError(f"the pixel decoder has 32 norm groups, hidden size {hidden} cannot be split so")
        self.decoder = Mask2FormerPixelDecoder(
            Mask2FormerConfig(
                feature_size=hidden,
                mask_feature_size=hidden,
                encoder_layers=config.layers,
                num_attention_heads=config.heads,
                encoder_feedforward_dim=config.ffn,
                dropout=0.0,
                attn_implementation="eager",
            ),
            channels,
        )
        self.decoder.position_embedding = _SinePosition(hidden)
        self.decoder.mask_projection = nn.Identity()  # so that the decoder returns the map before it
        self.mask_projection = nn.Conv2d(hidden, hidden, kernel_size=1)
        _initialise(self)

    def forward(self, features: list[Tensor]) -> PixelFeatures:
        """Backbone maps (F, C_i, h_i, w_i), strides 4 to 32 -> features of every pixel."""
        with torch.autocast(features[0].device.type, enabled=False):  # sampling points need precision
            output = self.decoder([x.to(torch.promote_types(x.dtype, torch.float32)) for x in features])
            mask_features = self.mask_projection(output.mask_features)
            return PixelFeatures(mask_features, output.mask_features, list(output.multi_scale_features))


@torch.no_grad()
def _initialise(module: PixelDecoder) -> None:
    """Start as Mask2Former does; transformers leaves the level embedding of a lone decoder undefined. Sampling points:
    head h looks in direction 2 pi h / H, its p-th point p + 1 steps away, all points weighted alike."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    nn.init.normal_(module.decoder.level_embed)
    for projection in module.decoder.input_projections:
        nn.init.zeros_(projection[0].bias)
    for part in module.modules():
        if isinstance(part, Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
            angles = torch.arange(part.n_heads) * (2 * math.pi / part.n_heads)
            direction = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (H, 2)
            direction = direction / direction.abs().amax(dim=-1, keepdim=True)
            offsets = direction[:, None, None, :] * torch.arange(1, part.n_points + 1)[:, None]  # (H, 1, P, 2)
            part.sampling_offsets.bias.copy_(offsets.expand(-1, part.n_levels, -1, -1).flatten())
            for zero in (part.sampling_offsets.weight, *part.attention_weights.parameters()):
                nn.init.zeros_(zero)
            nn.init.zeros_(part.value_proj.bias)
            nn.init.zeros_(part.output_proj.bias)
