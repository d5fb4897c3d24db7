"""A tiny model, switch by switch, and recipes that train it in seconds."""

import copy
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from dshmp.config import ModelConfig, from_dict
from dshmp.model.backbone import LanguageBackbone
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import TextTokenizer, train_tokenizer
from dshmp.training.losses import SetPrediction, SetTargets, assign, matching_costs
from dshmp.training.recipe import RunConfig

SENTENCES = ("the red star", "The one that moves left and then turns back", "two cats jumping over the standing dog")

RUN = {item.name for item in fields(RunConfig)}
MODEL: dict[str, Any] = {
    "hidden_size": 32,
    "language": {
        "encoder": {
            "vocab_size": 300,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 130,
            "type_vocab_size": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "frozen": False,
        "dropout": 0.0,
    },
    "backbone": {
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "drop_path": 0.0,
        "language_fusion": False,
    },
    "pixel_decoder": {"layers": 1, "heads": 2, "ffn": 32},
    "frame_decoder": {"queries": 6, "layers": 1, "heads": 2, "ffn": 32, "dropout": 0.0, "language": False},
    "motion": {
        "blocks": 2,
        "window": 8,
        "stages": 3,
        "queries": 4,
        "decoder_layers": 1,
        "heads": 2,
        "ffn": 32,
        "dropout": 0.0,
        "contrast_size": 16,
        "token_dropout": 0.0,
    },
    "input": {"short_side": 40, "long_side": 64, "divisor": 8, "chunk": 4},
}


def with_switches(values: Mapping[str, Any], switches: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested `values` with dotted keys set."""
    result = copy.deepcopy(dict(values))
    for key, value in switches.items():
        *path, last = key.split(".")
        inner = result
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return result


def config(switches: Mapping[str, Any] | None = None) -> ModelConfig:
    return from_dict(ModelConfig, with_switches(MODEL, switches or {}))


def geometry_model() -> DsHmp:
    """A model that reads geometry, and so can choose among tracks; lively random weights, the same ones every time."""
    switches = {"motion.geometry": True, "motion.matching": "tracks", "motion.static": True, "motion.camera": True}
    torch.manual_seed(0)
    model = excite(DsHmp(config(switches | {"motion.object_position": False, "motion.displacement": False})))
    return model.eval()


def model(switches: Mapping[str, Any] | None = None) -> DsHmp:
    """In evaluation mode, the same weights every time; layers that start closed are open."""
    torch.manual_seed(0)
    return excite(DsHmp(config(switches))).eval()


@torch.no_grad()
def excite(module: DsHmp) -> DsHmp:
    for parameter in module.parameters():
        nn.init.normal_(noise := torch.empty_like(parameter), std=0.1)
        parameter += noise
    module.perception.frame_decoder.classify.bias.copy_(torch.tensor([3.0, -3.0]))  # all candidates are objects
    return module


def kinetics(backbone: LanguageBackbone) -> dict[str, Tensor]:
    """The weights of a Video-Swin backbone as a checkpoint of Kinetics has them: under published names, the first
    convolution two frames deep."""
    names = {
        "embeddings.projection": "patch_embed.proj",
        "embeddings.norm": "patch_embed.norm",
        "stages.": "layers.",
        "attention.position_bias": "attn.relative_position_bias_table",
        "attention.qkv": "attn.qkv",
        "attention.output": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
    }
    weights = {}
    for key, value in backbone.state_dict().items():
        if not key.startswith(("norms", "fusions", "gates")):
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            weights[f"backbone.{key}"] = value[:, :, None].repeat(1, 1, 2, 1, 1) / 2 if value.ndim == 4 else value
    return weights


def tokenizer(switches: Mapping[str, Any] | None = None) -> TextTokenizer:
    return TextTokenizer(config(switches), train_tokenizer([text.lower() for text in SENTENCES], 290))


def recipe(task: str, data: Path, /, **more: Any) -> dict[str, Any]:
    """Keys of a recipe that is done in a few seconds; those of its section `run` are among `more`, too."""
    run = {"log_every": 1} | {key: more.pop(key) for key in RUN & more.keys()}
    return {
        "task": task,
        "data": {"mevis": {"root": str(data), "validation": "valid_u"}},
        "model": MODEL,
        "steps": 3,
        "batch": 2,
        "clip_frames": 4,
        "learning_rate": 1e-3,
        "clip_norm": 1.0,
        "warmup": 1,
        "points": 16,
        "contrast_start": 1,
        "run": run,
        "vocabulary": 290,
        **more,
    }


def match(prediction: SetPrediction, targets: SetTargets, points: Tensor) -> Tensor:
    """One layer's matches (B, Q) on given points (B, P, 2)."""
    return assign(matching_costs(prediction, targets, points), targets.present)


def write_recipe(path: Path, values: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(values)))
    return path
