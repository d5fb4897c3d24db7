"""Language-fused backbone: Swin image by image or Video-Swin clip by clip, words entering after every stage (LAVT)."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import BackboneConfig
from dshmp.model.layers import closed_gate
from dshmp.model.swin import PatchEmbedding, SwinStage, swin_stages


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise channels over a sample's positions (B, S, C), in float32 at least, whose squares do not overflow."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = x - x.mean(dim=1, keepdim=True)
    return centred * (centred.square().mean(dim=1, keepdim=True) + eps).rsqrt()


class PixelWordAttention(nn.Module):
    """Pixel-word attention module (PWAM) of LAVT, https://arxiv.org/abs/2112.02244, section 3.2. Every pixel gathers
    the words it attends to (one head), which then gate the pixel's own projection: GELU(W (GELU(W_vis x) * IN(W_out
    softmax(q k^T / sqrt(C)) v))), q = IN(W_q x), IN = instance norm."""

    def __init__(self, channels: int, text_size: int) -> None:
        super().__init__()
        self.vision = nn.Linear(channels, channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(text_size, channels)
        self.value = nn.Linear(text_size, channels)
        self.gathered = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """x (F, S, C), words (F, L, C_text), mask (F, L) bool, True = real -> (F, S, C)."""
        query, key, value = instance_norm(self.query(x)), self.key(words), self.value(words)
        heads = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], mask[:, None, None])
        gathered = instance_norm(self.gathered(heads[:, 0]))
        return F.gelu(self.output(F.gelu(self.vision(x)) * gathered))


class LanguageBackbone(nn.Module):
    """A stage's output is LN(r), r = PWAM(x, words); x + gate(r) * r goes on to the next stage. The stages are Swin's
    or, with a `temporal_window`, Video-Swin's. Without `language_fusion` it is plain: r = x, no gate.
    Words are fused frame by frame in either."""

    def __init__(self, config: BackboneConfig, text_size: int) -> None:
        super().__init__()
        self.embeddings = PatchEmbedding(config.embed_dim)
        self.video = config.temporal_window is not None
        self.clip = config.clip if self.video else 1
        self.stages = swin_stages(config)
        self.channels = [config.embed_dim * 2**i for i in range(len(config.depths))]
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.channels)
        self.language_fusion = config.language_fusion
        if self.language_fusion:
            self.fusions = nn.ModuleList(PixelWordAttention(size, text_size) for size in self.channels)
            self.gates = nn.ModuleList(closed_gate(channels) for channels in self.channels[:-1])

    def whole_clips(self, frames: int) -> int:
        """`frames` rounded up to whole clips: a video cut at multiples of this gives the same features as uncut."""
        return -(-frames // self.clip) * self.clip

    def forward(self, images: Tensor, words: Tensor | None, mask: Tensor | None, length: int) -> list[Tensor]:
        """Images (F, 3, H, W), normalised, of any size -> one map (F, C_i, h_i, w_i) per stage, strides 4 to 32 (sizes
        rounded up); words (F, L, C_text), mask (F, L) bool, True = real, None without language fusion. Every `length`
        frames are one video, which Video-Swin reads in clips of `config.clip` frames, the last one shorter; Swin reads
        every frame by itself."""
        if images.shape[0] % length:
            raise ValueError(f"{len(images)} frames are not videos of {length} frames")
        clip = min(self.clip, length)
        if rest := length % clip:  # the last clips of all videos apart
            frames = torch.arange(len(images), device=images.device).view(-1, length)
            parts = [part.flatten() for part in frames.split((length - rest, rest), dim=1)]
            maps = []
            for part, frames_each in zip(parts, (clip, rest), strict=True):
                text = (None if each is None else each[part] for each in (words, mask))
                maps.append(self(images[part], *text, frames_each))
            order = torch.cat(parts).argsort()
            return [torch.cat(levels)[order] for levels in zip(*maps, strict=True)]
        outputs = []
        x, size = self.embeddings(images)
        for i, stage in enumerate(cast(Iterable[SwinStage], self.stages)):
            x = stage(x, size, clip)
            fused = self.fusions[i](x, words, mask) if self.language_fusion else x
            outputs.append(self.norms[i](fused).transpose(1, 2).unflatten(2, size))  # (F, h*w, C) -> (F, C, h, w)
            if stage.downsample is not None:
                if self.language_fusion:
                    x = x + self.gates[i](fused) * fused
                x = stage.downsample(x, size)
                size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        return outputs
