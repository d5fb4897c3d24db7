"""What the motion part answers about real videos with true masks, and what `--candidates moving` finds in them.

    python benchmarks/real_footage.py TRUTH.json FOLDER... [--model MODEL] [--candidates moving]

Each FOLDER is laid out as DAVIS is (JPEGImages, Annotations*), with one object a video. TRUTH.json says of each video
what the object does relative to the ground: {"cows": {"frames": [0, 104], "true": ["moves right"], "false": [...]}}.

By default the true masks are given as tracks, with a patch that follows the ground: each video plain, mirrored and
reversed, then put together from pieces: there and back, and with a pause at the end or the beginning.
"""

import argparse
import json
import platform
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from dshmp import Segmenter
from dshmp.candidates.moving import Moving
from dshmp.common.rle import decode
from dshmp.data.images import open_data_image
from dshmp.formats.tracks import array_tracks
from dshmp.inference.tracked import FramesRead, track_candidates
from dshmp.model.geometry import cumulative
from dshmp.video.io import open_video

RATE = 24.0  # frames per second of DAVIS
SHORT = 320  # pixels of the short side at which tracks are asked about
OPPOSITE = {"moves right": "moves left", "gets bigger": "gets smaller"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}
WORDS = {
    "moves right": "the one that moves to the right",
    "moves left": "the one that moves to the left",
    "stays still": "the one that stays still",
    "gets bigger": "the one that gets bigger",
    "gets smaller": "the one that gets smaller",
}
WAYS = ("right", "left")
Case = tuple[
    str, np.ndarray, np.ndarray, list[tuple[str, list[int]]]
]  # kind, frames, masks, sentences with who is meant


def load(name: str, folders: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) and masks (T, H, W) of a video, from whichever folder has it."""
    for folder in folders:
        frames = sorted(path for place in folder.rglob(name) for path in place.glob("*.jpg"))
        masks = sorted(path for place in folder.rglob(name) for path in place.glob("*.png"))
        if frames and masks:
            pictures = [cv2.imread(str(path))[..., ::-1] for path in frames]
            shapes = []
            for path in masks:
                with open_data_image(path, "mask") as image:
                    shapes.append(np.asarray(image if image.mode == "P" else image.convert("L")) > 0)
            return np.stack(pictures), np.stack(shapes)
    raise SystemExit(f"{name}: in none of the folders")


def ground(segmenter: Segmenter, frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """A patch (T, H, W) that follows the ground, beside the object."""
    source, given = open_video(frames, None, RATE), array_tracks(masks[None], frames.shape[1:3])
    read = FramesRead(source, segmenter.config.input, False)
    read.finish(lambda *_: None)
    pose = cumulative(track_candidates(read, given).camera)[0].numpy()
    height, width = masks.shape[1:]
    short, middle = min(height, width), len(masks) // 2
    aside = -0.3 if np.nonzero(masks[middle])[1].mean() > width / 2 else 0.3
    anchor = np.linalg.inv(pose[middle]) @ (aside, 0.25, 1)
    patch = np.zeros_like(masks)
    for t, each in enumerate(pose):
        x, y = (each @ anchor)[:2] * short + (width / 2, height / 2)
        half = int(0.09 * short)
        x, y = int(x), int(y)
        patch[t, max(y - half, 0) : max(y + half, 0), max(x - half, 0) : max(x + half, 0)] = True
    return patch & ~masks


def cases(frames: np.ndarray, masks: np.ndarray, true: list[str], false: list[str]) -> Iterator[Case]:
    """masks (2, T, H, W): the object and the ground."""
    asked = [(each, [0]) for each in true] + [(each, [1] if each == "stays still" else []) for each in false]
    asked = [(each, who) for each, who in asked if each in WORDS]
    sides = {each: OPPOSITE[each] if each.startswith("moves") else each for each in WORDS if each != "stays still"}
    turned = {each: OPPOSITE.get(each, each) for each in WORDS}
    yield "plain", frames, masks, [(WORDS[each], who) for each, who in asked]
    yield "mirrored", frames[:, :, ::-1], masks[..., ::-1], [(WORDS[sides.get(each, each)], who) for each, who in asked]
    yield "reversed", frames[::-1], masks[:, ::-1], [(WORDS[turned[each]], who) for each, who in asked]
    way = next((each.split()[1] for each in true if each in ("moves left", "moves right")), None)
    if way is None:
        return
    other = WAYS[way == "right"]
    steps = np.arange(len(frames))
    back, still = np.r_[steps, steps[-2::-1]], len(steps) // 2
    late, early = np.r_[steps, [steps[-1]] * still], np.r_[[steps[0]] * still, steps]
    for kind, order, text in (
        ("there and back", back, "the one that moves to the {} and then turns back"),
        ("stops", late, "the one that moves to the {} and then stops"),
        ("waits", early, "the one that stays still and then moves to the {}"),
    ):
        sentences = [(text.format(way), [0]), (text.format(other), [])]
        yield kind, frames[order], masks[:, order], sentences
        mirrored = [(text.format(other), [0]), (text.format(way), [])]
        yield kind, frames[order][:, :, ::-1], masks[:, order][..., ::-1], mirrored


def resized(frames: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = SHORT / min(frames.shape[1:3])
    size = round(frames.shape[2] * scale / 2) * 2, round(frames.shape[1] * scale / 2) * 2
    small = [cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in frames]
    shapes = [cv2.resize(each.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for each in masks]
    return np.stack(small), np.stack(shapes)


def with_true_masks(segmenter: Segmenter, folders: list[Path], truth: dict[str, dict]) -> None:
    right, asked = defaultdict[str, int](int), defaultdict[str, int](int)
    for name, told in truth.items():
        frames, masks = (each[slice(*told["frames"])] for each in load(name, folders))
        frames, masks = resized(frames, masks)
        both = np.stack([masks, ground(segmenter, frames, masks)])
        for kind, pictures, shapes, sentences in cases(frames, both, told["true"], told["false"]):
            texts, pictures = [text for text, _ in sentences], np.ascontiguousarray(pictures)
            for result, (text, who) in zip(segmenter(pictures, texts, fps=RATE, tracks=shapes), sentences, strict=True):
                given = sorted(int(each.track) - 1 for each in result.objects)
                asked[kind] += 1
                right[kind] += given == who
                if given != who:
                    print(f"{name:16} {kind:14} {text!r}: {given}, not {who} ({result.score:.2f})", flush=True)
    for kind, count in asked.items():
        print(f"{kind:14} {right[kind]:3} of {count:3} right")
    simple = [kind for kind in asked if kind in ("plain", "mirrored", "reversed")]
    for title, kinds in (("simple", simple), ("compound", [kind for kind in asked if kind not in simple])):
        of, count = sum(right[kind] for kind in kinds), sum(asked[kind] for kind in kinds)
        print(f"{title}: {of} of {count} right, {100 * of / max(count, 1):.1f} %")


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """J: mean over the frames of the IoU of masks (T, H, W)."""
    union = (a | b).sum((1, 2))
    return float(np.where(union > 0, (a & b).sum((1, 2)) / np.maximum(union, 1), 1.0).mean())


def with_moving(segmenter: Segmenter, folders: list[Path], truth: dict[str, dict]) -> None:
    best, moves, said = [], [], []
    for name, told in truth.items():
        frames, masks = (each[slice(*told["frames"])] for each in load(name, folders))
        source = open_video(frames, None, RATE)
        tracks = Moving()(source, [], torch.device("cpu"), lambda *_: None)
        own = np.zeros((len(tracks.items), *masks.shape), bool)
        for k, track in enumerate(tracks.items):
            for t, rle in track.masks.items():
                own[k, t] = decode([rle])[0]
        best.append(max((overlap(each, masks) for each in own), default=0.0))
        texts = ["the one that moves", *(WORDS[each] for each in told["true"] if each in WORDS)]
        answers = segmenter(frames, texts, fps=RATE, tracks=tracks) if len(own) else []
        scores = [overlap(each.masks, masks) for each in answers] or [0.0] * len(texts)
        moves.append(scores[0])
        said += scores[1:]
        listed = ", ".join(
            f"{text.removeprefix('the one that ')} {score:.2f}" for text, score in zip(texts, scores, strict=False)
        )
        print(f"{name:16} best of {len(own):2} candidates {best[-1]:.3f}; answers: {listed}", flush=True)
    print(f"J of the best candidate {np.mean(best):.3f}, of 'the one that moves' {np.mean(moves):.3f}", end="")
    print(f", of true sentences {np.mean(said):.3f} ({len(said)}), worst 3 {sorted(said)[:3]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--model", default="default")
    parser.add_argument("--candidates", choices=["moving"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, model {given.model}")
    truth = {name: each for name, each in json.loads(given.truth.read_text()).items() if name != "about"}
    segmenter = Segmenter.from_pretrained(given.model, device="cpu")
    (with_moving if given.candidates else with_true_masks)(segmenter, given.folders, truth)


if __name__ == "__main__":
    main()
