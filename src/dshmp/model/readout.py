"""From video tokens to masks: by a mask embedding (the paper), or along the trajectory pointed at (ours)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dshmp.model.frame_decoder import Perception
from dshmp.model.motion_decoder import MotionDecoder, VideoTokens
from dshmp.model.pixel_decoder import PixelFeatures

ABSENT = -10.0  # mask logit of a frame in which a video token points at no object


@dataclass(frozen=True)
class EmbeddingReadout:
    """The paper's: the product of a video token's mask embedding with the features of every frame, which `project`
    makes of video features (F, C, h, w)."""

    project: nn.Module

    def pixels(self, seen: PixelFeatures | Perception) -> Tensor:
        """As `DsHmp.mask_pixels`."""
        return seen.video_features

    def frame_masks(self, video: VideoTokens, frames: slice, pixels: Tensor, mask_embed: Tensor) -> Tensor:
        """As `DsHmp.decode_masks`."""
        return self.clip_masks(video, pixels, pixels)[0]

    def clip_masks(self, video: VideoTokens, object_masks: Tensor, video_features: Tensor) -> Tensor:
        """Mask logits (B, N_v, T, h, w) of B whole clips, to learn from; those of their object tokens are
        object_masks (B, T, N, h, w), and video_features (B*T, C, h, w)."""
        assert video.mask_embed is not None
        features = self.project(video_features).unflatten(0, (len(video.mask_embed), -1))  # (B*T, ...) -> (B, T, ...)
        return torch.einsum("bqc,btchw->bqthw", video.mask_embed, features)


class TrajectoryReadout:
    """Ours: the masks of the object tokens that a video token points at, mixed; `ABSENT` where it points at none."""

    def pixels(self, seen: PixelFeatures | Perception) -> Tensor:
        return seen.mask_features

    def frame_masks(self, video: VideoTokens, frames: slice, pixels: Tensor, mask_embed: Tensor) -> Tensor:
        assert video.pointer is not None
        share = video.pointer[0, :, frames].softmax(dim=-1)
        mixed = torch.einsum("qfn,fnc->qfc", share[..., :-1], mask_embed)  # for masks, and smaller than they
        return torch.einsum("qfc,fchw->qfhw", mixed, pixels) + ABSENT * share[..., -1, None, None]

    def clip_masks(self, video: VideoTokens, object_masks: Tensor, video_features: Tensor | None = None) -> Tensor:
        assert video.pointer is not None
        share = video.pointer.softmax(dim=-1)
        masks = torch.einsum("bqtn,btnhw->bqthw", share[..., :-1], object_masks)
        return masks + ABSENT * share[..., -1, None, None]


def readout_of(decoder: MotionDecoder) -> EmbeddingReadout | TrajectoryReadout:
    """The read-out whose heads the decoder has."""
    return TrajectoryReadout() if decoder.mask_features is None else EmbeddingReadout(decoder.mask_features)
