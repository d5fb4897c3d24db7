"""What an object of the synthetic data set does: motion programs, their time reverse and what they may be called.

A program is named by its phases: "left", "left>up", "left>stop", "wait>up", "left>up>right", or by a word such
as "clockwise" or "hops". Relative programs ("follow", "pass", "meet", "part", "orbit") refer to another object.
A *claim* is what an expression says about a motion: the name of a program, or a wider word such as "turn back".
`reading` decides whether a claim is true of a motion, false, or something people could disagree about; an
expression is only used where nobody could disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}

STEADY = tuple(DIRECTIONS)
TURNING = tuple(f"{a}>{b}" for a in DIRECTIONS for b in DIRECTIONS if b not in (a, OPPOSITE[a]))
TURNING_BACK = tuple(f"{a}>{OPPOSITE[a]}" for a in DIRECTIONS)
STOPPING = tuple(f"{a}>stop" for a in DIRECTIONS)
WAITING = tuple(f"wait>{a}" for a in DIRECTIONS)
TO_AND_FRO = tuple(f"{a}>{OPPOSITE[a]}>{a}" for a in DIRECTIONS)
THREE = tuple(f"{a}>{b}>{c}" for a, b in (t.split(">") for t in TURNING) for c in (a, OPPOSITE[a]))
CIRCLING = ("clockwise", "counterclockwise")
ENTERING = tuple(f"enter {a}" for a in DIRECTIONS)
LEAVING = tuple(f"leave {a}" for a in DIRECTIONS)
DASHING = tuple(f"dash {a}" for a in DIRECTIONS)
FLEETING = (*DASHING, "hop", "twitch", "flash")
RELATIVE = ("follow", "pass", "meet", "part", "orbit")
SCALING = ("grow", "shrink", "flash")

# Wider words, each with the programs that they are true of.
WIDER: dict[str, tuple[str, ...]] = {
    "turn": TURNING,
    "turn back": TURNING_BACK,
    "to and fro": TO_AND_FRO,
    "stop": STOPPING,
    "wait": WAITING,
    "circle": CIRCLING,
    "enter": ENTERING,
    "leave": LEAVING,
    "dash": DASHING,
}
PROGRAMS = (
    *("still", "spin", "hops", "grow", "shrink", "appear", "vanish"),
    *(*STEADY, *TURNING, *TURNING_BACK, *STOPPING, *WAITING, *TO_AND_FRO, *THREE),
    *(*CIRCLING, *ENTERING, *LEAVING, *FLEETING, *RELATIVE),
)
CLAIMS = (*PROGRAMS, *WIDER)
# Unchanged (or undirected) when time runs backwards.
MIRROR = ("still", "spin", "hops", "hop", "twitch", "flash", *TURNING_BACK, *TO_AND_FRO)


@dataclass(frozen=True)
class Motion:
    """A program by name; `path` is the directions it moves in, `other` the index of the object it refers to."""

    name: str
    path: tuple[str, ...] = ()
    other: int | None = None


def motion(name: str) -> Motion:
    """The motion of a program that refers to no other object."""
    if name in ("hops", "hop"):
        return Motion(name, ("up", "down"))
    words = name.replace(">", " ").split()
    return Motion(name, tuple(word for word in words if word in DIRECTIONS))


def reverse(name: str) -> str:
    """The name of a program seen backwards in time. ValueError for relative programs, which have none."""
    if name in RELATIVE:
        raise ValueError(f"{name!r} has no time reverse")
    swaps = {
        **{"clockwise": "counterclockwise", "counterclockwise": "clockwise"},
        **{"grow": "shrink", "shrink": "grow"},
        **{"appear": "vanish", "vanish": "appear", "enter": "leave", "leave": "enter"},
        **{"stop": "wait", "wait": "stop", **OPPOSITE},
    }
    if name in MIRROR:
        return name
    if ">" in name:
        return ">".join(swaps[phase] for phase in reversed(name.split(">")))
    return " ".join(swaps.get(word, word) for word in name.split())


@cache
def _reading(claim: str, name: str, path: tuple[str, ...]) -> bool | None:
    if claim == name or name in WIDER.get(claim, ()):
        return True
    return None if _might_be_called(claim, name, path) else False


def _might_be_called(claim: str, name: str, path: tuple[str, ...]) -> bool:
    """Whether somebody could use the claim for a program that it is not meant for."""
    if claim in DIRECTIONS:
        return claim in path
    if claim.startswith("dash "):
        return claim.removeprefix("dash ") in path
    if claim.startswith(("enter", "leave")):
        return name == {"enter": "appear", "leave": "vanish"}[claim.split()[0]]
    if claim in STOPPING:
        return name in (f"dash {claim[:-5]}", f"enter {claim[:-5]}")
    if claim in WAITING:
        return name in (f"dash {claim[5:]}", f"leave {claim[5:]}")
    if claim in TO_AND_FRO:
        return name in TURNING_BACK or name in ("twitch", "hops")
    if ">" in claim:
        return ">".join(path).find(claim) >= 0 or (name == "hops" and claim == "down>up")
    vertical_bounce = ("up>down", "down>up", "up>down>up", "down>up>down")
    broken = (*STOPPING, *WAITING, *ENTERING, *LEAVING, *FLEETING)
    might: dict[str, tuple[str, ...]] = {
        "still": ("spin", "grow", "shrink", "appear", "vanish", "hops", *broken),
        "turn": (*TURNING_BACK, *THREE, *TO_AND_FRO, *CIRCLING, "orbit", "spin", "hops", "hop"),
        "turn back": (*TO_AND_FRO, *THREE, "hops", "hop", "twitch", "spin"),
        "to and fro": (*TURNING_BACK, *THREE, "twitch", "hops", "hop"),
        "stop": (*ENTERING, *FLEETING, *WAITING, "vanish", "meet"),
        "wait": (*LEAVING, *FLEETING, *STOPPING, "appear"),
        "clockwise": ("orbit", "spin", *THREE),
        "counterclockwise": ("orbit", "spin", *THREE),
        "circle": ("orbit", "spin", *THREE),
        "orbit": CIRCLING,
        "spin": ("twitch", "orbit", *CIRCLING),
        "hops": ("hop", *vertical_bounce),
        "hop": ("hops", "twitch", *vertical_bounce),
        "twitch": ("hop", "hops", "spin"),
        "grow": ("flash", "appear"),
        "shrink": ("flash", "vanish"),
        "flash": ("grow", "shrink"),
        "appear": ENTERING,
        "vanish": LEAVING,
        "dash": (*STOPPING, *WAITING, *ENTERING, *LEAVING),
        "follow": ("meet", "pass"),
        "pass": ("meet", "follow", "part"),
        "meet": ("pass", "follow"),
        "part": ("pass",),
    }
    return name in might.get(claim, ())


def reading(claim: str, motion: Motion) -> bool | None:
    """True if the claim holds for the motion, False if not, None if people could disagree."""
    return _reading(claim, motion.name, motion.path)


@cache
def claims_of(motion: Motion) -> tuple[str, ...]:
    """All claims that are true of a motion."""
    return tuple(claim for claim in CLAIMS if reading(claim, motion))


@dataclass(frozen=True)
class Track:
    """A motion in time, arrays over T frames, in scene coordinates (pixels from the middle of the frame, y down).

    xy (T, 2) position; scale (T,) relative to the object's size; angle, shear (T,) radians and slope;
    visible (T,) bool; free: whether the whole path may still be shifted along x and y.
    """

    xy: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    shear: np.ndarray
    visible: np.ndarray
    free: tuple[bool, bool] = (True, True)


@dataclass(frozen=True)
class Canvas:
    """Where a motion takes place: T frames of height x width pixels, for an object `across` pixels wide."""

    frames: int
    height: int
    width: int
    across: float
    late: bool = False  # events come late in the clip

    @property
    def short(self) -> int:
        return min(self.height, self.width)

    @property
    def room(self) -> np.ndarray:
        """Half the extent, (2,) x and y, that the middle of the object may use without leaving the frame."""
        return np.array([self.width, self.height]) / 2 - (0.5 * self.across + 0.045 * self.short)


def nuisance(xy: np.ndarray, rng: np.random.Generator) -> Track:
    """A track along the path xy (T, 2), with the small wobble in place, angle and form that every object has."""
    frames = len(xy)
    u = np.linspace(0, 2 * np.pi, frames)
    rate, phase = rng.uniform(0.5, 1.6, 4)[:, None], rng.uniform(0, 2 * np.pi, 4)[:, None]
    wave = np.sin(rate * u + phase)  # (4, T)
    size = rng.uniform(0.3, 1.0, 4) * (0.9, 0.9, 0.14, 0.1)
    return Track(
        xy=xy + (wave[:2] * size[:2, None]).T,
        scale=np.ones(frames),
        angle=rng.uniform(-0.35, 0.35) + size[2] * wave[2],
        shear=size[3] * wave[3],
        visible=np.ones(frames, bool),
    )


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
    lengths = rng.uniform(low, high) * canvas.short * rng.uniform(0.92, 1.08, count)
    steps = np.array([DIRECTIONS.get(name, (0, 0)) for name in names]) * lengths[:, None]
    if count == 3 and names[2] == OPPOSITE.get(names[0]) and names[1] != names[2]:
        steps[2] *= rng.uniform(0.9, 1.0)
    corners = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    u = np.linspace(0, 1, canvas.frames)
    return np.stack([np.interp(u, knots, corners[:, axis]) for axis in (0, 1)], axis=1)


def _event(canvas: Canvas, rng: np.random.Generator, length: int) -> int:
    """The first frame of a fleeting event of `length` frames; never at the very start or end."""
    first = canvas.frames // 2 if canvas.late else 2
    return int(rng.integers(first, canvas.frames - length - 1))


def _within(xy: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Shrinks a path along each axis so that it fits into the frame."""
    extent = np.maximum(np.ptp(xy, axis=0), 1e-6)
    fitted: np.ndarray = xy * np.minimum(1, 2 * canvas.room / extent)
    return fitted


def track(name: str, canvas: Canvas, rng: np.random.Generator) -> Track:
    """Draws the track of a program that refers to no other object."""
    frames, short = canvas.frames, canvas.short
    u = np.linspace(0, 1, frames)
    rest = np.zeros((frames, 2))
    first, _, last = name.partition(" ")
    if first in ("enter", "leave"):
        return _border(first, last, canvas, rng)
    if name in DIRECTIONS or ">" in name:
        return nuisance(_within(_phases(name.split(">"), canvas, rng), canvas), rng)
    if name in CIRCLING:
        turn = (1 if name == "clockwise" else -1) * rng.uniform(1.0, 1.5) * 2 * np.pi
        angle = rng.uniform(0, 2 * np.pi) + turn * u
        radius = rng.uniform(0.19, 0.26) * short
        return nuisance(_within(radius * np.stack([np.cos(angle), np.sin(angle)], axis=1), canvas), rng)
    if name == "hops":
        count = 2 if frames <= 8 else int(rng.integers(3, 5))
        height = rng.uniform(0.22, 0.32) * short
        rest[:, 1] = -height * np.abs(np.sin(np.pi * (count * u + rng.uniform(0, 1))))
        return nuisance(_within(rest, canvas), rng)
    if first == "dash":
        length = int(rng.integers(2, 5))
        start = _event(canvas, rng, length)
        done = np.clip((np.arange(frames) - start) / length, 0, 1)
        way = np.array(DIRECTIONS[last]) * rng.uniform(0.36, 0.5) * short
        return nuisance(_within(done[:, None] * way, canvas), rng)
    if name == "hop":
        start = _event(canvas, rng, 4)
        rest[start : start + 4, 1] = -np.array([0.6, 1, 1, 0.6]) * rng.uniform(0.28, 0.36) * short
        return nuisance(_within(rest, canvas), rng)
    return _in_place(name, canvas, rng)


def _in_place(name: str, canvas: Canvas, rng: np.random.Generator) -> Track:
    """Programs that stay where they are: still, spin, twitch, flash, grow, shrink, appear, vanish."""
    frames = canvas.frames
    xy = np.zeros((frames, 2))
    base = nuisance(xy, rng)
    angle, scale, visible = base.angle, base.scale, base.visible
    if name == "spin":
        speed = rng.uniform(0.4, 0.6) * rng.choice((-1, 1))  # radians per frame
        angle = angle + speed * np.arange(frames)
    elif name == "twitch":
        start = _event(canvas, rng, 4)
        shake = np.array([1.0, -1.0, 1.0, -1.0]) * rng.choice((-1, 1))
        angle = angle.copy()
        angle[start : start + 4] += 0.55 * shake
        xy[start : start + 4, 0] = 0.075 * canvas.short * shake
    elif name == "flash":
        length = int(rng.integers(2, 4))
        start = _event(canvas, rng, length)
        scale = scale.copy()
        scale[start : start + length] = rng.uniform(1.55, 1.75)
    elif name in ("grow", "shrink"):
        ends = (0.82, rng.uniform(1.4, 1.6))
        knots = (rng.uniform(0, 0.2), rng.uniform(0.8, 1))
        scale = np.interp(np.linspace(0, 1, frames), knots, ends if name == "grow" else ends[::-1])
    elif name in ("appear", "vanish"):
        cut = round(rng.uniform(0.3, 0.6) * frames)
        shown = np.arange(frames) >= cut
        visible = shown if name == "appear" else shown[::-1]
    return Track(base.xy + xy, scale, angle, base.shear, visible)


def _border(kind: str, direction: str, canvas: Canvas, rng: np.random.Generator) -> Track:
    """Enters or leaves the frame moving in `direction`: starts, or ends, wholly outside."""
    axis = 0 if direction in ("left", "right") else 1
    way = DIRECTIONS[direction][axis]
    half = (canvas.width, canvas.height)[axis] / 2
    outside = half + 0.62 * canvas.across + 0.08 * canvas.short
    inside = half - rng.uniform(0.5, 0.85) * half * 1.2
    far = min(canvas.room[axis], max(-canvas.room[axis], -inside))
    if kind == "enter":
        ends, knots = (-outside, far), (rng.uniform(0, 0.1), rng.uniform(0.65, 0.95))
    else:
        ends, knots = (-far, outside), (rng.uniform(0.05, 0.35), rng.uniform(0.9, 1))
    xy = np.zeros((canvas.frames, 2))
    xy[:, axis] = way * np.interp(np.linspace(0, 1, canvas.frames), knots, ends)
    made = nuisance(xy, rng)
    free = (axis != 0, axis != 1)
    return Track(made.xy, made.scale, made.angle, made.shear, made.visible, free)
