"""Transformer layers shared by the frame decoder and the motion part: all post-norm, batch first.

Masks come in two kinds, told apart by their names: `memory_mask` and `mask` (B, K) say which rows are
**real** (True), `attn_mask` says which pairs are **blocked** (True, or an additive float). A query that may
look at nothing receives zeros, never NaN.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention softmax(q k^T / sqrt(d)) v, in which a query without any allowed key gets zeros.

    Args:
        query: (B, H, Q, d); `key`, `value`: (B, H, K, d).
        allowed: bool, broadcastable to (B, H, Q, K); True where the pair takes part.
        bias: float, broadcastable to (B, H, Q, K); added to the scores.
        need_weights: also return the weights (B, H, Q, K), before dropout.
    """
    some: Tensor | None = None
    if allowed is not None:
        some = allowed.any(dim=-1, keepdim=True)
        allowed = allowed | ~some
        if bias is not None:
            bias, allowed = bias.masked_fill(~allowed, float("-inf")), None
    mask = allowed if bias is None else bias
    weights: Tensor | None = None
    if need_weights:
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        weights = scores.softmax(dim=-1)
        output = F.dropout(weights, dropout) @ value
    else:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    if some is not None:
        output = torch.where(some, output, 0.0)
        weights = None if weights is None else torch.where(some, weights, 0.0)
    return output, weights


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, H*d) -> (B, H, S, d)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, d) -> (B, S, H*d)."""
    return x.transpose(1, 2).flatten(2)


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
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        allowed: Tensor | None = None,
        bias: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, Q, C), (B, K, C), (B, K, C) -> (B, Q, C) and, if asked for, mean weights (B, Q, K)."""
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            split_heads(F.linear(x, w, b), self.heads)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        output, scores = attend(q, k, v, allowed=allowed, bias=bias, dropout=dropout, need_weights=need_weights)
        return self.out_proj(merge_heads(output)), None if scores is None else scores.mean(dim=1)


def _allowed(real: Tensor | None, attn_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Real keys (B, K) and a blocked / additive mask -> (allowed, bias) as `attend` takes them."""
    allowed = None if real is None else real[:, None, None, :]
    if attn_mask is None:
        return allowed, None
    if attn_mask.dtype != torch.bool:
        return allowed, attn_mask
    return (~attn_mask if allowed is None else allowed & ~attn_mask), None


def _plus(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else x + position


class CrossAttention(nn.Module):
    """LayerNorm(q + MultiHeadAttention(q, memory, value))."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        *,
        memory_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        query_pos: Tensor | None = None,
        memory_pos: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Let queries read a memory.

        Args:
            query: (B, Q, C).
            memory: (B, K, C), the keys, and the values too unless `value` (B, K, C) is given.
            memory_mask: (B, K) bool, True = real.
            attn_mask: broadcastable to (B, heads, Q, K); bool, True = blocked, or float, added to the scores.
            query_pos, memory_pos: added to the queries and to the keys (not to the values).
            need_weights: also return the attention (B, Q, K), averaged over heads.

        Returns:
            (B, Q, C), or that and the weights.
        """
        allowed, bias = _allowed(memory_mask, attn_mask)
        output, weights = self.attention(
            _plus(query, query_pos),
            _plus(memory, memory_pos),
            memory if value is None else value,
            allowed=allowed,
            bias=bias,
            need_weights=need_weights,
        )
        output = self.norm(query + self.dropout(output))
        return output if weights is None else (output, weights)


class SelfAttention(nn.Module):
    """LayerNorm(x + MultiHeadAttention(x, x, x)), positions added to queries and keys only."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        pos: Tensor | None = None,
    ) -> Tensor:
        """x (B, S, C) -> (B, S, C).

        Args:
            mask: (B, S) bool, True = real (may be looked at).
            attn_mask: broadcastable to (B, heads, S, S); bool, True = blocked, or float, added to the scores.
            pos: broadcastable to x.
        """
        allowed, bias = _allowed(mask, attn_mask)
        placed = _plus(x, pos)
        attended, _ = self.attention(placed, placed, x, allowed=allowed, bias=bias)
        output: Tensor = self.norm(x + self.dropout(attended))
        return output


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
        output: Tensor = self.norm(x + self.dropout(self.linear2(inner)))
        return output


class MLP(nn.Module):
    """`depth` linear layers with ReLU between them: (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for layer in self.layers[1:]:
            x = layer(F.relu(x))
        return x


def cycle_rows(rows: Tensor, mask: Tensor, count: int) -> Tensor:
    """The real rows of (B, K, C), mask (B, K), over and over until there are `count`: (B, count, C)."""
    order = (~mask).byte().argsort(dim=1, stable=True)  # real rows first
    real = mask.sum(dim=1, keepdim=True).clamp(min=1)
    index = order.gather(1, torch.arange(count, device=rows.device) % real)
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drop whole samples of a branch with probability `rate`, scale up the rest."""
    if rate == 0.0 or not training:
        return x
    kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1.0 - rate)
    return x * (kept / (1.0 - rate))


class BiAttention(nn.Module):
    """Image and words attend to each other through one matrix of scores.

    v' = LN(v) + gamma_v * attention of v to l, and the same for l with v. The residual starts from the
    **normalised** input, as in the release; the layer scales gamma start near zero. Scores are used as they
    are: the release first subtracts their maximum over the whole batch, which a softmax does not see.
    """

    def __init__(
        self,
        channels: int,
        text_channels: int,
        embed: int,
        heads: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        scale: float = 1e-4,
    ) -> None:
        super().__init__()
        if embed % heads:
            raise ValueError(f"{embed} channels cannot be shared by {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.drop_path = drop_path
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
        self,
        v: Tensor,
        l: Tensor,  # noqa: E741
        mask: Tensor,
        real: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """v (B, S, C) and l (B, L, C_text) -> both updated, same shapes.

        mask (B, L) and real (B, S) bool, True = real word or image token; `real` None = all real.
        """
        v, words = self.norm_v(v), self.norm_l(l)
        key_v, key_l, value_v, value_l = (
            split_heads(linear(x), self.heads)
            for linear, x in (
                (self.proj_v, v),
                (self.proj_l, words),
                (self.value_v, v),
                (self.value_l, words),
            )
        )
        dropout = self.dropout if self.training else 0.0
        delta_v, _ = attend(key_v, key_l, value_l, allowed=mask[:, None, None, :], dropout=dropout)
        allowed = None if real is None else real[:, None, None, :]
        delta_l, _ = attend(key_l, key_v, value_v, allowed=allowed, dropout=dropout)
        delta_v = self.gamma_v * self.out_v(merge_heads(delta_v))
        delta_l = self.gamma_l * self.out_l(merge_heads(delta_l))
        return (
            v + drop_path(delta_v, self.drop_path, self.training),
            words + drop_path(delta_l, self.drop_path, self.training),
        )
