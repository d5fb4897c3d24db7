"""Scores on held-out data: J and F of a few videos, answered as for users, or IoU on cached object tokens."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dshmp.common.device import to_device
from dshmp.data.base import Expression, Split, by_video, times_shown
from dshmp.evaluation.metrics import jf
from dshmp.inference.segmenter import Segmenter
from dshmp.model.dshmp import DsHmp
from dshmp.model.readout import TrajectoryReadout
from dshmp.training.cache import CachedSplit
from dshmp.training.task import Metrics
from dshmp.video.io import open_video
from dshmp.video.overlay import draw_masks, sheet_frames
from dshmp.video.source import VideoSource

SENTENCES = 4  # of each video
COLUMNS, CELL = 6, 240  # frames of a picture's strip, and how wide each is in pixels
BATCH = 128
Pixels = NDArray[np.uint8]
Masks = NDArray[Any]


def means(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of every name's values."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in scores:
        found[name].append(value)
    return {name: round(sum(values) / len(values), 2) for name, values in found.items()}


def score_videos(segmenter: Segmenter, splits: Mapping[str, Split], videos: int) -> Metrics:
    """J, F and their mean in per cent over a few videos of every split, and a strip of each video's first expression.
    Figures of several splits have their names before them, and `J&F` is the mean over the splits."""
    scores: list[tuple[str, float]] = []
    pictures: dict[str, Pixels] = {}
    for name, split in splits.items():
        prefix = f"{name} " if len(splits) > 1 else ""
        for video, frames, found, truth in _answers(segmenter, split, videos):
            j, f = jf(found, truth)
            scores += [(f"{prefix}J", 100 * j), (f"{prefix}F", 100 * f), (f"{prefix}J&F", 50 * (j + f))]
            title = f"{split.folder.name}-{video}"
            if title not in pictures:
                pictures[title] = strip(frames, found, truth)
    values = means(scores)
    return Metrics(values | means(("J&F", mean) for name, mean in values.items() if name.endswith("J&F")), pictures)


def _answers(segmenter: Segmenter, split: Split, videos: int) -> Iterator[tuple[str, Pixels, Masks, Masks]]:
    """Of some sentences of some videos: the video, the frames that are scored (T, H, W, 3), masks found and true."""
    for name, items in _spread(list(by_video(split).items()), videos):
        alike: dict[tuple[int, ...], list[Expression]] = defaultdict(list)
        for item in _spread(items, SENTENCES):
            alike[item.shown or tuple(range(len(split.videos[name].frames)))].append(item)
        for shown, together in alike.items():
            frames, source = shown_video(split, name, shown)
            results = segmenter.answer(source, [item.text for item in together])
            for item, result in zip(together, results, strict=True):
                scored = [shown.index(position) for position in item.scored or shown]
                positions = [shown[t] for t in scored]
                truth = split.masks(name, item.annotations, positions, (frames.shape[1], frames.shape[2]))
                yield name, frames[scored], result.masks[scored], np.asarray(truth.any(0))


def shown_video(split: Split, name: str, shown: Sequence[int] | None) -> tuple[Pixels, VideoSource]:
    """The frames of a video at these positions, by default all, (T, H, W, 3), and as what is segmented."""
    frames = np.stack(split.frames(name, shown))
    return frames, replace(open_video(frames), positions=times_shown(shown or range(len(frames))))


def _spread(items: list[Any], wanted: int) -> list[Any]:
    return [items[i] for i in sorted({int(x) for x in np.linspace(0, len(items) - 1, min(wanted, len(items)))})]


def strip(frames: Pixels, found: Masks, truth: Masks) -> Pixels:
    """A few frames (T, H, W, 3) side by side: what was found tinted, the truth outlined in white; (h, w, 3)."""
    height, width = frames.shape[1:3]
    size, thickness = (CELL, max(round(CELL * height / width), 1)), max(1, -(-CELL // width))
    chosen = sheet_frames(len(frames), COLUMNS)
    cells = [draw_masks(frames[t], found[t][None], truth[t], thickness) for t in chosen]
    return np.concatenate([cv2.resize(cell, size, interpolation=cv2.INTER_AREA) for cell in cells], axis=1)


@dataclass(frozen=True)
class SentenceScore:
    iou: float  # of the union of what is meant with the truth, mean over the frames, per cent; 100 where both are empty
    right: bool | None  # of a direction pair: does the best candidate meet the right one better than any other object?
    empty: bool  # whether nothing passed the threshold
    exact: bool  # whether the objects that are answered are those meant, no more and no less


def score_tokens(model: DsHmp, held_out: CachedSplit) -> Metrics:
    """Means in per cent over all sentences, on the cache's coarse grid: good enough for a learning curve."""
    pairs: list[tuple[str, float]] = []
    scores = sentence_scores(model, held_out, [model.config.readout.threshold])[0]
    for item, score in zip(held_out.split.expressions, scores, strict=True):
        pairs += [(f"iou {name}", score.iou) for name in ("all", *item.subsets)]
        pairs += [] if score.right is None else [("right of pair", 100.0 * score.right)]
        pairs += [(f"exact {name}", 100.0 * score.exact) for name in ("all", *item.subsets)]
        pairs.append(("present rejected" if item.objects else "absent rejected", 100.0 * score.empty))
    for item in {item.video: item for item in held_out.split.expressions}.values():
        held, whole = link_scores(item, held_out)
        pairs += [("links", 100.0 * each) for each in held] + [("whole tracks", 100.0 * each) for each in whole]
    return Metrics(means(sorted(pairs, key=lambda pair: pair[0])))


def link_scores(item: Expression, held_out: CachedSplit) -> tuple[list[bool], list[bool]]:
    """Of an expression's clip, over the frames where an object is seen: for each trajectory that has found it in one
    and is there in the next, whether it has found it there, too; and whether one trajectory has it in all of them."""
    clip = held_out[item]
    held, whole = [], []
    there = torch.ones_like(clip.owner, dtype=torch.bool) if clip.present is None else clip.present
    for g, seen in enumerate(clip.truth.flatten(2).any(2)):
        found = (clip.owner == g)[seen]  # (t, N)
        linked = found[:-1] & there[seen][1:]
        held += found[1:][linked].tolist()
        whole += [bool(found.all(0).any())] if len(found) else []
    return held, whole


@torch.inference_mode()
def sentence_scores(model: DsHmp, held_out: CachedSplit, thresholds: Sequence[float]) -> list[list[SentenceScore]]:
    """A model's answers, in evaluation mode, to all sentences of a split, in its order, at each threshold."""
    scores: list[dict[int, SentenceScore]] = [{} for _ in thresholds]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(held_out.lengths):
        by_length[length].append(index)
    for chosen in (same[i : i + BATCH] for same in by_length.values() for i in range(0, len(same), BATCH)):
        batch = to_device(held_out.batch(chosen), next(model.parameters()).device)
        text = model.language(batch.texts)
        video = model.decode_motion(batch.candidates, text)
        masks = video.readout.clip_masks(batch.mask_logits, None) > 0
        meant = video.logits.softmax(2)[..., 0]
        top = masks[torch.arange(len(chosen), device=masks.device), meant.argmax(1)]
        truth = batch.targets.masks.any(1)
        top_iou, top = _iou(top, truth).mean(1), top.cpu()
        rights: list[bool | None] = []
        for b, item in enumerate(held_out.split.expressions[index] for index in chosen):
            right = None
            if "direction pairs" in item.subsets and len(item.objects) == 1:
                clip = held_out[item]
                others = [g for g, object_id in enumerate(clip.objects) if object_id not in item.objects]
                best_other = max((float(_iou(top[b], clip.truth[g]).mean()) for g in others), default=0.0)
                right = bool(top_iou[b] > best_other)
            rights.append(right)
        assert isinstance(video.readout, TrajectoryReadout)
        for found, threshold in zip(scores, thresholds, strict=True):
            passed = meant > threshold
            iou = _iou((masks & passed[:, :, None, None, None]).any(1), truth).mean(1) * 100
            answered = _objects(video.readout.pointer, batch.owner, passed, batch.targets.meant.shape[1])
            exact, empty = (answered == batch.targets.meant).all(1), ~passed.any(1)
            rows = zip(iou.tolist(), rights, empty.tolist(), exact.tolist(), strict=True)
            found.update((index, SentenceScore(*row)) for index, row in zip(chosen, rows, strict=True))
    return [[found[index] for index in range(len(held_out.lengths))] for found in scores]


def _objects(pointer: Tensor, owner: Tensor, passed: Tensor, count: int) -> Tensor:
    """Which of a clip's objects are answered, (B, G) bool: those that a video token which passed (B, N_v) points at in
    most frames. pointer (B, N_v, T, N+1), owner (B, T, N) long."""
    first = pointer.argmax(3)  # (B, N_v, T)
    owner = F.pad(owner, (0, 1), value=-1)[:, None].expand(-1, pointer.shape[1], -1, -1)
    votes = F.one_hot(owner.gather(3, first[..., None])[..., 0] + 1, count + 1).sum(2)[..., 1:]  # (B, N_v, G)
    best = F.one_hot(votes.argmax(2), count) * (votes.amax(2, keepdim=True) > 0)
    return (best * passed[..., None]).any(1)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of masks (..., h, w), 1 where both are empty."""
    overlap, union = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return torch.where(union == 0, 1.0, overlap / union.clamp(min=1))
