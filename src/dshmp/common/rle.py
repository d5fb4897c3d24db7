"""Masks as COCO's run lengths."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

Rle = dict[str, Any]  # {"size": [height, width], "counts": str}


def encode(mask: NDArray[np.bool_]) -> Rle:
    """(H, W) bool -> run lengths."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rles: Sequence[Rle]) -> NDArray[np.bool_]:
    """T run lengths -> (T, H, W) bool."""
    return np.stack([coco.decode(rle).astype(bool) for rle in rles])


def area(rle: Rle) -> int:
    """Pixels of a mask."""
    return int(coco.area(rle))


def box(rle: Rle) -> list[float]:
    """x, y, width and height of the box around a mask; zeros where that is empty."""
    return [float(side) for side in coco.toBbox(rle)]


def intersection(one: Rle, other: Rle) -> int:
    """Pixels that two masks of one size share."""
    return int(coco.area(coco.merge([one, other], intersect=True)))
