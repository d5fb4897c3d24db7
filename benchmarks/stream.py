"""What is lost when a video is answered in windows, as it comes: J&F of the whole clip's answers and of the stream's on
clips longer than a window, and how often one object changes its id. The interval is of videos drawn anew.

Usage: python benchmarks/stream.py ROOT [--videos N] [--window 16] [--overlap 8] [--memory 0 16 32] [--split valid_u]
"""

import argparse
from collections import defaultdict
from itertools import islice

import numpy as np
import torch

from dshmp import Segmenter
from dshmp.common.progress import track
from dshmp.common.rle import decode
from dshmp.data.base import by_video
from dshmp.data.registry import open_split
from dshmp.evaluation.metrics import jf
from dshmp.evaluation.protocols import target
from dshmp.inference.stream import FrameResult

SEEN = 0.5  # IoU with the true mask from which on an object is the true one


def both(pred: np.ndarray, truth: np.ndarray) -> float:
    return sum(jf(pred, truth)) / 2


def ids(frames: list[FrameResult], truth: np.ndarray) -> set[int]:
    """Of the objects that were the one that is meant, in any frame."""
    found = set()
    for frame, mask in zip(frames, truth, strict=True):
        for each in frame.objects:
            shared = (each.mask & mask).sum()
            if shared and shared / (each.mask | mask).sum() >= SEEN:
                found.add(each.id)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root")
    parser.add_argument("--model", default="default")
    parser.add_argument("--split", default="valid_u")
    parser.add_argument("--videos", type=int)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--overlap", type=int, nargs="+", default=[8])
    parser.add_argument("--memory", type=int, nargs="+", default=[0, 16, 32])
    given = parser.parse_args()
    segmenter = Segmenter.from_pretrained(given.model)
    split = open_split("mevis", given.root, given.split)
    asked = by_video(split)
    names = [name for name, video in split.videos.items() if len(video.frames) > given.window and name in asked]
    names = list(islice(names, given.videos))
    scores: dict[str, list[list[float]]] = defaultdict(list)  # per setting and video, of each sentence
    changed: dict[str, list[bool]] = defaultdict(list)
    settings = {
        f"overlap {a:2}, memory {b:2}": {"overlap": a, "memory": b} for a in given.overlap for b in given.memory
    }
    for name in track(names, "videos"):
        items = asked[name]
        frames = np.stack(split.frames(name))
        positions, texts = range(len(frames)), [item.text for item in items]
        truths = [target(split, name, item.annotations, positions, frames.shape[1:3]) for item in items]
        fps = segmenter.config.input.motion_fps
        batch = segmenter(frames, texts, fps=fps)
        scores["whole"].append([both(each.masks, truth) for each, truth in zip(batch, truths, strict=True)])
        for setting, how in settings.items():
            told = list(segmenter.stream(frames, texts, fps=fps, window=given.window, **how))
            own = list(zip(*told, strict=True))
            masks = [decode([frame.rle for frame in each]) for each in own]
            scores[setting].append([both(*pair) for pair in zip(masks, truths, strict=True)])
            for item, each, truth in zip(items, own, truths, strict=True):
                if len(item.annotations) == 1 and (found := ids(list(each), truth)):
                    changed[setting].append(len(found) > 1)
    count = [len(each) for each in scores["whole"]]
    lengths = sorted({len(split.videos[name].frames) for name in names})
    print(f"{len(names)} clips of {lengths} frames, {sum(count)} sentences, windows of {given.window}")
    whole = np.concatenate(scores["whole"])
    print(f"whole clip              J&F {100 * whole.mean():.1f}")
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(names), size=(2000, len(names)))
    for setting in settings:
        rows = scores[setting]
        sums = np.array([sum(a) - sum(b) for a, b in zip(rows, scores["whole"], strict=True)])
        low, high = np.percentile(100 * sums[drawn].sum(1) / np.array(count)[drawn].sum(1), [2.5, 97.5])
        mean, switched = 100 * np.concatenate(rows).mean(), changed[setting]
        print(
            f"{setting}   J&F {mean:.1f}, {mean - 100 * whole.mean():+.1f} ({low:+.1f} to {high:+.1f}); "
            f"{sum(switched)} of {len(switched)} objects that were found changed their id"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
