"""Section 3.1, sentence -> word features F_w, sentence embedding f_e, static cues F_s and motion cues F_m."""

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor, nn

from dshmp.config import LanguageConfig
from dshmp.errors import UserError
from dshmp.files import reason, regular, whole_file
from dshmp.hub import check_folder, looks_local
from dshmp.language.cues import RULES, Word, parse, parser_version, split_words, token_groups
from dshmp.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, RobertaModel

SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}
_CACHE_SIZE = 65536  # expressions beside those that are kept


@dataclass(frozen=True)
class TextBatch:
    """Expressions as sub-word tokens, padded to one length L.

    Attributes:
        input_ids: int64 (B, L).
        mask: bool (B, L), True for tokens, <s> and </s> included, False for padding.
        static: bool (B, L), tokens of static words.
        motion: bool (B, L), tokens of motion words.
    """

    input_ids: Tensor
    mask: Tensor
    static: Tensor
    motion: Tensor

    def to(self, device: torch.device | str) -> Self:
        return replace(self, **{item.name: getattr(self, item.name).to(device) for item in fields(self)})


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


@dataclass(frozen=True)
class _Parsed:
    """One expression: token ids and the groups of its tokens, cut to the limit, not padded."""

    ids: tuple[int, ...]
    static: tuple[bool, ...]
    motion: tuple[bool, ...]
    words: tuple[Word, ...]


class TextTokenizer:
    """Expressions -> `TextBatch`. Each expression is parsed once; later calls take it from memory.

    Attributes:
        config: what becomes of an expression.
        tokenizer: sub-word tokens.
    """

    def __init__(self, config: LanguageConfig, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._kept: dict[str, _Parsed] = {}
        self._cache: dict[str, _Parsed] = {}
        self._lock = threading.Lock()  # the tokeniser may not be used by two threads at once

    def __call__(self, expressions: Sequence[str]) -> TextBatch:
        """Tokenise a batch.

        Raises:
            UserError: an expression is blank, or has more than `max_tokens` tokens while `overlong` is "error".
            TypeError: one is no string.
            ValueError: there is none, or a string stands for the list.
        """
        parsed = self._parse(expressions)
        config = self.config
        length = config.max_tokens if config.pad_to_max else max(len(item.ids) for item in parsed)
        pad = self.tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
        ids = torch.full((len(parsed), length), pad, dtype=torch.int64)
        flags = torch.zeros(3, len(parsed), length, dtype=torch.bool)
        for row, item in enumerate(parsed):
            size = len(item.ids)
            ids[row, :size] = torch.tensor(item.ids)
            flags[:, row, :size] = torch.tensor([(True,) * size, item.static, item.motion])
        return TextBatch(ids, *flags)

    def split(self, expression: str) -> list[Word]:
        """Words of one expression with their groups, for display; positions refer to the normalised text."""
        return list(self._parse([expression])[0].words)

    def keep(self, expressions: Iterable[str], folder: Path) -> None:
        """Parse all of these now, or read what an earlier process made of them; none of them is parsed again.

        The parses are a file in `folder`, whose name holds a digest of everything that they depend on.

        Raises:
            UserError: as for a call; the file cannot be written.
        """
        texts = sorted({self._text(expression) for expression in expressions})
        digest = hashlib.sha256(json.dumps([texts, self.identity()]).encode()).hexdigest()[:16]
        path = folder / f"sentences-{digest}.json"
        with self._lock:
            found = _read_parses(path)
            if found is None:
                found = list(track(self._parse_new(texts), "sentences", total=len(texts)))
                _write_parses(path, found)
            self._kept.update(zip(texts, found, strict=True))

    def identity(self) -> str:
        """A digest of everything beside the text that a parse depends on, the rules of the split among it."""
        config = self.config
        settings = (RULES, config.split, config.max_tokens, config.overlong, parser_version(config.spacy_model))
        tokenizer = self.tokenizer.backend_tokenizer.to_str(), sorted(self.tokenizer.all_special_ids)
        return hashlib.sha256(json.dumps([settings, tokenizer]).encode()).hexdigest()

    def _parse(self, expressions: Sequence[str]) -> list[_Parsed]:
        if isinstance(expressions, str) or not expressions:
            raise ValueError(f"expected a non-empty list of expressions, found {expressions!r}")
        texts = [self._text(expression) for expression in expressions]
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._kept and text not in self._cache]
            self._cache.update(zip(new, self._parse_new(new), strict=True))
            found = [self._kept.get(text) or self._cache[text] for text in texts]
            while len(self._cache) > _CACHE_SIZE:
                del self._cache[next(iter(self._cache))]
        return found

    def _text(self, expression: object) -> str:
        if not isinstance(expression, str):
            raise TypeError(f"an expression must be text, found {expression!r}")
        if not expression.strip():
            raise UserError("the expression is empty; say in words what to segment")
        return " ".join(expression.lower().split()) if self.config.normalise else expression

    def _parse_new(self, texts: list[str]) -> Iterator[_Parsed]:
        if not texts:
            return
        config, special = self.config, set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        # verbose=False: a tokeniser that knows its model's length would warn where we cut or raise ourselves
        encoded = self.tokenizer(texts, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
        documents = parse(texts, config.spacy_model)
        rows = zip(texts, documents, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        for text, document, ids, offsets in rows:
            if len(ids) > config.max_tokens and config.overlong == "error":
                raise UserError(
                    f"the expression has {len(ids)} tokens, the limit is {config.max_tokens}; shorten it: {text[:60]!r}"
                )
            words = split_words(document, config.split)
            # a special token that is spelt out in the text is no word either
            spans = [(0, 0) if i in special else _trim(text, *o) for i, o in zip(ids, offsets, strict=True)]
            cut = slice(config.max_tokens)
            static, motion = token_groups(words, spans[cut])
            yield _Parsed(tuple(ids[cut]), static, motion, tuple(words))


def _write_parses(path: Path, parses: Sequence[_Parsed]) -> None:
    """A checksum, a line break, and the parses as JSON."""
    rows = [(p.ids, p.static, p.motion, [(w.text, w.start, w.end, w.group) for w in p.words]) for p in parses]
    body = json.dumps(rows, separators=(",", ":"))
    with whole_file(path) as part:
        part.write_text(f"{_checksum(body)}\n{body}", encoding="utf-8")


def _read_parses(path: Path) -> list[_Parsed] | None:
    """The parses that a file holds; None where there is none or it is damaged."""
    try:
        with open(path, encoding="utf-8", opener=regular) as file:
            checksum, body = file.read().split("\n", 1)
    except (OSError, ValueError):
        return None
    if checksum != _checksum(body):
        return None
    return [
        _Parsed(tuple(ids), tuple(static), tuple(motion), tuple(Word(*word) for word in words))
        for ids, static, motion, words in json.loads(body)
    ]


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the blanks at its ends: byte-level tokens carry the blank before their word."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, end - (len(piece) - len(piece.rstrip())))


def load_tokenizer(source: str | Path) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokeniser with RoBERTa's special tokens.

    Args:
        source: a `tokenizer.json`, a folder (`tokenizer.json`, or `vocab.json` and `merges.txt`), or the id
            of a model on the Hugging Face hub.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from huggingface_hub import snapshot_download
    from transformers import PreTrainedTokenizerFast, RobertaTokenizerFast

    path = Path(source)
    try:
        if not looks_local(source):  # not left to transformers, which makes an empty tokeniser of a hub out of reach
            path = Path(snapshot_download(str(source), allow_patterns=["tokenizer.json", "vocab.json", "merges.txt"]))
        file = path / "tokenizer.json" if path.is_dir() else path
        if file == path or file.exists():
            with open(file, "rb", opener=regular):
                return PreTrainedTokenizerFast(tokenizer_file=str(file), **SPECIAL_TOKENS)
        if not all((path / name).exists() for name in ("vocab.json", "merges.txt")):
            raise FileNotFoundError("the folder has neither tokenizer.json nor vocab.json and merges.txt")
        check_folder(path)
        tokenizer = RobertaTokenizerFast.from_pretrained(str(path), local_files_only=True)
        return cast("PreTrainedTokenizerFast", tokenizer)
    except Exception as error:  # the tokenizers library raises bare Exception for a file it cannot read
        raise UserError(
            f"cannot load a tokeniser from {str(source)!r} ({reason(error)}); "
            "give a tokenizer.json, a folder with one, or a model id on the Hugging Face hub"
        ) from error


def train_tokenizer(texts: Sequence[str], vocab_size: int = 4096) -> "PreTrainedTokenizerFast":
    """Byte-level BPE learnt from `texts`, with RoBERTa's special tokens at ids 0 (<s>) to 4 (<mask>).

    Every text can be encoded, as all 256 bytes are in the vocabulary. The first word is encoded like any
    other. `save_tokenizer` writes it to one file.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys(SPECIAL_TOKENS.values()))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < (least := len(special) + len(alphabet)):
        raise ValueError(f"vocab_size {vocab_size} is below {least}, the special tokens and the bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    end, start = [(token, special.index(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(end, start, trim_offsets=True, add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", path: Path) -> None:
    """Write one `tokenizer.json` that `load_tokenizer` reads back."""
    path.write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")  # its own writing hides errors


class FeatureResizer(nn.Module):
    """Text width -> model width, for words and sentence alike: linear, LayerNorm, dropout."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.1, eps: float = 1e-12) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, out_channels)
        self.layer_norm = nn.LayerNorm(out_channels, eps=eps)
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
        self.resizer = FeatureResizer(
            self.encoder.config.hidden_size, hidden_size, config.dropout, config.resizer_norm_eps
        )
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


def silent_text(language: LanguageEncoder, count: int) -> TextFeatures:
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
