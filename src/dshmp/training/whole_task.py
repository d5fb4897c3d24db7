"""Task `whole`: everything at once on clips, with the paper's losses at frame and at video level."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.common.device import exactly
from dshmp.common.errors import UserError
from dshmp.data.base import Expression, Split, Video, annotated, expression_name, times_shown
from dshmp.data.transforms import augment, pseudo_clip, sample_positions
from dshmp.inference.segmenter import Segmenter
from dshmp.model.camera import camera_motion, followed, grey_frames
from dshmp.model.candidates import Candidates, detect
from dshmp.model.frames import input_size, prepare_frames
from dshmp.model.tokenizer import TextBatch
from dshmp.training.held_out import score_videos
from dshmp.training.losses import Counts, Level, SetPrediction, SetTargets
from dshmp.training.pretraining import frame_prediction
from dshmp.training.task import ALL, EpochSampler, Metrics, Share, Task, open_splits, sample_generator, torch_generators
from dshmp.training.video_losses import VideoTargets, video_level, video_targets

TRIES = 10  # draws of a clip before one in which nothing meant is to be seen is taken


@dataclass(frozen=True)
class VideoBatch:
    """V clips of T frames of one size, with B sentences."""

    texts: TextBatch
    images: Tensor  # (V, T, 3, h, w) normalised
    clip: Tensor  # (B,) long: the clip of each sentence
    camera: Tensor  # (B, T, 2, 3) and
    sure: Tensor  # (B, T), as in `Candidates`; of a model that reads no geometry without meaning
    position: Tensor  # (B, T) place in time, as in use: in frames from the first one of what is shown there
    labelled: Tensor  # (B, T) bool: frames whose masks are known; the others are seen but not learned from
    candidates: Tensor  # (B, G_all, T, h, w) bool, full size: masks of the objects of `candidates`
    targets: VideoTargets
    names: tuple[str, ...]  # which sentences these are
    seeds: tuple[tuple[int, ...], ...]  # of each sentence's random numbers

    @property
    def frame_targets(self) -> SetTargets:
        return SetTargets(self.candidates, self.candidates.flatten(2).any(2), self.labelled).by_frame()


@dataclass(frozen=True)
class TrainingClip:
    images: Tensor  # (T, 3, h, w)
    camera: Tensor  # (T, 2, 3) and
    sure: Tensor  # (T,) as in `VideoBatch`
    position: Tensor  # (T,) as in `VideoBatch`
    labelled: Tensor  # (T,) bool
    truths: Sequence[Tensor]  # (G, T, h, w) bool for every sentence: its candidates
    known: Sequence[Sequence[int]]  # the candidates' object ids
    texts: Sequence[str]  # the sentences as they are true of the augmented clip
    expressions: Sequence[int]  # their numbers among those of all sources
    seed: tuple[int, ...]


@dataclass(frozen=True)
class SentenceGroup:
    split: Split
    video: Video  # about whose frames `shown` the sentences are, scored as in `Expression`
    shown: tuple[int, ...] | None
    scored: tuple[int, ...] | None
    expressions: Sequence[int]  # their numbers among those of all sources


class WholeTask(Task):
    def setup(self) -> None:
        recipe, model, splits = self.recipe, self.model, list(self.splits.values())
        self.held_out = open_splits(recipe, held_out=True)
        if recipe.perceptions > model.config.frame_decoder.layers:
            there = f"the frame decoder has {model.config.frame_decoder.layers} layers (model.frame_decoder.layers)"
            raise UserError(f"perceptions: {recipe.perceptions} is too many, {there}")
        model.requires_grad_(True)
        model.language.encoder.requires_grad_(not model.config.language.frozen)
        self.expressions = [item for split in splits for item in split.expressions]
        self.groups: list[list[SentenceGroup]] = []  # of each source
        self.samplers: list[EpochSampler] = []
        numbers = itertools.count()
        for source, split in enumerate(splits):
            found: dict[Any, list[int]] = defaultdict(list)
            for item in split.expressions:
                number = next(numbers)
                alone = number if recipe.sample == "expressions" else None
                found[item.video, item.shown, item.scored, alone].append(number)
            groups = [SentenceGroup(split, split.videos[key[0]], key[1], key[2], found[key]) for key in found]
            self.groups.append(groups)
            self.samplers.append(EpochSampler(list(map(self._length, groups)), recipe.batch, recipe.seed + source))
        weights = np.array([recipe.data[name].weight for name in self.splits])
        draw = np.random.default_rng([recipe.seed, 11])
        self.source = draw.choice(len(splits), recipe.steps, p=weights / sum(weights))  # of each step
        self.criterion = self.video_criterion()
        self.modules = nn.ModuleDict({"bank": self.criterion.contrast.bank})

    def _length(self, group: SentenceGroup) -> int:
        if group.shown is not None:
            return len(group.shown)
        augmentation = self.recipe.augmentation
        return min(len(group.video.frames), self.recipe.clip_frames) if augmentation is None else augmentation.frames

    def batches(self, step: int, share: Share = ALL) -> list[VideoBatch]:
        source = int(self.source[step])
        chosen = self.samplers[source](int((self.source[:step] == source).sum()))  # how often it was drawn from before
        alike: dict[torch.Size, list[TrainingClip]] = defaultdict(list)
        for place in share.places(len(chosen)):
            clip = self._draw(self.groups[source][chosen[place]], (self.recipe.seed, step, place))
            alike[clip.images.shape].append(clip)  # those of other sizes are not padded, which would change them
        return [self._batch(part) for clips in alike.values() for part in share.parts(clips)]

    def _draw(self, group: SentenceGroup, seed: tuple[int, int, int]) -> TrainingClip:
        """A clip of the group with some of its sentences."""
        split, video, config = group.split, group.video, self.model.config.input
        augmentation, rng = self.recipe.augmentation, sample_generator(*seed)
        count = min(self.recipe.sentences, len(group.expressions))
        chosen = rng.choice(group.expressions, count, replace=False).tolist()
        items = [self.expressions[i] for i in chosen]
        known = [candidates(item, video) for item in items]
        every = sorted({annotation for each in known for annotation in each.values()})
        rows = np.isin(every, [annotation for item in items for annotation in item.annotations])
        for _ in range(TRIES):
            positions = self._positions(group, rng)
            frames = np.stack(split.frames(video.name, positions))
            labelled = np.isin(positions, group.scored) if group.scored is not None else np.ones(len(positions), bool)
            masks = np.zeros((len(every), *frames.shape[:3]), bool)
            known_at = np.array(positions)[labelled].tolist()
            masks[:, labelled] = split.masks(video.name, every, known_at, frames.shape[1:3])
            if masks[rows].any() or not rows.any():
                break
        position = torch.tensor(positions if group.shown is None else times_shown(positions), dtype=torch.float32)
        texts: tuple[str, ...] = tuple(item.text for item in items)
        if augmentation is not None:
            if len(frames) < self._length(group):  # a still
                frames, masks = pseudo_clip(frames[0], masks[:, 0], rng, augmentation)
                labelled, position = np.ones(len(frames), bool), torch.arange(len(frames), dtype=torch.float32)
            frames, masks, texts = augment(frames, masks, texts, rng, augmentation)
            short, long = sorted(frames.shape[1:3])
            config = replace(config, short_side=short, long_side=long)
        images = prepare_frames(list(frames), config)
        size = input_size(frames.shape[1:3], config)
        fitted = _fit_masks(masks, size, images.shape[-2:])
        camera, sure = torch.eye(2, 3).expand(len(frames), 2, 3), torch.zeros(len(frames))
        if self.model.config.motion.geometry:
            camera, sure = camera_motion(list(followed(grey_frames(images, size, config))), np.asarray(masks.any(0)))
        truths = [fitted[[every.index(annotation) for annotation in each.values()]] for each in known]
        ids = [list(each) for each in known]
        return TrainingClip(
            images, camera, sure, position, torch.from_numpy(labelled), truths, ids, texts, chosen, seed
        )

    def _positions(self, group: SentenceGroup, rng: np.random.Generator) -> list[int]:
        length = len(group.video.frames)
        if group.shown is not None:
            return list(group.shown)
        if self.recipe.augmentation is not None and length > 1:
            return sample_positions(length, rng, self.recipe.augmentation)
        start = int(rng.integers(max(length - self.recipe.clip_frames, 0) + 1))
        return list(range(length))[start : start + self.recipe.clip_frames]

    def _batch(self, clips: Sequence[TrainingClip]) -> VideoBatch:
        sentences = torch.tensor([len(clip.expressions) for clip in clips])
        chosen = [number for clip in clips for number in clip.expressions]
        items = [self.expressions[number] for number in chosen]
        known, truths = ([each for clip in clips for each in getattr(clip, kind)] for kind in ("known", "truths"))
        shown, targets = video_targets(chosen, items, known, truths)

        def every(kind: str) -> Tensor:  # of each sentence what its clip has
            return torch.stack([getattr(clip, kind) for clip in clips]).repeat_interleave(sentences, 0)

        return VideoBatch(
            self.tokenizer([text for clip in clips for text in clip.texts]),
            torch.stack([clip.images for clip in clips]),
            torch.arange(len(clips)).repeat_interleave(sentences),
            every("camera"),
            every("sure"),
            every("position"),
            every("labelled"),
            shown,
            targets,
            tuple(map(expression_name, items)),
            tuple((*clip.seed, number) for clip in clips for number in range(len(clip.expressions))),
        )

    def counts(self, batch: VideoBatch, step: int) -> Counts:
        queries, by_frame = self.model.config.frame_decoder.queries, batch.frame_targets
        found = by_frame.present.sum(1).clamp(max=queries).unflatten(0, batch.labelled.shape)  # (B*T) -> (B, T)
        counts = {f"frame {name}": value for name, value in self.sets.counts(by_frame, queries).items()}
        there = torch.full_like(found, queries)
        return counts | self.criterion.counts(batch.targets, batch.labelled, found, there, step)

    def losses(self, batch: VideoBatch, step: int, counts: Counts) -> dict[str, Tensor]:
        model, sets, place = self.model, self.sets, (len(batch.clip), batch.images.shape[1])
        generators = torch_generators(batch.seeds, batch.images.device)
        with exactly(model.config.release, batch.images.device):
            text = model.language(batch.texts)
        state = model.perceive_clips(batch.images, batch.clip, text)
        layers = [frame_prediction(layer, state.mask_features) for layer in state.layers]
        pixels = model.mask_pixels(state).unflatten(0, place)  # (B*T, C, h, w) -> (B, T, C, h, w)
        by_frame = Level(layers, batch.frame_targets)
        found = sets.match(by_frame, generators)
        clips = []
        for perceived, prediction in list(zip(state.layers, layers, strict=True))[-self.recipe.perceptions :]:
            candidates = self._candidates(batch, perceived.tokens.float(), prediction)
            with exactly(model.config.release, batch.images.device):
                video = model.decode_motion(candidates, text, batch.position)
            objects = prediction.masks[:, :, 0].unflatten(0, place)  # (B*T, N, 1, h, w) -> (B, T, N, h, w)
            masks = [layer.readout.clip_masks(objects, pixels) for layer in video.layers]
            by_clip = video_level(video, masks, batch.labelled, batch.targets)
            clips.append((video, by_clip, sets.match(by_clip, generators), candidates.seen))
        losses = sets.losses(by_frame, found, counts, generators, "frame ")
        owners = found[-len(clips) :].unflatten(1, place)  # (P, B*T, N) -> (P, B, T, N)
        last = len(clips) - 1
        for number, ((video, by_clip, meant, seen), owner) in enumerate(zip(clips, owners, strict=True)):
            # the mean over the layers; the memory bank meets the last one alone, as in the release
            learned = video, by_clip, meant, owner.masked_fill(~seen, -1), seen, batch.targets
            terms = self.criterion.losses(*learned, step, generators, counts, contrasts=number == last)
            for name, value in terms.items():
                losses[name] = losses.get(name, 0.0) + (value if name == "contrast" else value / len(clips))
        return losses

    def _candidates(self, batch: VideoBatch, tokens: Tensor, prediction: SetPrediction) -> Candidates:
        """What the motion part reads of one layer of the frame decoder: tokens (B*T, N, C) and their masks."""
        place = len(batch.clip), batch.images.shape[1]
        frames, tokens = torch.ones_like(batch.labelled), tokens.unflatten(0, place)  # (B, T), (B, T, N, C)
        if not self.model.config.motion.geometry:
            return Candidates(frames, tokens)
        height, width = batch.images.shape[-2:]
        found = detect(prediction.logits, prediction.masks[:, :, 0], (height, width))
        present, geometry = (each.unflatten(0, place) for each in found[:2])
        return Candidates(frames, tokens, geometry, present, batch.camera, batch.sure)

    def validate(self) -> Metrics:
        segmenter = Segmenter(self.model, self.tokenizer, next(self.model.parameters()).device)
        return score_videos(segmenter, self.held_out, self.recipe.run.validation_videos)


def candidates(item: Expression, video: Video) -> dict[int, int]:
    """Objects that static perception should find -> their annotations: all that fit the sentence's static words where
    the data say so (synthetic data do), else those meant."""
    found = annotated(item)
    for object_id in item.extra.get("static_ids", ()):
        found.setdefault(object_id, video.objects[object_id]["anno_id"])
    return found


def _fit_masks(masks: NDArray[np.bool_], size: tuple[int, int], padded: Sequence[int]) -> Tensor:
    """Masks (G, T, H, W) -> (G, T, *padded): resized to `size`, padded at the right and bottom."""
    out = torch.zeros(*masks.shape[:2], *padded, dtype=torch.bool)
    if masks.size:
        small = F.interpolate(torch.from_numpy(masks).float(), size, mode="nearest-exact")
        out[..., : size[0], : size[1]] = small > 0.5
    return out
