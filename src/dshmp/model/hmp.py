"""Hierarchical motion perception (section 3.2, Eq. 4-7): object tokens of a clip, made aware of motion.

    per block, inside windows of W frames:
        temporal self-attention over W * N tokens
        trajectories (Eq. 3)
        stages 1..J: words weigh frames (Eq. 4, 5), neighbouring frames merge (Eq. 6)
        gated return of the last stage to every frame (Eq. 7), order undone
        feed-forward

Every second block shifts the windows by W/2. Cost and memory are linear in the number of frames.
"""

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import ModelConfig, MotionConfig
from dshmp.model.agreement import TOKENS_AT_ONCE, Agreement, mean_cue
from dshmp.model.candidates import Candidates
from dshmp.model.geometry import MotionGeometry
from dshmp.model.layers import CrossAttention, FeedForward, closed_gate, joined
from dshmp.model.text import Cues
from dshmp.model.trajectories import align, displacement, gather, scatter

EPS = 1e-8


@dataclass(frozen=True)
class WindowLayout:
    """How the T frames of a clip lie in n windows of W slots each."""

    slots: Tensor  # (B, n*W) long, the frame in each slot
    back: Tensor  # (B, T) long, the slot of each frame
    bias: Tensor | None = None  # (B, n, 1 or W, W), added to the self-attention scores of a window, queries x keys
    frames: Tensor | None = None  # (B, n, W) bool, slots that take part in trajectories and stages; None: all


def key_bias(real: Tensor) -> Tensor:
    """Hide padded keys: (B, n, W) bool -> (B, n, 1, W) of 0 and -inf; 0 in a window of padding alone."""
    hidden = ~real & real.any(dim=-1, keepdim=True)
    return torch.zeros(real.shape, device=real.device).masked_fill(hidden, float("-inf"))[:, :, None]


def window_layout(frames: Tensor, window: int, shift: int = 0) -> WindowLayout:
    """Windows one after the other, or `shift` frames earlier in clips that need more than one: then the first and the
    last are part empty. frames (B, T) bool; a clip is shifted by its own length, whatever its batch."""
    length = frames.shape[1]
    lengths = frames.sum(dim=1, keepdim=True)
    offset = torch.where(lengths > window, shift, 0)  # (B, 1)
    count = -(-int((lengths + offset).max()) // window)
    slots = torch.arange(count * window, device=frames.device) - offset
    inside = (slots >= 0) & (slots < length)
    slots = slots.clamp(0, length - 1)
    real = (inside & frames.gather(1, slots)).unflatten(1, (-1, window))
    back = (torch.arange(length, device=frames.device) + offset).clamp(max=count * window - 1)
    return WindowLayout(slots, back) if bool(real.all()) else WindowLayout(slots, back, key_bias(real), real)


def rolled_layout(frames: Tensor, window: int, seen: bool) -> WindowLayout:
    """The release's shift: frames (B, n*W) bool move on by W/2 and the last ones wrap round into the first window. A
    finite bias of -1000 keeps apart the two halves of the first window; it also lies on every score of a padded query
    and, in the first and the last window, of a padded key."""
    batch, length = frames.shape
    half = -(-window // 2)
    time = torch.arange(length, device=frames.device)
    slots = ((time - half) % length).expand(batch, length)
    back = ((time + half) % length).expand(batch, length)
    real = frames.gather(1, slots).unflatten(1, (-1, window))  # (B, n, W)
    blocked = ~real[..., :, None].repeat(1, 1, 1, window)  # rows: queries
    for edge in {0, blocked.shape[1] - 1}:
        blocked[:, edge] |= ~real[:, edge, None, :]
    blocked[:, 0, :half, half:] = True
    blocked[:, 0, half:, :half] = True
    bias = blocked * -1000.0
    return WindowLayout(slots, back, bias) if seen else WindowLayout(slots, back, bias + key_bias(real), real)


def select_frames(x: Tensor, index: Tensor) -> Tensor:
    """x (B, T, ...) at frames index (B, S) -> (B, S, ...)."""
    rows: Tensor = index + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*index.shape, *x.shape[2:])


class TimePosition(nn.Module):
    """A frame's place in time as a vector: sinusoids of the real-valued position, then a linear map. Ours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pairs = channels // 2
        self.linear = nn.Linear(2 * self.pairs, channels, bias=False)

    def forward(self, position: Tensor) -> Tensor:
        """Positions (B, T) in units of motion frames -> (B, T, C)."""
        exponent = torch.arange(self.pairs, device=position.device) / self.pairs
        angle = position.float()[..., None] * 10000.0**-exponent
        waves = torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.linear.weight.dtype)
        return cast(Tensor, self.linear(waves))


def merge(x: Tensor, share: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Eq. 6: frames 2t and 2t+1 become one token, averaged by their share; an odd last frame is repeated. x (B, n, L,
    N, C), share (B, n, L, N, 1), 0 where a token takes no part, real (B, n, L, N or 1) bool, None for all -> (B, n,
    ceil(L/2), N, C), zero where neither token takes part, and which of its tokens are real."""
    if x.shape[2] % 2:
        x, share = (torch.cat([item, item[:, :, -1:]], dim=2) for item in (x, share))
        real = None if real is None else torch.cat([real, real[:, :, -1:]], dim=2)
    x, share = (item.unflatten(2, (-1, 2)) for item in (x, share))  # (B, n, L/2, 2, N, C)
    share = share / share.sum(dim=3, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    return (x * share).sum(dim=3), None if real is None else real.unflatten(2, (-1, 2)).any(dim=3)


class HierarchicalCrossAttention(nn.Module):
    """Motion cues read trajectories at J time scales (Eq. 4-7). An untrained block passes its input on."""

    def __init__(self, channels: int, stages: int, merging: Literal["weighted", "mean"] = "weighted") -> None:
        super().__init__()
        self.merging = merging
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.ModuleList(nn.Linear(channels, channels) for _ in range(stages))
        self.norm = nn.ModuleList(nn.LayerNorm(channels) for _ in range(stages))
        self.gate = closed_gate(channels)

    def forward(self, x: Tensor, cues: Cues, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, n, W, N, C), token i of every frame of a window being of trajectory i, and which tokens take part
        (B, n, W, N or 1) bool, None for all -> (B, n, W, N, C) and each frame's weight in stage 1, (B, n, W, N)."""
        keys = self.key(cues.features).transpose(1, 2) * x.shape[-1] ** -0.5  # (B, C, K)
        values = self.value(cues.features)
        state = self.query(x)
        weights = []
        for out, norm in zip(self.out, self.norm, strict=True):
            scores = (state.flatten(1, 3) @ keys).view(*state.shape[:4], -1)  # (B, n, L, N, K)
            if real is not None:  # a trajectory that is in no frame keeps finite scores; nothing reads its result
                seen = real | ~real.any(dim=2, keepdim=True)
                scores = scores.masked_fill(~seen[..., None], float("-inf"))
            # Eq. 4 over time first, padded words afterwards; in float32 at least, as EPS is zero in half precision.
            attention = scores.softmax(dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))
            attention = attention * cues.mask[:, None, None, None, :]
            weight = attention.sum(dim=-1, keepdim=True)
            weights.append(weight)
            # Eq. 5, the linear map taken first: there are fewer words than tokens.
            read = (attention / (weight + EPS)).flatten(1, 3) @ (values @ out.weight.T) + out.bias
            state = norm(state + read.view(state.shape))
            share = weight + EPS if self.merging == "weighted" else torch.ones_like(weight)
            state, real = merge(state, share if real is None else share * real[..., None], real)
        state = self.gate(state) * state
        state = state.repeat_interleave(2 ** len(self.out), dim=2)[:, :, : x.shape[2]]
        return x + state, weights[0].squeeze(-1)  # Eq. 7


class HMPBlock(nn.Module):
    """Temporal self-attention, hierarchical cross-attention and feed-forward inside windows."""

    def __init__(self, config: MotionConfig, channels: int) -> None:
        super().__init__()
        self.matching = config.matching
        self.self_attention = CrossAttention(channels, config.heads)
        stages = config.stages
        self.cross_attention = HierarchicalCrossAttention(channels, stages, config.merge) if stages else None
        self.feed_forward = FeedForward(channels, config.ffn)

    def forward(
        self,
        x: Tensor,
        cues: Cues,
        bias: Tensor | None = None,
        frames: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x (B, n, W, N, C) -> the same shape, and stage 1's frame weights (B, n, W, N), uniform without stages; `bias`
        and `frames` are as in `WindowLayout`. Where not all candidates are there, `seen` (B, n, W, N) bool says what is
        in a real frame, in place of both."""
        shape = x.shape
        if seen is not None:  # a window without any candidate reads nothing
            bias = seen.flatten(0, 1).flatten(1, 2)[:, None, None]
        elif bias is not None:
            bias = bias.flatten(0, 1)[:, None].to(x.dtype).repeat_interleave(shape[3], -1)
            if bias.shape[-2] > 1:  # (B, n, W, W) -> (B*n, 1, W*N, W*N)
                bias = bias.repeat_interleave(shape[3], -2)
        x = x.flatten(0, 1).flatten(1, 2)  # (B, n, W, N, C) -> (B*n, W*N, C)
        x = self.self_attention(x, x, bias).view(shape)
        weights = x.new_full(shape[:-1], 1 / shape[2])
        if self.cross_attention is not None:
            real = seen if seen is not None or frames is None else frames[..., None]
            if self.matching == "tracks":  # which they are in already
                x, weights = self.cross_attention(x, cues, real)
            else:
                order = align(x.flatten(0, 1), None if frames is None else frames.flatten(0, 1), self.matching)
                order = order.view(shape[:-1])
                x, weights = self.cross_attention(gather(x, order), cues, real)
                x, weights = scatter(x, order), scatter(weights[..., None], order).squeeze(-1)
        return self.feed_forward(x), weights


class MotionPerception(nn.Module):
    """Object tokens of single frames -> motion-aware object tokens (the HMP part of section 3.2)."""

    def __init__(self, whole: ModelConfig) -> None:
        super().__init__()
        config, hidden = whole.motion, whole.hidden_size
        if config.window < (least := max(2, 2**config.stages)):
            fault = f"motion.stages = {config.stages} needs motion.window of at least {least} frames"
            raise ValueError(f"{fault}, not {config.window}: enlarge the window or take fewer stages")
        self.config = config
        self.release = whole.release
        self.input_projection = nn.Linear(hidden, hidden)
        self.geometry = MotionGeometry(hidden, config.window, config.camera) if config.geometry else None
        self.appearance = nn.Linear(config.appearance, hidden, bias=False) if config.appearance else None
        if self.appearance is not None:  # what has not learned to read it answers as without
            nn.init.zeros_(self.appearance.weight)
        self.time_position = TimePosition(hidden) if config.position else None
        self.displacement = nn.Linear(2 * hidden, hidden, bias=False) if config.displacement else None
        self.static = Agreement(hidden) if config.static else None
        self.advice = nn.Linear(1, hidden, bias=False) if config.static else None
        self.blocks = nn.ModuleList(HMPBlock(config, hidden) for _ in range(config.blocks))

    def forward(
        self, candidates: Candidates, cues: Cues, position: Tensor, stride: int = 1, static: Cues | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Candidates of B clips, motion cues, places in time (B, T) in frames of the video, of which `stride` are one
        motion frame -> motion-aware tokens (B, T, N, C), and the weight of each frame in a token's trajectory within
        its window (w of stage 1 in the last block), (B, T, N), and, where `static` cues are asked about, logits that
        each candidate fits them, (B, T, N). What is not there has values that nothing reads."""
        batch, length, count = candidates.shape
        window = self.config.window
        missing = -length % window
        tokens, seen = candidates.tokens, candidates.seen
        order = kept = None
        if tokens is not None and self.displacement is not None and not candidates.linked:
            order = align(tokens, candidates.frames, self.config.matching)
            tokens = gather(tokens, order)
        looks = tokens if tokens is not None else candidates.appearance
        if looks is not None and candidates.geometry is not None and self.training and self.config.token_dropout:
            # some clips are answered by geometry alone, as tracks made elsewhere have no tokens
            kept = looks.new_empty(batch, 1, 1, 1).bernoulli_(1 - self.config.token_dropout)
        step = max(1, TOKENS_AT_ONCE // (batch * count))
        parts = (
            self._advised(
                self._enter(candidates, tokens, kept, order, seen, position, stride, part),
                static,
                None if candidates.fits is None else candidates.fits[:, part],
            )
            for part in (slice(start, start + step) for start in range(0, length, step))
        )
        x, *fits = joined(parts, length)
        x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
        padded = None if candidates.present is None else F.pad(seen, (0, 0, 0, missing))
        layouts = self._layouts(F.pad(candidates.frames, (0, missing)))
        weights = x.new_full(x.shape[:3], 1 / window)
        for index, block in enumerate(self.blocks):
            x, weights = self._run(block, x, cues, layouts[index % 2], padded)
        return x[:, :length], weights[:, :length], fits[0] if fits else None

    def _advised(self, x: Tensor, static: Cues | None, known: Tensor | None) -> tuple[Tensor, ...]:
        """Tokens (B, F, N, C) that are told whether they fit the static words, and its logits (B, F, N), in place of
        which `known` ones stand where they are not NaN. That advises and removes nothing: in a sentence about two
        objects the other one does not fit."""
        if self.static is None or self.advice is None or static is None:
            return (x,)
        fits = self.static(x, mean_cue(static))
        fits = fits if known is None else torch.where(known.isnan(), fits, known)
        return x + self.advice(fits.tanh()[..., None]), fits

    def _enter(
        self,
        candidates: Candidates,
        tokens: Tensor | None,
        kept: Tensor | None,
        order: Tensor | None,
        seen: Tensor,
        position: Tensor,
        stride: int,
        part: slice,
    ) -> Tensor:
        """What enters the first block of some frames, zero where no candidate is: (B, F, N, C). Where `kept` (B, 1, 1,
        1) is 0, tokens and appearance say nothing."""
        terms = []
        if tokens is not None:
            entering = self.input_projection(tokens[:, part])
            if self.displacement is not None:
                # one frame's change shows what is fleeting but is mostly noise; half a window's shows the direction
                reach = self.config.window // 4
                changes = [
                    displacement(tokens, seen, *each, position, stride, part) for each in ((1, 0), (reach, reach))
                ]
                entering = entering + self.displacement(torch.cat(changes, dim=-1))
            entering = entering if order is None else scatter(entering, order[:, part])
            terms.append(entering if kept is None else entering * kept)
        if self.appearance is not None and candidates.appearance is not None:
            entering = self.appearance(F.normalize(candidates.appearance[:, part], dim=-1))  # of any encoder's scale
            terms.append(entering if kept is None else entering * kept)
        if self.geometry is not None and candidates.geometry is not None:
            own = candidates.camera, candidates.sure
            terms.append(self.geometry(candidates.geometry, seen, *own, position, stride, part))
        if self.time_position is not None:
            terms.append(self.time_position(position[:, part] / stride)[:, :, None])
        return cast(Tensor, sum(terms[1:], terms[0]).masked_fill(~seen[:, part, :, None], 0.0))

    def _layouts(self, frames: Tensor) -> tuple[WindowLayout, WindowLayout]:
        """The windows of even and of odd blocks; frames (B, n*W)."""
        window, seen = self.config.window, self.release.padded_frames == "seen"
        plain = window_layout(frames, window)
        plain = replace(plain, frames=None) if seen else plain
        if self.release.window_shift == "test":
            return plain, plain if self.training else rolled_layout(frames, window, seen)
        return plain, plain if frames.shape[1] <= window else window_layout(frames, window, window // 2)

    def _run(
        self, block: nn.Module, x: Tensor, cues: Cues, layout: WindowLayout, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One block on all windows of the clips, as many windows at once as memory allows: x (B, T, N, C); `seen` (B,
        T, N) bool where not all candidates are there."""
        slots = layout.slots.unflatten(1, (-1, self.config.window))  # (B, n, W)
        step = max(1, TOKENS_AT_ONCE // (len(x) * self.config.window * x.shape[2]))

        def run(start: int) -> tuple[Tensor, Tensor]:
            part = slice(start, start + step)
            masks = [None if mask is None else mask[:, part] for mask in (layout.bias, layout.frames)]

            def windows(values: Tensor) -> Tensor:  # (B, T, N, ...) -> (B, n', W, N, ...)
                found: Tensor = select_frames(values, slots[:, part].flatten(1)).unflatten(1, (-1, self.config.window))
                return found

            there = None if seen is None else windows(seen)
            if there is not None and masks[1] is not None:
                there = there & masks[1][..., None]  # slots outside of the clip
            return cast(tuple[Tensor, Tensor], block(windows(x), cues, *masks, there))

        moved, weights = joined(map(run, range(0, slots.shape[1], step)), slots.shape[1])
        moved, weights = moved.flatten(1, 2), weights.flatten(1, 2)
        return select_frames(moved, layout.back), select_frames(weights, layout.back)
