"""Checkpoints of a run: written whole or not at all, told from damaged ones, the newest few kept.

A checkpoint is one safetensors file with every tensor that is needed to go on; plain numbers and a checksum of the
tensors stand in its header as JSON.
"""

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dshmp.checkpoint import load_tensors
from dshmp.errors import UserError
from dshmp.files import FULL

log = logging.getLogger("dshmp")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    """Plain numbers and names, JSON."""


class Checkpoints:
    """The checkpoints in a folder, the newest `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, saved: Saved) -> None:
        """Write one, aside first; then remove those that are too old."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{saved.step:08d}.safetensors"
        part = path.with_suffix(".part")
        header = {"step": saved.step, "checksum": checksum(saved.tensors), "facts": saved.facts}
        try:
            save_file(saved.tensors, part, metadata={"dshmp": json.dumps(header)})
            _sync(part)  # the name must not be on the disk before the content
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        _sync(self.folder)
        for old in self.paths()[: -self.keep]:
            old.unlink()

    def newest(self) -> Saved | None:
        """The newest that is whole, with a warning for each that is not; None where there is none at all.

        Raises UserError where all are damaged.
        """
        for part in self.folder.glob("*.part"):
            part.unlink(missing_ok=True)
        trouble: UserError | None = None
        for path in reversed(self.paths()):
            try:
                found = _read(path)
            except UserError as error:
                trouble = trouble or error
                log.warning("%s; trying the checkpoint before", error)
                continue
            if trouble is not None:
                log.warning("going on from step %d, %s", found.step, path)
            return found
        if trouble is not None:
            raise UserError(f"{trouble}; no other one is left, so remove {self.folder} to start anew")
        return None


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _read(path: Path) -> Saved:
    from safetensors import SafetensorError, safe_open

    tensors = load_tensors(path)
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["dshmp"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged: it is no checkpoint of a run") from None
    if header["checksum"] != checksum(tensors):
        raise UserError(f"{path}: damaged: its content is not what was written")
    return Saved(header["step"], tensors, header["facts"])


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all names and values; tensors on the CPU, contiguous."""
    total = 0
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(value.numpy().reshape(-1).view("uint8").data, total)
    return total


@contextmanager
def disk_full_guard(folder: Path) -> Iterator[None]:
    """Makes of a full disk one clear line, a UserError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        known = [f"os error {number}" in str(error) for number in FULL]  # safetensors tells the number in words only
        if not any(known) and getattr(error, "errno", None) not in FULL:
            raise
        raise UserError(
            f"{folder}: the disk is full; make room and start the same command again, which goes on from the last "
            "checkpoint that was written whole"
        ) from None
