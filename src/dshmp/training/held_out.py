"""A look at a held-out split on the way: J and F of a few videos, answered as users would have them answered."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.data.base import Expression, Split, times_shown
from dshmp.evaluation.metrics import jf
from dshmp.predictor import Segmenter
from dshmp.training.logging import Metrics
from dshmp.video.io import open_video
from dshmp.video.overlay import draw_masks, sheet_frames

SENTENCES = 4
"""Expressions of each video."""
COLUMNS, CELL = 6, 240
"""Frames of a picture's strip, and how wide each is in pixels."""


def look(segmenter: Segmenter, splits: Sequence[tuple[str, Split]], videos: int) -> Metrics:
    """J, F and their mean in per cent over a few videos of every split, and a strip of each video's first expression.

    All objects meant by an expression count as one. With several splits their means have the splits' names before
    them, and `J&F` is the mean over the splits.
    """
    values: dict[str, float] = {}
    pictures: dict[str, NDArray[np.uint8]] = {}
    for name, split in splits:
        scores = _look(segmenter, split, videos, pictures)
        if scores:
            j, f = (100 * float(mean) for mean in np.mean(scores, axis=0))
            prefix = f"{name} " if len(splits) > 1 else ""
            values |= {f"{prefix}J": round(j, 2), f"{prefix}F": round(f, 2), f"{prefix}J&F": round((j + f) / 2, 2)}
    if len(splits) > 1 and values:
        means = [value for name, value in values.items() if name.endswith(" J&F")]
        values["J&F"] = round(sum(means) / len(means), 2)
    return Metrics(values, pictures)


def _look(
    segmenter: Segmenter, split: Split, videos: int, pictures: dict[str, NDArray[np.uint8]]
) -> list[tuple[float, float]]:
    of_video: dict[str, list[Expression]] = defaultdict(list)
    for item in split.expressions:
        of_video[item.video].append(item)
    names = list(of_video)
    scores = []
    for name in (names[i] for i in _spread(len(names), videos)):
        items = of_video[name]
        alike: dict[tuple[int, ...], list[Expression]] = defaultdict(list)
        for item in (items[i] for i in _spread(len(items), SENTENCES)):
            alike[item.shown or tuple(range(len(split.videos[name].frames)))].append(item)
        for shown, asked in alike.items():
            frames = np.stack(split.frames(name, shown))
            source = replace(open_video(frames), positions=times_shown(shown))
            for item, result in zip(asked, segmenter.answer(source, [item.text for item in asked]), strict=True):
                scored = [shown.index(position) for position in item.scored or shown]
                positions = [shown[t] for t in scored]
                truth = split.masks(name, item.annotations, positions, (frames.shape[1], frames.shape[2]))
                found = result.masks[scored]
                meant = np.asarray(truth.any(0))
                scores.append(jf(found, meant))
                if f"{split.folder.name}-{name}" not in pictures:
                    pictures[f"{split.folder.name}-{name}"] = strip(frames[scored], found, meant)
    return scores


def _spread(count: int, wanted: int) -> list[int]:
    """So many of 0 .. count - 1, evenly."""
    return sorted({int(x) for x in np.linspace(0, count - 1, min(wanted, count))})


def strip(frames: NDArray[np.uint8], found: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.uint8]:
    """A few frames (T, H, W, 3) side by side: what was found tinted, the truth outlined in white; (h, w, 3)."""
    import cv2

    height, width = frames.shape[1:3]
    cells = []
    for t in sheet_frames(len(frames), COLUMNS):
        picture = draw_masks(frames[t], found[t][None], truth[t], max(1, -(-CELL // width)))
        cells.append(cv2.resize(picture, (CELL, max(round(CELL * height / width), 1)), interpolation=cv2.INTER_AREA))
    return np.concatenate(cells, axis=1)
