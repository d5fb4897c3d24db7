"""From decoded frames to the network's input, and from its masks back to the frame."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dshmp.config import InputConfig
from dshmp.video.images import scaled_size


def input_size(size: tuple[int, int], config: InputConfig) -> tuple[int, int]:
    return scaled_size(size, config.short_side, config.long_side)


def prepare_frames(frames: Sequence[NDArray[np.uint8]], config: InputConfig) -> Tensor:
    """Frames of one size (H, W, 3) uint8 RGB -> (F, 3, h', w') float32: resized (PIL bilinear on uint8),
    normalised, then padded with zeros at the right and bottom to a multiple of `divisor`."""
    h, w = input_size(frames[0].shape[:2], config)
    resized = [np.asarray(Image.fromarray(frame).resize((w, h), Image.Resampling.BILINEAR)) for frame in frames]
    images = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()  # (F, h, w, 3) -> (F, 3, h, w)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.mean, config.std))
    pad = (0, -w % config.divisor, 0, -h % config.divisor)
    return F.pad((images - mean) / std, pad).contiguous()


def input_masks(masks: Tensor, size: tuple[int, int], config: InputConfig) -> Tensor:
    """Mask logits (Q, F, h/4, w/4) of frames of `size` -> (Q, F, h, w), the size they were resized to: bilinear to
    the padded input, the padding cropped."""
    h, w = input_size(size, config)
    padded = (h + -h % config.divisor, w + -w % config.divisor)
    return F.interpolate(masks, padded, mode="bilinear", align_corners=False)[..., :h, :w]


def output_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (Q, F, h, w) of `input_masks` -> (Q, F, *size), the frames' own: bilinear (the release's order)."""
    return masks if masks.shape[-2:] == size else F.interpolate(masks, size, mode="bilinear", align_corners=False)
