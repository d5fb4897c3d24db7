"""Task `perception`: single frames, all objects, no language."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import InputConfig
from dshmp.data.base import Split
from dshmp.errors import UserError
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import Prediction
from dshmp.model.frames import prepare_frames
from dshmp.model.text import null_text
from dshmp.training.logging import Metrics
from dshmp.training.matching import Level, SetPrediction, SetTargets
from dshmp.training.probe import ObjectProbe
from dshmp.training.recipe import Recipe
from dshmp.training.sampling import ALL, Share, sample_generator, step_generator, torch_generators
from dshmp.training.video_losses import SET_COUNTS, Counts, match_all, set_counts, supervise


@dataclass(frozen=True)
class FrameBatch:
    """Single frames with the masks of all their objects."""

    images: Tensor
    """(F, 3, h, w) normalised."""
    masks: Tensor
    """(F, G, 1, h, w) bool."""
    valid: Tensor
    """(F, G) bool."""
    attributes: Tensor
    """(F, G, A) long, the class of each attribute."""
    seeds: tuple[tuple[int, ...], ...]
    """Of each frame's random numbers."""
    names: tuple[str, ...]
    """The video of each frame."""


class PerceptionTask:
    """Single frames, all objects, no language: the synthetic data's counterpart of COCO instance pre-training."""

    counted = (*SET_COUNTS, "tokens", "links")
    contrast = None

    def __init__(self, recipe: Recipe, model: DsHmp, split: Split) -> None:
        self.recipe, self.model, self.split = recipe, model, split
        self.videos = list(split.videos)
        if recipe.weights.link:
            if recipe.batch < 2:
                raise UserError("weights.link compares neighbouring frames: batch must be at least 2, or link 0")
            short = next((name for name, video in split.videos.items() if len(video.frames) < 2), None)
            if short is not None:
                raise UserError(
                    f"{split.folder}: video {short!r} has one frame only, but weights.link compares neighbouring "
                    "frames; remove the video, or set weights.link to 0"
                )
        self.probe = ObjectProbe(model.config.hidden_size, split)
        self.modules = nn.ModuleDict({"probe": self.probe})
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in visual_parameters(model):
            parameter.requires_grad_(True)

    def batches(self, step: int, share: Share = ALL) -> list[FrameBatch]:
        rng = step_generator(self.recipe.seed, step)
        config = self.model.config.input
        height = config.short_side
        width = int(rng.integers(height, config.long_side + 1))
        width -= width % config.divisor
        apart = self.apart
        share = replace(share, at_once=share.at_once and max(1, share.at_once // apart))
        parts = share.parts(share.places(self.recipe.batch // apart))
        return [self._batch(step, part, (height, width)) for part in parts]

    @property
    def apart(self) -> int:
        """Frames of a sample: 2, neighbours, where links are learned."""
        return 2 if self.recipe.weights.link else 1

    def _batch(self, step: int, places: Sequence[int], size: tuple[int, int]) -> FrameBatch:
        frames, masks, attributes, seeds, names = [], [], [], [], []
        for place in places:
            rng = sample_generator(self.recipe.seed, step, place)
            video = self.split.videos[self.videos[rng.integers(len(self.videos))]]
            start = int(rng.integers(len(video.frames) - self.apart + 1))
            objects = list(video.objects.values())
            classes = [self.probe.classes(item) for item in objects]
            mirror, overturn = rng.random(2) < 0.5
            for position in range(start, start + self.apart):
                frame = self.split.frames(video.name, [position])[0]
                annotations = [item["anno_id"] for item in objects]
                truth = self.split.masks(video.name, annotations, [position], frame.shape[:2])[:, 0]
                frame, truth = _resize(frame, truth, size)
                turn = (slice(None, None, -1 if overturn else 1), slice(None, None, -1 if mirror else 1))
                frames.append(np.ascontiguousarray(frame[turn]))
                masks.append(np.ascontiguousarray(truth[:, *turn]))
                attributes.append(classes)
                seeds.append((self.recipe.seed, step, place, position - start))
                names.append(f"{video.name}/{video.frames[position]}")
        height, width = size
        images = prepare_frames(frames, _exact(self.model.config.input, height, width))
        most = max(map(len, masks))
        padded = np.zeros((len(masks), most, 1, *images.shape[-2:]), dtype=bool)
        labels = np.zeros((len(masks), most, len(self.probe.attributes)), dtype=np.int64)
        for i, (truth, rows) in enumerate(zip(masks, attributes, strict=True)):
            padded[i, : len(truth), 0, :height, :width] = truth
            labels[i, : len(truth)] = rows
        return FrameBatch(
            images,
            torch.from_numpy(padded),
            torch.from_numpy(padded.any((2, 3, 4))),
            torch.from_numpy(labels),
            tuple(seeds),
            tuple(names),
        )

    def names(self, batch: FrameBatch) -> list[str]:
        return list(batch.names)

    def _targets(self, batch: FrameBatch) -> SetTargets:
        return SetTargets(batch.masks, batch.valid, batch.valid.new_ones(len(batch.images), 1))

    def counts(self, batch: FrameBatch, step: int) -> Counts:
        queries = self.model.config.frame_decoder.queries
        links = (batch.valid[0::2] & batch.valid[1::2]).sum() if self.recipe.weights.link else batch.valid.sum() * 0
        found = batch.valid.sum(1).clamp(max=queries).sum()
        return set_counts(self.recipe, self._targets(batch), queries) | {"tokens": found, "links": links}

    def losses(self, batch: FrameBatch, step: int, counts: Counts) -> dict[str, Tensor]:
        recipe, weights = self.recipe, self.recipe.weights
        text = null_text(self.model.language, len(batch.images))
        state = self.model.perception(batch.images, text)
        predictions = [frame_prediction(layer, state.mask_features) for layer in state.layers]
        generators = torch_generators(batch.seeds, batch.images.device)
        level = Level(predictions, self._targets(batch))
        (indices,) = match_all(recipe, [level], generators)
        losses = supervise(recipe, level, indices, generators, counts)
        told = self.probe(state.tokens, indices[-1], batch.masks[:, :, 0], batch.attributes)
        losses["probe"] = weights.probe * told / counts["tokens"].clamp(min=1)
        if weights.link:
            losses["link"] = weights.link * link_loss(state.tokens, indices[-1]) / counts["links"].clamp(min=1)
        return losses

    def validate(self) -> Metrics:
        """Nothing: losses alone are recorded."""
        return Metrics()


LINK_TEMPERATURE = 0.1


def link_loss(tokens: Tensor, indices: Tensor) -> Tensor:
    """Of all tokens of the next frame, the same object's shall be the most similar by cosine (and the other way): the
    sum over the objects found in both.

    Args: tokens (F, N, C), frames 2i and 2i+1 neighbours; indices (F, N) long, the object found or -1.
    """
    unit = F.normalize(tokens, dim=-1)
    scores = unit[0::2] @ unit[1::2].mT / LINK_TEMPERATURE  # (F/2, N, N)
    here, there = indices[0::2], indices[1::2]
    same = (here[:, :, None] == there[:, None]) & (here >= 0)[:, :, None]
    forward, backward = scores.log_softmax(2), scores.log_softmax(1)
    return -((forward + backward) / 2 * same).sum()


def visual_parameters(model: DsHmp) -> Iterator[nn.Parameter]:
    """Parameters of static perception that do not carry language."""
    text = ("static_attention", "fusion", "text_attention", "gates")
    for name, parameter in model.perception.named_parameters():
        if not any(part in name for part in text):
            yield parameter


def frame_prediction(layer: Prediction, mask_features: Tensor) -> SetPrediction:
    """One layer's object tokens of F frames and their masks, as the set losses take them."""
    masks = torch.einsum("fnc,fchw->fnhw", layer.mask_embed, mask_features)
    return SetPrediction(layer.logits, masks[:, :, None])


def _resize(frame: NDArray[Any], masks: NDArray[np.bool_], size: tuple[int, int]) -> tuple[Any, Any]:
    height, width = size
    frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    small = [cv2.resize(m.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) for m in masks]
    return frame, np.stack(small).astype(bool)


def _exact(config: InputConfig, height: int, width: int) -> InputConfig:
    """An input config under which a frame of this size keeps it."""
    return replace(config, short_side=min(height, width), long_side=max(height, width))
