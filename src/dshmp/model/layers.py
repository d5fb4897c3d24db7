"""Transformer layers shared by the frame decoder and the motion part: all post-norm, batch first. Masks are those of
`F.scaled_dot_product_attention`, broadcastable to (B, heads, Q, K): bool, True where a query may look, or float, added
to the scores. A query that may look at nothing receives zeros, never NaN."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS_AT_ONCE = 2**16  # of an image or video that meets words; bounds memory, never changes a result but for rounding


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, H*d) -> (B, H, S, d)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, d) -> (B, S, H*d)."""
    return x.transpose(1, 2).flatten(2)


def joined(parts: Iterable[tuple[Tensor, ...]], length: int) -> tuple[Tensor, ...]:
    """Tensors (B, l, ...) that come in parts, one after the other along l: (B, length, ...). Without gradients they are
    copied as they come, so that not all is there twice."""
    iterator = iter(parts)
    first = next(iterator)
    if first[0].shape[1] == length:
        return first
    if torch.is_grad_enabled():
        return tuple(torch.cat(each, dim=1) for each in zip(first, *iterator, strict=True))
    whole = tuple(each.new_empty(len(each), length, *each.shape[2:]) for each in first)
    start = 0
    for part in itertools.chain([first], iterator):
        for place, each in zip(whole, part, strict=True):
            place[:, start : start + each.shape[1]] = each
        start += part[0].shape[1]
    return whole


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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, Q, C), (B, K, C), (B, K, C) -> (B, Q, C)."""
        inputs = zip((query, key, value), self._projections(), strict=True)
        q, k, v = (split_heads(F.linear(x, weight, bias), self.heads) for x, (weight, bias) in inputs)
        output = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return cast(Tensor, self.out_proj(merge_heads(output)))

    def weighing(
        self, query: Tensor, memory: Tensor, mask: Tensor | None, places: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """(B, Q, C), memory (B, T, N, C), mask bool of its T*N rows, positions that add up to one of each row, as they
        are: (1 or B, T or 1, N or 1, C) -> (B, Q, C) and the weights, averaged over heads, (B, Q, T*N).

        Queries are few here and keys are many: what would be projected for each key is projected for each query, as
        q . (W k + b) is (W' q) . k and a term that a softmax does not see, and the weighted sum of W v + b is W applied
        to that of v, and b times the weights. Nothing of the memory's size is made but the scores.
        """
        (weight_q, bias_q), (weight_k, _), (weight_v, bias_v) = self._projections()
        weight_k, weight_v = (weight.unflatten(0, (self.heads, -1)) for weight in (weight_k, weight_v))  # (H, d, C)
        q = split_heads(F.linear(query, weight_q, bias_q), self.heads) * weight_k.shape[1] ** -0.5
        q = (q @ weight_k).flatten(1, 2)  # (B, H*Q, C)

        def compare(rows: Tensor) -> Tensor:  # (B, t, n, C) -> (B, H*Q, t, n)
            return cast(Tensor, (q @ rows.flatten(1, 2).transpose(1, 2)).unflatten(2, rows.shape[1:3]))

        scores = compare(memory)
        for place in places:
            scores = scores + compare(place)
        scores = scores.flatten(2).unflatten(1, (self.heads, -1))
        weights = masked_softmax(scores, mask, dim=-1)  # (B, H, Q, T*N)
        dropped = F.dropout(weights, self.dropout if self.training else 0.0)
        seen = (dropped.flatten(1, 2) @ memory.flatten(1, 2)).unflatten(1, (self.heads, -1))  # (B, H, Q, C)
        bias = bias_v.unflatten(0, (self.heads, 1, -1))
        output = seen @ weight_v.transpose(1, 2) + dropped.sum(dim=-1, keepdim=True) * bias
        return self.out_proj(merge_heads(output)), weights.mean(dim=1)

    def _projections(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True))


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
    ) -> Tensor:
        """query (B, Q, C), memory (B, K, C) -> (B, Q, C). Positions are added to queries and keys, not to values."""
        output = self.attention(query + query_pos, memory + memory_pos, memory, mask)
        return cast(Tensor, self.norm(query + self.dropout(output)))

    def weighing(
        self,
        query: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        *,
        query_pos: Tensor | float = 0.0,
        places: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """The same for few queries and a large memory, with the weights: see `Attention.weighing`."""
        output, weights = self.attention.weighing(query + query_pos, memory, mask, places)
        return self.norm(query + self.dropout(output)), weights


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
    ranks = mask.long().cumsum(dim=1)  # (B, K): the r-th real row is the first of rank r
    wanted = torch.arange(count, device=rows.device) % ranks[:, -1:].clamp(min=1)  # (B, count), from 0
    index = (ranks[:, None] <= wanted[..., None]).sum(dim=2)
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
        Of very many, `ROWS_AT_ONCE` are read at once, twice.
        """
        dropout, words = self.dropout if self.training else 0.0, self.norm_l(words)
        keep_v, keep_l = (drop_path(words.new_ones(words.shape[0], 1, 1), dropout, self.training) for _ in range(2))
        key, value = (split_heads(linear(words), self.heads) for linear in (self.proj_l, self.value_l))  # (B, H, L, e)
        (weight_k, bias_k), (weight_v, bias_v) = (
            (linear.weight.unflatten(0, (self.heads, -1)), linear.bias.unflatten(0, (self.heads, -1)))
            for linear in (self.proj_v, self.value_v)
        )  # (H, e, C), (H, e)
        key = key * key.shape[-1] ** -0.5
        asked, offset = (key @ weight_k).flatten(1, 2), (key @ bias_k[..., None]).flatten(1, 2)  # (B, H*L, C or 1)
        said = torch.einsum("bhle,che->bhlc", value, self.out_v.weight.unflatten(1, (self.heads, -1))).flatten(1, 2)
        parts: list[Callable[[], Tensor]]
        if image.shape[1] > ROWS_AT_ONCE:
            parts = [partial(self.norm_v, part) for part in image.split(ROWS_AT_ONCE, dim=1)]
        else:
            image = self.norm_v(image)
            parts = [lambda: image]
        scores = torch.cat([torch.baddbmm(offset, asked, part().transpose(1, 2)) for part in parts], dim=2)
        scores = scores.unflatten(1, (self.heads, -1))  # (B, H, L, S), for both directions
        to_image = F.dropout(masked_softmax(scores, mask, dim=3), dropout)
        read = []

        def update(part: Callable[[], Tensor], score: Tensor, weights: Tensor) -> tuple[Tensor]:
            rows = part()
            to_words = F.dropout(masked_softmax(score, word_mask.transpose(2, 3), dim=2), dropout)
            from_words = torch.baddbmm(self.out_v.bias, to_words.flatten(1, 2).transpose(1, 2), said)
            read.append(weights.flatten(1, 2) @ rows)
            return (torch.addcmul(rows, self.gamma_v * keep_v, from_words),)

        each = zip(parts, *(x.split(ROWS_AT_ONCE, dim=3) for x in (scores, to_image)), strict=True)
        (image,) = joined(itertools.starmap(update, each), image.shape[1])
        from_image = sum(read[1:], read[0]).unflatten(1, (self.heads, -1)) @ weight_v.transpose(1, 2)  # (B, H, L, e)
        from_image = from_image + to_image.sum(dim=3, keepdim=True) * bias_v[:, None]
        return image, words + self.gamma_l * keep_l * self.out_l(merge_heads(from_image))
