"""Static perception (section 3.1): static queries (Eq. 1) become the object tokens of every frame."""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import CueSource, FrameDecoderConfig, ModelConfig
from dshmp.model.backbone import LanguageBackbone
from dshmp.model.layers import MLP, BiAttention, CrossAttention, FeedForward, cycle_rows
from dshmp.model.pixel_decoder import PixelDecoder, PixelFeatures, sine_position
from dshmp.model.text import Cues, TextFeatures

LEVELS = 3


class Prediction(NamedTuple):
    """What one prediction head says of F frames and N queries."""

    tokens: Tensor  # (F, N, C) object tokens, normalised
    logits: Tensor  # (F, N, 2), index 0 = object, 1 = none
    mask_embed: Tensor  # (F, N, C); mask logits are its inner products with the pixels of `mask_features`


@dataclass(frozen=True)
class Perception:
    """Static perception of F frames: the last head's `Prediction`, all of them, and two maps of `PixelFeatures`."""

    tokens: Tensor
    logits: Tensor
    mask_embed: Tensor
    layers: list[Prediction]  # before the first layer and after each, for deep supervision
    mask_features: Tensor
    video_features: Tensor


class FrameLayer(nn.Module):
    """Words and image fuse; the queries read the image inside their masks, the words, each other. As in the release,
    only the fusion drops out."""

    def __init__(self, config: FrameDecoderConfig, hidden: int) -> None:
        super().__init__()
        heads, embed = config.heads, config.ffn // 2
        self.language = config.language
        self.cross_attention = CrossAttention(hidden, heads)
        self.self_attention = CrossAttention(hidden, heads)
        self.feed_forward = FeedForward(hidden, config.ffn)
        if self.language:
            self.fusion = BiAttention(hidden, hidden, embed, max(heads // 2, 1), config.dropout)
            self.text_attention = CrossAttention(hidden, heads)

    def forward(
        self, queries: Tensor, image: Tensor, text: TextFeatures, mask: Tensor, query_pos: Tensor, image_pos: Tensor
    ) -> Tensor:
        """queries (F, N, C), image (F, S, C), one sentence per frame, mask (F, N, S) True inside -> queries."""
        tokens = text.tokens
        if self.language:
            image, tokens = self.fusion(image, tokens, text.mask[:, None, None])
        queries = self.cross_attention(queries, image, mask[:, None], query_pos=query_pos, memory_pos=image_pos)
        if self.language:
            queries = self.text_attention(queries, tokens, text.mask[:, None, None])
        queries = self.self_attention(queries, queries, query_pos=query_pos, memory_pos=query_pos)
        return cast(Tensor, self.feed_forward(queries))


class FrameDecoder(nn.Module):
    """Mask2Former's masked-attention decoder with static queries; layer i reads level i mod 3, coarse first. Every
    layer fuses the original image and words afresh (as in the release)."""

    def __init__(self, config: FrameDecoderConfig, hidden: int, cues: CueSource) -> None:
        super().__init__()
        self.injection, self.queries = config.injection, config.queries
        self.direct = cues == "direct"
        if not self.direct:
            self.query_content = nn.Embedding(config.queries, hidden)
            self.static_attention = CrossAttention(hidden, config.heads, config.dropout)
        self.query_position = nn.Embedding(config.queries, hidden)
        self.level_embed = nn.Embedding(LEVELS, hidden)
        self.layers = nn.ModuleList(FrameLayer(config, hidden) for _ in range(config.layers))
        self.norm = nn.LayerNorm(hidden)
        self.classify = nn.Linear(hidden, 2)
        self.mask_embed = MLP(hidden, hidden, hidden, 3)

    def static_queries(self, cues: Cues) -> Tensor:
        """Eq. 1: learned queries take up the static cues, q + injection * LN(q + MHA(q, F_s, F_s)) (F, N, C); with
        `direct` cues (Table 2a) the rows of F_s are the queries, repeated or cut to N."""
        if self.direct:
            return cycle_rows(cues.features, cues.mask, self.queries)
        queries = self.query_content.weight.expand(cues.features.shape[0], -1, -1)
        attended: Tensor = self.static_attention(queries, cues.features, cues.mask[:, None, None])
        return queries + self.injection * attended

    def forward(self, levels: list[Tensor], mask_features: Tensor, text: TextFeatures) -> list[Prediction]:
        """Maps (F, C, h_i, w_i), coarse to fine, features (F, C, h, w), each frame's sentence -> all heads."""
        images, positions, small = [], [], []
        for level, embed in zip(levels, self.level_embed.weight, strict=True):
            _, c, h, w = level.shape
            images.append(level.flatten(2).transpose(1, 2) + embed)  # (F, C, h, w) -> (F, h*w, C)
            positions.append(sine_position(h, w, c, level.device, level.dtype).flatten(2).transpose(1, 2))
            # resizing is linear: the features are resized, once, instead of the masks of every head
            small.append(F.interpolate(mask_features.detach(), (h, w), mode="bilinear").flatten(2))
        query_pos = self.query_position.weight
        queries = self.static_queries(text.static)
        predictions = [self.predict(queries)]
        for i, layer in enumerate(self.layers):
            scale = i % LEVELS
            mask = inside(predictions[-1].mask_embed, small[scale])
            queries = layer(queries, images[scale], text, mask, query_pos, positions[scale])
            predictions.append(self.predict(queries))
        return predictions

    def predict(self, queries: Tensor) -> Prediction:
        tokens = self.norm(queries)
        return Prediction(tokens, self.classify(tokens), self.mask_embed(tokens))


@torch.no_grad()
def inside(mask_embed: Tensor, features: Tensor) -> Tensor:
    """Where a query may look: inside its mask, anywhere if that is empty; (F, N, C), (F, C, S) -> bool (F, N, S)."""
    pixels = mask_embed @ features >= 0
    return pixels | ~pixels.any(dim=-1, keepdim=True)


class StaticPerception(nn.Module):
    """Images and a sentence -> object tokens and pixel features of every image (section 3.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.backbone = LanguageBackbone(config.backbone, text_size=config.language.encoder.hidden_size)
        self.pixel_decoder = PixelDecoder(config.pixel_decoder, self.backbone.channels, hidden)
        self.frame_decoder = FrameDecoder(config.frame_decoder, hidden, config.language.cues)

    def features(self, images: Tensor, text: TextFeatures | None, length: int = 1) -> PixelFeatures:
        """Backbone and pixel decoder: arguments as of `LanguageBackbone.forward`."""
        words, mask = (None, None) if text is None else (text.words, text.mask)
        return cast(PixelFeatures, self.pixel_decoder(self.backbone(images, words, mask, length)))

    def objects(self, features: PixelFeatures, text: TextFeatures) -> Perception:
        """Frame decoder: the object tokens of F frames, under as many sentences."""
        layers: list[Prediction] = self.frame_decoder(features.levels, features.mask_features, text)
        return Perception(*layers[-1], layers, features.mask_features, features.video_features)

    def forward(self, images: Tensor, text: TextFeatures, length: int = 1) -> Perception:
        return self.objects(self.features(images, text, length), text)


@torch.no_grad()
def disable_language(perception: StaticPerception) -> None:
    """Make a fresh model language-agnostic, so that it can first learn to find objects, and language later."""
    if perception.backbone.language_fusion:
        raise ValueError("a language-fused backbone cannot do without the sentence: its outputs are gated by the words")
    if perception.frame_decoder.direct:
        raise ValueError("direct cues cannot be left out: they are the queries")
    for parameter in _text_gates(perception.frame_decoder):
        nn.init.zeros_(parameter)


def uses_language(perception: StaticPerception) -> bool:
    """Whether any path from the sentence is open, that is, object tokens may depend on it."""
    decoder = perception.frame_decoder
    always = perception.backbone.language_fusion or decoder.direct
    return always or any(bool(parameter.any()) for parameter in _text_gates(decoder))


def _text_gates(decoder: FrameDecoder) -> list[nn.Parameter]:
    """The last parameters on every path from the text; at zero it is not heard, but they still receive gradients."""
    gates = list(decoder.static_attention.norm.parameters())
    for layer in decoder.modules():
        if isinstance(layer, FrameLayer) and layer.language:
            gates += [layer.fusion.gamma_v, *layer.text_attention.attention.out_proj.parameters()]
    return gates
