"""From sentences to sub-word tokens, each of them static, motion or neither (section 3.1)."""

import hashlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dshmp.common import limits
from dshmp.common.errors import UserError
from dshmp.common.files import atomic_write, reason, regular
from dshmp.common.hub import looks_local
from dshmp.common.progress import track
from dshmp.config import ModelConfig
from dshmp.model.parser import CueGroup, Word, parser_version
from dshmp.model.words import RULES, split_words, token_groups

log = logging.getLogger(__name__)


SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LEARNT = 8192  # tokens at most of a vocabulary that was learnt with a model, from its own sentences
UNKNOWN = ("<unk>", "[UNK]")  # stands for a word, unlike other special tokens

# The parts of byte-level BPE (RoBERTa, ModernBERT), WordPiece (BERT) and SentencePiece's Unigram; others fail on some
# texts, or make them longer without end
_KINDS: dict[str, set[str]] = {
    "normalizer": {"none", "BertNormalizer", "Lowercase", "NFC", "NFKC", "NFD", "StripAccents", "Precompiled"},
    "pre_tokenizer": {"ByteLevel", "BertPreTokenizer", "Metaspace", "WhitespaceSplit"},
    "model": {"BPE", "WordPiece", "Unigram"},
    "post_processor": {"RobertaProcessing", "TemplateProcessing", "BertProcessing", "ByteLevel"},
}


@dataclass(frozen=True)
class TextBatch:
    """Expressions as sub-word tokens, padded to one length L."""

    input_ids: Tensor  # int64 (B, L)
    mask: Tensor  # bool (B, L), True for tokens, <s> and </s> included, False for padding
    static: Tensor  # bool (B, L), tokens of static words
    motion: Tensor  # bool (B, L), tokens of motion words


class _Parsed(NamedTuple):
    """One expression: token ids and the groups of its tokens, cut to the limit, not padded, and its words."""

    ids: list[int]
    groups: list[CueGroup | None]
    words: list[Word]


class TextTokenizer:
    """Expressions -> `TextBatch`. Each expression is parsed once; later calls take it from memory."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config = config.language
        self.release = config.release
        self.tokenizer = tokenizer
        self._cache: dict[str, _Parsed] = {}
        self._lock = threading.Lock()  # the tokeniser may not be used by two threads at once

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}  # which does not go along

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __call__(self, expressions: Sequence[str]) -> TextBatch:
        """Tokenise a batch; UserError where one is blank or, unless `overlong` is "cut", longer than `max_tokens`."""
        parsed, release = self._parse(expressions), self.release
        length = self.config.max_tokens if release.pad_to_max else max(len(item.ids) for item in parsed)
        pad = self.config.encoder.pad_token_id if release.pad_token_id is None else release.pad_token_id
        ids = torch.tensor([item.ids + [pad] * (length - len(item.ids)) for item in parsed])
        mask = torch.arange(length) < torch.tensor([[len(item.ids)] for item in parsed])
        groups = [item.groups + [None] * (length - len(item.ids)) for item in parsed]
        static, motion = (torch.tensor([[g == name for g in row] for row in groups]) for name in ("static", "motion"))
        return TextBatch(ids, mask, static, motion)

    def split(self, expression: str) -> list[Word]:
        """Words of one expression with their groups, for display; positions refer to the normalised text."""
        return list(self._parse([expression])[0].words)

    def unknown(self, expression: str) -> list[Word]:
        """Words of static and motion cues that the model has never read: those that are several tokens where the
        tokeniser was learnt with the model. A larger vocabulary comes from text at large, which has all words."""
        if self.tokenizer.get_vocab_size() > LEARNT:
            return []
        words = [word for word in self.split(expression) if word.group and word.text.isalpha()]
        special = special_ids(self.tokenizer)
        with self._lock:
            pieces = [self.tokenizer.encode(word.text).ids for word in words]
        return [word for word, ids in zip(words, pieces, strict=True) if len(set(ids) - special) > 1]

    def keep(self, expressions: Iterable[str], folder: Path) -> None:
        """Parse all of these now, and never again: the parses are a file in `folder`, named by a digest of everything
        that they depend on."""
        texts = sorted({self._text(expression) for expression in expressions})
        path = folder / f"sentences-{_digest([texts, self.identity()])[:16]}.json"
        with self._lock:
            found = _read_parses(path)
            if found is None:
                found = list(track(self._parse_new(texts), "sentences", total=len(texts)))
                with atomic_write(path) as part:
                    part.write_text(json.dumps([_digest(found), found]), encoding="utf-8")
            self._cache.update(zip(texts, found, strict=True))

    def identity(self) -> str:
        """A digest of everything beside the text that a parse depends on, the rules of the split among it."""
        config = self.config
        settings = (RULES, config.split, config.max_tokens, self.release.overlong, parser_version(config.spacy_model))
        return _digest([settings, (self.tokenizer.to_str(), sorted(special_ids(self.tokenizer)))])

    def check(self, expression: str) -> None:
        """UserError where the model cannot read this sentence; TypeError where it is no text."""
        self._parse([expression])

    def _parse(self, expressions: Sequence[str]) -> list[_Parsed]:
        texts = [self._text(expression) for expression in expressions]
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._cache]
            self._cache.update(zip(new, self._parse_new(new), strict=True))
            return [self._cache[text] for text in texts]

    def _text(self, expression: str) -> str:
        if not isinstance(expression, str):
            raise TypeError(f"an expression must be a text, not {type(expression).__name__}")
        if len(expression) > limits.SENTENCE:
            if self.release.overlong == "error":
                fault = f"the expression has {len(expression):,} characters, the limit is {limits.SENTENCE:,}"
                raise UserError(f"{fault}; shorten it: {expression[:60]!r}")
            expression = expression[: limits.SENTENCE]
        if any("\ud800" <= letter <= "\udfff" for letter in expression):
            raise UserError(f"the expression holds half a character (a lone surrogate): {expression[:60]!r}")
        if not expression.strip():
            raise UserError("the expression is empty; say in words what to segment")
        return " ".join(expression.lower().split()) if self.config.normalise else expression

    def _parse_new(self, texts: list[str]) -> Iterator[_Parsed]:
        if not texts:
            return
        config = self.config
        special = special_ids(self.tokenizer) - {self.tokenizer.token_to_id(token) for token in UNKNOWN}
        encodings, split = self.tokenizer.encode_batch(texts), split_words(texts, config.split, config.spacy_model)
        for text, words, encoding in zip(texts, split, encodings, strict=True):
            ids, offsets = encoding.ids, encoding.offsets
            if len(ids) > config.max_tokens:
                fault = f"the expression has {len(ids)} tokens, the limit is {config.max_tokens}"
                if self.release.overlong == "error":
                    raise UserError(f"{fault}; shorten it: {text[:60]!r}")
                log.warning("%s; only its beginning is read: %r", fault, text[:60])
            # a special token that is spelt out in the text is no word either
            spans = [(0, 0) if i in special else _trim(text, *o) for i, o in zip(ids, offsets, strict=True)]
            cut = slice(config.max_tokens)
            yield _Parsed(ids[cut], token_groups(words, spans[cut]), words)


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Tokens that stand for no text."""
    return {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _read_parses(path: Path) -> list[_Parsed] | None:
    """The parses that a file holds after their digest; None where there is none or it is damaged."""
    try:
        with open(path, encoding="utf-8", opener=regular) as file:
            digest, rows = json.load(file)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    parses = (_Parsed(ids, groups, [Word(*word) for word in words]) for ids, groups, words in rows)
    return list(parses) if digest == _digest(rows) else None


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the blanks at its ends: byte-level tokens carry the blank before their word."""
    start = end - len(text[start:end].lstrip())
    return start, start + len(text[start:end].strip())


def _kinds(part: dict[str, Any] | None) -> list[str]:
    """The kinds of a tokeniser's part, those of a sequence one by one."""
    if part is None or part["type"] != "Sequence":
        return [part["type"] if part else "none"]
    (inner,) = (value for key, value in part.items() if key != "type")
    return [kind for each in inner for kind in _kinds(each)]


def load_tokenizer(source: str | Path) -> Tokenizer:
    """A text encoder's tokeniser (byte-level BPE, WordPiece, Unigram) from a `tokenizer.json`, a folder (with that, or
    RoBERTa's `vocab.json` and `merges.txt`), or a model on the Hugging Face hub; UserError if it cannot be read."""
    path = Path(source)
    try:
        if not looks_local(source):  # not left to transformers, which makes an empty tokeniser of a hub out of reach
            from huggingface_hub import snapshot_download

            path = Path(snapshot_download(str(source), allow_patterns=["tokenizer.json", "vocab.json", "merges.txt"]))
        file = path / "tokenizer.json" if path.is_dir() else path
        if file == path or file.exists():
            with open(file, "rb", opener=regular):
                tokenizer = Tokenizer.from_file(str(file))
            parts = json.loads(tokenizer.to_str())
            for part, kinds in _KINDS.items():
                if wrong := [kind for kind in _kinds(parts[part]) if kind not in kinds]:
                    raise ValueError(f"its {part} is a {wrong[0]}, not {' or '.join(sorted(kinds))}")
            tokenizer.no_truncation()
            tokenizer.no_padding()
            known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
            own = [token for token in SPECIAL_TOKENS if token not in known]
            tokenizer.add_special_tokens([token for token in own if tokenizer.token_to_id(token) is not None])
            return tokenizer
        if not all((path / name).exists() for name in ("vocab.json", "merges.txt")):
            raise FileNotFoundError("the folder has neither tokenizer.json nor vocab.json and merges.txt")
        from transformers import RobertaTokenizerFast

        return cast(Tokenizer, RobertaTokenizerFast.from_pretrained(str(path), local_files_only=True).backend_tokenizer)
    except BaseException as error:  # the tokenizers library raises bare Exception, or its own panic beside that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        mend = "give a tokenizer.json, a folder with one, or a model id on the Hugging Face hub"
        raise UserError(f"cannot load a tokeniser from {str(source)!r} ({reason(error)}); {mend}") from error


def train_tokenizer(texts: Sequence[str], vocab_size: int = 4096) -> Tokenizer:
    """Byte-level BPE learnt from `texts`, with RoBERTa's special tokens at ids 0 (<s>) to 4 (<mask>) and all 256 bytes,
    so that every text can be encoded. The first word is encoded like any other."""
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < (least := len(SPECIAL_TOKENS) + len(alphabet)):
        raise ValueError(f"vocab_size {vocab_size} is below {least}, the special tokens and the bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    end, start = [(token, special.index(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(end, start, trim_offsets=True, add_prefix_space=True)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write one `tokenizer.json` that `load_tokenizer` reads back."""
    path.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")  # its own writing hides errors
