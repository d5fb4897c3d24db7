"""Language in the backbone: the pixel-word attention that follows every stage."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.model.layers import attend


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise each channel over a sample's positions (B, S, C); a single position becomes zero.

    Half precision is lifted to float32, whose squares do not overflow.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = x - x.mean(dim=1, keepdim=True)
    return centred * (centred.square().mean(dim=1, keepdim=True) + eps).rsqrt()


class PixelWordAttention(nn.Module):
    """Pixel-word attention module (PWAM) of LAVT, https://arxiv.org/abs/2112.02244, section 3.2.

    Every pixel gathers the words it attends to (one head), which then gate the pixel's own projection:
    GELU(W (GELU(W_vis x) * IN(W_out softmax(q k^T / sqrt(C)) v))), q = IN(W_q x), IN = instance norm.
    """

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
        gathered, _ = attend(query[:, None], key[:, None], value[:, None], allowed=mask[:, None, None, :])
        gathered = instance_norm(self.gathered(gathered[:, 0]))
        return F.gelu(self.output(F.gelu(self.vision(x)) * gathered))
