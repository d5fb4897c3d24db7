"""Section 3.1, sentence -> word features F_w, sentence embedding f_e, static cues F_s and motion cues F_m."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor, nn

from dshmp.config import LanguageConfig
from dshmp.errors import UserError
from dshmp.files import reason
from dshmp.hub import check_folder, looks_local
from dshmp.model.tokenizer import TextBatch

if TYPE_CHECKING:
    from transformers import RobertaModel


@dataclass(frozen=True)
class Cues:
    """Rows that queries attend to: `features` (B, K, C), zero where `mask` bool (B, K) is False (padding)."""

    features: Tensor
    mask: Tensor

    def repeat(self, index: Tensor) -> Self:
        """The batch entries `index` (int64), as `Tensor.index_select`."""
        return replace(self, features=self.features[index], mask=self.mask[index])


@dataclass(frozen=True)
class TextFeatures:
    """What the rest of the model knows of the expressions.

    Attributes:
        words: (B, L, C_text), the encoder's own output, for the backbone's fusion.
        tokens: (B, L, C), F_w.
        mask: bool (B, L), True for tokens. `words` and `tokens` are not zero at padding.
        sentence: (B, C), f_e.
        static: F_s.
        motion: F_m.
    """

    words: Tensor
    tokens: Tensor
    mask: Tensor
    sentence: Tensor
    static: Cues
    motion: Cues

    def repeat(self, index: Tensor) -> Self:
        """The batch entries `index` (int64), so that each frame can have its clip's text."""
        return replace(
            self,
            words=self.words[index],
            tokens=self.tokens[index],
            mask=self.mask[index],
            sentence=self.sentence[index],
            static=self.static.repeat(index),
            motion=self.motion.repeat(index),
        )


class FeatureResizer(nn.Module):
    """Text width -> model width, for words and sentence alike: linear, LayerNorm, dropout."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, out_channels)
        self.layer_norm = nn.LayerNorm(out_channels, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(..., C_text) -> (..., C)."""
        return cast(Tensor, self.dropout(self.layer_norm(self.fc(features))))


class LanguageEncoder(nn.Module):
    """RoBERTa and the projection of its words and its pooled output to `hidden_size`.

    Attributes:
        encoder: `transformers.RobertaModel`; frozen (no gradient, no dropout) if the configuration says so.
        resizer: `FeatureResizer`.
    """

    def __init__(self, config: LanguageConfig, hidden_size: int) -> None:
        super().__init__()
        from transformers import RobertaConfig, RobertaModel

        self.config = config
        self.encoder = RobertaModel(RobertaConfig(**config.encoder), add_pooling_layer=True)
        self.resizer = FeatureResizer(self.encoder.config.hidden_size, hidden_size, config.dropout)
        if config.frozen:
            self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As for any module, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.frozen:
            self.encoder.eval()
        return self

    def forward(self, batch: TextBatch) -> TextFeatures:
        """Encode B expressions; neither padding nor the rest of the batch changes an expression's rows."""
        # A padded slot has a position of its own unless its id is RoBERTa's <pad> (in the release it is 0).
        # Such slots come after the tokens and are masked as keys, so no token sees the difference.
        with torch.no_grad() if self.config.frozen else nullcontext():
            output = self.encoder(input_ids=batch.input_ids, attention_mask=batch.mask.long())
        words, pooled = output.last_hidden_state, output.pooler_output
        tokens, sentence = self.resizer(words), self.resizer(pooled)
        return TextFeatures(
            words=words,
            tokens=tokens,
            mask=batch.mask,
            sentence=sentence,
            static=self._cues(tokens, sentence, batch.static),
            motion=self._cues(tokens, sentence, batch.motion),
        )

    def _cues(self, tokens: Tensor, sentence: Tensor, group: Tensor) -> Cues:
        """Rows of Eq. 1 and 2: the words of a group, then f_e; which of the two, Table 2a's variant says.

        Args:
            tokens: (B, L, C). sentence: (B, C). group: bool (B, L).
        """
        if self.config.cues == "sentence":
            group = torch.zeros_like(group)
        # without f_e a group may have no word at all; f_e stands in for it
        alone = ~group.any(dim=1, keepdim=True)
        last = alone if self.config.cues == "words" else torch.ones_like(alone)
        chosen = torch.cat([group, last], dim=1)  # (B, L+1)
        rows = torch.cat([tokens, sentence[:, None]], dim=1)  # (B, L+1, C)
        count = chosen.sum(dim=1)
        # chosen rows first, in their order
        order = (~chosen).long().argsort(dim=1, stable=True)[:, : int(count.max())]  # (B, K)
        mask = torch.arange(order.shape[1], device=count.device) < count[:, None]  # (B, K)
        features = rows.gather(1, order[:, :, None].expand(-1, -1, rows.shape[-1]))  # (B, K, C)
        return Cues(features.masked_fill(~mask[:, :, None], 0.0), mask)


def null_text(language: LanguageEncoder, count: int) -> TextFeatures:
    """Features of no sentence at all, `count` times: one row of zeros in place of words and of cues."""
    weight = language.resizer.fc.weight  # (C, C_text)
    hidden, text_size = weight.shape
    words = weight.new_zeros(count, 1, text_size)
    tokens = weight.new_zeros(count, 1, hidden)
    mask = torch.ones(count, 1, dtype=torch.bool, device=weight.device)
    cues = Cues(tokens, mask)
    return TextFeatures(words, tokens, mask, tokens[:, 0], cues, cues)


def pretrained_encoder(source: str | Path) -> "RobertaModel":
    """RoBERTa's published weights, from a local folder or a model id on the Hugging Face hub.

    Raises:
        UserError: they cannot be had.
    """
    from transformers import RobertaModel

    here = looks_local(source)
    try:
        if here:
            check_folder(source)
        model = RobertaModel.from_pretrained(str(Path(source)), add_pooling_layer=True, local_files_only=here)
        return cast("RobertaModel", model)
    except Exception as error:  # files and hub client raise a dozen kinds
        raise UserError(
            f"cannot load the text encoder {str(source)!r} ({reason(error)}); "
            "give a folder with RoBERTa's config.json and weights, or a model id on the Hugging Face hub"
        ) from error
