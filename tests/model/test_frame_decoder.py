"""Static perception: parity with the release's recorded outputs, invariances, gradients."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import (
    BackboneConfig,
    EncoderConfig,
    FrameDecoderConfig,
    LanguageConfig,
    ModelConfig,
    PixelDecoderConfig,
)
from dshmp.model.backbone import LanguageBackbone, PixelWordAttention, instance_norm
from dshmp.model.frame_decoder import Perception, StaticPerception, disable_language, inside
from dshmp.model.layers import Attention, BiAttention, CrossAttention, cycle_rows
from dshmp.model.pixel_decoder import PixelDecoder


@dataclass
class Rows:
    features: Tensor
    mask: Tensor


@dataclass
class Text:
    words: Tensor
    tokens: Tensor
    mask: Tensor
    static: Rows


def close(actual: Tensor, expected: np.ndarray | Tensor, tolerance: float = 1e-5) -> None:
    expected = torch.as_tensor(expected)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


# --- the whole, from scratch

HIDDEN, TEXT, FRAMES = 32, 20, 3


def tiny(*, fusion: bool = False, language: bool = True, cues: str = "full", drop: float = 0.0) -> ModelConfig:
    return ModelConfig(
        hidden_size=HIDDEN,
        language=LanguageConfig(encoder=EncoderConfig(hidden_size=TEXT), cues=cues),  # type: ignore[arg-type]
        backbone=BackboneConfig(
            embed_dim=8,
            depths=(1, 2, 1, 1),
            num_heads=(1, 1, 2, 2),
            window_size=4,
            drop_path=drop,
            language_fusion=fusion,
        ),
        pixel_decoder=PixelDecoderConfig(layers=1, heads=4, ffn=48),
        frame_decoder=FrameDecoderConfig(queries=5, layers=4, heads=4, ffn=48, dropout=drop, language=language),
    )


def build(config: ModelConfig) -> StaticPerception:
    torch.manual_seed(0)
    return StaticPerception(config).eval()


def excite(perception: StaticPerception) -> StaticPerception:
    """Layer scales and gates start (near) zero; open them so that what passes them can be seen."""
    with torch.no_grad():
        for name, parameter in perception.named_parameters():
            if "gamma" in name or "gates" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return perception


def sentence(frames: int = FRAMES, seed: int = 1) -> Text:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.arange(6) < torch.tensor([6, 4, 5, 2])[torch.arange(frames) % 4, None]
    rows = torch.arange(3) < torch.tensor([3, 2, 1])[torch.arange(frames) % 3, None]
    return Text(draw(frames, 6, TEXT), draw(frames, 6, HIDDEN), mask, Rows(draw(frames, 3, HIDDEN), rows))


def pictures(frames: int = FRAMES, height: int = 40, width: int = 52) -> Tensor:
    return torch.randn(frames, 3, height, width, generator=torch.Generator().manual_seed(2))


def picked(text: Text, index: slice) -> Text:
    static = Rows(text.static.features[index], text.static.mask[index])
    return Text(text.words[index], text.tokens[index], text.mask[index], static)


@torch.no_grad()
@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("size", [(64, 80), (33, 47), (4, 4), (1, 70)])
def test_shapes_of_any_size(fusion: bool, size: tuple[int, int]) -> None:
    state = build(tiny(fusion=fusion))(pictures(2, *size), sentence(2))
    height, width = (-(-edge // 4) for edge in size)
    assert state.tokens.shape == state.mask_embed.shape == (2, 5, HIDDEN)
    assert state.logits.shape == (2, 5, 2)
    assert state.mask_features.shape == state.video_features.shape == (2, HIDDEN, height, width)
    assert len(state.layers) == 5
    assert torch.equal(state.layers[-1].mask_embed, state.mask_embed)
    assert state.tokens.isfinite().all()
    assert state.mask_features.isfinite().all()


@torch.no_grad()
def test_language_fusion_is_what_lets_words_into_the_pixels() -> None:
    for fusion in (False, True):
        perception = build(tiny(fusion=fusion))
        first, second = (perception.features(pictures(), sentence(seed=seed))[0] for seed in (1, 7))
        assert torch.equal(first, second) is not fusion


@torch.no_grad()
def test_closed_gate_keeps_words_out_of_the_next_stage() -> None:
    backbone = build(tiny(fusion=True)).backbone
    plain = build(tiny()).backbone
    plain.load_state_dict({key: backbone.state_dict()[key] for key in plain.state_dict()})
    seen = []
    hook = backbone.stages[3].blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    plain_hook = plain.stages[3].blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    text = sentence()
    backbone(pictures(), text.words, text.mask, 1)
    plain(pictures(), None, None, 1)
    hook.remove(), plain_hook.remove()
    assert torch.equal(seen[0], seen[1])


@torch.no_grad()
@pytest.mark.parametrize("cues", ["full", "direct"])
def test_batch_invariance(cues: str) -> None:
    perception = excite(build(tiny(fusion=True, cues=cues)))
    together = perception(pictures(), sentence())
    for i in range(FRAMES):
        alone = perception(pictures()[i : i + 1], picked(sentence(), slice(i, i + 1)))
        for key in ("tokens", "logits", "mask_embed", "mask_features", "video_features"):
            close(getattr(alone, key), getattr(together, key)[i : i + 1])


@torch.no_grad()
@pytest.mark.parametrize("cues", ["full", "direct"])
def test_padded_words_change_nothing(cues: str) -> None:
    perception = excite(build(tiny(fusion=True, cues=cues)))
    text = sentence()

    def longer(features: Tensor, mask: Tensor, extra: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(features), extra, features.shape[2]) * 50
        features = torch.cat([features.where(mask[..., None], 30.0), noise], dim=1)
        return features, F.pad(mask, (0, extra))

    words, mask = longer(text.words, text.mask, 4)
    tokens, _ = longer(text.tokens, text.mask, 4)
    padded = Text(words, tokens, mask, Rows(*longer(text.static.features, text.static.mask, 2)))
    expected, found = perception(pictures(), text), perception(pictures(), padded)
    for key in ("tokens", "logits", "mask_embed", "mask_features"):
        close(getattr(found, key), getattr(expected, key))


@torch.no_grad()
def test_a_sentence_without_real_words_gives_no_nan() -> None:
    perception = excite(build(tiny(fusion=True)))
    text = sentence()
    text.mask = torch.zeros_like(text.mask)
    text.static.mask = torch.zeros_like(text.static.mask)
    assert perception(pictures(), text).tokens.isfinite().all()


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
def test_gradients_reach_everything(fusion: bool, agnostic: bool) -> None:
    """Two steps: a zero gate or layer scale holds back the gradient of what stands before it for one step."""
    if fusion and agnostic:
        pytest.skip("a language-fused backbone cannot do without the sentence")
    perception = build(tiny(fusion=fusion)).train()
    if agnostic:
        disable_language(perception)
    optimizer = torch.optim.SGD(perception.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        state = perception(pictures(), sentence())
        loss = state.video_features.square().mean()
        for head in state.layers:
            masks = torch.einsum("fnc,fchw->fnhw", head.mask_embed, state.mask_features)
            loss = loss + masks.sigmoid()[..., ::2].mean() + head.logits.log_softmax(-1)[..., 0].mean()
        loss.backward()
        optimizer.step()
    silent = [name for name, p in perception.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before an instance norm, and a key's bias under a softmax, cancel.
    cancels = ("k_proj.bias", "gathered.bias", "query.bias", "key.bias")
    assert [name for name in silent if not name.endswith(cancels)] == []


@torch.no_grad()
def test_disabled_language_is_exactly_absent() -> None:
    perception = excite(build(tiny()))
    different = [perception(pictures(), sentence(seed=seed)).tokens for seed in (1, 7)]
    assert not torch.equal(*different)
    disable_language(perception)
    first, second = (perception(pictures(), sentence(seed=seed)) for seed in (1, 7))
    for a, b in zip(first.layers, second.layers, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("config", "why"), [(tiny(fusion=True), "language-fused"), (tiny(cues="direct"), "direct")])
def test_what_cannot_be_disabled_says_so(config: ModelConfig, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        disable_language(build(config))


@torch.no_grad()
def test_decoder_without_language_reads_static_cues_only() -> None:
    perception = build(tiny(language=False))
    text = sentence()
    expected = perception(pictures(), text).tokens
    text.tokens = text.tokens + 1
    assert torch.equal(perception(pictures(), text).tokens, expected)
    text.static.features = text.static.features + torch.randn(HIDDEN)
    assert not torch.equal(perception(pictures(), text).tokens, expected)


@torch.no_grad()
def test_cue_variants_differ() -> None:
    """Table 2a: which rows F_s holds is the text encoder's part; rows as queries are this decoder's."""
    text = sentence()
    rows, mask = text.static.features, text.static.mask
    only_sentence = Rows(rows[:, :1], mask[:, :1])
    only_words = Rows(rows[:, 1:], torch.ones_like(mask[:, 1:]))
    decoder = build(tiny()).frame_decoder
    queries = [decoder.static_queries(cues) for cues in (text.static, only_sentence, only_words)]
    queries.append(build(tiny(cues="direct")).frame_decoder.static_queries(text.static))
    for i, a in enumerate(queries):
        assert a.shape == (FRAMES, 5, HIDDEN)
        assert all(not torch.allclose(a, b) for b in queries[:i])
    learned = decoder.query_content.weight
    assert (queries[0] - learned).abs().max() <= 0.1 * HIDDEN**0.5  # 0.1 * a layer-normalised row


def test_cycle_rows() -> None:
    rows = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[True, False, True, True], [False, True, False, False]])
    assert cycle_rows(rows, mask, 5)[..., 0].tolist() == [[0, 2, 3, 0, 2], [5, 5, 5, 5, 5]]
    assert cycle_rows(rows, mask, 2)[..., 0].tolist() == [[0, 2], [5, 5]]


def test_attention_stays_inside_the_mask_unless_it_is_empty() -> None:
    features = torch.tensor([[[1.0, -1.0, 2.0]]])
    mask = inside(torch.tensor([[[1.0], [-1.0], [0.0]]]), features)
    assert mask.tolist() == [[[True, False, True], [False, True, False], [True, True, True]]]
    assert inside(torch.tensor([[[1.0]]]), -features.abs()).all()


# --- layers


def test_attention_equals_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = CrossAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    ours.attention.load_state_dict(theirs.state_dict())
    query, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    real = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 0, 0, 0]]).bool()
    output, weights = theirs(query, memory, memory, key_padding_mask=~real)
    mask = real[:, None, None]
    found, found_weights = ours.weighing(query, memory[:, None], mask)
    close(found, ours.norm(query + output).detach())
    close(found_weights, weights.detach())
    close(ours(query, memory, mask), found.detach())
    blocked = torch.rand(2, 1, 3, 5) < 0.3
    blocked[..., 0] = False
    output, _ = theirs(query, memory, memory, attn_mask=blocked.expand(-1, 2, -1, -1).flatten(0, 1))
    close(ours(query, memory, ~blocked), ours.norm(query + output).detach())


def test_positions_are_not_in_the_values() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, 2)
    query, memory, place = torch.randn(1, 3, 8), torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    expected = layer.norm(query + layer.attention(query + place[:, :3], memory + place, memory)).detach()
    close(layer(query, memory, memory_pos=place, query_pos=place[:, :3]), expected)
    frames, slots = place[:, :2, None], place[:, None, 2:]  # positions that add up, as of 2 frames of 3 tokens
    memory, place = torch.randn(1, 2, 3, 8), frames + slots
    expected = layer(query, memory.flatten(1, 2), memory_pos=place.flatten(1, 2), query_pos=query).detach()
    close(layer.weighing(query, memory, places=(frames, slots), query_pos=query)[0], expected)


def test_gradients_are_those_of_projected_keys() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, 2).double()
    query, memory = torch.randn(2, 3, 8).double(), torch.randn(2, 5, 2, 8).double()
    frames, slots = torch.randn(2, 5, 1, 8).double(), torch.randn(1, 1, 2, 8).double()
    inputs = [x.requires_grad_() for x in (query, memory, frames, slots)]
    mask = torch.rand(2, 1, 1, 10) < 0.7
    few = layer.weighing(query, memory, mask, places=(frames, slots))[0]
    every = layer(query, memory.flatten(1, 2), mask, memory_pos=(frames + slots).flatten(1, 2))
    weights = torch.randn(few.shape).double()
    wanted = [*inputs, *layer.parameters()]
    for one, other in zip(*(torch.autograd.grad((x * weights).sum(), wanted) for x in (few, every)), strict=True):
        torch.testing.assert_close(one, other)


def test_rows_in_parts_meet_the_words_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = BiAttention(8, 12, 16, 2, scale=1.0).double()
    image, words = torch.randn(2, 11, 8).double(), torch.randn(2, 4, 12).double()
    masks = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()[:, None, None], torch.rand(2, 1, 1, 11) < 0.7
    whole = layer(image, words, *masks)
    monkeypatch.setattr("dshmp.model.layers.ROWS_AT_ONCE", 4)
    for one, other in zip(layer(image, words, *masks), whole, strict=True):
        torch.testing.assert_close(one, other)


def test_a_query_with_nothing_to_look_at_receives_zeros() -> None:
    layer = CrossAttention(8, 2)
    query = torch.randn(2, 3, 8, requires_grad=True)
    memory = torch.randn(2, 4, 8, requires_grad=True)
    real = torch.tensor([[True, True, False, False], [False] * 4])
    output, weights = layer.weighing(query, memory[:, None], real[:, None, None])
    close(layer(query, memory, real[:, None, None]), output.detach())
    output.square().sum().backward()
    close(output[1], layer.norm(query[1] + layer.attention.out_proj.bias).detach())
    assert not weights[1].any()
    assert query.grad is not None
    assert query.grad.isfinite().all()
    assert memory.grad is not None
    assert not memory.grad[1].any()


def test_masks_are_bool_or_added() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, 2)
    x = torch.randn(2, 4, 8)
    mask = torch.tensor([[True, True, False, True], [True, True, True, False]])[:, None, None]
    bias = torch.zeros(2, 1, 4, 4).masked_fill(~mask, -1000.0)
    close(layer(x, x, mask), layer(x, x, bias).detach())


def test_instance_norm_and_word_attention_survive_one_pixel() -> None:
    assert not instance_norm(torch.randn(2, 1, 4)).any()
    x = torch.randn(2, 7, 4)
    close(instance_norm(x), F.instance_norm(x.transpose(1, 2)).transpose(1, 2))
    fused = PixelWordAttention(4, 6)(torch.randn(2, 1, 4), torch.randn(2, 3, 6), torch.ones(2, 3).bool())
    assert fused.isfinite().all()


def test_instance_norm_in_half_precision() -> None:
    x = 1000 * torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    close(instance_norm(x.half()), instance_norm(x), 2e-3)


def test_a_new_pixel_decoder_is_fully_initialised() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(PixelDecoderConfig(layers=1, heads=4, ffn=48), [8, 16, 32, 64], 32)
    assert decoder.decoder.level_embed.abs().max() < 6
    offsets = decoder.decoder.encoder.layers[0].self_attn.sampling_offsets.bias.view(4, 3, 4, 2)
    close(offsets[0, 1, 2], torch.tensor([3.0, 0.0]))  # head 0, any level, third point: three steps right
    with pytest.raises(ValueError, match="32 norm groups"):
        PixelDecoder(PixelDecoderConfig(), [8, 16, 32, 64], 40)


def test_training_drops_but_evaluation_does_not() -> None:
    perception = build(tiny(drop=0.5))
    state: list[Perception] = [perception(pictures(), sentence()) for _ in range(2)]
    assert torch.equal(state[0].tokens, state[1].tokens)
    perception.train()
    state = [perception(pictures(), sentence()) for _ in range(2)]
    assert not torch.equal(state[0].tokens, state[1].tokens)


@torch.no_grad()
def test_drop_path_drops_both_branches_of_a_block() -> None:
    backbone = LanguageBackbone(replace(tiny().backbone, drop_path=1 - 1e-9), TEXT).train()
    x = torch.randn(2, 12, 64)
    assert torch.equal(backbone.stages[3].blocks[0](x, (1, 3, 4)), x)
    assert not torch.equal(backbone.eval().stages[3].blocks[0](x, (1, 3, 4)), x)


def test_what_drops_out() -> None:
    """As in the release: the fusion of image and words, and Eq. 1."""
    decoder = build(tiny(drop=0.3)).frame_decoder
    rates = {name: module.p for name, module in decoder.named_modules() if isinstance(module, nn.Dropout)}
    rates |= {
        name: module.dropout for name, module in decoder.named_modules() if isinstance(module, Attention | BiAttention)
    }
    dropping = {name for name, rate in rates.items() if rate}
    fusions = {f"layers.{number}.fusion" for number in range(len(decoder.layers))}
    assert dropping == fusions | {"static_attention.attention", "static_attention.dropout"}
    assert {rates[name] for name in dropping} == {0.3}
