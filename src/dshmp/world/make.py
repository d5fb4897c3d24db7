"""Plans clips and writes a world in the on-disk layout of MeViS.

    <root>/world.json                                  settings and counts
    <root>/<split>/JPEGImages/<video>/<00000>.jpg       frames
    <root>/<split>/meta_expressions.json                {"videos": {video: {...}}}
    <root>/<split>/mask_dict.json                       {anno_id: [COCO RLE or null per frame]}

Splits are train, valid_u and test. Beside MeViS's keys, an expression has "subsets", "static_ids" (objects that fit
the static words alone), "motion" (what it claims) and "pair" (shared by the two sides of a direction pair), and a
video has "objects", "size" (height, width) and "family". mask_dict.json covers all objects, meant or not.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from dshmp.errors import UserError
from dshmp.world import grammar, motions
from dshmp.world.grammar import Meaning, Static, Style, resolve
from dshmp.world.motions import DIRECTIONS, OPPOSITE, Motion, Stage, Track
from dshmp.world.render import render
from dshmp.world.shapes import COLOURS, ROUND, SHAPES, TEXTURES, Look

VERSION = 1
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
FAMILIES = tuple(dict.fromkeys(SCHEDULE))
QUALITY = 92  # of the JPEG files


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


@dataclass(frozen=True)
class Clip:
    """A drawn clip: frames uint8 (T, H, W, 3) RGB and visible masks bool (K, T, H, W)."""

    family: str
    frames: np.ndarray
    masks: np.ndarray
    items: tuple[Item, ...]
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
EASY = ("steady", "circle", "hops", "spin", "scale", "still")
LATE = ("three", "to and fro", "wait", "turning", "back", "fleeting")


def _draw(kinds: Sequence[str], look: Look, rng: random.Random) -> str:
    kind = rng.choices(kinds, [KINDS[kind][1] for kind in kinds])[0]
    name = rng.choice(KINDS[kind][0])
    if name == "spin" and (look.shape in ROUND or (look.shape in ("square", "cross") and look.texture == "plain")):
        return _draw(kinds, look, rng)
    return name


def _rival(name: str, kinds: Sequence[str], look: Look, rng: random.Random) -> str:
    """A motion that is easily taken for `name`: its time reverse, or one that shares a phase."""
    allowed = {program for kind in kinds for program in KINDS[kind][0]}
    near = {motions.reverse(name), *(OPPOSITE.get(name, name),)}
    path = motions.motion(name).path
    near |= {program for program in allowed if path and motions.motion(program).path[:1] == path[:1]}
    options = sorted((near & allowed) - {name})
    return rng.choice(options) if options else _draw(kinds, look, rng)


def _group_motions(count: int, kinds: Sequence[str], look: Look, rng: random.Random) -> list[str]:
    """Motions of `count` look-alikes: mostly different, often easily confused, sometimes two the same."""
    names = [_draw(kinds, look, rng)]
    while len(names) < count:
        chance = rng.random()
        if len(names) >= 2 and chance < 0.15:
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


def _frame_size(rng: random.Random) -> tuple[int, int]:
    short, long = rng.randint(80, 96), rng.randint(100, 128)
    return (short, long) if rng.random() < 0.8 else (long, short)


def _cast(
    family: str, split: str, rng: random.Random
) -> tuple[list[Look], list[str], dict[str, float], int]:
    """Looks and motion names of the objects of a non-relative clip, pixels per size, number of frames."""
    frames = 16
    if family == "long":
        frames = rng.choice((24, 32))
    elif family in ("alike", "easy", "pairs") and rng.random() < 0.12:
        frames = 8
    mixed = family in ("alike", "easy", "crowd") and rng.random() < 0.3
    size = rng.choice(("small", "large")) if mixed else "medium"
    look = _pick_look(rng, size)
    if split == "test" and rng.random() < 0.45:
        colour, shape = rng.choice(grammar.HELD_OUT_LOOKS)
        look = replace(look, colour=colour, shape=shape)
    if family == "pairs":
        count, extra = 2, rng.choice((0, 1, 1))
    elif family == "easy":
        count, extra = rng.choice(((2, 0), (2, 1), (1, 1), (1, 2), (3, 0)))
    elif family == "crowd":
        count, extra = rng.choice(((3, 3), (3, 4), (4, 3), (4, 4), (3, 5)))
    else:
        count = rng.choices((2, 3, 4, 5), (16, 60, 18, 6))[0]
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
    return looks, names, pixels, frames


def _kinds(family: str, frames: int) -> tuple[str, ...]:
    if family == "easy":
        return tuple(kind for kind in EASY if frames > 8 or kind in SHORT)
    if frames == 8:
        return SHORT
    if family == "long":
        return LATE
    if family == "fleeting":
        return ("fleeting", "fleeting", "fleeting", "fleeting", "still", "steady", "stop")
    return tuple(KINDS)


# --- Placing: where the tracks go ---


def _place(
    drawn: Track, item: Item, stage: Stage, placed: Sequence[tuple[Track, float]], rng: np.random.Generator
) -> Track:
    """Shifts a track so that it stays in the frame and seldom covers the objects placed before it."""
    room = np.maximum(stage.room, 0)
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


def _stage(item: Item, frames: int, height: int, width: int, late: bool) -> Stage:
    across = item.across * (1.3 if item.motion.name in ("grow", "shrink") else 1.0)
    return Stage(frames, height, width, across, late)


def _relative(
    rng: random.Random, noise: np.random.Generator, split: str
) -> tuple[list[Item], list[Track], int, int]:
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
    stage = Stage(frames, height, width, across)
    way = rng.choice((-1, 1))
    direction = next(d for d, step in DIRECTIONS.items() if step[axis] == way)
    first, second, names = _together(name, direction, axis, way, stage, noise)
    items = [
        Item(look, Motion(name, names[0], 1), across),
        Item(_other_look(look, "medium", rng), names[1], across * rng.uniform(0.95, 1.1)),
    ]
    tracks = [first, second]
    lane = 1 - axis
    for number in range(rng.choice((1, 2, 2, 3))):
        alike = number < 2
        if name == "orbit":
            other = rng.choice((*motions.CIRCLING, *motions.CIRCLING, "still", "hops"))
        elif name == "part" or name == "meet":
            other = rng.choice((direction, f"{direction}>stop", *list(DIRECTIONS)[2 * lane : 2 * lane + 2]))
        else:
            other = rng.choice((direction, OPPOSITE[direction], f"{direction}>stop", "still"))
        second_look = look if alike else _other_look(look, "medium", rng)
        if second_look == items[1].look:
            continue
        item = Item(second_look, motions.motion(other), across)
        drawn = motions.track(other, stage, noise)
        made = _apart(drawn, item, stage, tracks, items, lane, noise)
        if made is not None:
            items.append(item)
            tracks.append(made)
    return items, tracks, height, width


def _apart(
    drawn: Track, item: Item, stage: Stage, tracks: list[Track], items: list[Item], lane: int, rng: np.random.Generator
) -> Track | None:
    """Places a track well away from the two related objects (the first two), or not at all."""
    placed = [(track, 1.45 * other.across) for track, other in zip(tracks, items, strict=True)]
    for _ in range(4):
        made = _place(drawn, item, stage, placed, rng)
        gaps = np.linalg.norm(np.stack([track.xy for track in tracks[:2]]) - made.xy, axis=-1)
        if gaps.min() < 1.15 * item.across:
            continue
        # On another lane than the two, so that it does not follow, pass, meet or leave them.
        lanes = [abs(float((track.xy[:, lane] - made.xy[:, lane]).mean())) for track in tracks[:2]]
        if min(lanes) > 1.2 * item.across or item.motion.name in (*motions.CIRCLING, "still", "hops"):
            return made
    return None


def _together(
    name: str, direction: str, axis: int, way: int, stage: Stage, rng: np.random.Generator
) -> tuple[Track, Track, tuple[tuple[str, ...], Motion]]:
    """Tracks of the object with the relative motion and of the one it refers to, the path of the one, the motion
    of the other."""
    u = np.linspace(0, 1, stage.frames)
    lane, room, across = 1 - axis, stage.room, stage.across
    first, second = np.zeros((stage.frames, 2)), np.zeros((stage.frames, 2))
    here, there = (direction,), (OPPOSITE[direction],)
    end = float(room[axis])
    if name == "orbit":
        centre = rng.uniform(-1, 1, 2) * np.maximum(room - 1.12 * across, 0)
        spin = (1 if rng.random() < 0.5 else -1) * rng.uniform(1.0, 1.5) * 2 * np.pi
        angle = rng.uniform(0, 2 * np.pi) + spin * u
        radius = min(1.12 * across, float(room.min()))
        first = centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        second = second + centre
        related = ((), motions.motion("still"))
    else:
        first[:, lane] = second[:, lane] = rng.uniform(-room[lane], room[lane])
        if name == "follow":
            gap = 1.25 * across
            reach = min(2 * end - gap, rng.uniform(0.5, 0.75) * stage.short)
            start = rng.uniform(-end, end - gap - reach)
            first[:, axis] = way * (start + reach * np.clip((u - 0.05) / 0.9, 0, 1))
            second[:, axis] = way * (start + gap + reach * np.clip(u / 0.9, 0, 1))
            related = (here, motions.motion(direction))
        elif name == "pass":
            side = 1.05 * across * (1 if first[0, lane] < 0 else -1)
            first[:, lane] += side
            first[:, axis] = way * np.interp(u, (0.03, 0.97), (-end, rng.uniform(0.75, 1) * end))
            second[:, axis] = way * rng.uniform(-0.15, 0.25) * end
            related = (here, motions.motion("still"))
        else:
            point = rng.uniform(-0.2, 0.2) * end  # where they meet
            near, knots = 0.55 * across, (rng.uniform(0, 0.1), rng.uniform(0.75, 0.95))
            first[:, axis] = way * np.interp(u, knots, (-end, point - near))
            second[:, axis] = way * np.interp(u, knots, (end, point + near))
            related = (here, Motion("meet", there, 0))
            if name == "part":
                first, second = first[::-1].copy(), second[::-1].copy()
                related = (there, Motion("part", here, 0))
    return motions.nuisance(first, rng), motions.nuisance(second, rng), related


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
        height, width = _frame_size(rng)
        looks, names, pixels, frames = _cast(family, split, rng)
        items = [
            Item(look, motions.motion(name), pixels[look.size]) for look, name in zip(looks, names, strict=True)
        ]
        tracks = []
        for item in items:
            stage = _stage(item, frames, height, width, family == "long")
            drawn = motions.track(item.motion.name, stage, noise)
            placed = [(track, other.across) for track, other in zip(tracks, items, strict=False)]
            tracks.append(_place(drawn, item, stage, placed, noise))
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


def _expressions(
    items: Sequence[Item], frames: int, family: str, split: str, rng: random.Random
) -> list[Expression]:
    """Between four and eight expressions of a clip, each true without doubt."""
    looks, moves = [item.look for item in items], [item.motion for item in items]
    attributes = [a for a in ATTRIBUTES if "size" not in a or _size_words(items)]
    backwards = [reversed_motion(move) for move in moves] if family == "pairs" else None
    made: dict[str, Expression] = {}

    def add(meaning: Meaning, absent: bool = False) -> bool:
        if split != "test" and grammar.held_out(meaning):
            return False
        if meaning.claim in motions.RELATIVE and meaning.other is None and meaning.claim not in grammar.TOGETHER:
            return False
        found = resolve(meaning, looks, moves)
        if meaning.claim in motions.RELATIVE and meaning.other is None and len(found.meant) != 2:
            return False
        if found.doubtful or absent == bool(found.meant):
            return False
        if backwards is not None:  # the twin shown backwards has the same expressions
            twin = resolve(meaning, looks, backwards)
            if twin.doubtful or len(twin.meant) != len(found.meant):
                return False
        style: Style = "plain"
        if split == "test":
            style = rng.choices(("plain", "phrasing", "words"), (50, 28, 22))[0]
        text = grammar.word(meaning, len(found.meant), rng, style)
        if text.lower() in made:
            return False
        subsets = _subsets(meaning, found.static, found.meant, looks, family, frames)
        if split == "test" and grammar.new_words(text):
            subsets.append("held-out words")
        elif style == "phrasing" or grammar.held_out(meaning):
            subsets.append("held-out phrasing")
        made[text.lower()] = Expression(text, meaning, found.meant, found.static, tuple(subsets))
        return True

    def static_of(index: int) -> Static:
        return _describe(looks[index], rng.choice(attributes))

    def sample_motion(index: int) -> Meaning:
        claims = motions.claims_of(moves[index])
        # The exact claim first, wider words ("turns back") as often as it has them.
        claim = moves[index].name if rng.random() < 0.6 else rng.choice(claims)
        static = static_of(index) if rng.random() < 0.75 else ()
        if claim not in motions.RELATIVE:
            return Meaning(static, claim)
        if claim in grammar.TOGETHER and rng.random() < 0.25:
            return Meaning((), claim)
        return Meaning(static, claim, _unique(looks, moves[index].other, attributes, rng))

    def sample_absent() -> Meaning:
        index = rng.randrange(len(items))
        if rng.random() < 0.35:  # static words that fit nothing
            return Meaning(_describe(_other_look(looks[index], "medium", rng), ("colour", "shape")))
        if rng.random() < 0.5:  # a motion that nothing makes
            return Meaning(static_of(index), rng.choice(tuple(c for c in motions.CLAIMS if c not in motions.RELATIVE)))
        wrong = _other_look(looks[index], "medium", rng)  # made, but by another object
        candidates = [look for look in looks if look != looks[index]] or [wrong]
        meaning = sample_motion(index)
        return replace(meaning, static=_describe(rng.choice((wrong, *candidates)), ("colour", "shape")))

    if family == "pairs":
        for index in (i for i, move in enumerate(moves) if move.name not in motions.MIRROR):
            for _ in range(2):
                add(Meaning(static_of(index) if rng.random() < 0.7 else (), moves[index].name))
    wanted = rng.randint(5, 7)
    absent = rng.random() < 0.42
    plain = rng.choice((1, 1, 2)) if family != "relative" else 1
    tries = 0
    while len(made) < wanted - plain - absent and tries < 60:
        tries += 1
        subjects = [i for i, move in enumerate(moves) if move.name in motions.RELATIVE]
        index = rng.choice(subjects) if subjects and rng.random() < 0.5 else rng.randrange(len(items))
        add(sample_motion(index))
    for goal, sample in (
        (len(made) + plain, lambda: Meaning(_describe(rng.choice(looks), rng.choice(attributes[1:])))),
        (len(made) + plain + absent, None),
    ):
        tries = 0
        while len(made) < goal and tries < 20:
            tries += 1
            if sample is None:
                add(sample_absent(), absent=True)
            else:
                add(sample())
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
    if meaning.claim and family != "pairs" and others and all(looks[i] in others for i in meant):
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


# --- Drawing ---


def make_clip(seed: int, family: str | None = None, split: str = "train") -> Clip:
    """Draws a clip: a pure function of its arguments.

    family: one of FAMILIES ("easy": two or three objects and one-phase motions; "pairs": two look-alikes, one doing
    the time reverse of the other; ...), or None for any. split: one of SPLITS; only "test" has held-out wordings.
    """
    plan = plan_clip(seed, family, split)
    frames, masks = render(
        [item.look for item in plan.items],
        list(plan.tracks),
        [item.across for item in plan.items],
        plan.height,
        plan.width,
        np.random.default_rng([seed, 2]),
    )
    return Clip(plan.family, frames, masks, plan.items, plan.expressions)


def reversed_motion(move: Motion) -> Motion:
    """A motion seen backwards in time."""
    return motions.motion(motions.reverse(move.name))


def twin(clip: Clip) -> Clip:
    """The same clip backwards in time: same pixels, same sentences, now meaning the objects that they fit."""
    items = tuple(replace(item, motion=reversed_motion(item.motion)) for item in clip.items)
    looks, moves = [item.look for item in items], [item.motion for item in items]
    expressions = tuple(
        replace(expression, meant=resolve(expression.meaning, looks, moves).meant)
        for expression in clip.expressions
    )
    return Clip(clip.family, clip.frames[::-1], clip.masks[:, ::-1], items, expressions)


# --- Writing ---


def _encode(clip: Clip) -> tuple[list[bytes], list[list[dict[str, Any] | None]]]:
    """JPEG files of the frames, and per object one COCO RLE (or None where not visible) per frame."""
    files = []
    for frame in clip.frames:
        done, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        if not done:
            raise ValueError("OpenCV could not encode a frame")
        files.append(data.tobytes())
    count, frames = clip.masks.shape[:2]
    # (K, T, H, W) -> (H, W, K*T), each mask column by column as COCO wants it
    flat = clip.masks.reshape(count * frames, *clip.masks.shape[2:]).view(np.uint8)
    codes = coco.encode(np.asfortranarray(flat.transpose(1, 2, 0)))
    seen = flat.any(axis=(1, 2))
    rles = [
        {"size": [int(v) for v in code["size"]], "counts": code["counts"].decode("ascii")} if shown else None
        for code, shown in zip(codes, seen, strict=True)
    ]
    return files, [rles[k * frames : (k + 1) * frames] for k in range(count)]


def _entry(clip: Clip, video: str, anno: int) -> dict[str, Any]:
    """The video's entry in meta_expressions.json; its first object has annotation id `anno`."""
    base = video.removesuffix("_r")
    expressions = {}
    for number, expression in enumerate(clip.expressions):
        expressions[str(number)] = {
            "exp": expression.text,
            "obj_id": list(expression.meant),
            "anno_id": [anno + i for i in expression.meant],
            "subsets": list(expression.subsets),
            "static_ids": list(expression.static),
            "motion": expression.meaning.claim,
        }
        if "direction pairs" in expression.subsets:
            expressions[str(number)]["pair"] = f"{base}-{number}"
    objects = {
        str(i): {
            "anno_id": anno + i,
            **{name: getattr(item.look, name) for name in ("shape", "colour", "texture", "size")},
            "motion": item.motion.name,
        }
        for i, item in enumerate(clip.items)
    }
    return {
        "frames": [f"{t:05d}" for t in range(len(clip.frames))],
        "expressions": expressions,
        "objects": objects,
        "size": list(clip.frames.shape[1:3]),
        "family": clip.family,
    }


def clip_seed(seed: int, split: str, index: int) -> int:
    """The seed of the clip with this index in a split of the world with this seed."""
    return int(np.random.SeedSequence([seed, SPLITS.index(split), index]).generate_state(1, np.uint64)[0])


def _write_clips(
    folder: str, split: str, seed: int, start: int, stop: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws and writes the clips start..stop-1 of a split (twins included); returns their JSON entries."""
    videos: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    for index in range(start, stop):
        clip = make_clip(clip_seed(seed, split, index), SCHEDULE[index % len(SCHEDULE)], split)
        files, rles = _encode(clip)
        video = f"{split[0]}{index:06d}"
        versions = [(video, clip, files, rles)]
        if clip.family == "pairs":
            versions.append((f"{video}_r", twin(clip), files[::-1], [codes[::-1] for codes in rles]))
        for number, (name, version, images, codes_per_object) in enumerate(versions):
            anno = (2 * index + number) * 10
            videos[name] = _entry(version, name, anno)
            masks |= {str(anno + i): codes for i, codes in enumerate(codes_per_object)}
            target = Path(folder, split, "JPEGImages", name)
            target.mkdir(parents=True)
            for t, data in enumerate(images):
                Path(target, f"{t:05d}.jpg").write_bytes(data)
    return videos, masks


CHUNK = 20  # clips per job


def make_world(
    root: Path,
    *,
    train: int = 6000,
    valid: int = 400,
    test: int = 200,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Writes a world of `train` + `valid` + `test` clips (and the twins of the direction pairs, 15 % more).

    A clip takes about 75 kB. progress(done, total) is called as clips are done. Returns False, having done
    nothing, if `root` is a complete world with the same settings.

    Raises UserError if `root` exists and is anything else.
    """
    settings = {"version": VERSION, "seed": seed, "train": train, "valid": valid, "test": test}
    root = Path(root)
    if root.exists():
        _check_same(root, settings)
        return False
    partial = root.with_name(root.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    jobs = [
        (str(partial), split, seed, start, min(start + CHUNK, count))
        for split, count in zip(SPLITS, (train, valid, test), strict=True)
        for start in range(0, count, CHUNK)
    ]
    try:
        counts = _run(partial, jobs, train + valid + test, workers, progress)
        partial.joinpath("world.json").write_text(json.dumps({**settings, "splits": counts}, indent=1) + "\n")
        partial.rename(root)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return True


def _run(
    root: Path,
    jobs: list[tuple[str, str, int, int, int]],
    total: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Runs the jobs, writes the JSON files of each split, and returns the counts per split."""
    videos: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    masks: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    done = 0
    for split in SPLITS:
        root.joinpath(split, "JPEGImages").mkdir(parents=True)
    with ProcessPoolExecutor(max_workers=workers) as pool:
        for job, (made, codes) in zip(jobs, pool.map(_write_clips, *zip(*jobs, strict=True)), strict=True):
            videos[job[1]] |= made
            masks[job[1]] |= codes
            done += job[4] - job[3]
            if progress is not None:
                progress(done, total)
    for split in SPLITS:
        root.joinpath(split, "meta_expressions.json").write_text(json.dumps({"videos": videos[split]}))
        root.joinpath(split, "mask_dict.json").write_text(json.dumps(masks[split]))
    return {split: count(videos[split]) for split in SPLITS}


def count(videos: dict[str, Any]) -> dict[str, Any]:
    """Videos, expressions, and expressions per subset, of the "videos" of a meta_expressions.json."""
    expressions = [e for video in videos.values() for e in video["expressions"].values()]
    subsets = Counter(subset for expression in expressions for subset in expression["subsets"])
    return {
        "videos": len(videos),
        "expressions": len(expressions),
        "subsets": {subset: subsets[subset] for subset in SUBSETS},
    }


def _check_same(root: Path, settings: dict[str, Any]) -> None:
    try:
        found = json.loads(root.joinpath("world.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{root} exists and is not a complete world: remove it or choose another folder") from None
    differing = [name for name, value in settings.items() if found.get(name) != value]
    if differing:
        name = differing[0]
        raise UserError(
            f"{root} holds a world with {name} {found.get(name)}, not {settings[name]}: "
            "remove it or choose another folder"
        )
