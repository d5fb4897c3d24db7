"""Who takes part in a clip of the synthetic data set, and what they do."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dshmp.synthetic import camera, grammar, motions
from dshmp.synthetic.grammar import COLOURS, ROUND, Look
from dshmp.synthetic.motions import GROUPS, OPPOSITE, Motion, Track
from dshmp.synthetic.world import World

FAMILIES = ("alike", "pairs", "long", "relative", "fleeting", "easy", "crowd", "close", "footage")


@dataclass(frozen=True)
class Item:
    """An object of a clip: what it looks like, what it does, its width in pixels, and where it is."""

    look: Look
    motion: Motion
    across: float
    track: Track


# Kinds of motion with their programs, and how often each is drawn.
KINDS = {
    **{name: GROUPS[name] for name in ("steady", "turn", "turn back", "stop", "wait", "to and fro", "three", "circle")},
    **{"hops": ("hops",), "spin": ("spin",), "scale": motions.SCALE, "show": ("appear", "vanish")},
    **{"border": GROUPS["enter"] + GROUPS["leave"], "still": ("still",), "fleeting": motions.FLEETING},
}
WEIGHTS = dict(zip(KINDS, (5, 3, 2.5, 2, 2, 1, 1.5, 2, 1, 1, 1.4, 0.7, 1, 1.2, 1), strict=True))
SHORT = ("steady", "turn", "turn back", "stop", "wait", "circle", "scale", "still")  # fit into 8 frames
OF_FAMILY = {
    "easy": ("steady", "circle", "hops", "spin", "scale", "still"),
    "long": ("three", "to and fro", "wait", "turn", "turn back", "fleeting"),
    "close": tuple(kind for kind in SHORT if kind != "scale"),  # objects stay as large as they are
}
# Programs and claims that a clip goes without because its camera makes them doubtful.
AT_BORDER = frozenset({*GROUPS["enter"], *GROUPS["leave"], "enter", "leave"})
OF_SCALE = frozenset({*motions.SCALE, "flash"})
UNSAID = dict.fromkeys(camera.STRONG, AT_BORDER)
UNSAID |= {"zoom": AT_BORDER | OF_SCALE, "shake": AT_BORDER | {"twitch"}}


def pick_look(
    rng: random.Random, world: World, split: str = "train", held_out: float = 0, size: str = "medium"
) -> Look:
    """Of the test split a share of `held_out` is of looks that training never words with some motions."""
    texture = "plain" if rng.random() < 0.4 else rng.choice(world.textures[1:])
    look = Look(rng.choice(world.shapes), rng.choice(COLOURS), texture, size)
    if split == "test" and rng.random() < held_out:
        colour, shape = rng.choice(grammar.HELD_OUT_LOOKS)
        look = replace(look, colour=colour, shape=shape)
    return look


def other_look(look: Look, size: str, rng: random.Random, world: World) -> Look:
    """A look that shares something with `look` but not both colour and shape."""
    new = pick_look(rng, world, size=size)
    share = rng.random()
    if share < 0.35:
        new = replace(new, shape=look.shape)
    elif share < 0.7:
        new = replace(new, colour=look.colour)
    return new if (new.shape, new.colour) != (look.shape, look.colour) else other_look(look, size, rng, world)


def _draw(kinds: Mapping[str, float], look: Look, rng: random.Random) -> str:
    name = rng.choice(KINDS[rng.choices(tuple(kinds), tuple(kinds.values()))[0]])
    unseen = look.shape in ROUND or (look.shape in ("square", "cross") and look.texture == "plain")
    return _draw(kinds, look, rng) if name == "spin" and unseen else name


def _rival(name: str, kinds: Mapping[str, float], look: Look, rng: random.Random) -> str:
    """A motion that is easily taken for `name`: its time reverse, or one that shares a phase."""
    allowed = {program for kind in kinds for program in KINDS[kind]}
    start = motions.motion(name).path[:1]
    near = {program for program in allowed if start and motions.motion(program).path[:1] == start}
    options = sorted((near | allowed & {motions.reverse(name), OPPOSITE.get(name, name)}) - {name})
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


def cast(
    family: str, split: str, frames: int, short: int, world: World, rng: random.Random
) -> tuple[list[Look], list[str], list[float]]:
    """Looks, programs and widths in pixels of the objects of a clip without relative motions."""
    size = "medium"
    if family in ("alike", "easy", "crowd") and rng.random() < 0.3:
        size = rng.choice(("small", "large"))
    look = pick_look(rng, world, split, 0.45, size)
    if family in world.casts:
        count, extra = rng.choice(world.casts[family])
    else:
        count = rng.choices((2, 3, 4, 5), (18, 62, 16, 4))[0]
        extra = rng.choice((0, 1, 2) if count < 4 else (0, 1))
    kinds = {kind: WEIGHTS[kind] for kind in OF_FAMILY.get(family, KINDS) if frames > 8 or kind in SHORT}
    if family == "fleeting":
        kinds = {"fleeting": 8, "still": 1, "steady": 1, "stop": 0.5, "hops": 0.5, "scale": 0.5}
    if family == "footage":
        kinds = {"scale": 3, "steady": 2, "still": 1.5, "turn": 0.5, "stop": 1, "wait": 1, "turn back": 2}
    if family == "pairs":
        groups = (("left", "right"), ("up", "down"), *(GROUPS[name] for name in ("turn", "circle", "stop", "three")))
        names = [rng.choice(rng.choices(groups, (28, 22, 24, 14, 6, 6))[0])]
        names.append(motions.reverse(names[0]))
    else:
        names = _group_motions(count, kinds, look, rng)
    if split == "test" and family not in ("pairs", "fleeting") and frames > 8 and rng.random() < 0.5:
        unseen = "spin" if look.shape in ROUND else ""
        names[0] = rng.choice([claim for claim in grammar.HELD_OUT_CLAIMS if claim != unseen])
    looks = [look] * count
    for _ in range(extra):
        other = {"small": "large", "large": "small"}.get(size, size)
        second = other_look(look, rng.choice((size, other)), rng, world)
        looks.append(looks[-1] if family == "crowd" and len(looks) > count and rng.random() < 0.5 else second)
        if family == "pairs":
            names.append(rng.choice(("still", "still", "hops", *GROUPS["to and fro"][:2])) if frames > 8 else "still")
        else:
            names.append(_draw(kinds, looks[-1], rng))
    if family == "footage" and "still" not in names and rng.random() < 0.6:
        names[-1] = "still"
    if world.natural and family != "close":
        return looks, names, _widths(looks, names, short, rng)
    few = count + extra < 6
    ranges = {"small": (22, 25), "large": (31, 36) if few else (28, 30), "medium": (25, 31) if few else (22, 25)}
    pixels = {each: rng.uniform(*ends) for each, ends in ranges.items()}
    pixels |= {"medium": rng.uniform(46, 50)} if family == "close" else {}
    return looks, names, [pixels[each.size] for each in looks]


def _widths(looks: Sequence[Look], names: Sequence[str], short: int, rng: random.Random) -> list[float]:
    """Widths in pixels, from 9 % of the short side to 45 % (less where there are many objects or some grow)."""
    widest = min(0.28 if OF_SCALE & set(names) else 0.45, 0.75 / math.sqrt(len(looks)))

    def between(low: float, high: float) -> float:  # small ones are more frequent
        return math.exp(rng.uniform(math.log(low), math.log(high))) if rng.random() < 0.5 else rng.uniform(low, high)

    medium, large = between(0.09, widest), between(min(0.17, widest), widest)
    parts = {"medium": medium, "large": large, "small": max(0.09, large / rng.uniform(1.5, 2.2))}
    # Where sizes are not told apart in words, other looks may be somewhat larger or smaller.
    of_looks = dict[Look, float]()
    for look in looks:
        vary = between(0.7, 1.4) if look.size == "medium" and of_looks else 1.0
        of_looks.setdefault(look, short * min(max(parts[look.size] * vary, 0.09), widest))
    return [of_looks[look] for look in looks]
