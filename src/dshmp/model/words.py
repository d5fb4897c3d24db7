"""Section 3.1, decoupling the sentence: which words are static cues, which are motion cues.

The split runs once per expression, on the CPU; nothing here is learned. Three splits are offered:

- `paper`: nouns, adjectives and prepositions are static, verbs and adverbs are motion, the rest is neither;
- `release`: verbs and adverbs are motion, every other word (punctuation and auxiliaries too) is static;
- `dependency` (ours): as in the paper (numbers too are static), but what completes a verb goes with it, and so does
  its negation. By part of speech "moving left" and "moving right" have the same motion cue, as "left" is an adjective.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from dshmp.common.errors import UserError
from dshmp.common.processes import worker_pool
from dshmp.config import CueSplit
from dshmp.model.parser import PARSER, CueGroup, Word, load_parser, parse

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token


# Version of the rules by which a sentence becomes words, groups and tokens, here and in `TextTokenizer`. Raise it with
# any change of what they give: parses kept on disk are told apart by it.
RULES = 1


_apart: ProcessPoolExecutor | None = None


@contextlib.contextmanager
def splitting_apart() -> Iterator[None]:
    """Meanwhile `split_words` with the usual pipeline works in a process of its own, which begins now: it loads spaCy
    while this one loads torch and a model. Threads of one process would import one after the other."""
    global _apart
    with worker_pool(1, _warm) as _apart:
        _apart.submit(bool)  # a worker starts with the first task
        try:
            yield
        finally:
            with contextlib.suppress(BrokenProcessPool):
                _apart.submit(os._exit, 0)  # it has nothing to tidy up
            _apart = None


def _warm() -> None:
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # spaCy imports it where it can, for a second
    with contextlib.suppress(UserError):  # told when a sentence is there
        load_parser()


def split_words(texts: Sequence[str], how: CueSplit, parser: str = PARSER) -> Iterator[list[Word]]:
    """Per expression its words in order, each with its group, as the pipeline `parser` reads them. UserError where that
    is not installed."""
    if _apart is not None and parser == PARSER:
        with contextlib.suppress(BrokenProcessPool):  # it was killed, for its memory perhaps
            yield from _apart.submit(_split_all, texts, how, parser).result()
            return
    for document in parse(texts, parser):
        yield _split(document, how)


def noun_phrases(texts: Sequence[str], parser: str = PARSER) -> list[list[str]]:
    """Per expression what it calls its objects, in lower case, each once, without articles, pronouns, numbers, places
    and words that name anything: "a brown dog", "the second one that runs after the dog" -> ["brown dog"], ["dog"].
    UserError where the parser is not installed."""
    if _apart is not None and parser == PARSER:
        with contextlib.suppress(BrokenProcessPool):
            return _apart.submit(_find_phrases, texts, parser).result()
    return _find_phrases(texts, parser)


def _find_phrases(texts: Sequence[str], parser: str) -> list[list[str]]:
    # in lower case, as the tagger takes a capital for a name or, at the beginning, for a command ("Cow shaking head")
    return [_phrases(document) for document in parse([" ".join(text.lower().split()) for text in texts], parser)]


def _phrases(document: "Doc") -> list[str]:
    """Runs of static adjectives and nouns that end in a noun. spaCy's own noun chunks leave out short subjects and
    keep participles ("moving car")."""
    tokens = list(document)
    classes = [_class(token) for token in tokens]
    named = [
        kind if kind == "-" or (kind in "Na" and group == "static" and _names(token)) else " "
        for token, kind, group in zip(tokens, classes, _by_dependency(tokens), strict=True)
    ]
    runs = [document[slice(*run.span())].text for run in re.finditer("[Na][Na-]*(?<=N)", "".join(named))]
    return list(dict.fromkeys(runs))


def _names(token: "Token") -> bool:
    """Whether an adjective or a noun says what a thing is, not which of several or where."""
    compares = token.pos_ == "NUM" or token.tag_ in ("JJR", "JJS", "RBR", "RBS")
    return not compares and token.text not in _ANYTHING | _ORDER


def _split_all(*given: Any) -> list[list[Word]]:
    return list(split_words(*given))


def _split(document: "Doc", how: CueSplit) -> list[Word]:
    tokens = list(document)
    groups: list[CueGroup | None]
    if how == "dependency":
        groups = _by_dependency(tokens)
    elif how == "paper":
        groups = [_tag_group(token) for token in tokens]
    else:
        groups = ["motion" if token.pos_ in ("VERB", "ADV") else "static" for token in tokens]
    return [
        Word(token.text, token.idx, token.idx + len(token), group)
        for token, group in zip(tokens, groups, strict=True)
        if not token.is_space
    ]


def token_groups(words: Sequence[Word], offsets: Iterable[tuple[int, int]]) -> list[CueGroup | None]:
    """The groups of sub-word tokens, given their trimmed character spans: that of the word with the whole span, none
    for an empty span (a special token) and one across words ("don" in "don't", which is parsed as "do" and "n't")."""
    return [next((w.group for w in words if w.start <= start < end <= w.end), None) for start, end in offsets]


def _tag_group(token: "Token") -> CueGroup | None:
    if token.pos_ in ("VERB", "ADV"):
        return "motion"
    return "static" if token.pos_ in ("NOUN", "PROPN", "ADJ", "ADP") else None


# The dependency split. Every token gets a one-letter class, so that phrases are regular expressions over the string of
# classes. They rest on the word first and on its tag second, as the tagger errs on just these ("moves left slowly").


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WAYS = _words(  # W: always about motion
    "away forth clockwise counterclockwise anticlockwise sideways upstream downstream uphill downhill aside "
    "motionless stationary"
)
_WAY_ENDINGS = ("ward", "wards")  # "leftward"; these end so too:
_NOT_WAYS = _words("toward towards award awards reward rewards coward cowards steward stewards")
_SIDES = _words("left right back")  # L: a direction, a place, or an adjective
_PARTICLES = _words("up down around round over off out apart together")  # D: a direction or a preposition
_SEQUENCE = _words("then afterwards")  # S: links one motion to the next; these do so before a verb only:
_BEFORE_A_VERB = _words("first before after while until")
_PATHS = _words("to toward towards from into onto through across past along")  # P: prepositions of a path
# E: what a phrase of place may end in, beside a direction
_PLACES = _words("side sides top bottom front middle center centre edge corner direction directions end")
_RELATIVE = _words("that which who")
_DETERMINERS = _words("the a an its his her their my your our")  # t
_DEGREES = _words("far very most more same opposite")  # a, as adjectives are
_ANYTHING = _words(  # name no kind of object
    "object objects thing things one ones something anything everything nothing item items entity target shape shapes "
    "couple pair group bunch lot kind type sort part rest way place time direction frame view screen scene video camera"
)
_ORDER = _words(  # say which of several, or where
    "first second third fourth fifth last next other another same only several many few some all both each every "
    "leftmost rightmost topmost left right far near whole entire"
)
# Static words that nothing has to be known for: any object, which and how many, and places in the picture.
COMMON = (
    _ANYTHING
    | _ORDER
    | _PLACES
    | _SIDES
    | _PATHS
    | _RELATIVE
    | _words(
        "two three four five six what whatever upper lower image picture "
        "in on at of with by next beside behind under over between among"
    )
)
_STATES = _words(  # v: verbs that hold a place, so that "standing to the left" is a place
    "sit sits sitting sat seated stand stands standing stood lie lies lying lay stay stays staying stayed "
    "rest rests resting rested remain remains remaining wait waits waiting located placed"
)
_MOVES = _words(  # V: verbs that the tagger often takes for nouns
    "moves goes turns drifts spins rotates flies runs walks swims jumps hops rolls slides rises falls drops "
    "climbs comes floats bounces shakes swings shifts orbits zigzags oscillates trembles "
    "enters arrives departs stops shrinks grows"
)
_COMMANDS = _words("find show segment locate select highlight track")  # not about the scene, where they stand first
# participles that say how a thing looks
_PATTERNS = _words("striped spotted dotted checked checkered chequered banded freckled patterned colored coloured")
# after these "on the left" says which way, not where
_PASSAGES = _words("enter enters entering entered leave leaves leaving exit exits exiting exited view sight frame")
_NOT_VERBS = _words(  # nouns in -ing
    "building ceiling clothing duckling gosling sibling earring painting string wing thing something "
    "anything nothing everything wedding pudding being"
)
# phrases of motion; the second row with a verb of motion only: "a star in a circle" is a place
_FIXED, _MANNERS = (
    [phrase.split() for phrase in re.split(r",\s+", phrases)]
    for phrases in (
        """back and forth, to and fro, side to side, in and out, up and down, round and round, counter clockwise,
        anti clockwise""",
        """in circles, in a circle, in place, on the spot, in a line, in a straight line, in zigzags, in a zigzag,
        into view, out of view, into the frame, out of the frame, to a stop, to a halt, to rest""",
    )
)
_TAG_CLASSES = {"NOUN": "N", "PROPN": "N", "ADJ": "a", "NUM": "a", "ADV": "A", "ADP": "p", "PUNCT": ",", "CCONJ": ","}
# "to the left", "from the top left corner", "on the right"; not where a noun follows ("to the left cat")
_PLACE_PHRASE = re.compile(r"[Pp]t?[aDLE-]*[DLE](?![aDLE-]*N)")
# what may stand between a verb and a direction that completes it: other directions, adverbs, commas, "and"
# (atomic and possessive, so that a long chain of directions cannot make it backtrack without end)
_BETWEEN = r"(?:[WDLSA,-]|(?>[Pp]t?[aDLE-]*[DLE]))*+$"


def _by_dependency(tokens: "list[Token]") -> list[CueGroup | None]:
    classes = _with_phrases(tokens, "".join(_class(token) for token in tokens))
    groups = [_dependent_group(tokens, classes, index) for index in range(len(tokens))]
    for match in _PLACE_PHRASE.finditer(classes):
        span = range(*match.span())
        path = match[0][0] == "P" or tokens[span[-1]].lower_.startswith("direction")
        path = path and _anchored(tokens, classes, span[0], moving=True)
        passage = span[0] > 0 and tokens[span[0] - 1].lower_ in _PASSAGES
        if path or passage or tokens[span[0]].lower_ in ("toward", "towards"):
            groups[span.start : span.stop] = ["motion"] * len(span)
        else:
            groups[span.start : span.stop] = [None if classes[i] in "t-" else "static" for i in span]
    return groups


def _with_phrases(tokens: "list[Token]", classes: str) -> str:
    """`classes` with every word of a phrase of motion as W."""
    spoken = [i for i, token in enumerate(tokens) if token.text not in "-–" and not token.is_space]
    for phrase in _FIXED + _MANNERS:
        for at in range(len(spoken) - len(phrase) + 1):
            start, stop = spoken[at], spoken[at + len(phrase) - 1] + 1
            found = [tokens[i].lower_ for i in spoken[at : at + len(phrase)]] == phrase
            if found and (phrase in _FIXED or _anchored(tokens, classes, start, moving=True)):
                classes = classes[:start] + "W" * (stop - start) + classes[stop:]
    return classes


def _class(token: "Token") -> str:
    """One letter; the sets above name most of them. V verb, N noun, A adverb, p other preposition."""
    word, before, after = token.lower_, _neighbour(token, -1), _neighbour(token, 1)
    if word in _WAYS or (word.endswith(_WAY_ENDINGS) and word not in _NOT_WAYS):
        return "W"
    for letter, known in (("S", _SEQUENCE), ("L", _SIDES), ("D", _PARTICLES)):
        if word in known:
            return letter
    if before is None and after is not None and word in _COMMANDS:
        return "."
    if _is_verb(token):
        return "v" if word in _STATES else "V"
    if word in _BEFORE_A_VERB and after is not None and _is_verb(after):
        return "a" if before is not None and before.lower_ in _DETERMINERS else "S"
    if word in _PATHS and not (token.tag_ == "TO" and after is not None and _is_verb(after)):
        return "P"
    if word in ("one", "ones"):
        return "a" if after is not None and after.pos_ == "NOUN" and not _is_verb(after) else "N"
    for letter, known in (("t", _DETERMINERS), ("E", _PLACES), ("a", _DEGREES), ("-", frozenset("-–"))):
        if word in known:
            return letter
    if token.pos_ == "VERB" or (token.pos_ == "ADV" and token.dep_ == "amod" and not word.endswith("ly")):
        return "a"
    return _TAG_CLASSES.get(token.pos_, ".")


def _neighbour(token: "Token", step: int) -> "Token | None":
    return token.nbor(step) if 0 <= token.i + step < len(token.doc) else None


def _is_verb(token: "Token") -> bool:
    """By the tag or, as short expressions mislead the tagger, by the form and the place of the word."""
    word, before = token.lower_, _neighbour(token, -1)
    if word in _WAYS | _SIDES | _PARTICLES or word.endswith(_WAY_ENDINGS):
        return False
    if token.pos_ == "VERB":
        return word not in _PATTERNS and not (token.dep_ == "amod" and not word.endswith("ing"))
    if before is not None and before.pos_ == "ADV":
        before = _neighbour(before, -1)
    relative = before is not None and before.i > 0 and before.lower_ in _RELATIVE and before.pos_ != "DET"
    if relative and token.pos_ in ("NOUN", "PROPN", "ADJ"):
        return True  # "the discs that dash": neither a noun nor an adjective follows a relative pronoun
    noun = before is not None and (before.pos_ in ("DET", "ADP") or before.lower_ in _DETERMINERS)
    formed = word in _MOVES or (word.endswith("ing") and len(word) > 4 and word not in _NOT_VERBS)
    return token.pos_ in ("NOUN", "PROPN", "AUX") and formed and not noun


def _dependent_group(tokens: "list[Token]", classes: str, index: int) -> CueGroup | None:
    """Group of a word outside every place phrase and fixed phrase."""
    token, kind = tokens[index], classes[index]
    if kind in "WSVv" or (token.dep_ == "neg" and _is_verb(token.head)):
        return "motion"  # "not moving" is another motion than "moving"
    if kind == "P":
        return "motion" if _anchored(tokens, classes, index, moving=True) else "static"
    if kind == "p" and _is_verb(token.head) and not any(token.children):
        return "motion"  # "walks in": a particle, it has no object
    if kind in "LD":
        return _direction_group(tokens, classes, index)
    if kind in "Na" and (token.pos_ != "ADV" or token.dep_ == "amod"):
        return "static"
    return None if token.pos_ == "VERB" else _tag_group(token)


def _direction_group(tokens: "list[Token]", classes: str, index: int) -> CueGroup | None:
    token, before, after = tokens[index], classes[:index], classes[index + 1 :]
    completes = token.dep_ in ("advmod", "prt") and _is_verb(token.head)
    names = classes[index] == "L" and re.match(r"[aLE-]*N", after) is not None and not completes
    if names or re.search(r"t[aDLE-]*$", before):
        return "static"  # "the left cat", "its right wing", "the left"
    then = re.match(r"[,-]*S", after) is not None
    if completes or then or "N" not in classes or _anchored(tokens, classes, index, classes[index] == "L"):
        return "motion"
    return _tag_group(token)


def _anchored(tokens: "list[Token]", classes: str, index: int, moving: bool) -> bool:
    """Whether the word at `index` completes a verb, one just before it or its governor in the tree; `moving` leaves out
    verbs that hold a place."""
    verbs = "VS" if moving else "VvS"
    if re.search(f"[{verbs}]{_BETWEEN}", classes[:index]):
        return True
    governor = tokens[index].head
    while classes[governor.i] in "WDLP" and governor.head.i != governor.i:
        governor = governor.head
    return governor.i < index and classes[governor.i] in verbs
