"""Task `motion`: the motion part on cached object tokens of frozen static perception."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dshmp.data.base import Expression, Split, expression_name
from dshmp.device import exactly, to_device
from dshmp.model.dshmp import DsHmp
from dshmp.model.frame_decoder import uses_language
from dshmp.model.readout import TrajectoryReadout
from dshmp.model.tokenizer import TextBatch, TextTokenizer
from dshmp.training.cache import CachedClip, TokenCache
from dshmp.training.logging import Metrics
from dshmp.training.probe import MotionProbe
from dshmp.training.recipe import Recipe
from dshmp.training.sampling import ALL, EpochSampler, Share, torch_generators
from dshmp.training.video_losses import (
    VIDEO_COUNTS,
    Contrast,
    Counts,
    VideoTargets,
    match_all,
    video_counts,
    video_level,
    video_losses,
)

VALIDATION_BATCH = 128


@dataclass(frozen=True)
class ClipBatch:
    """Object tokens of clips of one length, and what their sentences mean."""

    texts: TextBatch
    tokens: Tensor
    """(B, T, N, C)."""
    mask_logits: Tensor
    """(B, T, N, h, w)."""
    owner: Tensor
    """(B, T, N) long: the object a token has found, as an index of the video's objects, or -1."""
    targets: VideoTargets
    seeds: tuple[tuple[int, ...], ...] = ()
    """Of each sentence's random numbers; of use in training only."""


class CachedSplit:
    """The sentences of a split and the cached object tokens of their clips."""

    def __init__(self, split: Split, cache: TokenCache, tokenizer: TextTokenizer) -> None:
        self.split, self.cache, self.tokenizer = split, cache, tokenizer
        self.lengths = [len(split.videos[item.video].frames) for item in split.expressions]
        """Frames of each sentence's clip."""

    def batch(self, chosen: Sequence[int]) -> ClipBatch:
        """The sentences with these indices, whose clips have one length, as a batch."""
        items = [self.split.expressions[i] for i in chosen]
        clips = [self.cache[item] for item in items]
        return ClipBatch(
            texts=self.tokenizer([item.text for item in items]),
            tokens=torch.stack([clip.tokens for clip in clips]).float(),
            mask_logits=torch.stack([clip.mask_logits for clip in clips]).float(),
            owner=torch.stack([clip.owner for clip in clips]).long(),
            targets=_targets(chosen, items, clips),
        )


def _targets(chosen: Sequence[int], items: Sequence[Expression], clips: Sequence[CachedClip]) -> VideoTargets:
    count = max(1, *(len(item.objects) for item in items))
    masks = torch.zeros(len(items), count, *clips[0].truth.shape[1:], dtype=torch.bool)
    objects = torch.full((len(items), count), -1)
    meant = torch.zeros(len(items), max(len(clip.objects) for clip in clips), dtype=torch.bool)
    for b, (item, clip) in enumerate(zip(items, clips, strict=True)):
        index = [clip.objects.index(object_id) for object_id in item.objects]
        objects[b, : len(index)] = torch.tensor(index, dtype=torch.long)
        masks[b, : len(index)] = clip.truth[index]
        meant[b, index] = True
    return VideoTargets(tuple(chosen), meant, masks, masks.flatten(2).any(2), objects)


class MotionTask:
    """Trajectories, hierarchical motion perception and motion decoder; perception keeps its weights."""

    counted = (*VIDEO_COUNTS, "objects", "claims")

    def __init__(self, recipe: Recipe, model: DsHmp, training: CachedSplit, held_out: CachedSplit) -> None:
        self.recipe, self.model = recipe, model
        self.training, self.held_out = training, held_out
        model.perception.requires_grad_(False)
        if uses_language(model.perception):  # what the cached tokens have heard stays as it was
            model.language.requires_grad_(False)
        self.sampler = EpochSampler(training.lengths, recipe.batch, recipe.seed)
        self.contrast = Contrast(recipe, model, [training.split])
        self.probe = MotionProbe(model.config.hidden_size, training.split)
        self.modules = nn.ModuleDict({"bank": self.contrast.bank, "probe": self.probe})

    def batches(self, step: int, share: Share = ALL) -> list[ClipBatch]:
        chosen = self.sampler(step).tolist()
        parts = share.parts(share.places(len(chosen)))
        return [
            replace(
                self.training.batch([chosen[place] for place in part]),
                seeds=tuple((self.recipe.seed, step, place) for place in part),
            )
            for part in parts
        ]

    def names(self, batch: ClipBatch) -> list[str]:
        return [expression_name(self.training.split.expressions[i]) for i in batch.targets.expressions]

    def counts(self, batch: ClipBatch, step: int) -> Counts:
        found = (batch.owner >= 0).sum(2)
        frames = torch.ones_like(found, dtype=torch.bool)
        counts = video_counts(self.recipe, self.model, self.contrast, found, frames, batch.targets, step)
        return counts | {"objects": found.sum(), "claims": found.new_tensor(len(found))}

    def _labels(self, targets: VideoTargets) -> tuple[Tensor, Tensor]:
        """Motions (B, G_all) of all objects and the claims (B,) of the sentences, as classes of the probe."""
        split = self.training.split
        items = [split.expressions[i] for i in targets.expressions]
        motions = torch.zeros_like(targets.meant, dtype=torch.long)
        for b, item in enumerate(items):
            known = [self.probe.motion(entry) for entry in split.videos[item.video].objects.values()]
            motions[b, : len(known)] = torch.tensor(known)
        return motions, motions.new_tensor([self.probe.claim(item.extra) for item in items])

    def losses(self, batch: ClipBatch, step: int, counts: Counts) -> dict[str, Tensor]:
        recipe, targets = self.recipe, batch.targets
        generators = torch_generators(batch.seeds, batch.tokens.device)
        frames = targets.meant.new_ones(batch.tokens.shape[:2])
        with exactly(self.model.config.release, batch.tokens.device):
            text = self.model.language(batch.texts)
            video = self.model.decode_motion(batch.tokens, frames, text)
        masks = [TrajectoryReadout().clip_masks(layer, batch.mask_logits) for layer in video.layers]
        level = video_level(video, masks, frames, targets)
        (indices,) = match_all(recipe, [level], generators)
        losses = video_losses(
            recipe, self.contrast, video, level, indices, batch.owner, targets, step, generators, counts
        )
        if recipe.weights.probe:
            motions, claims = self._labels(targets)
            objects, sentences = self.probe(video.motion_tokens, batch.owner, motions, text.sentence, claims)
            told = objects / counts["objects"].clamp(min=1) + sentences / counts["claims"]
            losses["probe"] = recipe.weights.probe * told
        return losses

    def validate(self) -> Metrics:
        """A quick look at the held-out split, on cached tokens and the cache's coarse grid.

        Mean IoU in per cent per subset (grid masks, union over the threshold) and what share of direction pairs
        has the right one of the two on top. Good enough for a learning curve; `dshmp evaluate` gives the figures
        that count.
        """
        scores: dict[str, list[float]] = defaultdict(list)
        for item, score in zip(
            self.held_out.split.expressions, sentence_scores(self.model, self.held_out), strict=True
        ):
            for name in ("all", *item.subsets):
                scores[f"iou {name}"].append(score.iou)
            if score.right is not None:
                scores["right of pair"].append(100.0 * score.right)
            scores["absent rejected" if not item.objects else "present rejected"].append(100.0 * score.empty)
        return Metrics({name: round(sum(values) / len(values), 2) for name, values in sorted(scores.items())})


@dataclass(frozen=True)
class SentenceScore:
    """How a sentence was answered, on the cache's grid."""

    iou: float
    """Of the union of what is meant with the truth, mean over the frames, per cent; 100 where both are empty."""
    right: bool | None
    """Of a direction pair: whether the best candidate meets the right one better than any other object."""
    empty: bool
    """Whether nothing passed the threshold."""


@torch.inference_mode()
def sentence_scores(model: DsHmp, held_out: CachedSplit) -> list[SentenceScore]:
    """The answers of a model in evaluation mode to all sentences of a split, in the split's order."""
    device = next(model.parameters()).device
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(held_out.lengths):
        by_length[length].append(index)
    scores: dict[int, SentenceScore] = {}
    for indices in by_length.values():
        for i in range(0, len(indices), VALIDATION_BATCH):
            chosen = indices[i : i + VALIDATION_BATCH]
            batch = to_device(held_out.batch(chosen), device)
            text = model.language(batch.texts)
            video = model.decode_motion(batch.tokens, batch.targets.meant.new_ones(batch.tokens.shape[:2]), text)
            masks = TrajectoryReadout().clip_masks(video, batch.mask_logits) > 0
            meant = video.logits.softmax(2)[..., 0]
            passed = meant > model.config.readout.threshold
            union = (masks & passed[:, :, None, None, None]).any(1)
            top = masks[torch.arange(len(chosen), device=masks.device), meant.argmax(1)]
            truth = batch.targets.masks.any(1)
            iou = _iou(union, truth).mean(1) * 100
            top_iou, top = _iou(top, truth).mean(1), top.cpu()
            for b, index in enumerate(chosen):
                item = held_out.split.expressions[index]
                right = None
                if "direction pairs" in item.subsets and len(item.objects) == 1:
                    right = bool(top_iou[b] > _best_other(top[b], held_out.cache[item], item))
                scores[index] = SentenceScore(float(iou[b]), right, not bool(passed[b].any()))
    return [scores[index] for index in range(len(held_out.lengths))]


def _best_other(top: Tensor, clip: CachedClip, item: Expression) -> float:
    """IoU of the top answer with the objects that are not meant: the best of them."""
    others = [g for g, object_id in enumerate(clip.objects) if object_id not in item.objects]
    return max((float(_iou(top, clip.truth[g]).mean()) for g in others), default=0.0)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of masks (..., h, w), 1 where both are empty."""
    overlap, union = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return torch.where(union == 0, 1.0, overlap / union.clamp(min=1))
