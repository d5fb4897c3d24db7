"""What sentences mean in clips, as the losses of tasks on clips take it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dshmp.data.base import Expression, Split, target_rows
from dshmp.training.contrastive import TargetGroups


@dataclass(frozen=True)
class VideoTargets:
    """What B sentences mean in their clips."""

    expressions: tuple[int, ...]
    """Which sentences these are, counted through all splits."""
    meant: Tensor
    """(B, G_all) bool: which of the clip's objects are meant."""
    masks: Tensor
    """(B, G, T, h, w) bool: masks of the objects meant."""
    objects: Tensor
    """(B, G) long: the objects meant as indices of the clip's objects, -1 where a row only fills the batch."""

    @property
    def valid(self) -> Tensor:
        """(B, G) bool: the objects meant that can be seen."""
        return self.masks.flatten(2).any(2)


def video_targets(
    expressions: Sequence[int],
    items: Sequence[Expression],
    known: Sequence[Sequence[int]],
    truths: Sequence[Tensor],
) -> tuple[Tensor, VideoTargets]:
    """The masks of all objects of the clips, padded to one number of them (B, G_all, T, h, w), and the targets.

    Args: expressions, the numbers of the sentences `items`; of each, known, the ids of its clip's objects, and truths,
    their masks (G, T, h, w) bool.
    """
    shown = torch.zeros(len(items), max(1, *map(len, truths)), *truths[0].shape[1:], dtype=torch.bool)
    meant = torch.zeros(shown.shape[:2], dtype=torch.bool)
    objects = torch.full((len(items), max(1, *(len(item.objects) for item in items))), -1)
    for b, (item, ids, truth) in enumerate(zip(items, known, truths, strict=True)):
        shown[b, : len(truth)] = truth
        index = torch.tensor([ids.index(object_id) for object_id in item.objects], dtype=torch.long)
        objects[b, : len(index)] = index
        meant[b, index] = True
    masks = shown[torch.arange(len(items))[:, None], objects.clamp(min=0)]
    masks &= (objects >= 0)[:, :, None, None, None]
    return shown, VideoTargets(tuple(expressions), meant, masks, objects)


def target_groups(splits: Mapping[str, Split]) -> tuple[Tensor, TargetGroups]:
    """The memory bank's row of every sentence, those of all splits in turn, and where each row comes from."""
    videos: dict[tuple[str, str], int] = {}
    categories: dict[str | None, int] = {None: -1}
    rows: list[int] = []
    places: list[tuple[int, int]] = []
    for name, split in splits.items():
        first = len(places)
        for item, row in zip(split.expressions, target_rows(split.expressions), strict=True):
            rows.append(first + row)
            if first + row == len(places):
                video = videos.setdefault((name, item.video), len(videos))
                places.append((video, categories.setdefault(item.category, len(categories) - 1)))
    video_of, category_of = torch.tensor(places).T
    return torch.tensor(rows), TargetGroups(video_of, category_of)
