"""Expressions of the synthetic data set: what they mean, which objects they mean, and how they are worded.

Styles of wording: "plain" is used everywhere; "phrasing" (sentence frames that training never shows, from known words)
and "words" (synonyms that training never shows) only in the test split; "footage" in clips of that family alone.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from dshmp.synthetic.motions import DIRECTIONS, GROUPS, OPPOSITE, Motion, reading

Style = Literal["plain", "phrasing", "words", "footage"]
Form = Literal["base", "third", "gerund"]
FORMS: tuple[Form, ...] = ("base", "third", "gerund")
Static = tuple[tuple[str, str], ...]  # (attribute, value) pairs, e.g. (("colour", "red"), ("shape", "disc"))


@dataclass(frozen=True)
class Look:
    """The static attributes of an object; of sizes there are small, medium and large. Equal ones are drawn alike."""

    shape: str
    colour: str
    texture: str
    size: str


@dataclass(frozen=True)
class Meaning:
    """What an expression says: static description, claim on the motion ("" for none), description of the other object
    of a relative motion."""

    static: Static
    claim: str = ""
    other: Static | None = None


@dataclass(frozen=True)
class Resolved:
    """Objects by index: those that fit the static words, those meant, those people could disagree about."""

    static: tuple[int, ...]
    meant: tuple[int, ...]
    doubtful: tuple[int, ...]


def fits(look: Look, static: Static) -> bool:
    return all(getattr(look, attribute) == value for attribute, value in static)


def resolve(meaning: Meaning, looks: Sequence[Look], motions: Sequence[Motion]) -> Resolved:
    answers: dict[int, bool | None] = {}
    for i, (look, motion) in enumerate(zip(looks, motions, strict=True)):
        if fits(look, meaning.static):
            answers[i] = reading(meaning.claim, motion) if meaning.claim else True
            if answers[i] and meaning.other is not None:
                answers[i] = motion.other is not None and fits(looks[motion.other], meaning.other)
    meant, doubtful = (tuple(i for i, each in answers.items() if each is answer) for answer in (True, None))
    return Resolved(tuple(answers), meant, doubtful)


def _table(text: str) -> dict[str, str]:
    return dict(entry.split("=") for entry in text.split())


# In each entry below, the words after the bar are held out of training.
NOUNS = _table("""
    disc=disc,circle,ball|orb square=square,box|block triangle=triangle|wedge star=star|asterisk
    heart=heart|valentine crescent=crescent,moon|sickle arrow=arrow,pointer|dart cross=cross,plus|crucifix
    ring=ring,donut|hoop hexagon=hexagon|nut

    oval=oval,ellipse|egg drop=drop,teardrop|tear lightning=lightning,zigzag|thunderbolt house=house,hut|cottage
    fish=fish|trout elbow=elbow,bracket|knee tee=tee,hammer|mallet cloud=cloud|fog
    bar=bar,stick|plank hourglass=hourglass,bowtie|sandglass mushroom=mushroom|toadstool tree=tree,fir|pine
""")
ADJECTIVES = _table("""
    red=red|scarlet orange=orange|amber yellow=yellow|golden green=green|emerald cyan=cyan,turquoise|aqua
    blue=blue|navy purple=purple,violet|lilac white=white,pale|ivory plain=plain|unpatterned striped=striped|banded
    spotted=spotted,dotted|freckled checked=checked,checkered|chequered
    ringed=ringed,rippled|concentric halved=halved,split|divided netted=netted,meshed|latticed
    small=small,little|tiny large=big,large|huge
""")
SHAPES = tuple(NOUNS)
ROUND = ("disc", "ring", "hexagon")  # spinning can hardly be seen on these
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
TEXTURES = ("plain", "striped", "spotted", "checked", "ringed", "halved", "netted")
GENERIC = "object,thing,one,shape|item"
SIDES = {
    "left": "left,to the left,leftwards,towards the left|leftward",
    "right": "right,to the right,rightwards,towards the right|rightward",
    "up": "up,upwards,to the top,towards the top|skyward",
    "down": "down,downwards,to the bottom,towards the bottom|groundward",
}
EDGES = {"left": "left", "right": "right", "up": "top", "down": "bottom"}

# Predicates: the word after * is the verb that is inflected. {a} {b} {c} are directions, {x} another object.
GO = "*move {a};*go {a};*head {a};*slide {a};*drift {a};*travel {a}|*glide {a};*proceed {a}"
PREDICATES = {
    "left": GO,
    "right": GO,
    "up": GO.replace("|", ";*rise;*climb;*rise;*ascend|*soar;"),
    "down": GO.replace("|", ";*fall;*drop;*sink;*descend|*plunge;"),
    "move": "*move",  # without saying where
    "still": "*stay still;*keep still;*stand still;*stay in place;*rest in place|*sit motionless;*idle",
    "spin": "*spin;*spin on the spot;*rotate in place;*spin around;*rotate on the spot|*twirl;*whirl",
    "hops": "*jump;*hop;*bounce;*jump up and down;*keep jumping;*hop again and again|*leap;*leap repeatedly",
    "hop": "*hop once;*jump once;*make a single hop;*make a single jump;*hop for a moment|*leap once",
    "twitch": "*twitch;*shake;*shake for a moment;*tremble;*twitch for a moment|*shudder;*jitter",
    "flash": "*get big for a moment;*grow for a moment;*pulse once;*grow for an instant|*puff up briefly",
    "grow": "*grow;*get bigger;*become larger;*expand;*grow slowly|*swell;*inflate",
    "shrink": "*shrink;*get smaller;*become smaller;*shrink slowly|*dwindle;*deflate",
    "appear": "*appear;*show up;suddenly *appear;*appear out of nowhere|*materialise",
    "vanish": "*vanish;*disappear;suddenly *vanish;suddenly *disappear|*evaporate",
    "circle": "*circle;*move in a circle;*go around in circles;*run in a circle;*make a loop|*revolve",
    "clockwise": "*circle clockwise;*move in a circle clockwise;*go around clockwise;*make a clockwise loop"
    "|*revolve clockwise",
    "counterclockwise": "*circle counterclockwise;*move in a circle counterclockwise;"
    "*go around counterclockwise;*make a counterclockwise loop|*circle anticlockwise;*revolve anticlockwise",
    "turn": "*turn a corner;*change direction once;*make a turn;*turn to the side|*veer off",
    "turn back": "*turn back;*come back;*reverse direction;*go away and *return;*turn around|*retreat",
    "to and fro": "*go back and forth;*move back and forth;*travel to and fro|*shuttle;*oscillate",
    "stop": "*stop;*come to a stop;*move and then *stop;*come to rest|*halt;*brake",
    "wait": "*start late;*wait before moving;*wait and then *move;*stay still at first|*linger before moving",
    "enter": "*enter;*come in;*enter the frame;*come into view|*arrive",
    "leave": "*leave;*exit;*leave the frame;*go out of view|*depart",
    "dash": "suddenly *dash;*make a quick dash;*dart for a moment;quickly *dash|*bolt;*zip",
    "follow": "*follow {x};*go after {x};*chase {x};*trail behind {x}|*pursue {x}",
    "pass": "*pass {x};*go past {x};*move past {x};*pass by {x}|*go beyond {x}",
    "meet": "*meet {x};*come up to {x};*approach {x};*come together with {x}|*near {x}",
    "part": "*move away from {x};*part from {x};*get away from {x};*go away from {x}|*flee {x}",
    "orbit": "*orbit {x};*circle around {x};*go around {x};*run around {x}|*revolve around {x}",
}
TOGETHER = {
    "meet": "*meet;*come together;*meet each other;*approach each other|*converge",
    "part": "*move apart;*part;*get away from each other;*go apart|*diverge",
}
_TWO = (
    "*move {a} then {b};*go {a} and then {b};*move {a} and then *go {b};first *go {a} then {b};"
    "*head {a} then *turn {b};*go {b} after moving {a};*move {b} after going {a};*go {a} before turning {b}"
    "|*proceed {a} then {b};*glide {a} then {b}"
)
_THREE = (
    "*move {a} then {b} then {c};*go {a} and {b} and then {c};first *go {a} then {b} then {c}"
    "|*proceed {a} then {b} then {c}"
)
DIRECTED = {  # by the group of programs
    "turn": _TWO,
    "turn back": _TWO.replace("|", ";*move {a} and *come back;*go {a} and then *return;*turn back after going {a}|"),
    "stop": "*move {a} then *stop;*go {a} and then *stop;*stop after moving {a};*move {a} and *come to rest;"
    "*head {a} then *stay still|*move {a} then *halt;*go {a} and *halt",
    "wait": "*wait then *move {a};*stay still then *go {a};*move {a} after waiting;*rest and then *head {a};"
    "*wait before going {a}|*linger then *move {a}",
    "three": _THREE,
    "to and fro": _THREE.replace("|", ";*go {a} and back and {a} again;*move {a} then {b} then {a} again|"),
    "enter": "*come in from the {edge};*enter from the {edge};*enter moving {a};*come into view from the {edge}"
    "|*arrive from the {edge}",
    "leave": "*leave to the {edge};*exit on the {edge};*leave moving {a};*go out of view on the {edge}"
    "|*depart to the {edge}",
    "dash": "*dash {a};*dart {a};suddenly *move {a};quickly *dash {a};*make a quick dash {a}|*bolt {a};*zip {a}",
}
FOOTAGE = {  # said of clips of that family, instead of the above
    "turn back": "*move {a} and then *turn back;*go {a} then *turn back;first *move {a} then *turn back;*go {a} and "
    "*turn around;*turn back after moving {a};*head {a} before turning back;*move {a} and then *come back;"
    "*turn back and *move {b};*go {a} and *move back",
    "stop": "*move {a} and then *stop;*move {a} and then *stay still;*go {a} then *keep still",
    "wait": "*stay still and then *move {a};*keep still then *move {a};*stand still before moving {a}",
}

# Sentence frames. {n} noun phrase, {s} "moves left", {g} "moving left", {m} "move left". Held-out after the bar.
FRAMES = {
    "object": "the {n} {g};the {n} {g};{n} {g};a {n} {g};the {n} that {s};the {n} which {s};the {n} that {s};"
    "{n} that {s};which {n} {s};find the {n} that {s};the {n} {s};the {n} is {g};{g} : the {n};find the {n} {g}"
    "|find the one {g} : the {n};the {n} : it is the one that {s};that {n} is {g};it {s} : the {n};"
    "a {n} which is {g};which is the {n} that {s}",
    "motion": "{m};{g};the one {g};the one that {s};which one {s};find the one that {s};the thing that {s};"
    "the object {g};the shape that {s};what {s};it {s}"
    "|that thing is {g};it is the one that {s};find what {s};which is the one {g};it is {g}",
    "static": "the {n};{n};a {n};find the {n};the {n};which one is the {n};the only {n}"
    "|it is the {n};that one : the {n};find the one that is the {n}",
    "objects": "the {ns} {g};the {ns} that {m};all {ns} {g};all the {ns} that {m};{ns} {g};find the {ns} that {m};"
    "the {count} {ns} {g};the {count} {ns} that {m};{count} {ns} {g};{both} {ns} that {m};{both} {ns} {g};"
    "the {ns} are {g};they {m} : the {ns}"
    "|which are the {ns} that {m};find all {ns} {g};{g} : all the {ns};the {ns} : they {m};they are {g} : all {ns}",
    "statics": "the {ns};all {ns};{ns};find the {ns};the {count} {ns};{both} {ns};all the {ns};every {n}"
    "|which are the {ns};they are the {ns}",
}
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten"}

# Combinations of colour, shape and claim that training never words together.
HELD_OUT_LOOKS = tuple(
    _table("red=star blue=heart yellow=ring green=arrow purple=disc orange=square cyan=cross white=crescent").items()
)
HELD_OUT_CLAIMS = (
    *("left", "up", "right>left", "left>up", "down>right", "wait>up", "right>stop", "clockwise"),
    *("hops", "grow", "dash right", "left>right>left", "spin"),
)


def held_out(meaning: Meaning) -> bool:
    values = dict(meaning.static)
    return meaning.claim in HELD_OUT_CLAIMS and (values.get("colour"), values.get("shape")) in HELD_OUT_LOOKS


def _options(entry: str, separator: str, held: bool) -> list[str]:
    plain, _, new = entry.partition("|")
    return (new if held else plain).split(separator)


_GERUNDS = _table("""
    stop=stopping spin=spinning hop=hopping get=getting run=running drop=dropping zip=zipping flee=fleeing sit=sitting
""")
_PLURALS = _table("box=boxes cross=crosses plus=pluses fish=fishes hourglass=hourglasses")


def inflect(predicate: str, form: Form) -> str:
    """Puts the verbs marked with * into a form: "*move left" -> "move left", "moves left", "moving left"."""

    def one(match: re.Match[str]) -> str:
        verb = match.group(1)
        third = verb + ("es" if verb.endswith(("s", "sh", "ch", "x", "z", "o")) else "s")
        gerund = _GERUNDS.get(verb) or verb.removesuffix("e") + "ing"
        return {"base": verb, "third": third, "gerund": gerund}[form]

    return re.sub(r"\*([a-z]+)", one, predicate)


@dataclass(frozen=True)
class Wording:
    """Chooses words: at random, in the style "words" with held-out ones in most places that have them."""

    rng: random.Random
    style: Style

    def pick(self, entry: str, separator: str = ",") -> str:
        held = self.style == "words" and "|" in entry and self.rng.random() < 0.8
        return self.rng.choice(_options(entry, separator, held))

    def noun_phrase(self, static: Static, plural: bool = False) -> str:
        """Such as "small red striped disc", without article."""
        values = dict(static)
        noun = self.pick(NOUNS[values["shape"]] if "shape" in values else GENERIC)
        if plural:
            noun = _PLURALS.get(noun, noun + "s")
        order = ("size", "colour", "texture") if self.rng.random() < 0.6 else ("size", "texture", "colour")
        return " ".join([*(self.pick(ADJECTIVES[values[name]]) for name in order if name in values), noun])

    def predicate(self, claim: str, other: Static | None, plural: bool) -> str:
        entry = TOGETHER.get(claim) if plural and other is None else None
        entry = entry or PREDICATES.get(claim)
        if entry is None:
            group = next(group for group, programs in GROUPS.items() if claim in programs)
            entry = FOOTAGE.get(group) if self.style == "footage" else None
            entry = entry or DIRECTED[group]
        template = self.pick(entry, ";")
        phases = [phase for phase in re.split("[> ]", claim) if phase in DIRECTIONS]
        names = dict(zip("abc", (self.pick(SIDES[phase]) for phase in phases), strict=False))
        if template.count("{a}") > 1:
            names["a"] = phases[0]
        if claim.startswith(("enter ", "leave ")):
            names["edge"] = EDGES[OPPOSITE[phases[0]] if claim.startswith("enter ") else phases[0]]
        if other is not None:
            names["x"] = f"the {self.noun_phrase(other)}"
        return template.format(**names)


def word(meaning: Meaning, count: int, rng: random.Random, style: Style = "plain") -> str:
    """Words a meaning that picks out `count` objects (0: an absent one, worded as if one were there)."""
    wording = Wording(rng, style)
    many = count > 1
    kind = "objects" if many else "object"
    if not meaning.claim:
        kind = "statics" if many else "static"
    elif not many and not meaning.static and rng.random() >= 0.2:  # now and then still "the object that moves left"
        kind = "motion"
    choices = _options(FRAMES[kind], ";", held=style == "phrasing")
    frame = rng.choice([each for each in choices if count == 2 or "{both}" not in each])
    names = {"n": wording.noun_phrase(meaning.static), "count": COUNTS.get(count, ""), "both": "both"}
    if many:
        names["ns"] = wording.noun_phrase(meaning.static, plural=True)
    if meaning.claim:
        predicate = wording.predicate(meaning.claim, meaning.other, many)
        names |= {key: inflect(predicate, form) for key, form in zip("msg", FORMS, strict=True)}
    text = re.sub(r"\ba (?=[aeio])", "an ", frame.format(**names).replace(" :", ":"))
    if meaning.claim in GROUPS["circle"] and style == "plain" and rng.random() < 0.2:
        text = text.replace("counterclockwise", "counter-clockwise")
    dressing = rng.random()
    if dressing < 0.16:
        text = text[0].upper() + text[1:] + "." * (dressing >= 0.12)
    return text.upper() if 0.16 <= dressing < 0.17 else text


@cache
def known_words(shapes: tuple[str, ...] = SHAPES, textures: tuple[str, ...] = TEXTURES) -> frozenset[str]:
    """All words of plain wordings where there are these shapes and textures."""
    nouns = {name: entry for name, entry in NOUNS.items() if name in shapes}
    adjectives = {name: entry for name, entry in ADJECTIVES.items() if name in textures or name not in TEXTURES}
    tables = (nouns, adjectives, SIDES, PREDICATES, TOGETHER, DIRECTED, FRAMES)
    entries = [GENERIC, *(entry for table in tables for entry in table.values())]
    plain = ";".join(entry.partition("|")[0] for entry in entries)
    named = [noun for entry in (*nouns.values(), GENERIC) for noun in _options(entry, ",", held=False)]
    words = [*(inflect(plain, form) for form in FORMS), *(_PLURALS.get(noun, noun + "s") for noun in named)]
    text = " ".join([*words, *EDGES.values(), *COUNTS.values(), "both", "an"])
    return frozenset(re.findall("[a-z]+", re.sub(r"\{[a-z]+\}", " ", text)))


def new_words(text: str, shapes: tuple[str, ...] = SHAPES, textures: tuple[str, ...] = TEXTURES) -> set[str]:
    """The words of a text that no plain wording can contain where there are these shapes and textures."""
    return set(re.findall("[a-z]+", text.lower().replace("-", ""))) - known_words(shapes, textures)
