"""detectron2's model files: a pickle of {"model": {name: numpy array}}, read without unpickling.

A pickle is a program. This module interprets the few instructions that plain containers and numpy arrays take and
refuses every other one. Python's own unpickler with a guarded `find_class` would still allocate whatever the memo's
indices ask for, and can be made to overflow the C stack by hashing nested tuples.
"""

import io
import math
import pickletools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dshmp.checkpoint import check_finite
from dshmp.errors import UserError
from dshmp.files import reason, regular

_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1)")


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The arrays of a detectron2 model file; entries that are no arrays are passed over.

    Arrays take at most as many bytes as the file has. The protocols 2 to 5 of pickle are read, as Python 3 and, for
    old files, Python 2 write them.

    Raises:
        UserError: the file is missing or damaged, asks for anything but numpy arrays and plain containers (the
            message names it), or holds NaN or infinity.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    if data and data[0] != 0x80:  # which protocols 0 and 1 do not have
        raise UserError(f"{path}: is no pickle of protocol 2 to 5, in which detectron2's model files are written")
    try:
        arrays = _arrays(_run(data), len(data))
    except _Refused as refused:
        raise UserError(
            f"{path}: asks for {refused}, which no file of weights needs; it is not loaded, since it may do harm"
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: damaged or not a detectron2 model file ({reason(error)}); fetch it again") from None
    state = {key: torch.from_numpy(value) for key, value in arrays.items()}
    check_finite(path, state)
    return state


class _Dtype:
    """Stands for a numpy dtype while the pickle is read."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str):
            raise ValueError("a dtype without a name")
        if not _DTYPE.fullmatch(code):
            raise _Refused(f"arrays of dtype {code[:100]!r}")
        self.code = code

    def build(self, state: tuple[Any, ...]) -> None:
        """(version, byte order, ...) as numpy writes it."""
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError("a dtype of unknown byte order")
        self.code = order + self.code.lstrip("<>|=")


class _Array:
    """Stands for a numpy array while the pickle is read; what it holds is only looked at in the end."""

    def __init__(self, shape: Any = (), dtype: Any = None, order: str = "C", raw: Any = b"") -> None:
        self.shape, self.dtype, self.order, self.raw = shape, dtype, order, raw

    def build(self, state: tuple[Any, ...]) -> None:
        """(version, shape, dtype, Fortran order, bytes) as numpy writes it."""
        _, self.shape, self.dtype, fortran, self.raw = state
        self.order = "F" if fortran else "C"

    def value(self) -> NDArray[Any]:
        """The array, in the machine's byte order; ValueError where its parts do not fit together."""
        if not isinstance(self.dtype, _Dtype):
            raise ValueError("an array without a dtype")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw  # Python 2 has but one kind
        flat = np.frombuffer(raw, np.dtype(self.dtype.code))
        if any(not isinstance(size, int) or size < 0 for size in self.shape) or math.prod(self.shape) != flat.size:
            raise ValueError(f"an array whose shape does not fit its {flat.size} numbers")
        shaped = flat.reshape(self.shape, order="F" if self.order == "F" else "C")
        return np.array(shaped, dtype=shaped.dtype.newbyteorder("="), order="C")


class _Refused(Exception):
    """What a model file has no reason to hold."""


class _Copies:
    """The calls that copy what the pickle names; since it may name a thing often, all copies have a limit."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def _take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError("its content is larger than the file")

    def encode(self, text: str, _: str) -> bytes:
        self._take(len(text))
        return text.encode("latin1")

    def mapping(self, pairs: Any = ()) -> dict[Any, Any]:
        self._take(_PAIR * len(pairs))
        result: dict[Any, Any] = {}
        for key, value in pairs:
            _set_items(result, [key, value])
        return result


_PAIR = 8
"""Bytes that a pair has at least in a pickle of arrays by name."""


def _admitted(copies: _Copies) -> dict[str, Callable[..., Any]]:
    """What a pickle may name, and what is called in its place; nothing of numpy itself runs."""
    functions: dict[str, Callable[..., Any]] = {
        "multiarray _reconstruct": lambda *_: _Array(),
        "multiarray scalar": lambda dtype, raw: _Array((), dtype, "C", raw),
        "numeric _frombuffer": lambda raw, dtype, shape, order: _Array(shape, dtype, order, raw),
    }
    inside = {f"{core}.{name}": value for core in ("numpy.core", "numpy._core") for name, value in functions.items()}
    return inside | {
        "numpy ndarray": _Array,
        "numpy dtype": _Dtype,
        "collections OrderedDict": copies.mapping,
        "_codecs encode": copies.encode,  # bytes in protocol 2, and no bytes at all:
        "__builtin__ bytes": lambda: b"",
    }


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


def _run(data: bytes) -> Any:
    """What the pickle builds: its stack machine, for plain containers and arrays.

    Messages never spell out what the file holds, which may be nested without end.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under the marks
    admitted = _admitted(_Copies(2 * len(data)))
    memo: dict[int, Any] = {}
    instructions: Iterator[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(io.BytesIO(data))
    for opcode, argument, _ in instructions:
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "APPENDS":
                stack[-1].extend(items)
            else:
                _set_items(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "SETITEM":
            items = [stack.pop(), stack.pop()][::-1]
            _set_items(stack[-1], items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [stack.pop() for _ in range(int(name[-1]))]
            stack.append(tuple(items[::-1]))
        elif name == "GLOBAL":
            stack.append(_find(argument, admitted))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not isinstance(module, str) or not isinstance(attribute, str):
                raise ValueError("a name that is no text")
            stack.append(_find(f"{module} {attribute}", admitted))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if function not in admitted.values():
                raise ValueError("a call of what is no function")
            stack.append(function(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Array | _Dtype):
                raise ValueError("a state for what has none")
            stack[-1].build(state)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"the instruction {name}")
    raise ValueError("it has no end")


def _find(name: str, admitted: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name not in admitted:
        raise _Refused(repr(name.replace(" ", ".")[:100]))
    return admitted[name]


def _set_items(target: Any, items: list[Any]) -> None:
    """Keys are text or numbers: others would have to be hashed, however deep they are nested."""
    keys, values = items[::2], items[1::2]
    if type(target) is not dict or not all(isinstance(key, str | int) for key in keys):
        raise ValueError("a mapping with keys that are neither text nor numbers")
    target.update(zip(keys, values, strict=True))


def _arrays(content: Any, limit: int) -> dict[str, NDArray[Any]]:
    """The arrays of {"model": {...}}, or of a flat mapping, by name."""
    if not isinstance(content, dict):
        raise ValueError("it holds no mapping")
    inner = content.get("model", content)
    if not isinstance(inner, dict):
        raise ValueError("its `model` is no mapping")
    arrays: dict[str, NDArray[Any]] = {}
    for key, value in inner.items():
        if isinstance(key, str) and isinstance(value, _Array):
            arrays[key] = value.value()
            limit -= arrays[key].nbytes
            if limit < 0:
                raise ValueError("its arrays are larger than the file")
    if not arrays:
        raise ValueError("it holds no arrays")
    return arrays
