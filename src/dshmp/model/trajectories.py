"""Trajectories (Eq. 3): which token of a frame continues which token of the frame before. Gradients flow through the
gathered tokens, not through the choice."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dshmp.config import Matching


@torch.no_grad()
def align(tokens: Tensor, frames: Tensor | None = None, matching: Matching = "hungarian") -> Tensor:
    """Order the tokens (B, T, N, C) of every frame by trajectory: order[b, t, i], (B, T, N) long, is the token of frame
    t that belongs to trajectory i, which is token i of the first frame.

    Optimal assignments between adjacent frames, composed along time, are the chained matching of Eq. 3, since
    re-ordering the earlier frame only permutes the rows of the costs. So all costs are known at once. Tokens that are
    not finite are similar to none; padded frames, those not in `frames` (B, T) bool, keep their own order.
    `hungarian` aligns; `inverse` applies, frame after frame, the inverse permutation as the release does; `none` keeps
    the order of the frame decoder's queries.
    """
    batch, length, count, _ = tokens.shape
    identity = torch.arange(count, device=tokens.device).expand(batch, length, count)
    if matching == "none" or length < 2:
        return identity
    directions = tokens.float()
    directions = directions / (directions.norm(dim=-1, keepdim=True) + 1e-6)
    similarity = directions[:, :-1] @ directions[:, 1:].transpose(-2, -1)  # (B, T-1, N, N)
    cost = -similarity.nan_to_num(nan=0.0).flatten(0, 1)
    steps = _assign(cost.float().cpu().numpy()).reshape(batch, length - 1, count)
    if frames is not None:
        steps = np.where((frames[:, :-1] & frames[:, 1:])[..., None].cpu().numpy(), steps, np.arange(count))
    orders = [np.broadcast_to(np.arange(count), (batch, count))]
    for step in steps.swapaxes(0, 1):
        order = np.take_along_axis(step, orders[-1], axis=-1)
        orders.append(order.argsort(axis=-1) if matching == "inverse" else order)
    chained = torch.from_numpy(np.stack(orders, axis=1)).to(tokens.device)
    return chained if frames is None else torch.where(frames[..., None], chained, identity)


def gather(tokens: Tensor, order: Tensor) -> Tensor:
    """tokens (..., N, C) in the order (..., N): result[..., i, :] = tokens[..., order[..., i], :]."""
    rows = torch.arange(order[..., 0].numel(), device=order.device).view(*order.shape[:-1], 1)
    rows = rows * tokens.shape[-2] + order
    return tokens.flatten(0, -2).index_select(0, rows.flatten()).view(*order.shape, tokens.shape[-1])


def scatter(tokens: Tensor, order: Tensor) -> Tensor:
    """The inverse of `gather`: result[..., order[..., i], :] = tokens[..., i, :]."""
    return gather(tokens, order.argsort(dim=-1))


def displacement(
    tokens: Tensor,
    frames: Tensor,
    order: Tensor,
    before: int,
    after: int,
    position: Tensor,
    stride: int = 1,
    part: slice = slice(None),
) -> Tensor:
    """How each token changes along its trajectory, from `before` frames ago to `after` frames on, at its own slot.

    Tokens (B, T, N, C), real frames (B, T) bool, order (B, T, N) of `align`, position (B, T) of frames in the video,
    never falling -> (B, T, N, C), zero in padded frames and between frames of one time. At the clip's ends the first or
    last real frame stands in. Where the frames are not `stride` apart, the change is scaled to the time that it would
    have had if they were; for frames that are, the factor is 1 exactly. `part` chooses the frames that it is told of.
    """
    place = torch.arange(frames.shape[1], device=frames.device)
    last = frames.sum(1, keepdim=True).clamp(min=1) - 1
    later, earlier = torch.minimum(place + after, last), (place - before).clamp(min=0).expand(frames.shape)
    later, earlier, frames = later[:, part], earlier[:, part], frames[:, part]
    rows = torch.arange(len(frames), device=frames.device)[:, None]
    step = gather(tokens[rows, later], order[rows, later]) - gather(tokens[rows, earlier], order[rows, earlier])
    passed = position.gather(1, later) - position.gather(1, earlier)
    # 0 where no time has passed: infinity would make the gradient NaN
    factor = torch.where(passed > 0, (later - earlier) * stride / passed, 0.0)
    step = step * factor[..., None, None].to(step.dtype)
    return scatter(step.masked_fill(~frames[..., None, None], 0.0), order[:, part])


def _assign(cost: np.ndarray) -> np.ndarray:
    """Optimal column of every row: costs (M, N, N) -> (M, N). Where the cheapest columns of all rows differ they are
    the optimum; only other matrices need the solver."""
    columns: np.ndarray = cost.argmin(axis=-1)
    clash = (np.sort(columns, axis=-1) != np.arange(cost.shape[-1])).any(axis=-1)
    for index in np.flatnonzero(clash):
        columns[index] = linear_sum_assignment(cost[index])[1]
    return columns
