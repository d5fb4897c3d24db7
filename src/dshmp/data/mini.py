"""Miniature data sets in the layouts of the real ones, from the synthetic data set: what all of these layouts share."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dshmp.common.files import new_folder
from dshmp.data.images import save_jpeg
from dshmp.synthetic.make import Clip, clip_seed, make_clip

MARK = "mini.json"
"""At the root of a miniature data set: published counts and checksums are not compared there."""


def make_mini(name: str, write: Callable[[Path, int], None], out: Path, seed: int = 0) -> None:
    """A miniature data set at `out`, written wholly or not at all; `write(folder, seed)` writes its layout.

    Raises UserError where `out` is there and not an empty folder.
    """
    with new_folder(out) as folder:
        write(folder, seed)
        (folder / MARK).write_text(json.dumps({"dshmp_mini": 1, "dataset": name, "seed": seed}) + "\n")


def draw_clips(count: int, seed: int, families: Sequence[str]) -> list[Clip]:
    """`count` clips of the synthetic data set's training split, version 1, of these families in turn."""
    return [make_clip(clip_seed(seed, "train", i), families[i % len(families)], version=1) for i in range(count)]


def resized(clip: Clip, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Frames (T, height, width, 3) and masks (K, T, height, width) of a clip."""
    frames = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in clip.frames])
    tracks = clip.masks.astype(np.uint8)
    small = [[cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) for mask in track] for track in tracks]
    return frames, np.array(small, dtype=bool)


def first_frames(clip: Clip, hidden: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Eight frames (8, H, W, 3) and masks (K, 8, H, W) of a clip; in the `hidden` ones, object 0 is painted over."""
    frames, masks = clip.frames[:8].copy(), clip.masks[:, :8].copy()
    for t in hidden:
        frames[t][masks[0, t]] = np.median(frames[t].reshape(-1, 3), axis=0)
        masks[0, t] = False
    return frames, masks


def save_frames(folder: Path, frames: NDArray[np.uint8], step: int = 1) -> list[str]:
    """Write frames (T, H, W, 3) as JPEG; returns their names, which go up by `step`."""
    names = [f"{step * t:05d}" for t in range(len(frames))]
    for name, frame in zip(names, frames, strict=True):
        save_jpeg(folder / f"{name}.jpg", frame)
    return names


def short_texts(clip: Clip) -> dict[int, str]:
    """A sentence for each object of a clip, by its number."""
    texts = {i: f"the {item.look.colour} {item.look.shape}" for i, item in enumerate(clip.items)}
    return texts | {item.meant[0]: item.text for item in clip.expressions if len(item.meant) == 1}
