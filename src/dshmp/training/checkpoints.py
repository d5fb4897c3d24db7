"""Checkpoints of a run, the newest few: safetensors files, with plain numbers and a checksum as JSON in the header."""

import json
import logging
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dshmp.checkpoint import load_tensors
from dshmp.common.errors import UserError
from dshmp.common.files import save_tensors

log = logging.getLogger("dshmp")


@dataclass(frozen=True)
class Saved:
    step: int
    tensors: dict[str, Tensor]  # on the CPU, contiguous
    facts: dict[str, Any]  # plain numbers and names, JSON


@dataclass(frozen=True)
class Checkpoints:
    folder: Path
    keep: int

    def paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*.safetensors") if not path.is_dir())

    def save(self, saved: Saved) -> None:
        """Write one; then remove those that are too old. Raises UserError where it cannot be written."""
        header = {"step": saved.step, "checksum": checksum(saved.tensors), "facts": saved.facts}
        header["seal"] = _seal(header)
        path = self.folder / f"step-{saved.step:08d}.safetensors"
        save_tensors(saved.tensors, path, {"dshmp": json.dumps(header)})
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # it is on the disk before older ones are removed
        for old in self.paths()[: -self.keep]:
            old.unlink()

    def newest(self) -> Saved | None:
        """The newest that is whole, with a warning for each that is not; None where there is none at all. Raises
        UserError where all are damaged."""
        damage = None
        for path in reversed(self.paths()):
            try:
                return _read(path)
            except UserError as error:
                damage = damage or error
                log.warning("%s; going on from the checkpoint before", error)
        if damage:
            raise UserError(f"{damage}; no other one is left, so remove {self.folder} to start anew")
        return None


def _read(path: Path) -> Saved:
    tensors = load_tensors(path)
    with suppress(SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):  # no run's
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["dshmp"])
        whole = header.get("seal", _seal(header)) == _seal(header)  # old ones have none
        if whole and header["checksum"] == checksum(tensors):
            return Saved(header["step"], tensors, header["facts"])
    raise UserError(f"{path}: damaged: its content is not what was written")


def _seal(header: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps([header[key] for key in ("step", "checksum", "facts")]).encode())


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all names and values; tensors on the CPU, contiguous."""
    total = 0
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(value.numpy().reshape(-1).view("uint8").data, total)
    return total
