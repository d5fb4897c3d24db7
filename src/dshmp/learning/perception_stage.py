"""Stage `perception`: single frames, all objects, no language."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import InputConfig
from dshmp.data.dataset import Split
from dshmp.errors import UserError
from dshmp.language.encoder import silent_text
from dshmp.learning.matching import SetPrediction, SetTargets
from dshmp.learning.probe import ObjectProbe
from dshmp.learning.recipe import Recipe
from dshmp.learning.sampling import step_generator
from dshmp.learning.video_losses import supervise
from dshmp.model import DsHmp
from dshmp.perception.frame_decoder import Prediction
from dshmp.perception.frames import prepare_frames


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


class PerceptionStage:
    """Single frames, all objects, no language: the world's counterpart of COCO instance pre-training."""

    def __init__(self, recipe: Recipe, model: DsHmp, split: Split) -> None:
        self.recipe, self.model, self.split = recipe, model, split
        self.names = list(split.videos)
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

    def batch(self, step: int) -> FrameBatch:
        rng = step_generator(self.recipe.seed, step)
        config = self.model.config.input
        height = config.short_side
        width = int(rng.integers(height, config.long_side + 1))
        width -= width % config.divisor
        frames, masks, attributes = [], [], []
        apart = 2 if self.recipe.weights.link else 1
        for index in rng.integers(len(self.names), size=self.recipe.batch // apart):
            video = self.split.videos[self.names[index]]
            start = int(rng.integers(len(video.frames) - apart + 1))
            objects = list(video.objects.values())
            classes = [self.probe.classes(item) for item in objects]
            mirror, overturn = rng.random(2) < 0.5
            for position in range(start, start + apart):
                frame = self.split.frames(video.name, [position])[0]
                annotations = [item["anno_id"] for item in objects]
                truth = self.split.masks(video.name, annotations, [position], frame.shape[:2])[:, 0]
                frame, truth = _resize(frame, truth, (height, width))
                turn = (slice(None, None, -1 if overturn else 1), slice(None, None, -1 if mirror else 1))
                frames.append(np.ascontiguousarray(frame[turn]))
                masks.append(np.ascontiguousarray(truth[:, *turn]))
                attributes.append(classes)
        images = prepare_frames(frames, _exact(config, height, width))
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
        )

    def losses(self, batch: FrameBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, weights = self.recipe, self.recipe.weights
        text = silent_text(self.model.language, len(batch.images))
        state = self.model.perception(batch.images, text)
        targets = SetTargets(batch.masks, batch.valid, batch.valid.new_ones(len(batch.images), 1))
        predictions = [frame_prediction(layer, state.mask_features) for layer in state.layers]
        losses, indices = supervise(recipe, predictions, targets, generator)
        losses["probe"] = weights.probe * self.probe(state.tokens, indices[-1], batch.masks[:, :, 0], batch.attributes)
        if weights.link:
            losses["link"] = weights.link * link_loss(state.tokens, indices[-1])
        return losses

    def validate(self) -> dict[str, float]:
        """Nothing: losses alone are recorded."""
        return {}


LINK_TEMPERATURE = 0.1


def link_loss(tokens: Tensor, indices: Tensor) -> Tensor:
    """Of all tokens of the next frame, the same object's shall be the most similar by cosine (and the other way).

    Args: tokens (F, N, C), frames 2i and 2i+1 neighbours; indices (F, N) long, the object found or -1.
    """
    unit = F.normalize(tokens, dim=-1)
    scores = unit[0::2] @ unit[1::2].mT / LINK_TEMPERATURE  # (F/2, N, N)
    here, there = indices[0::2], indices[1::2]
    same = (here[:, :, None] == there[:, None]) & (here >= 0)[:, :, None]
    forward, backward = scores.log_softmax(2), scores.log_softmax(1)
    return -((forward + backward) / 2 * same).sum() / same.sum().clamp(min=1)


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
