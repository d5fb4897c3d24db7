"""Contrastive learning of motion with a memory bank of target centroids (section 3.3, Eq. 8 and 9).

A row of the bank is a target of the data set: the object, or objects, that some expressions refer to. The loss reads
the bank as it was before the step, so no anchor ever meets itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dshmp.training.losses import Randomness, uniform


@dataclass(frozen=True)
class TargetGroups:
    video: Tensor  # (N,) long, the video of each target, a row of the bank
    category: Tensor  # (N,) long, its category; -1 = unknown (MeViS names none)


class MemoryBank(nn.Module):
    """One centroid per target, in buffers, so that checkpoints hold them. With `host` they stay in the machine's memory
    wherever the bank is moved; only rows that are needed leave it."""

    centroids: Tensor  # (targets, channels) float32, zero until visited
    visited: Tensor  # (targets,) bool

    def __init__(self, targets: int, channels: int, host: bool = False) -> None:
        super().__init__()
        self.host = host
        self.register_buffer("centroids", torch.zeros(targets, channels))
        self.register_buffer("visited", torch.zeros(targets, dtype=torch.bool))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # every way to move a module
        centroids = self.centroids
        del self.centroids
        super()._apply(fn, recurse)
        self.register_buffer("centroids", centroids if self.host else fn(centroids))
        return self

    def rows(self, index: Tensor) -> Tensor:
        """Centroids (..., C) of the targets index (...) long, on its device."""
        return self.centroids[index.to(self.centroids.device)].to(index.device)

    @torch.no_grad()
    def update(self, index: Tensor, anchors: Tensor, delta: float = 0.2) -> None:
        """Eq. 8: B <- delta * B + (1 - delta) * v for targets index (M,) long and anchors (M, C); a target's first
        visit sets its centroid to v. Anchors of one target are averaged first, so their order does not matter."""
        before = self.rows(index)
        same = (index[:, None] == index[None]).to(before)
        # sums of products, here and below, not matrix products, which mixed precision would round to 16 bits
        mean = (same[:, :, None] * anchors.to(before)).sum(1) / same.sum(1, keepdim=True)
        after = torch.where(self.visited[index, None], torch.lerp(mean, before, delta), mean)
        # rows of one target hold the same value, so it does not matter which is written last
        self.centroids[index.to(self.centroids.device)] = after.to(self.centroids.device)
        self.visited[index] = True


def anchor(tokens: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each expression's matched video tokens (with one target the paper's: that of the lowest cost):
    projected tokens (B, N_v, C) and indices (B, N_v) long, the matched target or -1 -> anchors (B, C), zero where
    nothing matched, and (B,) bool, where something did."""
    matched = indices >= 0
    total = (tokens * matched[:, :, None]).sum(1)
    return total / matched.sum(1, keepdim=True).clamp(min=1), matched.any(1)


def sample_negatives(
    target: Tensor, groups: TargetGroups, visited: Tensor, count: int, generator: Randomness = None
) -> Tensor:
    """Negatives of target (M,) long: rows of the bank (M, K) long, K = min(count, N), -1 where there are too few. Each
    is visited (N,) bool, not the own one, and there once: first those of the same video and category, then others of
    the same video, then any, in random order. generator: one, or one for each of M."""
    rows, device = len(visited), visited.device
    video, category = groups.video.to(device), groups.category.to(device)
    same_video = video[target, None] == video  # (M, N)
    same_category = same_video & (category[target, None] == category) & (category >= 0)
    lot = uniform(len(target), rows, device=device, generator=generator)
    priority = lot + same_video.float() + same_category.float()
    itself = target[:, None] == torch.arange(rows, device=device)
    chosen = priority.masked_fill(itself | ~visited, -1.0).topk(min(count, rows), dim=1)
    return chosen.indices.masked_fill(chosen.values < 0, -1)


def contrastive_loss(
    anchors: Tensor, target: Tensor, negatives: Tensor, bank: MemoryBank, tau: float = 0.07, count: Tensor | None = None
) -> Tensor:
    """Eq. 9 on normalised vectors, of anchors (M, C) with target (M,) long and negatives (M, K) of `sample_negatives`:
    mean over the anchors whose target was visited before, by default their number is `count`."""
    anchors = F.normalize(anchors.float(), dim=1)
    rows = torch.cat([target[:, None], negatives], 1)  # (M, 1 + K), the positive first
    logits = (F.normalize(bank.rows(rows.clamp(min=0)), dim=2) * anchors[:, None]).sum(2) / tau
    entropy = -logits.masked_fill(rows < 0, float("-inf")).log_softmax(1)[:, 0]
    known = bank.visited[target].float()
    return (entropy * known).sum() / (known.sum() if count is None else count).clamp(min=1)


@dataclass
class Contrast:
    """Contrastive learning over a run. Every part of a step meets the bank as it stood before the step, which `commit`
    then writes at once: the result is the same in however many parts and processes the step is learned."""

    bank: MemoryBank
    rows: Tensor  # (E,) long: the bank's row of every sentence of the data
    groups: TargetGroups
    negatives: int = 100
    start: int = 0  # the first step with a loss
    delta: float = 0.2
    temperature: float = 0.07
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # rows and anchors of the step so far

    def count(self, expressions: Sequence[int], present: Tensor, step: int) -> Tensor:
        """How many of these sentences, which have a target where `present` (B,), count in the loss."""
        return (present & self.bank.visited[self._rows(expressions)]).sum() * (step >= self.start)

    def loss(
        self, tokens: Tensor, indices: Tensor, which: Sequence[int], step: int, own: Sequence[Generator], count: Tensor
    ) -> Tensor:
        """Eq. 9 on the matched tokens of these sentences (as `anchor`); noted for the bank."""
        anchors, found = anchor(tokens, indices)
        anchors, rows = anchors[found], self._rows(which)[found]
        self.seen.append((rows, F.normalize(anchors.detach().float(), dim=1)))
        if step < self.start or not len(rows):
            return tokens.sum() * 0
        own = [each for each, is_found in zip(own, found.tolist(), strict=True) if is_found]
        negatives = sample_negatives(rows, self.groups, self.bank.visited, self.negatives, own)
        return contrastive_loss(anchors, rows, negatives, self.bank, self.temperature, count)

    def commit(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Eq. 8 for all sentences since the last time: the end of a step. `gather` puts the rows of all processes
        together, the first process's first."""
        nothing = torch.zeros(0, dtype=torch.long, device=self.bank.visited.device)
        rows = gather(torch.cat([nothing, *(rows for rows, _ in self.seen)]))
        anchors = gather(torch.cat([self.bank.rows(nothing), *(anchors for _, anchors in self.seen)]))
        self.seen.clear()
        if len(rows):
            self.bank.update(rows, anchors, self.delta)

    def _rows(self, expressions: Sequence[int]) -> Tensor:
        return self.rows[list(expressions)].to(self.bank.visited.device)
