"""The authors' checkpoint as a model of this program, and back: one table of names, sizes read off the shapes.

The release (https://github.com/heshuting555/DsHmp) and this program have the same parameters under other names. Two
things are more than names: Swin's queries, keys and values are one matrix there, and the pixel-word attention's linear
layers are convolutions of width 1. What the release keeps beside its parameters goes to `LEFT_OVERS`, so that the way
back gives every tensor bit by bit.
"""

import contextlib
import difflib
import logging
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dshmp.card import Card
from dshmp.checkpoint import (
    CONFIG,
    README,
    TOKENIZER,
    WEIGHTS,
    build_model,
    find_model,
    load_config,
    load_model,
    load_tensors,
    save_model,
)
from dshmp.config import (
    ROBERTA_BASE,
    BackboneConfig,
    FrameDecoderConfig,
    LanguageConfig,
    ModelConfig,
    MotionConfig,
    PixelDecoderConfig,
    to_dict,
)
from dshmp.errors import UserError
from dshmp.interop.reading import read_tensors
from dshmp.language.encoder import TextTokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger("dshmp")

LEFT_OVERS = "release.safetensors"
MEMORY_ROWS = 23051
"""Expressions in MeViS' training split, for which the release's memory bank is made."""


@dataclass(frozen=True)
class Entry:
    """One kind of tensor; `*` stands for a number and means the same on both sides.

    Attributes:
        theirs: its name in the release.
        ours: its name here; several names share the rows of theirs equally; none if it is not needed here.
        kernel: theirs has a last dimension of 1 more.
        reason: why it is not needed.
    """

    theirs: str
    ours: tuple[str, ...]
    kernel: bool = False
    reason: str = ""


Names = tuple[tuple[str, str], ...]


def _same(*names: str) -> Names:
    return tuple((name, name) for name in names)


def _inside(theirs: str, ours: str, names: Names) -> Names:
    return tuple((theirs + a, ours + b) for a, b in names)


def _entries(theirs: str, ours: str, names: Names) -> tuple[Entry, ...]:
    return tuple(Entry(a, (b,)) for a, b in _inside(theirs, ours, names))


def _unused(theirs: str, reason: str) -> Entry:
    return Entry(theirs, (), reason=reason)


AFFINE = _same("weight", "bias")
WEIGHT = _same("weight")
MLP = _inside("layers.*.", "layers.*.", AFFINE)
NORM = _inside("norm.", "norm.", AFFINE)
PACKED = _same("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
SELF_ATTENTION = _inside("self_attn.", "attention.", PACKED) + NORM
CROSS_ATTENTION = _inside("multihead_attn.", "attention.", PACKED) + NORM
FEED_FORWARD = _inside("linear1.", "linear1.", AFFINE) + _inside("linear2.", "linear2.", AFFINE) + NORM
BI_ATTENTION = (
    *_same("gamma_v", "gamma_l"),
    *_inside("layer_norm_v.", "norm_v.", AFFINE),
    *_inside("layer_norm_l.", "norm_l.", AFFINE),
    *_inside("attn.v_proj.", "proj_v.", AFFINE),
    *_inside("attn.l_proj.", "proj_l.", AFFINE),
    *_inside("attn.values_v_proj.", "value_v.", AFFINE),
    *_inside("attn.values_l_proj.", "value_l.", AFFINE),
    *_inside("attn.out_v_proj.", "out_v.", AFFINE),
    *_inside("attn.out_l_proj.", "out_l.", AFFINE),
)
PIXEL_WORD_ATTENTION = (
    ("vis_project.0.", "vision."),
    ("image_lang_att.f_key.0.", "key."),
    ("image_lang_att.f_query.0.", "query."),
    ("image_lang_att.f_value.0.", "value."),
    ("image_lang_att.W.0.", "gathered."),
    ("project_mm.0.", "output."),
)
STAGES = 3
STAGE_NAMES = tuple(
    pair
    for stage in range(STAGES)
    for pair in (
        *_inside(f"out{stage + 1}.", f"out.{stage}.", AFFINE),
        *_inside(f"norm{stage + 1}.", f"norm.{stage}.", AFFINE),
    )
)
ROBERTA_LAYER = tuple(
    pair
    for name in (
        "attention.self.query.",
        "attention.self.key.",
        "attention.self.value.",
        "attention.output.dense.",
        "attention.output.LayerNorm.",
        "intermediate.dense.",
        "output.dense.",
        "output.LayerNorm.",
    )
    for pair in _inside(name, name, AFFINE)
)

BLOCK, OUR_BLOCK = "backbone.layers.*.blocks.*.", "perception.backbone.stages.*.blocks.*."
PIXELS, OUR_PIXELS = "sem_seg_head.pixel_decoder.", "perception.pixel_decoder."
PIXEL_LAYER, OUR_PIXEL_LAYER = f"{PIXELS}transformer.encoder.layers.*.", f"{OUR_PIXELS}decoder.encoder.layers.*."
FRAMES, OUR_FRAMES = "sem_seg_head.predictor.", "perception.frame_decoder."
VIDEO = "vita_module."
TEXT, OUR_TEXT = "text_encoder.", "language.encoder."

TABLE: tuple[Entry, ...] = (
    *_entries("backbone.patch_embed.proj.", "perception.backbone.embeddings.patch_embeddings.projection.", AFFINE),
    *_entries("backbone.patch_embed.norm.", "perception.backbone.embeddings.norm.", AFFINE),
    *_entries(f"{BLOCK}norm1.", f"{OUR_BLOCK}layernorm_before.", AFFINE),
    Entry(
        f"{BLOCK}attn.relative_position_bias_table",
        (f"{OUR_BLOCK}attention.relative_position_bias.relative_position_bias_table",),
    ),
    _unused(f"{BLOCK}attn.relative_position_index", "follows from the window, computed anew"),
    *(
        Entry(f"{BLOCK}attn.qkv.{kind}", tuple(f"{OUR_BLOCK}attention.{part}_proj.{kind}" for part in "qkv"))
        for kind in ("weight", "bias")
    ),
    *_entries(f"{BLOCK}attn.proj.", f"{OUR_BLOCK}attention.o_proj.", AFFINE),
    *_entries(f"{BLOCK}norm2.", f"{OUR_BLOCK}layernorm_after.", AFFINE),
    *_entries(f"{BLOCK}mlp.fc1.", f"{OUR_BLOCK}mlp.fc1.", AFFINE),
    *_entries(f"{BLOCK}mlp.fc2.", f"{OUR_BLOCK}mlp.fc2.", AFFINE),
    *(
        Entry(f"backbone.layers.*.fusion.{a}{kind}", (f"perception.backbone.fusions.*.{b}{kind}",), kind == "weight")
        for a, b in PIXEL_WORD_ATTENTION
        for kind in ("weight", "bias")
    ),
    *_entries("backbone.layers.*.downsample.reduction.", "perception.backbone.stages.*.downsample.reduction.", WEIGHT),
    *_entries("backbone.layers.*.downsample.norm.", "perception.backbone.stages.*.downsample.norm.", AFFINE),
    *_entries("backbone.layers.*.res_gate.0.", "perception.backbone.gates.*.0.", WEIGHT),
    *_entries("backbone.layers.*.res_gate.2.", "perception.backbone.gates.*.2.", WEIGHT),
    *_entries("backbone.norm*.", "perception.backbone.norms.*.", AFFINE),
    *_entries(f"{PIXELS}input_proj.*.*.", f"{OUR_PIXELS}decoder.input_projections.*.*.", AFFINE),
    *_entries(f"{PIXELS}transformer.", f"{OUR_PIXELS}decoder.", _same("level_embed")),
    *(
        entry
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for entry in _entries(f"{PIXEL_LAYER}self_attn.{name}.", f"{OUR_PIXEL_LAYER}self_attn.{name}.", AFFINE)
    ),
    *_entries(f"{PIXEL_LAYER}norm1.", f"{OUR_PIXEL_LAYER}self_attn_layer_norm.", AFFINE),
    *_entries(f"{PIXEL_LAYER}linear1.", f"{OUR_PIXEL_LAYER}fc1.", AFFINE),
    *_entries(f"{PIXEL_LAYER}linear2.", f"{OUR_PIXEL_LAYER}fc2.", AFFINE),
    *_entries(f"{PIXEL_LAYER}norm2.", f"{OUR_PIXEL_LAYER}final_layer_norm.", AFFINE),
    *_entries(f"{PIXELS}mask_features.", f"{OUR_PIXELS}mask_projection.", AFFINE),
    *(
        entry
        for name in ("adapter_1", "layer_1")
        for entry in (
            *_entries(f"{PIXELS}{name}.", f"{OUR_PIXELS}decoder.{name}.0.", WEIGHT),
            *_entries(f"{PIXELS}{name}.norm.", f"{OUR_PIXELS}decoder.{name}.1.", AFFINE),
        )
    ),
    *_entries(f"{FRAMES}transformer_self_attention_layers.*.", f"{OUR_FRAMES}layers.*.self_attention.", SELF_ATTENTION),
    *_entries(
        f"{FRAMES}transformer_cross_attention_layers.*.", f"{OUR_FRAMES}layers.*.cross_attention.", CROSS_ATTENTION
    ),
    *_entries(f"{FRAMES}transformer_ffn_layers.*.", f"{OUR_FRAMES}layers.*.feed_forward.", FEED_FORWARD),
    *_entries(f"{FRAMES}fusion_layers.*.", f"{OUR_FRAMES}layers.*.fusion.", BI_ATTENTION),
    *_entries(f"{FRAMES}cross_test.*.", f"{OUR_FRAMES}layers.*.text_attention.", CROSS_ATTENTION),
    *_entries(f"{FRAMES}decoder_norm.", f"{OUR_FRAMES}norm.", AFFINE),
    *_entries(f"{FRAMES}query_feat.", f"{OUR_FRAMES}query_content.", WEIGHT),
    *_entries(f"{FRAMES}query_embed.", f"{OUR_FRAMES}query_position.", WEIGHT),
    *_entries(f"{FRAMES}level_embed.", f"{OUR_FRAMES}level_embed.", WEIGHT),
    *_entries(f"{FRAMES}class_embed.", f"{OUR_FRAMES}classify.", AFFINE),
    *_entries(f"{FRAMES}mask_embed.", f"{OUR_FRAMES}mask_embed.", MLP),
    *_entries(f"{FRAMES}cross_static.", f"{OUR_FRAMES}static_attention.", CROSS_ATTENTION),
    _unused("criterion.empty_weight", "class weights, for training only"),
    *_entries(f"{VIDEO}transformer_self_attention_layers.*.", "decoder.layers.*.self_attention.", SELF_ATTENTION),
    *_entries(f"{VIDEO}transformer_cross_attention_layers.*.", "decoder.layers.*.cross_attention.", CROSS_ATTENTION),
    *_entries(f"{VIDEO}transformer_ffn_layers.*.", "decoder.layers.*.feed_forward.", FEED_FORWARD),
    *_entries(f"{VIDEO}fusion_layers.*.", "decoder.layers.*.fusion.", BI_ATTENTION),
    *_entries(f"{VIDEO}cross_test.*.", "decoder.layers.*.text_attention.", CROSS_ATTENTION),
    *_entries(f"{VIDEO}enc_self_attn.*.", "motion.blocks.*.self_attention.", SELF_ATTENTION),
    *_entries(f"{VIDEO}hierarchical_cross.*.to_q.", "motion.blocks.*.cross_attention.query.", AFFINE),
    *_entries(f"{VIDEO}hierarchical_cross.*.to_k.", "motion.blocks.*.cross_attention.key.", AFFINE),
    *_entries(f"{VIDEO}hierarchical_cross.*.to_v.", "motion.blocks.*.cross_attention.value.", AFFINE),
    *_entries(f"{VIDEO}hierarchical_cross.*.", "motion.blocks.*.cross_attention.", STAGE_NAMES),
    *_entries(f"{VIDEO}hierarchical_cross.*.res_gate.0.", "motion.blocks.*.cross_attention.gate.0.", WEIGHT),
    *_entries(f"{VIDEO}hierarchical_cross.*.res_gate.2.", "motion.blocks.*.cross_attention.gate.2.", WEIGHT),
    *_entries(f"{VIDEO}enc_ffn.*.", "motion.blocks.*.feed_forward.", FEED_FORWARD),
    *_entries(f"{VIDEO}vita_mask_features.", "decoder.mask_features.", AFFINE),
    *_entries(f"{VIDEO}decoder_norm.", "decoder.norm.", AFFINE),
    *_entries(f"{VIDEO}query_feat.", "decoder.queries.content.", WEIGHT),
    *_entries(f"{VIDEO}query_embed.", "decoder.query_position.", WEIGHT),
    *_entries(f"{VIDEO}fq_pos.", "decoder.object_position.", WEIGHT),
    *_entries(f"{VIDEO}input_proj_dec.", "motion.input_projection.", AFFINE),
    *_entries(f"{VIDEO}class_embed.", "decoder.class_embed.", AFFINE),
    *_entries(f"{VIDEO}mask_embed.", "decoder.mask_embed.", MLP),
    *_entries(f"{VIDEO}sim_embed_frame.", "decoder.frame_similarity.", AFFINE),
    *_entries(f"{VIDEO}sim_embed_clip.", "decoder.similarity.", AFFINE),
    *_entries(f"{VIDEO}contrastive_embed.", "decoder.contrast.", MLP),
    *_entries(f"{VIDEO}cross_motion.", "decoder.queries.cross_attention.", CROSS_ATTENTION),
    _unused("vita_criterion.empty_weight", "class weights, for training only"),
    _unused("vita_criterion.train_memory_bank.features", "the memory bank, for training only"),
    *_entries("resizer.fc.", "language.resizer.fc.", AFFINE),
    *_entries("resizer.layer_norm.", "language.resizer.layer_norm.", AFFINE),
    _unused(f"{TEXT}embeddings.position_ids", "0, 1, 2 ..., as older transformers stored it"),
    *_entries(f"{TEXT}embeddings.word_embeddings.", f"{OUR_TEXT}embeddings.word_embeddings.", WEIGHT),
    *_entries(f"{TEXT}embeddings.token_type_embeddings.", f"{OUR_TEXT}embeddings.token_type_embeddings.", WEIGHT),
    *_entries(f"{TEXT}embeddings.LayerNorm.", f"{OUR_TEXT}embeddings.LayerNorm.", AFFINE),
    *_entries(f"{TEXT}embeddings.position_embeddings.", f"{OUR_TEXT}embeddings.position_embeddings.", WEIGHT),
    *_entries(f"{TEXT}encoder.layer.*.", f"{OUR_TEXT}encoder.layer.*.", ROBERTA_LAYER),
    *_entries(f"{TEXT}pooler.dense.", f"{OUR_TEXT}pooler.dense.", AFFINE),
)
"""Every tensor of the release, in its order."""

PARTS = {
    "text encoder": TEXT,
    "resizer": "resizer.",
    "backbone": "backbone.",
    "pixel decoder": PIXELS,
    "frame decoder": FRAMES,
    "motion": VIDEO,
}
"""Parts of the model and how their names begin in the release; `motion` is perception and decoder."""

STRANGERS = (
    (r"perception\.backbone\.", "a model of this program already"),
    (r"vita_module\.", "VITA's or one built on it"),
    (r"(module\.)?sem_seg_head\.", "Mask2Former's or one built on it"),
    (r"backbone\.layers\..*\.(fusion|res_gate)\.|text_encoder\.", "a part of a referring segmentation model"),
    (r"(backbone\.)?(layers|stages)\.\d+\.blocks\.", "a Swin backbone's alone"),
    (r"(roberta\.)?(embeddings|encoder)\.", "a text encoder's alone"),
)
"""What a checkpoint may be instead, by a name that it holds."""


# --- names


def from_release(state: Mapping[str, Tensor], prefix: str = "", own: str = "") -> dict[str, Tensor]:
    """Tensors of the release under our names; what is not needed here is dropped. Nothing is copied.

    Args:
        state: tensors by name, of the whole model or of a submodule.
        prefix: the submodule's place in the release, such as `vita_module.`, which its names lack.
        own: its place here, such as `decoder.`, to be left out.

    Raises:
        UserError: a name that the release has not.
    """
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        found = _find(prefix + key, theirs=True)
        if found is None:
            raise UserError(f"{prefix}{key} is no name of the release")
        entry, numbers = found
        if not entry.ours:
            continue
        if entry.kernel and value.ndim == 3:
            value = value.squeeze(-1)  # (C_out, C_in, 1) -> (C_out, C_in)
        if len(entry.ours) > 1 and value.ndim == 0:
            raise UserError(f"{prefix}{key} is a single number, not {len(entry.ours)} matrices in one")
        parts = value.tensor_split(len(entry.ours)) if len(entry.ours) > 1 else (value,)
        result.update(
            (_fill(name, numbers).removeprefix(own), part) for name, part in zip(entry.ours, parts, strict=True)
        )
    return result


def as_release(state: Mapping[str, Tensor], prefix: str = "", own: str = "") -> dict[str, Tensor]:
    """The inverse of `from_release`, in the release's order.

    Raises:
        ValueError: a parameter that the release has not, or a third of Swin's `qkv` without the others.
    """
    wholes: dict[str, tuple[Entry, list[str]]] = {}
    for key in state:
        found = _find(own + key, theirs=False)
        if found is None:
            raise ValueError(f"the release has no parameter like {own}{key}")
        entry, numbers = found
        wholes[_fill(entry.theirs, numbers)] = entry, [_fill(name, numbers).removeprefix(own) for name in entry.ours]
    result = {}
    for name in sorted(wholes, key=release_order):
        entry, keys = wholes[name]
        if lacking := [key for key in keys if key not in state]:
            raise ValueError(f"{name} needs {', '.join(lacking)} too")
        value = torch.cat([state[key] for key in keys]) if len(keys) > 1 else state[keys[0]]
        result[name.removeprefix(prefix)] = value[..., None] if entry.kernel else value
    return result


def release_order(name: str) -> tuple[tuple[int, int], ...]:
    """A key that sorts names of the release as its own `state_dict` does: by module, members of a list in turn."""
    found = _find(name, theirs=True)
    if found is None:
        raise ValueError(f"{name} is no name of the release")
    entry, numbers = found
    ranks, remaining = _ranks(), iter(numbers)
    return tuple(
        (ranks[path], int(next(remaining)) if "*" in path.rpartition(".")[2] else 0) for path in _paths(entry.theirs)
    )


def _paths(name: str) -> list[str]:
    """The modules on the way to a parameter, and itself."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


@cache
def _ranks() -> dict[str, int]:
    """The place at which each module or parameter first occurs in the table."""
    return {path: i for i, path in enumerate(dict.fromkeys(path for entry in TABLE for path in _paths(entry.theirs)))}


@cache
def _index(theirs: bool) -> dict[str, list[tuple[re.Pattern[str], Entry]]]:
    """The entries by their names with every number starred, which at most a few share."""
    index: dict[str, list[tuple[re.Pattern[str], Entry]]] = {}
    for entry in TABLE:
        for name in (entry.theirs,) if theirs else entry.ours:
            pattern = re.compile(re.escape(name).replace(r"\*", "([0-9]+)"))
            index.setdefault(_starred(name), []).append((pattern, entry))
    return index


def _starred(name: str) -> str:
    return re.sub("[0-9]+", "*", name)


def _find(name: str, theirs: bool) -> tuple[Entry, tuple[str, ...]] | None:
    """The entry of a name, and the numbers in the place of its stars."""
    for pattern, entry in _index(theirs).get(_starred(name), ()):
        if match := pattern.fullmatch(name):
            return entry, match.groups()
    return None


def _fill(name: str, numbers: tuple[str, ...]) -> str:
    remaining = iter(numbers)
    return re.sub(r"\*", lambda _: next(remaining), name)


# --- sizes and switches


def release_config(sizes: ModelConfig) -> ModelConfig:
    """`sizes` with every switch as in the authors' release; what each does is told at its field in config.py."""
    return replace(
        sizes,
        language=replace(
            sizes.language,
            frozen=True,
            split="release",
            cues="full",
            max_tokens=40,
            overlong="cut",
            pad_to_max=True,
            pad_token_id=0,
            normalise=True,
            resizer_norm_eps=1e-12,
        ),
        backbone=replace(sizes.backbone, language_fusion=True, temporal_window=None),
        frame_decoder=replace(sizes.frame_decoder, injection=0.1, language=True),
        motion=replace(
            sizes.motion,
            window=8,
            stages=STAGES,
            merge="mean",
            matching="inverse",
            window_shift="test",
            padded_frames="seen",
            position=False,
            displacement=False,
            injection=0.1,
        ),
        readout=replace(sizes.readout, masks="embedding", targets="many", threshold=0.5, score="quality"),
        input=replace(
            sizes.input,
            short_side=448,
            long_side=1333,
            divisor=32,
            mean=(123.675, 116.28, 103.53),
            std=(58.395, 57.12, 57.37),
            motion_fps=None,
            chunk=18,
            autocast="float16",
        ),
    )


def infer_config(state: Mapping[str, Tensor], motion_heads: int | None = None) -> ModelConfig:
    """The configuration of a checkpoint of the release: sizes from its shapes, switches from `release_config`.

    Args:
        state: its tensors by their names in the release.
        motion_heads: attention heads of motion perception and motion decoder, which leave no trace in the shapes;
            by default as many as in static perception.

    Raises:
        UserError: a tensor that shows a size is missing or has an impossible shape.
    """

    def size(name: str, axis: int = 0) -> int:
        if name not in state:
            raise UserError(f"{name} is missing")
        if state[name].ndim <= axis:
            raise UserError(f"{name} has shape {list(state[name].shape)}")
        return int(state[name].shape[axis])

    def count(prefix: str) -> int:
        return len({key[len(prefix) :].partition(".")[0] for key in state if key.startswith(prefix)})

    if state.get("backbone.patch_embed.proj.weight", torch.empty(0)).ndim == 5:
        raise UserError("its backbone is Video-Swin, which the release's own code does not have")
    hidden = size(f"{FRAMES}query_feat.weight", 1)
    width = size(f"{TEXT}embeddings.word_embeddings.weight", 1)
    stages = range(count("backbone.layers."))
    tables = [f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table" for i in stages]
    # heads x 3 levels x 4 points x 2 coordinates
    heads = size(f"{PIXEL_LAYER.replace('*', '0')}self_attn.sampling_offsets.bias") // 24
    if width % 64 or not width:
        raise UserError(f"the text encoder is {width} wide, and RoBERTa's heads are 64 wide")
    if motion_heads is not None and (motion_heads < 1 or hidden % motion_heads):
        raise UserError(f"{motion_heads} heads cannot share the hidden size {hidden}; --motion-heads must divide it")
    return release_config(
        ModelConfig(
            hidden_size=hidden,
            language=LanguageConfig(
                encoder={
                    **ROBERTA_BASE,
                    "vocab_size": size(f"{TEXT}embeddings.word_embeddings.weight"),
                    "hidden_size": width,
                    "num_hidden_layers": count(f"{TEXT}encoder.layer."),
                    "num_attention_heads": width // 64,
                    "intermediate_size": size(f"{TEXT}encoder.layer.0.intermediate.dense.weight"),
                    "max_position_embeddings": size(f"{TEXT}embeddings.position_embeddings.weight"),
                    "type_vocab_size": size(f"{TEXT}embeddings.token_type_embeddings.weight"),
                }
            ),
            backbone=BackboneConfig(
                embed_dim=size("backbone.patch_embed.proj.weight"),
                depths=tuple(count(f"backbone.layers.{i}.blocks.") for i in stages),
                num_heads=tuple(size(table, 1) for table in tables),
                window_size=(math.isqrt(size(tables[0])) + 1) // 2 if tables else 0,  # (2w - 1)^2 rows
            ),
            pixel_decoder=PixelDecoderConfig(
                layers=count(PIXEL_LAYER.partition("*")[0]),
                heads=heads,
                ffn=size(f"{PIXEL_LAYER.replace('*', '0')}linear1.weight"),
            ),
            frame_decoder=FrameDecoderConfig(
                queries=size(f"{FRAMES}query_feat.weight"),
                layers=count(f"{FRAMES}transformer_ffn_layers."),
                heads=heads,  # one value sets both in the release
                ffn=size(f"{FRAMES}transformer_ffn_layers.0.linear1.weight"),
            ),
            motion=MotionConfig(
                blocks=count(f"{VIDEO}enc_ffn."),
                queries=size(f"{VIDEO}query_feat.weight"),
                decoder_layers=count(f"{VIDEO}transformer_ffn_layers."),
                heads=motion_heads or heads,
                ffn=size(f"{VIDEO}transformer_ffn_layers.0.linear1.weight"),
                contrast_size=size(f"{VIDEO}contrastive_embed.layers.2.weight"),
            ),
        )
    )


# --- there


@dataclass(frozen=True)
class Report:
    """What a conversion found.

    Attributes:
        config: of the converted model.
        parts: per part of the model, the number of tensors (of the release) and of parameters.
        left_over: tensors that are not needed, counted by their name's kind, with the reason.
        assumed: what the file does not say, and what was done about it; for people.
    """

    config: ModelConfig
    parts: dict[str, tuple[int, int]]
    left_over: dict[str, tuple[int, str]]
    assumed: tuple[str, ...]


def convert(
    checkpoint: Path, out: Path, tokenizer: str | Path = "roberta-base", motion_heads: int | None = None
) -> Report:
    """Make a model's folder from the authors' checkpoint; every tensor of it is used once or kept as a left-over.

    Args:
        checkpoint: the file, in any format that `read_tensors` knows.
        out: the folder, which is written wholly or not at all; a model that is there is replaced.
        tokenizer: RoBERTa's, which the checkpoint lacks: a folder, a `tokenizer.json` or an id on the hub.
        motion_heads: as for `infer_config`.

    Raises:
        UserError: the file is no checkpoint of the release, or the tokeniser or the folder is not fit.
    """
    _check_folder(out)
    state = read_tensors(checkpoint)
    _check_kind(checkpoint, state)
    try:
        config = infer_config(state, motion_heads)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    with torch.device("meta"):  # shapes alone; the weights come from the file
        model = build_model(config, checkpoint)
    asked = as_release(model.state_dict())
    _check_names(checkpoint, state, asked)
    _check_shapes(checkpoint, state, asked, config.backbone.window_size)
    used = {key: state[key] for key in asked}
    rest = {key: value for key, value in state.items() if key not in used}
    text = TextTokenizer(config.language, _tokenizer(tokenizer, config.language.encoder["vocab_size"]))
    model.load_state_dict(from_release({key: value.float() for key, value in used.items()}), assign=True)
    with _whole_folder(out) as work:
        card = Card(name=out.resolve().name, source=f"the authors' checkpoint {checkpoint.name}, converted")
        save_model(model, text, work, card)
        _save(rest, work / LEFT_OVERS)
    return Report(config, _parts(used), _left_over(rest), _assumptions(config, used, motion_heads))


def print_report(report: Report) -> None:
    """The report as tables, to stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    table = Table("part", "tensors", "parameters", "sizes")
    for column in table.columns[1:3]:
        column.justify = "right"
    sizes = _sizes(report.config)
    for name, (tensors, parameters) in report.parts.items():
        table.add_row(name, str(tensors), f"{parameters:,}", sizes[name])
    total = [sum(column) for column in zip(*report.parts.values(), strict=True)]
    table.add_row("all", str(total[0]), f"{total[1]:,}", f"hidden size {report.config.hidden_size}", style="bold")
    console.print(table)
    if report.left_over:
        rest = Table("left over", "tensors", "why it is not needed")
        for name, (tensors, reason) in report.left_over.items():
            rest.add_row(name, str(tensors), reason)
        console.print(rest)
    for line in report.assumed:
        console.print(f"assumed: {line}", markup=False, highlight=False)


def _sizes(config: ModelConfig) -> dict[str, str]:
    """The sizes of each of `PARTS` in words."""
    encoder, backbone, pixels = config.language.encoder, config.backbone, config.pixel_decoder
    frames, motion = config.frame_decoder, config.motion
    depths, heads = ("-".join(map(str, values)) for values in (backbone.depths, backbone.num_heads))
    return {
        "text encoder": f"{encoder['num_hidden_layers']} layers of {encoder['hidden_size']}, "
        f"{encoder['num_attention_heads']} heads, vocabulary {encoder['vocab_size']}",
        "resizer": f"{encoder['hidden_size']} to {config.hidden_size}",
        "backbone": f"embedding {backbone.embed_dim}, depths {depths}, heads {heads}, window {backbone.window_size}",
        "pixel decoder": f"{pixels.layers} layers, {pixels.heads} heads, ffn {pixels.ffn}",
        "frame decoder": f"{frames.queries} queries, {frames.layers} layers, {frames.heads} heads, ffn {frames.ffn}",
        "motion": f"{motion.blocks} blocks of window {motion.window}, {motion.queries} queries, "
        f"{motion.decoder_layers} layers, {motion.heads} heads, ffn {motion.ffn}",
    }


def _check_kind(path: Path, state: Mapping[str, Tensor]) -> None:
    if any(key.startswith(f"{VIDEO}hierarchical_cross.") for key in state):
        return
    kinds = (kind for pattern, kind in STRANGERS if any(re.match(pattern, key) for key in state))
    if kind := next(kinds, None):
        raise UserError(f"{path}: is not a DsHmp checkpoint but, by its names, {kind}")
    raise UserError(f"{path}: is not a DsHmp checkpoint; its names begin with {_some(list(state))}")


def _check_names(path: Path, state: Mapping[str, Tensor], asked: Mapping[str, Tensor]) -> None:
    """Whether every parameter that the model asks for is there, and nothing else but left-overs."""
    missing = [key for key in asked if key not in state]
    extra = [key for key in state if key not in asked and not _is_left_over(key)]
    if extra:
        near = difflib.get_close_matches(extra[0], missing or list(asked), 1)
        hint = f"; {extra[0]} may be {near[0]}" if near else ""
        raise UserError(f"{path}: has {_some(extra)}, for which a DsHmp model of its sizes has no place{hint}")
    if missing:
        raise UserError(f"{path}: lacks {_some(missing)}; the checkpoint is not whole")


def _check_shapes(path: Path, state: Mapping[str, Tensor], asked: Mapping[str, Tensor], window: int) -> None:
    """Whether the parameters have the shapes that the model asks for, and the windows are laid out as ours."""
    if wrong := [key for key, value in asked.items() if state[key].shape != value.shape]:
        found, right = (list(tensors[wrong[0]].shape) for tensors in (state, asked))
        raise UserError(f"{path}: {wrong[0]} has shape {found}, the other sizes ask {right} ({len(wrong)} such in all)")
    if whole := [key for key in asked if not state[key].is_floating_point()]:
        raise UserError(f"{path}: {_some(whole)} hold whole numbers, no weights")
    index = relative_position_index(window)
    tables = {key: value for key, value in state.items() if key.endswith("relative_position_index")}
    for key, value in tables.items():
        if value.shape != index.shape:
            raise UserError(f"{path}: {key} has shape {list(value.shape)}, the window asks {list(index.shape)}")
    if odd := [key for key, value in tables.items() if not torch.equal(value, index)]:
        log.warning(
            "%s: %s differ from Swin's for a window of %d, which is what the model uses", path, _some(odd), window
        )


def _is_left_over(key: str) -> bool:
    found = _find(key, theirs=True)
    return found is not None and not found[0].ours


def _some(names: list[str]) -> str:
    """A few of the names, and how many there are."""
    return ", ".join(names[:3]) + (f" ... ({len(names)} in all)" if len(names) > 3 else "")


def _tokenizer(source: str | Path, vocabulary: int) -> "PreTrainedTokenizerFast":
    """The tokeniser of a text encoder with so many tokens."""
    try:
        tokenizer = load_tokenizer(source)
    except UserError as error:
        raise UserError(f"{error}: --tokenizer FOLDER") from None
    if (size := max(tokenizer.get_vocab().values()) + 1) != vocabulary:
        raise UserError(
            f"the tokeniser {str(source)!r} has {size} tokens, but the checkpoint's text encoder {vocabulary}; name a "
            "folder with the vocab.json and merges.txt that it was trained with: --tokenizer FOLDER"
        )
    return tokenizer


def _parts(used: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    sizes = {name: [v.numel() for k, v in used.items() if k.startswith(prefix)] for name, prefix in PARTS.items()}
    return {name: (len(values), sum(values)) for name, values in sizes.items()}


def _left_over(rest: Mapping[str, Tensor]) -> dict[str, tuple[int, str]]:
    entries = [found[0] for key in rest if (found := _find(key, theirs=True))]
    return {entry.theirs: (number, entry.reason) for entry, number in Counter(entries).items()}


def _assumptions(config: ModelConfig, used: Mapping[str, Tensor], motion_heads: int | None) -> tuple[str, ...]:
    motion, static = config.motion, config.frame_decoder
    lines = [f"motion.window = {motion.window} frames, the release's; the file does not show it"]
    if motion_heads is None:
        lines.append(f"motion.heads = {motion.heads}, as in static perception; --motion-heads says otherwise")
    lines.append(f"frame_decoder.heads = {static.heads}, as in the pixel decoder; one value sets both in the release")
    if other := sorted({str(value.dtype).removeprefix("torch.") for value in used.values()} - {"float32"}):
        lines.append(f"weights in {' and '.join(other)} are kept as float32")
    return tuple(lines)


# --- and back

CARRIERS = (
    "language.cues",
    "backbone.language_fusion",
    "backbone.temporal_window",
    "frame_decoder.language",
    "motion.window",
    "motion.stages",
    "motion.position",
    "motion.displacement",
    "readout.masks",
)
"""Switches that decide which parameters there are, or that the release's code cannot follow."""


def to_release(source: str | Path, out: Path) -> None:
    """Write a model as a checkpoint that the authors' code loads: `{"model": state}` under its names, in its order.

    What the release keeps beside the parameters comes from the model's left-overs, if it was converted, else it is
    made as a fresh model of theirs has it. Settings that differ without weights are told in a warning.

    Args:
        source: a model as for `load_model`.
        out: the file; safetensors if its name ends so, else torch's zip format.

    Raises:
        UserError: the model has parts that the authors' code cannot hold, or `out` exists.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; name a new file")
    folder = find_model(source)
    config = load_config(folder / CONFIG)
    _check_fit(folder, config)
    model, _ = load_model(source)
    state = as_release(model.state_dict()) | _beside(folder / LEFT_OVERS, config)
    state = {key: state[key].contiguous() for key in sorted(state, key=release_order)}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    try:
        if out.suffix == ".safetensors":
            _save(state, part)
        else:
            torch.save({"model": state}, part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _check_fit(folder: Path, config: ModelConfig) -> None:
    """Refuse what the authors' code has no place for, and warn of what it will do otherwise."""
    ours, theirs = (dict(_flat(to_dict(item))) for item in (config, release_config(config)))
    differing = [key for key in ours if ours[key] != theirs[key]]
    blocked = [f"{key} = {ours[key]} (not {theirs[key]})" for key in differing if key in CARRIERS]
    heads, pixel_heads = config.frame_decoder.heads, config.pixel_decoder.heads
    if heads != pixel_heads:
        blocked.append(f"frame_decoder.heads = {heads} (not {pixel_heads}, the pixel decoder's)")
    if blocked:
        raise UserError(f"{folder}: the authors' code has no place for {', '.join(blocked)}")
    fixed = {"pixel_decoder.ffn": 1024, "motion.contrast_size": 256}
    fixed |= {f"language.encoder.{key}": value for key, value in ROBERTA_BASE.items()}
    changed = [f"{key} = {ours[key]} (there {value})" for key, value in fixed.items() if ours.get(key, value) != value]
    if changed:
        log.warning("%s: the authors' code fixes %s; it has to be changed there", folder, ", ".join(changed))
    silent = [f"{key} = {ours[key]} (there {theirs[key]})" for key in differing if key not in CARRIERS]
    if silent:
        log.warning("%s: the authors' code reads these weights by its own rules, not %s", folder, ", ".join(silent))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values with dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def relative_position_index(window: int) -> Tensor:
    """The row of Swin's bias table for each pair of a window's pixels: int64 (w*w, w*w)."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = (axis.flatten()[:, None] - axis.flatten() + window - 1 for axis in (y, x))
    return rows * (2 * window - 1) + columns


def _beside(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """What the release keeps beside its parameters: as converted, where that was kept, else as it starts."""
    index = relative_position_index(config.backbone.window_size)
    fresh = {
        f"backbone.layers.{stage}.blocks.{block}.attn.relative_position_index": index.clone()  # a file shares no memory
        for stage, depth in enumerate(config.backbone.depths)
        for block in range(depth)
    }
    for name in ("criterion", "vita_criterion"):
        fresh[f"{name}.empty_weight"] = torch.tensor([1.0, 0.1])
    fresh["vita_criterion.train_memory_bank.features"] = torch.randn(
        MEMORY_ROWS, config.motion.contrast_size, generator=torch.Generator().manual_seed(0)
    )
    kept = load_tensors(path) if path.exists() else {}
    for key, value in kept.items():
        if not _is_left_over(key) or (key in fresh and value.shape[1:] != fresh[key].shape[1:]):
            raise UserError(f"{path}: {key} does not belong to this model; delete the file, and it is made anew")
    return fresh | kept


# --- files


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    path.chmod(mode)  # safetensors shuts out all but the owner


def _check_folder(out: Path) -> None:
    """Refuse to write over anything but a model."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a new folder for the model")
    names = {item.name for item in out.iterdir()}
    foreign = names - {CONFIG, WEIGHTS, TOKENIZER, README, LEFT_OVERS}
    if names and (foreign or CONFIG not in names):
        other = sorted(foreign or names)
        raise UserError(f"{out}: holds {_some(other)}, which is no model's; name a new folder")


@contextlib.contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` in the end; what was there goes only then."""
    target = out.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    try:
        yield work
        work.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old"))
            os.replace(target, old)
            try:
                os.replace(work, target)
            except BaseException:
                os.replace(old, target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
