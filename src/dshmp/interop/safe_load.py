"""Tensors of a checkpoint that another program wrote: told by content, never run, every fault named in one line."""

import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dshmp.checkpoint import check_finite, check_plain, load_tensors
from dshmp.errors import UserError
from dshmp.files import reason, regular

WRAPPERS = ("model", "state_dict")
"""Entries under which training programs keep the weights, beside optimiser, iteration and the like."""

ZIP = b"PK\x03\x04"
LEGACY = re.compile(rb"\x80[\2-\5](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
"""How `torch.save` began before it wrote zip files: a pickled magic number."""


class _NumberType:
    """Stands for numpy.dtype, which would make numbers of any size."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"f[248]|[iu][1248]|b1", code):
            raise ValueError(f"a NumPy number of type {code[:20]!r}")
        self.size = int(code[1])

    def __setstate__(self, state: object) -> None:
        """Byte order and the like; the number is not looked at."""


def _number(kind: _NumberType, content: bytes) -> None:
    if len(content) != kind.size:
        raise ValueError(f"a NumPy number of {len(content)} bytes, not {kind.size}")


NUMBERS: list[Any] = [
    (_NumberType, "numpy.dtype"),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What is called for a single number of NumPy: training programs leave some beside the weights."""

MAGIC_BYTES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"%PDF", "a PDF document"),
    (4, b"ftyp", "a video (MP4)"),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska)"),
    (0, b"RIFF", "a RIFF file, such as AVI or WebP"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"BZh", "a bzip2 archive; unpack it first"),
    (0, b"\xfd7zXZ", "an xz archive; unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x7fELF", "a program"),
    (0, b"(dp", "a Python pickle of protocol 0, which is never read"),
    (0, b"}q\0", "a Python pickle of protocol 1, which is never read"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"),
)
"""Place, bytes, and what a file with these bytes there is."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint: torch's zip format, its older pickle format, or safetensors.

    A state dict nested under one of `WRAPPERS` is taken out; what lies beside it is ignored. Tensors are on the CPU in
    the file's own dtypes; those of a zip file are mapped from it, so it must stay as it is while they are used.

    Raises:
        UserError: it cannot be read, is no checkpoint, asks to run code, claims more than the file holds, or is
            not made of finite tensors alone.
    """
    head = _head(path)
    if head.startswith(ZIP):
        _check_archive(path)
        found = _load(path, mapped=True)
    elif LEGACY.match(head):
        found = _load(path, mapped=False)
    elif head[6:9] == b"\0\0{":  # the header's length, 8 bytes, then its JSON
        return _parted(_checked(path, load_tensors(path)))
    else:
        raise UserError(f"{path}: is not a checkpoint but {_looks_like(head)}; name a .pth or .safetensors file")
    state = _checked(path, _unwrapped(path, found))
    check_finite(path, state)
    return _parted(state)


def is_pickle(path: Path) -> bool:
    """Whether it is a bare pickle, as detectron2's model files are, and not one that `read_tensors` knows.

    Raises:
        UserError: it cannot be read.
    """
    head = _head(path)
    return head[0] == 0x80 and not LEGACY.match(head)


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the checkpoint file in it")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        with open(path, "rb", opener=regular) as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    if not head:
        raise UserError(f"{path}: is empty; fetch it again")
    return head


def _looks_like(head: bytes) -> str:
    for place, mark, name in MAGIC_BYTES:
        if head[place : place + len(mark)] == mark:
            return name
    if head.lstrip()[:1] == b"<":
        return "a web page (the download failed)"
    if head[0] == 0x80 and head[1:2] <= b"\x05":
        return "a bare Python pickle, which could run code and is never read"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not just a character that the end of `head` cuts
            return "something unknown"
    return "something unknown" if b"\0" in head else "text"


def _check_archive(path: Path) -> None:
    """Refuse a zip file that torch did not write or that unpacks to more than it holds, before torch reads it."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: the checkpoint is cut off or damaged ({error}); fetch it again") from None
    names = [entry.filename for entry in entries]
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(f"{path}: is a zip archive but not a checkpoint (it holds {', '.join(names[:3]) or 'nothing'})")
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path}: is a TorchScript program; save its state_dict() instead")
    declared = sum(entry.file_size for entry in entries)
    if declared > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(
            f"{path}: its {size} bytes would unpack to {declared}, which torch never writes; it is damaged or made to "
            "fill the memory"
        )


def _load(path: Path, mapped: bool) -> object:
    try:
        # given a path that ends in .safetensors, torch would take the file for one, so it gets the open file
        with (
            path.open("rb") as file,
            torch.serialization.safe_globals(NUMBERS),
            warnings.catch_warnings(action="ignore"),  # about kinds of tensors that are refused anyway
        ):
            by_path = mapped and path.suffix != ".safetensors"
            return torch.load(path if by_path else file, map_location="cpu", weights_only=True, mmap=by_path)
    except Exception as error:  # a crafted or cut-off pickle makes torch raise nearly anything
        text = " ".join(str(error).split())
        if (protocol := _protocol(path, zipped=mapped)) > 2:
            raise UserError(
                f"{path}: is pickled with protocol {protocol}, which torch's safe reader does not take; save it again "
                "with torch.save's default"
            ) from None
        if code := re.search(r"GLOBAL ([\w.]+)", text):
            raise UserError(
                f"{path}: asks Python to call {code[1]}, which was not done; where you trust the file, save its "
                "weights alone again: torch.save({'model': state_dict}, ...)"
            ) from None
        if "resize storage" in text or "allocate" in text or isinstance(error, MemoryError):
            raise UserError(f"{path}: claims tensors larger than the file; it is damaged") from None
        short = text.split(". ")[0][:120] or type(error).__name__
        raise UserError(f"{path}: the checkpoint is cut off or damaged ({short}); fetch it again") from None


def _protocol(path: Path, zipped: bool) -> int:
    """The version of pickle that a checkpoint says it is written in."""
    if not zipped:
        return _head(path)[1]
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        start = archive.read(name)[:2]
    return start[1] if start[:1] == b"\x80" else 0


def _unwrapped(path: Path, found: object) -> Mapping[Any, Any]:
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: holds a {type(found).__name__}, not a state dict (names and tensors)")
    return found


def _checked(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The state dict, if it consists of tensors that are really there."""
    if not state:
        raise UserError(f"{path}: the state dict is empty")
    total, room = 0, 2 * path.stat().st_size  # tensors may share what the file holds, within reason
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor; this is no state dict")
        check_plain(path, key, value)
        size = value.numel() * value.element_size()
        total += size
        if size > value.untyped_storage().nbytes() or total > room:
            raise UserError(f"{path}: {key} claims the shape {list(value.shape)}, more than the file holds")
    if not any(value.is_floating_point() for value in state.values()):
        raise UserError(f"{path}: holds no weights, only whole numbers")
    return {key: value.detach() for key, value in state.items()}


def _parted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """No two tensors in the same memory, as safetensors, in which weights are kept, allows none."""
    owners = Counter(value.untyped_storage().data_ptr() for value in state.values())
    return {
        key: value.clone() if owners[value.untyped_storage().data_ptr()] > 1 else value for key, value in state.items()
    }
