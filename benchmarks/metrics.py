"""J and F per frame of 480x854, the benchmarks' reference method beside ours, on one core; `dshmp score`'s time by what
it is spent on: reading the PNGs, reading the annotation, J and F; and its time by the number of processes.

Usage: python benchmarks/metrics.py
"""

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dshmp.common.rle import encode
from dshmp.data.mevis import MevisSplit
from dshmp.data.registry import dataset
from dshmp.evaluation.metrics import jf_frames
from dshmp.evaluation.predictions import Predictions
from dshmp.evaluation.protocols import score_expressions, target
from dshmp.evaluation.score import score_split

HEIGHT, WIDTH = 480, 854
VIDEOS, EXPRESSIONS, FRAMES = 10, 4, 20
Masks = NDArray[np.bool_]


def reference(pred: Masks, truth: Masks) -> tuple[float, float]:
    """J and F of one frame as DAVIS defines them, everything over the whole frame."""
    union = (pred | truth).sum()
    region = (pred & truth).sum() / union if union else 1.0
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    lines = [_line(mask) for mask in (pred, truth)]
    wide = [cv2.dilate(line.astype(np.uint8), disk) > 0 for line in lines]
    lengths = [line.sum() for line in lines]
    if not all(lengths):
        return region, float(lengths[0] == lengths[1])
    precision, recall = ((lines[i] & wide[1 - i]).sum() / lengths[i] for i in (0, 1))
    return region, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _line(mask: Masks) -> Masks:
    right, below, corner = mask.copy(), mask.copy(), mask.copy()
    right[:, :-1], below[:-1], corner[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    line = (mask ^ right) | (mask ^ below) | (mask ^ corner)
    line[-1], line[:, -1] = (mask ^ right)[-1], (mask ^ below)[:, -1]
    line[-1, -1] = False
    return line


def blobs(rng: np.random.Generator, frames: int, size: float) -> Masks:
    """Ragged blobs of about this part of the frame's height and width, each near the one before."""
    masks = np.zeros((frames, HEIGHT, WIDTH), np.uint8)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    for t, mask in enumerate(masks):
        radii = size / 2 * (1 + 0.1 * rng.standard_normal(60))
        centre = np.array([WIDTH, HEIGHT]) * (0.5 + 0.1 * np.sin(0.1 * t)) + rng.normal(0, 4, 2)
        points = centre + np.stack([WIDTH * radii * np.cos(angles), HEIGHT * radii * np.sin(angles)], 1)
        cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
    return masks.astype(bool)


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def compare_methods() -> None:
    rng = np.random.default_rng(0)
    frames = 40
    empty = np.zeros((frames, HEIGHT, WIDTH), bool)
    cases = {f"object, {100 * size**2:.0f} % of the frame": size for size in (0.1, 0.2, 0.35, 0.9)}
    pairs = {name: (blobs(rng, frames, size), blobs(rng, frames, size)) for name, size in cases.items()}
    pairs |= {
        "object, prediction empty": (empty, blobs(rng, frames, 0.2)),
        "both fill the frame": (~empty, ~empty),
        "both empty": (empty, empty),
    }
    print(f"{'ms a frame of 480x854':32} reference   ours  times")
    for name, (pred, truth) in pairs.items():
        expected = np.array([reference(p, t) for p, t in zip(pred, truth, strict=True)])
        assert np.abs(expected.T - jf_frames(pred, truth)).max() < 1e-9
        slow, fast = (
            1e3 * seconds(work) / frames
            for work in (
                lambda p=pred, t=truth: [reference(*pair) for pair in zip(p, t, strict=True)],
                lambda p=pred, t=truth: jf_frames(p, t),
            )
        )
        print(f"{name:32} {slow:9.2f} {fast:6.2f} {slow / fast:6.1f}")


def write_split(root: Path, pred: Path) -> None:
    """A split of objects with predictions near them."""
    rng = np.random.default_rng(1)
    names = [f"{t:05d}" for t in range(FRAMES)]
    videos, masks = {}, {}
    for v in range(VIDEOS):
        folder = root / "valid_u" / "JPEGImages" / f"v{v}"
        folder.mkdir(parents=True)
        for name in names:
            Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(folder / f"{name}.jpg")
        expressions = {}
        for e in range(EXPRESSIONS):
            annotation = EXPRESSIONS * v + e
            expressions[str(e)] = {"exp": "the one", "obj_id": [e], "anno_id": [annotation]}
            masks[str(annotation)] = [encode(mask) for mask in blobs(rng, FRAMES, 0.2)]
            (pred / f"v{v}" / str(e)).mkdir(parents=True)
            for name, mask in zip(names, blobs(rng, FRAMES, 0.2), strict=True):
                Image.fromarray(mask.astype(np.uint8) * 255).save(pred / f"v{v}" / str(e) / f"{name}.png")
        videos[f"v{v}"] = {"frames": names, "expressions": expressions}
    (root / "valid_u" / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (root / "valid_u" / "mask_dict.json").write_text(json.dumps(masks))


def share_of_a_split() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, pred = Path(folder, "root"), Path(folder, "pred")
        write_split(root, pred)
        split, predictions = MevisSplit(root, "valid_u"), Predictions(pred)
        items = {name: [item for item in split.expressions if item.video == name] for name in split.videos}
        size, positions = (HEIGHT, WIDTH), range(FRAMES)

        def answer(video: str, key: str) -> Masks:
            names = split.videos[video].frames
            return np.stack([predictions.mask(f"{video}/{key}/{name}.png", size) for name in names])

        def truth(video: str, annotations: tuple[int, ...]) -> Masks:
            return target(split, video, annotations, positions, size)

        known = [(answer(item.video, item.id), truth(item.video, item.annotations)) for item in split.expressions]
        times = {
            "all": seconds(lambda: [score_expressions(split, predictions, *pair) for pair in items.items()]),
            "reading PNGs": seconds(lambda: [answer(item.video, item.id) for item in split.expressions]),
            "reading the annotation": seconds(lambda: [truth(i.video, i.annotations) for i in split.expressions]),
            "J and F": seconds(lambda: [jf_frames(*pair) for pair in known]),
            "J and F, reference": seconds(
                lambda: [reference(*pair) for masks in known for pair in zip(*masks, strict=True)], 1
            ),
        }
        count = len(split.expressions)
        print(f"\n{count} expressions of {FRAMES} frames of 480x854 in {VIDEOS} videos")
        for name, value in times.items():
            print(
                f"{name:32} {value:7.2f} s {1e3 * value / count / FRAMES:6.2f} ms a frame {value / times['all']:7.0%}"
            )
        scale(root, pred)


def scale(root: Path, pred: Path) -> None:
    """`dshmp score` with more and more processes, each time from opening the split to the figures."""
    cores = len(os.sched_getaffinity(0))
    print(f"\nthe same with processes on {cores} cores, from opening the split to the intervals")
    alone = None
    for workers in sorted({1, 2, cores}):
        value = seconds(lambda w=workers: score_split(dataset("mevis"), root, "valid_u", pred, w))
        alone = alone or value
        print(f"{f'--workers {workers}':32} {value:7.2f} s {alone / value:6.1f} times")


def main() -> None:
    """All tables; the first two on one core."""
    cv2.setNumThreads(1)
    cores = f"{os.cpu_count()} cores, one of them used in the first two tables"
    print(f"{_processor()}, {cores}; NumPy {np.__version__}, OpenCV {cv2.__version__}")
    compare_methods()
    share_of_a_split()


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
