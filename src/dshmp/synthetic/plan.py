"""Plans clips of the synthetic data set: who takes part, what they do, where, and what is said about them.

Nothing is drawn here; `dshmp.synthetic.make` draws a `Plan` and writes it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dshmp.synthetic import grammar, motions
from dshmp.synthetic.grammar import Meaning, Static, Style, resolve
from dshmp.synthetic.motions import DIRECTIONS, OPPOSITE, Canvas, Motion, Track
from dshmp.synthetic.shapes import COLOURS, ROUND, SHAPES, TEXTURES, Look

SPLITS = ("train", "valid_u", "test")
SUBSETS = (
    *("static", "motion-critical", "direction pairs", "fleeting", "long", "relative", "plural", "absent"),
    *("held-out phrasing", "held-out words"),
)
# Families of clips, in the order in which a split takes them, over and over.
SCHEDULE = (
    *("alike", "pairs", "long", "alike", "relative", "fleeting", "alike", "easy", "pairs", "alike"),
    *("crowd", "alike", "fleeting", "pairs", "alike", "relative", "long", "alike", "easy", "alike"),
)
FAMILIES = (*dict.fromkeys(SCHEDULE), "close")  # "close": large objects, only on demand


@dataclass(frozen=True)
class Item:
    """An object of a clip: what it looks like, what it does, and its width in pixels."""

    look: Look
    motion: Motion
    across: float


@dataclass(frozen=True)
class Expression:
    """A sentence with its meaning, the indices of the objects meant, and those fitting the static words alone."""

    text: str
    meaning: Meaning
    meant: tuple[int, ...]
    static: tuple[int, ...]
    subsets: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A clip before it is drawn: objects (the last one in front), their tracks, and expressions."""

    family: str
    height: int
    width: int
    items: tuple[Item, ...]
    tracks: tuple[Track, ...]
    expressions: tuple[Expression, ...]


# --- Planning: size, looks and motions ---


def _pick_look(rng: random.Random, size: str = "medium") -> Look:
    texture = "plain" if rng.random() < 0.4 else rng.choice(TEXTURES[1:])
    return Look(rng.choice(SHAPES), rng.choice(tuple(COLOURS)), texture, size)


def _other_look(look: Look, size: str, rng: random.Random) -> Look:
    """A look that shares something with `look` but not both colour and shape."""
    new = _pick_look(rng, size)
    share = rng.random()
    if share < 0.35:
        new = replace(new, shape=look.shape)
    elif share < 0.7:
        new = replace(new, colour=look.colour)
    return new if (new.shape, new.colour) != (look.shape, look.colour) else _other_look(look, size, rng)


KINDS: dict[str, tuple[tuple[str, ...], float]] = {
    "steady": (motions.STEADY, 5),
    "turning": (motions.TURNING, 3),
    "back": (motions.TURNING_BACK, 2.5),
    "stop": (motions.STOPPING, 2),
    "wait": (motions.WAITING, 2),
    "to and fro": (motions.TO_AND_FRO, 1),
    "three": (motions.THREE, 1.5),
    "circle": (motions.CIRCLING, 2),
    "hops": (("hops",), 1),
    "spin": (("spin",), 1),
    "scale": (("grow", "shrink"), 1.4),
    "show": (("appear", "vanish"), 0.7),
    "border": ((*motions.ENTERING, *motions.LEAVING), 1),
    "still": (("still",), 1.2),
    "fleeting": (motions.FLEETING, 1),
}
SHORT = ("steady", "turning", "back", "stop", "wait", "circle", "scale", "still")  # fit into 8 frames
CLOSE = tuple(kind for kind in SHORT if kind != "scale")  # and stay as large as they are
EASY = ("steady", "circle", "hops", "spin", "scale", "still")
LATE = ("three", "to and fro", "wait", "turning", "back", "fleeting")


def _draw(kinds: Mapping[str, float], look: Look, rng: random.Random) -> str:
    kind = rng.choices(tuple(kinds), tuple(kinds.values()))[0]
    name = rng.choice(KINDS[kind][0])
    if name == "spin" and (look.shape in ROUND or (look.shape in ("square", "cross") and look.texture == "plain")):
        return _draw(kinds, look, rng)
    return name


def _rival(name: str, kinds: Mapping[str, float], look: Look, rng: random.Random) -> str:
    """A motion that is easily taken for `name`: its time reverse, or one that shares a phase."""
    allowed = {program for kind in kinds for program in KINDS[kind][0]}
    near = {motions.reverse(name), *(OPPOSITE.get(name, name),)}
    path = motions.motion(name).path
    near |= {program for program in allowed if path and motions.motion(program).path[:1] == path[:1]}
    options = sorted((near & allowed) - {name})
    return rng.choice(options) if options else _draw(kinds, look, rng)


def _group_motions(count: int, kinds: Mapping[str, float], look: Look, rng: random.Random) -> list[str]:
    """Motions of `count` look-alikes: mostly different, often easily confused, sometimes two the same."""
    names = [_draw(kinds, look, rng)]
    while len(names) < count:
        chance = rng.random()
        if len(names) >= 2 and chance < 0.12:
            names.append(rng.choice(names))
        elif chance < 0.55:
            names.append(_rival(rng.choice(names), kinds, look, rng))
        else:
            names.append(_draw(kinds, look, rng))
    rng.shuffle(names)
    return names


def _pair_motions(rng: random.Random) -> tuple[str, str]:
    group = rng.choices(
        (("left", "right"), ("up", "down"), motions.TURNING, motions.CIRCLING, motions.STOPPING, motions.THREE),
        (28, 22, 24, 14, 6, 6),
    )[0]
    name = rng.choice(group)
    return name, motions.reverse(name)


def _frame_size(family: str, rng: random.Random) -> tuple[int, int]:
    if family == "close":
        return 128, 128
    short, long = rng.randint(80, 96), rng.randint(100, 128)
    return (short, long) if rng.random() < 0.8 else (long, short)


def _cast(family: str, split: str, rng: random.Random) -> tuple[list[Look], list[str], dict[str, float], int]:
    """Looks and motion names of the objects of a non-relative clip, pixels per size, number of frames."""
    frames = 16
    if family == "long":
        frames = rng.choice((24, 32))
    elif family == "close" or (family in ("alike", "easy", "pairs") and rng.random() < 0.12):
        frames = 8
    mixed = family in ("alike", "easy", "crowd") and rng.random() < 0.3
    size = rng.choice(("small", "large")) if mixed else "medium"
    look = _pick_look(rng, size)
    if split == "test" and rng.random() < 0.45:
        colour, shape = rng.choice(grammar.HELD_OUT_LOOKS)
        look = replace(look, colour=colour, shape=shape)
    if family == "pairs":
        count, extra = 2, rng.choice((0, 1, 1))
    elif family == "close":
        count, extra = 2, rng.choice((0, 1))
    elif family == "easy":
        count, extra = rng.choice(((2, 0), (2, 1), (1, 1), (1, 2), (3, 0)))
    elif family == "crowd":
        count, extra = rng.choice(((3, 3), (3, 4), (4, 3), (4, 4), (3, 5)))
    else:
        count = rng.choices((2, 3, 4, 5), (18, 62, 16, 4))[0]
        extra = rng.choice((0, 1, 2) if count < 4 else (0, 1))
    kinds = _kinds(family, frames)
    names = list(_pair_motions(rng)) if family == "pairs" else _group_motions(count, kinds, look, rng)
    if split == "test" and family not in ("pairs", "fleeting") and frames > 8 and rng.random() < 0.5:
        options = [claim for claim in grammar.HELD_OUT_CLAIMS if claim != "spin" or look.shape not in ROUND]
        names[0] = rng.choice(options)
    looks = [look] * count
    for _ in range(extra):
        other = "large" if size == "small" else "small" if size == "large" else "medium"
        second = _other_look(look, rng.choice((size, other)), rng)
        looks.append(looks[-1] if family == "crowd" and len(looks) > count and rng.random() < 0.5 else second)
        if family == "pairs":
            names.append(rng.choice(("still", "still", "hops", *motions.TO_AND_FRO[:2])) if frames > 8 else "still")
        else:
            names.append(_draw(kinds, looks[-1], rng))
    few = count + extra < 6
    pixels = {"small": rng.uniform(22, 25), "large": rng.uniform(31, 36) if few else rng.uniform(28, 30)}
    pixels["medium"] = rng.uniform(25, 31) if few else rng.uniform(22, 25)
    if family == "close":
        pixels["medium"] = rng.uniform(46, 50)
    return looks, names, pixels, frames


def _kinds(family: str, frames: int) -> dict[str, float]:
    """The kinds of motion in a family of clips, each with its weight."""
    if family == "fleeting":
        return {"fleeting": 8, "still": 1, "steady": 1, "stop": 0.5, "hops": 0.5, "scale": 0.5}
    kinds = {"easy": EASY, "long": LATE, "close": CLOSE}.get(family, tuple(KINDS))
    return {kind: KINDS[kind][1] for kind in kinds if frames > 8 or kind in SHORT}


# --- Placing: where the tracks go ---


def _place(
    drawn: Track, item: Item, canvas: Canvas, placed: Sequence[tuple[Track, float]], rng: np.random.Generator
) -> Track:
    """Shifts a track so that it stays in the frame and seldom covers the objects placed before it."""
    room = np.maximum(canvas.room, 0)
    low, high = -room - drawn.xy.min(axis=0), room - drawn.xy.max(axis=0)
    shift = rng.uniform(np.minimum(low, high), np.maximum(low, high), (40, 2)) * drawn.free
    if not placed:
        return replace(drawn, xy=drawn.xy + shift[0])
    others = np.stack([track.xy for track, _ in placed])  # (P, T, 2)
    reach = (np.array([across for _, across in placed]) + item.across) / 2
    gaps = np.linalg.norm(shift[:, None, None] + drawn.xy - others, axis=-1) / reach[None, :, None]  # (40, P, T)
    overlap = np.clip(1 - gaps, 0, 1)
    cost = overlap.mean(axis=2).sum(axis=1) + 0.5 * overlap[:, :, [0, -1]].max(axis=2).sum(axis=1)
    # A few crossings are welcome: any place below this cost is as good as another.
    good = np.flatnonzero(cost < 0.1)
    best = int(good[0]) if len(good) else int(cost.argmin())
    return replace(drawn, xy=drawn.xy + shift[best])


def _canvas(item: Item, frames: int, height: int, width: int, late: bool) -> Canvas:
    across = item.across * (1.3 if item.motion.name in ("grow", "shrink") else 1.0)
    return Canvas(frames, height, width, across, late)


def _relative(rng: random.Random, noise: np.random.Generator, split: str) -> tuple[list[Item], list[Track], int, int]:
    """A relative motion, the object that it refers to, look-alikes that make the same way without it."""
    frames = 16
    height, width = rng.randint(88, 96), rng.randint(112, 128)
    if rng.random() < 0.2:
        height, width = width, height
    across = rng.uniform(22, 25)
    name = rng.choice(motions.RELATIVE)
    look = _pick_look(rng)
    if split == "test" and rng.random() < 0.3:
        colour, shape = rng.choice(grammar.HELD_OUT_LOOKS)
        look = replace(look, colour=colour, shape=shape)
    axis = 0 if width > height else 1
    canvas = Canvas(frames, height, width, across)
    way = rng.choice((-1, 1))
    direction = next(d for d, step in DIRECTIONS.items() if step[axis] == way)
    first, second, path, motion_of_other = _together(name, direction, axis, way, canvas, noise)
    items = [
        Item(look, Motion(name, path, 1), across),
        Item(_other_look(look, "medium", rng), motion_of_other, across * rng.uniform(0.95, 1.1)),
    ]
    tracks = [first, second]
    wanted = 2 + rng.choice((1, 2, 2, 3))
    for _ in range(8):
        if len(items) == wanted:
            break
        extra = _relative_extra(name, direction, look if len(items) < 4 else _other_look(look, "medium", rng), rng)
        item = Item(extra[0], motions.motion(extra[1]), across)
        made = _apart(motions.track(extra[1], canvas, noise), item, canvas, tracks, items, 1 - axis, noise)
        if made is not None and item.look != items[1].look:
            items.append(item)
            tracks.append(made)
    return items, tracks, height, width


def _relative_extra(name: str, direction: str, look: Look, rng: random.Random) -> tuple[Look, str]:
    """A look and a motion that is near to the relative one, but refers to nothing."""
    across = [other for other in DIRECTIONS if other not in (direction, OPPOSITE[direction])]
    near = {
        "orbit": (*motions.CIRCLING, *motions.CIRCLING, "still", "hops"),
        "meet": (direction, direction, f"{direction}>stop", *across),
        "part": (OPPOSITE[direction], OPPOSITE[direction], f"{OPPOSITE[direction]}>stop", *across),
    }
    return look, rng.choice(near.get(name, (direction, direction, f"{direction}>stop", "still", *across)))


def _apart(
    drawn: Track,
    item: Item,
    canvas: Canvas,
    tracks: list[Track],
    items: list[Item],
    lane: int,
    rng: np.random.Generator,
) -> Track | None:
    """Places a track well away from the two related objects (the first two), or not at all."""
    placed = [(track, 1.45 * other.across) for track, other in zip(tracks, items, strict=True)]
    for _ in range(4):
        made = _place(drawn, item, canvas, placed, rng)
        gaps = np.linalg.norm(np.stack([track.xy for track in tracks[:2]]) - made.xy, axis=-1)
        if gaps.min() < 1.15 * item.across:
            continue
        # If it goes their way, then on another lane, so that it does not follow, pass, meet or leave them.
        lanes = [abs(float((track.xy[:, lane] - made.xy[:, lane]).mean())) for track in tracks[:2]]
        if min(lanes) > 1.2 * item.across or np.ptp(made.xy[:, 1 - lane]) < 0.3 * item.across:
            return made
    return None


def _together(
    name: str, direction: str, axis: int, way: int, canvas: Canvas, rng: np.random.Generator
) -> tuple[Track, Track, tuple[str, ...], Motion]:
    """Tracks of the object with the relative motion and of the one it refers to, the path of the one, the motion
    of the other."""
    u = np.linspace(0, 1, canvas.frames)
    lane, room, across = 1 - axis, canvas.room, canvas.across
    first, second = np.zeros((canvas.frames, 2)), np.zeros((canvas.frames, 2))
    here, there = (direction,), (OPPOSITE[direction],)
    path: tuple[str, ...] = here
    other = motions.motion("still")
    end = float(room[axis])
    if name == "orbit":
        centre = rng.uniform(-1, 1, 2) * np.maximum(room - 1.12 * across, 0)
        spin = (1 if rng.random() < 0.5 else -1) * rng.uniform(1.0, 1.5) * 2 * np.pi
        angle = rng.uniform(0, 2 * np.pi) + spin * u
        radius = min(1.12 * across, float(room.min()))
        first = centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        second = second + centre
        path = ()
    else:
        first[:, lane] = second[:, lane] = rng.uniform(-room[lane], room[lane])
        if name == "follow":
            gap = 1.25 * across
            reach = min(2 * end - gap, rng.uniform(0.5, 0.75) * canvas.short)
            start = -end + rng.uniform(0, 1) * (2 * end - gap - reach)
            first[:, axis] = way * (start + reach * np.clip((u - 0.05) / 0.9, 0, 1))
            second[:, axis] = way * (start + gap + reach * np.clip(u / 0.9, 0, 1))
            other = motions.motion(direction)
        elif name == "pass":
            side = 1.05 * across * (1 if first[0, lane] < 0 else -1)
            first[:, lane] += side
            first[:, axis] = way * np.interp(u, (0.03, 0.97), (-end, rng.uniform(0.75, 1) * end))
            second[:, axis] = way * rng.uniform(-0.15, 0.25) * end
        else:
            point = rng.uniform(-0.2, 0.2) * end  # where they meet
            near, knots = 0.55 * across, (rng.uniform(0, 0.1), rng.uniform(0.75, 0.95))
            first[:, axis] = way * np.interp(u, knots, (-end, point - near))
            second[:, axis] = way * np.interp(u, knots, (end, point + near))
            other = Motion("meet", there, 0)
            if name == "part":
                first, second = first[::-1].copy(), second[::-1].copy()
                path, other = there, Motion("part", here, 0)
    return motions.nuisance(first, rng), motions.nuisance(second, rng), path, other


def reversed_motion(move: Motion) -> Motion:
    """A motion seen backwards in time."""
    return motions.motion(motions.reverse(move.name))


def plan_clip(seed: int, family: str | None, split: str) -> Plan:
    """Plans a clip without drawing it: a pure function of its arguments. See `make_clip`."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    rng, noise = random.Random(f"plan {seed}"), np.random.default_rng([seed, 1])
    family = rng.choice(SCHEDULE) if family is None else family
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {FAMILIES}, not {family!r}")
    if family == "relative":
        items, tracks, height, width = _relative(rng, noise, split)
    else:
        height, width = _frame_size(family, rng)
        looks, names, pixels, frames = _cast(family, split, rng)
        items = [Item(look, motions.motion(name), pixels[look.size]) for look, name in zip(looks, names, strict=True)]
        tracks = []
        for item in items:
            canvas = _canvas(item, frames, height, width, family == "long")
            drawn = motions.track(item.motion.name, canvas, noise)
            placed = [(track, other.across) for track, other in zip(tracks, items, strict=False)]
            tracks.append(_place(drawn, item, canvas, placed, noise))
    order = rng.sample(range(len(items)), len(items))
    items, tracks = _reorder(items, order), [tracks[i] for i in order]
    expressions = _expressions(items, len(tracks[0].xy), family, split, rng)
    return Plan(family, height, width, tuple(items), tuple(tracks), tuple(expressions))


def _reorder(items: list[Item], order: list[int]) -> list[Item]:
    """Items in a new order, references to other objects included."""
    place = {old: new for new, old in enumerate(order)}
    result = []
    for old in order:
        item = items[old]
        if item.motion.other is not None:
            item = replace(item, motion=replace(item.motion, other=place[item.motion.other]))
        result.append(item)
    return result


# --- Expressions ---

ATTRIBUTES = (
    (),
    ("shape",),
    ("colour",),
    ("colour", "shape"),
    ("texture", "shape"),
    ("texture", "colour"),
    ("texture", "colour", "shape"),
    ("texture",),
    ("size", "shape"),
    ("size", "colour", "shape"),
    ("size",),
)


def _describe(look: Look, attributes: Sequence[str]) -> Static:
    return tuple((name, getattr(look, name)) for name in attributes)


def _size_words(items: Sequence[Item]) -> bool:
    """Whether "big" and "small" are beyond doubt: both occur, and nothing changes its size."""
    sizes = {item.look.size for item in items}
    return sizes == {"small", "large"} and not any(item.motion.name in motions.SCALING for item in items)


class _Writer:
    """Collects the expressions of one clip; keeps only those that are true without doubt."""

    def __init__(self, items: Sequence[Item], frames: int, family: str, split: str, rng: random.Random) -> None:
        self.looks, self.moves = [item.look for item in items], [item.motion for item in items]
        # A clip shown backwards has the same expressions, so they must be beyond doubt there as well.
        self.backwards = [reversed_motion(move) for move in self.moves] if family == "pairs" else None
        self.attributes = [names for names in ATTRIBUTES if "size" not in names or _size_words(items)]
        self.frames, self.family, self.split, self.rng = frames, family, split, rng
        self.made: dict[str, Expression] = {}

    def add(self, meaning: Meaning, absent: bool = False) -> None:
        """Words a meaning and keeps it, unless it is doubtful, held out, or said already."""
        found = resolve(meaning, self.looks, self.moves)
        if not self._allowed(meaning, len(found.meant)) or found.doubtful or absent == bool(found.meant):
            return
        if self.backwards is not None:
            time_reversed = resolve(meaning, self.looks, self.backwards)
            if time_reversed.doubtful or len(time_reversed.meant) != len(found.meant):
                return
        style: Style = "plain"
        if self.split == "test":
            style = self.rng.choices(("plain", "phrasing", "words"), (50, 28, 22))[0]
        text = grammar.word(meaning, len(found.meant), self.rng, style)
        if text.lower() in self.made:
            return
        subsets = _subsets(meaning, found.static, found.meant, self.looks, self.family, self.frames)
        if self.split == "test" and grammar.new_words(text):
            subsets.append("held-out words")
        elif style == "phrasing" or grammar.held_out(meaning):
            subsets.append("held-out phrasing")
        self.made[text.lower()] = Expression(text, meaning, found.meant, found.static, tuple(subsets))

    def _allowed(self, meaning: Meaning, meant: int) -> bool:
        if self.split != "test" and grammar.held_out(meaning):
            return False
        if meaning.claim not in motions.RELATIVE or meaning.other is not None:
            return True
        return meaning.claim in grammar.TOGETHER and meant == 2  # "the two that meet"

    def static(self, index: int) -> Static:
        return _describe(self.looks[index], self.rng.choice(self.attributes[1:]))

    def paired(self, index: int) -> Meaning:
        """The exact motion of one of a direction pair."""
        return Meaning(self.static(index) if self.rng.random() < 0.7 else (), self.moves[index].name)

    def moving(self, index: int) -> Meaning:
        """A motion of an object: exact more often than in wider words ("turns back")."""
        claims = motions.claims_of(self.moves[index])
        claim = self.moves[index].name if self.rng.random() < 0.6 else self.rng.choice(claims)
        bare = self.rng.random() < (0.25 if len(self.looks) < 5 else 0.06)
        static = () if bare else self.static(index)
        if claim not in motions.RELATIVE:
            return Meaning(static, claim)
        if claim in grammar.TOGETHER and self.rng.random() < 0.25:
            return Meaning((), claim)
        return Meaning(static, claim, _unique(self.looks, self.moves[index].other, self.attributes, self.rng))

    def absent(self) -> Meaning:
        """Something that the clip might have: other static words, another motion, or both from different objects."""
        rng, looks = self.rng, self.looks
        index = rng.randrange(len(looks))
        if rng.random() < 0.35:
            return Meaning(_describe(_other_look(looks[index], "medium", rng), ("colour", "shape")))
        if rng.random() < 0.5:
            claims = [claim for claim in motions.CLAIMS if claim not in motions.RELATIVE]
            return Meaning(self.static(index), rng.choice(claims))
        wrong = _other_look(looks[index], "medium", rng)
        candidates = [look for look in looks if look != looks[index]] or [wrong]
        meaning = self.moving(index)
        return replace(meaning, static=_describe(rng.choice((wrong, *candidates)), ("colour", "shape")))


def _expressions(items: Sequence[Item], frames: int, family: str, split: str, rng: random.Random) -> list[Expression]:
    """Between four and eight expressions of a clip, each true without doubt."""
    writer = _Writer(items, frames, family, split, rng)
    made = writer.made
    if family == "pairs":
        for index in (i for i, item in enumerate(items) if item.motion.name not in motions.MIRROR):
            for _ in range(2):
                writer.add(writer.paired(index))
    wanted = rng.randint(5, 7)
    absent = rng.random() < 0.42
    plain = rng.choice((1, 1, 2)) if family != "relative" else 1
    related = [i for i, item in enumerate(items) if item.motion.name in motions.RELATIVE]
    tries = 0  # doubtful ones are dropped, so each kind is tried for a while
    while len(made) < wanted - plain - absent and tries < 60:
        tries += 1
        chosen = rng.choice(related) if related and rng.random() < 0.5 else rng.randrange(len(items))
        writer.add(writer.moving(chosen))
    while len(made) < max(wanted - absent, 4) and tries < 90:
        tries += 1
        look = rng.choice(writer.looks)
        writer.add(Meaning(_describe(look, rng.choice(writer.attributes[1:]))))
    while absent and len(made) < wanted and tries < 110:
        tries += 1
        writer.add(writer.absent(), absent=True)
    return list(made.values())


def _unique(
    looks: Sequence[Look], index: int | None, attributes: Sequence[Sequence[str]], rng: random.Random
) -> Static | None:
    """A description that fits this object alone, if there is one."""
    if index is None:
        return None
    options = [_describe(looks[index], names) for names in attributes if names]
    alone = [static for static in options if sum(grammar.fits(look, static) for look in looks) == 1]
    return rng.choice(alone) if alone else None


def _subsets(
    meaning: Meaning, static: Sequence[int], meant: Sequence[int], looks: Sequence[Look], family: str, frames: int
) -> list[str]:
    """The named subsets that an expression belongs to, apart from the held-out ones."""
    if not meant:
        return ["absent"]
    found = []
    if not meaning.claim:
        found.append("static")
    others = [looks[i] for i in static if i not in meant]
    # Every object meant has a look-alike that is not, and at least half of the candidates are wrong.
    if meaning.claim and family != "pairs" and len(others) >= len(meant) and all(looks[i] in others for i in meant):
        found.append("motion-critical")
    if family == "pairs" and meaning.claim and meaning.claim not in motions.MIRROR:
        found.append("direction pairs")
    if meaning.claim in (*motions.FLEETING, "dash"):
        found.append("fleeting")
    if frames >= 24 and meaning.claim:
        found.append("long")
    if meaning.claim in motions.RELATIVE:
        found.append("relative")
    if len(meant) > 1:
        found.append("plural")
    return found
