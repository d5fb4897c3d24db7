"""Ultralytics' polygons for segmentation: a text file per frame, with a line per object: class x y x y ...

Coordinates are shares of width and height. Parts of an object, and holes in it, are joined into one polygon that goes
to the next part and back by the same way; filled by the even-odd rule, as Ultralytics does, but for that line it is
the mask.
"""

from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from dshmp.common.rle import decode
from dshmp.formats.answers import Answers

LEAST = 3  # points: a shorter line would be read as a box


def save(answers: Answers, path: Path) -> None:
    """`labels/<frame>.txt`, and `data.yaml` that names the sentences as classes."""
    (path / "labels").mkdir()
    scale = np.array([answers.width, answers.height])
    for t, name in enumerate(answers.files):
        lines = []
        for each in answers.seen(t):
            points = polygon(decode([each.object.rle[t]])[0]) / scale
            lines.append(" ".join([str(each.category - 1), *(f"{value:.6f}" for value in points.ravel())]) + "\n")
        (path / "labels" / f"{Path(name).stem}.txt").write_text("".join(lines))
    data = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(answers.names))}
    (path / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def polygon(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(P, 2) x, y in pixels of one polygon with all parts and holes of a mask (H, W) that is not empty."""
    rings, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    first, *others = sorted((ring[:, 0].astype(np.int64) for ring in rings), key=len, reverse=True)
    joined = first
    for ring in others:
        far = ((joined[:, None] - ring[None]) ** 2).sum(-1)
        here, there = np.unravel_index(far.argmin(), far.shape)
        around = [*ring[there:], *ring[: there + 1]]
        joined = np.array([*joined[: here + 1], *around, *joined[here:]])
    return np.concatenate([joined, joined[-1:].repeat(max(LEAST - len(joined), 0), axis=0)])
