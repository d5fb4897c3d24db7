"""The model that ships: it loads, it is small, and it understands the direction of motion."""

from pathlib import Path

import numpy as np

import dshmp
from dshmp import Segmenter
from dshmp.checkpoint import find_model
from dshmp.synthetic.make import make_clip, time_reversed

PAIRS = 5


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def test_the_default_model_is_small() -> None:
    folder = find_model("default")
    assert Path(dshmp.__file__).parent in folder.parents
    assert (folder / "model.safetensors").stat().st_size < 15e6


def test_the_default_model_tells_look_alikes_apart_by_direction() -> None:
    segmenter = Segmenter.from_pretrained("default", device="cpu")
    right = []
    for seed in range(PAIRS):
        clip = make_clip(90_000 + seed, "pairs", "valid_u", version=1)
        for seen in (clip, time_reversed(clip)):
            asked = [e for e in seen.expressions if "direction pairs" in e.subsets and len(e.meant) == 1][:2]
            results = segmenter(seen.frames, [e.text for e in asked], targets="single", fps=8.0)
            for expression, result in zip(asked, results, strict=True):
                scores = [overlap(result.masks, mask) for mask in seen.masks]
                right.append(int(np.argmax(scores)) == expression.meant[0])
    assert len(right) >= PAIRS
    assert np.mean(right) >= 0.8
