"""What `dshmp info` tells for a bug report: versions, devices, codecs, extras, models and room on disk; no data of the
user's. What is missing or broken is told, too, not raised: it may be the very fault."""

import json
import os
import platform
import re
import shutil
import tempfile
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from dshmp import __version__
from dshmp.common.files import reason

CODECS = ("libx264", "prores_ks", "libvpx-vp9")  # what videos are written with
BESIDE = {"sam3": ["torchvision"]}  # what is no extra, since it must fit torch
LICENCES = {
    "open": {"detector": "Apache 2.0", "segmenter": "Apache 2.0"},
    "coco": {"model": "see its card"},
    "sam3": {"model": "SAM License"},
}
"""Source of candidates -> its settings that name a model -> that model's licence."""


def collect() -> dict[str, Any]:
    """Everything, as JSON has it; sizes are in bytes, and what is not there is None."""
    needed, extras = _requirements()
    system = {"dshmp": __version__, "python": platform.python_version(), "system": platform.platform()}
    return {
        "versions": system | {name: _version(name) for name in needed},
        "devices": _devices(),
        "codecs": _codecs(),
        "extras": {extra: {name: _version(name) for name in names} for extra, names in extras.items()},
        "models": _models(),
        "cache": _cache(),
        "free": {"temporary folder": _free(tempfile.gettempdir()), "current folder": _free(os.curdir)},
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    none = "missing"
    told = [f"{name} {value or none}" for name, value in found["versions"].items()]
    for device in found["devices"]:
        told.append(f"device {device['device']}: {device['about']}, precision {device['precision']}")
    told += [f"codec {name}: {'yes' if there else 'no'}" for name, there in found["codecs"].items()]
    for extra, packages in found["extras"].items():
        told.append(f"extra {extra}: {', '.join(f'{name} {there or none}' for name, there in packages.items())}")
    for model in found["models"]:
        size = "not fetched" if model["bytes"] is None else _size(model["bytes"])
        data = f", trained on {model['data']}" if model.get("data") else ""
        told.append(f"model {model['name']}: {size}, licence {model['licence']}{data}")
    told.append(f"cache of models: {found['cache']}")
    return told + [f"free in the {place}: {_size(count)}" for place, count in found["free"].items()]


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Packages that dshmp needs, and extra -> packages that it brings."""
    try:
        listed = metadata.requires("dshmp") or []
    except metadata.PackageNotFoundError:  # run from a folder
        listed = []
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    for text in listed:
        name = re.split(r"[^\w.-]", text, maxsplit=1)[0]
        extra = re.search(r"extra == .([\w-]+)", text)
        (extras.setdefault(extra[1], []) if extra else needed).append(name)
    return needed, extras | BESIDE


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, str]]:
    """The device that `auto` means is the first."""
    cores, memory = os.cpu_count(), None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    about = f"{platform.machine()}, {cores} cores" + (f", {_size(memory)}" if memory else "")
    try:
        import torch
    except Exception as error:  # a library of the system is missing, or of another version
        return [{"device": "cpu", "about": f"{about}; torch cannot be loaded ({reason(error)})", "precision": "none"}]
    found = []
    for index in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(index)
        device = {"device": f"cuda:{index}", "about": f"{known.name}, {_size(known.total_memory)}"}
        found.append(device | {"precision": _gpu_precision(torch.device("cuda", index))})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "about": "Apple's GPU", "precision": "float32"})
    return [*found, {"device": "cpu", "about": f"{about}, {torch.get_num_threads()} threads", "precision": "float32"}]


def _gpu_precision(device: Any) -> str:
    """What --precision auto means for the default model."""
    from dshmp.inference.runtime import dtype

    own = json.loads((_default() / "config.json").read_bytes())["model"]["release"]["autocast"]
    return str(dtype("auto", device, own)).removeprefix("torch.")


def _codecs() -> dict[str, bool]:
    try:
        from av.codec import codecs_available
    except Exception:  # a library of the system is missing
        return dict.fromkeys(CODECS, False)
    return {name: name in codecs_available for name in CODECS}


def _models() -> list[dict[str, Any]]:
    """The default model, what finds what moves, and the public models, as far as they are in the hub's cache."""
    card = json.loads((_default() / "config.json").read_bytes())["card"]
    size = (_default() / "model.safetensors").stat().st_size
    found: list[dict[str, Any]] = [
        {"name": "default", "bytes": size, "licence": card["licence"], "data": card["data"].rstrip(".")}
    ]
    try:
        from dshmp.candidates import find_source

        for kind, settings in LICENCES.items():
            source = find_source(kind)  # type: ignore[arg-type]
            for setting, licence in settings.items():
                revision = getattr(source, "revision" if setting == "model" else f"{setting}_revision")
                name = getattr(source, setting)
                found.append({"name": name, "bytes": _cached(name, revision), "licence": licence, "for": kind})
    except Exception as error:  # a library cannot be loaded, which the list of devices tells
        found.append({"name": "of --candidates", "bytes": None, "licence": f"not known ({reason(error)})"})
    return found


def _cached(name: str, revision: str) -> int | None:
    """Bytes of a model in the hub's cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(path, str):
        return None
    return sum(file.stat().st_size for file in Path(path).parent.rglob("*") if file.is_file())


def _cache() -> str:
    """Where fetched models lie, without the name of the user's home."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE)
    return str(Path("~") / place.relative_to(Path.home()) if place.is_relative_to(Path.home()) else place)


def _default() -> Path:
    return Path(str(resources.files("dshmp") / "assets" / "default"))


def _free(folder: str) -> int:
    return shutil.disk_usage(folder).free


def _size(count: float) -> str:
    """Bytes for people: 10.6 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
