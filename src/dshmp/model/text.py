"""Section 3.1, sentence -> word features F_w, sentence embedding f_e, static cues F_s and motion cues F_m."""

from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dshmp.config import LanguageConfig
from dshmp.errors import UserError
from dshmp.files import reason
from dshmp.hub import looks_local
from dshmp.model.roberta import Roberta
from dshmp.model.tokenizer import TextBatch


@dataclass(frozen=True)
class Cues:
    """Rows that queries attend to: `features` (B, K, C), zero where `mask` bool (B, K) is False (padding)."""

    features: Tensor
    mask: Tensor

    def repeat(self, index: Tensor) -> Self:
        return type(self)(self.features[index], self.mask[index])


@dataclass(frozen=True)
class TextFeatures:
    """What the rest of the model knows of the expressions; `words` and `tokens` are not zero at padding."""

    words: Tensor  # (B, L, C_text), the encoder's own output, for the backbone's fusion
    tokens: Tensor  # F_w (B, L, C)
    mask: Tensor  # bool (B, L), True for tokens
    sentence: Tensor  # f_e (B, C)
    static: Cues
    motion: Cues

    def repeat(self, index: Tensor) -> Self:
        """The batch entries `index` (int64), so that each frame can have its clip's text."""
        words, tokens, mask, sentence = (x[index] for x in (self.words, self.tokens, self.mask, self.sentence))
        return type(self)(words, tokens, mask, sentence, self.static.repeat(index), self.motion.repeat(index))

    def trimmed(self) -> Self:
        """Without slots that are padding in all rows (the release's 40): nothing but themselves depends on them."""
        length = int(self.mask.sum(dim=1).max())
        words, tokens, mask = (each[:, :length] for each in (self.words, self.tokens, self.mask))
        return replace(self, words=words, tokens=tokens, mask=mask)


def feature_resizer(inputs: int, outputs: int, dropout: float = 0.1) -> nn.Sequential:
    """Text width -> model width, for words and sentence alike: (..., inputs) -> (..., outputs)."""
    norm = nn.LayerNorm(outputs, eps=1e-12)
    return nn.Sequential(OrderedDict(fc=nn.Linear(inputs, outputs), layer_norm=norm, dropout=nn.Dropout(dropout)))


class LanguageEncoder(nn.Module):
    """RoBERTa, frozen if the configuration says so, and a projection of its words and pooled output."""

    def __init__(self, config: LanguageConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Roberta(config.encoder)
        self.resizer = feature_resizer(config.encoder.hidden_size, hidden_size, config.dropout)
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
        # Padded slots, which the release fills with id 0, come after the tokens and are masked as keys.
        with torch.no_grad() if self.config.frozen else nullcontext():
            output = self.encoder(input_ids=batch.input_ids, attention_mask=batch.mask.long())
        words, pooled = output.last_hidden_state, output.pooler_output
        tokens, sentence = self.resizer(words), self.resizer(pooled)
        static, motion = (self._cues(tokens, sentence, group) for group in (batch.static, batch.motion))
        return TextFeatures(words, tokens, batch.mask, sentence, static, motion)

    def _cues(self, tokens: Tensor, sentence: Tensor, group: Tensor) -> Cues:
        """Rows of Eq. 1 and 2: the words of a group (B, L) bool, then f_e; Table 2a's variant says which."""
        if self.config.cues == "sentence":
            group = torch.zeros_like(group)
        # without f_e a group may have no word at all; f_e stands in for it
        alone = ~group.any(dim=1, keepdim=True)
        last = alone if self.config.cues == "words" else torch.ones_like(alone)
        chosen = torch.cat([group, last], dim=1)  # (B, L+1)
        rows = torch.cat([tokens, sentence[:, None]], dim=1)  # (B, L+1, C)
        count = chosen.sum(dim=1)
        features = pad_sequence(rows[chosen].split(count.tolist()), batch_first=True)  # (B, K, C)
        return Cues(features, torch.arange(features.shape[1], device=count.device) < count[:, None])


def null_text(language: LanguageEncoder, count: int) -> TextFeatures:
    """No sentence at all, `count` times: one row of zeros in place of words and of cues."""
    weight = language.resizer.get_parameter("fc.weight")  # (C, C_text)
    words, tokens = (weight.new_zeros(count, 1, size) for size in (weight.shape[1], weight.shape[0]))
    mask = torch.ones(count, 1, dtype=torch.bool, device=weight.device)
    cues = Cues(tokens, mask)
    return TextFeatures(words, tokens, mask, tokens[:, 0], cues, cues)


def pretrained_encoder(source: str | Path) -> dict[str, Tensor]:
    """RoBERTa's published weights, from a folder or a model id on the Hugging Face hub; UserError where that fails."""
    from transformers import RobertaModel

    try:
        if looks_local(source) and not Path(source).is_dir():
            raise FileNotFoundError("there is no such folder")
        return dict(RobertaModel.from_pretrained(str(Path(source)), add_pooling_layer=True).state_dict())
    except Exception as error:  # files and hub client raise a dozen kinds
        mend = "give a folder with RoBERTa's config.json and weights, or a model id on the Hugging Face hub"
        raise UserError(f"cannot load the text encoder {str(source)!r} ({reason(error)}); {mend}") from error
