"""Trajectories (Eq. 3): which token of a frame continues which token of the frame before. Gradients flow through the
gathered tokens, not through the choice."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from dshmp.config import Matching

LONGEST_GAP = 16  # frames for which a trajectory waits to be seen again
NEW = 0.4  # how alike an object and a trajectory must be at least, of 2, to be one
FADING = 0.05  # what each frame without being seen takes from that


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


@torch.no_grad()
def link(tokens: Tensor | None, boxes: Tensor | None, present: Tensor, camera: Tensor | None) -> Tensor:
    """Ours: one order for the whole clip, as `align` gives it, in which a trajectory outlasts frames without it.

    A trajectory remembers what was seen of it last, and goes on in the candidate that is most like it: by the cosine of
    their tokens (Eq. 3) plus the overlap of their boxes (generalised IoU, Rezatofighi et al., CVPR 2019: also tells how
    far apart they are), of which either may be missing. A candidate like none begins a new one.

    Args:
        tokens: (B, T, N, C); boxes (B, T, N, 4) x0, y0, x1, y1; present (B, T, N) bool.
        camera: (B, T, 2, 3) the background's motion since the frame before, which the boxes remembered follow.
    """
    batch, length, count = present.shape
    there = present.cpu().numpy()
    unit = None if tokens is None else F.normalize(tokens.float(), dim=-1).cpu().numpy()
    places = None if boxes is None else boxes.float().cpu().numpy()
    motion = None if camera is None else camera.float().cpu().numpy()
    parts = (unit is not None) + (places is not None)
    if not parts:
        raise ValueError("candidates have neither tokens nor geometry to link them by")
    order = np.empty((batch, length, count), np.int64)
    unseen = np.full((batch, count), np.inf)  # frames since a trajectory was seen; infinite: it has not begun
    last_unit = None if unit is None else np.zeros_like(unit[:, 0])
    last_box = None if places is None else np.zeros_like(places[:, 0])
    for t in range(length):
        alike = np.zeros((batch, count, count), np.float32)
        if unit is not None and last_unit is not None:
            alike += last_unit @ unit[:, t].swapaxes(1, 2)
        if places is not None and last_box is not None:
            if motion is not None and t:
                last_box = _moved(last_box, motion[:, t])
            alike += _overlap(last_box, places[:, t])
        alike *= 2 / parts
        # what has not begun, or ended long ago, takes what is like none of the others
        alike = np.where((unseen <= LONGEST_GAP)[..., None], alike - FADING * np.minimum(unseen, 99)[..., None], NEW)
        chosen = _assign(np.where(there[:, t, None], -alike, 0.0))  # (B, N): the candidate of each trajectory
        order[:, t] = chosen
        now = np.take_along_axis(there[:, t], chosen, 1)
        unseen = np.where(now, 0, unseen + 1)
        if unit is not None and last_unit is not None:
            last_unit = np.where(now[..., None], np.take_along_axis(unit[:, t], chosen[..., None], 1), last_unit)
        if places is not None and last_box is not None:
            last_box = np.where(now[..., None], np.take_along_axis(places[:, t], chosen[..., None], 1), last_box)
    return torch.from_numpy(order).to(present.device)


def _moved(boxes: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Boxes (B, N, 4) carried along by a motion (B, 2, 3); their sides grow as areas do, and stay upright."""
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    centre = centre @ motion[:, :, :2].swapaxes(1, 2) + motion[:, None, :, 2]
    half = half * np.sqrt(np.abs(np.linalg.det(motion[:, :, :2])))[:, None, None]
    return np.concatenate([centre - half, centre + half], -1)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Generalised IoU of boxes (B, N, 4) and (B, M, 4): (B, N, M), from -1 far apart to 1."""
    a, b = a[:, :, None], b[:, None]
    inner = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    outer = (np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return np.asarray(inner / np.maximum(union, 1e-9) - (outer - union) / np.maximum(outer, 1e-9))


def gather(tokens: Tensor, order: Tensor) -> Tensor:
    """tokens (..., N, C) in the order (..., N): result[..., i, :] = tokens[..., order[..., i], :]."""
    rows = torch.arange(order[..., 0].numel(), device=order.device).view(*order.shape[:-1], 1)
    rows = rows * tokens.shape[-2] + order
    return tokens.flatten(0, -2).index_select(0, rows.flatten()).view(*order.shape, tokens.shape[-1])


def scatter(tokens: Tensor, order: Tensor) -> Tensor:
    """The inverse of `gather`: result[..., order[..., i], :] = tokens[..., i, :]."""
    return gather(tokens, order.argsort(dim=-1))


def neighbours(seen: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
    """For each frame of a trajectory the frames that a change is measured between: where it was last seen `before`
    frames ago or earlier, and where it is next seen `after` frames on or later; at its ends, its first and last frame.
    seen (B, T, N) bool -> two (B, T, N) long, both the frame itself where the trajectory is not seen, or only more than
    `LONGEST_GAP` frames away."""
    length = seen.shape[1]
    time = torch.arange(length, device=seen.device)[:, None]
    last = torch.where(seen, time, -1).cummax(1).values  # -1 and `length`: never
    coming = torch.where(seen, time, length).flip(1).cummin(1).values.flip(1)
    ago, ahead = (time[:, 0] - before).clamp(min=0), (time[:, 0] + after).clamp(max=length - 1)
    earlier = torch.where(last[:, ago] >= 0, last[:, ago], coming[:, ago])
    later = torch.where(coming[:, ahead] < length, coming[:, ahead], last[:, ahead])

    def near(found: Tensor) -> Tensor:
        return torch.where(seen & ((found - time).abs() <= LONGEST_GAP), found, time)

    return near(earlier), near(later)


def at_frames(values: Tensor, frames: Tensor) -> Tensor:
    """values (B, T, N, D) of each trajectory in frames (B, F, N) long of its own: (B, F, N, D)."""
    return values.gather(1, frames[..., None].expand(*frames.shape, values.shape[-1]))


def rate(position: Tensor, earlier: Tensor, later: Tensor, stride: int) -> Tensor:
    """What a change between two frames (B, F, N) is multiplied with to be that of one motion frame, `stride` frames of
    the video; 0 where no time has passed, as infinity would make the gradient NaN. position (B, T)."""
    batch = torch.arange(len(position), device=position.device)[:, None, None]
    passed = position[batch, later] - position[batch, earlier]
    return torch.where(passed > 0, stride / passed, 0.0)


def displacement(
    tokens: Tensor, seen: Tensor, before: int, after: int, position: Tensor, stride: int = 1, part: slice = slice(None)
) -> Tensor:
    """How tokens (B, T, N, C) in the order of trajectories change, from `before` frames ago to `after` frames on.

    seen (B, T, N) bool, position (B, T) of frames in the video, never falling -> (B, F, N, C) of the frames `part`,
    zero where a trajectory is not seen and between frames of one time. Where the frames are not `stride` apart, the
    change is scaled to the time that it would have had if they were; for frames that are, the factor is 1 exactly.
    """
    earlier, later = (each[:, part] for each in neighbours(seen, before, after))
    factor = rate(position, earlier, later, stride) * (later - earlier)
    return (at_frames(tokens, later) - at_frames(tokens, earlier)) * factor[..., None].to(tokens.dtype)


def _assign(cost: np.ndarray) -> np.ndarray:
    """Optimal column of every row: costs (M, N, N) -> (M, N). Where the cheapest columns of all rows differ they are
    the optimum; only other matrices need the solver."""
    columns: np.ndarray = cost.argmin(axis=-1)
    clash = (np.sort(columns, axis=-1) != np.arange(cost.shape[-1])).any(axis=-1)
    for index in np.flatnonzero(clash):
        columns[index] = linear_sum_assignment(cost[index])[1]
    return columns
