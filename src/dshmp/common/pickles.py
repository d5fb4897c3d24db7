"""Pickles of other programs, read without running anything that they name.

A pickle is a program. Python's own unpickler, even with `find_class` closed, allocates whatever the memo's indices ask
for, and overflows the stack when it hashes nested tuples. So this one is the slower one in Python, knows only the
instructions of plain data, and makes lists of tuples, which no mapping hashes.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dshmp.common.errors import UserError
from dshmp.common.files import reason, regular

_PLAIN = """
    MARK STOP PROTO FRAME POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_NAMES = {ord(known.code): known.name for known in pickletools.opcodes}


class Refused(Exception):
    """What no such file has a reason to hold."""


class _Dispatch(dict[int, Any]):
    def __missing__(self, code: int) -> Any:
        raise Refused(f"the instruction {_NAMES.get(code, code)}")


class _Reader(pickle._Unpickler):
    dispatch = _Dispatch({code: pickle._Unpickler.dispatch[code] for code in _NAMES if _NAMES[code] in _PLAIN.split()})
    admitted: Mapping[str, Callable[..., Any]]
    read: Callable[[int], bytes]
    append: Callable[[object], None]
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.admitted:
            raise Refused(repr(f"{module}.{name}"[:100]))
        return self.admitted[f"{module}.{name}"]

    def load_bytearray8(self) -> None:
        """Only as long as the file, not as long as it claims."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    def load_build(self) -> None:
        """Only of what stands for something: attributes of nothing else are set."""
        state = self.stack.pop()
        self.stack[-1].__setstate__(state)

    def load_short_tuple(self, size: int) -> None:
        self.stack[-size:] = [self.stack[-size:]]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.EMPTY_TUPLE[0]] = dispatch[pickle.EMPTY_LIST[0]]
    dispatch[pickle.TUPLE[0]] = dispatch[pickle.LIST[0]]
    dispatch[pickle.TUPLE1[0]] = lambda self: self.load_short_tuple(1)
    dispatch[pickle.TUPLE2[0]] = lambda self: self.load_short_tuple(2)
    dispatch[pickle.TUPLE3[0]] = lambda self: self.load_short_tuple(3)


def read_pickle(path: Path, content: str, admitted: Mapping[str, Callable[..., Any]], encoding: str = "utf-8") -> Any:
    """What a pickle of any protocol holds: numbers, text, lists (also for tuples), mappings; UserError where it is
    missing or damaged, or asks for more.

    `content` says what it should be, for messages; `encoding` is of Python 2's text; `admitted` is what it may name and
    what is called in its place, which must not copy what it is given: a short file may ask for that without end.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            reader = _Reader(io.BytesIO(file.read()), encoding=encoding, errors="replace")
        reader.admitted = admitted
        return reader.load()
    except Refused as refused:
        why = f"which no {content} needs; it is not loaded, since it may do harm; fetch it again"
        raise UserError(f"{path}: asks for {refused}, {why}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    except Exception as error:  # an unpickler fails in any way on damage
        raise UserError(f"{path}: is damaged or no pickle ({reason(error)}); fetch it again") from None
