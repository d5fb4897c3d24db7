"""What an object of the synthetic data set looks like: ten shapes, eight colours, four textures, three sizes.

A `Look` is drawn once as a small premultiplied RGBA picture, which `dshmp.synthetic.render` warps into every frame.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

cv2.setNumThreads(0)

CANVAS = 64  # side of a sprite in pixels
ACROSS = 48  # longer side of the bounding box of a shape on its sprite, in pixels

COLOURS: dict[str, tuple[int, int, int]] = {
    **{"red": (214, 44, 40), "orange": (244, 138, 28), "yellow": (240, 220, 52), "green": (48, 164, 62)},
    **{"cyan": (62, 208, 216), "blue": (42, 76, 208), "purple": (142, 52, 176), "white": (238, 238, 234)},
}
TEXTURES = ("plain", "striped", "spotted", "checked")


@dataclass(frozen=True)
class Look:
    """The static attributes of an object; of sizes there are small, medium and large. Equal ones are drawn alike."""

    shape: str
    colour: str
    texture: str
    size: str


def _regular(corners: int, start: float = -np.pi / 2) -> np.ndarray:
    angles = start + 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


def _crescent() -> np.ndarray:
    outer = np.linspace(0.28 * np.pi, 1.72 * np.pi, 50)
    points = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    # The inner arc runs through both tips and leaves a body 0.8 thick.
    x, y = points[0] - (0.62, 0)
    radius, low = float(np.hypot(x, y)), float(np.arctan2(y, x))
    inner = np.linspace(2 * np.pi - low, low, 50)
    return np.concatenate([points, np.stack([0.62 + radius * np.cos(inner), radius * np.sin(inner)], axis=1)])


def _corners(text: str) -> np.ndarray:
    return np.array([pair.split() for pair in text.split(",")], dtype=float)


POLYGONS: dict[str, np.ndarray] = {
    "disc": _regular(48),
    "square": _corners("-1 -1, 1 -1, 1 1, -1 1"),
    "triangle": _corners("0 -1, 1 0.85, -1 0.85"),
    "star": _regular(10) * np.tile([[1], [0.5]], (5, 1)),
    "heart": _heart(),
    "crescent": _crescent(),
    "arrow": _corners("1 0, 0.1 -0.85, 0.1 -0.38, -1 -0.38, -1 0.38, 0.1 0.38, 0.1 0.85"),
    "cross": _corners(
        "-0.4 -1, 0.4 -1, 0.4 -0.4, 1 -0.4, 1 0.4, 0.4 0.4, 0.4 1, -0.4 1, -0.4 0.4, -1 0.4, -1 -0.4, -0.4 -0.4"
    ),
    "ring": _regular(48),
    "hexagon": _regular(6, 0.0),
}
SHAPES = tuple(POLYGONS)
ROUND = ("disc", "ring", "hexagon")  # spinning can hardly be seen on these


@cache
def outline(shape: str) -> np.ndarray:
    """The soft outline of a shape, float32 (CANVAS, CANVAS) in 0..1, centred, its longer side ACROSS wide."""
    points = POLYGONS[shape]
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) / (high - low).max()
    fine = 4  # drawn four times larger, then averaged
    mask = np.zeros((CANVAS * fine, CANVAS * fine), np.uint8)
    corners = np.rint((points * ACROSS + CANVAS / 2) * fine).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255)
    if shape == "ring":
        cv2.circle(mask, (CANVAS * fine // 2, CANVAS * fine // 2), int(ACROSS * fine * 0.2), 0, -1)
    small = cv2.resize(mask, (CANVAS, CANVAS), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 0.8).astype(np.float32) / 255)


@cache
def _relief(shape: str) -> np.ndarray:
    inside = (outline(shape) > 0.5).astype(np.uint8)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    return np.asarray((0.62 + 0.38 * np.clip(depth / 5, 0, 1)).astype(np.float32))


_ROWS, _COLUMNS = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) - CANVAS / 2


def pattern(texture: str, rng: np.random.Generator) -> np.ndarray:
    """A pattern of the named texture at a random angle and phase: float32 (CANVAS, CANVAS) in 0..1."""
    if texture == "plain":
        return np.zeros((CANVAS, CANVAS), np.float32)
    angle, phase_u, phase_v = rng.uniform(0, 2 * np.pi, 3).astype(np.float32)
    u = np.cos(angle) * _COLUMNS + np.sin(angle) * _ROWS
    v = np.cos(angle) * _ROWS - np.sin(angle) * _COLUMNS
    if texture == "striped":
        wave = np.sin(u * (2 * np.pi / 13) + phase_u) * 4
    elif texture == "checked":
        wave = np.sin(u * (2 * np.pi / 22) + phase_u) * np.sin(v * (2 * np.pi / 22) + phase_v) * 10
    else:  # spotted
        wave = (np.cos(u * (2 * np.pi / 15) + phase_u) + np.cos(v * (2 * np.pi / 15) + phase_v) - 0.75) * 5
    return np.asarray(np.clip(wave + 0.5, 0, 1))


def sprite(look: Look, rng: np.random.Generator) -> np.ndarray:
    """Draws a look: premultiplied RGBA uint8 (CANVAS, CANVAS, 4); `rng` chooses tint, pattern and light."""
    colour = np.array(COLOURS[look.colour], np.float32) + rng.uniform(-12, 12, 3).astype(np.float32)
    # The pattern is dark on bright colours and bright on dark ones, so that it shows on all.
    other = colour * 0.3 if colour.sum() > 330 else colour * 0.35 + 165
    mix = (pattern(look.texture, rng) * 0.9)[..., None]
    light = rng.uniform(0, 2 * np.pi)
    slope = 1 + 0.22 * (np.cos(light) * _COLUMNS + np.sin(light) * _ROWS) / (ACROSS / 2)
    shade = (_relief(look.shape) * slope)[..., None]
    rgb = (colour * (1 - mix) + other * mix) * shade
    alpha = outline(look.shape)[..., None]
    rgba = np.concatenate([np.clip(rgb, 0, 255) * alpha, alpha * 255], axis=2)
    return np.asarray(np.rint(rgba), np.uint8)
