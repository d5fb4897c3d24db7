"""Plans clips of the synthetic data set: who takes part, what they do, where, and what is said about them.

All chance comes from two generators that are seeded by the clip, so the order in which they are asked is part of the
data set.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dshmp.synthetic import camera, motions
from dshmp.synthetic.camera import Camera
from dshmp.synthetic.cast import FAMILIES, UNSAID, Item, cast, other_look, pick_look
from dshmp.synthetic.motions import ACROSS, DIRECTIONS, GROUPS, OPPOSITE, Canvas, Motion, Track
from dshmp.synthetic.sentences import Sentence, Writer
from dshmp.synthetic.world import World, world_of

SPLITS = ("train", "valid_u", "test")


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


DRIFTING = 0.6  # share of what grows or shrinks, in version 2, that also goes somewhere
CROWDED = 0.3  # objects under a strong camera, which leaves less room, touch each other less than this (`_hidden`)


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
    """Whether most of every object is in the frame whenever it is there; a quarter of the time where it may pass by."""
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
    look = pick_look(rng, world, split, 0.3)
    lane = 1 if width > height else 0  # they move along the longer side
    direction = rng.choice(ACROSS["up" if lane else "left"])
    (motion, track), (other, other_track) = _together(name, direction, canvas, noise)
    drawn, names = (track, other_track), (motion.name, other.name)
    view = _camera(kind, power, canvas, drawn, names, "relative", noise) if kind else None
    if view is not None and view.strong:
        rooms = [_room(each, canvas, view) for each in drawn]
        low, high = np.max([low for low, _ in rooms], axis=0), np.min([high for _, high in rooms], axis=0)
        shift = noise.uniform(np.minimum(low, high), np.maximum(low, high))
        track, other_track = (replace(each, xy=each.xy + shift) for each in (track, other_track))
    second = other_look(look, "medium", rng, world)
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
        extra = look if len(items) < 4 else other_look(look, "medium", rng, world)
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
    kind: str,
    power: float,
    canvas: Canvas,
    drawn: Sequence[Track],
    names: Sequence[str],
    family: str,
    noise: np.random.Generator,
) -> Camera | None:
    """A camera of this kind for objects with these tracks; None if there is nothing to follow."""
    if kind == "weak":
        return camera.weak(canvas.frames, canvas.short, noise)
    if kind != "follow":
        return camera.strong(kind, power, canvas, None, None, noise)
    options = camera.followable(drawn, names, canvas.short)
    if family == "footage":  # people film what comes nearer
        options = [i for i in options if names[i] in motions.SCALE] or options
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
    looks, names, widths = cast(family, split, frames, min(height, width), world, rng)
    while UNSAID.get(kind, frozenset()) & set(names):
        looks, names, widths = cast(family, split, frames, min(height, width), world, rng)
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
        view = _camera(kind, power, canvas, drawn, names, family, noise)
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
    expressions = Writer(items, canvas.frames, family, split, rng, world, view).write()
    return Plan(family, canvas.height, canvas.width, tuple(items), expressions, view)
