"""Tensors of a checkpoint that another program wrote: told by content, never run, every fault named in one line."""

import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dshmp.checkpoint import check_finite, check_plain, load_tensors
from dshmp.common.errors import UserError
from dshmp.common.files import reason, regular
from dshmp.common.pickles import Refused, read_pickle

WRAPPERS = ("model", "state_dict")  # under which training programs keep the weights, beside optimiser and the like
ZIP = b"PK\x03\x04"
# How `torch.save` began before it wrote zip files: a pickled magic number.
LEGACY = re.compile(rb"\x80[\2-\5](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)


class Dtype:
    """Stands for a numpy dtype, which could ask for numbers of any size or run what it holds."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"f[248]|[iu][1248]|b1", code):
            raise Refused(f"arrays of dtype {code[:100]!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: list[Any]) -> None:
        _version, self.order, *_ = state


class Array:
    """Stands for a numpy array or number; what it holds is looked at in the end."""

    def __init__(self, dtype: Any = None, raw: Any = b"", shape: Any = (), order: str = "C") -> None:
        self.__setstate__([1, shape, dtype, order == "F", raw])

    def __setstate__(self, state: list[Any]) -> None:
        _version, self.shape, self.dtype, self.fortran, self.raw = state

    def array(self) -> NDArray[Any]:
        """In the machine's byte order; Python 2's bytes are text."""
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        flat = np.frombuffer(raw, np.dtype(self.dtype.code).newbyteorder(self.dtype.order))
        return np.array(flat.reshape(self.shape, order="F" if self.fortran else "C"), self.dtype.code, order="C")


# What is called in the place of numpy's functions.
NUMPY: dict[str, Callable[..., Any]] = {"numpy.ndarray": Array, "numpy.dtype": Dtype}
for _core in ("numpy.core", "numpy._core"):
    NUMPY[f"{_core}.multiarray._reconstruct"] = lambda *_: Array()
    NUMPY[f"{_core}.multiarray.scalar"] = Array
    NUMPY[f"{_core}.numeric._frombuffer"] = lambda raw, dtype, shape, order: Array(dtype, raw, shape, order)
_ADMITTED = NUMPY | {
    "collections.OrderedDict": lambda: {},
    "_codecs.encode": lambda text, _: text,  # bytes in protocol 2, and no bytes at all:
    "__builtin__.bytes": lambda: b"",
}


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a detectron2 model file; entries that are no arrays are passed over. UserError where the file is
    missing or damaged, or asks for anything but numpy arrays and plain containers."""
    content = read_pickle(path, "file of weights", _ADMITTED, encoding="latin1")
    try:
        found = {key: value for key, value in content.get("model", content).items() if isinstance(value, Array)}
        if sum(len(value.raw) for value in found.values()) > path.stat().st_size:
            raise ValueError("its arrays are larger than the file")
        return {str(key): torch.from_numpy(value.array()) for key, value in found.items()}
    except Exception as error:  # the parts of an array may be anything
        raise UserError(f"{path}: is no detectron2 model file, or damaged ({reason(error)}); fetch it again") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint: torch's zip format, its older pickle format, safetensors or detectron2's pickle.

    A state dict nested under one of `WRAPPERS` is taken out. Tensors are on the CPU in the file's own dtypes; those of
    a zip file are mapped from it, so it must stay as it is while they are used. UserError where it is no checkpoint,
    asks to run code, claims more than it holds, or holds other than finite tensors.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    found: Any
    if head.startswith(ZIP):
        _check_archive(path)
        found = _load(path, mapped=True)
    elif LEGACY.match(head):
        found = _load(path, mapped=False)
    elif head.startswith(b"\x80"):
        found = read_arrays(path)
    elif head[6:9] == b"\0\0{":  # the header's length, 8 bytes, then its JSON
        found = load_tensors(path)
    else:
        kind = "a web page: fetch it again" if head.lstrip()[:1] == b"<" else f"begins with {head[:20]!r}"
        raise UserError(f"{path}: is no checkpoint of PyTorch, safetensors or detectron2 ({kind})")
    state = _checked(path, found)
    owners = Counter(value.untyped_storage().data_ptr() for value in state.values())
    shared = {key for key, value in state.items() if owners[value.untyped_storage().data_ptr()] > 1}
    return {key: value.clone() if key in shared else value for key, value in state.items()}  # as safetensors asks


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: the checkpoint is cut off or damaged ({error}); fetch it again") from None
    declared = sum(entry.file_size for entry in entries)
    if declared > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{path}: would unpack to {declared} bytes, which torch never writes; it is damaged")


def _load(path: Path, mapped: bool) -> object:
    stand_ins: list[Any] = [(value, name) for name, value in NUMPY.items()]  # programs leave numbers beside the weights
    # given a path that ends in .safetensors, torch would take the file for one, so it gets the open file
    mapped = mapped and path.suffix != ".safetensors"
    try:
        with (
            path.open("rb") as file,
            torch.serialization.safe_globals(stand_ins),
            warnings.catch_warnings(action="ignore"),  # about kinds of tensors that are refused anyway
        ):
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a crafted or cut-off pickle makes torch raise nearly anything
        text = re.split("WeightsUnpickler error: |Trying to load ", " ".join(str(error).split()))[-1]
        short = text.split(". ")[0][:120] or type(error).__name__
        raise UserError(
            f"{path}: cannot be loaded safely ({short}); fetch it again, or where it holds more than tensors, save "
            "its weights alone: torch.save({'model': state_dict}, ...)"
        ) from None


def _checked(path: Path, found: object) -> dict[str, Tensor]:
    if isinstance(found, Mapping):
        found = next((found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)), found)
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path}: holds no state dict (names and tensors) but a {type(found).__name__}")
    total, room = 0, 2 * path.stat().st_size  # tensors may share what the file holds, within reason
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor; this is no state dict")
        check_plain(path, key, value)
        size = value.numel() * value.element_size()
        total += size
        if size > value.untyped_storage().nbytes() or total > room:
            raise UserError(f"{path}: {key} claims the shape {list(value.shape)}, more than the file holds")
    check_finite(path, found)
    return {key: value.detach() for key, value in found.items()}
