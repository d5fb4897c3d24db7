"""Miniature data sets in the exact layouts of the real ones, drawn from the generated world.

Here stands what all layouts share; each data set's own file writes its layout.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dshmp.errors import UserError
from dshmp.world.make import Clip, clip_seed, make_clip

PALETTE = np.array(
    [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128]],
    np.uint8,
)
"""Colours of DAVIS's palette for the first object ids."""
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
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is there already; remove it or choose another folder")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial, seed)
        write_mark(partial, name, seed)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def draw_clips(count: int, seed: int, split: str = "train", families: Sequence[str | None] = (None,)) -> list[Clip]:
    """`count` clips of the generated world; the same arguments give the same clips."""
    return [make_clip(clip_seed(seed, split, i), families[i % len(families)], split) for i in range(count)]


def index_mask(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Masks (K, H, W) of objects 1 to K -> (H, W) uint8 indices, 0 = none; visible masks do not overlap."""
    indices: NDArray[np.uint8] = (masks * np.arange(1, len(masks) + 1, dtype=np.uint8)[:, None, None]).max(0, initial=0)
    return indices


def save_jpeg(path: Path, frame: NDArray[np.uint8], quality: int = 92) -> None:
    """Write a frame (H, W, 3) uint8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame).save(path, quality=quality)


def save_palette_png(path: Path, indices: NDArray[np.uint8]) -> None:
    """Write (H, W) uint8 object ids as a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indices, mode="P")
    # all 256 colours: Pillow packs the indices into as few bits as the palette needs, and would cut off 255
    image.putpalette(PALETTE.flatten().tolist() + [255] * (768 - PALETTE.size))
    image.save(path)


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
