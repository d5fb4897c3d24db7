"""From a decoded frame to the network's input and back."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dshmp.config import InputConfig
from dshmp.model.frames import input_masks, input_size, output_masks, prepare_frames

RELEASE = InputConfig(short_side=448, long_side=1333)
SMALL = InputConfig(short_side=40, long_side=64, divisor=8)


def restore_masks(masks: Tensor, size: tuple[int, int], config: InputConfig) -> Tensor:
    return output_masks(input_masks(masks, size, config), size)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((720, 1280), (448, 796)),  # 796.44
        ((1080, 1920), (448, 796)),
        ((480, 854), (448, 797)),  # 797.07
        ((1280, 720), (796, 448)),
        ((100, 1000), (133, 1333)),  # the long side decides; 133.3
        ((448, 448), (448, 448)),
        ((448, 1333), (448, 1333)),
        ((896, 1001), (448, 501)),  # 500.5 goes up
        ((896, 1003), (448, 502)),  # 501.5 too: not to the even number
        ((1003, 896), (502, 448)),
        ((1, 3000), (1, 1333)),  # never nothing
        ((25, 310), (107, 1333)),  # 107.5 but for rounding in the first of two steps
    ],
)
def test_input_size_is_the_release(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert input_size(size, RELEASE) == expected


def test_a_small_frame_grows() -> None:
    assert input_size((20, 30), SMALL) == (40, 60)
    assert input_size((20, 60), SMALL) == (21, 64)


def test_frames_of_the_right_size_are_only_normalised_and_padded() -> None:
    frames = [picture(40, 59, seed) for seed in range(3)]
    images = prepare_frames(frames, SMALL)
    assert images.shape == (3, 3, 40, 64)
    assert images.dtype == torch.float32
    expected = (np.stack(frames).astype(np.float32) - SMALL.mean) / SMALL.std
    np.testing.assert_allclose(images[..., :59].permute(0, 2, 3, 1), expected, atol=1e-5)
    assert images[..., 59:].eq(0).all()


@pytest.mark.parametrize("size", [(23, 37), (37, 23), (1, 1), (80, 81), (7, 200)])
def test_odd_sizes_are_resized_as_pil_does(size: tuple[int, int]) -> None:
    frame = picture(*size)
    h, w = input_size(size, SMALL)
    images = prepare_frames([frame], SMALL)
    assert images.shape[2:] == (h + -h % 8, w + -w % 8)
    resized = np.asarray(Image.fromarray(frame).resize((w, h), Image.Resampling.BILINEAR), np.float32)
    np.testing.assert_allclose(images[0, :, :h, :w].permute(1, 2, 0), (resized - SMALL.mean) / SMALL.std, atol=1e-5)
    assert images[..., h:, :].eq(0).all()
    assert images[..., w:].eq(0).all()
    masks = restore_masks(torch.randn(2, 3, images.shape[2] // 4, images.shape[3] // 4), size, SMALL)
    assert masks.shape == (2, 3, *size)
    assert masks.isfinite().all()


def test_masks_lie_where_their_objects_lie() -> None:
    """A box of the frame, seen at stride 4 of the input, comes back to its place."""
    size = (61, 90)
    box = np.zeros((*size, 3), np.uint8)
    box[20:45, 30:70] = 255
    image = prepare_frames([box], SMALL)[:, :1]
    logits = F.avg_pool2d(image - image.mean((2, 3)), 4)
    logits = logits - (logits.amax() + logits.amin()) / 2
    found = restore_masks(logits.transpose(0, 1), size, SMALL)[0, 0] > 0
    truth = torch.from_numpy(box[..., 0] > 0)
    assert (found & truth).sum() / (found | truth).sum() > 0.85


def test_padding_is_cropped_before_masks_are_enlarged() -> None:
    """What a mask says of the padding never reaches the frame."""
    padded = InputConfig(short_side=40, long_side=64, divisor=64)
    masks = torch.full((1, 1, 16, 16), -5.0)
    masks[..., 15:] = 5.0  # input columns 60 to 63; those of the frame end at 55
    for size in ((40, 56), (20, 28), (80, 112)):
        assert input_size(size, padded) == (40, 56)
        assert (restore_masks(masks, size, padded) < 0).all()


def test_restoring_is_bilinear_twice() -> None:
    masks = torch.randn(2, 1, 10, 15, generator=torch.Generator().manual_seed(0))
    h, w = input_size((30, 43), SMALL)
    assert (h, w) == (40, 57)
    large = F.interpolate(masks, (40, 64), mode="bilinear", align_corners=False)[..., :h, :w]
    expected = F.interpolate(large, (30, 43), mode="bilinear", align_corners=False)
    torch.testing.assert_close(restore_masks(masks, (30, 43), SMALL), expected, rtol=0, atol=0)
