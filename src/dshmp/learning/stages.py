"""The three stages of a training run: which batch a step sees and what its losses are.

Every batch is a function of (seed, step) alone, so a resumed run sees what an undisturbed one would have seen.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import InputConfig
from dshmp.data.mevis import Expression, MevisSplit, Video
from dshmp.errors import UserError
from dshmp.language.encoder import Cues, TextBatch, TextFeatures, TextTokenizer
from dshmp.learning.cache import CachedClip, TokenCache
from dshmp.learning.contrastive import MemoryBank, TargetGroups, anchor, contrastive_loss, sample_negatives
from dshmp.learning.losses import deep_supervision, similarity_loss
from dshmp.learning.matching import SetPrediction, SetTargets
from dshmp.learning.probe import MotionProbe, ObjectProbe
from dshmp.learning.recipe import Recipe
from dshmp.model import DsHmp
from dshmp.motion.decoder import VideoTokens, trajectory_masks
from dshmp.perception.frame_decoder import Prediction
from dshmp.perception.frames import input_size, prepare_frames

Losses = dict[str, Tensor]


def step_generator(seed: int, step: int) -> np.random.Generator:
    return np.random.default_rng([seed, step])


def supervise(
    recipe: Recipe, predictions: Sequence[SetPrediction], targets: SetTargets, generator: torch.Generator
) -> tuple[Losses, Tensor]:
    """Set losses of all layers with the recipe's weights, and the matches (layers, B, Q)."""
    weights = recipe.weights
    return deep_supervision(
        predictions,
        targets,
        targets.present.sum(),
        num_points=recipe.points,
        weights=(weights.label, weights.mask, weights.dice),
        no_object_weight=recipe.no_object,
        generator=generator,
    )


class EpochSampler:
    """Batches of indices whose items share a bucket; every item once an epoch, the order new in each."""

    def __init__(self, buckets: Sequence[Any], batch: int, seed: int) -> None:
        groups: dict[Any, list[int]] = defaultdict(list)
        for index, bucket in enumerate(buckets):
            groups[bucket].append(index)
        self.groups = [np.array(groups[key]) for key in sorted(groups)]
        self.batch, self.seed = batch, seed
        self.per_epoch = sum(-(-len(group) // batch) for group in self.groups)
        self._epoch: tuple[int, list[NDArray[np.int64]]] | None = None

    def __call__(self, step: int) -> NDArray[np.int64]:
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([self.seed, 7, epoch])
            shuffled = [rng.permutation(group) for group in self.groups]
            batches = [group[i : i + self.batch] for group in shuffled for i in range(0, len(group), self.batch)]
            self._epoch = epoch, [batches[i] for i in rng.permutation(len(batches))]
        return self._epoch[1][place]


# ---------------------------------------------------------------------------------------------- perception


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

    def __init__(self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, split: MevisSplit) -> None:
        self.recipe, self.model, self.split = recipe, model, split
        self.names = list(split.videos)
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
                truth = self.split.masks(annotations, [position], frame.shape[:2])[:, 0]
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

    def losses(self, batch: FrameBatch, step: int, generator: torch.Generator) -> Losses:
        recipe, weights = self.recipe, self.recipe.weights
        text = silent_text(self.model, len(batch.images))
        state = self.model.perception(batch.images, text)
        targets = SetTargets(batch.masks, batch.valid, batch.valid.new_ones(len(batch.images), 1))
        predictions = [frame_prediction(layer, state.mask_features) for layer in state.layers]
        losses, indices = supervise(recipe, predictions, targets, generator)
        losses["probe"] = weights.probe * self.probe(state.tokens, indices[-1], batch.masks[:, :, 0], batch.attributes)
        if weights.link:
            losses["link"] = weights.link * link_loss(state.tokens, indices[-1])
        return losses


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


def silent_text(model: DsHmp, count: int) -> TextFeatures:
    """Features of no sentence at all, `count` times."""
    device = next(model.parameters()).device
    words = torch.zeros(count, 1, model.config.language.encoder["hidden_size"], device=device)
    tokens = torch.zeros(count, 1, model.config.hidden_size, device=device)
    mask = torch.ones(count, 1, dtype=torch.bool, device=device)
    cues = Cues(tokens, mask)
    return TextFeatures(words, tokens, mask, tokens[:, 0], cues, cues)


def frame_prediction(layer: Prediction, mask_features: Tensor) -> SetPrediction:
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


# ------------------------------------------------------------------------------------------------ language


@dataclass(frozen=True)
class SentenceBatch:
    """Sentences alone."""

    texts: TextBatch
    claims: Tensor
    """(B,) long: the motion that is asked for, as a class of the probe."""


class LanguageStage:
    """Sentences alone: from the sentence embedding their words and the motion they ask for can be told.

    Stands in for RoBERTa's pre-training. Learned together with everything else, language is what holds up the
    choice among objects.
    """

    def __init__(self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, split: MevisSplit) -> None:
        self.recipe, self.model, self.tokenizer, self.split = recipe, model, tokenizer, split
        model.requires_grad_(False)
        model.language.requires_grad_(True)
        tokenizer([item.text for item in split.expressions])  # parsed all at once, which is thrice as fast, and kept
        self.sampler = EpochSampler([0] * len(split.expressions), recipe.batch, recipe.seed)
        self.probe = MotionProbe(model.config.hidden_size, split)
        self.words = nn.Linear(model.config.hidden_size, model.config.language.encoder["vocab_size"])
        self.modules = nn.ModuleDict({"probe": self.probe, "words": self.words})

    def batch(self, step: int) -> SentenceBatch:
        items = [self.split.expressions[int(i)] for i in self.sampler(step)]
        claims = torch.tensor([self.probe.claim(item.extra) for item in items])
        return SentenceBatch(self.tokenizer([item.text for item in items]), claims)

    def losses(self, batch: SentenceBatch, step: int, generator: torch.Generator) -> Losses:
        sentence = self.model.language(batch.texts).sentence
        logits = self.words(sentence)
        said = torch.zeros_like(logits).scatter_(1, batch.texts.input_ids, 1.0)
        words = F.binary_cross_entropy_with_logits(logits, said, reduction="none").sum(1).mean() / said.sum(1).mean()
        return {"words": words, "claim": F.cross_entropy(self.probe.sentence_head(sentence), batch.claims)}


# -------------------------------------------------------------------------------------------------- motion


@dataclass(frozen=True)
class ClipBatch:
    """Object tokens of clips of one length, and what their sentences mean."""

    expressions: tuple[int, ...]
    """Which sentences of the split these are."""
    texts: TextBatch
    rows: Tensor
    """(B,) long: each sentence's row of the memory bank."""
    tokens: Tensor
    """(B, T, N, C)."""
    mask_logits: Tensor
    """(B, T, N, h, w)."""
    owner: Tensor
    """(B, T, N) long: the object a token has found, as an index of the video's objects, or -1."""
    meant: Tensor
    """(B, G_all) bool: which of the video's objects are meant."""
    masks: Tensor
    """(B, G, T, h, w) bool: masks of the objects meant."""
    valid: Tensor
    """(B, G) bool."""
    targets: Tensor
    """(B, G) long: the same as indices of the video's objects, -1 where a row only fills the batch."""


class MotionStage:
    """The motion part on cached object tokens of frozen static perception."""

    def __init__(
        self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, split: MevisSplit, cache: TokenCache
    ) -> None:
        self.recipe, self.model, self.tokenizer = recipe, model, tokenizer
        self.split, self.cache = split, cache
        for parameter in model.perception.parameters():
            parameter.requires_grad_(False)
        self.expressions = split.expressions
        tokenizer([item.text for item in self.expressions])  # parsed all at once, which is thrice as fast, and kept
        lengths = [len(split.videos[item.video].frames) for item in self.expressions]
        self.sampler = EpochSampler(lengths, recipe.batch, recipe.seed)
        self.contrast = Contrast(recipe, model, split)
        self.probe = MotionProbe(model.config.hidden_size, split)
        self.modules = nn.ModuleDict({"bank": self.contrast.bank, "probe": self.probe})
        self._held_out: MotionStage | None = None

    def held_out(self, make: Callable[[], "MotionStage"]) -> "MotionStage":
        """The same stage on the validation split, made once."""
        self._held_out = self._held_out or make()
        return self._held_out

    def batch(self, step: int) -> ClipBatch:
        return self.collate([int(i) for i in self.sampler(step)])

    def collate(self, chosen: Sequence[int]) -> ClipBatch:
        """The expressions of the split with these indices, whose clips have one length, as a batch."""
        items = [self.expressions[i] for i in chosen]
        clips = [self.cache[item.video] for item in items]
        return collate_clips(chosen, items, clips, self.contrast.rows[list(chosen)], self.tokenizer)

    def _labels(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Motions (B, G_all) of all objects and the claims (B,) of the sentences, as classes of the probe."""
        items = [self.expressions[i] for i in batch.expressions]
        motions = torch.zeros_like(batch.meant, dtype=torch.long)
        for b, item in enumerate(items):
            known = [self.probe.motion(entry) for entry in self.split.videos[item.video].objects.values()]
            motions[b, : len(known)] = torch.tensor(known)
        return motions, motions.new_tensor([self.probe.claim(item.extra) for item in items])

    def losses(self, batch: ClipBatch, step: int, generator: torch.Generator) -> Losses:
        text = self.model.language(batch.texts)
        frames = batch.meant.new_ones(batch.tokens.shape[:2])
        video = self.model.understand(batch.tokens, frames, text)
        losses = video_losses(self.recipe, self.contrast, video, batch, frames, step, generator)
        if self.recipe.weights.probe:
            motions, claims = self._labels(batch)
            told = self.probe(video.motion_tokens, batch.owner, motions, text.sentence, claims)
            losses["probe"] = self.recipe.weights.probe * told
        return losses


def collate_clips(
    chosen: Sequence[int],
    items: Sequence[Expression],
    clips: Sequence[CachedClip],
    rows: Tensor,
    tokenizer: TextTokenizer,
) -> ClipBatch:
    """Clips of one length and their sentences as one batch."""
    count = max(1, *(len(item.objects) for item in items))
    everything = max(len(clip.objects) for clip in clips)
    length = clips[0].tokens.shape[0]
    grid = clips[0].truth.shape[-2:]
    masks = torch.zeros(len(items), count, length, *grid, dtype=torch.bool)
    targets = torch.full((len(items), count), -1)
    meant = torch.zeros(len(items), everything, dtype=torch.bool)
    for b, (item, clip) in enumerate(zip(items, clips, strict=True)):
        index = [clip.objects.index(object_id) for object_id in item.objects]
        targets[b, : len(index)] = torch.tensor(index, dtype=torch.long)
        masks[b, : len(index)] = clip.truth[index]
        meant[b, index] = True
    return ClipBatch(
        expressions=tuple(chosen),
        texts=tokenizer([item.text for item in items]),
        rows=rows,
        tokens=torch.stack([clip.tokens for clip in clips]).float(),
        mask_logits=torch.stack([clip.mask_logits for clip in clips]).float(),
        owner=torch.stack([clip.owner for clip in clips]).long(),
        meant=meant,
        masks=masks,
        valid=masks.flatten(2).any(2),
        targets=targets,
    )


class Contrast:
    """Contrastive learning of one split: which targets there are, and the memory bank of their centroids."""

    def __init__(self, recipe: Recipe, model: DsHmp, split: MevisSplit) -> None:
        self.recipe = recipe
        names = {name: i for i, name in enumerate(split.videos)}
        targets: dict[tuple[str, frozenset[int]], int] = {}
        rows = [targets.setdefault((item.video, frozenset(item.objects)), len(targets)) for item in split.expressions]
        self.rows = torch.tensor(rows)
        video = torch.tensor([names[name] for name, _ in targets])
        self.groups = TargetGroups(video, torch.full_like(video, -1))
        self.bank = MemoryBank(len(targets), model.config.motion.contrast_size)

    def loss(self, video: VideoTokens, indices: Tensor, rows: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Eq. 9 on this batch's matched tokens, with the bank as it stands; then the bank takes them up (Eq. 8)."""
        recipe = self.recipe
        anchors, found = anchor(video.contrast, indices)
        anchors, rows = anchors[found], rows[found]
        loss = video.contrast.sum() * 0
        if step >= recipe.contrast_start and len(rows):
            negatives, mask = sample_negatives(rows, self.groups, self.bank.visited, recipe.negatives, generator)
            loss = contrastive_loss(anchors, rows, negatives, mask, self.bank, recipe.temperature)
        self.bank.update(rows, F.normalize(anchors.detach(), dim=1), recipe.bank_delta)
        return loss


def video_losses(
    recipe: Recipe,
    contrast: Contrast,
    video: VideoTokens,
    batch: ClipBatch,
    frames: Tensor,
    step: int,
    generator: torch.Generator,
    masks: Sequence[Tensor] | None = None,
) -> Losses:
    """Video-level set losses, similarity, contrast, and the trajectories' own question.

    `masks`: mask logits (B, Nv, T, h, w) of every decoder layer; read from the trajectories where not given.
    """
    weights = recipe.weights
    targets = SetTargets(batch.masks, batch.valid, frames)
    predictions = []
    for i, layer in enumerate(video.layers):
        if masks is not None:
            logits = masks[i]
        else:
            assert layer.pointer is not None
            logits = trajectory_masks(layer.pointer, batch.mask_logits)
        predictions.append(SetPrediction(layer.logits, logits))
    losses, indices = supervise(recipe, predictions, targets, generator)
    matched = indices[-1]
    # the same numbering of objects for frames and video: indices of the video's objects
    video_object = torch.where(matched >= 0, batch.targets.gather(1, matched.clamp(min=0)), -1)
    asked = batch.owner >= 0
    is_meant = batch.meant[:, None, None].expand(*batch.owner.shape, -1)
    wanted = is_meant.gather(3, batch.owner.clamp(min=0)[..., None])[..., 0] & asked  # (B, T, N)
    if weights.similarity:
        frame_object = torch.where(wanted, batch.owner, -1)
        losses["similarity"] = weights.similarity * similarity_loss(
            video.frame_similarity, frame_object, video.similarity, video_object
        )
    if weights.trajectory and video.track_logits is not None:
        said = torch.stack([layer.track_logits for layer in video.layers if layer.track_logits is not None])
        answer = wanted.float().expand_as(said)
        entropy = F.binary_cross_entropy_with_logits(said, answer, reduction="none").sum(0)
        emphasis = torch.where(asked, 1.0, 0.1) * frames[..., None]
        losses["trajectory"] = weights.trajectory * (entropy * emphasis).sum() / emphasis.sum().clamp(min=1)
    if recipe.negatives:
        losses["contrast"] = weights.contrast * contrast.loss(video, matched, batch.rows, step, generator)
    return losses


# --------------------------------------------------------------------------------------------------- whole


@dataclass(frozen=True)
class VideoBatch:
    """Whole clips of one size and length, each with several of its sentences."""

    images: Tensor
    """(V, T, 3, h, w) normalised frames of V clips."""
    clip: Tensor
    """(B,) long: the clip of each sentence."""
    candidates: Tensor
    """(B, G_all, T, h, w) bool, full size: all objects that fit the sentence's static words where the data say
    so (the world does), else the objects meant."""
    rest: ClipBatch


class WholeStage:
    """Everything at once on clips, with the paper's losses at frame and at video level."""

    sentences = 4
    """Sentences drawn from each clip."""

    def __init__(self, recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, split: MevisSplit) -> None:
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
                truth = self.split.masks(annotations, positions, frames[0].shape[:2])
                truths.append(_fit_masks(truth, size, images[-1].shape[-2:]))
                items.append(item)
                clip.append(v)
                drawn.append(int(chosen))
        shown, rest = self._collate(items, truths, drawn)
        return VideoBatch(torch.stack(images), torch.tensor(clip), shown, rest)

    def _collate(self, items: list[Expression], truths: list[Tensor], drawn: list[int]) -> tuple[Tensor, ClipBatch]:
        most = max(1, *map(len, truths))
        shown = torch.zeros(len(items), most, *truths[0].shape[1:], dtype=torch.bool)
        meant = torch.zeros(len(items), most, dtype=torch.bool)
        targets = torch.full((len(items), max(1, *(len(item.objects) for item in items))), -1)
        for b, (item, truth) in enumerate(zip(items, truths, strict=True)):
            shown[b, : len(truth)] = truth
            objects = list(candidates(item, self.split.videos[item.video]))
            index = torch.tensor([objects.index(object_id) for object_id in item.objects], dtype=torch.long)
            targets[b, : len(index)] = index
            meant[b, index] = True
        masks = shown[torch.arange(len(items))[:, None], targets.clamp(min=0)]
        masks = masks & (targets >= 0)[:, :, None, None, None]
        nothing = torch.zeros(0)
        return shown, ClipBatch(
            expressions=tuple(drawn),
            texts=self.tokenizer([item.text for item in items]),
            rows=self.contrast.rows[drawn],
            tokens=nothing,
            mask_logits=nothing,
            owner=nothing,
            meant=meant,
            masks=masks,
            valid=masks.flatten(2).any(2),
            targets=targets,
        )

    def losses(self, batch: VideoBatch, step: int, generator: torch.Generator) -> Losses:
        recipe, model = self.recipe, self.model
        length = batch.images.shape[1]
        sentences = len(batch.clip)
        text = model.language(batch.rest.texts)
        state = model.perceive_clips(batch.images, batch.clip, text)
        frames = batch.candidates.new_ones(sentences, length)
        visible = batch.candidates.flatten(2).any(2)
        by_frame = SetTargets(batch.candidates, visible, frames).by_frame()
        layers = [frame_prediction(layer, state.mask_features) for layer in state.layers]
        frame_losses, indices = supervise(recipe, layers, by_frame, generator)
        losses = {f"frame {name}": value for name, value in frame_losses.items()}
        tokens = state.tokens.unflatten(0, (sentences, length))  # (B*T, N, C) -> (B, T, N, C)
        video = model.understand(tokens, frames, text)
        rest = replace(
            batch.rest,
            owner=indices[-1].unflatten(0, (sentences, length)),
            mask_logits=layers[-1].masks[:, :, 0].unflatten(0, (sentences, length)),
        )
        masks = None
        if model.config.readout.masks == "embedding":
            masks = [model.embedded_masks(layer, state.video_features) for layer in video.layers]
        return losses | video_losses(recipe, self.contrast, video, rest, frames, step, generator, masks)


def candidates(item: Expression, video: Video) -> dict[int, int]:
    """Objects that static perception should find for a sentence -> their annotations."""
    found = dict(zip(item.objects, item.annotations, strict=True))
    for object_id in item.extra.get("static_ids", ()):
        found.setdefault(object_id, video.objects[object_id]["anno_id"])
    return found


def _video_size(split: MevisSplit, name: str) -> tuple[int, int]:
    shape = split.frames(name, [0])[0].shape
    return shape[0], shape[1]


def _fit_masks(masks: NDArray[np.bool_], size: tuple[int, int], padded: Sequence[int]) -> Tensor:
    """Masks (G, T, H, W) -> (G, T, *padded): resized to `size`, padded at the right and bottom."""
    out = torch.zeros(*masks.shape[:2], *padded, dtype=torch.bool)
    if masks.size:
        small = F.interpolate(torch.from_numpy(masks).float(), size, mode="nearest-exact")
        out[..., : size[0], : size[1]] = small > 0.5
    return out


def stage_for(recipe: Recipe, model: DsHmp, tokenizer: TextTokenizer, split: MevisSplit, run: Path) -> Any:
    """The recipe's stage, its object tokens cached first where it needs them.

    Raises UserError where the stage cannot learn this model or from this data set.
    """
    if recipe.stage == "whole":
        return WholeStage(recipe, model, tokenizer, split)
    if recipe.stage == "language":
        return LanguageStage(recipe, model, tokenizer, split)
    if not all(video.objects for video in split.videos.values()):
        raise UserError(
            f"{split.folder}: does not list all objects of its videos, as a generated world does, which stage "
            f"{recipe.stage} needs; train stage: whole on it"
        )
    if recipe.stage == "perception":
        return PerceptionStage(recipe, model, tokenizer, split)
    if model.features_read_text or model.config.readout.masks != "trajectories":
        raise UserError(
            "stage motion learns from object tokens without a sentence: it needs backbone.language_fusion: false "
            "and readout.masks: trajectories; train stage: whole otherwise"
        )
    folder = Path(recipe.cache) if recipe.cache else run / "cache"
    return MotionStage(recipe, model, tokenizer, split, TokenCache.build(model, split, folder / recipe.split))
