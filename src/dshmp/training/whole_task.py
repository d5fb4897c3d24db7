"""Task `whole`: everything at once on clips, with the paper's losses at frame and at video level."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.data.base import Expression, Split, Video, expression_name, times_shown
from dshmp.data.transforms import augment, pseudo_clip, sample_positions
from dshmp.device import exactly
from dshmp.model.dshmp import DsHmp
from dshmp.model.frames import input_size, prepare_frames
from dshmp.model.tokenizer import TextBatch, TextTokenizer
from dshmp.training.held_out import look
from dshmp.training.logging import Metrics
from dshmp.training.matching import Level, SetTargets
from dshmp.training.perception_task import frame_prediction
from dshmp.training.recipe import Recipe
from dshmp.training.sampling import ALL, EpochSampler, Share, sample_generator, torch_generators
from dshmp.training.video_losses import (
    SET_COUNTS,
    VIDEO_COUNTS,
    Contrast,
    Counts,
    VideoTargets,
    match_all,
    set_counts,
    supervise,
    video_counts,
    video_level,
    video_losses,
)


@dataclass(frozen=True)
class VideoBatch:
    """Whole clips of one length and size, each with several of its sentences."""

    texts: TextBatch
    images: Tensor
    """(V, T, 3, h, w) normalised frames of V clips."""
    clip: Tensor
    """(B,) long: the clip of each sentence."""
    position: Tensor
    """(B, T) place in time of the frames, as in use: in frames from the first one of what is shown there."""
    labelled: Tensor
    """(B, T) bool: frames whose masks are known; the others are seen but not learned from."""
    candidates: Tensor
    """(B, G_all, T, h, w) bool, full size: all objects that fit the sentence's static words where the data say
    so (the synthetic data set does), else the objects meant."""
    targets: VideoTargets
    seeds: tuple[tuple[int, ...], ...]
    """Of each sentence's random numbers."""


@dataclass(frozen=True)
class TrainingClip:
    """One clip with its sentences."""

    images: Tensor
    """(T, 3, h, w)."""
    position: Tensor
    """(T,) as in `VideoBatch`."""
    labelled: Tensor
    """(T,) bool."""
    truths: Sequence[Tensor]
    """(G, T, h, w) bool for every sentence: its candidates."""
    items: Sequence[Expression]
    texts: Sequence[str]
    """The sentences as they are true of the augmented clip."""
    expressions: Sequence[int]
    seed: tuple[int, ...]


@dataclass(frozen=True)
class SentenceGroup:
    """Sentences that are asked of the same frames."""

    source: int
    video: str
    shown: tuple[int, ...] | None
    """As in `Expression`; None is any stretch of the video."""
    scored: tuple[int, ...] | None
    items: tuple[int, ...]
    """Their places in the source's expressions."""


class WholeTask:
    """Everything at once on clips, with the paper's losses at frame and at video level."""

    counted = (*(f"frame {name}" for name in SET_COUNTS), *VIDEO_COUNTS)
    tries = 10
    """Draws of a clip before one in which nothing meant is to be seen is taken."""

    def __init__(
        self,
        recipe: Recipe,
        model: DsHmp,
        tokenizer: TextTokenizer,
        splits: Sequence[Split],
        weights: Sequence[float],
        held_out: Sequence[tuple[str, Split]] = (),
    ) -> None:
        self.recipe, self.model, self.tokenizer, self.splits = recipe, model, tokenizer, splits
        self.held_out = held_out
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

    def _length(self, group: SentenceGroup) -> int:
        """Frames of the group's clips."""
        if group.shown is not None:
            return len(group.shown)
        length = len(self.splits[group.source].videos[group.video].frames)
        augmentation = self.recipe.augmentation
        return min(length, self.recipe.clip_frames) if augmentation is None else augmentation.frames

    def batches(self, step: int, share: Share = ALL) -> list[VideoBatch]:
        source = int(self.source[step])
        chosen = self.samplers[source](int(self.place[step]))
        alike: dict[
            torch.Size, list[TrainingClip]
        ] = {}  # clips of different sizes are not padded, which they would notice
        for place in share.places(len(chosen)):
            clip = self._draw(self.groups[source][chosen[place]], (self.recipe.seed, step, place))
            alike.setdefault(clip.images.shape, []).append(clip)
        return [self._batch(part) for clips in alike.values() for part in share.parts(clips)]

    def _draw(self, group: SentenceGroup, seed: tuple[int, int, int]) -> TrainingClip:
        rng = sample_generator(*seed)
        chosen = rng.choice(group.items, min(self.recipe.sentences, len(group.items)), replace=False)
        items = [self.splits[group.source].expressions[i] for i in chosen]
        images, position, labelled, truths, texts = self._clip(group, items, rng)
        expressions = [int(self.first[group.source] + i) for i in chosen]
        return TrainingClip(images, position, labelled, truths, items, texts, expressions, seed)

    def _batch(self, clips: Sequence[TrainingClip]) -> VideoBatch:
        sentences = torch.tensor([len(clip.items) for clip in clips])
        shown, targets = self._targets(
            [item for clip in clips for item in clip.items],
            [truth for clip in clips for truth in clip.truths],
            [index for clip in clips for index in clip.expressions],
        )
        return VideoBatch(
            self.tokenizer([text for clip in clips for text in clip.texts]),
            torch.stack([clip.images for clip in clips]),
            torch.arange(len(clips)).repeat_interleave(sentences),
            torch.stack([clip.position for clip in clips]).repeat_interleave(sentences, 0),
            torch.stack([clip.labelled for clip in clips]).repeat_interleave(sentences, 0),
            shown,
            targets,
            tuple((*clip.seed, number) for clip in clips for number in range(len(clip.items))),
        )

    def names(self, batch: VideoBatch) -> list[str]:
        return [expression_name(self._expression(index)) for index in batch.targets.expressions]

    def _clip(
        self, group: SentenceGroup, items: Sequence[Expression], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], tuple[str, ...]]:
        """Frames (T, 3, h, w) of a clip, their places in time (T,), which of them are labelled (T,), the candidates'
        masks (G, T, h, w) of every sentence, and the sentences as they are true of it."""
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
        position = torch.tensor(positions if group.shown is None else times_shown(positions), dtype=torch.float32)
        texts: tuple[str, ...] = tuple(item.text for item in items)
        if self.recipe.augmentation is not None:
            if len(frames) < self._length(group):  # a still
                frames, masks = pseudo_clip(frames[0], masks[:, 0], rng, self.recipe.augmentation)
                known = np.ones(len(frames), bool)
                position = torch.arange(len(frames), dtype=torch.float32)
            parser = self.model.config.language.spacy_model
            frames, masks, texts = augment(frames, masks, texts, rng, self.recipe.augmentation, parser)
            height, width = frames.shape[1:3]
            config = replace(config, short_side=min(height, width), long_side=max(height, width))
        images = prepare_frames(list(frames), config)
        fitted = _fit_masks(masks, input_size(frames.shape[1:3], config), images.shape[-2:])
        truths = [fitted[[every.index(annotation) for annotation in each]] for each in annotations]
        return images, position, torch.from_numpy(known), truths, texts

    def _positions(self, group: SentenceGroup, rng: np.random.Generator) -> list[int]:
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

    def _expression(self, number: int) -> Expression:
        """By its number among those of all sources."""
        source = self._source(number)
        return self.splits[source].expressions[number - int(self.first[source])]

    def _video(self, number: int) -> Video:
        """Of an expression by its number among those of all sources."""
        return self.splits[self._source(number)].videos[self._expression(number).video]

    def _source(self, number: int) -> int:
        return int(np.searchsorted(self.first, number, side="right")) - 1

    def _frame_targets(self, batch: VideoBatch) -> SetTargets:
        """What there is to find in the single frames, (B*T, ...)."""
        return SetTargets(batch.candidates, batch.candidates.flatten(2).any(2), batch.labelled).by_frame()

    def counts(self, batch: VideoBatch, step: int) -> Counts:
        recipe, queries = self.recipe, self.model.config.frame_decoder.queries
        by_frame = self._frame_targets(batch)
        found = by_frame.present.sum(1).clamp(max=queries).unflatten(0, batch.labelled.shape)  # (B*T) -> (B, T)
        counts = {f"frame {name}": value for name, value in set_counts(recipe, by_frame, queries).items()}
        return counts | video_counts(recipe, self.model, self.contrast, found, batch.labelled, batch.targets, step)

    def losses(self, batch: VideoBatch, step: int, counts: Counts) -> dict[str, Tensor]:
        recipe, model = self.recipe, self.model
        length = batch.images.shape[1]
        sentences = len(batch.clip)
        generators = torch_generators(batch.seeds, batch.images.device)
        with exactly(model.config.release, batch.images.device):
            text = model.language(batch.texts)
        state = model.perceive_clips(batch.images, batch.clip, text)
        layers = [frame_prediction(layer, state.mask_features) for layer in state.layers]
        tokens = state.tokens.unflatten(0, (sentences, length)).float()  # (B*T, N, C) -> (B, T, N, C)
        with exactly(model.config.release, batch.images.device):
            video = model.decode_motion(tokens, torch.ones_like(batch.labelled), text, batch.position)
        objects = layers[-1].masks[:, :, 0].unflatten(0, (sentences, length))  # (B*T, N, 1, h, w) -> (B, T, N, h, w)
        masks = [model.readout.clip_masks(layer, objects, state.video_features) for layer in video.layers]
        by_frame = Level(layers, self._frame_targets(batch))
        by_clip = video_level(video, masks, batch.labelled, batch.targets)
        found, meant = match_all(recipe, [by_frame, by_clip], generators)
        owner = found[-1].unflatten(0, (sentences, length))  # (B*T, N) -> (B, T, N)
        return supervise(recipe, by_frame, found, generators, counts, "frame ") | video_losses(
            recipe, self.contrast, video, by_clip, meant, owner, batch.targets, step, generators, counts
        )

    def validate(self) -> Metrics:
        """J and F of a few videos of the held-out splits, where the recipe names any."""
        from dshmp.predictor import Segmenter

        if not self.held_out:
            return Metrics()
        segmenter = Segmenter(self.model, self.tokenizer, next(self.model.parameters()).device)
        return look(segmenter, self.held_out, self.recipe.validation_videos)


def candidates(item: Expression, video: Video) -> dict[int, int]:
    """Objects that static perception should find for a sentence -> their annotations."""
    found = dict(zip(item.objects, item.annotations, strict=True))
    for object_id in item.extra.get("static_ids", ()):
        found.setdefault(object_id, video.objects[object_id]["anno_id"])
    return found


def _groups(source: int, split: Split) -> list[SentenceGroup]:
    """The expressions of a split by the frames that they are asked of."""
    found: dict[tuple[str, tuple[int, ...] | None, tuple[int, ...] | None], list[int]] = defaultdict(list)
    for index, item in enumerate(split.expressions):
        found[item.video, item.shown, item.scored].append(index)
    return [SentenceGroup(source, *key, tuple(items)) for key, items in found.items()]


def _fit_masks(masks: NDArray[np.bool_], size: tuple[int, int], padded: Sequence[int]) -> Tensor:
    """Masks (G, T, H, W) -> (G, T, *padded): resized to `size`, padded at the right and bottom."""
    out = torch.zeros(*masks.shape[:2], *padded, dtype=torch.bool)
    if masks.size:
        small = F.interpolate(torch.from_numpy(masks).float(), size, mode="nearest-exact")
        out[..., : size[0], : size[1]] = small > 0.5
    return out
