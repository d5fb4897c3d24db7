"""Plans clips of the synthetic data set: who takes part, what they do, where, and what is said about them.

All chance comes from two generators that are seeded by the clip, so the order in which they are asked is part of the
data set.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dshmp.synthetic import camera, grammar, motions
from dshmp.synthetic.camera import Camera
from dshmp.synthetic.grammar import COLOURS, ROUND, Look, Meaning, Static, Style, resolve
from dshmp.synthetic.motions import ACROSS, DIRECTIONS, GROUPS, OPPOSITE, Canvas, Motion, Track
from dshmp.synthetic.world import World, world_of

SPLITS = ("train", "valid_u", "test")
SUBSETS = (
    *("static", "motion-critical", "direction pairs", "fleeting", "long", "relative", "plural", "absent"),
    *("held-out phrasing", "held-out words", "strong camera", "followed pairs"),
)
ON_DEMAND = ("close", "footage")
FAMILIES = ("alike", "pairs", "long", "relative", "fleeting", "easy", "crowd", *ON_DEMAND)


@dataclass(frozen=True)
class Item:
    """An object of a clip: what it looks like, what it does, its width in pixels, and where it is."""

    look: Look
    motion: Motion
    across: float
    track: Track


@dataclass(frozen=True)
class Sentence:
    """A text with its meaning, the indices of the objects meant, and those fitting the static words alone."""

    text: str
    meaning: Meaning
    meant: tuple[int, ...]
    static: tuple[int, ...]
    subsets: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A clip before it is drawn: objects, the last one in front, expressions, and the camera where the plan says it
    (in version 1 the camera is drawn with the frames)."""

    family: str
    height: int
    width: int
    items: tuple[Item, ...]
    expressions: tuple[Sentence, ...]
    camera: Camera | None


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
DRIFTING = 0.6  # share of what grows or shrinks, in version 2, that also goes somewhere
CROWDED = 0.3  # objects under a strong camera, which leaves less room, touch each other less than this (`_hidden`)
UNSAID = dict.fromkeys(camera.STRONG, AT_BORDER)
UNSAID |= {"zoom": AT_BORDER | OF_SCALE, "shake": AT_BORDER | {"twitch"}}


def _pick_look(
    rng: random.Random, world: World, split: str = "train", held_out: float = 0, size: str = "medium"
) -> Look:
    """Of the test split a share of `held_out` is of looks that training never words with some motions."""
    texture = "plain" if rng.random() < 0.4 else rng.choice(world.textures[1:])
    look = Look(rng.choice(world.shapes), rng.choice(COLOURS), texture, size)
    if split == "test" and rng.random() < held_out:
        colour, shape = rng.choice(grammar.HELD_OUT_LOOKS)
        look = replace(look, colour=colour, shape=shape)
    return look


def _other_look(look: Look, size: str, rng: random.Random, world: World) -> Look:
    """A look that shares something with `look` but not both colour and shape."""
    new = _pick_look(rng, world, size=size)
    share = rng.random()
    if share < 0.35:
        new = replace(new, shape=look.shape)
    elif share < 0.7:
        new = replace(new, colour=look.colour)
    return new if (new.shape, new.colour) != (look.shape, look.colour) else _other_look(look, size, rng, world)


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


def _cast(
    family: str, split: str, frames: int, short: int, world: World, rng: random.Random
) -> tuple[list[Look], list[str], list[float]]:
    """Looks, programs and widths in pixels of the objects of a clip without relative motions."""
    size = "medium"
    if family in ("alike", "easy", "crowd") and rng.random() < 0.3:
        size = rng.choice(("small", "large"))
    look = _pick_look(rng, world, split, 0.45, size)
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
        second = _other_look(look, rng.choice((size, other)), rng, world)
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


def _room(drawn: Track, canvas: Canvas, view: Camera | None) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest shift, (2,) each, that keep a track in the frame (low > high: none does)."""
    if view is None:
        reach = np.maximum(canvas.reach, 0)
        return -reach - drawn.xy.min(axis=0), reach - drawn.xy.max(axis=0)
    zoom, shift = view.zoom(), view.matrices[:, :, 2]
    reach = np.maximum(canvas.reach_at(zoom), 0)
    low, high = (-reach - shift) / zoom[:, None] - drawn.xy, (reach - shift) / zoom[:, None] - drawn.xy
    return low[drawn.visible].max(axis=0), high[drawn.visible].min(axis=0)


def _changes_size(move: Motion, sized: bool) -> bool:
    """In footage: what grows or shrinks, or, in clips that are not about sizes, whatever goes somewhere."""
    return move.name in motions.SCALE or (not sized and bool(move.path))


def _passes(family: str, move: Motion) -> bool:
    """Whether the camera may lose sight of it, as happens in footage to what stands still."""
    return family == "footage" and move.name == "still"


def _stays(items: Sequence[Item], canvas: Canvas, view: Camera, family: str) -> bool:
    """Whether most of every object is in the frame whenever it is there, or a quarter of that time where it may pass by."""
    half = np.array([canvas.width, canvas.height]) / 2
    for item in items:
        size = item.across * view.zoom()[:, None] * np.minimum(item.track.scale, 1)[:, None]
        inside = np.abs(view.see(item.track.xy)) + 0.3 * size <= half
        inside = inside.all(axis=1)[item.track.visible]
        if not (inside.mean() > 0.25 if _passes(family, item.motion) else inside.all()):
            return False
    return True


def _hidden(items: Sequence[Item]) -> float:
    """How much the most crowded object touches others, on average over the clip: 1 where it always lies on one."""
    xy, across = np.stack([item.track.xy for item in items]), np.array([item.across for item in items])
    gaps = np.linalg.norm(xy[:, None] - xy, axis=-1) / ((across[:, None] + across) / 2)[..., None]  # (K, K, T)
    overlap = np.clip(1 - gaps, 0, 1).mean(axis=2) - np.eye(len(items))
    return float(overlap.sum(axis=1).max())


def _place(
    drawn: Track,
    across: float,
    canvas: Canvas,
    placed: Sequence[Item],
    rng: np.random.Generator,
    view: Camera | None = None,
    apart: float = 1,
) -> Track:
    """Shifted to stay in the frame and seldom cover the objects placed before, which count as `apart` times as wide."""
    low, high = _room(drawn, canvas, view)
    shift = rng.uniform(np.minimum(low, high), np.maximum(low, high), (40, 2)) * drawn.free
    best = 0
    if placed:
        others = np.stack([item.track.xy for item in placed])  # (P, T, 2)
        touching = (apart * np.array([item.across for item in placed]) + across) / 2
        gaps = np.linalg.norm(shift[:, None, None] + drawn.xy - others, axis=-1) / touching[None, :, None]  # (40, P, T)
        overlap = np.clip(1 - gaps, 0, 1)
        cost = overlap.mean(axis=2).sum(axis=1) + 0.5 * overlap[:, :, [0, -1]].max(axis=2).sum(axis=1)
        # A few crossings are welcome: any place below this cost is as good as another.
        good = np.flatnonzero(cost < 0.1)
        best = int(good[0]) if len(good) else int(cost.argmin())
    return replace(drawn, xy=drawn.xy + shift[best])


def _relative(
    rng: random.Random, noise: np.random.Generator, split: str, world: World, kind: str, power: float
) -> tuple[list[Item], Canvas, Camera | None]:
    """A relative motion, the object that it refers to, and look-alikes that go the same way without it."""
    height, width = _frame_size("relative", world, rng)
    across = min(height, width) * rng.uniform(0.17, 0.26) if world.natural else rng.uniform(22, 25)
    canvas = Canvas(16, height, width, across)
    name = rng.choice(motions.RELATIVE)
    look = _pick_look(rng, world, split, 0.3)
    lane = 1 if width > height else 0  # they move along the longer side
    direction = rng.choice(ACROSS["up" if lane else "left"])
    (motion, track), (other, other_track) = _together(name, direction, canvas, noise)
    view = _camera(kind, power, canvas, [track, other_track], [motion.name, other.name], noise) if kind else None
    if view is not None and view.strong:
        rooms = [_room(each, canvas, view) for each in (track, other_track)]
        low, high = np.max([low for low, _ in rooms], axis=0), np.min([high for _, high in rooms], axis=0)
        shift = noise.uniform(np.minimum(low, high), np.maximum(low, high))
        track, other_track = (replace(each, xy=each.xy + shift) for each in (track, other_track))
    second = _other_look(look, "medium", rng, world)
    items = [Item(look, motion, across, track), Item(second, other, across * rng.uniform(0.95, 1.1), other_track)]
    wanted = 2 + rng.choice((1, 2, 2, 3))
    back, aside = OPPOSITE[direction], ACROSS[direction]
    near = {  # motions like the relative one that refer to nothing
        "orbit": (*GROUPS["circle"], *GROUPS["circle"], "still", "hops"),
        "meet": (direction, direction, f"{direction}>stop", *aside),
        "part": (back, back, f"{back}>stop", *aside),
    }.get(name, (direction, direction, f"{direction}>stop", "still", *aside))
    tries = 8
    while len(items) < wanted and tries:
        tries -= 1
        extra = look if len(items) < 4 else _other_look(look, "medium", rng, world)
        program = rng.choice(near)
        made = _apart(motions.track(program, canvas, noise), canvas, items, lane, noise, view)
        if made is not None and extra != second:
            items.append(Item(extra, motions.motion(program), across, made))
    return items, canvas, view


def _apart(
    drawn: Track, canvas: Canvas, items: list[Item], lane: int, rng: np.random.Generator, view: Camera | None
) -> Track | None:
    """Placed well away from the two related objects (the first two), or not at all."""
    across = canvas.across
    for _ in range(4):
        made = _place(drawn, across, canvas, items, rng, view, apart=1.45)
        away = np.stack([item.track.xy for item in items[:2]]) - made.xy  # (2, T, 2)
        # If it goes their way, then on another lane, so that it does not follow, pass, meet or leave them.
        beside = np.abs(away[:, :, lane].mean(axis=1)).min() > 1.2 * across
        clear = np.linalg.norm(away, axis=-1).min() >= 1.15 * across
        if clear and (beside or np.ptp(made.xy[:, 1 - lane]) < 0.3 * across):
            return made
    return None


def _together(name: str, direction: str, canvas: Canvas, rng: np.random.Generator) -> list[tuple[Motion, Track]]:
    """Motions and tracks of an object with a relative motion (which refers to object 1) and of that one."""
    u = np.linspace(0, 1, canvas.frames)
    axis = 0 if DIRECTIONS[direction][0] else 1
    lane, way, reach, across = 1 - axis, DIRECTIONS[direction][axis], canvas.reach, canvas.across
    first, second = np.zeros((canvas.frames, 2)), np.zeros((canvas.frames, 2))
    motion, other = Motion(name, (direction,), 1), Motion("still")
    if name == "orbit":
        motion = Motion(name, (), 1)
        second += rng.uniform(-1, 1, 2) * np.maximum(reach - 1.12 * across, 0)
        unit = motions.around(canvas, rng, 1 if rng.random() < 0.5 else -1)
        first = second + min(1.12 * across, float(reach.min())) * unit
    else:
        end = float(reach[axis])
        first[:, lane] = second[:, lane] = rng.uniform(-reach[lane], reach[lane])
        if name == "follow":
            gap = 1.25 * across
            length = min(2 * end - gap, rng.uniform(0.5, 0.75) * canvas.short)
            start = -end + rng.uniform(0, 1) * (2 * end - gap - length)
            along = [start + length * np.clip((u - 0.05) / 0.9, 0, 1), start + gap + length * np.clip(u / 0.9, 0, 1)]
            other = motions.motion(direction)
        elif name == "pass":
            first[:, lane] += 1.05 * across * (1 if first[0, lane] < 0 else -1)
            along = [np.interp(u, (0.03, 0.97), (-end, rng.uniform(0.75, 1) * end))]
            along.append(np.full_like(u, rng.uniform(-0.15, 0.25) * end))
        else:  # they meet at a point, or, backwards in time, part there
            point = rng.uniform(-0.2, 0.2) * end
            near, knots = 0.55 * across, (rng.uniform(0, 0.1), rng.uniform(0.75, 0.95))
            along = [np.interp(u, knots, (-end, point - near)), np.interp(u, knots, (end, point + near))]
            other = Motion(name, (OPPOSITE[direction],), 0)
        first[:, axis], second[:, axis] = way * along[0], way * along[1]
        if name == "part":
            first, second = first[::-1], second[::-1]
            motion, other = replace(motion, path=other.path), replace(other, path=motion.path)
    return [(motion, motions.nuisance(first, rng)), (other, motions.nuisance(second, rng))]


def _frame_size(family: str, world: World, rng: random.Random) -> tuple[int, int]:
    """Height and width of a clip's frames in pixels; a fifth are upright."""
    if family == "close":
        return 128, 128
    if world.ratios:
        short = rng.randint(112, 144)
        height, width = short, round(short * rng.choice(world.ratios))
    elif family == "relative":
        height, width = rng.randint(88, 96), rng.randint(112, 128)
    else:
        height, width = rng.randint(80, 96), rng.randint(100, 128)
    chance = rng.random()
    upright = chance < 0.2 if family == "relative" else chance >= 0.8
    return (width, height) if upright else (height, width)


def _camera(
    kind: str, power: float, canvas: Canvas, drawn: Sequence[Track], names: Sequence[str], noise: np.random.Generator
) -> Camera | None:
    """A camera of this kind for objects with these tracks; None if there is nothing to follow."""
    if kind == "weak":
        return camera.weak(canvas.frames, canvas.short, noise)
    if kind != "follow":
        return camera.strong(kind, power, canvas, None, None, noise)
    options = camera.followable(drawn, names, canvas.short)
    if not options:
        return None
    chosen = int(noise.choice(options))
    return camera.strong(kind, power, canvas, drawn[chosen].xy, chosen, noise)


def _draw_track(move: Motion, canvas: Canvas, noise: np.random.Generator, near: bool) -> Track:
    drawn = motions.track(move.name, canvas, noise)
    if near:
        drawn = motions.perspective(drawn, move.name, canvas, noise)
    return motions.drifting(drawn, move.path[0], canvas, noise) if move.path and move.name in motions.SCALE else drawn


def _scattered(
    rng: random.Random, noise: np.random.Generator, family: str, split: str, world: World, kind: str, power: float
) -> tuple[list[Item], Canvas, Camera | None]:
    """The objects of a clip without relative motions."""
    height, width = _frame_size(family, world, rng)
    frames = 16
    if family == "long":
        frames = rng.choice((24, 32))
    elif family == "footage":
        frames = rng.choice((16, 16, 24, 32, 48))
    elif family == "close" or (family in ("alike", "easy", "pairs") and rng.random() < 0.12):
        frames = 8
    looks, names, widths = _cast(family, split, frames, min(height, width), world, rng)
    while UNSAID.get(kind, frozenset()) & set(names):
        looks, names, widths = _cast(family, split, frames, min(height, width), world, rng)
    canvas = Canvas(frames, height, width, 0.0, family == "long", max(power, 0.6) if kind == "follow" else 1.0)
    canvases = [
        replace(canvas, across=across * (1.3 if name in motions.SCALE else 1))
        for name, across in zip(names, widths, strict=True)
    ]
    moves = [motions.motion(name) for name in names]
    if world.natural:
        ways, drifting = tuple(DIRECTIONS), 0.85 if family == "footage" else DRIFTING
        moves = [
            replace(move, path=(rng.choice(ways),)) if move.name in motions.SCALE and rng.random() < drifting else move
            for move in moves
        ]
    sized = any(name in motions.SCALE for name in names)
    drawn: Iterable[Track] = (
        _draw_track(move, each, noise, family == "footage" and _changes_size(move, sized))
        for move, each in zip(moves, canvases, strict=True)
    )
    view = None
    if kind:  # the camera depends on the tracks; without one, each track is placed before the next one is drawn
        drawn = list(drawn)
        view = _camera(kind, power, canvas, drawn, names, noise)
    items: list[Item] = []
    strong = view if view is not None and view.strong else None
    for look, move, across, each, track in zip(looks, moves, widths, canvases, drawn, strict=True):
        placed = _place(track, across, each, items, noise, None if _passes(family, move) else strong)
        items.append(Item(look, move, across, placed))
    return items, canvas, view


def _staged(
    rng: random.Random, noise: np.random.Generator, family: str, split: str, world: World
) -> tuple[list[Item], Canvas, Camera | None]:
    """Objects and camera of a clip: a strong camera is tried anew, ever weaker, until no object leaves the frame."""
    kind = "weak" if world.strong else ""
    strong = 0.75 if family == "footage" else world.strong
    if family != "close" and world.strong and rng.random() < strong:
        weights = {"pairs": (20, 42, 12, 12, 14), "footage": (25, 45, 8, 8, 14)}.get(family, (26, 24, 15, 16, 19))
        kind = rng.choices(camera.STRONG, weights)[0]
    for power in (1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.4, 0.4, 0.3) if kind in camera.STRONG else ():
        items, canvas, view = (
            _relative(rng, noise, split, world, kind, power)
            if family == "relative"
            else _scattered(rng, noise, family, split, world, kind, power)
        )
        if view is not None and _stays(items, canvas, view, family) and _hidden(items) < CROWDED:
            return items, canvas, view
    kind = "weak" if kind else ""
    if family == "relative":
        return _relative(rng, noise, split, world, kind, 1.0)
    return _scattered(rng, noise, family, split, world, kind, 1.0)


def plan_clip(seed: int, family: str | None, split: str, version: int = 2) -> Plan:
    """Plans a clip: a pure function of its arguments. ValueError if there is no such family or split, UserError if
    there is no such version."""
    rng, noise, world = random.Random(f"plan {seed}"), np.random.default_rng([seed, 1]), world_of(version)
    family = rng.choice(world.schedule) if family is None else family
    if split not in SPLITS or family not in FAMILIES:
        raise ValueError(f"split must be one of {SPLITS}, family of {FAMILIES}; not {split!r}, {family!r}")
    items, canvas, view = _staged(rng, noise, family, split, world)
    order = rng.sample(range(len(items)), len(items))
    items = [items[i] for i in order]
    for i, item in enumerate(items):  # those that refer to another object, to its new place
        if item.motion.other is not None:
            items[i] = replace(item, motion=replace(item.motion, other=order.index(item.motion.other)))
    if view is not None and view.followed is not None:
        view = replace(view, followed=order.index(view.followed))
    expressions = _Writer(items, canvas.frames, family, split, rng, world, view).write()
    return Plan(family, canvas.height, canvas.width, tuple(items), expressions, view)


_ATTRIBUTES = """
shape, colour, colour shape, texture shape, texture colour, texture colour shape, texture, size shape,
size colour shape, size
"""
ATTRIBUTES = [names.split() for names in _ATTRIBUTES.split(",")]
TEXTURED = 16  # pixels across from which on a texture can be told


def _describe(look: Look, attributes: Sequence[str]) -> Static:
    return tuple((name, getattr(look, name)) for name in attributes)


class _Writer:
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
            return Meaning(_describe(_other_look(looks[index], "medium", rng, self.world), ("colour", "shape")))
        if rng.random() < 0.5:
            claims = [claim for claim in motions.CLAIMS if claim not in motions.RELATIVE]
            return Meaning(self.static(index), rng.choice(claims))
        wrong = _other_look(looks[index], "medium", rng, self.world)
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
        other = _other_look(look, look.size, rng, self.world)
        options = [names for names in self.attributes if "shape" in names]
        if other.shape in ("disc", "oval", "square", "triangle"):
            options = [names for names in options if "colour" in names]
        return Meaning(_describe(other, rng.choice(options)))
