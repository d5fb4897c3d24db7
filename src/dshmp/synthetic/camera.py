"""Cameras of the synthetic data set: from scene to image.

A camera is float64 (T, 2, 3): scene pixels (from the middle) to image pixels (from the middle), per frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dshmp.synthetic.motions import Canvas, Track

STRONG = ("pan", "follow", "zoom", "shake", "parallax")
NEAR = 1.6  # how much faster than the scene the near patches of `parallax` go by


@dataclass(frozen=True)
class Camera:
    """kind: "weak" or one of STRONG; matrices (T, 2, 3); followed: the index of the object that `follow` follows."""

    kind: str
    matrices: np.ndarray
    followed: int | None = None

    @property
    def strong(self) -> bool:
        return self.kind in STRONG

    @property
    def reversed(self) -> "Camera":
        return replace(self, matrices=self.matrices[::-1])

    def zoom(self) -> np.ndarray:
        """Image pixels per scene pixel, (T,)."""
        return np.asarray(np.sqrt(np.linalg.det(self.matrices[:, :, :2])))

    def see(self, xy: np.ndarray) -> np.ndarray:
        """Scene positions (..., T, 2) to image positions, both from the middle."""
        return np.asarray(np.einsum("tij,...tj->...ti", self.matrices[:, :, :2], xy) + self.matrices[:, :, 2])


def _matrices(zoom: np.ndarray, roll: np.ndarray, shift: np.ndarray) -> np.ndarray:
    cos, sin = zoom * np.cos(roll), zoom * np.sin(roll)
    return np.stack([np.stack([cos, -sin, shift[:, 0]], 1), np.stack([sin, cos, shift[:, 1]], 1)], 1)


def weak(frames: int, short: int, rng: np.random.Generator) -> Camera:
    """Pan of at most 6 % of the short side over the clip, zoom of at most 5 %, and a shake below a pixel: small
    against the motions of objects (35 % and more), so that directions in scene and image always agree.
    """
    u = np.linspace(-0.5, 0.5, frames)
    heading, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.06) * short
    shift = reach * u[:, None] * (np.cos(heading), np.sin(heading)) + rng.normal(0, 0.3, (frames, 2))
    zoom = 1 + rng.uniform(-0.05, 0.05) * u + 0.004 * rng.normal(size=frames)
    roll = rng.uniform(-0.03, 0.03) * u + rng.normal(0, 0.003, frames)
    return Camera("weak", _matrices(zoom, roll, shift))


def followable(drawn: Sequence[Track], names: Sequence[str], short: int) -> list[int]:
    """The objects that a camera can follow: those that get somewhere."""
    far = [float(np.ptp(track.xy, axis=0).max()) > 0.15 * short for track in drawn]
    return [i for i, name in enumerate(names) if far[i] and name not in ("hops", "hop", "twitch")]


def strong(
    kind: str, power: float, canvas: Canvas, path: np.ndarray | None, followed: int | None, rng: np.random.Generator
) -> Camera:
    """A camera that moves as much as objects do. `power` in 0..1 weakens a pan or a zoom; `path` (T, 2) is that of
    the object which `follow` keeps in place."""
    frames, short = canvas.frames, canvas.short
    u = np.linspace(-0.5, 0.5, frames)
    shift, zoom, roll = rng.normal(0, 0.25, (frames, 2)), np.ones(frames), rng.normal(0, 0.002, frames)
    if kind in ("pan", "parallax"):
        shift += _pan(canvas, power * rng.uniform(0.45, 1), rng)
    elif kind == "follow":
        assert path is not None
        shift += path.mean(axis=0) - path + _smooth(frames, 2, rng) * (0.022 * short)
    elif kind == "zoom":
        ends = np.log(rng.uniform(0.7, 0.95)), np.log(rng.uniform(1.1, 1.5))
        low, high = (end * max(power, 0.7) for end in ends)
        zoom = np.exp(low + (high - low) * (u + 0.5 if rng.random() < 0.5 else 0.5 - u))
        shift += _pan(canvas, 0.06, rng)
    else:
        shift += _smooth(frames, 2, rng) * (rng.uniform(0.035, 0.08) * short)
        roll += _smooth(frames, 1, rng)[:, 0] * rng.uniform(0.02, 0.09)
    return Camera(kind, _matrices(zoom, roll, shift), followed)


def _pan(canvas: Canvas, amount: float, rng: np.random.Generator) -> np.ndarray:
    """A steady or curved path, (T, 2), as long as `amount` times the frame in its direction, around 0."""
    heading = rng.choice((0, np.pi)) + rng.normal(0, 0.5) if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
    bend = 0.0 if rng.random() < 0.5 else rng.uniform(-1.6, 1.6)
    pace = 1 + rng.uniform(-0.5, 0.5) * np.sin(np.linspace(0, np.pi, canvas.frames) + rng.uniform(0, 2 * np.pi))
    angles = heading + bend * np.linspace(-0.5, 0.5, canvas.frames)
    steps = pace[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1) / pace.sum()
    path = np.cumsum(steps, axis=0) * (amount * np.array([canvas.width, canvas.height]))
    return np.asarray(path - (path.min(axis=0) + path.max(axis=0)) / 2)


def _smooth(frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` smooth random curves, (T, count), of which the largest just reaches -1 or 1."""
    u = np.arange(frames)[:, None, None] / 8  # in seconds
    rate, phase = rng.uniform(0.3, 1.6, (3, count)), rng.uniform(0, 2 * np.pi, (3, count))
    curves = (np.sin(2 * np.pi * rate * u + phase) / (0.5 + rate)).sum(axis=1)
    curves -= (curves.min(axis=0) + curves.max(axis=0)) / 2
    return np.asarray(curves / max(float(np.abs(curves).max()), 1e-6))
