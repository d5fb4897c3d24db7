"""Public models of transformers, from a folder or the Hugging Face hub: configuration and safetensors, nothing else."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dshmp.common.errors import UserError
from dshmp.common.files import reason
from dshmp.common.hub import looks_local

log = logging.getLogger("dshmp")

CONFIG = "config.json"
WEIGHTS = "model*.safetensors"
_FILES = ("*.json", "*.txt", WEIGHTS)  # no pickle and no code is fetched
_UNUSED = 0.01  # share of the weights that older files may lack: norms that transformers makes and never applies


def find_folder(source: str, revision: str, about: str) -> Path:
    """The folder of a model: itself, or what the hub has under the id `source`; `about` (size, licence) is told before
    a download. Raises UserError where there is none."""
    folder = Path(source)
    if folder.is_dir() or looks_local(source) or "/" not in source:
        if not (folder / CONFIG).is_file():
            raise UserError(f"{source}: no folder with a {CONFIG}; name one, or an id `owner/name` on the hub")
        return folder
    from huggingface_hub import is_offline_mode, snapshot_download

    asked: dict[str, Any] = {"repo_id": source, "revision": revision, "allow_patterns": list(_FILES)}
    with contextlib.suppress(Exception):  # it was never fetched
        if _is_whole(folder := Path(snapshot_download(**asked, local_files_only=True))):
            return folder
    if not is_offline_mode():
        log.warning("fetching %s from the Hugging Face hub, once: %s", source, about)
    try:
        with _errors_alone():
            folder = Path(snapshot_download(**asked))
    except Exception as error:  # the hub client raises a dozen kinds: no network, no such id, no permission
        way = "fetch it where there is a network, and name its folder"
        raise UserError(f"{source}: is not to be had from the hub ({reason(error)}); {way}") from None
    if not _is_whole(folder):
        raise UserError(f"{source}: holds no {CONFIG} and {WEIGHTS} on the hub; name another id or revision")
    return folder


def _is_whole(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and any(folder.glob(WEIGHTS))


def load(kind: Any, folder: Path, device: torch.device) -> Any:
    """The model of transformers' class `kind`, in evaluation mode, float32. Raises UserError where the folder holds
    another or a damaged one."""
    try:
        known = kind.config_class.model_type
        found = kind.config_class.get_config_dict(folder, local_files_only=True)[0].get("model_type")
        if found != known:
            raise ValueError(f"its model_type is {found}, not {known}")
        plain: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
        with _quiet():
            model, told = kind.from_pretrained(folder, **plain, output_loading_info=True)
        sizes = {name: value.numel() for name, value in model.named_parameters()}
        missing = [name for name in sorted(told["missing_keys"]) if name in sizes]
        if sum(sizes[name] for name in missing) > _UNUSED * sum(sizes.values()):
            raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} more")
        return model.to(device).eval()
    except Exception as error:  # files raise a dozen kinds: missing, damaged, of other shapes
        raise UserError(f"{folder}: cannot be loaded as transformers' {kind.__name__} ({reason(error)})") from None


@contextlib.contextmanager
def _errors_alone() -> Iterator[None]:
    """Without the hub client's line for each time that it tries again."""
    theirs = logging.getLogger("huggingface_hub")
    level = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        yield
    finally:
        theirs.setLevel(level)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar for each file, and its table of weights."""
    from transformers.utils import logging as theirs

    bar, level = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    theirs.disable_progress_bar()
    theirs.set_verbosity_error()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bar:
            theirs.enable_progress_bar()


def load_part(kind: Any, folder: Path) -> Any:
    """A tokeniser or the like, from the model's folder. Raises UserError."""
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder}: cannot be loaded as transformers' {kind.__name__} ({reason(error)})") from None
