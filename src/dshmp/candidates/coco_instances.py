"""Objects of COCO's 80 classes, which Mask2Former finds in every frame, linked over time by looks and place."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dshmp.candidates.hub import find_folder, load, load_part
from dshmp.candidates.overlaps import boxes_of, first_of_each, mask_overlap
from dshmp.common.progress import Progress
from dshmp.common.rle import Rle, encode
from dshmp.config import Count, Share
from dshmp.formats.tracks import Track, Tracks
from dshmp.model.trajectories import LONGEST_GAP, link
from dshmp.video.source import VideoSource

# how people call what COCO names, in both spellings that are published; a plural's s is known to be one
SYNONYMS = {
    "person": "man men woman women boy girl child children kid baby people human rider player guy lady pedestrian",
    "bicycle": "bike cycle",
    "car": "vehicle suv taxi van sedan jeep",
    "motorcycle": "motorbike bike scooter",
    "motorbike": "motorcycle bike scooter",
    "airplane": "plane aircraft jet aeroplane",
    "aeroplane": "plane aircraft jet airplane",
    "bus": "vehicle coach",
    "truck": "vehicle lorry van pickup",
    "boat": "ship yacht canoe kayak",
    "bird": "parrot duck chicken hen rooster pigeon eagle goose swan seagull owl parakeet penguin",
    "cat": "kitten kitty",
    "dog": "puppy puppies",
    "horse": "pony foal",
    "sheep": "lamb goat",
    "cow": "bull calf cattle ox buffalo",
    "bear": "panda cub",
    "skateboard": "board",
    "surfboard": "board",
    "snowboard": "board",
    "sports ball": "football basketball",
    "couch": "sofa",
    "sofa": "couch",
    "tv": "television screen monitor",
    "tvmonitor": "tv television screen monitor",
    "cell phone": "phone smartphone",
    "dining table": "desk",
    "diningtable": "table desk",
    "teddy bear": "toy",
}


@dataclass(frozen=True)
class CocoInstances:
    """The settings, and a `CandidateSource`: of a video the objects of 80 everyday classes, whatever a sentence says.

    Raises UserError where the model is not to be had.
    """

    model: str = "facebook/mask2former-swin-tiny-coco-instance"  # or a folder
    revision: str = "22c4a2f15dc88149b8b8d9f4d42c54431fbd66f6"
    threshold: Share = 0.5  # score of an object in a frame: its class's probability times its mask's
    overlap: Share = 0.7  # IoU from which two masks are the same object
    most: Count = 20  # objects in a frame, the surest

    def __call__(self, source: VideoSource, phrases: Sequence[str], device: torch.device, progress: Progress) -> Tracks:
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

        folder = find_folder(self.model, self.revision, "190 MB, licence: see its card (Mask2Former)")
        prepare = load_part(Mask2FormerImageProcessorPil, folder)
        model = load(Mask2FormerForUniversalSegmentation, folder, device)
        frames: list[_Instances] = []
        for frame in source:
            pixels = prepare(frame.image, return_tensors="pt")["pixel_values"].to(device)
            with torch.inference_mode():
                frames.append(self._instances(model(pixel_values=pixels), frame.image.shape[:2]))
            progress("candidates", len(frames), source.count)
        return _tracks(frames, source, model.config.id2label)

    def _instances(self, output: Any, size: tuple[int, int]) -> "_Instances":
        """Of one frame's output what is sure enough, each object once, the surest first."""
        chances, classes = output.class_queries_logits[0].softmax(-1)[:, :-1].max(-1)
        wanted = torch.nonzero(chances >= self.threshold)[:, 0]  # a score is not above its class's probability
        logits = output.masks_queries_logits[0, wanted]
        inside = logits > 0
        sure = (logits.sigmoid() * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
        scores = chances[wanted] * sure
        order = scores.argsort(descending=True)
        order = order[scores[order] >= self.threshold]
        order = order[first_of_each(mask_overlap(inside[order]) > self.overlap)[: self.most]]
        large = (F.interpolate(logits[order, None], size, mode="bilinear") > 0)[:, 0]
        seen = large.flatten(1).any(1)
        masks, rows = large[seen].cpu().numpy(), wanted[order[seen]]
        tokens = output.transformer_decoder_last_hidden_state[0, rows].float().cpu()
        return _Instances([encode(mask) for mask in masks], boxes_of(masks), tokens, classes[rows].tolist())


@dataclass(frozen=True)
class _Instances:
    """The K objects of one frame."""

    masks: list[Rle]
    boxes: Tensor  # (K, 4)
    tokens: Tensor  # (K, C)
    classes: list[int]


def _tracks(frames: Sequence[_Instances], source: VideoSource, names: dict[int, str]) -> Tracks:
    """Instances of all frames, linked; a trajectory that is away for long ends, and begins as another track."""
    count = 2 * max(len(each.masks) for each in frames)  # so that a new one need not take the place of one away
    masks: dict[tuple[int, int], dict[int, Rle]] = defaultdict(dict)
    classes: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    if count:
        part, last = [0] * count, [0] * count
        for t, row in enumerate(_linked(frames, count)):
            for slot, k in enumerate(row):
                if k < len(frames[t].masks):
                    part[slot] += t - last[slot] > LONGEST_GAP
                    last[slot] = t
                    masks[slot, part[slot]][source.start + t] = frames[t].masks[k]
                    classes[slot, part[slot]][frames[t].classes[k]] += 1
    found = sorted(masks, key=lambda key: (min(masks[key]), key))
    items = (
        Track(str(number), masks[key], words_of(names[classes[key].most_common(1)[0][0]]))
        for number, key in enumerate(found, 1)
    )
    told = frozenset(word for name in names.values() for word in words_of(name))
    return Tracks(source.height, source.width, tuple(items), vocabulary=told)


def _linked(frames: Sequence[_Instances], count: int) -> NDArray[np.int64]:
    """(T, N): which instance of a frame goes on with each of N trajectories; from K on there is none."""
    width = frames[0].tokens.shape[1]
    tokens, boxes = torch.zeros(1, len(frames), count, width), torch.zeros(1, len(frames), count, 4)
    present = torch.zeros(1, len(frames), count, dtype=torch.bool)
    for t, each in enumerate(frames):
        own = slice(len(each.masks))
        tokens[0, t, own], boxes[0, t, own], present[0, t, own] = each.tokens, each.boxes, True
    order: NDArray[np.int64] = link(tokens, boxes, present, None)[0].numpy()
    return order


def words_of(name: str) -> tuple[str, ...]:
    """What people may call an object of this class."""
    return *name.lower().split(), *SYNONYMS.get(name.lower(), "").split()
