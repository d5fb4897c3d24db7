"""Task `perception`: single frames, all objects, no language."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dshmp.errors import UserError
from dshmp.model.frame_decoder import Prediction, disable_language
from dshmp.model.frames import prepare_frames
from dshmp.model.text import null_text
from dshmp.training.losses import Counts, Level, SetPrediction, SetTargets
from dshmp.training.probe import ObjectProbe
from dshmp.training.task import ALL, Share, Task, sample_generator, torch_generators

LINK_TEMPERATURE = 0.1
LANGUAGE = ("static_attention", "fusion", "text_attention", "gates")  # parts of static perception


@dataclass(frozen=True)
class FrameBatch:
    images: Tensor  # (F, 3, h, w) normalised
    masks: Tensor  # (F, G, 1, h, w) bool
    attributes: Tensor  # (F, G, A) long, the class of each attribute
    seeds: tuple[tuple[int, ...], ...]  # of each frame's random numbers
    names: tuple[str, ...]  # the video of each frame

    @property
    def targets(self) -> SetTargets:
        seen = self.masks.flatten(2).any(2)
        return SetTargets(self.masks, seen, seen.new_ones(len(self.masks), 1))


class PerceptionTask(Task):
    """Single frames, all objects, no language: the synthetic data's counterpart of COCO instance pre-training."""

    def setup(self) -> None:
        recipe, model = self.recipe, self.model
        self.split = split = self.one_split(self.splits)
        self.apart = 2 if recipe.weights.link else 1  # frames of a sample: neighbours, where links are learned
        if recipe.batch < self.apart:
            raise UserError("weights.link compares neighbouring frames: batch must be at least 2, or link 0")
        if recipe.init is None:
            try:
                disable_language(model.perception)
            except ValueError as error:
                raise UserError(f"task perception needs a model that can do without language: {error}") from None
        self.videos = [video for video in split.videos.values() if len(video.frames) >= self.apart]
        self.probe = ObjectProbe(model.config.hidden_size, split)
        self.modules = nn.ModuleDict({"probe": self.probe})
        model.requires_grad_(False)
        for name, parameter in model.perception.named_parameters():
            parameter.requires_grad_(not any(part in name for part in LANGUAGE))

    def prepare(self, cache: Path) -> None:
        """No sentences are used."""

    def batches(self, step: int, share: Share = ALL) -> list[FrameBatch]:
        config = self.model.config.input
        height = config.short_side
        width = int(np.random.default_rng([self.recipe.seed, step]).integers(height, config.long_side + 1))
        width -= width % config.divisor
        share = replace(share, at_once=share.at_once and max(1, share.at_once // self.apart))
        return [self._batch(step, part, height, width) for part in share.of(range(self.recipe.batch // self.apart))]

    def _batch(self, step: int, places: Sequence[int], height: int, width: int) -> FrameBatch:
        frames, masks, attributes, seeds, names = [], [], [], [], []
        for place in places:
            rng = sample_generator(self.recipe.seed, step, place)
            video = self.videos[rng.integers(len(self.videos))]
            start = int(rng.integers(len(video.frames) - self.apart + 1))
            objects = list(video.objects.values())
            mirror, overturn = rng.random(2) < 0.5
            turn = (slice(None, None, -1 if overturn else 1), slice(None, None, -1 if mirror else 1))
            for position in range(start, start + self.apart):
                frame = self.split.frames(video.name, [position])[0]
                annotations = [item["anno_id"] for item in objects]
                truth = self.split.masks(video.name, annotations, [position], frame.shape[:2])[:, 0]
                frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
                small = [cv2.resize(m.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) for m in truth]
                frames.append(np.ascontiguousarray(frame[turn]))
                masks.append(torch.from_numpy(np.stack(small)[:, *turn] > 0))
                attributes.append(torch.tensor([self.probe.classes(item) for item in objects]).long())
                seeds.append((self.recipe.seed, step, place, position - start))
                names.append(f"{video.name}/{video.frames[position]}")
        short, long = sorted((height, width))  # of the frames, so that they keep their size
        images = prepare_frames(frames, replace(self.model.config.input, short_side=short, long_side=long))
        padding = 0, images.shape[-1] - width, 0, images.shape[-2] - height
        padded = F.pad(pad_sequence(masks, batch_first=True), padding)[:, :, None]
        labels = pad_sequence(attributes, batch_first=True)
        return FrameBatch(images, padded, labels, tuple(seeds), tuple(names))

    def counts(self, batch: FrameBatch, step: int) -> Counts:
        queries, targets = self.model.config.frame_decoder.queries, batch.targets
        seen = targets.valid
        links = (seen[0::2] & seen[1::2]).sum() if self.apart == 2 else seen.sum() * 0
        tokens = seen.sum(1).clamp(max=queries).sum()
        return self.sets.counts(targets, queries) | {"tokens": tokens, "links": links}

    def losses(self, batch: FrameBatch, step: int, counts: Counts) -> dict[str, Tensor]:
        weights = self.recipe.weights
        state = self.model.perception(batch.images, null_text(self.model.language, len(batch.images)))
        generators = torch_generators(batch.seeds, batch.images.device)
        level = Level([frame_prediction(layer, state.mask_features) for layer in state.layers], batch.targets)
        indices = self.sets.match(level, generators)
        losses = self.sets.losses(level, indices, counts, generators)
        probe = self.probe(state.tokens, indices[-1], batch.masks[:, :, 0], batch.attributes)
        losses["probe"] = weights.probe * probe / counts["tokens"].clamp(min=1)
        if weights.link:
            losses["link"] = weights.link * link_loss(state.tokens, indices[-1]) / counts["links"].clamp(min=1)
        return losses


def link_loss(tokens: Tensor, indices: Tensor) -> Tensor:
    """Of the next frame's tokens, the same object's shall be the most similar by cosine, and the other way; summed over
    objects. tokens (F, N, C), frames 2i and 2i+1 neighbours; indices (F, N) long, the object found or -1."""
    unit = F.normalize(tokens, dim=-1)
    scores = unit[0::2] @ unit[1::2].mT / LINK_TEMPERATURE  # (F/2, N, N)
    here, there = indices[0::2], indices[1::2]
    same = (here[:, :, None] == there[:, None]) & (here >= 0)[:, :, None]
    forward, backward = scores.log_softmax(2), scores.log_softmax(1)
    return -((forward + backward) / 2 * same).sum()


def frame_prediction(layer: Prediction, mask_features: Tensor) -> SetPrediction:
    masks = torch.einsum("fnc,fchw->fnhw", layer.mask_embed, mask_features)
    return SetPrediction(layer.logits, masks[:, :, None])
