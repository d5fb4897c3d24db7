"""From sentences to sub-word tokens, each of them static, motion or neither (section 3.1)."""

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor

from dshmp.config import LanguageConfig
from dshmp.errors import UserError
from dshmp.files import atomic_write, reason, regular
from dshmp.hub import check_folder, looks_local
from dshmp.model.words import RULES, Word, split_words, token_groups
from dshmp.parser import parse, parser_version
from dshmp.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
    with atomic_write(path) as part:
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
