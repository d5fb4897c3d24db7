"""Language-fused backbone: Swin image by image or Video-Swin clip by clip, words entering after every stage."""

from functools import partial
from typing import overload

import torch
from torch import Tensor, nn
from transformers import SwinConfig
from transformers.models.swin.modeling_swin import SwinDropPath, SwinEmbeddings, SwinEncoder

from dshmp.config import BackboneConfig
from dshmp.model.fusion import PixelWordAttention
from dshmp.model.layers import drop_path
from dshmp.model.video_swin import VideoSwinStage, video_swin_stages


class LanguageBackbone(nn.Module):
    """A stage's output is LN(r), r = PWAM(x, words); x + gate(r) * r goes on to the next stage (LAVT).

    The stages are Swin's (transformers') or, with a `temporal_window`, Video-Swin's. Without `language_fusion` it is
    plain: r = x, no gate. Words are fused frame by frame in either.
    """

    def __init__(self, config: BackboneConfig, text_size: int) -> None:
        super().__init__()
        swin = SwinConfig(
            embed_dim=config.embed_dim,
            depths=list(config.depths),
            num_heads=list(config.num_heads),
            window_size=config.window_size,
            drop_path_rate=config.drop_path,
            attn_implementation="sdpa",
        )
        self.embeddings = SwinEmbeddings(swin)
        if config.temporal_window is None:
            self.clip = 1
            self.stages = SwinEncoder(swin, self.embeddings.patch_grid).layers
            for block in self.stages.modules():
                if isinstance(getattr(block, "drop_path", None), SwinDropPath):
                    # transformers drops the attention branch only
                    block.mlp.register_forward_hook(partial(_drop_branch, block.drop_path.drop_prob))
        else:
            if min(config.clip, config.temporal_window) < 1:
                raise ValueError("backbone.clip and backbone.temporal_window count frames, so they are at least 1")
            self.clip = config.clip
            self.stages = video_swin_stages(config, config.temporal_window)
        self.channels = [config.embed_dim * 2**i for i in range(len(config.depths))]
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.channels)
        self.language_fusion = config.language_fusion
        if self.language_fusion:
            self.fusions = nn.ModuleList(PixelWordAttention(size, text_size) for size in self.channels)
            self.gates = nn.ModuleList(_gate(channels) for channels in self.channels[:-1])

    def whole_clips(self, frames: int) -> int:
        """`frames` rounded up to whole clips: a video cut at multiples of this gives the same features as uncut."""
        return -(-frames // self.clip) * self.clip

    def forward(self, images: Tensor, words: Tensor | None, mask: Tensor | None, length: int) -> list[Tensor]:
        """Features of every frame.

        Args:
            images: (F, 3, H, W), normalised; any size. Every `length` frames are one video.
            words: (F, L, C_text) text features, or None without language fusion.
            mask: (F, L) bool, True = real word.
            length: Video-Swin reads each video in clips of `config.clip` frames from its start, the last one
                shorter; Swin reads every frame by itself, whatever the length.

        Returns:
            One map (F, C_i, h_i, w_i) per stage, strides 4, 8, 16, 32 (sizes rounded up).
        """
        if self.language_fusion and (words is None or mask is None):
            raise ValueError("a language-fused backbone needs words and their mask")
        if len(images) % length:
            raise ValueError(f"{len(images)} frames are not videos of {length} frames")
        clip = min(self.clip, length)
        rest = length % clip
        if not rest:
            return self._read(images, words, mask, clip)
        cut = length - rest
        parts = [
            self._read(_within(images, length, part), _within(words, length, part), _within(mask, length, part), size)
            for part, size in ((slice(cut), clip), (slice(cut, length), rest))
        ]
        return [
            torch.cat([a.unflatten(0, (-1, cut)), b.unflatten(0, (-1, rest))], dim=1).flatten(0, 1)
            for a, b in zip(*parts, strict=True)
        ]

    def _read(self, images: Tensor, words: Tensor | None, mask: Tensor | None, clip: int) -> list[Tensor]:
        """`forward` for clips of one length, `clip` frames each."""
        outputs = []
        x, size = self.embeddings(images)
        for i, stage in enumerate(self.stages):
            if isinstance(stage, VideoSwinStage):
                x = stage(x, size, clip)
            else:
                for block in stage.blocks:
                    x, _ = block(x, size, always_partition=True)
            fused = self.fusions[i](x, words, mask) if self.language_fusion else x
            output = self.norms[i](fused).transpose(1, 2).unflatten(2, size)  # (F, h*w, C) -> (F, C, h, w)
            outputs.append(output)
            if stage.downsample is not None:
                if self.language_fusion:
                    x = x + self.gates[i](fused) * fused
                x = stage.downsample(x, size)
                size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        return outputs


@overload
def _within(x: Tensor, length: int, part: slice) -> Tensor: ...


@overload
def _within(x: None, length: int, part: slice) -> None: ...


def _within(x: Tensor | None, length: int, part: slice) -> Tensor | None:
    """Some frames of every video of `length` frames: (B*T, ...) -> (B, T, ...) -> (B*T', ...)."""
    return None if x is None else x.unflatten(0, (-1, length))[:, part].flatten(0, 1)


def _drop_branch(rate: float, branch: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return drop_path(output, rate, branch.training)


def _gate(channels: int) -> nn.Sequential:
    """tanh(W2 relu(W1 r)), closed at first: W2 is zero (were W1 too, as in the release, it would stay so)."""
    first, last = (nn.Linear(channels, channels, bias=False) for _ in range(2))
    nn.init.zeros_(last.weight)
    return nn.Sequential(first, nn.ReLU(), last, nn.Tanh())
