"""Linear heads, in training only, that name what the data set knows: in place of COCO's class labels.

In the perception task every object token names appearance and place, which makes both linear in the token, so that a
difference of two tokens along a trajectory is a displacement; in the motion task motion-aware tokens and the sentence
embedding name the motion.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.data.base import Split

ATTRIBUTES = ("shape", "colour", "texture")
GEOMETRY = 5  # centre x, y; standard deviation along x, y; covariance
Object = dict[str, Any]  # what a data set says of an object


class ObjectProbe(nn.Module):
    def __init__(self, hidden: int, split: Split) -> None:
        super().__init__()
        objects = _objects(split)
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
        self.motions = sorted({str(item["motion"]) for item in _objects(split) if "motion" in item})
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


def _objects(split: Split) -> list[Object]:
    return [item for video in split.videos.values() for item in video.objects.values()]
