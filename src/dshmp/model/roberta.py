"""RoBERTa (https://arxiv.org/abs/1907.11692), the text encoder. Names of parameters are those of transformers, which
takes two seconds to import."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dshmp.config import EncoderConfig
from dshmp.model.layers import merge_heads, split_heads


class EncoderOutput(NamedTuple):
    """Of B expressions: their words (B, L, C), and the pooled one (B, C) of the first, <s>."""

    last_hidden_state: Tensor
    pooler_output: Tensor


class Embeddings(nn.Module):
    """Words, places and the one type of all words, summed and normalised. Places count from after <pad>'s id."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size, self.pad = config.hidden_size, config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, size, self.pad)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size, self.pad)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, L) int64 -> (B, L, C)."""
        real = input_ids != self.pad
        places = real.cumsum(dim=1) * real + self.pad
        words = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]
        return cast(Tensor, self.dropout(self.LayerNorm(words + self.position_embeddings(places))))


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size, self.heads = config.hidden_size, config.num_attention_heads
        if size % self.heads:
            raise ValueError(f"{size} channels cannot be shared by {self.heads} heads")
        self.dropout = config.attention_probs_dropout_prob
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, C), mask (B, 1, 1, L) bool, True = real -> (B, L, C)."""
        q, k, v = (split_heads(project(x), self.heads) for project in (self.query, self.key, self.value))
        return merge_heads(F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0))


class Residual(nn.Module):
    """LayerNorm(x + W y)."""

    def __init__(self, inputs: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return cast(Tensor, self.LayerNorm(self.dropout(self.dense(y)) + x))


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.attention = nn.ModuleDict({"self": SelfAttention(config), "output": Residual(size, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(size, inner)})
        self.output = Residual(inner, config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return cast(Tensor, self.output(F.gelu(self.intermediate["dense"](x)), x))


class Roberta(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)})
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> EncoderOutput:
        """Token ids (B, L) int64; attention_mask (B, L), 0 at padding, which stands at the end."""
        x, mask = self.embeddings(input_ids), attention_mask[:, None, None].bool()
        for layer in cast(nn.ModuleList, self.encoder["layer"]):
            x = layer(x, mask)
        return EncoderOutput(x, torch.tanh(self.pooler["dense"](x[:, 0])))
