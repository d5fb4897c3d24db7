"""The pixel decoder against transformers' Mask2Former, and the two ways to read points."""

import pytest
import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from dshmp.config import PixelDecoderConfig
from dshmp.model.pixel_decoder import PixelDecoder, read_points, sample_points

CHANNELS = [8, 12, 20, 24]


def both(dtype: torch.dtype) -> tuple[PixelDecoder, Mask2FormerPixelDecoder]:
    """Ours and theirs, of the same weights; offsets of several pixels."""
    torch.manual_seed(0)
    config = {"feature_size": 32, "mask_feature_size": 32, "encoder_layers": 2, "num_attention_heads": 4}
    config |= {"encoder_feedforward_dim": 40, "dropout": 0.0, "attn_implementation": "eager"}
    theirs = Mask2FormerPixelDecoder(Mask2FormerConfig(**config), CHANNELS)
    for name, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, std=2.0 if "sampling_offsets.bias" in name else 0.1)
    ours = PixelDecoder(PixelDecoderConfig(layers=2, heads=4, ffn=40), CHANNELS, 32)
    state = {f"decoder.{key}": value for key, value in theirs.state_dict().items()}
    state |= {key.removeprefix("decoder."): state.pop(key) for key in list(state) if "mask_projection" in key}
    ours.load_state_dict(state)
    return ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize("way", ["gather", "grid_sample"])
def test_as_in_transformers(dtype: torch.dtype, bound: float, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, and in float64 gradients of all parameters and inputs; sides that are no multiples of one another."""
    if way == "grid_sample":  # as on GPUs
        monkeypatch.setattr("dshmp.model.pixel_decoder.read_points", sample_points)
    ours, theirs = both(dtype)
    shapes = [(23, 31), (12, 16), (6, 8), (3, 4)]
    maps = [torch.randn(2, c, *size, dtype=dtype, requires_grad=True) for c, size in zip(CHANNELS, shapes, strict=True)]
    found, expected = ours(maps), theirs(maps)
    pairs = [(found.mask_features, expected.mask_features)]
    pairs += list(zip(found.levels, expected.multi_scale_features, strict=True))
    for own, other in pairs:
        assert torch.allclose(own, other, rtol=0, atol=bound)
    if dtype == torch.float64:
        losses = (sum(each[side].square().sum() for each in pairs) for side in (0, 1))
        gradients = [
            torch.autograd.grad(loss, [*maps, *module.parameters()])
            for loss, module in zip(losses, (ours, theirs), strict=True)
        ]
        names = [[name.removeprefix("decoder.") for name, _ in module.named_parameters()] for module in (ours, theirs)]
        order = [names[0].index(name) for name in names[1]]
        own = [*gradients[0][: len(maps)], *(gradients[0][len(maps) + index] for index in order)]
        for one, other in zip(own, gradients[1], strict=True):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()) + 1e-12)


@pytest.mark.parametrize("sizes", [[(1, 1), (1, 5), (7, 1)], [(3, 4), (6, 8), (11, 15)]])
@pytest.mark.parametrize("reach", [0.4, 3.0, 1e6])
def test_points_between_and_outside_pixels(sizes: list[tuple[int, int]], reach: float) -> None:
    """Some points lie on pixels and on the rim; of the rest most, at last all, lie outside."""
    torch.manual_seed(0)
    frames, heads, queries = 2, 3, 17
    values = torch.randn(frames, sum(h * w for h, w in sizes), heads, 2, dtype=torch.float64, requires_grad=True)
    shape = (frames, queries, heads, len(sizes), 4)
    x, y = (reach * torch.randn(shape, dtype=torch.float64) for _ in range(2))
    x[:, :4], y[:, 2:6] = torch.tensor([[-1.0, 0.0, 1.0, -0.5]]), 0.0
    weights = torch.rand(shape, dtype=torch.float64)
    inputs: list[Tensor] = [values, x.requires_grad_(), y.requires_grad_(), weights.requires_grad_()]
    results = [read(values, sizes, x, y, weights) for read in (read_points, sample_points)]
    assert results[0].shape == (frames, queries, heads * 2)
    assert torch.allclose(*results, rtol=0, atol=1e-9)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    inner = (x != x.round()) & (y != y.round())  # on a pixel there is no one slope
    for name, own, other in zip("vxyw", *gradients, strict=True):
        chosen = inner if name in "xy" else torch.ones_like(own, dtype=torch.bool)
        assert torch.allclose(own[chosen], other[chosen], rtol=1e-6, atol=1e-9)


def test_points_that_are_no_numbers() -> None:
    """A diverged step reads nothing beyond the table; what it reads is no number either."""
    values, sizes = torch.randn(1, 6, 2, 3), [(2, 3)]
    x, y, weights = torch.zeros(1, 4, 2, 1, 4), torch.zeros(1, 4, 2, 1, 4), torch.ones(1, 4, 2, 1, 4)
    x[0, 1, 0, 0, 2], y[0, 2, 1] = float("nan"), float("inf")
    found = read_points(values, sizes, x, y, weights).isnan()
    assert found.nonzero().tolist() == [[0, 1, 0], [0, 1, 1], [0, 1, 2]]
