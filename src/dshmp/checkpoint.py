"""A model on disk: a folder with config.json, model.safetensors and tokenizer.json. Nothing is unpickled."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from dshmp.config import ModelConfig, from_dict, to_dict
from dshmp.errors import UserError
from dshmp.language.encoder import TextTokenizer, load_tokenizer, save_tokenizer
from dshmp.model import DsHmp

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
VERSION = 1


def save_model(model: DsHmp, tokenizer: TextTokenizer, folder: Path) -> None:
    """Write the model; all files to temporary names first, then renamed, so that what was there stays whole."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"version": VERSION, "model": to_dict(model.config)}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    parts = {name: folder / f"{name}.part" for name in (CONFIG, TOKENIZER, WEIGHTS)}
    try:
        parts[CONFIG].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_tokenizer(tokenizer.tokenizer, parts[TOKENIZER])
        save_file(state, parts[WEIGHTS])
        for name, part in parts.items():
            part.replace(folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def load_model(source: str | Path = "default") -> tuple[DsHmp, TextTokenizer]:
    """Load a model in evaluation mode, on the CPU, float32.

    Args:
        source: "default" (ships with the package), a model's folder, a training run's folder, or the id of a
            model on the Hugging Face hub.

    Raises:
        UserError: it is missing, damaged, or not a model of this program; the message names the file.
    """
    folder = find_model(source)
    config = load_config(folder / CONFIG)
    model = build_model(config, folder / CONFIG)
    _load_weights(model, folder / WEIGHTS)
    tokenizer = TextTokenizer(config.language, load_tokenizer(folder / TOKENIZER))
    return model.eval(), tokenizer


def build_model(config: ModelConfig, where: str | Path) -> DsHmp:
    """A model with fresh weights; UserError, naming `where`, if the config's numbers do not fit together."""
    try:
        model = DsHmp(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{where}: no model can be built from this config ({' '.join(str(error).split())})") from None
    encoder, longest = model.language.encoder.config, config.language.max_tokens
    room = encoder.max_position_embeddings - encoder.pad_token_id - 1  # RoBERTa counts from after its <pad>
    if room < longest:
        raise UserError(
            f"{where}: language.max_tokens is {longest}, but language.encoder.max_position_embeddings = "
            f"{encoder.max_position_embeddings} has room for {room} tokens; it must be at least "
            f"{longest + encoder.pad_token_id + 1}"
        )
    return model


def find_model(source: str | Path) -> Path:
    """The folder that holds the model's files."""
    if str(source) == "default":
        return Path(str(resources.files("dshmp") / "assets" / "default"))
    folder = Path(source)
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    if folder.is_dir():
        raise UserError(f"{folder}: holds no model ({CONFIG} is missing); name a model's or a run's folder")
    if folder.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise UserError(f"{source}: no such model; name `default`, a folder, or an id `owner/name` on the hub")
    return _download(str(source))


def load_config(path: Path) -> ModelConfig:
    """The strict reading of a config.json."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a model's configuration ({error})") from None
    if not isinstance(values, dict) or "model" not in values:
        raise UserError(f"{path}: is not a configuration of this program (the key `model` is missing)")
    if values.get("version") != VERSION:
        raise UserError(f"{path}: has version {values.get('version')!r}, this program reads version {VERSION}")
    return from_dict(ModelConfig, values["model"], path.name)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; UserError where it is missing or damaged or holds NaN."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path}: the weights are missing; copy the whole folder again")
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error}); fetch it again") from None
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: {key} holds NaN or infinity; the training behind it diverged")
    return state


def _load_weights(model: DsHmp, path: Path) -> None:
    state, own = load_tensors(path), model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        kind, keys = ("lacks", missing) if missing else ("has unknown", extra)
        raise UserError(f"{path}: {kind} {', '.join(keys[:3])} ({len(keys)} in all); it belongs to another config")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise UserError(f"{path}: {key} has shape {list(value.shape)}, the config asks {list(own[key].shape)}")
    model.load_state_dict(state)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, TOKENIZER]))
    except Exception as error:  # the hub client raises a dozen kinds: no network, no such id, no permission
        first: Any = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name}: is neither a folder here nor to be had from the hub ({first})") from None
