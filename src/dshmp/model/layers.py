"""Transformer layers shared by the frame decoder and the motion part: all post-norm, batch first. Masks are those of
`F.scaled_dot_product_attention`, broadcastable to (B, heads, Q, K): bool, True where a query may look, or float, added
to the scores. A query that may look at nothing receives zeros, never NaN."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, H*d) -> (B, H, S, d)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, d) -> (B, S, H*d)."""
    return x.transpose(1, 2).flatten(2)


def masked_softmax(scores: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Over the places where the mask is True; zeros where there is none."""
    if mask is None:
        return scores.softmax(dim)
    return scores.masked_fill(~mask, float("-inf")).softmax(dim).masked_fill(~mask, 0.0)


class Attention(nn.Module):
    """Multi-head attention with the parameters of `torch.nn.MultiheadAttention` (packed input projection)."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(B, Q, C), (B, K, C), (B, K, C) -> (B, Q, C) and, if asked for (mask bool), mean weights (B, Q, K)."""
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (split_heads(F.linear(x, weight, bias), self.heads) for x, weight, bias in projections)
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            output = F.scaled_dot_product_attention(q, k, v, mask, dropout)
            return self.out_proj(merge_heads(output)), None
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        weights = masked_softmax(scores, mask, dim=-1)
        return self.out_proj(merge_heads(F.dropout(weights, dropout) @ v)), weights.mean(dim=1)


class CrossAttention(nn.Module):
    """LayerNorm(q + MultiHeadAttention(q, memory, memory)); self-attention where the queries are the memory."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        *,
        query_pos: Tensor | float = 0.0,
        memory_pos: Tensor | float = 0.0,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """query (B, Q, C), memory (B, K, C) -> (B, Q, C) or, with `need_weights`, that and the attention (B, Q, K),
        averaged over heads. Positions are added to queries and keys, not to values."""
        output, weights = self.attention(query + query_pos, memory + memory_pos, memory, mask, need_weights)
        output = self.norm(query + self.dropout(output))
        return output if weights is None else (output, weights)


class FeedForward(nn.Module):
    """LayerNorm(x + W2 relu(W1 x))."""

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        inner = self.dropout(F.relu(self.linear1(x)))
        return cast(Tensor, self.norm(x + self.dropout(self.linear2(inner))))


class MLP(nn.Module):
    """`depth` linear layers with ReLU between them: (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return cast(Tensor, self.layers[-1](x))


def cycle_rows(rows: Tensor, mask: Tensor, count: int) -> Tensor:
    """The real rows of (B, K, C), mask (B, K), over and over until there are `count`: (B, count, C)."""
    order = (~mask).byte().argsort(dim=1, stable=True)  # real rows first
    real = mask.sum(dim=1, keepdim=True).clamp(min=1)
    index = order.gather(1, torch.arange(count, device=rows.device) % real)
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def closed_gate(channels: int) -> nn.Sequential:
    """tanh(W2 relu(W1 x)), closed at first: W2 is zero (were W1 too, as in the release, it would stay so)."""
    last = nn.Linear(channels, channels, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.Linear(channels, channels, bias=False), nn.ReLU(), last, nn.Tanh())


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drop whole samples of a branch with probability `rate`, scale up the rest."""
    if rate == 0.0 or not training:
        return x
    kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1.0 - rate)
    return x * (kept / (1.0 - rate))


class BiAttention(nn.Module):
    """Image and words attend to each other: v' = LN(v) + gamma_v * attention of v to l, and the same for l with v. The
    residual starts from the **normalised** input, as in the release; the layer scales gamma start near zero. The
    release first subtracts the scores' maximum over the batch, which a softmax does not see. `dropout` is that of the
    attention's weights and of whole samples of a branch."""

    def __init__(
        self, channels: int, text_channels: int, embed: int, heads: int, dropout: float = 0.0, scale: float = 1e-4
    ) -> None:
        super().__init__()
        if embed % heads:
            raise ValueError(f"{embed} channels cannot be shared by {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.norm_v = nn.LayerNorm(channels)
        self.norm_l = nn.LayerNorm(text_channels)
        self.proj_v = nn.Linear(channels, embed)
        self.proj_l = nn.Linear(text_channels, embed)
        self.value_v = nn.Linear(channels, embed)
        self.value_l = nn.Linear(text_channels, embed)
        self.out_v = nn.Linear(embed, channels)
        self.out_l = nn.Linear(embed, text_channels)
        self.gamma_v = nn.Parameter(torch.full((channels,), scale))
        self.gamma_l = nn.Parameter(torch.full((text_channels,), scale))
        for linear in (self.proj_v, self.proj_l, self.value_v, self.value_l, self.out_v, self.out_l):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, image: Tensor, words: Tensor, word_mask: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """image (B, S, C) and words (B, L, C_text) -> both updated; masks of the words and of the image.

        Pixels are many and words few: what would be projected for each pixel is projected for each word instead, as
        (W x) . k = x . (W' k), and as the weighted sum of W x + b is W applied to that of x, and b times the weights.
        """
        image, words = self.norm_v(image), self.norm_l(words)
        key, value = (split_heads(linear(words), self.heads) for linear in (self.proj_l, self.value_l))  # (B, H, L, e)
        (weight_k, bias_k), (weight_v, bias_v) = (
            (linear.weight.unflatten(0, (self.heads, -1)), linear.bias.unflatten(0, (self.heads, -1)))
            for linear in (self.proj_v, self.value_v)
        )  # (H, e, C), (H, e)
        scores = ((key @ weight_k).flatten(1, 2) @ image.transpose(1, 2)).unflatten(1, (self.heads, -1))
        scores = (scores + key @ bias_k[..., None]) * key.shape[-1] ** -0.5  # (B, H, L, S), for both directions
        dropout = self.dropout if self.training else 0.0
        to_words = F.dropout(masked_softmax(scores, word_mask.transpose(2, 3), dim=2), dropout)
        to_image = F.dropout(masked_softmax(scores, mask, dim=3), dropout)
        said = torch.einsum("bhle,che->bhlc", value, self.out_v.weight.unflatten(1, (self.heads, -1)))
        from_words = to_words.flatten(1, 2).transpose(1, 2) @ said.flatten(1, 2) + self.out_v.bias
        seen = (to_image.flatten(1, 2) @ image).unflatten(1, (self.heads, -1))  # (B, H, L, C)
        from_image = seen @ weight_v.transpose(1, 2) + to_image.sum(dim=3, keepdim=True) * bias_v[:, None]
        delta_v = self.gamma_v * from_words
        delta_l = self.gamma_l * self.out_l(merge_heads(from_image))
        return image + drop_path(delta_v, dropout, self.training), words + drop_path(delta_l, dropout, self.training)
