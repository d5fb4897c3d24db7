"""Bi-attention as it is re-associated, against its formula."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dshmp.model.layers import BiAttention, merge_heads, split_heads


def plain(
    block: BiAttention, image: Tensor, words: Tensor, word_mask: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Every pixel and word projected, then attention both ways."""
    image, words = block.norm_v(image), block.norm_l(words)
    inputs = ((block.proj_v, image), (block.proj_l, words), (block.value_v, image), (block.value_l, words))
    key_v, key_l, value_v, value_l = (split_heads(linear(x), block.heads) for linear, x in inputs)
    from_words = F.scaled_dot_product_attention(key_v, key_l, value_l, word_mask)
    from_image = F.scaled_dot_product_attention(key_l, key_v, value_v, mask)
    delta_v = block.gamma_v * block.out_v(merge_heads(from_words))
    return image + delta_v, words + block.gamma_l * block.out_l(merge_heads(from_image))


@pytest.mark.parametrize("masked", [False, True])
def test_bi_attention_is_its_formula(masked: bool) -> None:
    """Outputs and all gradients; rows of different lengths, one of no word at all, and pixels left out."""
    torch.manual_seed(0)
    block = BiAttention(12, 10, 24, 3, scale=1.0).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    image, words = torch.randn(3, 20, 12).double().requires_grad_(), torch.randn(3, 7, 10).double().requires_grad_()
    word_mask = torch.arange(7) < torch.tensor([[7], [4], [0]])
    mask = torch.rand(3, 1, 1, 20) > 0.5 if masked else None
    given = (image, words, word_mask[:, None, None], mask)
    results = block(*given), plain(block, *given)
    inputs = [image, words, *block.parameters()]
    gradients = [torch.autograd.grad(sum(each.square().sum() for each in result), inputs) for result in results]
    for own, expected in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
        assert torch.allclose(own, expected, rtol=1e-9, atol=1e-9)


def test_dropout_of_bi_attention() -> None:
    """Its mean is what there is without: weights and the bias that goes with them are dropped together."""
    torch.manual_seed(0)
    block = BiAttention(12, 10, 24, 3, dropout=0.3, scale=1.0).double().train()
    torch.nn.init.normal_(block.value_v.bias)
    image, words = torch.randn(1, 20, 12).double().repeat(4000, 1, 1), torch.randn(1, 7, 10).double().repeat(4000, 1, 1)
    word_mask = torch.ones(4000, 1, 1, 7, dtype=torch.bool)
    with torch.no_grad():
        means = [each.mean(dim=0) for each in block(image, words, word_mask)]
        expected = [each[0] for each in block.eval()(image[:1], words[:1], word_mask[:1])]
    for own, other in zip(means, expected, strict=True):
        assert (own - other).abs().max() < 0.1
