"""The words of a clip seen in a mirror: left and right change places, where that is certain.

A sentence that is kept must stay true as well: "the dog left the room" does, "top left the dog" (meant: on the left)
does not. Both are therefore read by rules that need proof, and whatever has none is uncertain.
"""

import re
from difflib import get_close_matches
from typing import Literal

Reading = Literal["side", "other", "unsure"]


def _any(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


_CIRCLING = r"(?:(?:counter|anti|contra)[- ]{0,3})?clock[- ]{0,3}wise"
# A dash that joins no words, or a slash, parts them like a comma.
_PAUSE = r"[–—/|]|-(?![^\s-])|(?<![^\s-])-"
# Words and punctuation; what is written with a hyphen falls apart, but for these.
_TOKEN = re.compile(rf"left-overs?|{_CIRCLING}|[a-z]+|[0-9]+|[,.:;!?()]|{_PAUSE}", re.IGNORECASE | re.ASCII)
_CORNER = "(?:top|bottom|upper|lower|far|front|back|mid|middle)"
_LONG_END = "(?:most|wards?|hand|handed|hander|side|corner)"
# Words that are mirrored whatever stands around them; "left" and "right" alone are not among them.
_SIDED = re.compile(rf"({_CORNER})?(left|right)({_LONG_END}|est|er|ish|y)?")
_UNSIDED = re.compile(
    r"(?:b|f|up|al|out|down|forth|copy|birth|shipw?|playw?)right\w*|right(?:s|ly|ful\w*|eous\w*|ed|ing)|cleft\w*|left-?overs?"
)
# Sides that cannot be mirrored by a change of words, or not surely.
_NO_MIRROR = re.compile(
    r"\b(?:[lr]|[ew] (?:side|corner|end)|lft|lt|rt|rgt|rite|[lr]h[sd]?|a?c?cw|o\W{0,2}clock|[ns]\W?[ew]|"
    r"(?:north|south)?-?(?:east|west)(?:side|most|erly|ern(?:er|most)?|wards?|bound)?|"
    r"port(?:side)?|starboard|larboard|southpaws?|nearside|offside|"
    rf"(?!{_CIRCLING}\b)(?:counter|anti|contra)\W{{0,3}}clock\w*)\b",
    re.IGNORECASE,
)
_OPPOSITE = {"left": "right", "right": "left"}
_CIRCLES = "clockwise", "counterclockwise"


def mirror_sentence(text: str) -> str | None:
    """The sentence that is true of the mirror image: left and right change places, and so does the sense of circling.

    "Left" as a verb or a remainder ("the dog left the room", "was left behind") and "right" in the sense of exactly
    or correct ("the cat right behind the dog", "a right angle") are kept, and so is case. Mirrored twice a sentence
    is itself again, but for the spelling of "clockwise" and "anticlockwise". It is None where the sentence or its
    mirror image can be read in two ways ("dog left", "walking right after it"), speaks of sides in other words
    ("starboard", "at 3 o'clock") or misspells them ("rigth").
    """
    mirrored = _mirror(text)
    back = None if mirrored is None else _mirror(mirrored)
    return mirrored if back is not None and _one_spelling(back) == _one_spelling(text) else None


def _one_spelling(text: str) -> str:
    return re.sub(_CIRCLING, lambda match: _CIRCLES[not match[0].startswith("cl")], text.lower())


def _mirror(text: str) -> str | None:
    if _NO_MIRROR.search(text):
        return None
    tokens = list(_TOKEN.finditer(text))
    words = ["," if re.fullmatch(_PAUSE, token[0]) else token[0].lower() for token in tokens]
    parts, end = [], 0
    for index, (token, word) in enumerate(zip(tokens, words, strict=True)):
        mirrored = _mirror_word(word)
        if mirrored is None:
            if _suspect(word):
                return None
            continue
        reading = _reading(words, index) if word in _OPPOSITE else "side"
        if reading == "unsure":
            return None
        if reading == "side":
            case = str.upper if token[0].isupper() else str.capitalize if token[0][0].isupper() else str.lower
            parts += [text[end : token.start()], case(mirrored)]
            end = token.end()
    return "".join([*parts, text[end:]])


def _mirror_word(word: str) -> str | None:
    if re.fullmatch(_CIRCLING, word):
        return _CIRCLES[word.startswith("cl")]
    match = _SIDED.fullmatch(word)
    return f"{match[1] or ''}{_OPPOSITE[match[2]]}{match[3] or ''}" if match else None


# The sides themselves, and English words that are near too.
_ENGLISH = _any(
    "left clef cleft deft eft heft leaf lect lefts lent lest let lets lett lift loft theft weft "
    "right aright bight bright dight eight fight freight fright hight light might night rig righto rights sight "
    "straight tight wight"
)
_AFFIXED = re.compile(rf"({_CORNER})?([a-z]+?)({_LONG_END})?")


def _suspect(word: str) -> bool:
    """Whether a word may be a misspelt side: "rigth", "lefmost", "leftbehind", "clockwize"."""
    if "left" in word or "right" in word:
        return not _UNSIDED.fullmatch(word)
    match = _AFFIXED.fullmatch(word)
    if "clockw" in word or match is None or re.fullmatch(_ENGLISH, match[2]):
        return "clockw" in word and word != "clockwork"
    return bool(get_close_matches(match[2], _OPPOSITE, cutoff=0.75))


# The words around decide how "left" and "right" are read; a tagger errs on just these two ("moving left": a verb).
# First what the rules are made of.
_TRAVELS = "(?:go|goes|going|(?:mov|slid|glid)(?:e|es|ing)|(?:head|drift|travel|proceed)(?:s|ing)?)"
_STANDS = "(?:(?:stand|stay|wait|rest|perch|hang|crouch|kneel)(?:s|ing)?|sits?|sitting|lies?|lying|lays?|laying|parked)"
_MOVES = _any(
    "walk run jump hop leap dash dart bolt zip rush march step turn spin roll crawl swim float sail climb veer swerve "
    "shift come exit enter leave look stare gaze face lean point tilt bend race dance charge trot gallop swing"
)
# any gerund; the nouns that end so are left out
_GERUND = (
    "(?!(?:some|any|every|no)?thing|wing|king|ring|string|(?:pain|build|ceil|cloth|duckl|sibl|gosl|wedd|pudd|earr)ing)"
    "[a-z]{2,}ing"
)
_GOES = f"(?:{_TRAVELS}|{_MOVES}s?|flies|dashes|rushes|marches|{_GERUND})"
_WENT = _any(
    "went gone ran flew swam slid swung came leapt moved headed drifted travelled traveled glided proceeded turned "
    "walked jumped hopped dashed darted bolted zipped rolled stepped looked faced leaned pointed tilted shifted veered"
)
_HOW = r"(?: (?:[a-z]+ly|straight|back|forward|away|off|out|over|around|further))?"
_GOING = f"(?:{_GOES}|{_WENT}){_HOW}"
_SIDEWAYS = "(?:(?:to|towards?) the )?(?:(?:left|right)(?:most)?|up|down|top|bottom|(?!to|for|back|after)[a-z]+wards?)"
_WAY = f"(?:{_SIDEWAYS}|back|forwards?|backwards?)"
_THEN = r"(?: ,)?(?: (?:and|or|to))?(?: then)?"
_START = "(?:^|[,.:;!?(])"
_TO = _any("to towards? on at from in")
# "walks to the right and left", "sits down, then left": a last way, or off
_ENOUGH = (
    f"(?:{_TO} the [a-z]+|back|{_WENT} right|(?:for|back|after)wards?|up and down|"
    f"(?:{_STANDS}|(?:[a-z]+tt|pick|bend|wak|tak|lift|hold|look|com)(?:ing|s)).* (?:up|down))(?: ,)?(?: and)?(?: then)?"
)
_ARTICLES = _any("the a an his her its their my our your this these those another")
_BESIDE = _any("to towards? on at from in of with near by behind beside under")
_FAR = _any("far very extreme upper lower farthest furthest slightly")
_OWNED = _any("a an his her their my our your")
_OF_SOMEBODY = f"{_TO} (?:[a-z]+ ){{0,2}}(?!(?:that|what|it|he|she|who) )[a-z]+ s"  # "on the man's"
_BODY = _any("hands? arms? legs? foot feet eyes? ears? paws? wings? cheek shoulder knee shoe turns? handed hander most")
_PLACES = _any(
    "side sided half part portion corner edge end lane front rear back top bottom row column one ones middle center "
    "centre direction directions"
)
_CORNERS = _any("top bottom upper lower front back middle mid center centre far")
_INNER = _any("front back rear middle mid center centre")  # "in the middle right behind the dog"
_FIRST_CORNER = f"{_START} ?(?:{_TO} (?:the )?)?{_CORNERS}"  # "top left the dog", with nobody yet to leave
_BE = _any("is are was were be been being am get gets got getting")
_PERFECT = _any("has have had having ve he she they we who already never")
_LEFT_SO = _any("behind over alone out unattended untouched")
_AFTER_LEAVING = _any("first last early from before after when while to with without through by as together")
_EXACTLY = _any("after before behind under underneath above below beneath between") + "|in front of|in between"
_EXACTLY_THERE = f"(?:{_EXACTLY}) (?:{_ARTICLES}|him|it|them|me|you|each|{_GERUND})|in the (?:middle|center|centre)"
_NEARLY = (
    f"(?:{_EXACTLY}|in front|at|when|as|while|by|near|against|through|past|over|around|inside|outside|into|onto|off|"
    "out|about|across|along|opposite|until|up to|up against)"
)
_BY = "next to|beside|alongside|adjacent|where"
_HERE = "(?:now|there|here|away(?! from))"
_CLOSE = f"(?:{_HERE}|{_BY})"
_LOOSE = _any("in on up down to from away back")
_CORRECT = _any("answer answers way time moment order size amount kind thing things place position")
_STOP = "(?:$|[,.:;!)]|and|or|but)"
_END = rf"(?:{_STOP}|\?|then)"
# what nothing stands to the left of in so few words
_THE_SCENE = f"{_ARTICLES} (?:room|frame|scene|view|shot|stage)(?:$| (?:{_END}|{_AFTER_LEAVING}))"


def _rule(reading: Reading, before: str = "", after: str = "") -> tuple[Reading, re.Pattern[str], re.Pattern[str]]:
    """A reading for words before that end so and words after that begin so."""
    ends = rf"(?:^|.* )(?:{before})$" if before else ""
    return reading, re.compile(ends), re.compile(rf"(?:{after})(?![a-z])" if after else "")


_RULES = {
    "left": (
        _rule("unsure", f"{_TO} (?:he|she|they|it|you)|{_BESIDE} (?:that|which)"),
        _rule("unsure", f"{_PERFECT}|that|which", f"{_BODY}|{_PLACES}"),
        _rule("side", after=_BODY),
        _rule("unsure", "her|him|it|them", _ARTICLES),
        _rule("side", f"{_TO}(?: the)?|{_OF_SOMEBODY}"),
        _rule("other", _BE, f"{_LEFT_SO}(?: (?:by|when|while|after)| ?{_END})"),
        _rule("side", f"{_FAR}|{_FIRST_CORNER}"),
        _rule("unsure", f"{_BE}|s|m|re", _LEFT_SO),
        _rule("unsure", _GOING, f"{_ARTICLES}|early"),
        _rule("unsure", "being|getting"),
        _rule("unsure", f"{_STANDS}|{_GERUND}", "alone|unattended|untouched"),
        _rule("side", _GOING),
        _rule("unsure", after=_LEFT_SO),
        _rule("unsure", f"{_any('what whatever nothing all everything much little only')}.*", "of"),
        _rule("side", after="of"),
        _rule("other", f"{_PERFECT}|.+ (?:that|which)", f"{_ARTICLES}|{_AFTER_LEAVING}|{_END}"),
        _rule("unsure", _PERFECT),
        _rule("side", "the|its"),
        _rule("unsure", _CORNERS, _ARTICLES),
        _rule("other", after=_THE_SCENE),
        _rule("unsure", after=f"{_ARTICLES}|him|them|us|me"),
        _rule("side", f"{_TRAVELS} (?:{_SIDEWAYS}{_THEN} )*{_SIDEWAYS}(?: ,)?(?: and)? then"),
        _rule("unsure", _ENOUGH, f"(?!(?:and |, )?then ){_END}"),
        _rule("side", f"{_GOES} (?:.* )?{_WAY}{_THEN}|right(?: ,| and| or| to| then)+|{_OWNED}|^|[(]"),
        _rule("side", after=_PLACES),
        _rule("side", "^(?:[a-z]+ ){1,3},", "$"),
        _rule("unsure", f"in (?:the )?{_INNER}"),
        _rule("side", _CORNERS, _END),
    ),
    "right": (
        _rule("other", "a", "angle|triangle"),
        _rule("other", after="angled|triangles|of way"),
        _rule("unsure", after="angles?|triangle"),
        _rule("other", f"^|{_BE}|turned|flipped|placed", f"side up ?{_END}"),
        _rule("unsure", after="side up"),
        _rule("side", _TRAVELS, f"(?:after|before) [a-z]+ing {_SIDEWAYS}"),
        _rule("side", after=f"(?:to|and|or|then) {_SIDEWAYS}"),
        _rule("unsure", after=rf"{_CORRECT}|\?"),
        _rule("unsure", f"{_TO} (?:the )?{_INNER}", f"{_NEARLY}|{_CLOSE}|{_LOOSE}"),
        _rule("side", f"the|its|{_FAR}|{_FIRST_CORNER}"),
        _rule("unsure", f"{_TO}|{_OWNED}|{_CORNERS}", f"{_NEARLY}|{_CLOSE}"),
        _rule("side", f"{_TO}(?: the)?|{_OWNED}|{_OF_SOMEBODY}"),
        _rule("other", after=_HERE),
        _rule("other", f"{_STANDS}|{_GERUND}", _BY),
        _rule("other", _STANDS, _EXACTLY_THERE),
        _rule("unsure", _GOING, f"{_NEARLY}|{_LOOSE}"),
        _rule("other", f"(?:{_ARTICLES}|one|ones) .+", f"{_EXACTLY_THERE}|{_BY}"),
        _rule("other", "^", f"(?:after|before|in between) {_ARTICLES}|in the (?:middle|center|centre)"),
        _rule("unsure", after=f"{_NEARLY}|{_BY}"),
        _rule("side", _START, "back"),
        _rule("unsure", after=_LOOSE),
        _rule("side", after=f"{_BODY}|{_PLACES}|of"),
        _rule("other", "(?:looks?|seems?|feels?) all", _END),
        _rule("unsure", "all"),
        _rule("side", _GOING, "then (?!and)[a-z]+"),
        _rule("unsure", after="then"),
        _rule("side", f"{_GOING}|(?:.* )?{_WAY}{_THEN}"),
        _rule("unsure", f"it|that|what|which|just|not|do|does|done|did|quite|exactly|yes|ok|s|m|re|{_BE}"),
        _rule("side", "^|[(]"),
        _rule("side", after=_STOP),
    ),
}


def _reading(words: list[str], index: int) -> Reading:
    """How the "left" or "right" at `index` is read: by the first rule that fits."""
    before, after = " ".join(words[:index]), " ".join(words[index + 1 :])
    fits = (reading for reading, ends, begins in _RULES[words[index]] if ends.match(before) and begins.match(after))
    return next(fits, "unsure")
