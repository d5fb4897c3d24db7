"""A model on disk: a folder with config.json, model.safetensors, tokenizer.json and README.md. Nothing is unpickled.

config.json holds the version of its form, the model's numbers and its card (`dshmp.card`), from which the README.md is
made. Older versions are read by way of `UPGRADES`.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from dshmp.card import HERE, Card, model_card
from dshmp.config import ModelConfig, from_dict, to_dict
from dshmp.errors import UserError
from dshmp.language.encoder import TextTokenizer, load_tokenizer, save_tokenizer
from dshmp.model import DsHmp

CONFIG, WEIGHTS, TOKENIZER, README = "config.json", "model.safetensors", "tokenizer.json", "README.md"
SHARDS = f"{WEIGHTS}.index.json"
"""Names the parts of weights in several files; fetched with ours so that a model of that kind can be told."""
VERSION = 2

JSON = dict[str, Any]


class HubOptions(TypedDict, total=False):
    """How a model is fetched from the Hugging Face hub, in huggingface_hub's terms; a folder's has no use for them."""

    revision: str | None
    """Branch, tag or commit."""
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool


@dataclass(frozen=True, kw_only=True)
class SavedConfig:
    """What config.json holds."""

    version: int
    model: ModelConfig
    card: Card = field(default_factory=Card)


def save_model(
    model: DsHmp, tokenizer: TextTokenizer, folder: Path, card: Card | None = None, where: str = HERE
) -> None:
    """Write the model; all files to temporary names first, then renamed, so that what was there stays whole.

    Args:
        where: what the README says to load: a folder or an id on the hub.
    """
    from safetensors.torch import save_file

    card = card or Card()
    folder.mkdir(parents=True, exist_ok=True)
    config = to_dict(SavedConfig(version=VERSION, model=model.config, card=card))
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    parts = {name: folder / f"{name}.part" for name in (CONFIG, TOKENIZER, README, WEIGHTS)}
    try:
        parts[CONFIG].write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        save_tokenizer(tokenizer.tokenizer, parts[TOKENIZER])
        parts[README].write_text(str(model_card(card, where)), encoding="utf-8", errors="replace")
        save_file(state, parts[WEIGHTS])
        shutil.copymode(parts[CONFIG], parts[WEIGHTS])  # safetensors shuts out all but the owner
        for name, part in parts.items():
            part.replace(folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def load_model(source: str | Path = "default", **hub: Unpack[HubOptions]) -> tuple[DsHmp, TextTokenizer]:
    """Load a model in evaluation mode, on the CPU, float32.

    Args:
        source: "default" (ships with the package), a model's folder, a training run's folder, or the id of a
            model on the Hugging Face hub.
        hub: how it is fetched from the hub.

    Raises:
        UserError: it is missing, damaged, or not a model of this program; the message names the file.
    """
    folder = find_model(source, **hub)
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


def find_model(source: str | Path, **hub: Unpack[HubOptions]) -> Path:
    """The folder that holds the model's files, fetched from the hub if need be."""
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
    return _download(str(source), **hub)


def load_config(path: Path) -> ModelConfig:
    """The strict reading of a config.json."""
    return _load(path).model


def load_card(path: Path) -> Card:
    """The card of a config.json; an empty one where the file is of before there were any."""
    return _load(path).card


def _load(path: Path) -> SavedConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a model's configuration ({error})") from None
    version = values.get("version") if isinstance(values, dict) else None
    number = version if isinstance(version, int) and not isinstance(version, bool) else None
    if number is not None and number > VERSION:
        raise UserError(f"{path}: made by a newer dshmp (version {number}); upgrade: pip install -U dshmp")
    if not isinstance(values, dict) or "model" not in values:
        raise UserError(f"{path}: is not a configuration of this program (the key `model` is missing)")
    if number is None:
        raise UserError(f"{path}: has version {version!r}; expected a whole number up to {VERSION}")
    for step in range(number, VERSION):
        if step not in UPGRADES:
            raise UserError(f"{path}: has version {number}; versions {min(UPGRADES)} to {VERSION} can be read")
        values = UPGRADES[step](values)
    return from_dict(SavedConfig, values, path.name)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _from_1(values: JSON) -> JSON:
    """The card is new; of the model, what has been added since is as it was before there was a choice."""
    added: dict[str, JSON] = {
        "backbone": {"temporal_window": None},
        "readout": {"score": "class"},
        "input": {"autocast": "bfloat16"},
    }
    return {"version": 2, "model": _completed(values["model"], added)}


def _completed(values: Any, added: Mapping[str, JSON]) -> Any:
    """`values` with what is added to its sections where they lack it; what is no section is left to the strict
    reading."""
    if not isinstance(values, dict):
        return values
    sections = {key: values.get(key, {}) for key in added}
    return values | {key: added[key] | section for key, section in sections.items() if isinstance(section, dict)}


UPGRADES: Mapping[int, Callable[[JSON], JSON]] = {1: _from_1}
"""Version -> the content of a config.json of that version as the next version has it."""


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; UserError where it is missing or damaged or holds NaN."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        if path.with_name(SHARDS).is_file():
            raise UserError(f"{path.parent}: its weights are in several files ({SHARDS}); dshmp reads one, {WEIGHTS}")
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


def _download(name: str, **hub: Unpack[HubOptions]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, TOKENIZER, README, SHARDS], **hub))
    except Exception as error:  # the hub client raises a dozen kinds: no network, no such id, no permission
        raise UserError(f"{name}: is neither a folder here nor to be had from the hub ({reason(error)})") from None
    if not (folder / CONFIG).is_file():
        raise UserError(f"{name}: holds no model on the hub ({CONFIG} is missing)")
    return folder


def reason(error: Exception) -> str:
    """What the hub client says, in one line: the first is often but the status, so it takes two."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
