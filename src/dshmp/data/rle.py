"""COCO's compressed run lengths, judged before they are decoded."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.errors import UserError


def rle_fault(rle: object, size: tuple[int, int]) -> str | None:
    """What is wrong with COCO's compressed run lengths of a mask of this size (H, W), or None.

    Found without decoding, as decoders read and write beyond their memory, or never end, where run lengths are damaged.
    """
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str) or "size" not in rle:
        return "is no COCO run lengths"
    own = rle["size"]
    if not isinstance(own, list) or not all(type(side) is int and side > 0 for side in own):
        return f"has size {str(own)[:50]}, no height and width"
    if own != list(size):
        return f"has size {str(own)[:50]}, its frames have {list(size)}"
    covered = _covered(rle["counts"])
    if covered != size[0] * size[1]:
        what = "are damaged" if covered is None else f"cover {covered:,} of {size[0] * size[1]:,} pixels"
        return f"has run lengths that {what}"
    return None


def decode_rle(rle: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """(H, W) bool. Raises UserError, whose message begins with `where`, for what is no mask of this size."""
    from pycocotools import mask as coco

    fault = rle_fault(rle, size)
    if fault is None:
        try:
            return np.asarray(coco.decode(rle), dtype=bool)
        except (ValueError, TypeError, MemoryError) as error:
            fault = f"cannot be decoded ({error})"
    raise UserError(f"{where} {fault}; fetch the file again")


def _covered(counts: str) -> int | None:
    """Pixels that compressed run lengths cover; None where they are no run lengths.

    A number is written in digits of 5 bits, lowest first, as characters from "0" on; bit 5 says that more follow and
    bit 4 of the last digit is the sign. From the fourth on, numbers are differences to the last but one.
    """
    if not counts.isascii():
        return None
    digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = (digits & 32) == 0
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 6:
        return None
    place: NDArray[np.int64] = np.arange(len(digits)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * place), starts)
    numbers -= np.where(digits[ends] & 16, 1 << (5 * lengths), 0)
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return int(runs.sum()) if runs.min() >= 0 else None
