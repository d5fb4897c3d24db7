"""Stage `whole`: everything at once on clips, with the paper's losses at frame and at video level."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.data.augment import augment, pseudo_clip, sample_positions
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
    """Whole clips of one length, padded to one size, each with several of its sentences."""

    texts: TextBatch
    images: Tensor
    """(V, T, 3, h, w) normalised frames of V clips."""
    clip: Tensor
    """(B,) long: the clip of each sentence."""
    labelled: Tensor
    """(B, T) bool: frames whose masks are known; the others are seen but not learned from."""
    candidates: Tensor
    """(B, G_all, T, h, w) bool, full size: all objects that fit the sentence's static words where the data say
    so (the world does), else the objects meant."""
    targets: VideoTargets


@dataclass(frozen=True)
class Group:
    """Sentences that are asked of the same frames."""

    source: int
    video: str
    shown: tuple[int, ...] | None
    """As in `Expression`; None is any stretch of the video."""
    scored: tuple[int, ...] | None
    items: tuple[int, ...]
    """Their places in the source's expressions."""


class WholeStage:
    """Everything at once on clips, with the paper's losses at frame and at video level."""

    sentences = 4
    """Sentences drawn from each clip."""
    tries = 10
    """Draws of a clip before one in which nothing meant is to be seen is taken."""

    def __init__(
        self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, splits: Sequence[Split], weights: Sequence[float]
    ) -> None:
        self.recipe, self.model, self.tokenizer, self.splits = recipe, model, tokenizer, splits
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model.language.encoder.requires_grad_(not model.config.language.frozen)
        self.groups = [_groups(source, split) for source, split in enumerate(splits)]
        self.samplers = [
            EpochSampler([self._length(group) for group in groups], recipe.batch, recipe.seed + source)
            for source, groups in enumerate(self.groups)
        ]
        # which source each step draws from, and how often it was drawn from before
        share = np.array(weights) / sum(weights)
        self.source = np.random.default_rng([recipe.seed, 11]).choice(len(splits), recipe.steps, p=share)
        self.place = np.zeros(recipe.steps, dtype=np.int64)
        for source in range(len(splits)):
            drawn = self.source == source
            self.place[drawn] = np.arange(drawn.sum())
        self.first = np.cumsum([0, *(len(split.expressions) for split in splits)])
        """Number of each source's first expression among those of all sources."""
        self.contrast = Contrast(recipe, model, splits)
        self.modules = nn.ModuleDict({"bank": self.contrast.bank})

    def _length(self, group: Group) -> int:
        """Frames of the group's clips."""
        if group.shown is not None:
            return len(group.shown)
        length = len(self.splits[group.source].videos[group.video].frames)
        augmentation = self.recipe.augmentation
        return min(length, self.recipe.clip_frames) if augmentation is None else augmentation.frames

    def batch(self, step: int) -> VideoBatch:
        rng = step_generator(self.recipe.seed, step)
        source = int(self.source[step])
        images: list[Tensor] = []
        truths: list[Tensor] = []
        labelled: list[Tensor] = []
        items: list[Expression] = []
        texts: list[str] = []
        clip: list[int] = []
        drawn: list[int] = []
        for v, index in enumerate(self.samplers[source](int(self.place[step]))):
            group = self.groups[source][index]
            chosen = rng.choice(group.items, min(self.sentences, len(group.items)), replace=False)
            own = [self.splits[source].expressions[i] for i in chosen]
            frames, known, masks, said = self._clip(group, own, rng)
            images.append(frames)
            items += own
            texts += said
            truths += masks
            clip += [v] * len(own)
            labelled += [known] * len(own)
            drawn += [int(self.first[source] + i) for i in chosen]
        height, width = (max(each.shape[axis] for each in images) for axis in (-2, -1))
        padded = [F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2])) for each in images]
        truths = [F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2])) for each in truths]
        shown, targets = self._targets(items, truths, drawn)
        return VideoBatch(
            self.tokenizer(texts), torch.stack(padded), torch.tensor(clip), torch.stack(labelled), shown, targets
        )

    def _clip(
        self, group: Group, items: Sequence[Expression], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, list[Tensor], tuple[str, ...]]:
        """Frames (T, 3, h, w) of a clip, which of them are labelled (T,), the candidates' masks (G, T, h, w) of every
        sentence, and the sentences as they are true of it."""
        split, config = self.splits[group.source], self.model.config.input
        video = split.videos[group.video]
        annotations = [list(candidates(item, video).values()) for item in items]
        every = sorted({annotation for each in annotations for annotation in each})
        meant = {annotation for item in items for annotation in item.annotations}
        rows = np.isin(every, list(meant))
        for _ in range(self.tries):
            positions = self._positions(group, rng)
            frames = np.stack(split.frames(video.name, positions))
            known = np.isin(positions, group.scored) if group.scored is not None else np.ones(len(positions), bool)
            masks = np.zeros((len(every), *frames.shape[:3]), bool)
            masks[:, known] = split.masks(
                video.name, every, np.array(positions)[known].tolist(), (frames.shape[1], frames.shape[2])
            )
            if masks[rows].any() or not rows.any():
                break
        texts: tuple[str, ...] = tuple(item.text for item in items)
        if self.recipe.augmentation is not None:
            if len(frames) < self._length(group):  # a still
                frames, masks = pseudo_clip(frames[0], masks[:, 0], rng, self.recipe.augmentation)
                known = np.ones(len(frames), bool)
            frames, masks, texts = augment(frames, masks, texts, rng, self.recipe.augmentation)
            height, width = frames.shape[1:3]
            config = replace(config, short_side=min(height, width), long_side=max(height, width))
        images = prepare_frames(list(frames), config)
        fitted = _fit_masks(masks, input_size(frames.shape[1:3], config), images.shape[-2:])
        truths = [fitted[[every.index(annotation) for annotation in each]] for each in annotations]
        return images, torch.from_numpy(known), truths, texts

    def _positions(self, group: Group, rng: np.random.Generator) -> list[int]:
        """Frames of a clip."""
        length = len(self.splits[group.source].videos[group.video].frames)
        if group.shown is not None:
            return list(group.shown)
        if length == 1:
            return [0]
        if self.recipe.augmentation is not None:
            return sample_positions(length, rng, self.recipe.augmentation)
        start = int(rng.integers(max(length - self.recipe.clip_frames, 0) + 1))
        return list(range(length))[start : start + self.recipe.clip_frames]

    def _targets(
        self, items: Sequence[Expression], truths: Sequence[Tensor], drawn: Sequence[int]
    ) -> tuple[Tensor, VideoTargets]:
        """The candidates' masks of all sentences, padded to one number of objects, and the targets among them."""
        most = max(1, *map(len, truths))
        shown = torch.zeros(len(items), most, *truths[0].shape[1:], dtype=torch.bool)
        meant = torch.zeros(len(items), most, dtype=torch.bool)
        objects = torch.full((len(items), max(1, *(len(item.objects) for item in items))), -1)
        for b, (item, truth) in enumerate(zip(items, truths, strict=True)):
            shown[b, : len(truth)] = truth
            known = list(candidates(item, self._video(drawn[b])))
            index = torch.tensor([known.index(object_id) for object_id in item.objects], dtype=torch.long)
            objects[b, : len(index)] = index
            meant[b, index] = True
        masks = shown[torch.arange(len(items))[:, None], objects.clamp(min=0)]
        masks = masks & (objects >= 0)[:, :, None, None, None]
        return shown, VideoTargets(tuple(drawn), meant, masks, masks.flatten(2).any(2), objects)

    def _video(self, expression: int) -> Video:
        """Of an expression by its number among those of all sources."""
        source = int(np.searchsorted(self.first, expression, side="right")) - 1
        split = self.splits[source]
        return split.videos[split.expressions[expression - int(self.first[source])].video]

    def losses(self, batch: VideoBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, model = self.recipe, self.model
        length = batch.images.shape[1]
        sentences = len(batch.clip)
        text = model.language(batch.texts)
        state = model.perceive_clips(batch.images, batch.clip, text)
        visible = batch.candidates.flatten(2).any(2)
        by_frame = SetTargets(batch.candidates, visible, batch.labelled).by_frame()
        layers = [frame_prediction(layer, state.mask_features) for layer in state.layers]
        frame_losses, indices = supervise(recipe, layers, by_frame, generator)
        losses = {f"frame {name}": value for name, value in frame_losses.items()}
        tokens = state.tokens.unflatten(0, (sentences, length))  # (B*T, N, C) -> (B, T, N, C)
        video = model.understand(tokens, torch.ones_like(batch.labelled), text)
        if model.config.readout.masks == "embedding":
            masks = [model.embedded_masks(layer, state.video_features) for layer in video.layers]
        else:
            masks = pointed_masks(video, layers[-1].masks[:, :, 0].unflatten(0, (sentences, length)))
        owner = indices[-1].unflatten(0, (sentences, length))  # (B*T, N) -> (B, T, N)
        return losses | video_losses(
            recipe, self.contrast, video, masks, owner, batch.labelled, batch.targets, step, generator
        )

    def validate(self) -> dict[str, float]:
        """Nothing: losses alone are recorded."""
        return {}


def candidates(item: Expression, video: Video) -> dict[int, int]:
    """Objects that static perception should find for a sentence -> their annotations."""
    found = dict(zip(item.objects, item.annotations, strict=True))
    for object_id in item.extra.get("static_ids", ()):
        found.setdefault(object_id, video.objects[object_id]["anno_id"])
    return found


def _groups(source: int, split: Split) -> list[Group]:
    """The expressions of a split by the frames that they are asked of."""
    found: dict[tuple[str, tuple[int, ...] | None, tuple[int, ...] | None], list[int]] = defaultdict(list)
    for index, item in enumerate(split.expressions):
        found[item.video, item.shown, item.scored].append(index)
    return [Group(source, *key, tuple(items)) for key, items in found.items()]


def _fit_masks(masks: NDArray[np.bool_], size: tuple[int, int], padded: Sequence[int]) -> Tensor:
    """Masks (G, T, H, W) -> (G, T, *padded): resized to `size`, padded at the right and bottom."""
    out = torch.zeros(*masks.shape[:2], *padded, dtype=torch.bool)
    if masks.size:
        small = F.interpolate(torch.from_numpy(masks).float(), size, mode="nearest-exact")
        out[..., : size[0], : size[1]] = small > 0.5
    return out
