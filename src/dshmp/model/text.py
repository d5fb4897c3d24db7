"""Section 3.1, sentence -> word features F_w, sentence embedding f_e, static cues F_s and motion cues F_m."""

import json
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dshmp.common.errors import UserError
from dshmp.common.files import read_settings, reason
from dshmp.common.hub import looks_local
from dshmp.config import AutoEncoderConfig, EncoderConfig, LanguageConfig, from_dict, to_dict
from dshmp.model.roberta import EncoderOutput, Roberta
from dshmp.model.tokenizer import TextBatch

# what a config.json of transformers tells beside the architecture
_NOT_OF_SHAPE = (
    *("architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version", "_name_or_path"),
    *("output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"),
)


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


class AutoEncoder(nn.Module):
    """An encoder of transformers, called as `Roberta` is."""

    def __init__(self, config: AutoEncoderConfig) -> None:
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModel

        super().__init__()
        self.pooling = config.pooling
        architecture = AutoConfig.for_model(**config.architecture)
        if architecture.is_encoder_decoder:
            raise ValueError(f"{architecture.model_type} is an encoder with a decoder; name an encoder alone")
        # buffers are in no file, so they are made for real where a model is to be shapes alone
        shapes = torch.get_default_device().type == "meta"
        with torch.device("cpu"), init_empty_weights(include_buffers=False) if shapes else nullcontext():
            self.model = AutoModel.from_config(architecture, trust_remote_code=False)
        if self.pooling != "pooler":
            self.model.pooler = None
        elif getattr(self.model, "pooler", None) is None:
            raise ValueError(f"{architecture.model_type} has no pooler; pooling may be mean or first")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> EncoderOutput:
        """As `Roberta.forward`."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        words = output.last_hidden_state
        if self.pooling == "pooler":
            return EncoderOutput(words, output.pooler_output)
        if self.pooling == "first":
            return EncoderOutput(words, words[:, 0])
        real = attention_mask[..., None].to(words)
        return EncoderOutput(words, (words * real).sum(1) / real.sum(1))


def text_encoder(config: EncoderConfig | AutoEncoderConfig) -> Roberta | AutoEncoder:
    return Roberta(config) if isinstance(config, EncoderConfig) else AutoEncoder(config)


class LanguageEncoder(nn.Module):
    """A text encoder, frozen if the configuration says so, and a projection of its words and pooled output."""

    def __init__(self, config: LanguageConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = text_encoder(config.encoder)
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


def pretrained_encoder(source: str | Path) -> tuple[EncoderConfig | AutoEncoderConfig, dict[str, Tensor]]:
    """The numbers and weights of a published text encoder, from a folder or a model id on the Hugging Face hub: of
    RoBERTa for `Roberta`, of others for `AutoEncoder`. No code that comes with them is run and nothing is unpickled;
    UserError where it fails."""
    from transformers import AutoModel

    try:
        if looks_local(source) and not Path(source).is_dir():
            raise FileNotFoundError("there is no such folder")
        folder = Path(source) if looks_local(source) else _fetched(str(source))
        safe = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
        model, loaded = AutoModel.from_pretrained(str(folder), output_loading_info=True, **safe)
        state, values = dict(model.state_dict()), json.loads(json.dumps(model.config.to_dict()))
        if missing := [key for key in loaded["missing_keys"] if not key.startswith("pooler.")]:
            raise ValueError(f"the weights lack {missing[0]}")
        if values["model_type"] == "roberta" and values.get("hidden_act", "gelu") == "gelu":
            numbers = {key: values[key] for key in to_dict(EncoderConfig())}
            return from_dict(EncoderConfig, numbers, "config.json"), state
        kept = {key: value for key, value in values.items() if value is not None and key not in _NOT_OF_SHAPE}
        # what some call otherwise (DistilBERT's `dim`)
        kept |= {key: getattr(model.config, key) for key in ("hidden_size", "vocab_size")}
        pooler = any(key.startswith("pooler.") for key in state) and not loaded["missing_keys"]
        given = {"architecture": kept, "pooling": _published_pooling(folder) or ("pooler" if pooler else "mean")}
        config = from_dict(AutoEncoderConfig, given, "config.json")
        if config.pooling != "pooler":
            state = {key: value for key, value in state.items() if not key.startswith("pooler.")}
        return config, {f"model.{key}": value for key, value in state.items()}
    except Exception as error:  # files and hub client raise a dozen kinds
        mend = "give a folder with config.json and model.safetensors, or a model id on the Hugging Face hub"
        raise UserError(f"cannot load the text encoder {str(source)!r} ({reason(error)}); {mend}") from error


def _published_pooling(folder: Path) -> str | None:
    """What a model of sentence-transformers says of the sentence; None for others."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    values = json.loads(read_settings(path))
    return "first" if values.get("pooling_mode_cls_token") else "mean"


def _fetched(source: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "*.safetensors", "model.safetensors.index.json", "1_Pooling/config.json"]
    return Path(snapshot_download(source, allow_patterns=patterns))
