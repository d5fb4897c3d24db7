"""What is said about a clip of the synthetic data set."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dshmp.synthetic import camera, grammar, motions
from dshmp.synthetic.camera import Camera
from dshmp.synthetic.cast import OF_SCALE, UNSAID, Item, other_look
from dshmp.synthetic.grammar import Look, Meaning, Static, Style, resolve
from dshmp.synthetic.motions import GROUPS
from dshmp.synthetic.world import World

SUBSETS = (
    *("static", "motion-critical", "direction pairs", "fleeting", "long", "relative", "plural", "absent"),
    *("held-out phrasing", "held-out words", "strong camera", "followed pairs"),
)


@dataclass(frozen=True)
class Sentence:
    """A text with its meaning, the indices of the objects meant, and those fitting the static words alone."""

    text: str
    meaning: Meaning
    meant: tuple[int, ...]
    static: tuple[int, ...]
    subsets: tuple[str, ...]


_ATTRIBUTES = """
shape, colour, colour shape, texture shape, texture colour, texture colour shape, texture, size shape,
size colour shape, size
"""
ATTRIBUTES = [names.split() for names in _ATTRIBUTES.split(",")]
TEXTURED = 16  # pixels across from which on a texture can be told


def _describe(look: Look, attributes: Sequence[str]) -> Static:
    return tuple((name, getattr(look, name)) for name in attributes)


class Writer:
    """Collects the expressions of a clip; keeps only those that are true without doubt."""

    def __init__(
        self,
        items: Sequence[Item],
        frames: int,
        family: str,
        split: str,
        rng: random.Random,
        world: World,
        view: Camera | None,
    ) -> None:
        self.looks, self.moves = [item.look for item in items], [item.motion for item in items]
        # A clip shown backwards has the same expressions, so they must be beyond doubt there as well.
        self.backwards = [move.reversed for move in self.moves] if family == "pairs" else None
        # "Big" and "small" are beyond doubt where both occur and nothing changes its size.
        sizes = {look.size for look in self.looks} == {"small", "large"}
        sizes = sizes and not any(move.name in OF_SCALE for move in self.moves)
        self.attributes = [names for names in ATTRIBUTES if sizes or "size" not in names]
        smallest = min(item.across for item in items) * (1 if view is None else float(view.zoom().min()))
        if world.natural and smallest < TEXTURED:
            self.attributes = [names for names in self.attributes if "texture" not in names]
        self.frames, self.family, self.split, self.rng, self.world = frames, family, split, rng, world
        self.kind = view.kind if view is not None else ""
        self.unsaid = UNSAID.get(self.kind, frozenset())
        if family == "footage" and not any(move.name in motions.SCALE for move in self.moves):
            self.unsaid |= OF_SCALE
        self.made: dict[str, Sentence] = {}
        self.tries = 0

    def write(self) -> tuple[Sentence, ...]:
        """Between four and eight expressions, in version 2 about ten."""
        rng, made = self.rng, self.made
        if self.family == "pairs":
            for index in (i for i, move in enumerate(self.moves) if move.name not in motions.MIRROR):
                for _ in range(2):  # the exact motion of one of a direction pair
                    self.add(Meaning(self.static(index) if rng.random() < 0.7 else (), self.moves[index].name))
        if self.world.talkative:
            self._many()
        else:
            wanted = rng.randint(5, 7)
            absent = rng.random() < 0.42
            plain = rng.choice((1, 1, 2)) if self.family != "relative" else 1
            self._collect(self.moving, wanted - plain - absent, 60)
            self._collect(self.still, max(wanted - absent, 4), 90)
            self._collect(self.absent, wanted if absent else 0, 110)
        return tuple(made.values())

    def _many(self) -> None:
        """About ten expressions, three or four of them absent."""
        rng = self.rng
        moving = max(2, rng.choice((4, 5, 5)) - len(self.made))
        counts = (moving, 2, rng.choice((0, 0, 1)), rng.choice((2, 2, 3)), rng.choice((0, 1, 1, 1)))
        draws = (self.moving, self.single, self.still, self.undone, self.unseen)
        for count, until, draw in zip(counts, (60, 90, 110, 170, 200), draws, strict=True):
            self._collect(draw, len(self.made) + count, until)

    def _collect(self, draw: Callable[[], Meaning], count: int, until: int) -> None:
        """Adds meanings until there are `count` in all, or `until` were tried in all: doubtful ones are dropped."""
        absent = draw in (self.absent, self.undone, self.unseen)
        while len(self.made) < count and self.tries < until:
            self.tries += 1
            self.add(draw(), absent)

    def add(self, meaning: Meaning, absent: bool = False) -> None:
        """Words a meaning and keeps it, unless it is doubtful, held out, or said already."""
        if meaning.claim in self.unsaid:
            return
        found, test = resolve(meaning, self.looks, self.moves), self.split == "test"
        if found.doubtful or absent == bool(found.meant) or (grammar.held_out(meaning) and not test):
            return
        together = meaning.claim in grammar.TOGETHER and len(found.meant) == 2  # "the two that meet"
        if meaning.claim in motions.RELATIVE and meaning.other is None and not together:
            return
        if self.backwards is not None:
            time_reversed = resolve(meaning, self.looks, self.backwards)
            if time_reversed.doubtful or len(time_reversed.meant) != len(found.meant):
                return
        style: Style = self.rng.choices(("plain", "phrasing", "words"), (50, 28, 22))[0] if test else "plain"
        if self.family == "footage" and self.rng.random() < 0.5:
            style = "footage"
        text = grammar.word(meaning, len(found.meant), self.rng, style)
        if text.lower() in self.made:
            return
        subsets = self._subsets(meaning, found.static, found.meant)
        if test and grammar.new_words(text, self.world.shapes, self.world.textures):
            subsets.append("held-out words")
        elif style == "phrasing" or grammar.held_out(meaning):
            subsets.append("held-out phrasing")
        if self.kind in camera.STRONG:
            subsets.append("strong camera")
        if self.kind == "follow" and "direction pairs" in subsets:
            subsets.append("followed pairs")
        self.made[text.lower()] = Sentence(text, meaning, found.meant, found.static, tuple(subsets))

    def _subsets(self, meaning: Meaning, static: Sequence[int], meant: Sequence[int]) -> list[str]:
        if not meant:
            return ["absent"]
        claim, pairs = meaning.claim, self.family == "pairs"
        others = [self.looks[i] for i in static if i not in meant]
        # Every object meant has a look-alike that is not, and at least half of the candidates are wrong.
        critical = len(others) >= len(meant) and all(self.looks[i] in others for i in meant)
        belongs = {
            "static": not claim,
            "motion-critical": bool(claim) and not pairs and critical,
            "direction pairs": bool(claim) and pairs and claim not in motions.MIRROR and self._differs(meaning, meant),
            "fleeting": claim in (*motions.FLEETING, "dash"),
            "long": bool(claim) and self.frames >= 24,
            "relative": claim in motions.RELATIVE,
            "plural": len(meant) > 1,
        }
        return [name for name, belong in belongs.items() if belong]

    def _differs(self, meaning: Meaning, meant: Sequence[int]) -> bool:
        """Whether another object is meant when time runs backwards; version 1 doesn't ask ("the two that turn")."""
        if self.backwards is None or not self.world.talkative:
            return True
        return resolve(meaning, self.looks, self.backwards).meant != meant

    def static(self, index: int) -> Static:
        return _describe(self.looks[index], self.rng.choice(self.attributes))

    def still(self) -> Meaning:
        return Meaning(_describe(self.rng.choice(self.looks), self.rng.choice(self.attributes)))

    def single(self) -> Meaning:
        """A look that a single object has, if there is one."""
        options = [_describe(look, names) for look in self.looks for names in self.attributes]
        alone = [each for each in options if sum(grammar.fits(look, each) for look in self.looks) == 1]
        return Meaning(self.rng.choice(alone)) if alone else self.still()

    def moving(self, index: int | None = None) -> Meaning:
        """A motion of an object: exact more often than in wider words ("turns back")."""
        rng, related = self.rng, [i for i, move in enumerate(self.moves) if move.name in motions.RELATIVE]
        if index is None:
            index = rng.choice(related) if related and rng.random() < 0.5 else rng.randrange(len(self.looks))
        move = self.moves[index]
        claim = move.name if rng.random() < 0.6 else rng.choice(motions.claims_of(move))
        if self.family == "footage" and rng.random() < 0.2 and motions.reading("move", move):
            claim = "move"
        bare = rng.random() < (0.25 if len(self.looks) < 5 else 0.06)
        static = () if bare else self.static(index)
        if claim not in motions.RELATIVE:
            return Meaning(static, claim)
        if move.other is None or (claim in grammar.TOGETHER and rng.random() < 0.25):
            return Meaning((), claim)
        # the other object by a description that fits it alone, if there is one
        options = [_describe(self.looks[move.other], names) for names in self.attributes]
        alone = [other for other in options if sum(grammar.fits(look, other) for look in self.looks) == 1]
        return Meaning(static, claim, rng.choice(alone) if alone else None)

    def absent(self) -> Meaning:
        """Something that the clip might have: other static words, another motion, or both from different objects."""
        rng, looks = self.rng, self.looks
        index = rng.randrange(len(looks))
        if rng.random() < 0.35:
            return Meaning(_describe(other_look(looks[index], "medium", rng, self.world), ("colour", "shape")))
        if rng.random() < 0.5:
            claims = [claim for claim in motions.CLAIMS if claim not in motions.RELATIVE]
            return Meaning(self.static(index), rng.choice(claims))
        wrong = other_look(looks[index], "medium", rng, self.world)
        candidates = (wrong, *([look for look in looks if look != looks[index]] or [wrong]))
        meaning = self.moving(index)
        return replace(meaning, static=_describe(rng.choice(candidates), ("colour", "shape")))

    def undone(self) -> Meaning:
        """A motion that no object of the clip does, of objects that are there or of any at all."""
        rng = self.rng
        index = rng.randrange(len(self.looks))
        turning = [i for i, move in enumerate(self.moves) if move.name in GROUPS["turn back"]]
        if self.family == "footage" and turning and rng.random() < 0.5:
            index = rng.choice(turning)
        name, chance = self.moves[index].name, rng.random()
        if name in motions.RELATIVE or chance < 0.1:
            return self.absent() if chance < 0.5 else Meaning(self.static(index), rng.choice(motions.WIDER))
        claims: Sequence[str] = [claim for claim in motions.CLAIMS if claim not in motions.RELATIVE]
        if self.family == "footage" and chance < 0.7:
            if motions.reading("move", self.moves[index]) is False:
                claims = ("move", "move", *GROUPS["steady"], *GROUPS["wait"], *GROUPS["stop"])
            else:
                claims = (motions.reverse(name) if name in motions.SCALE else motions.opposed(name),)
        elif chance < 0.35:
            claims = (*motions.FLEETING, "dash")
        elif chance < 0.65:  # near what one does: its time reverse, or the same start
            start = self.moves[index].path[:1]
            same = (each for each in claims if start and motions.motion(each).path[:1] == start)
            claims = (*same, motions.reverse(name))
        return Meaning(() if rng.random() < 0.2 else self.static(index), rng.choice(claims))

    def unseen(self) -> Meaning:
        """A look that no object of the clip has; with its colour where the background may have such a shape."""
        rng = self.rng
        look = rng.choice(self.looks)
        other = other_look(look, look.size, rng, self.world)
        options = [names for names in self.attributes if "shape" in names]
        if other.shape in ("disc", "oval", "square", "triangle"):
            options = [names for names in options if "colour" in names]
        return Meaning(_describe(other, rng.choice(options)))
