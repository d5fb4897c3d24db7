"""Checkpoints of other programs: what is read, and what every kind of broken file is told."""

import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy._core.multiarray import scalar
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from dshmp.common.errors import UserError
from dshmp.interop.safe_load import read_tensors

STATE = {"a.weight": torch.arange(12.0).view(3, 4), "a.count": torch.tensor(3), "b": torch.ones(7001).half()}


def legacy(value: object, path: Path, pickle_protocol: int = 2) -> None:
    torch.save(value, path, pickle_protocol=pickle_protocol, _use_new_zipfile_serialization=False)


def safe(value: dict[str, Tensor], path: Path) -> None:
    save_file(value, path)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x"])
@pytest.mark.parametrize("write", [torch.save, legacy, partial(legacy, pickle_protocol=3), safe])
def test_formats_are_told_by_content(write: Callable[[Any, Path], None], name: str, tmp_path: Path) -> None:
    write(STATE, tmp_path / name)
    found = read_tensors(tmp_path / name)
    assert found.keys() == STATE.keys()
    for key, value in STATE.items():
        assert torch.equal(found[key], value)
        assert found[key].dtype == value.dtype


@pytest.mark.parametrize("name", ["model", "state_dict"])
def test_nested_weights_are_taken_out(name: str, tmp_path: Path) -> None:
    beside = {"optimizer": {"state": {0: {"step": 1}}}, "iteration": 7}
    torch.save({name: STATE, **beside}, tmp_path / "x.pth")
    assert list(read_tensors(tmp_path / "x.pth")) == list(STATE)


def test_shared_memory_is_parted(tmp_path: Path) -> None:
    both = torch.arange(6.0).view(2, 3)
    torch.save({"a": both, "b": both, "c": both.T, "d": both[1]}, tmp_path / "x.pth")
    found = read_tensors(tmp_path / "x.pth")
    assert len({value.untyped_storage().data_ptr() for value in found.values()}) == 4
    assert torch.equal(found["c"], both.T)


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def with_numel(write: Callable[[Any, Path], None], every: bool) -> Callable[[Path], None]:
    """A file whose pickle says 10^12 where there are 7001 numbers: in the shape, or in the storage, too."""
    honest, boasting = b"M" + struct.pack("<H", 7001), b"\x8a\x06" + (10**12).to_bytes(6, "little")

    def boast(data: bytes) -> bytes:
        start = 0 if every else data.rindex(honest)
        return data[:start] + data[start:].replace(honest, boasting)

    def make(path: Path) -> None:
        write({"model": STATE}, path)
        if not zipfile.is_zipfile(path):
            path.write_bytes(boast(path.read_bytes()))
            return
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, boast(data) if name.endswith("data.pkl") else data)

    return make


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        archive.writestr("x/data/0", bytes(50_000_000))


def lying_bomb(path: Path) -> None:
    """Nothing is compressed, but the directory says that an entry is larger than the file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        archive.writestr("x/data/0", bytes(64))
        archive.infolist()[1].file_size = 2**31


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "text")


def safe_header(shape: list[int], end: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))

    return make


def cut(write: Callable[[Any, Path], None], share: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write(STATE, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return make


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def quantised() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


class HugeType:
    """A number type of 900 MB."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return np.dtype, ("V900000000",)


class Huge:
    def __reduce__(self) -> tuple[Any, tuple[HugeType]]:
        return scalar, (HugeType(),)


def saved(value: object, write: Callable[[Any, Path], None] = torch.save) -> Callable[[Path], None]:
    return lambda path: write(value, path)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: None, "cannot be read (No such file or directory)"),
    "folder": (lambda p: p.mkdir(), "cannot be read (Is a directory)"),
    "empty": (lambda p: p.touch(), "is no checkpoint of"),
    "a byte": (lambda p: p.write_bytes(b"\x80"), "is damaged or no pickle"),
    "zip cut off": (cut(torch.save, 0.6), "cut off or damaged"),
    "legacy cut off": (cut(legacy, 0.6), "cannot be loaded safely"),
    "legacy cut off early": (cut(legacy, 0.05), "cannot be loaded safely"),
    "safetensors cut off": (cut(safe, 0.6), "damaged"),
    "image": (lambda p: Image.new("RGB", (9, 9)).save(p, "PNG"), "detectron2 (begins with b'\\x89PNG"),
    "web page": (lambda p: p.write_text("<!DOCTYPE html><p>404"), "(a web page: fetch it again)"),
    "pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "(begins with b'version https://git-'",
    ),
    "noise": (lambda p: p.write_bytes(bytes(range(255, 5, -1))), "is no checkpoint of"),
    "bare pickle": (lambda p: p.write_bytes(pickle.dumps(Trap(p.parent / "trapped"))), "asks for 'posix.mkdir'"),
    "code": (lambda p: torch.save({"model": Trap(p.parent / "trapped")}, p), "GLOBAL posix.mkdir"),
    "legacy code": (lambda p: legacy({"model": Trap(p.parent / "trapped")}, p), "GLOBAL posix.mkdir"),
    "a whole module": (saved(torch.nn.Linear(2, 2)), "GLOBAL torch.nn.modules.linear.Linear"),
    "zip bomb": (bomb, "which torch never writes"),
    "lying zip": (lying_bomb, "which torch never writes"),
    "other zip": (foreign_zip, "cannot be loaded safely"),
    "huge shape": (with_numel(torch.save, every=False), "cannot be loaded safely"),
    "huge storage": (with_numel(torch.save, every=True), "cannot be loaded safely"),
    "huge legacy storage": (with_numel(legacy, every=True), "cannot be loaded safely"),
    "stride 0": (saved({"w": torch.ones(1).expand(10**13)}), "w claims the shape [10000000000000]"),
    "one for many": (saved(dict.fromkeys(map(str, range(99)), torch.ones(9999))), "more than the file holds"),
    "huge safetensors": (safe_header([10**12], 4 * 10**12), "damaged or not a safetensors file"),
    "huge safetensors shape": (safe_header([10**12], 64), "damaged or not a safetensors file"),
    "NaN": (saved({"model": {"a.w": torch.tensor([1, float("nan")])}}), "a.w holds NaN or infinity"),
    "infinity": (saved({"a.w": torch.tensor([-float("inf")])}, safe), "a.w holds NaN or infinity"),
    "not a tensor": (saved({"model": {"w": torch.ones(2), "epoch": 3}}), "'epoch' is a int, not a tensor"),
    "no names": (saved({1: torch.ones(2)}), "1 is a Tensor"),
    "a list": (saved([torch.ones(2)]), "holds no state dict (names and tensors) but a list"),
    "a tensor": (saved(torch.ones(2)), "holds no state dict (names and tensors) but a Tensor"),
    "nothing": (saved({"model": {}}), "holds no state dict (names and tensors) but a dict"),
    "complex": (saved({"w": torch.ones(3, dtype=torch.complex64)}), "w is no plain tensor of numbers"),
    "sparse": (saved({"w": torch.eye(3).to_sparse()}), "w is no plain tensor of numbers"),
    "sparse rows": (lambda p: torch.save({"w": torch.eye(3).to_sparse_csr()}, p), "w is no plain tensor of numbers"),
    "nested": (lambda p: torch.save({"w": nested()}, p), "w is no plain tensor of numbers"),
    "quantised": (lambda p: torch.save({"w": quantised()}, p), "w is no plain tensor of numbers"),
    "float8": (saved({"w": torch.ones(3).to(torch.float8_e4m3fn)}, safe), "w is no plain tensor of numbers"),
    "protocol 4": (saved({"w": torch.ones(3)}, partial(torch.save, pickle_protocol=4)), "Unsupported operand 149"),
    "legacy protocol 4": (saved({"w": torch.ones(3)}, partial(legacy, pickle_protocol=4)), "Unsupported operand 149"),
    "legacy protocol 5": (saved({"w": torch.ones(3)}, partial(legacy, pickle_protocol=5)), "Unsupported operand 149"),
    "pickle 0": (lambda p: p.write_bytes(pickle.dumps({"a": 1}, 0)), "is no checkpoint of"),
    "huge number": (lambda p: torch.save({"model": STATE, "best": Huge()}, p), "arrays of dtype 'V900000000'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_told_in_a_line(kind: str, tmp_path: Path) -> None:
    make, message = BROKEN[kind]
    path = tmp_path / "x.pth"
    with warnings.catch_warnings(action="ignore"):
        make(path)
    with pytest.raises(UserError) as caught, warnings.catch_warnings(action="error"):
        read_tensors(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text
    assert not (tmp_path / "trapped").exists()


def test_an_endless_nesting_is_no_state_dict(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "x.pth")
    with pytest.raises(UserError, match="'model' is a dict, not a tensor"):
        read_tensors(tmp_path / "x.pth")


def test_numbers_that_a_training_program_leaves_beside_the_weights(tmp_path: Path) -> None:
    """NumPy scalars are plain numbers, not code."""
    beside = {"iteration": 5, "best": [np.float64(46.4), np.float32(1), np.int64(3), np.bool_(True)]}
    torch.save({"model": {"w": torch.ones(3)}, **beside}, tmp_path / "run.pth")
    assert torch.equal(read_tensors(tmp_path / "run.pth")["w"], torch.ones(3))
