"""Start static perception from Mask2Former's instance segmentation weights (COCO), as the paper does: those of
transformers' Mask2FormerForUniversalSegmentation, or the original program's file (detectron2's .pkl, or the same names
in a .pth or .safetensors file)."""

import functools
import re
from pathlib import Path

import torch
from torch import Tensor

from dshmp.checkpoint import check_finite
from dshmp.common.errors import UserError
from dshmp.common.files import reason
from dshmp.common.hub import looks_local
from dshmp.config import ModelConfig
from dshmp.interop.keymap import NAMES, TRANSFORMERS_BLOCK, LoadedPart, NameTable, Told, grouped, left_out, load_weights
from dshmp.interop.safe_load import read_tensors
from dshmp.model.dshmp import DsHmp

_TRANSFORMERS = NameTable(
    """
[backbone. = model.pixel_level_module.encoder.swin.]
embeddings.projection.@ = embeddings.patch_embeddings.projection.@
embeddings.norm.@ =
stages.*.downsample.** = encoder.layers.*.downsample.**
[backbone.stages.*.blocks.*. = model.pixel_level_module.encoder.swin.encoder.layers.*.blocks.*.]
SWIN BLOCK
[backbone. = model.pixel_level_module.encoder.]
norms.{0,1,2,3}.@ = hidden_states_norms.stage{1,2,3,4}.@
[pixel_decoder. = model.pixel_level_module.decoder.]
mask_projection.@ =
decoder.** = **
[frame_decoder. = model.transformer_module.]
query_content.weight = queries_features.weight
query_position.weight = queries_embedder.weight
level_embed.weight =
norm.@ = decoder.layernorm.@
mask_embed.layers.{0,1,2}.@ = decoder.mask_predictor.mask_embedder.{0,1,2}.0.@
[frame_decoder.layers.*. = model.transformer_module.decoder.layers.*.]
self_attention.attention.in_proj_@ = self_attn.q_proj.@ + self_attn.k_proj.@ + self_attn.v_proj.@
self_attention.attention.out_proj.@ = self_attn.out_proj.@
self_attention.norm.@ = self_attn_layer_norm.@
cross_attention.attention.@packed = cross_attn.@packed
cross_attention.norm.@ = cross_attn_layer_norm.@
feed_forward.linear{1,2}.@ = fc{1,2}.@
feed_forward.norm.@ = final_layer_norm.@
[frame_decoder. = ]
classify.@ = class_predictor.@
""".replace("SWIN BLOCK", TRANSFORMERS_BLOCK)
)
"""Our names and transformers'."""
_QUERIES = ("frame_decoder.query_content.weight", "frame_decoder.query_position.weight")
_TEXT = re.compile(r"backbone\.(fusions|gates)|frame_decoder\.(static_attention|layers\.\d+\.(fusion|text_attention))")
_LAYER = re.compile(r"frame_decoder\.layers\.(\d+)\.")


@torch.no_grad()
def initialise(model: DsHmp, source: str | Path) -> tuple[LoadedPart, ...]:
    """Put Mask2Former's weights into the static perception of a fresh model, and tell what became of all.

    The first `frame_decoder.queries` queries are kept (as the release does). What reads the sentence, the classes
    (object or none) and everything but static perception stay as they are; so does the backbone of a model with a
    `temporal_window`, and the words stand in for the queries' content where `language.cues` is `direct`.

    `source` is a folder or hub id of transformers' Mask2Former with a Swin backbone, or a file in the original names.
    UserError where it cannot be read, is no Mask2Former, or was made for other sizes than the model's config gives.
    """
    config, count = model.config, model.config.frame_decoder.queries
    placed, rest = _weights(source, config)
    found = [int(layer[1]) + 1 for key in placed if (layer := _LAYER.match(key))]
    layers = min(config.frame_decoder.layers, max(found, default=0))
    kept_apart = functools.partial(_kept_apart, config=config, layers=layers)
    weights: dict[str, Tensor] = {}
    left: list[Told] = []
    for key, value in placed.items():
        if why := kept_apart(key):
            left.append((key, "left out", why, value))
        elif key in _QUERIES and value.ndim and len(value) > count:
            weights[key], beyond = value.tensor_split([count])
            left.append((key, "left out", f"queries beyond the first {count}", beyond))
        else:
            weights[key] = value
    advice = "mend the sizes of that part in the recipe's model"
    told = load_weights(model.perception, weights, kept_apart, source, advice)
    for key, value in model.state_dict().items():
        if not key.startswith("perception."):
            told.append((key, "fresh", "no part of Mask2Former", value))
    return grouped([*told, *left, *left_out(rest, NAMES, "no counterpart here")])


def _kept_apart(key: str, config: ModelConfig, layers: int) -> str | None:
    """Why a parameter of static perception starts fresh, if so; `layers` is how many decoder layers both have."""
    layer, video = _LAYER.match(key), config.backbone.temporal_window is not None
    reasons = {
        "Video-Swin takes its weights from video_swin": video and key.startswith("backbone."),
        "reads the sentence": _TEXT.match(key),
        "object or none here, other classes there": key.startswith("frame_decoder.classify."),
        f"decoder layers beyond the first {layers}": layer and int(layer[1]) >= layers,
        "the words are the queries (language.cues: direct)": key == _QUERIES[0] and config.language.cues == "direct",
    }
    return next((why for why, true in reasons.items() if true), None)


def _weights(source: str | Path, config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those with names in our static perception, and the others under their own."""
    path = Path(source)
    if path.is_file():
        placed, rest = NAMES.to_right({_modern(key): value for key, value in read_tensors(path).items()})
        placed = {key.removeprefix("perception."): value for key, value in placed.items()}
    elif path.is_dir() or (not looks_local(source) and "/" in str(source)):
        placed, rest = _TRANSFORMERS.to_left(_read_transformers(str(path), config))
    else:
        raise UserError(
            f"{source}: no such file or folder; name Mask2Former's .pkl, the folder of transformers' model, or its id "
            "`owner/name` on the hub"
        )
    if missing := {"backbone", "pixel_decoder", "frame_decoder"} - {key.partition(".")[0] for key in placed}:
        raise UserError(
            f"{source}: holds no weights of Mask2Former's {min(missing)}; name its .pkl, or transformers' folder"
        )
    return placed, rest


def _modern(key: str) -> str:
    """Names of Mask2Former's second version for those of its first."""
    key = re.sub(r"^sem_seg_head\.(?!pixel_decoder\.|predictor\.)", "sem_seg_head.pixel_decoder.", key)
    return key.replace("predictor.static_query.", "predictor.query_feat.")


def _read_transformers(source: str, config: ModelConfig) -> dict[str, Tensor]:
    """Under the names that transformers uses now (published files have older ones)."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    here = looks_local(source)
    try:
        values, _ = Mask2FormerConfig.get_config_dict(source, local_files_only=here)
        if values.get("model_type") != "mask2former" or values["backbone_config"]["model_type"] != "swin":
            raise ValueError("its config.json is not of a Mask2Former with Swin")
        model, info = Mask2FormerForUniversalSegmentation.from_pretrained(
            source, output_loading_info=True, local_files_only=here
        )
    except Exception as error:  # files and hub client raise a dozen kinds: missing, damaged, no network, no such id
        raise UserError(
            f"{source}: cannot be loaded as transformers' Mask2Former ({reason(error)}); name a folder with its "
            "config.json and model.safetensors, or an id on the hub"
        ) from None
    if lacking := sorted(key for key in info["missing_keys"] if _TRANSFORMERS.find(key, left=False)):
        raise UserError(f"{source}: lacks {lacking[0]}; fetch it again")
    state = {key: value for key, value in model.state_dict().items() if key not in info["missing_keys"]}
    check_finite(source, state)
    heads, ours = model.config.num_attention_heads, config.frame_decoder.heads
    if heads != ours:  # which no shape shows
        raise UserError(f"{source}: has {heads} attention heads, the model {ours}; mend model.frame_decoder.heads")
    return state
