"""Language-fused Swin Transformer: transformers' Swin, words entering after every stage."""

from functools import partial

from torch import Tensor, nn
from transformers import SwinConfig
from transformers.models.swin.modeling_swin import SwinDropPath, SwinEmbeddings, SwinEncoder

from dshmp.config import BackboneConfig
from dshmp.layers import drop_path
from dshmp.perception.fusion import PixelWordAttention


class LanguageSwin(nn.Module):
    """Swin whose stage output is LN(r), r = PWAM(x, words); x + gate(r) * r goes on to the next stage (LAVT).

    Without `language_fusion` it is a plain Swin: r = x, no gate.
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
        self.stages = SwinEncoder(swin, self.embeddings.patch_grid).layers
        for block in self.stages.modules():
            if isinstance(getattr(block, "drop_path", None), SwinDropPath):
                # transformers drops the attention branch only
                block.mlp.register_forward_hook(partial(_drop_branch, block.drop_path.drop_prob))
        self.channels = [config.embed_dim * 2**i for i in range(len(config.depths))]
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.channels)
        self.language_fusion = config.language_fusion
        if self.language_fusion:
            self.fusions = nn.ModuleList(PixelWordAttention(size, text_size) for size in self.channels)
            self.gates = nn.ModuleList(_gate(channels) for channels in self.channels[:-1])

    def forward(self, images: Tensor, words: Tensor | None, mask: Tensor | None) -> list[Tensor]:
        """Features of every image.

        Args:
            images: (F, 3, H, W), normalised; any size.
            words: (F, L, C_text) text features, or None without language fusion.
            mask: (F, L) bool, True = real word.

        Returns:
            One map (F, C_i, h_i, w_i) per stage, strides 4, 8, 16, 32 (sizes rounded up).
        """
        if self.language_fusion and (words is None or mask is None):
            raise ValueError("a language-fused backbone needs words and their mask")
        outputs = []
        x, size = self.embeddings(images)
        for i, stage in enumerate(self.stages):
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


def _drop_branch(rate: float, branch: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return drop_path(output, rate, branch.training)


def _gate(channels: int) -> nn.Sequential:
    """tanh(W2 relu(W1 r)), closed at first: W2 is zero (were W1 too, as in the release, it would stay so)."""
    first, last = (nn.Linear(channels, channels, bias=False) for _ in range(2))
    nn.init.zeros_(last.weight)
    return nn.Sequential(first, nn.ReLU(), last, nn.Tanh())
