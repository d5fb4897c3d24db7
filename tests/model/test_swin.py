"""Swin and Video-Swin: parity with recorded outputs, a plain reference, clips and chunks, the published weights."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SwinConfig
from transformers.models.swin.modeling_swin import SwinEmbeddings, SwinEncoder

import tiny
from clips import picture
from dshmp.common.errors import UserError
from dshmp.config import BackboneConfig, from_dict
from dshmp.data.mevis import MevisSplit
from dshmp.inference.segmenter import Segmenter
from dshmp.interop import video_swin as interop
from dshmp.interop.keymap import renamed
from dshmp.interop.video_swin import load_kinetics
from dshmp.model.backbone import LanguageBackbone
from dshmp.model.frames import prepare_frames
from dshmp.model.swin import BLOCKED, Size, SwinBlock, relative_position, window_groups
from dshmp.model.text import null_text
from dshmp.training.cache import perceive_clip
from golden import FOLDER, load

TEXT = 12
SIZES = {
    "T": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "B": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}
VIDEO = {"backbone.temporal_window": 2, "backbone.clip": 4, "backbone.depths": [2, 2, 1, 2]}
"""Switches of the tiny model: windows of 2 frames, clips of 4."""


def close(actual: Tensor, expected: np.ndarray | Tensor, tolerance: float = 1e-5) -> None:
    expected = torch.as_tensor(expected)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def small(**more: Any) -> BackboneConfig:
    settings = {
        "embed_dim": 8,
        "depths": (2, 2, 1, 2),
        "num_heads": (1, 2, 2, 2),
        "window_size": 3,
        "drop_path": 0.0,
        "temporal_window": 4,
        "clip": 6,
    }
    return BackboneConfig(**(settings | more))


def build(config: BackboneConfig) -> LanguageBackbone:
    """In evaluation mode, with open gates and biases that are worth something."""
    torch.manual_seed(0)
    backbone = LanguageBackbone(config, TEXT).eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "gates" in name or "position_bias" in name:
                nn.init.normal_(parameter, std=0.5)
    return backbone


def pictures(frames: int, height: int = 44, width: int = 60, seed: int = 0) -> Tensor:
    return torch.randn(frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def words(frames: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """The same words, five of six real, for every frame."""
    text = torch.randn(1, 6, TEXT, generator=torch.Generator().manual_seed(seed)).expand(frames, -1, -1)
    return text, (torch.arange(6) < 5).expand(frames, -1)


# --- parity with what is published


def published(key: str) -> str:
    """A name in the recorded cases -> in a Kinetics checkpoint."""
    top, *rest = key.split(".")
    return f"backbone.layers.{rest[0]}.downsample.{rest[1]}.{rest[2]}" if top == "downsamples" else f"backbone.{key}"


@torch.no_grad()
@pytest.mark.parametrize("name", ["video_swin_a", "video_swin_b"])
def test_parity_through_a_published_checkpoint(name: str, tmp_path: Path) -> None:
    arrays, info = load(name)
    weights = {key[6:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("param/")}
    patch = weights["patch_embed.proj.weight"]
    weights["patch_embed.proj.weight"] = torch.cat([0.25 * patch, 0.75 * patch], dim=2)  # as deep as published
    weights |= {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(392, 392, dtype=torch.long)}
    state = {published(key): value for key, value in weights.items()}
    state |= {"backbone.norm.weight": torch.ones(3), "cls_head.fc_cls.weight": torch.ones(2, 3)}
    torch.save({"meta": {"epoch": 30}, "state_dict": state}, tmp_path / "kinetics.pth")
    config = info["config"]
    backbone = LanguageBackbone(
        BackboneConfig(
            embed_dim=config["embed_dim"],
            depths=tuple(config["depths"]),
            num_heads=tuple(config["num_heads"]),
            temporal_window=config["window_size"][0],
            window_size=config["window_size"][1],
            language_fusion=False,
        ),
        TEXT,
    ).eval()
    rows = load_kinetics(backbone, tmp_path / "kinetics.pth")
    assert [(row.part, row.fate, row.parameters) for row in rows] == [
        ("backbone", "loaded", sum(p.numel() for key, p in backbone.named_parameters() if not key.startswith("norms"))),
        ("backbone", "fresh", sum(p.numel() for p in backbone.norms.parameters())),
        ("layers", "left out", 392 * 392),
        ("norm", "left out", 3),
        ("cls_head", "left out", 6),
    ]
    backbone.norms = nn.ModuleList(nn.Identity() for _ in backbone.norms)
    expected = sorted(key for key in arrays if key.startswith("output/"))
    found = backbone(torch.from_numpy(arrays["input/frames"]), None, None, info["video"][1])
    assert len(found) == len(expected) == 4
    for features, key in zip(found, expected, strict=True):
        close(features, arrays[key])


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (52, 75), (20, 31), (9, 130)])  # the last maps are smaller than a window
def test_swin_equals_transformers(size: tuple[int, int]) -> None:
    config = small(temporal_window=None, language_fusion=False, depths=(2, 2, 2, 2))
    theirs = SwinConfig(
        embed_dim=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 2], window_size=3, attn_implementation="sdpa"
    )
    torch.manual_seed(0)
    embeddings, encoder = SwinEmbeddings(theirs).eval(), SwinEncoder(theirs, (56, 56)).eval()
    for name, parameter in encoder.named_parameters():
        if "bias_table" in name:
            nn.init.normal_(parameter)
    state = {f"perception.backbone.embeddings.{key}": value for key, value in embeddings.state_dict().items()}
    for key, value in encoder.state_dict().items():
        state[f"perception.backbone.{key.replace('layers', 'stages', 1)}"] = value
    backbone = LanguageBackbone(config, TEXT).eval()
    backbone.norms = nn.ModuleList(nn.Identity() for _ in backbone.norms)
    backbone.load_state_dict({key.removeprefix("perception.backbone."): value for key, value in renamed(state).items()})
    images = pictures(3, *size)
    patches, grid = embeddings(images)
    expected = encoder(
        patches, grid, always_partition=True, output_hidden_states=True, output_hidden_states_before_downsampling=True
    ).reshaped_hidden_states[1:]
    for found, wanted in zip(backbone(images, None, None, 3), expected, strict=True):
        close(found, wanted)


@pytest.mark.parametrize("kind", ["T", "B"])
def test_every_published_weight_has_its_place(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes of the full-size checkpoints, without values."""
    file = FOLDER / "video_swin_full.json"
    if not file.exists():
        pytest.skip("the list of published weights is not beside this checkout")
    entries = json.loads(file.read_text())[f"video_swin_{kind.lower()}_p4w7"]
    with torch.device("meta"):
        weights = {published(key): torch.empty(shape) for key, shape in entries.items()}
        backbones = {
            name: LanguageBackbone(BackboneConfig(temporal_window=8, **sizes), 768) for name, sizes in SIZES.items()
        }
    monkeypatch.setattr(interop, "read_tensors", lambda path: weights)
    backbone = backbones[kind]
    rows = load_kinetics(backbone, Path("kinetics.pth"))
    own, theirs = backbone.state_dict(), weights
    counts = {fate: sum(row.tensors for row in rows if row.fate == fate) for fate in ("loaded", "fresh", "left out")}
    assert counts["loaded"] + counts["fresh"] == len(own)
    assert counts["loaded"] + counts["left out"] == len(theirs)
    parameters = {fate: sum(row.parameters for row in rows if row.fate == fate) for fate in ("loaded", "fresh")}
    assert sum(parameters.values()) == sum(p.numel() for p in backbone.parameters())
    other = next(name for name in SIZES if name != kind)
    with pytest.raises(UserError, match=r"stages\.2\.blocks\.10") as told:
        load_kinetics(backbones[other], Path("kinetics.pth"))
    sizes = SIZES[kind]
    assert f"{sizes['embed_dim']}, {list(sizes['depths'])}, {list(sizes['num_heads'])}" in str(told.value)


@pytest.fixture
def kinetics(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What is read as the checkpoint of a `small` backbone, under published names."""
    weights = tiny.kinetics(build(small()))
    monkeypatch.setattr(interop, "read_tensors", lambda path: weights)
    return weights


@torch.no_grad()
def test_loading_keeps_the_language_and_gives_the_same_features(kinetics: dict[str, Tensor]) -> None:
    source, target = build(small()), LanguageBackbone(small(), TEXT).eval()
    fresh = {key: value.clone() for key, value in target.state_dict().items() if key.startswith(("fus", "gat", "nor"))}
    load_kinetics(target, Path("kinetics.pth"))
    assert all(torch.equal(target.state_dict()[key], value) for key, value in fresh.items())
    for backbone in (source, target):
        backbone.language_fusion = False
    for a, b in zip(*(x(pictures(5), None, None, 5) for x in (source, target)), strict=True):
        close(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temporal_window": None}, "for Video-Swin, the config asks for Swin; set backbone.temporal_window to 8"),
        ({"temporal_window": 8}, r"position_bias has shape \[175, 1\], the config asks \[375, 1\]"),
        ({"depths": (2, 2, 2, 2)}, r"lacks stages.2.blocks.1.* set the backbone's embed_dim, depths and num_heads"),
        ({"depths": (2, 1, 1, 2)}, r"has unknown stages.1.blocks.1."),
        ({"num_heads": (2, 2, 2, 2)}, r"position_bias has shape \[175, 1\], the config asks \[175, 2\]"),
    ],
)
def test_weights_of_another_backbone_change_nothing(
    settings: dict[str, Any], message: str, kinetics: dict[str, Tensor]
) -> None:
    backbone = build(small(**settings))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_kinetics(backbone, Path("kinetics.pth"))
    assert all(torch.equal(backbone.state_dict()[key], value) for key, value in before.items())


def test_weights_of_image_swin_are_told(kinetics: dict[str, Tensor]) -> None:
    kinetics["backbone.patch_embed.proj.weight"] = torch.zeros(8, 3, 4, 4)
    with pytest.raises(UserError, match="is not a Video-Swin checkpoint"):
        load_kinetics(build(small()), Path("swin.pth"))


# --- windows


def dense(block: SwinBlock, x: Tensor, size: Size) -> Tensor:
    """The attention of a block over all pairs of the padded and rolled clip, windows being a matter of masks."""
    attention, shifted = block.attention, block.attention.shifted
    window = [min(w, s) for w, s in zip(attention.window, size, strict=True)]
    shift = [w // 2 if shifted and s > w else 0 for w, s in zip(attention.window, size, strict=True)]
    padding = [-s % w for w, s in zip(window, size, strict=True)]
    clip = F.pad(x.view(len(x), *size, -1), [0, 0, *itertools.chain(*([0, p] for p in padding[::-1]))])
    whole = clip.shape[1:4]
    clip = clip.roll([-s for s in shift], (1, 2, 3)).flatten(1, 3)
    place = torch.tensor(list(itertools.product(*map(range, whole))))
    width = torch.tensor(window)
    owner, inside = place // width, place % width
    wrapped = place >= torch.tensor(whole) - torch.tensor(shift)  # came from the other end
    same = (owner[:, None] == owner).all(-1)
    crossed = (wrapped[:, None] != wrapped).any(-1)
    number = (inside * torch.tensor([window[1] * window[2], window[2], 1])).sum(1)
    index = relative_position(attention.window, x.device)[number[:, None], number]
    bias = attention.position_bias[index].permute(2, 0, 1) + BLOCKED * crossed
    query, key, value = attention.qkv(clip).unflatten(2, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) + bias
    output = scores.masked_fill(~same, float("-inf")).softmax(-1) @ value
    output = attention.output(output.transpose(1, 2).flatten(2))
    output = output.unflatten(1, whole).roll(shift, (1, 2, 3))[:, : size[0], : size[1], : size[2]]
    return output.flatten(1, 3)


@torch.no_grad()
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 2, 7), (4, 3, 3), (6, 5, 4), (9, 3, 8), (8, 6, 6)], ids=str)
def test_windows_equal_attention_over_all_pairs(size: Size, shifted: bool) -> None:
    torch.manual_seed(0)
    block = SwinBlock(8, 2, (4, 3, 3), True, shifted, drop=0.0)
    nn.init.normal_(block.attention.position_bias)
    x = torch.randn(2, math.prod(size), 8)
    close(block.attention(x, size), dense(block, x, size))


def test_relative_positions() -> None:
    index = relative_position((2, 3, 4), torch.device("cpu"))
    place = list(itertools.product(range(2), range(3), range(4)))
    for i, j in itertools.product(range(24), repeat=2):
        t, y, x = (a - b + w - 1 for a, b, w in zip(place[i], place[j], (2, 3, 4), strict=True))
        assert index[i, j] == (t * 5 + y) * 7 + x


def test_only_a_clips_last_windows_carry_a_mask() -> None:
    groups = window_groups((16, 14, 21), (8, 7, 7), (4, 3, 3), torch.device("cpu"))
    (unmasked,) = (numbers for numbers, mask in groups if mask is None)
    assert len(groups) == 8
    assert unmasked.tolist() == [0, 1]  # of 2 x 2 x 3 windows, those not last along any axis
    assert window_groups((16, 14, 21), (8, 7, 7), (4, 3, 3), torch.device("cpu")) is groups


# --- clips


@torch.no_grad()
@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 6, 7, 13])
def test_videos_in_one_batch(length: int, fusion: bool) -> None:
    """Shorter than, as long as and longer than the window of 4 and the clip of 6 frames."""
    backbone = build(small(language_fusion=fusion))
    images = torch.cat([pictures(length, seed=seed) for seed in (0, 1)])
    text, mask = (torch.cat([a, b]) for a, b in zip(words(length, 1), words(length, 2), strict=True))
    together = backbone(images, text, mask, length)
    assert [x.shape for x in together] == [
        (2 * length, 8 * 2**i, -(-44 // 2 ** (i + 2)), -(-60 // 2 ** (i + 2))) for i in range(4)
    ]
    for video in (slice(length), slice(length, None)):
        for a, b in zip(backbone(images[video], text[video], mask[video], length), together, strict=True):
            close(a, b[video])


@torch.no_grad()
def test_a_video_cut_at_whole_clips() -> None:
    backbone = build(small())
    images, text = pictures(15), words(15)
    whole = backbone(images, *text, 15)
    for frames in (1, 6, 7, 100):
        step = backbone.whole_clips(frames)
        parts = [backbone(part, *words(len(part)), len(part)) for part in images.split(step)]
        for i, features in enumerate(whole):
            close(torch.cat([part[i] for part in parts]), features)
    elsewhere = torch.cat([backbone(part, *words(5), 5)[3] for part in images.split(5)])
    assert (elsewhere - whole[3]).abs().max() > 1e-2


def test_whole_clips() -> None:
    backbone = build(small())
    assert [backbone.whole_clips(frames) for frames in (1, 5, 6, 7, 16)] == [6, 6, 6, 12, 18]
    swin = build(small(temporal_window=None))
    assert [swin.whole_clips(frames) for frames in (1, 5, 16)] == [1, 5, 16]


@torch.no_grad()
def test_frames_see_their_own_clip_and_no_other() -> None:
    backbone = build(small())
    images, text = pictures(9), words(9)
    changed = images.clone()
    changed[7] += 1
    before, after = (backbone(x, *text, 9)[0] for x in (images, changed))
    differs = (before != after).flatten(1).any(1).tolist()
    assert differs == [False] * 6 + [True] * 3
    swin = build(small(temporal_window=None))
    before, after = (swin(x, *text, 9)[0] for x in (images, changed))
    assert (before != after).flatten(1).any(1).nonzero().flatten().tolist() == [7]


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match="5 frames are not videos of 2"):
        build(small())(pictures(5), *words(5), 2)
    for name in ("clip", "temporal_window"):
        with pytest.raises(UserError, match="at least 1"):
            from_dict(BackboneConfig, {name: 0})
    with pytest.raises(ValueError, match="8 channels cannot be shared by 3 heads"):
        build(small(num_heads=(3, 2, 2, 2)))


# --- language, training, precision


@torch.no_grad()
@pytest.mark.parametrize("closed", [False, True])
def test_words_reach_the_next_stage_through_the_gate_alone(closed: bool) -> None:
    backbone = build(small())
    if closed:
        nn.init.zeros_(backbone.gates[0][2].weight)
    seen: list[Tensor] = []
    backbone.stages[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    first, second = (backbone(pictures(5), *words(5, seed), 5) for seed in (1, 2))
    assert torch.equal(*seen) is closed
    assert all(not torch.allclose(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("length", [3, 8])
def test_gradients_reach_every_parameter(length: int) -> None:
    backbone = build(small()).train()
    loss = sum(
        x.square().mul(torch.linspace(0, 1, x.numel()).view(x.shape)).mean()
        for x in backbone(pictures(length), *words(length), length)
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    silent = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before an instance norm, and a key's bias under a softmax, cancel.
    assert [name for name in silent if not name.endswith(("gathered.bias", "query.bias", "key.bias"))] == []


def test_training_after_inference_mode_shares_no_inference_tensors() -> None:
    window_groups.cache_clear()
    relative_position.cache_clear()
    backbone = build(small())
    with torch.inference_mode():
        expected = backbone(pictures(5), *words(5), 5)
    found = backbone.train()(pictures(5), *words(5), 5)
    found[3].sum().backward()
    close(found[3].detach(), expected[3].clone())


@torch.no_grad()
def test_stochastic_depth_drops_whole_clips() -> None:
    block = SwinBlock(8, 2, (4, 3, 3), True, True, drop=0.5).train()
    x = torch.randn(64, 5 * 4 * 4, 8)
    torch.manual_seed(0)
    kept = (block(x, (5, 4, 4)) != x).flatten(1).any(1)
    assert 0.6 < kept.float().mean() < 0.9  # either of two branches
    assert (block.eval()(x, (5, 4, 4)) != x).flatten(1).any(1).all()
    drops = [item.drop for item in build(small(drop_path=0.3)).modules() if isinstance(item, SwinBlock)]
    assert drops == pytest.approx([0.3 * i / 6 for i in range(7)])


@torch.no_grad()
def test_half_precision() -> None:
    backbone = build(small())
    expected = backbone(pictures(5), *words(5), 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = backbone(pictures(5), *words(5), 5)
    for a, b in zip(found, expected, strict=True):
        close(a.float(), b, 0.1)
    exact = backbone.double()(pictures(5).double(), words(5)[0].double(), words(5)[1], 5)
    for a, b in zip(exact, expected, strict=True):
        close(a.float(), b, 2e-5)


# --- the whole model


@pytest.mark.parametrize("fusion", [False, True])
def test_chunks_change_no_answer(fusion: bool) -> None:
    clip = np.stack([picture(3 * i, 50, 70) for i in range(11)])
    answers = []
    for chunk in (1, 5, 100):
        switches = VIDEO | {"backbone.language_fusion": fusion, "input.chunk": chunk, "readout.threshold": 0.0}
        segmenter = Segmenter(tiny.model(switches), tiny.tokenizer(), device="cpu")
        answers.append(segmenter(clip, tiny.SENTENCES[:2]))
    for several in zip(*answers, strict=True):
        for other in several[1:]:
            assert other.score == pytest.approx(several[0].score, abs=1e-5)
            assert (other.masks == several[0].masks).mean() > 0.9999
    alone = Segmenter(tiny.model(VIDEO | {"backbone.clip": 1, "readout.threshold": 0.0}), tiny.tokenizer(), "cpu")
    assert alone(clip, tiny.SENTENCES[0]).score != answers[0][0].score


@torch.no_grad()
def test_clips_of_several_sentences() -> None:
    model = tiny.model(VIDEO | {"backbone.language_fusion": True})
    clips = torch.stack([pictures(6, 40, 48, seed) for seed in (0, 1)])
    order = torch.tensor([1, 0, 1])
    text = model.language(tiny.tokenizer()(list(tiny.SENTENCES)))
    together = model.perceive_clips(clips, order, text)
    for row, clip in enumerate(order.tolist()):
        alone = model.encode(clips[clip], text.repeat(torch.tensor([row])))
        for name in ("tokens", "mask_features", "video_features"):
            close(getattr(together, name).unflatten(0, (3, 6))[row], getattr(alone, name))


@torch.no_grad()
def test_the_cache_reads_whole_videos(mini: Path) -> None:
    split = MevisSplit(mini, "valid_u")
    name = max(split.videos, key=lambda item: len(split.videos[item].frames))
    model = tiny.model(VIDEO | {"readout.threshold": 0.0, "motion.geometry": False})
    images = prepare_frames(split.frames(name), model.config.input)
    expected = model.encode(images, null_text(model.language, 1))
    (found,) = perceive_clip(model, split, name, null_text(model.language, 1))
    close(found["tokens"].float(), expected.tokens, 1e-3)
