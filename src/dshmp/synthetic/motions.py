"""What an object of the synthetic data set does: motion programs, their time reverse and what they may be called.

A program is named by its phases ("left", "left>up", "left>stop", "wait>up", "left>up>right") or by a word such as
"clockwise"; relative ones ("follow") refer to another object. A *claim* is what an expression says about a motion: the
name of a program, or a wider word such as "turn back". It is only used where nobody could disagree (`reading`).
"""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
ACROSS = {a: ("up", "down") if a in ("left", "right") else ("left", "right") for a in DIRECTIONS}


def _each(*patterns: str) -> tuple[str, ...]:
    """The programs of patterns, for each direction {a}, its opposite {z} and the two across it, {b}."""
    names = [each.format(a=a, b=b, z=z) for a, z in OPPOSITE.items() for b in ACROSS[a] for each in patterns]
    return tuple(dict.fromkeys(names))


GROUPS: dict[str, tuple[str, ...]] = {
    **{"steady": _each("{a}"), "turn": _each("{a}>{b}"), "turn back": _each("{a}>{z}"), "stop": _each("{a}>stop")},
    **{"wait": _each("wait>{a}"), "to and fro": _each("{a}>{z}>{a}"), "three": _each("{a}>{b}>{a}", "{a}>{b}>{z}")},
    **{"circle": ("clockwise", "counterclockwise"), "enter": _each("enter {a}"), "leave": _each("leave {a}")},
    "dash": _each("dash {a}"),
}
FLEETING = (*GROUPS["dash"], "hop", "twitch", "flash")
RELATIVE = ("follow", "pass", "meet", "part", "orbit")
SCALE = ("grow", "shrink")  # in version 2 they may also go somewhere, which is their `path`
# Wider words, true of all programs of their group.
WIDER = ("turn", "turn back", "to and fro", "stop", "wait", "circle", "enter", "leave", "dash")
PROGRAMS = (
    *("still", "spin", "hops", "grow", "shrink", "appear", "vanish"),
    *(program for group, programs in GROUPS.items() if group != "dash" for program in programs),
    *(*FLEETING, *RELATIVE),
)
CLAIMS = (*PROGRAMS, *WIDER)
# Unchanged (or undirected) when time runs backwards.
MIRROR = ("still", "spin", "hops", "hop", "twitch", "flash", *GROUPS["turn back"], *GROUPS["to and fro"])
_BACKWARDS = {
    **OPPOSITE,
    **{"clockwise": "counterclockwise", "counterclockwise": "clockwise", "grow": "shrink", "shrink": "grow"},
    **{"appear": "vanish", "vanish": "appear", "enter": "leave", "leave": "enter", "stop": "wait", "wait": "stop"},
}


@dataclass(frozen=True)
class Motion:
    """A program by name; `path` is the directions it moves in, `other` the index of the object it refers to."""

    name: str
    path: tuple[str, ...] = ()
    other: int | None = None

    @property
    def reversed(self) -> "Motion":
        backwards = motion(reverse(self.name))
        return replace(backwards, path=tuple(map(OPPOSITE.__getitem__, self.path))) if self.name in SCALE else backwards


def motion(name: str) -> Motion:
    words = ("up", "down") if name in ("hops", "hop") else name.replace(">", " ").split()
    return Motion(name, tuple(word for word in words if word in DIRECTIONS))


def reverse(name: str) -> str:
    """The program seen backwards in time. ValueError for relative ones, which have none."""
    if name in RELATIVE:
        raise ValueError(f"{name!r} has no time reverse")
    if name in MIRROR:
        return name
    if ">" in name:
        return ">".join(_BACKWARDS[phase] for phase in reversed(name.split(">")))
    return " ".join(_BACKWARDS[word] if word != "dash" else word for word in name.split())


def opposed(name: str) -> str:
    """The program with all its directions turned round: "left>right" for "right>left"."""
    return re.sub("|".join(OPPOSITE), lambda match: OPPOSITE[match.group()], name)


# What somebody could call so though the claim is not meant for it; the name of a group in <> is all its programs.
_MIGHT = """
still: spin, grow, shrink, appear, vanish, hops, <stop>, <wait>, <enter>, <leave>, <dash>, hop, twitch, flash
turn: <turn back>, <three>, <to and fro>, <circle>, orbit, spin, hops, hop
turn back: <to and fro>, <three>, hops, hop, twitch, spin; to and fro: <turn back>, <three>, twitch, hops, hop
stop: <enter>, <dash>, hop, twitch, flash, <wait>, vanish, meet
wait: <leave>, <dash>, hop, twitch, flash, <stop>, appear; dash: <stop>, <wait>, <enter>, <leave>
circle, clockwise, counterclockwise: orbit, spin, <three>; orbit: <circle>; spin: twitch, orbit, <circle>
hops, hop: hop, hops, up>down, down>up, up>down>up, down>up>down; hop: twitch; twitch: hop, hops, spin
grow: flash, appear; shrink: flash, vanish; flash: grow, shrink
appear: <enter>; vanish: <leave>; enter: appear; leave: vanish
follow: meet, pass; pass: meet, follow, part; meet: pass, follow; part: pass
"""
_MIGHT_BE_CALLED: dict[str, set[str]] = defaultdict(set)
for _entry in _MIGHT.strip().replace("\n", "; ").split("; "):
    _claims, _names = (part.split(", ") for part in _entry.split(": "))
    for _claim, _name in product(_claims, _names):
        _MIGHT_BE_CALLED[_claim].update(GROUPS[_name[1:-1]] if _name[0] == "<" else [_name])


@cache
def reading(claim: str, motion: Motion) -> bool | None:
    """True if the claim holds for the motion, False if not, None if people could disagree."""
    name, path = motion.name, motion.path
    if claim == name or (claim in WIDER and name in GROUPS[claim]):
        return True
    if claim == "move":
        goes = (path and name not in ("hops", "hop")) or name in (*GROUPS["circle"], *RELATIVE)
        return True if goes else False if name == "still" else None
    first, _, last = claim.partition(">" if ">" in claim else " ")
    if claim in (*GROUPS["stop"], *GROUPS["wait"]):
        doubtful = name in (f"dash {first}", f"enter {first}", f"dash {last}", f"leave {last}")
    elif claim in GROUPS["to and fro"]:
        doubtful = name in (*GROUPS["turn back"], "twitch", "hops")
    elif ">" in claim:
        doubtful = claim in ">".join(path) or (name == "hops" and claim == "down>up")
    elif claim in GROUPS["dash"]:
        doubtful = last in path
    else:  # a direction, or a claim of the table above; "enter left" and "leave left" stand there without direction
        doubtful = claim in path or name in _MIGHT_BE_CALLED[first if last in DIRECTIONS else claim]
    return None if doubtful else False


@cache
def claims_of(motion: Motion) -> tuple[str, ...]:
    return tuple(claim for claim in CLAIMS if reading(claim, motion))


@dataclass(frozen=True)
class Track:
    """A motion in time, arrays over T frames, in scene coordinates (pixels from the middle of the frame, y down).

    xy (T, 2) position; scale (T,) relative to the object's size; angle, shear (T,) radians and slope; visible (T,)
    bool; free: whether the whole path may still be shifted along x and y.
    """

    xy: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    shear: np.ndarray
    visible: np.ndarray
    free: tuple[bool, bool] = (True, True)

    @property
    def reversed(self) -> "Track":
        backwards = {name: value[::-1] for name, value in vars(self).items() if name != "free"}
        return replace(self, **backwards)


@dataclass(frozen=True)
class Canvas:
    """Where a motion takes place: T frames of height x width pixels, for an object `across` pixels wide; events come
    `late` in the clip; paths are `stride` times as long as usual."""

    frames: int
    height: int
    width: int
    across: float
    late: bool = False
    stride: float = 1.0

    @property
    def short(self) -> int:
        return min(self.height, self.width)

    @property
    def reach(self) -> np.ndarray:
        """How far, (2,) x and y, the middle of the object may be from the frame's."""
        return np.asarray(self.reach_at(np.ones(1))[0])

    def reach_at(self, zoom: np.ndarray) -> np.ndarray:
        """`reach` where a camera shows objects `zoom` (T,) times as large: (T, 2)."""
        margin = 0.5 * self.across * zoom[:, None] + 0.045 * self.short
        return np.asarray(np.array([self.width, self.height]) / 2 - margin)


def nuisance(xy: np.ndarray, rng: np.random.Generator) -> Track:
    """Along the path xy (T, 2), with the small wobble in place, angle and form that every object has."""
    frames = len(xy)
    u = np.linspace(0, 2 * np.pi, frames)
    rate, phase = rng.uniform(0.5, 1.6, 4)[:, None], rng.uniform(0, 2 * np.pi, 4)[:, None]
    wave = np.sin(rate * u + phase)  # (4, T)
    size = rng.uniform(0.3, 1.0, 4) * (0.9, 0.9, 0.14, 0.1)
    xy = xy + (wave[:2] * size[:2, None]).T
    angle = rng.uniform(-0.35, 0.35) + size[2] * wave[2]
    return Track(xy, np.ones(frames), angle, size[3] * wave[3], np.ones(frames, bool))


def around(canvas: Canvas, rng: np.random.Generator, turn: int) -> np.ndarray:
    """One to one and a half turns around the origin, (T, 2), of radius 1; clockwise for `turn` 1, else -1."""
    whole = turn * rng.uniform(1.0, 1.5) * 2 * np.pi
    angle = rng.uniform(0, 2 * np.pi) + whole * np.linspace(0, 1, canvas.frames)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _phases(names: list[str], canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The path of a program made of phases, (T, 2) in pixels from its start."""
    count = len(names)
    inner = (np.arange(1, count) + rng.uniform(-0.2, 0.2, count - 1)) / count
    if names[0] == "wait":
        inner = rng.uniform(0.55, 0.72, 1) if canvas.late else rng.uniform(0.35, 0.55, 1)
    elif names[-1] == "stop":
        inner = rng.uniform(0.45, 0.65, 1)
    knots = np.concatenate([[rng.uniform(0, 0.06)], inner, [rng.uniform(0.94, 1)]])
    low, high = {1: (0.42, 0.75), 2: (0.38, 0.6), 3: (0.36, 0.48)}[count]
    lengths = rng.uniform(low, high) * canvas.short * canvas.stride * rng.uniform(0.92, 1.08, count)
    steps = np.array([DIRECTIONS.get(name, (0, 0)) for name in names]) * lengths[:, None]
    if count == 3 and names[2] == OPPOSITE.get(names[0]) and names[1] != names[2]:
        steps[2] *= rng.uniform(0.9, 1.0)
    corners = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    u = np.linspace(0, 1, canvas.frames)
    return np.stack([np.interp(u, knots, corners[:, axis]) for axis in (0, 1)], axis=1)


def _event(canvas: Canvas, rng: np.random.Generator, length: int) -> int:
    """The first frame of a fleeting event of `length` frames; never at the very start or end."""
    return int(rng.integers(canvas.frames // 2 if canvas.late else 2, canvas.frames - length - 1))


def track(name: str, canvas: Canvas, rng: np.random.Generator) -> Track:
    frames, short = canvas.frames, canvas.short
    path = np.zeros((frames, 2))
    first, _, last = name.partition(" ")
    if first in ("enter", "leave"):
        return _border(first, last, canvas, rng)
    if name in DIRECTIONS or ">" in name:
        path = _phases(name.split(">"), canvas, rng)
    elif name in GROUPS["circle"]:
        path = around(canvas, rng, 1 if name == "clockwise" else -1) * (rng.uniform(0.19, 0.26) * short * canvas.stride)
    elif name == "hops":
        count = 2 if frames <= 8 else int(rng.integers(3, 5))
        height = rng.uniform(0.22, 0.32) * short
        path[:, 1] = -height * np.abs(np.sin(np.pi * (count * np.linspace(0, 1, frames) + rng.uniform(0, 1))))
    elif first == "dash":
        length = int(rng.integers(2, 5))
        done = np.clip((np.arange(frames) - _event(canvas, rng, length)) / length, 0, 1)
        path = done[:, None] * (np.array(DIRECTIONS[last]) * rng.uniform(0.36, 0.5) * short)
    elif name == "hop":
        start = _event(canvas, rng, 4)
        path[start : start + 4, 1] = -np.array([0.6, 1, 1, 0.6]) * rng.uniform(0.28, 0.36) * short
    else:
        return _in_place(name, canvas, rng)
    extent = np.maximum(np.ptp(path, axis=0), 1e-6)
    return nuisance(path * np.minimum(1, 2 * canvas.reach / extent), rng)  # so that it fits into the frame


def drifting(drawn: Track, direction: str, canvas: Canvas, rng: np.random.Generator) -> Track:
    """The track, also going one way, as what comes nearer or goes away does."""
    path = _phases([direction], canvas, rng)
    extent = np.maximum(np.ptp(path + drawn.xy, axis=0), 1e-6)
    return replace(drawn, xy=drawn.xy + path * np.minimum(1, 2 * canvas.reach / extent))


def _in_place(name: str, canvas: Canvas, rng: np.random.Generator) -> Track:
    """Programs that stay where they are: still, spin, twitch, flash, grow, shrink, appear, vanish."""
    frames = canvas.frames
    base = nuisance(np.zeros((frames, 2)), rng)
    if name == "spin":
        base.angle[:] += rng.uniform(0.4, 0.6) * rng.choice((-1, 1)) * np.arange(frames)  # radians per frame
    elif name == "twitch":
        start = _event(canvas, rng, 4)
        shake = np.array([1.0, -1.0, 1.0, -1.0]) * rng.choice((-1, 1))
        base.angle[start : start + 4] += 0.55 * shake
        base.xy[start : start + 4, 0] += 0.075 * canvas.short * shake
    elif name == "flash":
        length = int(rng.integers(2, 4))
        start = _event(canvas, rng, length)
        base.scale[start : start + length] = rng.uniform(1.55, 1.75)
    elif name in SCALE:
        ends, knots = (0.82, rng.uniform(1.4, 1.6)), (rng.uniform(0, 0.2), rng.uniform(0.8, 1))
        base.scale[:] = np.interp(np.linspace(0, 1, frames), knots, ends if name == "grow" else ends[::-1])
    elif name in ("appear", "vanish"):
        shown = np.arange(frames) >= round(rng.uniform(0.3, 0.6) * frames)
        base.visible[:] = shown if name == "appear" else shown[::-1]
    return base


def perspective(drawn: Track, name: str, canvas: Canvas, rng: np.random.Generator) -> Track:
    """The track of what is filmed from nearby: it grows up to five times as large, or shrinks, evenly in its distance,
    that is in 1 / scale; something that goes (no program of SCALE) as far as it has got. Its outline is not rigid."""
    frames, share = len(drawn.xy), canvas.across / canvas.short
    time = np.linspace(0, 1, frames)
    away = np.linalg.norm(drawn.xy - drawn.xy[0], axis=1)
    part = np.interp(time, (rng.uniform(0, 0.2), rng.uniform(0.8, 1)), (0, 1)) if name in SCALE else away / away.max()
    factor = np.exp(rng.uniform(np.log(1.35 if name in SCALE else 1.1), np.log(5)))
    large = min(1.1 * np.sqrt(factor), 0.85 / share)
    small = max(large / factor, 0.06 / share)
    nearer = name == "grow" or (name != "shrink" and rng.random() < 0.5)
    first, last = (small, large) if nearer else (large, small)
    scale = 1 / (1 / first + (1 / last - 1 / first) * part)
    wave = np.sin(rng.uniform(2, 12) * time * frames / 8 + rng.uniform(0, 2 * np.pi))
    return replace(drawn, scale=scale * np.exp(rng.uniform(0, 0.08) * wave))


def _border(kind: str, direction: str, canvas: Canvas, rng: np.random.Generator) -> Track:
    """Starts, or ends, wholly outside of the frame."""
    axis = 0 if direction in ("left", "right") else 1
    half = (canvas.width, canvas.height)[axis] / 2
    outside = half + 0.62 * canvas.across + 0.08 * canvas.short
    inside = half - rng.uniform(0.5, 0.85) * half * 1.2
    far = min(canvas.reach[axis], max(-canvas.reach[axis], -inside))
    if kind == "enter":
        ends, knots = (-outside, far), (rng.uniform(0, 0.1), rng.uniform(0.65, 0.95))
    else:
        ends, knots = (-far, outside), (rng.uniform(0.05, 0.35), rng.uniform(0.9, 1))
    along = np.interp(np.linspace(0, 1, canvas.frames), knots, ends)
    return replace(nuisance(along[:, None] * np.array(DIRECTIONS[direction]), rng), free=(axis != 0, axis != 1))
