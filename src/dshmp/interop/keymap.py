"""The names of the authors' checkpoint and ours: one table, read in both directions.

The release (https://github.com/heshuting555/DsHmp) and this program have the same parameters under other names. Two
things are more than names: Swin's queries, keys and values are one matrix there, and the pixel-word attention's linear
layers are convolutions of width 1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from dshmp.errors import UserError


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

BLOCK_PREFIX, OUR_BLOCK_PREFIX = "backbone.layers.*.blocks.*.", "perception.backbone.stages.*.blocks.*."
PIXELS_PREFIX, OUR_PIXELS_PREFIX = "sem_seg_head.pixel_decoder.", "perception.pixel_decoder."
PIXEL_LAYER_PREFIX, OUR_PIXEL_LAYER_PREFIX = (
    f"{PIXELS_PREFIX}transformer.encoder.layers.*.",
    f"{OUR_PIXELS_PREFIX}decoder.encoder.layers.*.",
)
FRAMES_PREFIX, OUR_FRAMES_PREFIX = "sem_seg_head.predictor.", "perception.frame_decoder."
VIDEO_PREFIX = "vita_module."
TEXT_PREFIX, OUR_TEXT_PREFIX = "text_encoder.", "language.encoder."

TABLE: tuple[Entry, ...] = (
    *_entries("backbone.patch_embed.proj.", "perception.backbone.embeddings.patch_embeddings.projection.", AFFINE),
    *_entries("backbone.patch_embed.norm.", "perception.backbone.embeddings.norm.", AFFINE),
    *_entries(f"{BLOCK_PREFIX}norm1.", f"{OUR_BLOCK_PREFIX}layernorm_before.", AFFINE),
    Entry(
        f"{BLOCK_PREFIX}attn.relative_position_bias_table",
        (f"{OUR_BLOCK_PREFIX}attention.relative_position_bias.relative_position_bias_table",),
    ),
    _unused(f"{BLOCK_PREFIX}attn.relative_position_index", "follows from the window, computed anew"),
    *(
        Entry(
            f"{BLOCK_PREFIX}attn.qkv.{kind}", tuple(f"{OUR_BLOCK_PREFIX}attention.{part}_proj.{kind}" for part in "qkv")
        )
        for kind in ("weight", "bias")
    ),
    *_entries(f"{BLOCK_PREFIX}attn.proj.", f"{OUR_BLOCK_PREFIX}attention.o_proj.", AFFINE),
    *_entries(f"{BLOCK_PREFIX}norm2.", f"{OUR_BLOCK_PREFIX}layernorm_after.", AFFINE),
    *_entries(f"{BLOCK_PREFIX}mlp.fc1.", f"{OUR_BLOCK_PREFIX}mlp.fc1.", AFFINE),
    *_entries(f"{BLOCK_PREFIX}mlp.fc2.", f"{OUR_BLOCK_PREFIX}mlp.fc2.", AFFINE),
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
    *_entries(f"{PIXELS_PREFIX}input_proj.*.*.", f"{OUR_PIXELS_PREFIX}decoder.input_projections.*.*.", AFFINE),
    *_entries(f"{PIXELS_PREFIX}transformer.", f"{OUR_PIXELS_PREFIX}decoder.", _same("level_embed")),
    *(
        entry
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for entry in _entries(
            f"{PIXEL_LAYER_PREFIX}self_attn.{name}.", f"{OUR_PIXEL_LAYER_PREFIX}self_attn.{name}.", AFFINE
        )
    ),
    *_entries(f"{PIXEL_LAYER_PREFIX}norm1.", f"{OUR_PIXEL_LAYER_PREFIX}self_attn_layer_norm.", AFFINE),
    *_entries(f"{PIXEL_LAYER_PREFIX}linear1.", f"{OUR_PIXEL_LAYER_PREFIX}fc1.", AFFINE),
    *_entries(f"{PIXEL_LAYER_PREFIX}linear2.", f"{OUR_PIXEL_LAYER_PREFIX}fc2.", AFFINE),
    *_entries(f"{PIXEL_LAYER_PREFIX}norm2.", f"{OUR_PIXEL_LAYER_PREFIX}final_layer_norm.", AFFINE),
    *_entries(f"{PIXELS_PREFIX}mask_features.", f"{OUR_PIXELS_PREFIX}mask_projection.", AFFINE),
    *(
        entry
        for name in ("adapter_1", "layer_1")
        for entry in (
            *_entries(f"{PIXELS_PREFIX}{name}.", f"{OUR_PIXELS_PREFIX}decoder.{name}.0.", WEIGHT),
            *_entries(f"{PIXELS_PREFIX}{name}.norm.", f"{OUR_PIXELS_PREFIX}decoder.{name}.1.", AFFINE),
        )
    ),
    *_entries(
        f"{FRAMES_PREFIX}transformer_self_attention_layers.*.",
        f"{OUR_FRAMES_PREFIX}layers.*.self_attention.",
        SELF_ATTENTION,
    ),
    *_entries(
        f"{FRAMES_PREFIX}transformer_cross_attention_layers.*.",
        f"{OUR_FRAMES_PREFIX}layers.*.cross_attention.",
        CROSS_ATTENTION,
    ),
    *_entries(f"{FRAMES_PREFIX}transformer_ffn_layers.*.", f"{OUR_FRAMES_PREFIX}layers.*.feed_forward.", FEED_FORWARD),
    *_entries(f"{FRAMES_PREFIX}fusion_layers.*.", f"{OUR_FRAMES_PREFIX}layers.*.fusion.", BI_ATTENTION),
    *_entries(f"{FRAMES_PREFIX}cross_test.*.", f"{OUR_FRAMES_PREFIX}layers.*.text_attention.", CROSS_ATTENTION),
    *_entries(f"{FRAMES_PREFIX}decoder_norm.", f"{OUR_FRAMES_PREFIX}norm.", AFFINE),
    *_entries(f"{FRAMES_PREFIX}query_feat.", f"{OUR_FRAMES_PREFIX}query_content.", WEIGHT),
    *_entries(f"{FRAMES_PREFIX}query_embed.", f"{OUR_FRAMES_PREFIX}query_position.", WEIGHT),
    *_entries(f"{FRAMES_PREFIX}level_embed.", f"{OUR_FRAMES_PREFIX}level_embed.", WEIGHT),
    *_entries(f"{FRAMES_PREFIX}class_embed.", f"{OUR_FRAMES_PREFIX}classify.", AFFINE),
    *_entries(f"{FRAMES_PREFIX}mask_embed.", f"{OUR_FRAMES_PREFIX}mask_embed.", MLP),
    *_entries(f"{FRAMES_PREFIX}cross_static.", f"{OUR_FRAMES_PREFIX}static_attention.", CROSS_ATTENTION),
    _unused("criterion.empty_weight", "class weights, for training only"),
    *_entries(
        f"{VIDEO_PREFIX}transformer_self_attention_layers.*.", "decoder.layers.*.self_attention.", SELF_ATTENTION
    ),
    *_entries(
        f"{VIDEO_PREFIX}transformer_cross_attention_layers.*.", "decoder.layers.*.cross_attention.", CROSS_ATTENTION
    ),
    *_entries(f"{VIDEO_PREFIX}transformer_ffn_layers.*.", "decoder.layers.*.feed_forward.", FEED_FORWARD),
    *_entries(f"{VIDEO_PREFIX}fusion_layers.*.", "decoder.layers.*.fusion.", BI_ATTENTION),
    *_entries(f"{VIDEO_PREFIX}cross_test.*.", "decoder.layers.*.text_attention.", CROSS_ATTENTION),
    *_entries(f"{VIDEO_PREFIX}enc_self_attn.*.", "motion.blocks.*.self_attention.", SELF_ATTENTION),
    *_entries(f"{VIDEO_PREFIX}hierarchical_cross.*.to_q.", "motion.blocks.*.cross_attention.query.", AFFINE),
    *_entries(f"{VIDEO_PREFIX}hierarchical_cross.*.to_k.", "motion.blocks.*.cross_attention.key.", AFFINE),
    *_entries(f"{VIDEO_PREFIX}hierarchical_cross.*.to_v.", "motion.blocks.*.cross_attention.value.", AFFINE),
    *_entries(f"{VIDEO_PREFIX}hierarchical_cross.*.", "motion.blocks.*.cross_attention.", STAGE_NAMES),
    *_entries(f"{VIDEO_PREFIX}hierarchical_cross.*.res_gate.0.", "motion.blocks.*.cross_attention.gate.0.", WEIGHT),
    *_entries(f"{VIDEO_PREFIX}hierarchical_cross.*.res_gate.2.", "motion.blocks.*.cross_attention.gate.2.", WEIGHT),
    *_entries(f"{VIDEO_PREFIX}enc_ffn.*.", "motion.blocks.*.feed_forward.", FEED_FORWARD),
    *_entries(f"{VIDEO_PREFIX}vita_mask_features.", "decoder.mask_features.", AFFINE),
    *_entries(f"{VIDEO_PREFIX}decoder_norm.", "decoder.norm.", AFFINE),
    *_entries(f"{VIDEO_PREFIX}query_feat.", "decoder.queries.content.", WEIGHT),
    *_entries(f"{VIDEO_PREFIX}query_embed.", "decoder.query_position.", WEIGHT),
    *_entries(f"{VIDEO_PREFIX}fq_pos.", "decoder.object_position.", WEIGHT),
    *_entries(f"{VIDEO_PREFIX}input_proj_dec.", "motion.input_projection.", AFFINE),
    *_entries(f"{VIDEO_PREFIX}class_embed.", "decoder.class_embed.", AFFINE),
    *_entries(f"{VIDEO_PREFIX}mask_embed.", "decoder.mask_embed.", MLP),
    *_entries(f"{VIDEO_PREFIX}sim_embed_frame.", "decoder.frame_similarity.", AFFINE),
    *_entries(f"{VIDEO_PREFIX}sim_embed_clip.", "decoder.similarity.", AFFINE),
    *_entries(f"{VIDEO_PREFIX}contrastive_embed.", "decoder.contrast.", MLP),
    *_entries(f"{VIDEO_PREFIX}cross_motion.", "decoder.queries.cross_attention.", CROSS_ATTENTION),
    _unused("vita_criterion.empty_weight", "class weights, for training only"),
    _unused("vita_criterion.train_memory_bank.features", "the memory bank, for training only"),
    *_entries("resizer.fc.", "language.resizer.fc.", AFFINE),
    *_entries("resizer.layer_norm.", "language.resizer.layer_norm.", AFFINE),
    _unused(f"{TEXT_PREFIX}embeddings.position_ids", "0, 1, 2 ..., as older transformers stored it"),
    *_entries(f"{TEXT_PREFIX}embeddings.word_embeddings.", f"{OUR_TEXT_PREFIX}embeddings.word_embeddings.", WEIGHT),
    *_entries(
        f"{TEXT_PREFIX}embeddings.token_type_embeddings.", f"{OUR_TEXT_PREFIX}embeddings.token_type_embeddings.", WEIGHT
    ),
    *_entries(f"{TEXT_PREFIX}embeddings.LayerNorm.", f"{OUR_TEXT_PREFIX}embeddings.LayerNorm.", AFFINE),
    *_entries(
        f"{TEXT_PREFIX}embeddings.position_embeddings.", f"{OUR_TEXT_PREFIX}embeddings.position_embeddings.", WEIGHT
    ),
    *_entries(f"{TEXT_PREFIX}encoder.layer.*.", f"{OUR_TEXT_PREFIX}encoder.layer.*.", ROBERTA_LAYER),
    *_entries(f"{TEXT_PREFIX}pooler.dense.", f"{OUR_TEXT_PREFIX}pooler.dense.", AFFINE),
)
"""Every tensor of the release, in its order."""


def from_release(state: Mapping[str, Tensor], prefix: str = "", own_prefix: str = "") -> dict[str, Tensor]:
    """Tensors of the release under our names; what is not needed here is dropped. Nothing is copied.

    Args:
        state: tensors by name, of the whole model or of a submodule.
        prefix: the submodule's place in the release, such as `vita_module.`, which its names lack.
        own_prefix: its place here, such as `decoder.`, to be left out.

    Raises:
        UserError: a name that the release has not.
    """
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        found = find(prefix + key, theirs=True)
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
            (_fill(name, numbers).removeprefix(own_prefix), part) for name, part in zip(entry.ours, parts, strict=True)
        )
    return result


def as_release(state: Mapping[str, Tensor], prefix: str = "", own_prefix: str = "") -> dict[str, Tensor]:
    """The inverse of `from_release`, in the release's order.

    Raises:
        ValueError: a parameter that the release has not, or a third of Swin's `qkv` without the others.
    """
    wholes: dict[str, tuple[Entry, list[str]]] = {}
    for key in state:
        found = find(own_prefix + key, theirs=False)
        if found is None:
            raise ValueError(f"the release has no parameter like {own_prefix}{key}")
        entry, numbers = found
        wholes[_fill(entry.theirs, numbers)] = (
            entry,
            [_fill(name, numbers).removeprefix(own_prefix) for name in entry.ours],
        )
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
    found = find(name, theirs=True)
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


def find(name: str, theirs: bool) -> tuple[Entry, tuple[str, ...]] | None:
    """The entry of a name, and the numbers in the place of its stars."""
    for pattern, entry in _index(theirs).get(_starred(name), ()):
        if match := pattern.fullmatch(name):
            return entry, match.groups()
    return None


def _fill(name: str, numbers: tuple[str, ...]) -> str:
    remaining = iter(numbers)
    return re.sub(r"\*", lambda _: next(remaining), name)
