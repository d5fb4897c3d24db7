"""Section 3.2: trajectories, hierarchical motion perception, motion decoder."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dshmp.config import (
    RELEASE,
    CueSource,
    FrameDecoderConfig,
    LanguageConfig,
    ModelConfig,
    MotionConfig,
    ReadoutConfig,
    ReleaseConfig,
)
from dshmp.model import hmp
from dshmp.model.agreement import Agreement
from dshmp.model.candidates import Candidates
from dshmp.model.hmp import HierarchicalCrossAttention, MotionPerception, merge
from dshmp.model.motion_decoder import MotionDecoder, VideoTokens
from dshmp.model.readout import ABSENT, TrajectoryReadout
from dshmp.model.trajectories import align, displacement, gather, scatter

C = 32
THEIRS = MotionConfig(
    blocks=2,
    merge="mean",
    matching="inverse",
    position=False,
    displacement=False,
    geometry=False,
    static=False,
    camera=False,
    object_position=True,
    queries=5,
    decoder_layers=2,
    heads=4,
    ffn=64,
    dropout=0.0,
    contrast_size=C,
)
OURS = MotionConfig(blocks=3, queries=4, decoder_layers=2, heads=4, ffn=64, dropout=0.0, contrast_size=16)


@dataclass(frozen=True)
class Cues:
    features: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Text:
    tokens: Tensor
    mask: Tensor
    sentence: Tensor
    motion: Cues


def whole(
    config: MotionConfig, masks: str = "trajectories", cues: CueSource = "full", release: ReleaseConfig | None = None
) -> ModelConfig:
    return ModelConfig(
        hidden_size=C,
        language=LanguageConfig(cues=cues),
        frame_decoder=FrameDecoderConfig(queries=6),
        motion=config,
        readout=ReadoutConfig(masks=masks),  # type: ignore[arg-type]
        release=release or ReleaseConfig(),
    )


def count(frames: Tensor) -> Tensor:
    """The positions 0, 1, 2 ... of frames (B, T)."""
    return torch.arange(frames.shape[1], dtype=torch.float32).expand(frames.shape)


class Motion(nn.Module):
    """Motion perception and motion decoder, as the whole model joins them."""

    def __init__(
        self,
        config: MotionConfig,
        masks: str = "trajectories",
        cues: CueSource = "full",
        release: ReleaseConfig | None = None,
    ) -> None:
        super().__init__()
        config = whole(config, masks, cues, release)
        self.motion = MotionPerception(config)
        self.decoder = MotionDecoder(config)

    def forward(self, tokens: Tensor, frames: Tensor, text: Text, position: Tensor | None = None) -> VideoTokens:
        position = count(frames) if position is None else position
        candidates = Candidates(frames, tokens)
        order = candidates.order() if self.motion.config.matching == "tracks" else None
        candidates = candidates if order is None else candidates.in_order(order)
        moved, weights, _ = self.motion(candidates, text.motion, position)
        result: VideoTokens = self.decoder(moved, frames[..., None], text, position, weights)
        return result if order is None else result.unlinked(order)


def excited(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter at random, so that no gate, scale or norm is neutral."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise * parameter.shape[-1] ** -0.5
        else:
            parameter.data = noise * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module


def sample(batch: int, length: int, objects: int = 6, channels: int = C, seed: int = 0) -> tuple[Tensor, Tensor, Text]:
    """Consistent tracks: one identity per slot, a little change per frame."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    drift = 0.15 * draw(batch, length, objects, channels).cumsum(dim=1)
    tokens = 2 * draw(batch, 1, objects, channels) + drift
    frames = torch.ones(batch, length, dtype=torch.bool)
    cues = Cues(draw(batch, 3, channels), torch.ones(batch, 3, dtype=torch.bool))
    words = draw(batch, 7, channels)
    return tokens, frames, Text(words, torch.ones(batch, 7, dtype=torch.bool), draw(batch, channels), cues)


def repeat(text: Text, times: int) -> Text:
    parts = (text.tokens, text.mask, text.sentence, text.motion.features, text.motion.mask)
    tokens, mask, sentence, features, cue_mask = (x.repeat(times, *[1] * (x.ndim - 1)) for x in parts)
    return Text(tokens, mask, sentence, Cues(features, cue_mask))


def outputs(video: VideoTokens) -> dict[str, Tensor]:
    every = vars(video) | vars(video.readout)
    return {name: value for name, value in every.items() if isinstance(value, Tensor)}


def largest_change(a: VideoTokens, b: VideoTokens, length: int | None = None) -> float:
    """Largest difference of any output, over the first `length` frames."""
    return largest(outputs(a), outputs(b), length)


def largest(a: dict[str, Tensor], b: dict[str, Tensor], length: int | None = None) -> float:
    changes = []
    for name, x in a.items():
        y = b[name]
        if name in ("motion_tokens", "frame_similarity", "frame_weights", "track_logits"):
            x, y = x[:, :length], y[:, :length]
        if name in ("pointer", "attention"):
            x, y = x[:, :, :length], y[:, :, :length]
        changes.append((x - y).abs().max().item())
    return max(changes)


# ------------------------------------------------------------------------------------- trajectories


def shuffled(batch: int = 3, length: int = 12, count: int = 20, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Noisy copies of `count` identities in a new order in each frame, and who sits in each slot."""
    generator = torch.Generator().manual_seed(3)
    who = torch.rand(batch, length, count, generator=generator).argsort(dim=-1)
    identities = torch.randn(batch, 1, count, C, generator=generator).expand(-1, length, -1, -1)
    tokens = gather(identities, who)
    return tokens + noise * torch.randn(tokens.shape, generator=generator), who


def test_trajectories_keep_shuffled_identities_where_the_release_loses_them() -> None:
    tokens, who = shuffled()

    def kept(matching: Any) -> float:
        along = who.gather(2, align(tokens, matching=matching))
        return (along[:, 1:] == along[:, :1]).float().mean().item()

    assert kept("hungarian") == 1.0
    assert kept("inverse") < 0.15  # chance 0.05
    assert kept("none") < 0.15


def test_composed_pairwise_matching_is_the_chained_matching() -> None:
    from scipy.optimize import linear_sum_assignment

    tokens, _ = shuffled(length=7, noise=2.0)  # so noisy that most assignments need the solver
    order = align(tokens)
    for clip, rows in zip(torch.nn.functional.normalize(tokens, dim=-1).numpy(), order.numpy(), strict=True):
        previous = clip[0]
        for frame, row in zip(clip[1:], rows[1:], strict=True):
            assert (row == linear_sum_assignment(-previous @ frame.T)[1]).all()
            previous = frame[row]


def test_padded_and_broken_frames_do_not_disturb_matching() -> None:
    tokens, _ = shuffled(length=9)
    frames = torch.arange(9) < torch.tensor([[9], [5], [1]])
    order = align(tokens, frames)
    identity = torch.arange(20)
    for b, length in enumerate([9, 5, 1]):
        assert torch.equal(order[b, :length], align(tokens[b : b + 1, :length])[0])
        assert (order[b, length:] == identity).all()
    tokens[0, 4] = float("nan")
    assert (align(tokens).sort(dim=-1).values == identity).all()


def test_order_is_undone_and_lets_gradients_through() -> None:
    tokens, _ = shuffled(length=4)
    tokens.requires_grad_()
    order = align(tokens)
    assert not order.requires_grad
    assert torch.equal(gather(tokens, order), tokens.gather(2, order[..., None].expand_as(tokens)))
    back = scatter(gather(tokens, order), order)
    assert torch.equal(back, tokens)
    weight = torch.randn(tokens.shape)
    (back * weight).sum().backward()
    assert torch.equal(tokens.grad, weight)


def slotwise(tokens: Tensor, frames: Tensor, order: Tensor, *rest: Any) -> Tensor:
    """The displacement of each token at its own slot."""
    seen = frames[..., None].expand(order.shape)
    return scatter(displacement(gather(tokens, order), seen, *rest), order)


@pytest.mark.parametrize(("before", "after"), [(1, 0), (2, 2), (0, 3), (9, 9)])
def test_displacement_follows_the_trajectory_to_the_slot_of_its_token(before: int, after: int) -> None:
    """The frames compared stay inside the clip's real frames, so a displacement shrinks at its ends."""
    tokens, who = shuffled(length=5, noise=0.0)
    generator = torch.Generator().manual_seed(5)
    speed = torch.randn(3, 1, 20, C, generator=generator) * 0.05
    tokens = tokens + gather((speed * torch.arange(5)[:, None, None]), who)
    lengths = [5, 3, 5]
    frames = torch.arange(5) < torch.tensor(lengths)[:, None]
    tokens[~frames] = 7.0  # what stands in padded frames does not count
    moved = slotwise(tokens, frames, align(tokens, frames), before, after, count(frames))
    steps = torch.zeros(3, 5)
    for b, length in enumerate(lengths):
        for t in range(length):
            steps[b, t] = min(t + after, length - 1) - max(t - before, 0)
    wanted = gather(speed.expand(-1, 5, -1, -1), who) * steps[..., None, None]
    torch.testing.assert_close(moved, wanted, atol=1e-5, rtol=0)


def test_displacement_from_the_frame_before() -> None:
    tokens, _ = shuffled(length=5)
    frames, order = torch.ones(3, 5, dtype=torch.bool), align(tokens)
    moved = slotwise(tokens, frames, order, 1, 0, count(frames))
    assert not moved[:, 0].any()
    along = gather(tokens, order)
    assert torch.equal(gather(moved, order)[:, 1:], along[:, 1:] - along[:, :-1])


@pytest.mark.parametrize(("before", "after"), [(1, 0), (2, 2)])
@pytest.mark.parametrize("stride", [1, 3])
def test_displacement_is_a_speed(before: int, after: int, stride: int) -> None:
    """At irregular times it is the change times (nominal gap / true gap); where no time passes it is nothing."""
    tokens, _ = shuffled(length=7)
    tokens.requires_grad_()
    lengths = [7, 5, 1]
    frames = torch.arange(7) < torch.tensor(lengths)[:, None]
    position = torch.tensor([[0, 4, 4, 5, 11, 19, 20], [2, 3, 6, 6, 6, 0, 0], [8, 0, 0, 0, 0, 0, 0]]).float()
    order = align(tokens, frames)
    moved = slotwise(tokens, frames, order, before, after, position, stride)
    along, wanted = gather(tokens, order), torch.zeros_like(tokens)
    for b, length in enumerate(lengths):
        for t in range(length):
            late, early = min(t + after, length - 1), max(t - before, 0)
            passed = float(position[b, late] - position[b, early])
            if passed:
                wanted[b, t] = (along[b, late] - along[b, early]).detach() * (late - early) * stride / passed
    torch.testing.assert_close(gather(moved, order), wanted)
    moved.square().sum().backward()
    assert tokens.grad.isfinite().all()
    assert tokens.grad[:2].any()


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_displacement_of_regular_frames_is_not_scaled(stride: int) -> None:
    """Not by a bit, wherever the clip begins."""
    tokens, _ = shuffled(length=9)
    frames, order = torch.arange(9) < torch.tensor([[9], [4], [1]]), align(tokens)
    position = (torch.arange(9.0) * stride + torch.tensor([[0.0], [2.0], [1000.0]])) * frames
    for reach in ((1, 0), (2, 2)):
        plain = slotwise(tokens, frames, order, *reach, count(frames))
        assert torch.equal(slotwise(tokens, frames, order, *reach, position, stride), plain)


# ------------------------------------------------------------------------ hierarchical cross-attention


def test_merge_weighs_frames_and_leaves_padding_out() -> None:
    x = torch.tensor([1.0, 2.0, 5.0, 9.0, 7.0]).view(1, 1, 5, 1, 1)
    share = torch.tensor([3.0, 1.0, 2.0, 0.0, 0.0]).view(1, 1, 5, 1, 1)
    merged, real = merge(x, share, torch.tensor([[[True, True, True, False, False]]])[..., None])
    torch.testing.assert_close(merged.flatten(), torch.tensor([1.25, 5.0, 0.0]))
    assert real[..., 0].tolist() == [[[True, True, False]]]
    merged, _ = merge(x, torch.ones_like(x), None)
    torch.testing.assert_close(merged.flatten(), torch.tensor([1.5, 7.0, 7.0]))


@pytest.mark.parametrize(("window", "stages"), [(8, 3), (8, 1), (6, 2), (16, 4), (9, 3)])
def test_stages_follow_the_equations(window: int, stages: int) -> None:
    """Against Eq. 4-7 written out for one trajectory."""
    module = excited(HierarchicalCrossAttention(C, stages)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 1, window, 1, C, generator=generator, dtype=torch.float64)
    words = torch.randn(1, 4, C, generator=generator, dtype=torch.float64)
    result, weights = module(x, Cues(words, torch.ones(1, 4, dtype=torch.bool)))
    track = x[0, 0, :, 0]
    q, k, v = module.query(track), module.key(words[0]), module.value(words[0])
    for j in range(stages):
        a = torch.softmax(q @ k.T / C**0.5, dim=0)
        w = a.sum(dim=1, keepdim=True)
        if j == 0:
            torch.testing.assert_close(weights[0, 0, :, 0], w[:, 0])
        o = module.norm[j](q + module.out[j]((a / w) @ v))
        if len(o) % 2:
            o, w = torch.cat([o, o[-1:]]), torch.cat([w, w[-1:]])
        q = (o[::2] * w[::2] + o[1::2] * w[1::2]) / (w[::2] + w[1::2])
    wanted = track + (module.gate(q) * q).repeat_interleave(2**stages, dim=0)[:window]
    torch.testing.assert_close(result[0, 0, :, 0], wanted, atol=1e-6, rtol=1e-6)


def test_a_window_of_padding_alone_is_finite() -> None:
    module = excited(HierarchicalCrossAttention(C, 3))
    real = torch.tensor([[[True] * 8, [False] * 8]])[..., None]
    x = torch.randn(1, 2, 8, 3, C, requires_grad=True)
    result, weights = module(x, Cues(torch.randn(1, 2, C), torch.tensor([[True, False]])), real)
    result.sum().backward()
    assert result.isfinite().all()
    assert weights.isfinite().all()
    assert x.grad.isfinite().all()


def test_more_stages_than_the_window_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"motion\.stages = 4 needs motion\.window of at least 16"):
        MotionPerception(whole(replace(OURS, stages=4)))


# ------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("irregular", [False, True])
@pytest.mark.parametrize("length", [5, 8, 11, 16])
def test_padding_and_company_change_nothing(length: int, irregular: bool) -> None:
    """Extra frames, extra words, other clips in the batch: the same answer."""
    model = excited(Motion(OURS)).eval()
    tokens, frames, text = sample(1, length)
    other, _, other_text = sample(1, length + 13, seed=9)
    long = torch.cat([tokens, torch.full((1, 13, *tokens.shape[2:]), 7.0)], dim=1)
    real = torch.arange(length + 13) < torch.tensor([[length], [length + 13]])

    def padded(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([torch.cat([a, torch.full_like(a[:, :2], 3)], dim=1), torch.cat([b, b[:, :2]], dim=1)])

    def masks(a: Tensor) -> Tensor:
        rows = torch.ones(2, a.shape[1] + 2, dtype=torch.bool)
        rows[0, -2:] = False
        return rows

    cues = Cues(padded(text.motion.features, other_text.motion.features), masks(text.motion.mask))
    sentences = torch.cat([text.sentence, other_text.sentence])
    both = Text(padded(text.tokens, other_text.tokens), masks(text.mask), sentences, cues)
    time = torch.randint(5, (2, length + 13), generator=torch.Generator().manual_seed(2)).cumsum(1).float() * real
    with torch.no_grad():
        alone = model(tokens, frames, text, time[:1, :length] if irregular else None)
        company = model(torch.cat([long, other]), real, both, time if irregular else None)
    first = {name: value[:1] for name, value in outputs(company).items()}
    assert largest(outputs(alone), first, length) < 1e-5
    assert first["attention"][..., length:].abs().max() == 0


def test_windows_in_small_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for config, release in ((OURS, ReleaseConfig()), (THEIRS, RELEASE)):
        model = excited(Motion(config, masks="embedding", release=release)).eval()
        with torch.no_grad():
            whole = model(*sample(2, 29))
            with monkeypatch.context() as patch:
                patch.setattr(hmp, "TOKENS_AT_ONCE", 1)
                assert largest_change(model(*sample(2, 29)), whole) < 1e-5


def test_order_of_slots_does_not_matter_to_motion_perception() -> None:
    """Tokens in other slots come back in those slots: nothing but the matching knows about slots."""
    module = excited(MotionPerception(whole(replace(OURS, matching="hungarian")))).eval()
    tokens, frames, text = sample(2, 16)
    who = torch.rand(2, 16, 6).argsort(dim=-1)
    with torch.no_grad():
        straight, weights, _ = module(Candidates(frames, tokens), text.motion, count(frames))
        mixed, mixed_weights, _ = module(Candidates(frames, gather(tokens, who)), text.motion, count(frames))
    torch.testing.assert_close(mixed, gather(straight, who), atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed_weights, weights.gather(2, who), atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [8, 16, 24])
def test_arrow_of_time(length: int) -> None:
    """Without position and displacement, a clip in reverse is the same clip (section 3.2)."""
    tokens, frames, text = sample(2, length)

    def change(config: MotionConfig) -> tuple[float, float]:
        model = excited(Motion(config)).eval()
        with torch.no_grad():
            forth, back = model(tokens, frames, text), model(tokens.flip(1), frames, text)
        return (
            (forth.logits - back.logits).abs().max().item(),
            (forth.readout.pointer - back.readout.pointer.flip(2)).abs().max().item(),
        )

    baseline = replace(OURS, position=False, displacement=False)
    assert max(change(baseline)) < 5e-6
    for config in (OURS, replace(baseline, position=True), replace(baseline, displacement=True)):
        assert min(change(config)) > 1e-3


@pytest.mark.parametrize("switch", [{"position": False}, {"displacement": False}], ids=str)
def test_time_is_known_to_position_and_displacement(switch: dict[str, bool]) -> None:
    model = excited(Motion(replace(OURS, **switch))).eval()
    tokens, frames, text = sample(1, 9)
    with torch.no_grad():
        plain, faster = model(tokens, frames, text), model(tokens, frames, text, count(frames) / 2)
    assert largest_change(plain, faster) > 1e-2


SWITCHES: list[dict[str, Any]] = [
    {"stages": 0},
    {"stages": 2},
    {"merge": "mean"},
    {"matching": "inverse"},
    {"matching": "none"},
    {"window_shift": "test"},
    {"padded_frames": "seen"},
    {"position": False},
    {"displacement": False},
    {"window": 16},
    {"injection": 0.5},
]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_every_switch_changes_the_result(switch: dict[str, Any]) -> None:
    release = {key: switch[key] for key in ("window_shift", "padded_frames") if key in switch}
    config = replace(OURS, **{key: value for key, value in switch.items() if key not in release})
    base, other = excited(Motion(OURS)).eval(), Motion(config, release=ReleaseConfig(**release)).eval()
    known = base.state_dict()
    other.load_state_dict({name: known[name] for name in other.state_dict()})
    tokens, frames, text = sample(2, 23)
    tokens = gather(tokens, torch.rand(2, 23, 6, generator=torch.Generator().manual_seed(0)).argsort(dim=-1))
    with torch.no_grad():
        a, b = base(tokens, frames, text), other(tokens, frames, text)
    assert (a.logits - b.logits).abs().max() > 1e-4


def test_release_shifts_windows_in_use_only() -> None:
    model = excited(Motion(OURS, release=ReleaseConfig(window_shift="test"))).eval()
    with torch.no_grad():
        used = model(*sample(1, 16)).logits
        trained = model.train()(*sample(1, 16)).logits
    assert (used - trained).abs().max() > 1e-4


# ------------------------------------------------------------------------------- decoder, read-outs


@pytest.mark.parametrize("masks", ["trajectories", "embedding"])
@pytest.mark.parametrize("cues", ["full", "direct"])
def test_gradients_reach_every_parameter_from_scratch(masks: str, cues: CueSource) -> None:
    """After one step: at the very start the closed gate of Eq. 7 lets only its second layer learn."""
    torch.manual_seed(0)
    model = Motion(replace(OURS, geometry=False, static=False), masks=masks, cues=cues).train()
    tokens, frames, text = sample(2, 11)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        video = model(tokens, frames, text)
        terms = [*outputs(video).values(), *(t for layer in video.layers for t in outputs(layer).values())]
        if masks == "embedding":
            pixels = model.decoder.mask_features(torch.randn(22, C, 2, 3)).unflatten(0, (2, 11))
            terms.append(video.readout.clip_masks(None, pixels))
        generator = torch.Generator().manual_seed(1)
        sum((t * torch.randn(t.shape, generator=generator)).sum() for t in terms).backward()
        optimiser.step()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


def test_outputs_have_the_shapes_they_declare() -> None:
    model = Motion(OURS).train()
    video = model(*sample(2, 11))
    shapes = {name: tuple(value.shape) for name, value in outputs(video).items()}
    assert shapes == {
        "tokens": (2, 4, C),
        "logits": (2, 4, 2),
        "similarity": (2, 4, C),
        "contrast": (2, 4, 16),
        "attention": (2, 4, 11),
        "motion_tokens": (2, 11, 6, C),
        "frame_similarity": (2, 11, 6, C),
        "frame_weights": (2, 11, 6),
        "track_logits": (2, 11, 6),
        "pointer": (2, 4, 11, 7),
    }
    assert len(video.layers) == OURS.decoder_layers
    torch.testing.assert_close(video.attention.sum(dim=-1), torch.ones(2, 4))


def test_direct_cues_are_the_queries() -> None:
    decoder = MotionDecoder(whole(OURS, cues="direct"))
    features = torch.randn(2, 3, C)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rows = decoder.queries(Cues(features, mask))
    assert torch.equal(rows[0], features[0, [0, 1, 2, 0]])
    assert torch.equal(rows[1], features[1, [0, 1, 0, 1]])


def test_trajectory_score_is_a_product_of_token_and_sentence() -> None:
    """A sentence that projects to nothing leaves every token with the same score, and so does such a token."""
    score = excited(Agreement(C))
    tokens, sentences = torch.randn(2, 3, 6, C), torch.randn(2, C)
    logits = score(tokens, sentences)
    for b in range(2):
        product = score.object(tokens[b]) * score.sentence(sentences[b])
        torch.testing.assert_close(logits[b], score.judge(product)[..., 0])
    assert (score(tokens, sentences.flip(0)) - logits).abs().min() > 0
    with torch.no_grad():
        score.sentence.bias.zero_()
        score.object.bias.zero_()
    indifferent = score.judge(torch.zeros(C)).expand(2, 3, 6, 1)[..., 0]
    torch.testing.assert_close(score(tokens, torch.zeros(2, C)), indifferent)
    torch.testing.assert_close(score(torch.zeros_like(tokens), sentences), indifferent)
    torch.testing.assert_close(score(tokens * 3, sentences / 3), score(tokens, sentences), atol=1e-5, rtol=1e-5)


def test_the_sentence_decides_which_trajectory_is_meant() -> None:
    """Everything but f_e being equal, the score of every token changes, and the pointer with it."""
    model = excited(Motion(OURS)).eval()
    tokens, frames, text = sample(1, 9)
    with torch.no_grad():
        plain, other = model(tokens, frames, text), model(tokens, frames, replace(text, sentence=-text.sentence))
    assert (plain.track_logits - other.track_logits).abs().min() > 1e-4
    said, unsaid = ((video.readout.pointer[..., :-1] - video.track_logits[:, None]) for video in (plain, other))
    torch.testing.assert_close(said, unsaid, atol=1e-5, rtol=0)  # video tokens do not read f_e but through the cues
    assert torch.equal(plain.logits, other.logits)


def test_fusion_starts_at_its_scale() -> None:
    """The words' share of the decoder's tokens: the scale is that of every layer's fusion, and it is felt."""
    torch.manual_seed(0)
    small, large = Motion(OURS).eval(), Motion(replace(OURS, fusion_scale=0.5)).eval()
    scales = {name: p for name, p in large.named_parameters() if "gamma_" in name}
    assert len(scales) == 2 * OURS.decoder_layers
    assert all((p == 0.5).all() for p in scales.values())
    assert all((p == 1e-4).all() for name, p in small.named_parameters() if "gamma_" in name)
    state = small.state_dict()
    large.load_state_dict({name: scales.get(name, value) for name, value in state.items()})
    tokens, frames, text = sample(1, 9)
    other_words = replace(text, tokens=-text.tokens)

    def heard(model: nn.Module) -> float:
        with torch.no_grad():
            both = model(tokens, frames, text).track_logits, model(tokens, frames, other_words).track_logits
        return (both[0] - both[1]).abs().max().item()

    assert 0 < 100 * heard(small) < heard(large)


def test_trajectory_masks_take_the_mask_pointed_at() -> None:
    frame_masks = torch.randn(1, 3, 6, 4, 5)
    pointer = torch.full((1, 2, 3, 7), -100.0)
    pointer[0, 0, :, 2] = 100.0
    pointer[0, 1, :, 6] = 100.0  # not visible
    masks = TrajectoryReadout(pointer).clip_masks(frame_masks, None)
    torch.testing.assert_close(masks[0, 0], frame_masks[0, :, 2])
    torch.testing.assert_close(masks[0, 1], torch.full((3, 4, 5), ABSENT))


def test_mixing_embeddings_is_mixing_masks() -> None:
    readout = TrajectoryReadout(torch.randn(1, 4, 5, 7))
    embed, features, frames = torch.randn(3, 6, C), torch.randn(3, C, 4, 5), slice(1, 4)
    there = TrajectoryReadout(readout.pointer[:, :, frames])
    wanted = there.clip_masks(torch.einsum("tnc,tchw->tnhw", embed, features)[None], None)[0]
    streamed = readout.frame_masks(frames, features, embed)
    torch.testing.assert_close(streamed, wanted, atol=1e-4, rtol=1e-4)
