"""The whole model: company, padding and chunks change nothing, every switch changes what it should."""

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from dshmp.config import from_dict
from dshmp.data.base import Expression, Video
from dshmp.data.mevis import MevisSplit
from dshmp.model import candidates
from dshmp.model.candidates import Candidates
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import Perception
from dshmp.model.motion_decoder import VideoTokens
from dshmp.model.readout import TrajectoryReadout
from dshmp.model.tokenizer import TextTokenizer
from dshmp.training.contrastive import Contrast, MemoryBank
from dshmp.training.recipe import Recipe
from dshmp.training.task import target_groups
from dshmp.training.whole_task import WholeTask

TOLERANCE = 2e-5
LENGTHS = (5, 9, 16)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return tiny.tokenizer()


def clip_masks(model: DsHmp, video: VideoTokens, state: Perception) -> Tensor:
    """Mask logits (B, Nv, T, h, w) of B whole clips, made of masks where the model mixes their embeddings."""
    logits = torch.einsum("fnc,fchw->fnhw", state.mask_embed, state.mask_features)
    clips = (len(video.tokens), -1)
    return video.readout.clip_masks(logits.unflatten(0, clips), model.mask_pixels(state).unflatten(0, clips))


def images(count: int, seed: int = 0, size: tuple[int, int] = (40, 56)) -> Tensor:
    """Normalised frames of a patch that moves over noise."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(1, 3, *size, generator=generator).repeat(count, 1, 1, 1)
    for t in range(count):
        frames[t, :, 8:20, (3 * t) % 40 : (3 * t) % 40 + 12] += 2
    return frames + 0.3 * torch.randn(frames.shape, generator=generator)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def perceived(state: Perception) -> dict[str, Tensor]:
    return {
        name: getattr(state, name) for name in ("tokens", "logits", "mask_embed", "mask_features", "video_features")
    }


def understood(video: VideoTokens, clip: int, length: int) -> dict[str, Tensor]:
    """What is said of one clip of the batch, its real frames only."""
    found = {name: getattr(video, name)[clip] for name in ("tokens", "logits", "similarity", "contrast")}
    found["attention"] = video.attention[clip, :, :length]
    found["frame_weights"] = video.frame_weights[clip, :length]
    if isinstance(video.readout, TrajectoryReadout):
        assert video.track_logits is not None
        found["pointer"] = video.readout.pointer[clip, :, :length]
        found["track_logits"] = video.track_logits[clip, :length]
    else:
        found["mask_embed"] = video.readout.mask_embed[clip]
    return found


VARIANTS: list[dict[str, Any]] = [
    {},
    {"backbone.language_fusion": True, "frame_decoder.language": True, "readout.masks": "embedding"},
    {"language.cues": "direct", "motion.merge": "mean", "motion.blocks": 3},
    {"language.cues": "words", "motion.stages": 0, "motion.window": 4},
]


@torch.no_grad()
@pytest.mark.parametrize("switches", VARIANTS, ids=str)
@pytest.mark.parametrize("stride", [1, 3])
def test_company_and_padding_change_nothing(switches: dict[str, Any], stride: int, tokenizer: TextTokenizer) -> None:
    """Clips of three lengths and sizes, sentences of three lengths: together as alone."""
    model = tiny.model(switches).double()
    text = model.language(tokenizer(tiny.SENTENCES))
    tokens = torch.full((3, max(LENGTHS), 6, 32), 7.0, dtype=torch.float64)  # padding is not zero
    frames = torch.zeros(3, max(LENGTHS), dtype=torch.bool)
    alone = []
    for clip, length in enumerate(LENGTHS):
        shown = images(length, clip, (40, 56 - 8 * clip)).double()
        single = model.language(tokenizer([tiny.SENTENCES[clip]]))
        state = model.encode(shown, single)
        for name, value in perceived(model.encode(shown, text.repeat(torch.tensor([clip])))).items():
            close(value, perceived(state)[name])
        tokens[clip, :length], frames[clip, :length] = state.tokens, True
        alone.append(
            model.decode_motion(Candidates(frames[clip : clip + 1, :length], state.tokens[None]), single, stride=stride)
        )
    together = model.decode_motion(Candidates(frames, tokens), text, stride=stride)
    for clip, length in enumerate(LENGTHS):
        expected = understood(alone[clip], 0, length)
        for name, value in understood(together, clip, length).items():
            close(value, expected[name])


@torch.no_grad()
@pytest.mark.parametrize("switches", VARIANTS, ids=str)
def test_clips_of_one_size_in_one_batch(switches: dict[str, Any], tokenizer: TextTokenizer) -> None:
    model = tiny.model(switches)
    clips = torch.stack([images(4, 0), images(4, 1)])
    order = torch.tensor([1, 0, 1])
    text = model.language(tokenizer(tiny.SENTENCES))
    together = perceived(model.perceive_clips(clips, order, text))
    for row, clip in enumerate(order.tolist()):
        single = model.language(tokenizer([tiny.SENTENCES[row]]))
        for name, value in perceived(model.encode(clips[clip], single)).items():
            close(together[name].unflatten(0, (3, 4))[row], value)


@torch.no_grad()
@pytest.mark.parametrize("fusion", [False, True])
def test_frames_in_chunks(fusion: bool, tokenizer: TextTokenizer) -> None:
    model = tiny.model({"backbone.language_fusion": fusion}).double()  # in float32 a pixel may cross the threshold
    text = model.language(tokenizer(tiny.SENTENCES[:2]))
    shown = images(11).double()
    whole = perceived(model.encode(shown, text))
    for chunk in (1, 5):
        states = [perceived(model.encode(part, text)) for part in shown.split(chunk)]
        for name, value in whole.items():
            parts = torch.cat([state[name].unflatten(0, (-1, chunk_of(state, 2))) for state in states], dim=1)
            close(parts.flatten(0, 1), value)


def chunk_of(state: dict[str, Tensor], sentences: int) -> int:
    return len(state["tokens"]) // sentences


@torch.no_grad()
def test_interleaving(tokenizer: TextTokenizer) -> None:
    model = tiny.model()
    text = model.language(tokenizer(tiny.SENTENCES[:1]))
    tokens = model.encode(images(9), text).tokens[None]
    frames = torch.ones(1, 9, dtype=torch.bool)
    position = torch.arange(9.0)[None]
    plain = model.decode_motion(Candidates(frames, tokens), text)
    expected = understood(plain, 0, 9)
    for name, value in understood(model.decode_motion(Candidates(frames, tokens), text, position), 0, 9).items():
        close(value, expected[name])
    moved, weights, _ = model.motion(Candidates(frames, tokens, linked=True), text.motion, position, 1, text.static)
    close(plain.motion_tokens, moved)
    close(plain.frame_weights, weights)
    # twice as fast: what motion perception says of the even frames is what it says of them alone
    double = tokens.repeat_interleave(2, dim=1)[:, :17]
    fast = model.decode_motion(Candidates(torch.ones(1, 17, dtype=torch.bool), double), text, stride=2).motion_tokens
    close(fast[:, ::2], moved)
    short = model.decode_motion(Candidates(frames[:, :2], tokens[:, :2]), text, stride=5)  # fewer frames than sequences
    assert short.logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 3])
def test_the_numbers_of_regular_frames_say_nothing_new(stride: int, tokenizer: TextTokenizer) -> None:
    """Not by a bit; those of irregular ones do, and a later beginning changes the places, not the displacements."""
    text = tiny.model().language(tokenizer(tiny.SENTENCES[:1]))
    tokens, frames = torch.randn(1, 20, 6, 32), torch.ones(1, 20, dtype=torch.bool)
    number = torch.arange(20.0)[None]
    for position in (True, False):
        model = tiny.model({"motion.position": position})

        def logits(place: Tensor | None, model: DsHmp = model) -> Tensor:
            return model.decode_motion(Candidates(frames, tokens), text, place, stride=stride).logits

        assert torch.equal(logits(None), logits(number))
        assert torch.equal(logits(number), logits(number + 40)) is not position
        assert not torch.allclose(logits(number), logits(number**2), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("masks", ["trajectories", "embedding"])
def test_masks_of_slices_are_slices_of_the_masks(masks: str, tokenizer: TextTokenizer) -> None:
    model = tiny.model({"readout.masks": masks})
    text = model.language(tokenizer(tiny.SENTENCES))
    state = model.encode(images(7), text)
    tokens = state.tokens.unflatten(0, (3, 7))
    video = model.decode_motion(Candidates(torch.ones(3, 7, dtype=torch.bool), tokens), text)
    together = clip_masks(model, video, state)
    assert together.shape == (3, 4, 7, 10, 14)
    for row in range(3):
        single = model.language(tokenizer([tiny.SENTENCES[row]]))
        alone = model.encode(images(7), single)
        answer = model.decode_motion(Candidates(torch.ones(1, 7, dtype=torch.bool), alone.tokens[None]), single)
        for part in (slice(0, 7), slice(0, 1), slice(4, 7)):
            seen = model.encode(images(7)[part], single)
            found = model.decode_masks(answer, part, model.mask_pixels(seen), seen.mask_embed)
            close(found, together[row, :, part])


@torch.no_grad()
@pytest.mark.parametrize("size", [(40, 40), (8, 8), (72, 16), (41, 59), (33, 7)])
def test_any_frame_size(size: tuple[int, int], tokenizer: TextTokenizer) -> None:
    model = tiny.model({"backbone.language_fusion": True, "frame_decoder.language": True})
    text = model.language(tokenizer(tiny.SENTENCES[:1]))
    state = model.encode(torch.randn(2, 3, *size), text)
    video = model.decode_motion(Candidates(torch.ones(1, 2, dtype=torch.bool), state.tokens[None]), text)
    masks = clip_masks(model, video, state)
    assert masks.shape == (1, 4, 2, -(-size[0] // 4), -(-size[1] // 4))
    assert masks.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 40])
def test_any_number_of_frames(length: int, tokenizer: TextTokenizer) -> None:
    model = tiny.model()
    text = model.language(tokenizer(tiny.SENTENCES[1:2]))
    video = model.decode_motion(
        Candidates(torch.ones(1, length, dtype=torch.bool), torch.randn(1, length, 6, 32)), text
    )
    assert video.logits.isfinite().all()
    close(video.attention.sum(-1), torch.ones(1, 4))


# ------------------------------------------------------------------------------------------------ switches

CROSS = r"motion\.blocks\.\d+\.cross_attention\."
LANGUAGE_LAYER = r"perception\.frame_decoder\.layers\.\d+\.(fusion|text_attention)\."
QUERIES = r"perception\.frame_decoder\.(query_content|static_attention)\.|decoder\.queries\."
TABLE: list[tuple[str, Any, str | None]] = [  # switch, value, the parameters that come or go with it
    ("language.cues", "sentence", None),
    ("language.cues", "words", None),
    ("language.cues", "direct", QUERIES),
    ("language.split", "paper", None),
    ("language.split", "release", None),
    ("backbone.language_fusion", True, r"perception\.backbone\.(fusions|gates)\."),
    ("frame_decoder.language", True, LANGUAGE_LAYER),
    ("frame_decoder.injection", 0.9, None),
    ("motion.stages", 0, CROSS),
    ("motion.stages", 1, CROSS + r"(out|norm)\."),
    ("motion.stages", 2, CROSS + r"(out|norm)\."),
    ("motion.window", 16, None),
    ("motion.merge", "mean", None),
    ("motion.matching", "inverse", None),
    ("motion.matching", "none", None),
    ("release.window_shift", "test", None),
    ("release.padded_frames", "seen", None),
    ("motion.position", False, r"(motion|decoder)\.time_position\."),
    ("motion.displacement", False, r"motion\.displacement\."),
    ("motion.injection", 0.9, None),
    ("readout.masks", "embedding", r"decoder\.(pointer|track|mask_embed|mask_features)\."),
]
SPLIT_APART = "the standing cat that is slowly moving left after jumping"
"""A sentence whose words the three splits tell apart differently."""


@torch.no_grad()
def answer(model: DsHmp) -> tuple[Tensor, Tensor]:
    tokenizer = TextTokenizer(model.config, tiny.tokenizer().tokenizer)
    text = model.language(tokenizer([SPLIT_APART]))
    state = model.encode(images(22), text)
    shuffled = torch.rand(22, 6, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    tokens = state.tokens.gather(1, shuffled[..., None].expand(-1, -1, 32))  # so that there is something to match
    video = model.decode_motion(Candidates(torch.ones(1, 22, dtype=torch.bool), tokens[None]), text)
    return video.logits, clip_masks(model, video, state)


@cache
def base_answer() -> tuple[DsHmp, Tensor, Tensor]:
    model = tiny.model()
    return model, *answer(model)


@pytest.mark.parametrize(("switch", "value", "parameters"), TABLE)
def test_every_switch_changes_what_it_should(switch: str, value: Any, parameters: str | None) -> None:
    base, logits, masks = base_answer()
    other = tiny.model({switch: value})
    known, own = base.state_dict(), other.state_dict()
    differing = known.keys() ^ own.keys()
    differing |= {key for key in known.keys() & own.keys() if known[key].shape != own[key].shape}
    assert bool(differing) == (parameters is not None)
    assert all(parameters and re.match(parameters, key) for key in differing)
    other.load_state_dict({key: known[key] if key in known else own[key] for key in own})
    with torch.no_grad():
        other_logits, other_masks = answer(other)
    assert (other_logits.shape, other_masks.shape) == (logits.shape, masks.shape)
    change = max((other_masks - masks).abs().max(), (other_logits - logits).abs().max())
    assert change > 1e-4
    if switch == "readout.masks":  # what is understood stays; only how it becomes masks differs
        close(other_logits, logits)


def test_the_same_model_gives_the_same_answer() -> None:
    _, logits, masks = base_answer()
    again = answer(tiny.model())
    assert torch.equal(again[0], logits)
    assert torch.equal(again[1], masks)


def test_negatives_change_the_contrast() -> None:
    """Tables 1 and 2c: 0 turns contrastive learning off, more negatives make it harder."""
    videos = {f"v{i}": Video(f"v{i}", ("0",)) for i in range(100)}
    items = [Expression(f"v{i % 100}", str(i), "x", (i,), (i,)) for i in range(300)]
    split: Any = SimpleNamespace(videos=videos, expressions=items)
    generator = torch.Generator().manual_seed(0)
    contrasts = torch.randn(2, 4, 16, generator=generator)
    video: Any = SimpleNamespace(contrast=contrasts)
    indices = torch.tensor([[0, -1, -1, -1], [-1, 0, -1, -1]])
    found = []
    for negatives in (10, 100, 200):
        rows, groups = target_groups({"mevis": split})
        contrast = Contrast(MemoryBank(len(groups.video), 16), rows, groups, negatives)
        contrast.bank.centroids.copy_(torch.randn(300, 16, generator=torch.Generator().manual_seed(1)))
        contrast.bank.visited.fill_(True)
        own = [torch.Generator().manual_seed(2), torch.Generator().manual_seed(3)]
        found.append(contrast.loss(video.contrast, indices, (0, 1), 0, own, torch.tensor(2)).item())
    assert found[0] < found[1] < found[2]


# ------------------------------------------------------------------------------------------------ learning


def whole_task(mini: Path, switches: dict[str, Any], **recipe: Any) -> WholeTask:
    torch.manual_seed(0)
    values = tiny.recipe("whole", mini, **recipe) | {"model": tiny.with_switches(tiny.MODEL, switches)}
    model = DsHmp(tiny.config(switches)).train()
    return WholeTask(from_dict(Recipe, values), model, tiny.tokenizer(switches), {"mevis": MevisSplit(mini, "train")})


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"readout.masks": "embedding", "backbone.language_fusion": True, "frame_decoder.language": True},
        {"language.cues": "direct", "motion.stages": 1},
    ],
    ids=str,
)
def test_gradients_reach_every_parameter(switches: dict[str, Any], mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "OBJECT", 0.0)  # a model that has learned nothing finds no object
    task = whole_task(mini, switches, contrast_start=0)
    batch = task.batches(1)[0]
    optimiser = torch.optim.SGD(task.model.parameters(), lr=0.01)
    for step in range(2):
        losses = task.losses(batch, step, task.counts(batch, step))
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        task.contrast.commit(lambda rows: rows)
    assert losses["contrast"] > 0
    named = task.model.named_parameters()
    idle = [name for name, p in named if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 0)]
    assert idle == []


def test_a_frozen_encoder_and_no_contrast_stay_out(mini: Path) -> None:
    task = whole_task(mini, {"language.frozen": True}, negatives=0)
    batch = task.batches(0)[0]
    losses = task.losses(batch, 0, task.counts(batch, 0))
    torch.stack(list(losses.values())).sum().backward()
    assert "contrast" not in losses
    assert all(p.grad is None for p in task.model.language.encoder.parameters())
    assert all(p.grad is None for p in task.model.decoder.contrast.parameters())
    assert task.model.language.resizer.fc.weight.grad is not None


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("switches", [{}, {"backbone.language_fusion": True, "readout.masks": "embedding"}])
def test_mixed_precision(switches: dict[str, Any], precision: torch.dtype) -> None:
    """Padded frames and all: finite, and near to what single precision says."""
    model, tokenizer = tiny.model(switches), tiny.tokenizer(switches)
    images = torch.randn(1, 9, 3, 40, 64, generator=torch.Generator().manual_seed(0))
    frames = torch.ones(2, 9, dtype=torch.bool)
    frames[0, 6:] = False

    def answer() -> tuple[torch.Tensor, torch.Tensor]:
        text = model.language(tokenizer(tiny.SENTENCES[:2]))
        state = model.perceive_clips(images, torch.tensor([0, 0]), text)
        video = model.decode_motion(Candidates(frames, state.tokens.unflatten(0, (2, 9))), text)
        return video.logits.float(), clip_masks(model, video, state).float()

    with torch.no_grad():
        exact = answer()
        with torch.autocast("cpu", dtype=precision):
            rough = answer()
    for a, b in zip(exact, rough, strict=True):
        assert b.isfinite().all()
        assert (a - b).abs().mean() < 0.05 * a.abs().max()
