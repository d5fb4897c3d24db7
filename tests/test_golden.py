"""The release's recorded inputs and outputs, file by file, against this program.

One test per file; cases are found by the names of the recorded arrays, sizes in the descriptions beside them. Each
test ends by printing its worst absolute error. Bounds: 1e-5 times the largest recorded value (or 1) for single modules
and losses, 1e-4 for everything the whole model puts out; masks are equal wherever a logit is not within 1e-4 of 0;
words, groups and assignments are the same. Where the last window is filled up, padded frames hold equal tokens and
their assignment is a tie that SciPy breaks as it likes: there the recorded assignments are replayed.
"""

import copy
import dataclasses
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import golden
import tiny
from dshmp.config import (
    RELEASE,
    BackboneConfig,
    FrameDecoderConfig,
    LanguageConfig,
    ModelConfig,
    MotionConfig,
    PixelDecoderConfig,
    ReadoutConfig,
    ReleaseConfig,
)
from dshmp.evaluation.metrics import jf_frames
from dshmp.inference.encoded import Quality
from dshmp.inference.segmenter import Segmenter
from dshmp.interop.keymap import as_release, from_release
from dshmp.interop.release import convert, infer_config
from dshmp.interop.video_swin import load_kinetics
from dshmp.model import frame_decoder, hmp
from dshmp.model.backbone import LanguageBackbone, PixelWordAttention
from dshmp.model.candidates import Candidates
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import FrameDecoder, inside
from dshmp.model.frames import input_masks, output_masks, prepare_frames
from dshmp.model.hmp import HierarchicalCrossAttention, MotionPerception
from dshmp.model.layers import BiAttention
from dshmp.model.motion_decoder import MotionDecoder, VideoTokens
from dshmp.model.pixel_decoder import PixelDecoder, sine_position
from dshmp.model.text import Cues, TextFeatures, feature_resizer
from dshmp.model.tokenizer import TextBatch, TextTokenizer, load_tokenizer
from dshmp.model.trajectories import align, gather, scatter
from dshmp.training.contrastive import MemoryBank, anchor
from dshmp.training.losses import SetPrediction, SetTargets, set_losses, similarity_loss
from golden import Recorded

ROBERTA_BPE = Path(golden.FOLDER).parent / "roberta_bpe"
RELEASE_MOTION = MotionConfig(
    merge="mean",
    matching="inverse",
    position=False,
    displacement=False,
    geometry=False,
    static=False,
    camera=False,
    object_position=True,
    dropout=0.0,
)
VIDEO_OUTPUTS = {
    "pred_logits": "logits",
    "pred_mask_embed": "readout.mask_embed",
    "pred_cq_embed": "similarity",
    "pred_contrastive_embed": "contrast",
    "pred_fq_embed": "frame_similarity",
}

Arrays = Recorded


class Parity:
    """Compares, and remembers the worst."""

    def __init__(self) -> None:
        self.worst, self.where, self.count = 0.0, "", 0
        self.lines: list[str] = []

    def close(
        self,
        what: str,
        actual: Tensor,
        expected: np.ndarray | Tensor,
        bound: float | None = None,
        relative: float = 1e-5,
    ) -> None:
        """Within `bound`, or within `relative` times the largest recorded value, if that exceeds 1."""
        expected = torch.as_tensor(expected)
        assert actual.shape == expected.shape, what
        self.count += 1
        if not expected.numel():
            return
        error = float((actual.detach().double() - expected.double()).abs().max())
        if error > self.worst:
            self.worst, self.where = error, what
        limit = relative * max(1.0, float(expected.abs().max())) if bound is None else bound
        self.lines.append(f"  {what}: {error:.1e}, at most {limit:.1e}")
        assert error <= limit, f"{what}: off by {error:.2e}"

    def same(self, what: str, actual: Any, expected: Any) -> None:
        self.count += 1
        np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected), err_msg=what)


class Unasked(Parity):
    """Compares nothing: for float64, from which what is recorded on the way to an outcome may be further than bounds
    between two float32."""

    def close(self, *args: Any, **more: Any) -> None:
        pass

    def same(self, *args: Any) -> None:
        pass


@pytest.fixture
def parity(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[Parity]:
    result = Parity()
    yield result
    if not result.count:
        return
    with capsys.disabled():
        name = request.node.callspec.params["name"]
        print("", *(result.lines if golden.NAMED else ()), sep="\n", end="")
        print(f"\n{name}: {result.count} comparisons, worst absolute error {result.worst:.1e} ({result.where})", end="")


def weights(arrays: Arrays) -> dict[str, Tensor]:
    return {key[6:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("param/")}


def submodule(state: dict[str, Tensor], prefix: str, own: str = "") -> dict[str, Tensor]:
    """Tensors of a submodule under our names; `prefix` and `own` are its places in the release and here."""
    found = from_release({prefix + key: value for key, value in state.items()})
    return {key.removeprefix(own): value for key, value in found.items()}


def fit(module: nn.Module, arrays: Arrays, prefix: str, own: str) -> nn.Module:
    """The recorded parameters of a submodule, named by its place in the release and here."""
    module.load_state_dict(submodule(weights(arrays), prefix, own))
    return module.eval()


def cases(arrays: Arrays, ending: str) -> list[str]:
    """The cases that have an array of this name."""
    return sorted(
        {key.removesuffix(f"/{ending}") for key in arrays if key.endswith(f"/{ending}") and key.count("/") == 1}
    )


def case_of(arrays: Recorded, name: str) -> Recorded:
    """Its arrays by their own names."""
    return arrays.tensors(f"{name}/")


def recorded_indices(given: dict[str, Tensor], name: str, queries: int) -> Tensor:
    """Matches (elements, queries): the target of each prediction or -1."""
    lengths = given[f"{name}/lens"].tolist()
    indices = torch.full((len(lengths), queries), -1)
    parts = zip(given[f"{name}/src"].split(lengths), given[f"{name}/tgt"].split(lengths), strict=True)
    for row, (source, target) in zip(indices, parts, strict=True):
        row[source] = target
    return indices


# --- motion


def check_hierarchical_cross_attention(arrays: Arrays, info: dict[str, Any], parity: Parity) -> None:
    module = HierarchicalCrossAttention(info["meta"]["d_model"], 3, "mean")
    place = ("vita_module.hierarchical_cross.0.", "motion.blocks.0.cross_attention.")
    fit(module, arrays, *place)
    for case in cases(arrays, "tgt"):
        given = case_of(arrays, case)
        tokens = given["tgt"].permute(2, 0, 1, 3)  # (T, N, n, C) -> (n, T, N, C)
        order = align(tokens, matching="inverse")
        if "match_indices" in given:
            parity.same(f"{case} order", order[:, 1:], given["match_indices"])
        ordered = gather(tokens, order)
        parity.close(f"{case} sorted", ordered, given["sorted"].permute(2, 0, 1, 3))
        memory = given["memory"][None]
        result, evidence = module(ordered[None], Cues(memory, torch.ones(memory.shape[:2], dtype=torch.bool)))
        parity.close(f"{case} output", scatter(result[0], order), given["output"].permute(2, 0, 1, 3))
        rows = given["weight1"].view(tokens.shape[2], len(tokens), -1)  # (N*n, T, 1), track-major -> (N, n, T)
        parity.close(f"{case} weight", evidence[0], rows.permute(1, 2, 0))


class Motion(nn.Module):
    """Motion perception and motion decoder, as the whole model joins them."""

    def __init__(self, config: MotionConfig, channels: int, objects: int, release: ReleaseConfig = RELEASE) -> None:
        super().__init__()
        whole = ModelConfig(
            hidden_size=channels,
            frame_decoder=FrameDecoderConfig(queries=objects),
            motion=config,
            readout=ReadoutConfig(masks="embedding"),
            release=release,
        )
        self.motion = MotionPerception(whole)
        self.decoder = MotionDecoder(whole)

    def forward(self, tokens: Tensor, text: TextFeatures) -> VideoTokens:
        frames = torch.ones(tokens.shape[:2], dtype=torch.bool)
        position = torch.arange(tokens.shape[1]).expand(tokens.shape[:2])
        moved, evidence, _ = self.motion(Candidates(frames, tokens), text.motion, position)
        result: VideoTokens = self.decoder(moved, frames[..., None], text, position, evidence)
        return result


def motion_text(given: dict[str, Tensor], batch: int) -> TextFeatures:
    cues = Cues(given["motion_feat"][None], torch.ones(1, len(given["motion_feat"]), dtype=torch.bool))
    unheard = torch.full((1, given["lang_feat"].shape[-1]), float("nan"))  # the release does not read it here
    text = TextFeatures(unheard, given["lang_feat"], given["lang_mask"].bool(), unheard, cues, cues)
    return text.repeat(torch.zeros(batch, dtype=torch.long))


def steps_by_block(given: dict[str, Tensor], blocks: int) -> list[Tensor]:
    """Recorded assignments, a tensor (calls, N) per block."""
    if "match_indices" not in given:
        return []
    if "match_layer" in given:
        return [given["match_indices"][given["match_layer"] == layer] for layer in given["match_layer"].unique()]
    return list(given["match_indices"].chunk(blocks))


def watch_matching(monkeypatch: pytest.MonkeyPatch, parity: Parity, case: str, steps: list[Tensor], tied: bool) -> None:
    """Compare every block's assignments with the recorded ones, or replay those where padded frames are ties."""
    calls = iter(enumerate(steps))

    def watched(tokens: Tensor, frames: Tensor | None = None, matching: Any = "hungarian") -> Tensor:
        number, recorded = next(calls)
        recorded = recorded.view(len(tokens), -1, tokens.shape[2])
        if not tied:
            order = align(tokens, frames, matching)
            parity.same(f"{case} order of block {number}", order[:, 1:], recorded)
            return order
        first = torch.arange(tokens.shape[2]).expand(len(tokens), 1, -1)
        return torch.cat([first, recorded], dim=1)

    monkeypatch.setattr(hmp, "align", watched)


def check_motion(arrays: Arrays, info: dict[str, Any], parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = info["meta"]
    state = weights(arrays)
    hidden, window = meta["hidden"], meta["window"]
    config = replace(
        RELEASE_MOTION,
        blocks=meta["enc_layers"],
        decoder_layers=meta["dec_layers"],
        heads=meta.get("heads", 4),
        ffn=len(state["enc_ffn.0.linear1.weight"]),
        queries=len(state["query_feat.weight"]),
        contrast_size=len(state["contrastive_embed.layers.2.weight"]),
    )
    for case in cases(arrays, "frame_query"):
        given = case_of(arrays, case)
        tokens = given["frame_query"]
        length = tokens.shape[1]
        ours = submodule(state, "vita_module.")
        if not window:  # the whole clip at once, nothing but temporal self-attention
            settings, release = replace(config, stages=0, window=max(2, length)), ReleaseConfig(padded_frames="seen")
            ours = {key: value for key, value in ours.items() if ".blocks." not in key or "cross_" not in key}
        else:
            settings, release = replace(config, window=window), RELEASE
        if "motion.input_projection.weight" not in ours:  # a case without that layer
            ours |= {
                "motion.input_projection.weight": torch.eye(hidden),
                "motion.input_projection.bias": torch.zeros(hidden),
            }
        model = Motion(settings, hidden, len(state["fq_pos.weight"]), release)
        model.load_state_dict(ours)
        model.train(meta["mode"].startswith("train"))
        tied = bool(window) and bool(length % window)
        with monkeypatch.context() as patch:
            if window:
                watch_matching(patch, parity, case, steps_by_block(given, settings.blocks), tied)
            video = model(tokens, motion_text(given, len(tokens)))
        for theirs, name in VIDEO_OUTPUTS.items():
            parity.close(f"{case} {theirs}", attrgetter(name)(video), given[theirs][:, 0])
        for theirs in ("pred_logits", "pred_mask_embed", "pred_cq_embed"):
            for layer in range(len(video.layers) - 1):
                got = attrgetter(VIDEO_OUTPUTS[theirs])(video.layers[layer])
                parity.close(f"{case} layer {layer} {theirs}", got, given[f"aux{layer}/{theirs}"][:, 0])
        if f"cotangent/{next(iter(VIDEO_OUTPUTS))}" in given:
            check_motion_gradients(model, given, parity, case)


def check_motion_gradients(model: Motion, given: dict[str, Tensor], parity: Parity, case: str) -> None:
    tokens = given["frame_query"].clone().requires_grad_()
    text = motion_text(given, len(tokens))
    text = replace(
        text,
        tokens=text.tokens.clone().requires_grad_(),
        motion=replace(text.motion, features=text.motion.features.clone().requires_grad_()),
    )
    video = model(tokens, text)
    loss = sum(
        (attrgetter(name)(video) * given[f"cotangent/{theirs}"][:, 0]).sum() for theirs, name in VIDEO_OUTPUTS.items()
    )
    model.zero_grad()
    loss.backward()
    parity.close(f"{case} gradient of tokens", tokens.grad, given["grad/frame_query"])
    parity.close(f"{case} gradient of words", text.tokens.grad.sum(0, keepdim=True), given["grad/lang_feat"])
    parity.close(f"{case} gradient of cues", text.motion.features.grad.sum(0), given["grad/motion_feat"])
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    theirs = {key.removeprefix("vita_module."): value for key, value in as_release(gradients).items()}
    for key, norm in given.chosen(lambda key: key.startswith("param_grad_norm/")).items():
        if not norm.isnan().any():
            parity.close(f"{case} {key}", theirs[key.split("/")[-1]].norm()[None], norm)


# --- perception


def check_frame_decoder(arrays: Arrays, info: dict[str, Any], parity: Parity) -> None:
    meta, state = info["meta"], weights(arrays)
    hidden = meta["hidden"]
    config = FrameDecoderConfig(
        queries=meta["queries"], layers=meta["layers"], heads=meta["heads"], ffn=meta["ffn"], dropout=0.0
    )
    projections = {key: state.pop(key) for key in list(state) if key.startswith("input_proj.")}
    ours = submodule(state, "sem_seg_head.predictor.", "perception.frame_decoder.")
    _widen(ours, "mask_embed.layers.2", hidden)
    decoder = FrameDecoder(config, hidden, "full")
    decoder.load_state_dict(ours)
    decoder.eval()
    for case in cases(arrays, "x0"):
        given = case_of(arrays, case)
        levels = [given[f"x{i}"] for i in range(3)]
        if projections:
            levels = [
                F.conv2d(x, projections[f"input_proj.{i}.weight"], projections[f"input_proj.{i}.bias"])
                for i, x in enumerate(levels)
            ]
        for i, level in enumerate(levels):
            place = sine_position(*level.shape[-2:], hidden, torch.device("cpu"), torch.float32)
            parity.close(f"{case} position {i}", place, given[f"pos{i}"])
        features = given["mask_features"]
        rows = torch.zeros(len(features), dtype=torch.long)
        static = Cues(given["static_feat"][None], torch.ones(1, len(given["static_feat"]), dtype=torch.bool))
        words = given["lang_feat"]
        text = TextFeatures(words, words, given["lang_mask"].bool(), words[:, 0], static, static).repeat(rows)
        wide = F.pad(features, (0, 0, 0, 0, 0, hidden - features.shape[1]))
        heads = decoder(levels, wide, text)
        masks = [torch.einsum("fnc,fchw->fnhw", head.mask_embed, wide) for head in heads]
        parity.close(f"{case} logits", heads[-1].logits, given["pred_logits"])
        parity.close(f"{case} masks", masks[-1], given["pred_masks"])
        for i in range(meta["layers"]):
            parity.close(f"{case} layer {i} logits", heads[i].logits, given[f"aux{i}/pred_logits"])
            parity.close(f"{case} layer {i} masks", masks[i], given[f"aux{i}/pred_masks"])
        kept = given["frame_queries"]
        tokens = torch.stack([head.tokens for head in heads[-len(kept) :]])
        parity.close(f"{case} tokens", tokens, kept)


def _widen(state: dict[str, Tensor], key: str, size: int) -> None:
    """Recorded mask features are narrower than tokens: filled up with zeros, which changes nothing."""
    for name in (f"{key}.weight", f"{key}.bias"):
        value = state[name]
        state[name] = torch.cat([value, value.new_zeros(size - len(value), *value.shape[1:])])


def check_pixel_decoder(arrays: Arrays, info: dict[str, Any], parity: Parity) -> None:
    meta = info["meta"]
    ours = submodule(weights(arrays), "sem_seg_head.pixel_decoder.", "perception.pixel_decoder.")
    _widen(ours, "mask_projection", meta["conv_dim"])
    config = PixelDecoderConfig(layers=meta["enc_layers"], heads=meta["heads"], ffn=meta["enc_ffn"])
    decoder = PixelDecoder(config, meta["in_channels"], meta["conv_dim"])
    decoder.load_state_dict(ours)
    for case in cases(arrays, "res2"):
        given = case_of(arrays, case)
        mask_features, video_features, levels = decoder.eval()([given[f"res{i}"] for i in range(2, 6)])
        parity.close(f"{case} mask features", mask_features[:, : meta["mask_dim"]], given["mask_features"])
        parity.close(f"{case} video features", video_features, given["clip_mask_features"])
        for i in range(3):
            parity.close(f"{case} level {i}", levels[i], given[f"multi_scale{i}"])


def check_backbone(arrays: Arrays, info: dict[str, Any], parity: Parity) -> None:
    """The normalised fusion magnifies rounding: the recorded float32 maps lie up to 1.5e-5 from what the same
    weights give in float64, so that is the bound; ours in float32 lie as near."""
    meta = info["meta"]
    config = BackboneConfig(
        embed_dim=meta["embed_dim"],
        depths=tuple(meta["depths"]),
        num_heads=tuple(meta["heads"]),
        window_size=meta["window"],
    )
    backbone = LanguageBackbone(config, meta["text_dim"])
    fit(backbone, arrays, "backbone.", "perception.backbone.")
    for case in cases(arrays, "image"):
        given = case_of(arrays, case)
        words, mask = given["lang"].transpose(1, 2), given["lang_mask"][..., 0].bool()
        exact = backbone.double()(given["image"].double(), words.double(), mask, 1)
        for i, features in enumerate(backbone.float()(given["image"], words, mask, 1)):
            parity.close(f"{case} res{i + 2} in float64", exact[i], given[f"res{i + 2}"], relative=2e-5)
            parity.close(f"{case} res{i + 2}", features, given[f"res{i + 2}"], relative=2e-5)
    for case in cases(arrays, "x"):  # one fusion block alone
        given = case_of(arrays, case)
        fusion: PixelWordAttention = backbone.fusions[int(case.removeprefix("pwam"))]
        fused = fusion(given["x"], given["lang"].transpose(1, 2), given["lang_mask"][..., 0].bool())
        parity.close(case, fused, given["out"])


def check_video_swin(arrays: Arrays, info: dict[str, Any], parity: Parity) -> None:
    """Stage outputs, before the merging layers; the release's norm after them is not in these files."""
    meta = info["config"]
    config = BackboneConfig(
        embed_dim=meta["embed_dim"],
        depths=tuple(meta["depths"]),
        num_heads=tuple(meta["num_heads"]),
        window_size=meta["window_size"][1],
        temporal_window=meta["window_size"][0],
        language_fusion=False,
    )
    backbone = LanguageBackbone(config, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kinetics.pth"
        torch.save(weights(arrays), path)
        load_kinetics(backbone, path)
    backbone.norms = nn.ModuleList(nn.Identity() for _ in backbone.norms)
    length = info["video"][1]
    for i, features in enumerate(backbone.eval()(torch.from_numpy(arrays["input/frames"]), None, None, length)):
        parity.close(f"stage {i}", features, arrays[f"output/stage{i}"])


def check_biattention(arrays: Arrays, info: dict[str, Any], parity: Parity) -> None:
    meta = info["meta"]
    block = BiAttention(meta["v_dim"], meta["l_dim"], meta["embed_dim"], meta["heads"])
    fit(block, arrays, "vita_module.fusion_layers.0.", "decoder.layers.0.fusion.")
    for case in cases(arrays, "v"):
        given = case_of(arrays, case)
        v, words = block(given["v"].transpose(0, 1), given["l"].transpose(0, 1), ~given["mask_l"][:, None, None])
        parity.close(f"{case} v", v.transpose(0, 1), given["v_out"])
        parity.close(f"{case} l", words.transpose(0, 1), given["l_out"])


# --- language


def check_resizer(arrays: Arrays, info: dict[str, Any], parity: Parity) -> None:
    meta = info["meta"]
    resizer = feature_resizer(meta["in_dim"], meta["out_dim"])
    assert resizer.layer_norm.eps == meta["layer_norm_eps"]
    fit(resizer, arrays, "resizer.", "language.resizer.")
    parity.close("out", resizer(torch.from_numpy(arrays["x"])), arrays["out"])


def check_text(arrays: Arrays, info: dict[str, Any], parity: Parity) -> None:
    """Ids, padding with 0, the cut at 40 tokens, both groups, "don't" included."""
    if not ROBERTA_BPE.exists():
        pytest.skip("RoBERTa's vocabulary is not beside this checkout")
    language = LanguageConfig(split="release", max_tokens=40, normalise=False)
    tokenizer = TextTokenizer(ModelConfig(language=language, release=RELEASE), load_tokenizer(ROBERTA_BPE))
    batch = tokenizer([item["expression"] for item in info["expressions"]])
    for theirs, ours in (
        ("lang_tokens", "input_ids"),
        ("lang_mask", "mask"),
        ("static_map", "static"),
        ("motion_map", "motion"),
    ):
        parity.same(theirs, getattr(batch, ours).numpy().astype(arrays[theirs].dtype), arrays[theirs])
    assert (batch.input_ids[~batch.mask] == 0).all()
    assert batch.mask.all(dim=1).any(), "no sentence of the file was cut"


# --- losses


def release_contrastive_loss(anchor: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The multi-positive form that the authors' release trains with, in place of Eq. 9.

    It records what the release does; the package departs from it (docs/paper.md), whose own loss is not checked here.

    Args: anchor (C,); positives (P, C), rows of all expressions of its target, its own, already updated one
    included; negatives (N, C).
    """
    rows = torch.cat([positives, negatives])
    positive = torch.arange(len(rows), device=rows.device) < len(positives)
    cosines = F.cosine_similarity(rows, anchor[None])
    return multi_positive_loss((rows * anchor).sum(1), cosines, positive)


def multi_positive_loss(dots: Tensor, cosines: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy with several positives on raw dot products plus the squared error of the cosines.

    The positives enter the denominator by their mean. dots, cosines (R,) float; positive (R,) bool.
    """
    logits = dots - dots.max().detach()
    inside = logits[positive].exp().mean() + logits[~positive].exp().sum()
    entropy = inside.log() - logits[positive].mean()
    return 2 * entropy + (cosines - positive.float()).square().mean()


def updated(before: Tensor, rows: Tensor, anchors: Tensor) -> Tensor:
    """The memory bank after Eq. 8, with the release's delta."""
    bank = MemoryBank(*before.shape)
    bank.centroids.copy_(before)
    bank.visited.fill_(True)
    bank.update(rows, anchors, 0.1)
    return bank.centroids


def repeated(targets: SetTargets, layers: int) -> SetTargets:
    """The same targets for predictions of several layers, stacked along the batch."""
    return SetTargets(
        targets.masks.repeat(layers, 1, 1, 1, 1), targets.valid.repeat(layers, 1), targets.frames.repeat(layers, 1)
    )


def check_losses(arrays: Arrays, info: dict[str, Any], parity: Parity) -> None:
    given = arrays.tensors()
    points = info["meta"]["num_points"]
    for case in cases(arrays, "pred"):
        if not case.startswith("mp") or "pos_normalize=False" in golden.meaning(info, f"{case}/pred"):
            continue  # the release never asks for that form
        dots, cosines = (given[f"{case}/{name}"][0].clone().requires_grad_() for name in ("pred", "aux"))
        loss = multi_positive_loss(dots, cosines, given[f"{case}/label"][0] > 0)
        loss.backward()
        parity.close(f"{case} loss", loss[None], given[f"{case}/loss"])
        parity.close(f"{case} gradient", dots.grad, given[f"{case}/grad_pred"][0])
        parity.close(f"{case} gradient of cosines", cosines.grad, given[f"{case}/grad_aux"][0])
    masks = given["target/masks"][None]
    targets = SetTargets(
        masks, torch.ones(masks.shape[:2], dtype=torch.bool), torch.ones(1, masks.shape[2], dtype=torch.bool)
    )
    frames = targets.by_frame()
    parity.same("seen", frames.valid.T, given["target/ids"] >= 0)
    batch, queries = given["frame_out/pred_logits"].shape[:2]
    calls = len(given["frame/loss_points"])
    matches = []
    for call, layer in enumerate(["", *(f"aux{i}/" for i in range(calls - 1))]):
        prediction = SetPrediction(
            given[f"frame_out/{layer}pred_logits"], given[f"frame_out/{layer}pred_masks"][:, :, None]
        )
        drawn = given["frame/matcher_points"][batch * call : batch * (call + 1)]
        matches.append(tiny.match(prediction, frames, drawn))
        found = set_losses(
            prediction,
            frames,
            matches[-1],
            int(frames.valid.sum()),
            num_points=points,
            points=given["frame/loss_points"][call],
        )
        _same_losses(parity, found, given, "frame/loss_", call)
    last_three = [matches[call] for call in (calls - 2, calls - 1, 0)]
    for i, indices in enumerate(last_three):
        parity.same(f"frame matches {i}", indices, recorded_indices(given, f"frame/fg_indices{i}", queries))
    for case in sorted({key.split("/")[0] for key in given if key.startswith("clip") and "/loss_points" in key}):
        _check_clip_losses(parity, given, case, repeated(targets, 3), torch.stack(last_three), points)


def _check_clip_losses(
    parity: Parity, given: dict[str, Tensor], case: str, targets: SetTargets, frame_matches: Tensor, points: int
) -> None:
    layers, _, queries = given["clip_out/pred_logits"].shape[:3]
    video = None
    for call in range(len(given[f"{case}/loss_points"])):
        layer = f"aux{call - 1}/" if call else ""
        prediction = SetPrediction(
            given[f"clip_out/{layer}pred_logits"][:, 0], given[f"clip_out/{layer}pred_masks"][:, 0]
        )
        indices = tiny.match(prediction, targets, given[f"{case}/matcher_points"][layers * call : layers * (call + 1)])
        if video is None:
            video = indices
            parity.same(f"{case} matches", indices, recorded_indices(given, f"{case}/clip_indices", queries))
        number = int((indices >= 0).sum())
        found = set_losses(
            prediction, targets, indices, number, num_points=points, points=given[f"{case}/loss_points"][call]
        )
        _same_losses(parity, found, given, f"{case}/loss_vita_", call)
    assert video is not None
    similarity = similarity_loss(
        given["clip_out/pred_fq_embed"][:, 0], frame_matches, given["clip_out/pred_cq_embed"][:, 0], video
    )
    parity.close(f"{case} similarity", similarity[None], given[f"{case}/loss_vita_sim"])
    mean, _ = anchor(given["clip_out/pred_contrastive_embed"][2], video[2:])
    row = given[f"{case}/refer_id"]
    bank = updated(given["memory_before"], row.flatten(), mean)
    if f"{case}/memory_row_after" in given:
        parity.close(f"{case} memory row", bank[row][0], given[f"{case}/memory_row_after"])
    negatives = torch.cat([given[f"{case}/random_negatives"], given[f"{case}/distractors"]])
    loss = release_contrastive_loss(mean[0], bank[given[f"{case}/positives"]], bank[negatives])
    parity.close(f"{case} contrast", loss[None], given[f"{case}/loss_con_sim"])


def _same_losses(
    parity: Parity,
    found: dict[str, Tensor],
    given: dict[str, Tensor],
    prefix: str,
    call: int,
    scale: dict[str, float] | None = None,
) -> None:
    suffix = f"_{call - 1}" if call else ""
    for ours, theirs in (("cls", "ce"), ("mask", "mask"), ("dice", "dice")):
        value = found[ours] * (scale[ours] if scale else 1.0)
        wanted = given[f"{prefix}{theirs}{suffix}"]
        parity.close(f"{prefix}{theirs}{suffix}", value[None] / wanted, torch.ones(1))


# --- metrics


def check_metrics(arrays: Arrays, info: dict[str, Any], parity: Parity) -> None:
    def unpack(name: str, offsets: str, index: int, shape: np.ndarray) -> np.ndarray:
        start, end = arrays[offsets][index : index + 2]
        return np.unpackbits(arrays[name][start:end])[: shape.prod()].reshape(shape).astype(bool)

    def compare(index: int, j: float, f: float, void: np.ndarray | None = None) -> None:
        truth = unpack("annotation_bits", "offsets", index, arrays["shapes"][index])
        answer = unpack("segmentation_bits", "offsets", index, arrays["shapes"][index])
        got = [float(jf_frames(answer, truth, void)[0]), float(jf_frames(answer, truth, void)[1])]
        parity.close(f"pair {index}", torch.tensor(got, dtype=torch.float64), np.array([j, f]), 1e-9)

    for index in range(len(arrays["shapes"])):
        compare(index, arrays["J"][index], arrays["F"][index])
    for case, index in enumerate(arrays["void_pair_index"]):
        void = unpack("void_bits", "void_offsets", case, arrays["shapes"][index])
        compare(index, arrays["J_void"][case], arrays["F_void"][case], void)


# --- the whole model


class RecordedEncoder(nn.Module):
    """Stands in for the text encoder, whose outputs are recorded in place of its weights."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        for name in ("last_hidden_state", "pooler_output"):
            self.register_buffer(name, torch.from_numpy(arrays[f"text_{name}"]), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> "RecordedEncoder":
        return self


def whole_model(arrays: Arrays, recorded: Arrays, **switches: Any) -> DsHmp:
    """The model of `i_full_inference`'s weights, its config inferred from their shapes."""
    state = weights(arrays)
    config = infer_config(state | text_encoder(), motion_heads=None)
    config = replace(config, **{name: replace(getattr(config, name), **values) for name, values in switches.items()})
    model = DsHmp(config)
    ours = from_release(state | text_encoder())
    model.load_state_dict(ours)
    model.language.encoder = RecordedEncoder(recorded)
    return model


def text_encoder(vocabulary: int = 60) -> dict[str, Tensor]:
    """Parameters of a small text encoder as wide as the recorded one, in the release's names."""
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    model = RobertaModel(
        RobertaConfig(
            vocab_size=vocabulary,
            num_hidden_layers=1,
            intermediate_size=8,
            max_position_embeddings=44,
            type_vocab_size=1,
        )
    )
    return {f"text_encoder.{key}": value for key, value in model.state_dict().items()}


def text_batch(arrays: Arrays) -> TextBatch:
    ids, mask = (torch.from_numpy(arrays[name]) for name in ("lang_tokens", "lang_mask"))
    static, motion = (torch.from_numpy(arrays[name]).bool().view(1, -1) for name in ("static_map", "motion_map"))
    return TextBatch(ids, mask.bool(), static, motion)


def pictures(video: Tensor) -> list[np.ndarray]:
    return [np.ascontiguousarray(frame) for frame in video.permute(0, 2, 3, 1).numpy()]  # (T, 3, H, W) -> (H, W, 3)


def record_masks(patch: pytest.MonkeyPatch, layers: int) -> list[list[Tensor]]:
    """From now on the logits of masked attention are kept, by layer of the frame decoder and chunk of frames."""
    logits: list[list[Tensor]] = [[] for _ in range(layers)]
    calls = itertools.count()

    def watched(mask_embed: Tensor, features: Tensor) -> Tensor:
        logits[next(calls) % layers].append(mask_embed @ features)
        return inside(mask_embed, features)

    patch.setattr(frame_decoder, "inside", watched)
    return logits


def replay_masks(patch: pytest.MonkeyPatch, exact: list[list[Tensor]], parity: Parity, case: str) -> None:
    """Pixels whose exact logit is within 1e-5 of the threshold of masked attention, where rounding decides, lie on the
    exact logit's side. One that does not moves everything that hangs on its frame by 5e-4: in clip v4 of
    `i_full_inference`, pixel 100 of query 3 in frame 0, third layer, whose logit is -4e-6."""
    wanted = [torch.cat(chunks) for chunks in exact]  # by layer (T, N, S)
    calls, starts = itertools.count(), [0] * len(wanted)

    def watched(mask_embed: Tensor, features: Tensor) -> Tensor:
        layer = next(calls) % len(wanted)
        first = starts[layer]
        starts[layer] += len(features)
        logits = wanted[layer][first : starts[layer]]
        found = mask_embed @ features >= 0
        pixels = torch.where(logits.abs() < 1e-5, logits >= 0, found)
        for frame, query, pixel in (pixels != found).nonzero().tolist():
            place = f"layer {layer}, frame {first + frame}, query {query}, pixel {pixel}"
            parity.lines.append(f"  {case} {place}: on its threshold, logit {float(logits[frame, query, pixel]):.1e}")
        assert (pixels != found).sum() <= 1, f"{case}: more than one pixel flips"
        return pixels | ~pixels.any(dim=-1, keepdim=True)

    patch.setattr(frame_decoder, "inside", watched)


def check_inference(arrays: Arrays, info: dict[str, Any], parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    base = golden.load("i_full_inference")[0]
    base = Recorded({**base, **arrays.chosen(lambda key: "/" not in key or key.startswith("param/"))})
    for case in cases(arrays, "video"):
        given = case_of(arrays, case)
        size = tuple(given["video"].shape[2:])
        settings = {"input": {"short_side": min(size), "long_side": max(size), "chunk": 4}}
        model = whole_model(base, base, **settings).eval()
        config = model.config
        text = model.language(text_batch(base))
        if "resized_tokens" in base:
            parity.close("words", text.tokens, base["resized_tokens"])
            parity.close("sentence", text.sentence, base["resized_sentence"])
        images = prepare_frames(pictures(given["video"]), config.input)
        tied = bool(len(images) % config.motion.window)
        with monkeypatch.context() as patch:
            masks = record_masks(patch, config.frame_decoder.layers)
            watch_matching(patch, parity, case, steps_by_block(given, config.motion.blocks), tied)
            ((_, exact),) = copy.deepcopy(model).double()([images.double()], doubled(text))
        with monkeypatch.context() as patch:
            replay_masks(patch, masks, parity, case)
            watch_matching(patch, parity, case, steps_by_block(given, config.motion.blocks), tied)
            ((video, logits),) = model([images], text)
        # what is recorded is rounded as one processor does it; another one's float32 may lie as far from exact
        parity.close(f"{case} float32 beside float64", logits, exact, 1e-4)
        with monkeypatch.context() as patch:
            replay_masks(patch, masks, parity, case)
            seen = [model.encode(part, text) for part in images.split(3)]
        recorded = {
            "frame_queries": torch.cat([part.tokens for part in seen]),
            "frame_pred_logits": torch.cat([part.logits for part in seen]),
            "mask_features": torch.cat([model.mask_pixels(part) for part in seen]),
        }
        for key in recorded.keys() & given.keys():
            parity.close(f"{case} {key}", recorded[key], given[key], 1e-4)
        for theirs, ours in VIDEO_OUTPUTS.items():
            if f"vita_{theirs}" in given:
                parity.close(f"{case} {theirs}", attrgetter(ours)(video), given[f"vita_{theirs}"][:, 0], 1e-4)
        for readout in ("mevis", "top1"):
            if f"{case}_{readout}/pred_masks" in arrays:
                check_readout(
                    case_of(arrays, f"{case}_{readout}"),
                    video,
                    logits,
                    exact,
                    size,
                    given,
                    config,
                    readout,
                    parity,
                    case,
                )


def check_readout(
    wanted: dict[str, Tensor],
    video: VideoTokens,
    logits: Tensor,
    exact: Tensor,
    size: tuple[int, ...],
    given: dict[str, Tensor],
    config: ModelConfig,
    readout: str,
    parity: Parity,
    case: str,
) -> None:
    scores = video.logits[0].softmax(-1)[:, 0]
    chosen = (scores > config.readout.threshold).nonzero()[:, 0] if readout == "mevis" else scores.argmax()[None]
    (at_input, at_output), (exact_input, exact_output) = (
        _resized(each[chosen], size, given, config) for each in (logits, exact)
    )
    what = f"{case} {readout}"
    if "mask_logits_stride4" in wanted:
        parity.close(f"{what} logits at stride 4", exact[chosen], wanted["mask_logits_stride4"], 1e-4)
    if "mask_logits_input_crop" in wanted:
        parity.close(f"{what} logits at the input's size", exact_input, wanted["mask_logits_input_crop"], 1e-4)
    if "mask_logits_output" in wanted:
        parity.close(f"{what} logits", exact_output, wanted["mask_logits_output"], 1e-4)
    quality = Quality(len(chosen))
    quality.add(at_input)
    reported = scores[chosen].double() * torch.tensor(quality.means(), dtype=torch.float64)
    parity.close(f"{what} scores", reported, wanted["pred_scores"])
    sure = (at_output.abs() > 1e-4).all(0)
    union = (at_output > 0).any(0)
    parity.same(f"{what} masks", union[sure], wanted["pred_masks"][0].bool()[sure])
    assert (~sure).float().mean() < 1e-3


def _resized(
    logits: Tensor, size: tuple[int, ...], given: dict[str, Tensor], config: ModelConfig
) -> tuple[Tensor, Tensor]:
    """At the size of the network's input, and of the video."""
    at_input = input_masks(logits, size, config.input)  # type: ignore[arg-type]
    return at_input, output_masks(at_input, tuple(given["height_width"].tolist()))


def doubled(value: Any) -> Any:
    """Float tensors as float64, inside dataclasses too."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    fields = {field.name: doubled(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return type(value)(**fields)


def check_train_step(arrays: Arrays, info: dict[str, Any], parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradient norms of one step of the release's training, its random draws replayed, in float64 and in
    float32, whose norms are rounded otherwise by every processor and number of threads: where one is further from the
    recorded norm, which is rounded too, than from the exact one, it is compared with that."""
    exact = train_step(arrays, info, Unasked(), torch.float64)
    for key, ratio in train_step(arrays, info, parity, torch.float32).items():
        # One unit of the pixel decoder's ReLU lies within rounding of its kink; which side it falls on moves the
        # gradients of everything before it (an input scaled by 1 - 1e-5 gives the recorded ones).
        bound = 1e-2 if "backbone." in key or "pixel_decoder." in key else 2e-5
        recorded = torch.ones(1, dtype=torch.float64)
        parity.close(f"{key} in float64", exact[key], recorded, bound)
        nearest = exact[key] if abs(ratio - exact[key]) < abs(ratio - 1) else recorded
        parity.close(key, ratio, nearest, bound)


def train_step(arrays: Arrays, info: dict[str, Any], parity: Parity, dtype: torch.dtype) -> dict[str, Tensor]:
    """Compares everything but the gradients' norms, which it returns in parts of the recorded ones."""
    base, _ = golden.load("i_full_inference")
    given = arrays.tensors()
    for key, value in given.items():
        given[key] = value.to(dtype) if value.is_floating_point() else value
    size = tuple(given["video"].shape[2:])
    model = whole_model(
        base,
        arrays,
        input={"short_side": min(size), "long_side": max(size)},
        language={"dropout": 0.0},
        backbone={"drop_path": 0.0},
        frame_decoder={"dropout": 0.0},
        motion={"dropout": 0.0},
    ).train()
    model.to(dtype)
    text = model.language(text_batch(base | {key: arrays[key] for key in ("lang_tokens", "lang_mask")}))
    images = prepare_frames(pictures(given["video"]), model.config.input).to(dtype)
    padded = images.shape[-2:]
    masks = F.pad(given["gt_masks"], (0, padded[1] - size[1], 0, padded[0] - size[0]))[None]
    targets = SetTargets(
        masks, torch.ones(masks.shape[:2], dtype=torch.bool), torch.ones(1, len(images), dtype=torch.bool)
    )
    frames = targets.by_frame()
    parity.same("seen", frames.valid.T, given["gt_ids"] >= 0)
    state = model.encode(images, text)
    heads = state.layers[-len(given["frame_queries"]) :]
    tokens = torch.stack([head.tokens for head in heads])
    parity.close("frame tokens", tokens, given["frame_queries"], 1e-4)
    layers = len(tokens)
    rows = torch.zeros(layers, dtype=torch.long)
    video = model.decode_motion(Candidates(torch.ones(tokens.shape[:2], dtype=torch.bool), tokens), text.repeat(rows))
    parity.close("video logits", video.logits, given["vita_pred_logits"][:, 0], 1e-4)
    parity.close("contrast", video.contrast, given["vita_pred_contrastive_embed"][:, 0], 1e-4)
    features = model.mask_pixels(state).expand(layers, -1, -1, -1, -1)
    objects = torch.einsum("ltnc,tchw->ltnhw", torch.stack([head.mask_embed for head in heads]), state.mask_features)
    video_masks = [layer.readout.clip_masks(objects, features) for layer in video.layers]
    parity.close("video masks", video_masks[-1], given["vita_pred_masks"][:, 0], 1e-4)

    losses: list[Tensor] = []
    scale = {"cls": 2.0, "mask": 5.0, "dice": 5.0}
    points = info["meta"]["num_points"]

    def supervise(outputs: list[SetPrediction], truth: SetTargets, level: str, prefix: str) -> list[Tensor]:
        """Last layer first, then the earlier ones; the matches in that order."""
        matches = []
        batch = len(truth.masks)
        for call, prediction in enumerate([outputs[-1], *outputs[:-1]]):
            drawn = given[f"{level}_matcher_points"][batch * call : batch * (call + 1)]
            matches.append(tiny.match(prediction, truth, drawn))
            found = set_losses(
                prediction,
                truth,
                matches[-1],
                int(truth.present.sum()),
                num_points=points,
                points=given[f"{level}_loss_points{call}"],
            )
            _same_losses(parity, found, given, prefix, call, scale)
            losses.extend(scale[name] * value for name, value in found.items())
        return matches

    by_frame = [
        SetPrediction(head.logits, torch.einsum("fnc,fchw->fnhw", head.mask_embed, state.mask_features)[:, :, None])
        for head in state.layers
    ]
    frame_matches = supervise(by_frame, frames, "frame", "loss/loss_")
    by_clip = [SetPrediction(layer.logits, each) for layer, each in zip(video.layers, video_masks, strict=True)]
    clip_matches = supervise(by_clip, repeated(targets, layers), "clip", "loss/loss_vita_")

    last_three = torch.stack([*frame_matches[1:][-(layers - 1) :], frame_matches[0]])  # (L, T, N)
    similarity = similarity_loss(video.frame_similarity, last_three, video.similarity, clip_matches[0])
    parity.close("similarity", similarity[None] / given["loss/loss_vita_sim"], torch.ones(1))
    mean, _ = anchor(video.contrast[2:], clip_matches[0][2:])
    bank = updated(given["memory_before"], torch.tensor([40]), mean)
    parity.close("memory row", bank[40], given["memory_row_after"])
    same_video = torch.tensor([row for row in range(30, 45) if row not in (39, 40, 41)])
    negatives = torch.cat([given["random_negatives"], same_video])
    contrast = release_contrastive_loss(mean[0], bank[39:42], bank[negatives]) * 0.3 * info["meta"]["iteration"] / 2000
    parity.close("contrast loss", contrast[None] / given["loss/loss_con_sim"], torch.ones(1))
    total = torch.stack([*losses, similarity, contrast]).sum()
    parity.close("total", total[None] / given["total"], torch.ones(1))
    total.backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    theirs = as_release(gradients)
    return {
        key: theirs[key.split("/")[1]].norm()[None] / norm
        for key, norm in given.chosen(lambda key: key.startswith("grad_norm/")).items()
        if norm > 1e-4  # smaller ones are zero but for rounding
    }


KINDS: dict[str, Callable[..., None]] = {
    "a_": check_hierarchical_cross_attention,
    "b_": check_motion,
    "c_": check_frame_decoder,
    "d_": check_pixel_decoder,
    "e_": check_backbone,
    "f_": check_biattention,
    "g_": check_resizer,
    "h_losses": check_losses,
    "h_train_step": check_train_step,
    "i_": check_inference,
    "j_": check_text,
    "k_": check_metrics,
    "video_swin_": check_video_swin,
}
"""What the name of a file begins with."""
FILES = (
    *("a_hier_cross", "b_hmp_eval", "b_hmp_train", "b_hmp_train_T11", "b_hmp_window0", "c_frame_decoder_eval"),
    *("c_frame_decoder_train", "d_pixel_decoder", "e_backbone", "f_biattention", "g_resizer", "h_losses"),
    *("h_train_step", "i_full_inference", "i_long", "j_text", "k_metrics", "video_swin_a", "video_swin_b"),
)
if golden.NAMED:
    FILES = tuple(sorted(path.stem for path in golden.FOLDER.glob("*.npz")))
ON_THE_WAY = re.compile(
    r".*/(inverse_maps|stage\d|weight\d|enc_in|enc_out|enc_pad_mask|lang_feat_mean|match_cost|pred_labels|frac_masked"
    r"|attn_mask_rows_all_true|transformer_encoder_features)|ml/.*|mp3/.*|target/labels|\w+_boundary_bits"
)
"""Recorded values inside of a part, whose outcome is compared; and of losses the release does not use."""
NEEDS_REPLAY = (check_motion, check_inference, check_train_step)


@pytest.mark.parametrize("name", FILES)
def test_golden(name: str, parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, info = golden.load(name)
    check = next((check for kind, check in KINDS.items() if name.startswith(kind)), None)
    assert check is not None, f"{name}: no check knows this kind of file"
    with torch.set_grad_enabled(check in (check_motion, check_losses, check_train_step)):
        if check in NEEDS_REPLAY:
            check(arrays, info, parity, monkeypatch)
        else:
            check(arrays, info, parity)
    assert parity.count
    left = [each for each in arrays.left if not ON_THE_WAY.fullmatch(each)]
    assert not left, f"{name}: no check knows the arrays {left}"


@pytest.mark.slow
def test_recorded_masks_come_out_of_a_converted_checkpoint(tmp_path: Path) -> None:
    """The whole way: the release's file -> `convert` -> `Segmenter` on frames and a sentence -> masks and scores."""
    base, info = golden.load("i_full_inference")
    arrays, _ = golden.load("i_long")
    if not ROBERTA_BPE.exists():
        pytest.skip("RoBERTa's vocabulary is not beside this checkout")
    torch.save({"model": weights(base) | text_encoder(50265), "iteration": 55000}, tmp_path / "release.pth")
    convert(tmp_path / "release.pth", tmp_path / "model", ROBERTA_BPE)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    given = case_of(arrays, "v5")
    size = given["video"].shape[2:]
    config["model"]["input"] |= {"short_side": min(size), "long_side": max(size)}  # these frames are small already
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    segmenter = Segmenter.from_pretrained(tmp_path / "model", "cpu")
    segmenter.model.language.encoder = RecordedEncoder(base)
    for readout, targets in (("mevis", "many"), ("top1", "single")):
        if f"v5_{readout}/pred_masks" not in arrays:
            continue
        wanted = case_of(arrays, f"v5_{readout}")
        result = segmenter(np.stack(pictures(given["video"])), info["meta"]["sentence"], targets=targets)
        sure = (wanted["mask_logits_output"].abs() > 1e-4).all(0).numpy()
        assert (result.masks == wanted["pred_masks"][0].bool().numpy())[sure].all()
        np.testing.assert_allclose(
            sorted(item.score for item in result.objects), sorted(wanted["pred_scores"]), atol=1e-5
        )
    nothing = segmenter(np.stack(pictures(given["video"])), info["meta"]["sentence"], threshold=1.0)
    assert not nothing.masks.any()
    assert not nothing.objects
