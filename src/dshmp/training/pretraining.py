"""Tasks `perception` and `language`, in place of COCO's and RoBERTa's pre-training, and the linear heads of training.

The heads name what the data set knows, in place of COCO's class labels. In the perception task every object token names
appearance and place, which makes both linear in the token, so that a difference of two tokens along a trajectory is a
displacement; in the motion task motion-aware tokens and the sentence embedding name the motion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dshmp.common.device import exactly
from dshmp.common.errors import UserError
from dshmp.data.base import Split, expression_name
from dshmp.model.frame_decoder import Prediction, disable_language
from dshmp.model.frames import prepare_frames
from dshmp.model.text import null_text
from dshmp.model.tokenizer import TextBatch
from dshmp.training.losses import Counts, Level, SetPrediction, SetTargets
from dshmp.training.task import ALL, EpochSampler, Share, Task, sample_generator, torch_generators

LINK_TEMPERATURE = 0.1
LANGUAGE = ("static_attention", "fusion", "text_attention", "gates")  # parts of static perception
ATTRIBUTES = ("shape", "colour", "texture")
GEOMETRY = 5  # centre x, y; standard deviation along x, y; covariance
Object = dict[str, Any]  # what a data set says of an object


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


@dataclass(frozen=True)
class SentenceBatch:
    texts: TextBatch
    claims: Tensor  # (B,) long: the motion that a sentence names, as a class of the probe
    names: tuple[str, ...]  # which sentences these are


class LanguageTask(Task):
    """Linear heads on the sentence embedding name the sentence's words and its motion: language learned with everything
    else holds up the choice among objects."""

    def setup(self) -> None:
        model = self.model
        self.split = self.one_split(self.splits, objects=False)
        model.requires_grad_(False)
        model.language.requires_grad_(True)
        self.sampler = EpochSampler([0] * len(self.split.expressions), self.recipe.batch, self.recipe.seed)
        self.probe = MotionProbe(model.config.hidden_size, self.split)
        self.words = nn.Linear(model.config.hidden_size, model.config.language.encoder.vocab_size)
        self.modules = nn.ModuleDict({"probe": self.probe, "words": self.words})

    def batches(self, step: int, share: Share = ALL) -> list[SentenceBatch]:
        found = []
        for chosen in share.of(self.sampler(step).tolist()):
            items = [self.split.expressions[i] for i in chosen]
            texts = self.tokenizer([item.text for item in items])
            claims = torch.tensor([self.probe.claim(item.extra) for item in items])
            found.append(SentenceBatch(texts, claims, tuple(map(expression_name, items))))
        return found

    def counts(self, batch: SentenceBatch, step: int) -> Counts:
        return {"words": self._words(batch).sum(), "claims": torch.tensor(len(batch.claims))}

    def _words(self, batch: SentenceBatch) -> Tensor:
        """(B, V) 0 or 1: which words a sentence has, of V."""
        ids = batch.texts.input_ids
        present = torch.zeros(len(ids), self.words.out_features, device=ids.device)
        return present.scatter_(1, ids, batch.texts.mask.float())  # not padding, which depends on the other sentences

    def losses(self, batch: SentenceBatch, step: int, counts: Counts) -> dict[str, Tensor]:
        with exactly(self.model.config.release, batch.claims.device):
            sentence = self.model.language(batch.texts).sentence
            words = F.binary_cross_entropy_with_logits(self.words(sentence), self._words(batch), reduction="sum")
            claim = F.cross_entropy(self.probe.sentence_head(sentence), batch.claims, reduction="sum")
        return {"words": words / counts["words"], "claim": claim / counts["claims"]}


class ObjectProbe(nn.Module):
    def __init__(self, hidden: int, split: Split) -> None:
        super().__init__()
        objects = [item for video in split.videos.values() for item in video.objects.values()]
        self.values = {a: sorted({str(item[a]) for item in objects}) for a in ATTRIBUTES if objects and a in objects[0]}
        self.heads = nn.ModuleList(nn.Linear(hidden, len(values)) for values in self.values.values())
        self.geometry = nn.Linear(hidden, GEOMETRY)

    def classes(self, item: Object) -> list[int]:
        """The class of each attribute of an object."""
        return [values.index(str(item[name])) for name, values in self.values.items()]

    def forward(self, tokens: Tensor, indices: Tensor, masks: Tensor, attributes: Tensor) -> Tensor:
        """Cross-entropy of the attributes (F, G, A) long and absolute error of the geometry, summed over the tokens
        (F, N, C) that match objects (F, N) long, -1 for none, of masks (F, G, h, w) bool."""
        frame, token = (indices >= 0).nonzero(as_tuple=True)
        if not len(frame):
            return tokens.sum() * 0
        found, target = tokens[frame, token], indices[frame, token]  # (M, C), (M,)
        loss = F.l1_loss(self.geometry(found), mask_geometry(masks[frame, target]), reduction="sum")
        for a, head in enumerate(self.heads):
            loss = loss + F.cross_entropy(head(found), attributes[frame, target, a], reduction="sum")
        return loss


class MotionProbe(nn.Module):
    """Linear heads for the motion of every object and that of the sentence; 0 where the data set names none."""

    def __init__(self, hidden: int, split: Split) -> None:
        super().__init__()
        objects = [item for video in split.videos.values() for item in video.objects.values()]
        self.motions = sorted({str(item["motion"]) for item in objects if "motion" in item})
        self.claims = sorted({str(item.extra["motion"]) for item in split.expressions if "motion" in item.extra})
        self.object_head = nn.Linear(hidden, max(len(self.motions), 1))
        self.sentence_head = nn.Linear(hidden, max(len(self.claims), 1))

    def motion(self, item: Object) -> int:
        return self.motions.index(str(item["motion"])) if self.motions else 0

    def claim(self, extra: Object) -> int:
        """Of the motion that a sentence names; 0 where the split of training does not know it."""
        name = str(extra.get("motion", ""))
        return self.claims.index(name) if name in self.claims else 0

    def forward(
        self, tokens: Tensor, owner: Tensor, motions: Tensor, sentence: Tensor, claims: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of motions (B, G) long, summed over the tokens (B, T, N, C) that have found an object, owner
        (B, T, N) long or -1; and of claims (B,) long, summed over the sentences (B, C)."""
        found = owner >= 0
        label = motions.gather(1, owner.clamp(min=0).flatten(1)).view_as(owner)[found]
        objects = F.cross_entropy(self.object_head(tokens[found]), label, reduction="sum")
        return objects, F.cross_entropy(self.sentence_head(sentence), claims, reduction="sum")


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


def mask_geometry(masks: Tensor) -> Tensor:
    """Masks (M, h, w) bool -> (M, 5): centre and spread in units of the image's sides, covariance signed root."""
    weight = masks.flatten(1).float()
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    h, w = masks.shape[1:]
    grid = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    y, x = (each.flatten().to(weight) for each in grid)
    mean_x, mean_y = weight @ x, weight @ y
    dx, dy = x - mean_x[:, None], y - mean_y[:, None]
    var_x, var_y, cov = ((weight * term).sum(1) for term in (dx * dx, dy * dy, dx * dy))
    root = cov.sign() * cov.abs().clamp(min=1e-12).sqrt()
    return torch.stack([mean_x, mean_y, var_x.clamp(min=0).sqrt(), var_y.clamp(min=0).sqrt(), root], 1)
