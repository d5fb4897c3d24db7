"""The motion stage's quick look at the held-out split: on cached tokens and the cache's coarse grid.

Good enough for a learning curve; `dshmp evaluate` gives the figures that count.
"""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dshmp.data.mevis import MevisSplit
from dshmp.learning.cache import TokenCache
from dshmp.motion.decoder import trajectory_masks

if TYPE_CHECKING:
    from dshmp.learning.stages import MotionStage

BATCH = 128


@torch.inference_mode()
def validate_motion(stage: "MotionStage", folder: Path) -> dict[str, float]:
    """Mean IoU in per cent per subset (grid masks, union over the threshold) and what share of direction pairs
    has the right one of the two on top."""
    held_out = stage.held_out(lambda: _open(stage, folder))
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, item in enumerate(held_out.expressions):
        by_length[len(held_out.split.videos[item.video].frames)].append(index)
    scores: dict[str, list[float]] = defaultdict(list)
    for indices in by_length.values():
        for i in range(0, len(indices), BATCH):
            chosen = indices[i : i + BATCH]
            batch = held_out.collate(chosen)
            text = stage.model.language(batch.texts)
            video = stage.model.understand(batch.tokens, batch.meant.new_ones(batch.tokens.shape[:2]), text)
            assert video.pointer is not None
            masks = trajectory_masks(video.pointer, batch.mask_logits) > 0
            meant = video.logits.softmax(2)[..., 0]
            passed = meant > stage.model.config.readout.threshold
            union = (masks & passed[:, :, None, None, None]).any(1)
            top = masks[torch.arange(len(chosen), device=masks.device), meant.argmax(1)]
            truth = batch.masks.any(1)
            iou = _iou(union, truth).mean(1) * 100
            top_iou = _iou(top, truth).mean(1)
            for b, index in enumerate(chosen):
                item = held_out.expressions[index]
                for name in ("all", *item.subsets):
                    scores[f"iou {name}"].append(float(iou[b]))
                if "direction pairs" in item.subsets and len(item.objects) == 1:
                    scores["right of pair"].append(100.0 * bool(top_iou[b] > _best_other(top[b], held_out, index)))
                empty = not bool(passed[b].any())
                scores["absent rejected" if not item.objects else "present rejected"].append(100.0 * empty)
    return {name: round(sum(values) / len(values), 2) for name, values in sorted(scores.items())}


def _open(stage: "MotionStage", folder: Path) -> "MotionStage":
    from dshmp.learning.stages import MotionStage

    recipe = stage.recipe
    split = MevisSplit(Path(recipe.data), recipe.validation)
    cache = TokenCache.build(stage.model, split, stage.cache.folder.parent / recipe.validation)
    return MotionStage(recipe, stage.model, stage.tokenizer, split, cache)


def _best_other(top: Tensor, held_out: "MotionStage", index: int) -> float:
    """IoU of the top answer with the objects that are not meant: the best of them."""
    item = held_out.expressions[index]
    clip = held_out.cache[item.video]
    others = [g for g, object_id in enumerate(clip.objects) if object_id not in item.objects]
    return max((float(_iou(top, clip.truth[g]).mean()) for g in others), default=0.0)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of masks (..., h, w), 1 where both are empty."""
    overlap, union = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return torch.where(union == 0, 1.0, overlap / union.clamp(min=1))
