"""Start static perception from Mask2Former's instance segmentation weights (COCO), as the paper does.

Two formats: a folder or hub id of transformers' Mask2FormerForUniversalSegmentation, and the original program's file
(detectron2's .pkl, or the same names in a .pth or .safetensors file).
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dshmp.checkpoint import check_finite
from dshmp.config import ModelConfig
from dshmp.errors import UserError
from dshmp.files import reason
from dshmp.hub import check_folder, looks_local
from dshmp.interop.detectron2 import read_pickle
from dshmp.interop.keymap import from_release
from dshmp.interop.rows import LoadedPart, row
from dshmp.interop.safe_load import is_pickle, read_tensors
from dshmp.model.dshmp import DsHmp

_QUERIES = ("frame_decoder.query_content.weight", "frame_decoder.query_position.weight")
_TEXT = re.compile(
    r"backbone\.(fusions|gates)\.|frame_decoder\.(static_attention|layers\.\d+\.(fusion|text_attention))\."
)
_CLASSES_PREFIX = "frame_decoder.classify."
_LAYER = re.compile(r"frame_decoder\.layers\.(\d+)\.")
_KINETICS = "Video-Swin takes its weights from video_swin"

Left = defaultdict[tuple[str, str], list[Tensor]]
"""Tensors of the file that are left out, by part and reason."""


@torch.no_grad()
def initialise(model: DsHmp, source: str | Path) -> tuple[LoadedPart, ...]:
    """Put Mask2Former's weights into the static perception of a fresh model.

    The first `frame_decoder.queries` queries are kept (as the release does). What reads the sentence, the classes
    (object or none) and everything but static perception stay as they are; so does the backbone of a model with a
    `temporal_window`, and the words stand in for the queries' content where `language.cues` is `direct`.

    Args:
        source: folder or hub id of transformers' Mask2Former with a Swin backbone, or a file in the original names.

    Returns:
        What became of every parameter of the model and of the file.

    Raises:
        UserError: it cannot be read, is no Mask2Former, or was made for other sizes than the model's config gives.
    """
    config, own = model.config, model.perception.state_dict()
    placed, rest = _weights(source, config)
    loaded, left = _selected(source, placed, own, config)
    layers = _layers(placed)
    wanted = {key for key in own if _stays(key, config, layers) is None}
    if lacking := sorted(wanted - loaded.keys()):
        raise UserError(f"{source}: lacks {lacking[0]}, which model.{_config_value(lacking[0])} asks for; mend it")
    _check_shapes(source, loaded, own)
    model.perception.load_state_dict(loaded, strict=False)

    for key, value in rest.items():
        left[_unplaced(key)].append(value)
    taken: dict[str, list[Tensor]] = defaultdict(list)
    fresh: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for key, value in own.items():
        if key in loaded:
            taken[_part(key)].append(value)
        else:
            fresh[_part(key), str(_stays(key, config, layers))].append(value)
    for name, value in model.state_dict().items():
        if not name.startswith("perception."):
            fresh[_part(name), "no part of Mask2Former"].append(value)
    return (
        *(row(part, tensors, "loaded") for part, tensors in taken.items()),
        *(row(part, tensors, "fresh", reason) for (part, reason), tensors in fresh.items()),
        *(row(part, tensors, "left out", reason) for (part, reason), tensors in left.items()),
    )


def _selected(
    source: str | Path, placed: Mapping[str, Tensor], own: Mapping[str, Tensor], config: ModelConfig
) -> tuple[dict[str, Tensor], Left]:
    """What of the file's known weights is loaded, the queries cut to the first, and what is left out."""
    count = config.frame_decoder.queries
    loaded: dict[str, Tensor] = {}
    left: Left = defaultdict(list)
    for key, value in placed.items():
        if (reason := _surplus(key, config)) is not None:
            left[_part(key), reason].append(value)
        elif key not in own:
            raise UserError(f"{source}: has {key}, which model.{_config_value(key)} leaves no place for; mend it")
        elif key in _QUERIES and value.ndim and len(value) > count:
            loaded[key], beyond = value.tensor_split([count])
            left[_part(key), f"queries beyond the first {count}"].append(beyond)
        else:
            loaded[key] = value
    return loaded, left


def _part(key: str) -> str:
    return key.partition(".")[0]


def _layers(state: Mapping[str, Tensor]) -> int:
    """How many layers the frame decoder has."""
    return 1 + max((int(found[1]) for key in state if (found := _LAYER.match(key))), default=-1)


def _stays(key: str, config: ModelConfig, layers: int) -> str | None:
    """Why a parameter of static perception starts fresh, if it does; the file has `layers` decoder layers."""
    if key.startswith("backbone.") and config.backbone.temporal_window is not None:
        return _KINETICS
    if _TEXT.match(key):
        return "reads the sentence"
    if key.startswith(_CLASSES_PREFIX):
        return "object or none"
    if (found := _LAYER.match(key)) and int(found[1]) >= layers:
        return f"the file has {layers} decoder layers"
    return None


def _surplus(key: str, config: ModelConfig) -> str | None:
    """Why a parameter of Mask2Former with a known place is left out, if it is."""
    if key.startswith("backbone.") and config.backbone.temporal_window is not None:
        return _KINETICS
    if key.startswith(_CLASSES_PREFIX):
        return "other classes than object or none"
    if (found := _LAYER.match(key)) and int(found[1]) >= config.frame_decoder.layers:
        return f"decoder layers beyond the first {config.frame_decoder.layers}"
    if key == _QUERIES[0] and config.language.cues == "direct":
        return "the words are the queries (language.cues: direct)"
    return None


def _unplaced(key: str) -> tuple[str, str]:
    """Part and reason of what has no place here whatever the config."""
    if key.startswith("criterion."):
        return "criterion", "belongs to the training before"
    if key.endswith("relative_position_index"):
        return "backbone", "tables that are computed here"
    if key.startswith(f"{_PIXELS_PREFIX}encoder."):
        return "backbone", "a norm that Mask2Former does not use"
    return _part(key), "no counterpart here"


# What to mend when a shape does not fit: the first that is off, since hidden sizes show in many shapes.
_SIZES: tuple[tuple[str, str], ...] = (
    (r"backbone\.embeddings\.norm", "backbone.embed_dim"),
    (r"pixel_decoder\.mask_projection|frame_decoder\.norm", "hidden_size"),
    (r".*relative_position_bias_table", "backbone.window_size or model.backbone.num_heads"),
    (r"backbone\.", "backbone.embed_dim"),
    (r"pixel_decoder\..*(sampling_offsets|attention_weights)", "pixel_decoder.heads"),
    (r"pixel_decoder\..*\.fc\d", "pixel_decoder.ffn"),
    (r"pixel_decoder\.", "backbone.embed_dim or model.hidden_size"),
    (r"frame_decoder\..*\.linear\d", "frame_decoder.ffn"),
    (r"frame_decoder\.query_", "frame_decoder.queries"),
    (r"frame_decoder\.", "hidden_size"),
)


def _check_shapes(source: str | Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    wrong = [key for key, value in state.items() if value.shape != own[key].shape]
    for pattern, value in _SIZES:
        for key in wrong:
            if re.match(pattern, key):
                raise UserError(
                    f"{source}: {key} has shape {list(state[key].shape)}, the model asks {list(own[key].shape)}; "
                    f"mend model.{value}"
                )


def _config_value(key: str) -> str:
    """The value of the config that decides whether a parameter is there."""
    if key.startswith("backbone."):
        return "backbone.depths"
    if key.startswith("pixel_decoder."):
        return "pixel_decoder.layers"
    return "frame_decoder"


# ------------------------------------------------------------------------------------------------------ the formats


def _weights(source: str | Path, config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights under the names of our static perception, and the others under their own."""
    path = Path(source)
    if path.is_file():
        state = read_pickle(path) if is_pickle(path) else read_tensors(path)
        if any(key.startswith("vita_module.") for key in state):
            raise UserError(f"{source}: is a whole DsHmp, no Mask2Former; name what dshmp convert makes of it as init")
        if any(key.startswith(_PIXELS_PREFIX) for key in state):
            raise UserError(f"{source}: is of transformers' model; name the folder that it and config.json are in")
        placed, rest = _from_original(state)
    elif path.is_dir() or (not looks_local(source) and "/" in str(source)):
        placed, rest = _from_transformers(_read_transformers(str(path), config))
    else:
        raise UserError(
            f"{source}: no such file or folder; name Mask2Former's .pkl, the folder of transformers' model, or its id "
            "`owner/name` on the hub"
        )
    parts = {_part(key) for key in placed}
    if missing := [part for part in ("backbone", "pixel_decoder", "frame_decoder") if part not in parts]:
        raise UserError(f"{source}: holds no weights of Mask2Former's {missing[0].replace('_', ' ')}; name its model")
    return placed, rest


def _from_original(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The original names, which the authors' release shares."""
    placed: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for key, value in state.items():
        found = _place(_modern(key), value)
        placed |= found
        if not found:
            rest[key] = value
    return placed, rest


def _place(key: str, value: Tensor) -> dict[str, Tensor]:
    """The tensor under our names, of which it may have several or none."""
    if not key.startswith(("backbone.", "sem_seg_head.")):
        return {}
    try:
        return from_release({key: value}, own_prefix="perception.")
    except UserError:
        return {}


def _modern(key: str) -> str:
    """Names of Mask2Former's second version for those of its first."""
    inner = key.removeprefix("sem_seg_head.")
    if inner != key and not inner.startswith(("pixel_decoder.", "predictor.")):
        return f"sem_seg_head.pixel_decoder.{inner}"
    return key.replace("predictor.static_query.", "predictor.query_feat.")


def _read_transformers(source: str, config: ModelConfig) -> dict[str, Tensor]:
    """What the files hold, under the names that transformers uses now (published files have older ones)."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    here = looks_local(source)
    try:
        if here:
            check_folder(source)
        values, _ = Mask2FormerConfig.get_config_dict(source, local_files_only=here)
        if not values:
            raise OSError("config.json is missing")
        backbone = values.get("backbone_config") or {}
        kinds = values.get("model_type"), backbone.get("model_type") if isinstance(backbone, dict) else None
        if kinds != ("mask2former", "swin"):
            raise UserError(f"{source}: holds {kinds[0]} with backbone {kinds[1]}; name a Mask2Former with Swin")
        model, info = Mask2FormerForUniversalSegmentation.from_pretrained(
            source, output_loading_info=True, local_files_only=here
        )
    except UserError:
        raise
    except Exception as error:  # files and hub client raise a dozen kinds: missing, damaged, no network, no such id
        raise UserError(
            f"{source}: cannot be loaded as transformers' Mask2Former ({reason(error)}); name a folder with its "
            "config.json and model.safetensors, or an id on the hub"
        ) from None
    if lacking := sorted(key for key in info["missing_keys"] if key.startswith(tuple(_PREFIXES))):
        raise UserError(f"{source}: lacks {lacking[0]}; fetch it again")
    state = {key: value for key, value in model.state_dict().items() if key not in info["missing_keys"]}
    check_finite(source, state)
    heads = model.config.num_attention_heads
    if heads != config.frame_decoder.heads:  # which no shape shows
        raise UserError(
            f"{source}: has {heads} attention heads, the model {config.frame_decoder.heads}; mend "
            "model.frame_decoder.heads"
        )
    return state


_PIXELS_PREFIX, _QUERY_PREFIX = "model.pixel_level_module.", "model.transformer_module."
_PREFIXES = {
    f"{_PIXELS_PREFIX}encoder.swin.embeddings.": "backbone.embeddings.",
    f"{_PIXELS_PREFIX}encoder.swin.encoder.layers.": "backbone.stages.",
    **{f"{_PIXELS_PREFIX}encoder.hidden_states_norms.stage{i + 1}.": f"backbone.norms.{i}." for i in range(4)},
    f"{_PIXELS_PREFIX}decoder.mask_projection.": "pixel_decoder.mask_projection.",
    f"{_PIXELS_PREFIX}decoder.": "pixel_decoder.decoder.",
    f"{_QUERY_PREFIX}queries_features.": "frame_decoder.query_content.",
    f"{_QUERY_PREFIX}queries_embedder.": "frame_decoder.query_position.",
    f"{_QUERY_PREFIX}level_embed.": "frame_decoder.level_embed.",
    f"{_QUERY_PREFIX}decoder.layernorm.": "frame_decoder.norm.",
    f"{_QUERY_PREFIX}decoder.layers.": "frame_decoder.layers.",
    **{
        f"{_QUERY_PREFIX}decoder.mask_predictor.mask_embedder.{i}.0.": f"frame_decoder.mask_embed.layers.{i}."
        for i in range(3)
    },
    "class_predictor.": _CLASSES_PREFIX,
}
_FRAME_LAYER = {
    "self_attn_layer_norm": "self_attention.norm",
    "cross_attn_layer_norm": "cross_attention.norm",
    "final_layer_norm": "feed_forward.norm",
    "self_attn": "self_attention.attention",
    "cross_attn": "cross_attention.attention",
    "fc1": "feed_forward.linear1",
    "fc2": "feed_forward.linear2",
}


def _from_transformers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """transformers' names; its Swin and pixel decoder are the modules that ours are made of."""
    placed: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for key, value in state.items():
        old = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
        if old is None:
            rest[key] = value
            continue
        name = _PREFIXES[old] + key.removeprefix(old)
        if found := _LAYER.match(name):
            inner, _, leaf = name[found.end() :].partition(".")
            name = f"{found[0]}{_FRAME_LAYER[inner]}.{leaf}"
        placed[name] = value
    return _packed(placed), rest


def _packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value projections of the decoder's self-attention in one matrix."""
    result = {key: value for key, value in state.items() if not _is_projection(key)}
    for key in state:
        if _is_projection(key) and ".q_proj." in key:
            parts = [state[key.replace(".q_proj.", f".{name}_proj.")] for name in "qkv"]
            result[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return result


def _is_projection(key: str) -> bool:
    return bool(_LAYER.match(key)) and key.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
