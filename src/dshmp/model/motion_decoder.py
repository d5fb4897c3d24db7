"""Motion decoder: N_v motion queries (Eq. 2) gather motion-aware object tokens into video tokens. Each says whether it
is meant and where it is: by a mask embedding (the paper), or by pointing at the object token of every frame whose mask
it takes (ours)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import CueSource, ModelConfig, MotionConfig
from dshmp.model.agreement import Agreement
from dshmp.model.hmp import TimePosition
from dshmp.model.layers import MLP, BiAttention, CrossAttention, FeedForward, cycle_rows
from dshmp.model.readout import EmbeddingReadout, TrajectoryReadout
from dshmp.model.text import Cues, TextFeatures
from dshmp.model.trajectories import scatter


@dataclass(frozen=True)
class VideoTokens:
    """What the model understood of a clip: N_v candidates for what the sentence means."""

    tokens: Tensor  # (B, N_v, C)
    logits: Tensor  # (B, N_v, 2) class scores; index 0 is "meant", 1 is "none"
    similarity: Tensor  # (B, N_v, C) for the similarity loss against `frame_similarity`
    contrast: Tensor  # (B, N_v, D) for the contrastive loss (section 3.3), not normalised
    attention: Tensor  # (B, N_v, T) share of each frame in the last cross-attention, summed over its tokens
    motion_tokens: Tensor  # (B, T, N, C), the motion-aware object tokens that all this was read from
    frame_similarity: Tensor  # (B, T, N, C)
    frame_weights: Tensor  # (B, T, N) from motion perception: the words' mass on each frame of a trajectory
    readout: EmbeddingReadout | TrajectoryReadout
    track_logits: Tensor | None  # (B, T, N), is this token's object meant? None with the paper's read-out
    static_logits: Tensor | None = None  # (B, T, N), does it fit the static words? None in a model that does not tell
    layers: tuple["VideoTokens", ...] = ()  # the same after every layer in training; outside it after the last only

    def answer(self, kept: list[int]) -> "VideoTokens":
        """With the read-out of these video tokens alone, and without what is as large as all object tokens and is only
        learned from."""
        none = self.tokens.new_empty(0)
        light = replace(self, motion_tokens=none, frame_similarity=none, frame_weights=none)
        return replace(light, readout=self.readout.of(kept), track_logits=None, static_logits=None, layers=())

    def unlinked(self, order: Tensor) -> "VideoTokens":
        """Of candidates that were read in the order (B, T, N) of trajectories: in that in which they were found."""

        def back(values: Tensor) -> Tensor:
            return scatter(values, order) if values.ndim == 4 else scatter(values[..., None], order).squeeze(-1)

        return replace(
            self,
            motion_tokens=back(self.motion_tokens),
            frame_similarity=back(self.frame_similarity),
            frame_weights=back(self.frame_weights),
            readout=self.readout.unlinked(order),
            track_logits=None if self.track_logits is None else back(self.track_logits),
            static_logits=None if self.static_logits is None else back(self.static_logits),
            layers=tuple(layer.unlinked(order) for layer in self.layers),
        )


class MotionQueries(nn.Module):
    """Eq. 2: learnable motion queries attend to the motion cues, q + injection * LN(q + MHA(q, F_m, F_m)); with
    `direct` cues (Table 2a, without learnable queries) the rows of the cues are the queries."""

    def __init__(self, config: MotionConfig, source: CueSource, channels: int) -> None:
        super().__init__()
        self.count = config.queries
        self.injection = config.injection
        self.learned = source != "direct"
        if self.learned:
            self.content = nn.Embedding(config.queries, channels)
            self.cross_attention = CrossAttention(channels, config.heads, config.dropout)

    def forward(self, cues: Cues) -> Tensor:
        """(B, N_v, C)."""
        if not self.learned:
            return cycle_rows(cues.features, cues.mask, self.count)
        query = self.content.weight.expand(len(cues.features), -1, -1)
        read: Tensor = self.cross_attention(query, cues.features, cues.mask[:, None, None])
        return query + self.injection * read


class MotionDecoderLayer(nn.Module):
    """Tokens and words fuse; the queries read the tokens, the words, each other. As in the release, only the fusion
    drops out."""

    def __init__(self, config: MotionConfig, channels: int) -> None:
        super().__init__()
        heads, embed = config.heads, config.ffn // 2
        self.fusion = BiAttention(channels, channels, embed, max(heads // 2, 1), config.dropout, config.fusion_scale)
        self.cross_attention = CrossAttention(channels, heads)
        self.text_attention = CrossAttention(channels, heads)
        self.self_attention = CrossAttention(channels, heads)
        self.feed_forward = FeedForward(channels, config.ffn)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        places: Sequence[Tensor],
        mask: Tensor | None,
        words: Tensor,
        word_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """query (B, N_v, C), memory (B, T, N, C), its positions (as in `Attention.weighing`), words (B, L, C), masks of
        memory and words, bool -> the three updated, and the cross-attention (B, N_v, T*N)."""
        size = memory.shape[1:3]
        memory, words = self.fusion(memory.flatten(1, 2), words, word_mask, mask)
        memory = memory.unflatten(1, size)
        query, attention = self.cross_attention.weighing(query, memory, mask, query_pos=query_pos, places=places)
        query = self.text_attention(query, words, word_mask)
        query = self.self_attention(query, query, query_pos=query_pos, memory_pos=query_pos)
        return self.feed_forward(query), memory, words, attention


class Pointer(nn.Module):
    """Ours: which object token a video token means in every frame, or that its object is not visible. What the
    trajectories say of themselves (`track_logits`) is added, so that choosing among look-alikes is learned from every
    token and not through the few video tokens alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.absent = nn.Parameter(torch.zeros(channels))

    def forward(self, video: Tensor, objects: Tensor, track_logits: Tensor) -> Tensor:
        """Video tokens (B, N_v, C), object tokens fused with the words (B, T, N, C) and their logits (B, T, N)
        -> pointer logits (B, N_v, T, N+1), the last for "not visible"."""
        query = self.query(video) * video.shape[-1] ** -0.5
        # video tokens are few and object tokens many, so the former are projected: q . (W k) = (W' q) . k
        scores = (query @ self.key.weight) @ objects.flatten(1, 2).transpose(1, 2)  # (B, N_v, T*N)
        scores = scores.unflatten(2, objects.shape[1:3]) + track_logits[:, None]
        absent = (query @ self.absent)[..., None, None].expand(*scores.shape[:3], 1)
        return torch.cat([scores, absent], dim=3)


class MotionDecoder(nn.Module):
    """Motion-aware object tokens and words -> video tokens with their read-outs."""

    def __init__(self, whole: ModelConfig) -> None:
        super().__init__()
        config, hidden = whole.motion, whole.hidden_size
        self.queries = MotionQueries(config, whole.language.cues, hidden)
        self.query_position = nn.Embedding(config.queries, hidden)
        self.object_position = nn.Embedding(whole.frame_decoder.queries, hidden) if config.object_position else None
        self.time_position = TimePosition(hidden) if config.position else None
        self.layers = nn.ModuleList(MotionDecoderLayer(config, hidden) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(hidden)
        self.class_embed = nn.Linear(hidden, 2)
        self.similarity = nn.Linear(hidden, hidden)
        self.frame_similarity = nn.Linear(hidden, hidden)
        self.contrast = MLP(hidden, hidden, config.contrast_size, 3)
        points = whole.readout.masks == "trajectories"
        self.hard = whole.readout.pointing == "hard"
        self.mask_embed = None if points else MLP(hidden, hidden, hidden, 3)
        self.mask_features = None if points else nn.Conv2d(hidden, hidden, 1)
        self.pointer = Pointer(hidden) if points else None
        self.track = Agreement(hidden) if points else None

    def forward(
        self, tokens: Tensor, seen: Tensor, text: TextFeatures, position: Tensor, weights: Tensor
    ) -> VideoTokens:
        """Motion-aware object tokens (B, T, N, C), which of them are there (B, T, N or 1) bool, B sentences, places in
        time (B, T) in motion frames; motion perception's weights (B, T, N) are handed on as evidence."""
        batch, length, count, _ = tokens.shape
        places = [] if self.object_position is None else [self.object_position.weight[None, None]]
        if self.time_position is not None:
            places.append(self.time_position(position)[:, :, None])
        memory = tokens
        mask = None if bool(seen.all()) else seen.expand(batch, length, count).flatten(1)[:, None, None]
        words, word_mask = text.tokens, text.mask[:, None, None]
        query = self.queries(text.motion)
        query_pos = self.query_position.weight.expand(batch, -1, -1)
        frame_similarity: Tensor | None = None
        readings: list[VideoTokens] = []
        for number, layer in enumerate(self.layers, start=1):
            query, memory, words, attention = layer(query, query_pos, memory, places, mask, words, word_mask)
            if not self.training and number < len(self.layers):
                continue
            if frame_similarity is None:
                frame_similarity = self.frame_similarity(tokens)
            video = self.norm(query)
            track_logits = None if self.track is None else self.track(memory, text.sentence)
            reading = VideoTokens(
                tokens=video,
                logits=self.class_embed(video),
                similarity=self.similarity(video),
                contrast=self.contrast(video),
                attention=attention.unflatten(-1, (length, count)).sum(dim=-1),
                motion_tokens=tokens,
                frame_similarity=frame_similarity,
                frame_weights=weights,
                readout=self._readout(video, memory, track_logits, seen),
                track_logits=track_logits,
            )
            readings.append(reading)
        return replace(readings[-1], layers=tuple(readings))

    def _readout(
        self, video: Tensor, objects: Tensor, track_logits: Tensor | None, seen: Tensor
    ) -> EmbeddingReadout | TrajectoryReadout:
        if self.mask_embed is not None:
            return EmbeddingReadout(self.mask_embed(video))
        assert self.pointer is not None
        pointer = self.pointer(video, objects, track_logits)
        there = F.pad(seen.expand(objects.shape[:3]), (0, 1), value=True)  # "not visible" always can be meant
        pointer = pointer.masked_fill(~there[:, None], torch.finfo(pointer.dtype).min)
        return TrajectoryReadout(pointer, hard=self.hard and not self.training)
