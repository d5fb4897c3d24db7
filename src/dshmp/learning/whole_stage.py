"""Stage `whole`: everything at once on clips, with the paper's losses at frame and at video level."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.data.dataset import Expression, Split, Video
from dshmp.language.encoder import TextBatch, TextTokenizer
from dshmp.learning.matching import SetTargets
from dshmp.learning.perception_stage import frame_prediction
from dshmp.learning.recipe import Recipe
from dshmp.learning.sampling import EpochSampler, step_generator
from dshmp.learning.video_losses import Contrast, VideoTargets, pointed_masks, supervise, video_losses
from dshmp.model import DsHmp
from dshmp.perception.frames import input_size, prepare_frames


@dataclass(frozen=True)
class VideoBatch:
    """Whole clips of one size and length, each with several of its sentences."""

    texts: TextBatch
    images: Tensor
    """(V, T, 3, h, w) normalised frames of V clips."""
    clip: Tensor
    """(B,) long: the clip of each sentence."""
    candidates: Tensor
    """(B, G_all, T, h, w) bool, full size: all objects that fit the sentence's static words where the data say
    so (the world does), else the objects meant."""
    targets: VideoTargets


class WholeStage:
    """Everything at once on clips, with the paper's losses at frame and at video level."""

    sentences = 4
    """Sentences drawn from each clip."""

    def __init__(self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, split: Split) -> None:
        self.recipe, self.model, self.tokenizer, self.split = recipe, model, tokenizer, split
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model.language.encoder.requires_grad_(not model.config.language.frozen)
        self.by_video: dict[str, list[int]] = defaultdict(list)
        for index, item in enumerate(split.expressions):
            self.by_video[item.video].append(index)
        self.names = list(self.by_video)
        config = model.config.input
        buckets = []
        for name in self.names:
            height, width = input_size(_video_size(split, name), config)
            padded = (height + -height % config.divisor, width + -width % config.divisor)
            buckets.append((min(len(split.videos[name].frames), recipe.clip_frames), *padded))
        self.sampler = EpochSampler(buckets, recipe.batch, recipe.seed)
        self.contrast = Contrast(recipe, model, split)
        self.modules = nn.ModuleDict({"bank": self.contrast.bank})

    def batch(self, step: int) -> VideoBatch:
        rng = step_generator(self.recipe.seed, step)
        config = self.model.config.input
        images, clip, items, truths, drawn = [], [], [], [], []
        for v, index in enumerate(self.sampler(step)):
            video = self.split.videos[self.names[index]]
            start = int(rng.integers(max(len(video.frames) - self.recipe.clip_frames, 0) + 1))
            positions = range(len(video.frames))[start : start + self.recipe.clip_frames]
            frames = self.split.frames(video.name, positions)
            images.append(prepare_frames(frames, config))
            size = input_size(frames[0].shape[:2], config)
            own = self.by_video[video.name]
            for chosen in rng.choice(own, min(self.sentences, len(own)), replace=False):
                item = self.split.expressions[chosen]
                annotations = list(candidates(item, video).values())
                truth = self.split.masks(video.name, annotations, positions, frames[0].shape[:2])
                truths.append(_fit_masks(truth, size, images[-1].shape[-2:]))
                items.append(item)
                clip.append(v)
                drawn.append(int(chosen))
        shown, targets = self._targets(items, truths, drawn)
        texts = self.tokenizer([item.text for item in items])
        return VideoBatch(texts, torch.stack(images), torch.tensor(clip), shown, targets)

    def _targets(self, items: list[Expression], truths: list[Tensor], drawn: list[int]) -> tuple[Tensor, VideoTargets]:
        """The candidates' masks of all sentences, padded to one number of objects, and the targets among them."""
        most = max(1, *map(len, truths))
        shown = torch.zeros(len(items), most, *truths[0].shape[1:], dtype=torch.bool)
        meant = torch.zeros(len(items), most, dtype=torch.bool)
        objects = torch.full((len(items), max(1, *(len(item.objects) for item in items))), -1)
        for b, (item, truth) in enumerate(zip(items, truths, strict=True)):
            shown[b, : len(truth)] = truth
            known = list(candidates(item, self.split.videos[item.video]))
            index = torch.tensor([known.index(object_id) for object_id in item.objects], dtype=torch.long)
            objects[b, : len(index)] = index
            meant[b, index] = True
        masks = shown[torch.arange(len(items))[:, None], objects.clamp(min=0)]
        masks = masks & (objects >= 0)[:, :, None, None, None]
        return shown, VideoTargets(tuple(drawn), meant, masks, masks.flatten(2).any(2), objects)

    def losses(self, batch: VideoBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, model = self.recipe, self.model
        length = batch.images.shape[1]
        sentences = len(batch.clip)
        text = model.language(batch.texts)
        state = model.perceive_clips(batch.images, batch.clip, text)
        frames = batch.candidates.new_ones(sentences, length)
        visible = batch.candidates.flatten(2).any(2)
        by_frame = SetTargets(batch.candidates, visible, frames).by_frame()
        layers = [frame_prediction(layer, state.mask_features) for layer in state.layers]
        frame_losses, indices = supervise(recipe, layers, by_frame, generator)
        losses = {f"frame {name}": value for name, value in frame_losses.items()}
        tokens = state.tokens.unflatten(0, (sentences, length))  # (B*T, N, C) -> (B, T, N, C)
        video = model.understand(tokens, frames, text)
        if model.config.readout.masks == "embedding":
            masks = [model.embedded_masks(layer, state.video_features) for layer in video.layers]
        else:
            masks = pointed_masks(video, layers[-1].masks[:, :, 0].unflatten(0, (sentences, length)))
        owner = indices[-1].unflatten(0, (sentences, length))  # (B*T, N) -> (B, T, N)
        return losses | video_losses(recipe, self.contrast, video, masks, owner, batch.targets, step, generator)

    def validate(self) -> dict[str, float]:
        """Nothing: losses alone are recorded."""
        return {}


def candidates(item: Expression, video: Video) -> dict[int, int]:
    """Objects that static perception should find for a sentence -> their annotations."""
    found = dict(zip(item.objects, item.annotations, strict=True))
    for object_id in item.extra.get("static_ids", ()):
        found.setdefault(object_id, video.objects[object_id]["anno_id"])
    return found


def _video_size(split: Split, name: str) -> tuple[int, int]:
    shape = split.frames(name, [0])[0].shape
    return shape[0], shape[1]


def _fit_masks(masks: NDArray[np.bool_], size: tuple[int, int], padded: Sequence[int]) -> Tensor:
    """Masks (G, T, H, W) -> (G, T, *padded): resized to `size`, padded at the right and bottom."""
    out = torch.zeros(*masks.shape[:2], *padded, dtype=torch.bool)
    if masks.size:
        small = F.interpolate(torch.from_numpy(masks).float(), size, mode="nearest-exact")
        out[..., : size[0], : size[1]] = small > 0.5
    return out
