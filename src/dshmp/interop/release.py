"""The authors' checkpoint as a model of this program, and back; for the names see `dshmp.interop.keymap`.

What the release keeps beside its parameters goes to `EXTRA_STATE`, so that the way back gives every tensor of a float32
checkpoint bit by bit.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dshmp import checkpoint as disk
from dshmp.card import Card
from dshmp.common.errors import UserError
from dshmp.common.files import atomic_folder, check_owned, check_utf8, destination, is_vacant, owned_file, save_tensors
from dshmp.config import RELEASE, EncoderConfig, ModelConfig, flat, from_dict, to_dict
from dshmp.interop.keymap import (
    NAMES,
    STAGES,
    LoadedPart,
    Told,
    as_release,
    check_match,
    from_release,
    grouped,
    left_out,
    report,
    some,
)
from dshmp.interop.safe_load import read_tensors
from dshmp.model.swin import relative_position
from dshmp.model.tokenizer import TextTokenizer, load_tokenizer

log = logging.getLogger("dshmp")

BANK = "vita_criterion.train_memory_bank.features"
MEMORY_ROWS = 23051
"""Expressions in MeViS' training split, for which the release's memory bank is made."""
PARTS = {"text encoder": "text_encoder.", "resizer": "resizer.", "backbone": "backbone."}
PARTS |= {"pixel decoder": "sem_seg_head.pixel_decoder.", "frame decoder": "sem_seg_head.predictor."}
PARTS |= {"motion": "vita_module."}
"""Parts of the model and how their names begin in the release; `motion` is perception and decoder."""
LIMITS = (
    "It reads the first 40 sub-word tokens of a sentence; the rest is cut off.",
    "It has no position in time and does not know its arrow: a motion and its reverse look alike to it.",
    "Between frames it pairs object tokens by the inverse of the matching that was found, which mixes objects up.",
    "Its windows are shifted in use but were not in training.",
    "The licence of the authors' weights is not stated where they are published.",
)
"""What comes with the release's switches and weights, for the card."""


_SWITCHES: dict[str, dict[str, Any]] = {
    "language": {"frozen": True, "split": "release", "cues": "full", "max_tokens": 40, "normalise": True},
    "backbone": {"language_fusion": True, "temporal_window": None},
    "frame_decoder": {"injection": 0.1, "language": True},
    "motion": {"window": 8, "stages": STAGES, "merge": "mean", "matching": "inverse", "injection": 0.1}
    | {"position": False, "displacement": False, "geometry": False, "camera": False, "static": False}
    | {"object_position": True},
    "readout": {"masks": "embedding", "targets": "many", "threshold": 0.5},
    "input": {"short_side": 448, "long_side": 1333, "divisor": 32, "motion_fps": None, "chunk": 18}
    | {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.37)},
}
"""What each does is told at its field in config.py."""


def release_config(sizes: ModelConfig) -> ModelConfig:
    """`sizes` with every switch as in the authors' release."""
    sections = {name: replace(getattr(sizes, name), **values) for name, values in _SWITCHES.items()}
    return replace(sizes, **sections, release=RELEASE)


def infer_config(
    state: Mapping[str, Tensor], motion_heads: int | None = None, where: str | Path = "the checkpoint"
) -> ModelConfig:
    """The configuration of a checkpoint of the release: sizes from its shapes, switches from `release_config`.

    `motion_heads`, of motion perception and motion decoder, leave no trace in the shapes; by default they are as many
    as in static perception. UserError, naming `where`, if a tensor that shows a size is missing or impossible.
    """

    def size(name: str, axis: int = 0) -> int:
        if name not in state or state[name].ndim <= axis:
            raise UserError(f"{where}: {name} is missing or a single number")
        return state[name].shape[axis]

    def count(prefix: str) -> int:
        return len({key[len(prefix) :].partition(".")[0] for key in state if key.startswith(prefix)})

    text, pixels, frames, video = (PARTS[name] for name in ("text encoder", "pixel decoder", "frame decoder", "motion"))
    layer, words = f"{pixels}transformer.encoder.layers.", f"{text}embeddings."
    stages = [f"backbone.layers.{stage}.blocks." for stage in range(count("backbone.layers."))]
    bias = "0.attn.relative_position_bias_table"
    width = size(f"{words}word_embeddings.weight", 1)
    heads = size(f"{layer}0.self_attn.sampling_offsets.bias") // 24  # 3 levels x 4 points x 2 coordinates
    encoder = {
        "vocab_size": size(f"{words}word_embeddings.weight"),
        "hidden_size": width,
        "num_hidden_layers": count(f"{text}encoder.layer."),
        "num_attention_heads": width // 64,  # which RoBERTa has in all sizes
        "intermediate_size": size(f"{text}encoder.layer.0.intermediate.dense.weight"),
        "max_position_embeddings": size(f"{words}position_embeddings.weight"),
        "type_vocab_size": size(f"{words}token_type_embeddings.weight"),
    }
    backbone = {
        "embed_dim": size("backbone.patch_embed.proj.weight"),
        "depths": [count(stage) for stage in stages],
        "num_heads": [size(f"{stage}{bias}", 1) for stage in stages],
        "window_size": (math.isqrt(size(f"backbone.layers.0.blocks.{bias}")) + 1) // 2,  # (2w - 1)^2 rows
    }

    def decoder(prefix: str, layers: str) -> dict[str, int]:
        ffn, queries = f"{prefix}transformer_ffn_layers.", size(f"{prefix}query_feat.weight")
        return {"queries": queries, layers: count(ffn), "ffn": size(f"{ffn}0.linear1.weight")}

    motion = {"blocks": count(f"{video}enc_ffn."), "contrast_size": size(f"{video}contrastive_embed.layers.2.weight")}
    sizes = {
        "hidden_size": size(f"{frames}query_feat.weight", 1),
        "language": {"encoder": encoder},
        "backbone": backbone,
        "pixel_decoder": {"layers": count(layer), "heads": heads, "ffn": size(f"{layer}0.linear1.weight")},
        "frame_decoder": {**decoder(frames, "layers"), "heads": heads},  # one value sets both in the release
        "motion": {**decoder(video, "decoder_layers"), "heads": motion_heads or heads, **motion},
    }
    return release_config(from_dict(ModelConfig, sizes, f"{where}: its model"))


@dataclass(frozen=True)
class ConversionReport:
    config: ModelConfig
    rows: tuple[LoadedPart, ...]
    assumed: tuple[str, ...]
    """What the file does not say, and what was done about it."""


def convert(
    checkpoint: Path,
    out: Path,
    tokenizer: str | Path = "roberta-base",
    motion_heads: int | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Make a model's folder from the authors' checkpoint; every tensor of it is used once or kept as a left-over.

    Args:
        checkpoint: the file, in any format that `read_tensors` knows. A prefix that all its names share is left out.
        out: the folder, new or empty, or with `overwrite` a model's.
        tokenizer: RoBERTa's, which the checkpoint lacks: a folder, a `tokenizer.json` or an id on the hub.
    """
    target = check_utf8(destination(out, folder=True))
    if target.exists() and not is_vacant(target):
        if not (target / disk.CONFIG).is_file():
            raise UserError(f"{out}: is not empty and holds no model; name a new folder")
        disk.check_model_folder(target)
        if not overwrite:
            raise UserError(f"{out}: holds a model already; name a new folder, or replace it with --overwrite")
    state = _bare(read_tensors(checkpoint))
    if missing := [part for part, prefix in PARTS.items() if not any(key.startswith(prefix) for key in state)]:
        why = f"it has no {', '.join(missing)}; its names begin with {some(list(state))}"
        raise UserError(f"{checkpoint}: is no whole DsHmp checkpoint: {why}")
    config = infer_config(state, motion_heads, checkpoint)
    model = disk.empty_model(config, checkpoint)
    rest = {key: value for key, value in state.items() if _is_left_over(key)}
    used = {key: value for key, value in state.items() if key not in rest}
    asked = as_release(model.state_dict())
    check_match(checkpoint, used, asked, "the checkpoint is not whole, or of another model")
    model.load_state_dict(from_release(disk.as_float32(checkpoint, used)), assign=True)
    words = _tokenizer(tokenizer, config)
    bank = rest.get(BANK, torch.empty(0))
    card = Card(
        name=out.resolve().name,
        source=f"the authors' checkpoint {checkpoint.name}, converted",
        data="MeViS, split train" if bank.shape[:1] == (MEMORY_ROWS,) else None,
        limits=LIMITS,
    )
    with atomic_folder(out) as work:
        disk.save_model(model, words, work, card)
        save_tensors(rest, work / disk.EXTRA_STATE)
    parts = [(part, key) for part, prefix in PARTS.items() for key in used if key.startswith(prefix)]
    told: list[Told] = [(part, "loaded", "", used[key]) for part, key in parts]
    told += left_out(rest, NAMES, "")
    return ConversionReport(config, grouped(told), _assumptions(config, used, motion_heads))


def print_report(found: ConversionReport) -> None:
    report(found.rows, "", stderr=False)
    sizes = (f"{key} = {value}" for key, value in flat(to_dict(found.config)) if type(value) in (int, list))
    print("sizes:", ", ".join(sizes))
    for line in found.assumed:
        print(f"assumed: {line}")


def _bare(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without a prefix that all names share, as data-parallel training leaves, if a name of the release comes out."""
    own = {rule.left.partition(".")[0] for rule in NAMES.rules}
    bare = state
    while len(first := {key.partition(".")[0] for key in bare}) == 1 and not first <= own and "" not in first:
        bare = {key.partition(".")[2]: value for key, value in bare.items()}
    return bare if first & own else state


def _is_left_over(key: str) -> bool:
    return (found := NAMES.find(key, left=True)) is not None and not found[0].right


def _tokenizer(source: str | Path, config: ModelConfig) -> TextTokenizer:
    tokenizer = load_tokenizer(source)
    size, vocabulary = max(tokenizer.get_vocab().values()) + 1, config.language.encoder.vocab_size
    if size != vocabulary:
        raise UserError(
            f"the tokeniser {str(source)!r} has {size} tokens, but the checkpoint's text encoder {vocabulary}; name a "
            "folder with the vocab.json and merges.txt that it was trained with: --tokenizer FOLDER"
        )
    return TextTokenizer(config, tokenizer)


def _assumptions(config: ModelConfig, used: Mapping[str, Tensor], motion_heads: int | None) -> tuple[str, ...]:
    motion, heads = config.motion, config.frame_decoder.heads
    lines = [f"motion.window = {motion.window} frames, frame_decoder.heads = {heads}, as the release sets them"]
    if motion_heads is None:
        lines.append(f"motion.heads = {motion.heads}, as in static perception; --motion-heads says otherwise")
    if other := sorted({str(value.dtype).removeprefix("torch.") for value in used.values()} - {"float32"}):
        lines.append(f"weights in {' and '.join(other)} are kept as float32")
    if changed := _differing(config, release_config(ModelConfig())).values():
        lines.append(f"it was trained with {', '.join(changed)}; if not, the checkpoint is not whole")
    return tuple(lines)


# Switches that decide which parameters there are, or that the release's code cannot follow.
CARRIERS = """
    language.cues backbone.language_fusion backbone.temporal_window frame_decoder.language motion.window motion.stages
    motion.position motion.displacement motion.geometry motion.static motion.object_position readout.masks
"""


def to_release(source: str | Path, out: Path, overwrite: bool = False) -> None:
    """Write a model as a checkpoint that the authors' code loads: `{"model": state}` under its names; as safetensors if
    the name of `out` ends so, else in torch's zip format.

    What the release keeps beside the parameters comes from the model's left-overs, if it was converted, else it is
    made as a fresh model of theirs has it. Settings that differ without weights are told in a warning.
    """
    target = destination(out)
    if target.is_dir():
        raise UserError(f"{out}: is a folder; name a file")
    check_owned(target.parent, [target.name])
    if target.exists() and not overwrite:
        raise UserError(f"{out}: exists already; name a new file, or replace it with --overwrite")
    folder = disk.find_model(source)
    model, _ = disk.load_model(folder)
    _check_fit(folder, model.config)
    kept = disk.load_tensors(folder / disk.EXTRA_STATE) if (folder / disk.EXTRA_STATE).exists() else {}
    if foreign := [key for key in kept if not _is_left_over(key)]:
        raise UserError(f"{folder / disk.EXTRA_STATE}: {foreign[0]} is no left-over of the release; delete the file")
    state = as_release(model.state_dict()) | _fresh(model.config) | kept
    with owned_file(target.parent, target.name) as part:
        if out.suffix == ".safetensors":
            part.write_bytes(save(state))
        else:
            torch.save({"model": state}, part)


def _check_fit(folder: Path, config: ModelConfig) -> None:
    """Refuse what the authors' code has no place for; warn of what it does otherwise."""
    told = _differing(config, release_config(config))
    blocked = [text for key, text in told.items() if key in CARRIERS.split()]
    heads, pixel_heads = config.frame_decoder.heads, config.pixel_decoder.heads
    if not isinstance(config.language.encoder, EncoderConfig):
        blocked.append("a text encoder other than RoBERTa")
    if heads != pixel_heads:
        blocked.append(f"frame_decoder.heads = {heads} (there {pixel_heads}, as in the pixel decoder)")
    if blocked:
        raise UserError(f"{folder}: the authors' code has no place for {', '.join(blocked)}")
    fixed = {
        "pixel_decoder.ffn",
        "motion.contrast_size",
        *(f"language.encoder.{key}" for key in to_dict(EncoderConfig())),
    }
    changed = [text for key, text in _differing(config, ModelConfig()).items() if key in fixed]
    if changed:
        log.warning("%s: the authors' code fixes %s; it has to be changed there", folder, ", ".join(changed))
    if told:
        rules = ", ".join(told.values())
        log.warning("%s: the authors' code reads these weights by its own rules, not %s", folder, rules)


def _differing(ours: ModelConfig, theirs: ModelConfig) -> dict[str, str]:
    """The values that differ, in words, by their names."""
    here, there = dict(flat(to_dict(ours))), dict(flat(to_dict(theirs)))
    changed = [key for key in here if key in there and there[key] != here[key]]
    return {key: f"{key} = {here[key]} (there {there[key]})" for key in changed}


def _fresh(config: ModelConfig) -> dict[str, Tensor]:
    """What the release keeps beside its parameters, as a fresh model of theirs has it."""
    index = relative_position((config.backbone.window_size,) * 2, torch.device("cpu"))
    depths = enumerate(config.backbone.depths)
    blocks = [f"backbone.layers.{stage}.blocks.{i}" for stage, depth in depths for i in range(depth)]
    fresh = {f"{block}.attn.relative_position_index": index.clone() for block in blocks}
    fresh |= {f"{name}.empty_weight": torch.tensor([1.0, 0.1]) for name in ("criterion", "vita_criterion")}
    generator = torch.Generator().manual_seed(0)
    return fresh | {BANK: torch.randn(MEMORY_ROWS, config.motion.contrast_size, generator=generator)}
