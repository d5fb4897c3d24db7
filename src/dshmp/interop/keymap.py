"""Tables of names, read in both directions: another program's tensors and ours; and what became of each when loaded.

The authors' release (https://github.com/heshuting555/DsHmp) has the same parameters under other names, but the
pixel-word attention's linear layers as convolutions of width 1.
"""

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dshmp.common.errors import UserError


@dataclass(frozen=True)
class Rule:
    """One kind of tensor, its name there and here; `*` is a number, `**` any name, the same on both sides.

    Several on the right share its rows equally; none if it is not needed here, for the `reason`. A `kernel`, a matrix
    on the right, has a last dimension of 1 more on the left.
    """

    left: str
    right: tuple[str, ...]
    kernel: bool = False
    reason: str = ""


def _expand(text: str) -> list[str]:
    """`a.{b,c}` as a shell expands it; `@` stands for `{weight,bias}`, `@packed` for an attention in one matrix."""
    text = text.replace("@packed", "{in_proj_weight,in_proj_bias,out_proj.weight,out_proj.bias}")
    parts = re.split("[{}]", text.replace("@", "{weight,bias}"))
    return ["".join(chosen) for chosen in itertools.product(*(part.split(",") for part in parts))]


def _rules(text: str) -> Iterator[Rule]:
    """A rule a line: `left = right`, `left = right + right`, `left ~ right` (a kernel) or `left ! reason`.

    Without a right side the names are the same; `[left = right]` begins all that follow.
    """
    begin_left = begin_right = ""
    for line in filter(None, text.splitlines()):
        if line[0] == "[":
            begin_left, _, begin_right = line[1:-1].partition(" = ")
            continue
        left, mark, right = re.split(" ([=~!]) ?", line, maxsplit=1)
        names = _expand(begin_left + left)
        if mark == "!":
            yield from (Rule(name, (), reason=right) for name in names)
            continue
        rights = (_expand(begin_right + each) for each in (right or left).split(" + "))
        yield from (Rule(a, b, mark == "~") for a, b in zip(names, zip(*rights, strict=True), strict=True))


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*\*", "(.+)").replace(r"\*", "([0-9]+)"))


def _fill(name: str, stars: tuple[str, ...]) -> str:
    remaining = iter(stars)
    return re.sub(r"\*\*?", lambda _: next(remaining), name)


class NameTable:
    """Rules in the order in which they apply."""

    def __init__(self, text: str) -> None:
        self.rules = tuple(_rules(text))

    @functools.cached_property
    def _patterns(self) -> dict[bool, list[tuple[re.Pattern[str], Rule]]]:
        """Of the names on the left (True) and on the right."""
        return {
            True: [(_pattern(rule.left), rule) for rule in self.rules],
            False: [(_pattern(name), rule) for rule in self.rules for name in rule.right],
        }

    def find(self, name: str, left: bool) -> tuple[Rule, tuple[str, ...]] | None:
        """The rule of a name on the left or on the right, and what its stars stand for."""
        found = ((rule, pattern.fullmatch(name)) for pattern, rule in self._patterns[left])
        return next(((rule, match.groups()) for rule, match in found if match), None)

    def to_right(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tensors under their names on the right, and those that have none under their own. Nothing is copied."""
        placed, rest = {}, {}
        for key, value in state.items():
            rule, stars = self.find(key, left=True) or (Rule(key, ()), ())
            if not (count := len(rule.right)):
                rest[key] = value
            elif rule.kernel and value.ndim == 3:
                placed[_fill(rule.right[0], stars)] = value.squeeze(-1)  # (C_out, C_in, 1) -> (C_out, C_in)
            else:
                parts = value.tensor_split(count) if value.ndim else (value,) * count
                placed |= {_fill(name, stars): part for name, part in zip(rule.right, parts, strict=True)}
        return placed, rest

    def to_left(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The inverse; KeyError where one of several that belong together is not there."""
        placed, rest = {}, {}
        for key, value in state.items():
            if (found := self.find(key, left=False)) is None:
                rest[key] = value
                continue
            rule, stars = found
            if key == _fill(rule.right[0], stars):
                whole = torch.cat([state[_fill(name, stars)] for name in rule.right]) if rule.right[1:] else value
                placed[_fill(rule.left, stars)] = whole[..., None] if rule.kernel and whole.ndim == 2 else whole
        return placed, rest


Fate = Literal["loaded", "fresh", "left out"]
Told = tuple[str, Fate, str, Tensor]  # a tensor with its name or part, fate and reason


@dataclass(frozen=True)
class LoadedPart:
    """Parameters of one part that share a fate for the same reason. Loaded and fresh add up to the model, loaded and
    left out to the file, which may hold them split or packed."""

    part: str
    tensors: int
    parameters: int
    fate: Fate
    reason: str = ""


def some(names: Sequence[str]) -> str:
    """A few of the names, and how many there are."""
    return ", ".join(names[:3]) + (f" ... ({len(names)} in all)" if len(names) > 3 else "")


def check_match(path: str | Path, state: Mapping[str, Tensor], asked: Mapping[str, Tensor], advice: str) -> None:
    """Raises UserError, naming `path`, unless `state` has the names and shapes that are asked for."""
    missing, extra = sorted(asked.keys() - state.keys()), sorted(state.keys() - asked.keys())
    if faults := [f"{kind} {some(keys)}" for kind, keys in (("lacks", missing), ("has unknown", extra)) if keys]:
        raise UserError(f"{path}: {' and '.join(faults)}; {advice}")
    for key, value in asked.items():
        if (found := state[key].shape) != value.shape:
            raise UserError(f"{path}: {key} has shape {[*found]}, the config asks {[*value.shape]}; {advice}")


def load_weights(
    module: nn.Module, weights: Mapping[str, Tensor], fresh: Callable[[str], str | None], path: str | Path, advice: str
) -> list[Told]:
    """Load the weights; UserError, with `path` and `advice`, and nothing changed where they do not fit. `fresh` says
    why a tensor of this name starts fresh; None where it must be among the weights."""
    own = module.state_dict()
    whys = {key: fresh(key) for key in own}
    check_match(path, weights, {key: own[key] for key, why in whys.items() if why is None}, advice)
    module.load_state_dict(weights, strict=False)
    return [(key, "fresh" if why else "loaded", why or "", own[key]) for key, why in whys.items()]


def left_out(rest: Mapping[str, Tensor], names: NameTable, otherwise: str) -> list[Told]:
    """What has no place here, with the table's reason or the one given."""
    found = {key: names.find(key, left=True) for key in rest}
    return [(key, "left out", rule[0].reason if rule else otherwise, rest[key]) for key, rule in found.items()]


def grouped(tensors: Iterable[Told]) -> tuple[LoadedPart, ...]:
    """A row for all that share part (what a name begins with), fate and reason."""
    sizes: dict[tuple[str, Fate, str], list[int]] = defaultdict(list)
    for name, fate, why, tensor in tensors:
        sizes[name.partition(".")[0], fate, why].append(tensor.numel())
    return tuple(LoadedPart(name, len(found), sum(found), fate, why) for (name, fate, why), found in sizes.items())


def report(rows: Iterable[LoadedPart], title: str, stderr: bool = True) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    counts = (Column(name, justify="right") for name in ("tensors", "parameters"))
    table = Table("part", *counts, "fate", "reason", title=title, title_justify="left", title_style="")
    for item in rows:
        table.add_row(item.part, f"{item.tensors:,}", f"{item.parameters:,}", item.fate, item.reason)
    Console(stderr=stderr, markup=False, highlight=False).print(table)


SWIN_BLOCK = """
norm{1,2}.@ =
attn.relative_position_bias_table = attention.position_bias
attn.relative_position_index ! follows from the window, computed anew
attn.{qkv,proj}.@ = attention.{qkv,output}.@
mlp.fc{1,2}.@ = mlp.{0,2}.@
"""
TRANSFORMERS_BLOCK = """
norm{1,2}.@ = layernorm_{before,after}.@
attention.position_bias = attention.relative_position_bias.relative_position_bias_table
attention.qkv.@ = attention.q_proj.@ + attention.k_proj.@ + attention.v_proj.@
attention.output.@ = attention.o_proj.@
mlp.{0,2}.@ = mlp.fc{1,2}.@
"""
STAGES = 3
_DECODER_LAYERS = """
transformer_self_attention_layers.*.self_attn.@packed = layers.*.self_attention.attention.@packed
transformer_self_attention_layers.*.norm.@ = layers.*.self_attention.norm.@
transformer_cross_attention_layers.*.multihead_attn.@packed = layers.*.cross_attention.attention.@packed
transformer_cross_attention_layers.*.norm.@ = layers.*.cross_attention.norm.@
transformer_ffn_layers.*.{linear1,linear2,norm}.@ = layers.*.feed_forward.{linear1,linear2,norm}.@
fusion_layers.*.gamma_{v,l} = layers.*.fusion.gamma_{v,l}
fusion_layers.*.layer_norm_{v,l}.@ = layers.*.fusion.norm_{v,l}.@
fusion_layers.*.attn.{,values_,out_}{v,l}_proj.@ = layers.*.fusion.{proj,value,out}_{v,l}.@
cross_test.*.multihead_attn.@packed = layers.*.text_attention.attention.@packed
cross_test.*.norm.@ = layers.*.text_attention.norm.@
"""
_RELEASE = """
[backbone. = perception.backbone.]
patch_embed.{proj,norm}.@ = embeddings.{projection,norm}.@
norm*.@ = norms.*.@
[backbone.layers.*.blocks.*. = perception.backbone.stages.*.blocks.*.]
SWIN BLOCK
[backbone.layers.*. = perception.backbone.]
fusion.{vis_project,project_mm}.0.@ ~ fusions.*.{vision,output}.@
fusion.image_lang_att.{f_key,f_query,f_value,W}.0.@ ~ fusions.*.{key,query,value,gathered}.@
downsample.reduction.weight = stages.*.downsample.reduction.weight
downsample.norm.@ = stages.*.downsample.norm.@
res_gate.{0,2}.weight = gates.*.{0,2}.weight
[sem_seg_head.pixel_decoder. = perception.pixel_decoder.]
input_proj.*.*.@ = decoder.input_projections.*.*.@
transformer.level_embed = decoder.level_embed
mask_features.@ = mask_projection.@
{adapter_1,layer_1}.weight = decoder.{adapter_1,layer_1}.0.weight
{adapter_1,layer_1}.norm.@ = decoder.{adapter_1,layer_1}.1.@
[sem_seg_head.pixel_decoder.transformer.encoder.layers.*. = perception.pixel_decoder.decoder.encoder.layers.*.]
self_attn.{sampling_offsets,attention_weights,value_proj,output_proj}.@ =
{norm1,linear1,linear2,norm2}.@ = {self_attn_layer_norm,fc1,fc2,final_layer_norm}.@
[sem_seg_head.predictor. = perception.frame_decoder.]
DECODER LAYERS
{decoder_norm,class_embed}.@ = {norm,classify}.@
mask_embed.layers.*.@ =
{query_feat,query_embed,level_embed}.weight = {query_content,query_position,level_embed}.weight
cross_static.multihead_attn.@packed = static_attention.attention.@packed
cross_static.norm.@ = static_attention.norm.@
[vita_module. = decoder.]
DECODER LAYERS
{vita_mask_features,decoder_norm,class_embed}.@ = {mask_features,norm,class_embed}.@
{sim_embed_frame,sim_embed_clip}.@ = {frame_similarity,similarity}.@
{mask_embed,contrastive_embed}.layers.*.@ = {mask_embed,contrast}.layers.*.@
{query_feat,query_embed,fq_pos}.weight = {queries.content,query_position,object_position}.weight
cross_motion.multihead_attn.@packed = queries.cross_attention.attention.@packed
cross_motion.norm.@ = queries.cross_attention.norm.@
[vita_module. = motion.]
input_proj_dec.@ = input_projection.@
enc_self_attn.*.self_attn.@packed = blocks.*.self_attention.attention.@packed
enc_self_attn.*.norm.@ = blocks.*.self_attention.norm.@
hierarchical_cross.*.to_{q,k,v}.@ = blocks.*.cross_attention.{query,key,value}.@
hierarchical_cross.*.{out,norm}{1,2,3}.@ = blocks.*.cross_attention.{out,norm}.{0,1,2}.@
hierarchical_cross.*.res_gate.{0,2}.weight = blocks.*.cross_attention.gate.{0,2}.weight
enc_ffn.*.{linear1,linear2,norm}.@ = blocks.*.feed_forward.{linear1,linear2,norm}.@
[]
{criterion,vita_criterion}.empty_weight ! class weights, for training only
vita_criterion.train_memory_bank.features ! the memory bank, for training only
resizer.{fc,layer_norm}.@ = language.resizer.{fc,layer_norm}.@
[text_encoder. = language.encoder.]
embeddings.position_ids ! 0, 1, 2 ..., as older transformers stored it
embeddings.{word_embeddings,token_type_embeddings,position_embeddings}.weight =
{embeddings.LayerNorm,pooler.dense}.@ =
encoder.layer.*.attention.self.{query,key,value}.@ =
encoder.layer.*.{attention.output,output}.{dense,LayerNorm}.@ =
encoder.layer.*.intermediate.dense.@ =
"""
NAMES = NameTable(_RELEASE.replace("DECODER LAYERS", _DECODER_LAYERS).replace("SWIN BLOCK", SWIN_BLOCK))
"""Every tensor of the release."""
_BEFORE_4 = NameTable(f"""
perception.backbone.embeddings.projection.@ = perception.backbone.embeddings.patch_embeddings.projection.@
[perception.backbone.stages.*.blocks.*. = perception.backbone.stages.*.blocks.*.]
{TRANSFORMERS_BLOCK}
""")
"""What is named otherwise since version 4 of config.json: until then Swin had transformers' names."""


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model of version 1 to 3 under the names of today."""
    placed, rest = _BEFORE_4.to_left(state)
    return placed | rest


def from_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under our names; what has none is left out."""
    return NAMES.to_right(state)[0]


def as_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse. ValueError for a parameter that the release has not."""
    placed, rest = NAMES.to_left(state)
    if rest:
        raise ValueError(f"the release has no parameter like {next(iter(rest))}")
    return placed
