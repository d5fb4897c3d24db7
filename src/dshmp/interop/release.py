"""The authors' checkpoint as a model of this program, and back; sizes are read off the shapes.

For the names see `dshmp.interop.names`. What the release keeps beside its parameters goes to `EXTRA_STATE`, so that the
way back gives every tensor of a float32 checkpoint bit by bit.
"""

import difflib
import logging
import math
import re
import zipfile
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dshmp.card import Card
from dshmp.checkpoint import (
    CONFIG,
    EXTRA_STATE,
    FILES,
    as_float32,
    build_model,
    check_model_folder,
    find_model,
    load_config,
    load_model,
    load_tensors,
    save_model,
    some,
)
from dshmp.config import (
    RELEASE,
    ROBERTA_BASE,
    BackboneConfig,
    FrameDecoderConfig,
    LanguageConfig,
    ModelConfig,
    MotionConfig,
    PixelDecoderConfig,
    flat,
    to_dict,
)
from dshmp.errors import UserError
from dshmp.files import atomic_folder, atomic_write, destination, is_vacant, output_folder, save_tensors
from dshmp.interop.keymap import (
    FRAMES_PREFIX,
    PIXEL_LAYER_PREFIX,
    PIXELS_PREFIX,
    STAGES,
    TABLE,
    TEXT_PREFIX,
    VIDEO_PREFIX,
    as_release,
    find,
    from_release,
    release_order,
)
from dshmp.interop.safe_load import read_tensors
from dshmp.model.tokenizer import TextTokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger("dshmp")

BANK = "vita_criterion.train_memory_bank.features"
MEMORY_ROWS = 23051
"""Expressions in MeViS' training split, for which the release's memory bank is made."""

PART_PREFIXES = {
    "text encoder": TEXT_PREFIX,
    "resizer": "resizer.",
    "backbone": "backbone.",
    "pixel decoder": PIXELS_PREFIX,
    "frame decoder": FRAMES_PREFIX,
    "motion": VIDEO_PREFIX,
}
"""Parts of the model and how their names begin in the release; `motion` is perception and decoder."""

OWN = re.compile(r"\.(hierarchical_cross|cross_static|cross_motion)\.")
"""In names that DsHmp alone has."""

FOREIGN_PREFIXES = (
    (r"perception\.backbone\.", "a model of this program already"),
    (r"vita_module\.", "VITA's or one built on it"),
    (r"(module\.)?sem_seg_head\.", "Mask2Former's or one built on it"),
    (r"backbone\.layers\..*\.(fusion|res_gate)\.|text_encoder\.", "a part of a referring segmentation model"),
    (r"(backbone\.)?(layers|stages)\.\d+\.blocks\.", "a Swin backbone's alone"),
    (r"(roberta\.)?(embeddings|encoder)\.", "a text encoder's alone"),
)
"""What a checkpoint may be instead, by a name that it holds."""

LIMITS = (
    "It reads the first 40 sub-word tokens of a sentence; the rest is cut off without a word.",
    "It has no position in time and does not know its arrow: a motion and its reverse look alike to it.",
    "Between frames it pairs object tokens by the inverse of the matching that was found, which mixes objects up.",
    "Its windows are shifted in use but were not in training.",
    "The licence of the authors' weights is not stated where they are published.",
)
"""What comes with the release's switches and weights, for the card."""


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
            normalise=True,
        ),
        backbone=replace(sizes.backbone, language_fusion=True, temporal_window=None),
        frame_decoder=replace(sizes.frame_decoder, injection=0.1, language=True),
        motion=replace(
            sizes.motion,
            window=8,
            stages=STAGES,
            merge="mean",
            matching="inverse",
            position=False,
            displacement=False,
            injection=0.1,
        ),
        readout=replace(sizes.readout, masks="embedding", targets="many", threshold=0.5),
        input=replace(
            sizes.input,
            short_side=448,
            long_side=1333,
            divisor=32,
            mean=(123.675, 116.28, 103.53),
            std=(58.395, 57.12, 57.37),
            motion_fps=None,
            chunk=18,
        ),
        release=RELEASE,
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
        found = {key[len(prefix) :].partition(".")[0] for key in state if key.startswith(prefix)}
        numbers = {name for name in found if name.isascii() and name.isdigit()}
        if gaps := {str(i) for i in range(len(numbers))} - numbers:
            raise UserError(f"lacks {prefix}{min(gaps, key=int)}, though it has {prefix}{max(numbers)[:20]}")
        return len(numbers)

    if state.get("backbone.patch_embed.proj.weight", torch.empty(0)).ndim == 5:
        raise UserError("its backbone is Video-Swin, which the release's own code does not have")
    hidden = size(f"{FRAMES_PREFIX}query_feat.weight", 1)
    width = size(f"{TEXT_PREFIX}embeddings.word_embeddings.weight", 1)
    stages = range(count("backbone.layers."))
    tables = [f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table" for i in stages]
    window = (math.isqrt(size(tables[0])) + 1) // 2 if tables else 0  # (2w - 1)^2 rows
    if window > 32:
        raise UserError(
            f"{tables[0]} has {size(tables[0])} rows, for windows of {window} pixels; at most 32 can be used"
        )
    # heads x 3 levels x 4 points x 2 coordinates
    heads = size(f"{PIXEL_LAYER_PREFIX.replace('*', '0')}self_attn.sampling_offsets.bias") // 24
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
                    "vocab_size": size(f"{TEXT_PREFIX}embeddings.word_embeddings.weight"),
                    "hidden_size": width,
                    "num_hidden_layers": count(f"{TEXT_PREFIX}encoder.layer."),
                    "num_attention_heads": width // 64,
                    "intermediate_size": size(f"{TEXT_PREFIX}encoder.layer.0.intermediate.dense.weight"),
                    "max_position_embeddings": size(f"{TEXT_PREFIX}embeddings.position_embeddings.weight"),
                    "type_vocab_size": size(f"{TEXT_PREFIX}embeddings.token_type_embeddings.weight"),
                }
            ),
            backbone=BackboneConfig(
                embed_dim=size("backbone.patch_embed.proj.weight"),
                depths=tuple(count(f"backbone.layers.{i}.blocks.") for i in stages),
                num_heads=tuple(size(table, 1) for table in tables),
                window_size=window,
            ),
            pixel_decoder=PixelDecoderConfig(
                layers=count(PIXEL_LAYER_PREFIX.partition("*")[0]),
                heads=heads,
                ffn=size(f"{PIXEL_LAYER_PREFIX.replace('*', '0')}linear1.weight"),
            ),
            frame_decoder=FrameDecoderConfig(
                queries=size(f"{FRAMES_PREFIX}query_feat.weight"),
                layers=count(f"{FRAMES_PREFIX}transformer_ffn_layers."),
                heads=heads,  # one value sets both in the release
                ffn=size(f"{FRAMES_PREFIX}transformer_ffn_layers.0.linear1.weight"),
            ),
            motion=MotionConfig(
                blocks=count(f"{VIDEO_PREFIX}enc_ffn."),
                queries=size(f"{VIDEO_PREFIX}query_feat.weight"),
                decoder_layers=count(f"{VIDEO_PREFIX}transformer_ffn_layers."),
                heads=motion_heads or heads,
                ffn=size(f"{VIDEO_PREFIX}transformer_ffn_layers.0.linear1.weight"),
                contrast_size=size(f"{VIDEO_PREFIX}contrastive_embed.layers.2.weight"),
            ),
        )
    )


# --- there


@dataclass(frozen=True)
class ConversionReport:
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
    checkpoint: Path,
    out: Path,
    tokenizer: str | Path = "roberta-base",
    motion_heads: int | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Make a model's folder from the authors' checkpoint; every tensor of it is used once or kept as a left-over.

    Args:
        checkpoint: the file, in any format that `read_tensors` knows. A prefix that all its names share is left out.
        out: the folder, new or empty, which is written wholly or not at all.
        tokenizer: RoBERTa's, which the checkpoint lacks: a folder, a `tokenizer.json` or an id on the hub.
        motion_heads: as for `infer_config`.
        overwrite: replace a model that `out` holds.

    Raises:
        UserError: the file is no checkpoint of the release, or the tokeniser or the folder is not fit.
    """
    _check_folder(out, overwrite)
    state = _bare(read_tensors(checkpoint))
    _check_kind(checkpoint, state)
    try:
        config = infer_config(state, motion_heads)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    with torch.device("meta"):  # shapes alone; the weights come from the file
        model = build_model(config, checkpoint)
    asked = as_release(model.state_dict())
    _check_names(checkpoint, state, asked)
    _check_shapes(checkpoint, state, asked)
    used = {key: state[key] for key in asked}
    rest = {key: value for key, value in state.items() if key not in used}
    _check_left_overs(checkpoint, rest, config)
    _check_windows(checkpoint, rest, config.backbone.window_size)
    model.load_state_dict(from_release(as_float32(checkpoint, used)), assign=True)
    text = TextTokenizer(config, _tokenizer(tokenizer, config.language.encoder["vocab_size"]))
    card = Card(
        name=out.resolve().name,
        source=f"the authors' checkpoint {checkpoint.name}, converted",
        data="MeViS, split train" if BANK in rest and len(rest[BANK]) == MEMORY_ROWS else None,
        limits=LIMITS,
    )
    with atomic_folder(out) as work:
        save_model(model, text, work, card)
        save_tensors(rest, work / EXTRA_STATE)
    return ConversionReport(config, _parts(used), _extra(rest), _assumptions(config, used, motion_heads))


def print_report(report: ConversionReport) -> None:
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


def _check_folder(out: Path, overwrite: bool) -> None:
    """Refuse, before any work, a folder that cannot be written, or that holds anything but a model to overwrite."""
    target = output_folder(out)
    if not target.exists() or is_vacant(target):
        return
    names = {item.name for item in target.iterdir()}
    foreign = names - set(FILES)
    if foreign or CONFIG not in names:
        raise UserError(f"{out}: holds {some(sorted(foreign or names))}, which is no model's; name a new folder")
    check_model_folder(target)
    if not overwrite:
        raise UserError(f"{out}: holds a model already; name a new folder, or replace it with --overwrite")


def _bare(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without a prefix that all names share, as data-parallel training leaves; as it is if no name of the release
    comes out."""
    own = {entry.theirs.partition(".")[0] for entry in TABLE}
    bare = state
    while len(first := {key.partition(".")[0] for key in bare}) == 1 and not first <= own and "" not in first:
        bare = {key.partition(".")[2]: value for key, value in bare.items()}
    return bare if first & own else state


def _check_kind(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse another program's checkpoint, and one that lacks a whole part."""
    missing = [
        f"{prefix}* ({name})"
        for name, prefix in PART_PREFIXES.items()
        if not any(key.startswith(prefix) for key in state)
    ]
    heads = any(key.startswith("sem_seg_head.") for key in state)
    if any(OWN.search(key) for key in state) or (heads and any(".res_gate." in key for key in state)):
        if missing:
            raise UserError(f"{path}: lacks {', '.join(missing)}; the checkpoint is not whole")
        return
    kinds = (kind for pattern, kind in FOREIGN_PREFIXES if any(re.match(pattern, key) for key in state))
    if kind := next(kinds, None):
        raise UserError(f"{path}: is not a DsHmp checkpoint but, by its names, {kind}")
    raise UserError(f"{path}: is not a DsHmp checkpoint; its names begin with {some(list(state))}")


def _check_names(path: Path, state: Mapping[str, Tensor], asked: Mapping[str, Tensor]) -> None:
    """Whether every parameter that the model asks for is there, and nothing else but left-overs."""
    missing = [key for key in asked if key not in state]
    extra = [key for key in state if key not in asked and not _is_left_over(key)]
    if extra:
        lacks = f"lacks {some(missing)}, and " if missing else ""
        near = difflib.get_close_matches(extra[0][:200], missing or list(asked), 1)
        hint = f"; {extra[0]} may be {near[0]}" if near else ""
        raise UserError(f"{path}: {lacks}has {some(extra)}, for which a DsHmp model of its sizes has no place{hint}")
    if missing:
        raise UserError(f"{path}: lacks {some(missing)}; the checkpoint is not whole")


def _check_shapes(path: Path, state: Mapping[str, Tensor], asked: Mapping[str, Tensor]) -> None:
    """Whether the parameters have the shapes that the model asks for."""
    if wrong := [key for key, value in asked.items() if state[key].shape != value.shape]:
        found, right = (list(tensors[wrong[0]].shape) for tensors in (state, asked))
        raise UserError(f"{path}: {wrong[0]} has shape {found}, the other sizes ask {right} ({len(wrong)} such in all)")


def _check_left_overs(path: Path, rest: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Whether a model of the release has a place for what is beside its parameters."""
    fresh = _fresh(config, torch.device("meta"))
    for key, value in rest.items():
        if not _is_left_over(key):
            raise UserError(f"{path}: {key} is no left-over of the release; delete the file, and it is made anew")
        if key not in fresh:  # position_ids, which no code of theirs or ours reads
            continue
        asked = fresh[key]
        rows = slice(1, None) if key == BANK else slice(None)  # as many as the training set has expressions
        if value.ndim != asked.ndim or value.shape[rows] != asked.shape[rows]:
            raise UserError(f"{path}: {key} has shape {list(value.shape)}, this model asks {list(asked.shape)}")
        if value.is_floating_point() != asked.is_floating_point():
            raise UserError(f"{path}: {key} holds {value.dtype}, this model asks {asked.dtype}")


def _check_windows(path: Path, rest: Mapping[str, Tensor], window: int) -> None:
    """Warn where the pixels of a window are numbered unlike Swin's, which the model ignores and the way back keeps."""
    index = relative_position_index(window)
    tables = {key: value for key, value in rest.items() if key.endswith("relative_position_index")}
    if odd := [key for key, value in tables.items() if not torch.equal(value.to(torch.int64), index)]:
        log.warning(
            "%s: %s differ from Swin's for a window of %d, which is what the model uses", path, some(odd), window
        )


def _is_left_over(key: str) -> bool:
    found = find(key, theirs=True)
    return found is not None and not found[0].ours


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
    sizes = {
        name: [v.numel() for k, v in used.items() if k.startswith(prefix)] for name, prefix in PART_PREFIXES.items()
    }
    return {name: (len(values), sum(values)) for name, values in sizes.items()}


def _extra(rest: Mapping[str, Tensor]) -> dict[str, tuple[int, str]]:
    entries = [found[0] for key in rest if (found := find(key, theirs=True))]
    return {entry.theirs: (number, entry.reason) for entry, number in Counter(entries).items()}


def _assumptions(config: ModelConfig, used: Mapping[str, Tensor], motion_heads: int | None) -> tuple[str, ...]:
    motion, static = config.motion, config.frame_decoder
    lines = [f"motion.window = {motion.window} frames, the release's; the file does not show it"]
    if motion_heads is None:
        lines.append(f"motion.heads = {motion.heads}, as in static perception; --motion-heads says otherwise")
    lines.append(f"frame_decoder.heads = {static.heads}, as in the pixel decoder; one value sets both in the release")
    if other := sorted({str(value.dtype).removeprefix("torch.") for value in used.values()} - {"float32"}):
        lines.append(f"weights in {' and '.join(other)} are kept as float32")
    if changed := _differing(config, release_config(ModelConfig())):
        lines.append(f"it was trained with {', '.join(changed)}; if not, the checkpoint is not whole")
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


def to_release(source: str | Path, out: Path, overwrite: bool = False) -> None:
    """Write a model as a checkpoint that the authors' code loads: `{"model": state}` under its names, in its order.

    What the release keeps beside the parameters comes from the model's left-overs, if it was converted, else it is
    made as a fresh model of theirs has it. Settings that differ without weights are told in a warning.

    Args:
        source: a model as for `load_model`.
        out: the file; safetensors if its name ends so, else torch's zip format.
        overwrite: replace a file that is there.

    Raises:
        UserError: the model has parts that the authors' code cannot hold, or `out` exists or cannot be written.
    """
    target = destination(out)
    if target.is_dir():
        raise UserError(f"{out}: is a folder; name a file")
    if target.exists() and not _is_ours(target):
        raise UserError(f"{out}: exists, and was not written by dshmp; name a new file")
    if target.exists() and not overwrite:
        raise UserError(f"{out}: exists already; name a new file, or replace it with --overwrite")
    folder = find_model(source)
    config = load_config(folder / CONFIG)
    _check_fit(folder, config)
    model, _ = load_model(folder)
    state = as_release(model.state_dict()) | _beside(folder / EXTRA_STATE, config)
    state = {key: state[key].contiguous() for key in sorted(state, key=release_order)}
    if out.suffix == ".safetensors":
        save_tensors(state, out, {AUTHOR: PROGRAM.decode()})
        return
    with atomic_write(out) as part:
        torch.save({"model": state}, part)
        with zipfile.ZipFile(part, "a") as file:
            file.writestr(f"{file.namelist()[0].split('/')[0]}/{AUTHOR}", PROGRAM)  # torch wants it in its folder


AUTHOR, PROGRAM = "author", b"dshmp"
"""Says who wrote a file; whoever loads the tensors does not see it."""


def _is_ours(path: Path) -> bool:
    """Whether `to_release` wrote this file."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return bool((file.metadata() or {}).get(AUTHOR) == PROGRAM.decode())
        with zipfile.ZipFile(path) as file:
            return any(file.read(name) == PROGRAM for name in file.namelist() if name.endswith(f"/{AUTHOR}"))
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError):
        return False


def _check_fit(folder: Path, config: ModelConfig) -> None:
    """Refuse what the authors' code has no place for, and warn of what it will do otherwise."""
    ours, theirs = (dict(flat(to_dict(item))) for item in (config, release_config(config)))
    differing = [key for key in ours if ours[key] != theirs[key]]
    blocked = [f"{key} = {ours[key]} (not {theirs[key]})" for key in differing if key in CARRIERS]
    heads, pixel_heads = config.frame_decoder.heads, config.pixel_decoder.heads
    if heads != pixel_heads:
        blocked.append(f"frame_decoder.heads = {heads} (not {pixel_heads}, the pixel decoder's)")
    if blocked:
        raise UserError(f"{folder}: the authors' code has no place for {', '.join(blocked)}")
    fixed = {"pixel_decoder.ffn", "motion.contrast_size", *(f"language.encoder.{key}" for key in ROBERTA_BASE)}
    if changed := _differing(config, ModelConfig(), fixed):
        log.warning("%s: the authors' code fixes %s; it has to be changed there", folder, ", ".join(changed))
    silent = [f"{key} = {ours[key]} (there {theirs[key]})" for key in differing if key not in CARRIERS]
    if silent:
        log.warning("%s: the authors' code reads these weights by its own rules, not %s", folder, ", ".join(silent))


def _differing(ours: ModelConfig, theirs: ModelConfig, among: Container[str] | None = None) -> list[str]:
    """The values that differ, of all or of those named `among`."""
    there = dict(flat(to_dict(theirs)))
    return [
        f"{key} = {value} (there {there[key]})"
        for key, value in flat(to_dict(ours))
        if key in there and there[key] != value and (among is None or key in among)
    ]


def relative_position_index(window: int) -> Tensor:
    """The row of Swin's bias table for each pair of a window's pixels: int64 (w*w, w*w)."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = (axis.flatten()[:, None] - axis.flatten() + window - 1 for axis in (y, x))
    return rows * (2 * window - 1) + columns


def _fresh(config: ModelConfig, device: torch.device) -> dict[str, Tensor]:
    """What the release keeps beside its parameters, as a fresh model of theirs has it."""
    backbone = config.backbone
    with device:
        index = relative_position_index(backbone.window_size)
        fresh = {
            f"backbone.layers.{stage}.blocks.{block}.attn.relative_position_index": index.clone()  # files share none
            for stage, depth in enumerate(backbone.depths)
            for block in range(depth)
        }
        for name in ("criterion", "vita_criterion"):
            fresh[f"{name}.empty_weight"] = torch.tensor([1.0, 0.1])
        generator = torch.Generator().manual_seed(0) if device.type == "cpu" else None
        fresh[BANK] = torch.randn(MEMORY_ROWS, config.motion.contrast_size, generator=generator)
    return fresh


def _beside(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """What the release keeps beside its parameters: as converted, where that was kept, else as it starts."""
    kept = load_tensors(path) if path.exists() else {}
    _check_left_overs(path, kept, config)
    return _fresh(config, torch.device("cpu")) | kept
