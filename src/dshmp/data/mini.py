"""Miniature data sets in the exact layouts of the real ones, drawn from the synthetic data set.

Here stands what all layouts share; each data set's own file writes its layout.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dshmp.errors import UserError
from dshmp.files import atomic_folder, is_vacant, output_folder
from dshmp.synthetic.make import Clip, clip_seed, make_clip

MARK = "mini.json"
"""At the root of a miniature data set: published counts and checksums are not compared there."""


def write_mark(folder: Path, dataset: str, seed: int) -> None:
    """Say that `folder` is a miniature data set."""
    (folder / MARK).write_text(json.dumps({"dshmp_mini": 1, "dataset": dataset, "seed": seed}) + "\n")


def is_mini(root: Path) -> bool:
    """Whether a miniature data set lies there."""
    return (root / MARK).is_file()


def make_mini(name: str, write: Callable[[Path, int], None], out: Path, seed: int = 0) -> None:
    """A miniature data set at `out`, written wholly or not at all; `write(folder, seed)` writes its layout.

    Raises UserError where `out` is there and not an empty folder.
    """
    target = output_folder(out)
    if target.exists() and not is_vacant(target):
        raise UserError(f"{out}: is there already; remove it or choose another folder")
    with atomic_folder(out) as folder:
        write(folder, seed)
        write_mark(folder, name, seed)


def draw_clips(count: int, seed: int, split: str = "train", families: Sequence[str | None] = (None,)) -> list[Clip]:
    """`count` clips of the synthetic data set; the same arguments give the same clips."""
    return [make_clip(clip_seed(seed, split, i), families[i % len(families)], split) for i in range(count)]


def resized(clip: Clip, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Frames (T, height, width, 3) and masks (K, T, height, width) of a clip."""
    frames = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in clip.frames])
    flat = clip.masks.reshape(-1, *clip.masks.shape[2:]).astype(np.uint8)
    small = [cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) for mask in flat]
    return frames, np.stack(small).reshape(*clip.masks.shape[:2], height, width).astype(bool)


def hide(frames: NDArray[np.uint8], masks: NDArray[np.bool_], which: int, positions: Sequence[int]) -> None:
    """Paint an object over in some frames, in place: frames (T, H, W, 3) and masks (K, T, H, W)."""
    for t in positions:
        frames[t][masks[which, t]] = np.median(frames[t].reshape(-1, 3), axis=0)
        masks[which, t] = False
