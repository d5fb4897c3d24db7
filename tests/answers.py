"""Answers made by hand: masks with holes and parts, objects that overlap, and ones that are not always seen."""

import numpy as np

from dshmp.common.rle import encode
from dshmp.model.parser import Word
from dshmp.results.answer import ObjectResult
from dshmp.results.result import Result

LENGTH, SIZE = 5, (45, 61)  # sides are odd on purpose


def drawn() -> np.ndarray:
    """Three objects (3, T, H, W): a ring that goes right, away in frame 2; two bars that are one object and lie partly
    on the ring; a single pixel in frame 4."""
    found = np.zeros((3, LENGTH, *SIZE), bool)
    for t in range(LENGTH):
        found[0, t, 8:28, 4 + 5 * t : 24 + 5 * t] = t != 2
        found[0, t, 14:20, 10 + 5 * t : 16 + 5 * t] = False
        found[1, t, 10:16, 2:40] = found[1, t, 34:45, 50:61] = True
    found[2, 4, 44, 0] = True
    return found


def result(text: str, masks: np.ndarray, scores: tuple[float, ...], tracks: tuple[str, ...] = ()) -> Result:
    """The answer to a sentence, with these objects (K, T, H, W)."""
    names = tracks or (None,) * len(masks)
    even = (1 / LENGTH,) * LENGTH
    objects = tuple(
        ObjectResult(score, tuple(encode(mask) for mask in each), even, name)
        for each, score, name in zip(masks, scores, names, strict=True)
    )
    union = masks.any(0) if len(masks) else np.zeros((LENGTH, *SIZE), bool)
    return Result(
        text,
        (Word(text, 0, len(text), "static"),),
        bool(len(masks)),
        max(scores, default=0.1),
        0.5,
        *SIZE,
        25.0,
        tuple(t / 25 for t in range(LENGTH)),
        even,
        objects,
        tuple(encode(mask) for mask in union),
    )
