"""Draws docs/augmentation.png: a clip of the synthetic data set as each augmentation leaves its pixels, masks, words.

python docs/augmentation.py
"""

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dshmp.data.transforms import OFF, Augmentation, AugmentedClip, augment, pseudo_clip
from dshmp.synthetic import make_clip

CLAIMS = ("right>up", "right>down", "left>up", "left>down")
SHOWN = 5


def examples() -> tuple[AugmentedClip, AugmentedClip]:
    """A wide clip with the sentence of an object that moves to a side, and with one that a still could have."""
    for seed in range(200):
        clip = make_clip(seed, "easy", version=1)
        alone = [item for item in clip.expressions if len(item.meant) == 1]
        moving = [item for item in alone if item.meaning.claim in CLAIMS]
        moving += [item for item in alone if item.meaning.claim in ("left", "right") and item.meaning.static]
        static = [item for item in alone if not item.meaning.claim]
        if moving and static and clip.frames.shape[2] > clip.frames.shape[1]:
            first, second = ((clip.frames, clip.masks[list(item.meant)], item.text) for item in (moving[0], static[0]))
            return first, second
    raise SystemExit("no clip fits the picture")


def rows() -> dict[str, AugmentedClip]:
    """Name of each augmentation -> what it makes of the clip."""
    moving, (frames, masks, text) = examples()
    only = {
        "original": OFF,
        "flipped": replace(OFF, flip=1),
        "rotated": replace(OFF, rotate=1, angle=20.0),
        "new colours": replace(OFF, jitter=1, brightness=0.4, contrast=0.4, saturation=0.8, hue=0.2),
        "cropped": replace(OFF, crop=1, crop_sizes=(300, 420), crop_drift=False),
        "cropped, drifting": replace(OFF, crop=1, crop_sizes=(300, 420)),
    }
    made = {name: augment(*moving, np.random.default_rng(2), config) for name, config in only.items()}
    made["pseudo-clip of\nthe first frame"] = (
        *pseudo_clip(frames[0], masks[:, 0], np.random.default_rng(4), Augmentation(frames=SHOWN)),
        text,
    )
    return made


def main() -> None:
    made = rows()
    figure = plt.figure(figsize=(10, 1.75 * len(made)), layout="constrained")
    for part, (name, (frames, masks, text)) in zip(figure.subfigures(len(made), 1), made.items(), strict=True):
        part.suptitle(f"“{text}”", fontsize=12, x=0.56)
        chosen = np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)
        strip = part.subplots(1, SHOWN)
        for axis, t in zip(strip, chosen, strict=True):
            axis.imshow(frames[t])
            if masks[:, t].any():
                axis.contour(masks[:, t].any(0), [0.5], colors="#ffffff", linewidths=1.4)
            axis.set_xticks([])
            axis.set_yticks([])
        strip[0].set_ylabel(f"{name:>18}", rotation=0, ha="right", va="center", fontsize=11)
    figure.savefig(Path(__file__).with_name("augmentation.png"), dpi=75)


if __name__ == "__main__":
    main()
