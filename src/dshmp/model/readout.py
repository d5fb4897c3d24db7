"""From video tokens to masks: by a mask embedding (the paper), or along the trajectory pointed at (ours)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

ABSENT = -10.0  # mask logit of a frame in which a video token points at no object


@dataclass(frozen=True)
class EmbeddingReadout:
    """The paper's: products of a video token's mask embedding with the pixels of every frame."""

    mask_embed: Tensor  # (B, N_v, C)

    def of(self, tokens: list[int]) -> "EmbeddingReadout":
        """Of some of the video tokens."""
        return EmbeddingReadout(self.mask_embed[:, tokens])

    def unlinked(self, order: Tensor) -> "EmbeddingReadout":
        """The same: it names no candidate."""
        return self

    def clip_masks(self, object_masks: Tensor | None, pixels: Tensor | None) -> Tensor:
        """Mask logits (B, N_v, T, h, w) of whole clips, to learn from; pixels (B, T, C, h, w) are `DsHmp.mask_pixels`,
        object_masks (B, T, N, h, w) those of the object tokens."""
        return torch.einsum("bqc,btchw->bqthw", self.mask_embed, pixels)

    def frame_masks(self, frames: slice, pixels: Tensor, object_embed: Tensor) -> Tensor:
        """Mask logits (N_v, F, h, w) of F frames of one clip (B = 1); pixels (F, C, h, w), and object_embed (F, N, C),
        the mask embeddings of the object tokens."""
        return self.clip_masks(None, pixels[None])[0]


@dataclass(frozen=True)
class TrajectoryReadout:
    """Ours: the masks of the object tokens that a video token points at, mixed or, if `hard`, that of the first among
    them; `ABSENT` where it points at none."""

    pointer: Tensor  # (B, N_v, T, N+1) logits over each frame's object tokens and "not visible"
    hard: bool = False

    def of(self, tokens: list[int]) -> "TrajectoryReadout":
        """Of some of the video tokens."""
        return replace(self, pointer=self.pointer[:, tokens])

    def unlinked(self, order: Tensor) -> "TrajectoryReadout":
        """Of candidates that were read in the order (B, T, N) of trajectories: in that in which they were found."""
        back = F.pad(order.argsort(-1), (0, 1), value=order.shape[-1])[:, None]
        return replace(self, pointer=self.pointer.gather(3, back.expand(self.pointer.shape)))

    def _share(self, pointer: Tensor) -> Tensor:
        if self.hard:
            return F.one_hot(pointer.argmax(-1), pointer.shape[-1]).to(pointer.dtype)
        return pointer.softmax(dim=-1)

    def clip_masks(self, object_masks: Tensor | None, pixels: Tensor | None) -> Tensor:
        share = self._share(self.pointer)
        masks = torch.einsum("bqtn,btnhw->bqthw", share[..., :-1], object_masks)
        return masks + ABSENT * share[..., -1, None, None]

    def frame_masks(self, frames: slice, pixels: Tensor, object_embed: Tensor) -> Tensor:
        share = self._share(self.pointer[0, :, frames])
        mixed = torch.einsum("qfn,fnc->qfc", share[..., :-1], object_embed)  # for masks, and smaller than they
        return torch.einsum("qfc,fchw->qfhw", mixed, pixels) + ABSENT * share[..., -1, None, None]
