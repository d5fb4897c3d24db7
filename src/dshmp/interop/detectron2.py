"""detectron2's model files: a pickle of {"model": {name: numpy array}}, read without unpickling."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dshmp.errors import UserError
from dshmp.files import reason
from dshmp.pickles import Refused, read_pickle


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
