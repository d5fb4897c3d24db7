"""Ours: do words fit an object? Asked of static words in motion perception, of the sentence in the motion decoder."""

import torch
from torch import Tensor, nn

from dshmp.model.layers import MLP
from dshmp.model.text import Cues

TOKENS_AT_ONCE = 16384  # of windows and of objects that meet words; bounds memory, never changes a result


class Agreement(nn.Module):
    """Object and words meet in a product, since each alone says nothing about the answer: with a linear head on
    text-aware tokens, choosing among objects stayed at chance for hundreds of steps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.object = nn.Linear(channels, channels)
        self.sentence = nn.Linear(channels, channels)
        self.judge = MLP(channels, channels, 1, 2)

    def forward(self, objects: Tensor, words: Tensor) -> Tensor:
        """Object tokens (B, T, N, C) and one vector for the words (B, C) -> logits (B, T, N)."""
        meant = self.sentence(words)[:, None, None]
        step = max(1, TOKENS_AT_ONCE // (len(objects) * objects.shape[2]))
        logits = [self.judge(self.object(part) * meant).squeeze(-1) for part in objects.split(step, dim=1)]
        return torch.cat(logits, dim=1)


def mean_cue(cues: Cues) -> Tensor:
    """Cues (B, K, C) as one vector each, (B, C)."""
    return cues.features.sum(1) / cues.mask.sum(1, keepdim=True)
