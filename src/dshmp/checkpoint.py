"""A model on disk: a folder with config.json, model.safetensors, tokenizer.json and README.md. Nothing is unpickled.

config.json holds its version, the model's numbers and its card (`dshmp.card`), of which the README.md is made.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from dshmp.card import HERE, Card, model_card
from dshmp.common.assignments import assign, merge
from dshmp.common.errors import UserError
from dshmp.common.files import atomic_folder, check_utf8, read_settings, reason, regular, save_tensors
from dshmp.common.hub import looks_local
from dshmp.config import EncoderConfig, InputConfig, ModelConfig, ReleaseConfig, from_dict, to_dict
from dshmp.interop.keymap import check_match, renamed, some
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import TextTokenizer, load_tokenizer, save_tokenizer

CONFIG, WEIGHTS, TOKENIZER, README = "config.json", "model.safetensors", "tokenizer.json", "README.md"
EXTRA_STATE = "release.safetensors"  # what the authors' checkpoint holds beyond the model, where it was made of one
FILES = (CONFIG, WEIGHTS, TOKENIZER, README, EXTRA_STATE)
VERSION = 6

PLAIN = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
PLAIN |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}


@dataclass(frozen=True, kw_only=True)
class SavedConfig:
    version: int
    model: ModelConfig
    card: Card


def save_model(
    model: DsHmp,
    tokenizer: TextTokenizer,
    folder: Path,
    card: Card | None = None,
    where: str = HERE,
    extra_state: Path | None = None,
) -> None:
    """Write the model, first aside, then file by file to its place, so that what was there stays whole.

    `where` is what the README says to load, a folder or an id on the hub; `extra_state` goes with it as `EXTRA_STATE`.
    """
    check_model_folder(folder)
    with atomic_folder(folder) as work:
        _describe(work, model.config, card or Card(), where)
        save_tokenizer(tokenizer.tokenizer, work / TOKENIZER)
        save_tensors(model.state_dict(), work / WEIGHTS)
        if extra_state is not None:
            shutil.copyfile(extra_state, work / EXTRA_STATE)


def check_model_folder(folder: Path) -> None:
    """Refuse to put a model where it would replace files that are not of a model of this program."""
    there = [name for name in FILES if os.path.lexists(folder / name)]
    try:
        if there:
            load_config(folder / CONFIG)
    except UserError:
        raise UserError(f"{folder}: holds {some(there)}, but no model of this program; name another folder") from None


def _describe(folder: Path, config: ModelConfig, card: Card, where: str) -> None:
    saved = to_dict(SavedConfig(version=VERSION, model=config, card=card))
    (folder / CONFIG).write_text(json.dumps(saved, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / README).write_text(str(model_card(card, where)), encoding="utf-8", errors="replace")


def save_card(folder: Path, card: Card) -> None:
    """Remake config.json and README.md of a model's folder with another card, both or none."""
    config = load_config(folder / CONFIG).model
    with atomic_folder(folder) as work:
        _describe(work, config, card, HERE)


def own_folder(source: str | Path) -> Path:
    """The user's folder of a whole model or training run, whose card may be filled; or UserError."""
    package = Path(str(resources.files("dshmp"))).resolve()
    if source == "default" or not Path(source).is_dir() or Path(source).resolve().is_relative_to(package):
        raise UserError(f"{source}: is no model's folder of yours, so there is no card to fill; save the model to one")
    folder = find_model(source).resolve()
    load_config(folder / CONFIG)
    if missing := [name for name in (WEIGHTS, TOKENIZER) if not (folder / name).is_file()]:
        raise UserError(f"{folder}: holds no whole model ({missing[0]} is missing); name another folder")
    return folder


def load_model(
    source: str | Path = "default", overrides: Iterable[str] = (), **hub: Any
) -> tuple[DsHmp, TextTokenizer]:
    """Load a model in evaluation mode, on the CPU, float32. UserError where it is missing, damaged, or not one of ours.

    Args:
        source: "default" (ships with the package), a model's folder, a training run's folder, or an id on the hub.
        overrides: `key=value` for numbers that need no training, such as `input.short_side=256`.
        hub: options of huggingface_hub's `snapshot_download`, such as `revision`.
    """
    folder = find_model(source, **hub)
    config = overridden(load_config(folder / CONFIG).model, overrides)
    model = empty_model(config, folder / CONFIG)
    state = load_weights(folder)
    check_match(folder / WEIGHTS, state, model.state_dict(), "it belongs to another config")
    model.load_state_dict(as_float32(folder / WEIGHTS, state), assign=True)
    tokenizer = TextTokenizer(config, load_tokenizer(folder / TOKENIZER))
    return model.eval(), tokenizer


class _Undrawn(TorchFunctionMode):
    """No random numbers are drawn: for tensors without storage they are for nothing, and torch would import all of its
    compiler, which takes two seconds."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def overridden(config: ModelConfig, overrides: Iterable[str]) -> ModelConfig:
    """The config with `key=value` laid over its section `input`, the only one that may change without training."""
    given = assign({}, overrides)
    if wrong := given.keys() - {"input"}:
        keys = ", ".join(f"input.{key}" for key in to_dict(config.input))
        raise UserError(f"{min(wrong)}: cannot be set for a run; what can: {keys}")
    section = merge({"input": to_dict(config.input)}, given)["input"]
    return replace(config, input=from_dict(InputConfig, section, "input"))


def build_model(config: ModelConfig, where: str | Path) -> DsHmp:
    """A model with fresh weights; UserError, naming `where`, if the config's numbers do not fit together."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of libraries, about numbers that are as they are
            model = DsHmp(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # transformers validates by classes of its own
        raise UserError(f"{where}: no model can be built from this config ({reason(error)})") from None
    encoder, longest = config.language.encoder, config.language.max_tokens
    kind = "roberta" if isinstance(encoder, EncoderConfig) else encoder.architecture["model_type"]
    counts_on = "roberta" in kind or kind in ("camembert", "mpnet")  # these count from after their <pad>
    needed = longest + (encoder.pad_token_id + 1 if counts_on else 0)
    if encoder.max_position_embeddings is not None and needed > encoder.max_position_embeddings:
        fault = f"language.max_tokens is {longest}, for which language.encoder.max_position_embeddings must be at least"
        raise UserError(f"{where}: {fault} {needed}, found {encoder.max_position_embeddings}")
    return model


def empty_model(config: ModelConfig, where: str | Path) -> DsHmp:
    """As `build_model`, but shapes alone, whatever size the config claims; weights come with `assign=True`."""
    with torch.device("meta"), _Undrawn():
        return build_model(config, where)


def find_model(source: str | Path, **hub: Any) -> Path:
    """The folder that holds the model's files, fetched from the hub if need be."""
    if str(source) == "default":
        return Path(str(resources.files("dshmp") / "assets" / "default"))
    folder = Path(source)
    for candidate in (folder, folder / "model"):
        if os.path.isfile(candidate / CONFIG):  # which takes names of any kind
            return candidate
    if os.path.isdir(folder):
        raise UserError(f"{folder}: holds no model ({CONFIG} is missing); name a model's or a run's folder")
    if looks_local(source) or "/" not in str(source):
        raise UserError(f"{source}: no such model; name `default`, a folder, or an id `owner/name` on the hub")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(source), allow_patterns=list(FILES), **hub))
    except Exception as error:  # the hub client raises a dozen kinds: no network, no such id, no permission
        raise UserError(f"{source}: is neither a folder here nor to be had from the hub ({reason(error)})") from None
    if not (folder / CONFIG).is_file():
        raise UserError(f"{source}: holds no model on the hub ({CONFIG} is missing)")
    return folder


def load_config(path: Path) -> SavedConfig:
    """What a config.json holds. Raises UserError where it is missing or damaged, or not one of ours."""
    try:
        values = json.loads(read_settings(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a model's configuration ({reason(error)})") from None
    version = values.get("version") if isinstance(values, dict) else None
    if type(version) is not int:
        raise UserError(f"{path}: is not a configuration of this program (the key `version` has no whole number)")
    if not 1 <= version <= VERSION:
        raise UserError(f"{path}: has version {version}, not 1 to {VERSION}; for a newer one: pip install -U dshmp")
    return from_dict(SavedConfig, values if version == VERSION else upgraded(values), path.name, complete=True)


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json of version 1 to 5 as this version has it.

    Since 1, the card and Video-Swin are new. Since 2, what only equality with the authors' code needs has a section of
    its own, and one epsilon, never changed, is gone. Since 3, the text encoder has all of its numbers; weights have
    other names (`load_weights`). Since 4, candidates have geometry, which older models do not read, and since 5
    appearance.
    """
    model = values.get("model")
    new: dict[str, dict[str, Any]] = {"motion": {"appearance": 0}}
    if values["version"] < 5:
        off = {"geometry": False, "static": False, "camera": False, "token_dropout": 0.0, "object_position": True}
        new = {"motion": new["motion"] | off, "readout": {"pointing": "soft"}}
    for name, keys in new.items():
        if isinstance(model, dict) and isinstance(section := model.get(name), dict):
            model = model | {name: keys | section}
    if isinstance(model, dict) and isinstance(language := model.get("language"), dict):
        encoder = language.get("encoder")
        if isinstance(encoder, dict) and values["version"] < 5:  # what it did not tell was as transformers has it
            theirs = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "max_position_embeddings": 512}
            encoder = to_dict(EncoderConfig()) | (theirs if values["version"] < 4 else {}) | encoder
            model = model | {"language": language | {"encoder": encoder}}
    if isinstance(model, dict) and values["version"] < 3:
        sections = {name: section for name, section in model.items() if isinstance(section, dict)}
        release = to_dict(ReleaseConfig())
        release |= {key: each[key] for each in sections.values() for key in release if key in each}
        for name, section in sections.items():
            kept = {key: value for key, value in section.items() if key not in (*release, "resizer_norm_eps")}
            model = model | {name: {"temporal_window": None, "clip": 32} | kept if name == "backbone" else kept}
        model = model | {"release": release}
    return {"card": to_dict(Card()), **values, "version": VERSION, "model": model}


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model's folder, of whatever version, under the names of today. UserError as `load_tensors`."""
    state = load_tensors(folder / WEIGHTS)
    if not any(".patch_embeddings." in key for key in state):  # the mark of versions 1 to 3
        return state
    try:
        return renamed(state)
    except (KeyError, RuntimeError) as error:  # a part of what belongs together is missing, or of another size
        raise UserError(f"{folder / WEIGHTS}: its weights do not fit together ({reason(error)})") from None


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. UserError where it is missing or damaged, or holds NaN or infinity."""
    if not path.exists():
        raise UserError(f"{path}: the weights are missing; copy the whole folder again")
    try:
        with open(path, "rb", opener=regular):
            state: dict[str, torch.Tensor] = load_file(check_utf8(path))
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({reason(error)}); fetch it again") from None
    check_finite(path, state)
    return state


def check_plain(path: str | Path, key: str, value: torch.Tensor) -> None:
    """UserError, naming `path`, unless it is a dense tensor of real numbers on the CPU."""
    dense = not value.is_nested and value.layout == torch.strided and value.device.type == "cpu"
    if not dense or value.dtype not in PLAIN:
        raise UserError(f"{path}: {key} is no plain tensor of numbers ({value.dtype}, {value.layout})")


def check_finite(path: str | Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raises UserError, naming `path`, unless these are plain tensors of finite numbers."""
    for key, value in state.items():
        check_plain(path, key, value)
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: {key} holds NaN or infinity; it is damaged, or the training behind it diverged")


def as_float32(path: str | Path, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of weights in the type that the model computes in. Raises UserError where they are none, or beyond its
    range."""
    if whole := [key for key, value in state.items() if not value.is_floating_point()]:
        raise UserError(f"{path}: {whole[0]} holds whole numbers, no weights")
    weights = {key: value.to(torch.float32, copy=True) for key, value in state.items()}
    check_finite(path, weights)
    return weights
