"""From tracks to pixels: sprites, cluttered background, moving camera, occlusion, light, blur and sensor noise.

A `Look` is drawn once as a sprite, a small premultiplied RGBA picture, which is warped into every frame.
"""

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

from dshmp.synthetic import scenery
from dshmp.synthetic.camera import NEAR, Camera, weak
from dshmp.synthetic.grammar import TEXTURES, Look
from dshmp.synthetic.plan import Plan

cv2.setNumThreads(0)

CANVAS = 64  # usual side of a sprite in pixels; the longer side of the bounding box of its shape is FILLED of that
FILLED = 0.75
SIDES = (32, CANVAS, 128)  # of sprites in pictures like natural ones, where objects are of very different sizes
BORDER = 24  # where the camera is weak, the background reaches this many pixels beyond the frame on each side

RGB: dict[str, tuple[int, int, int]] = {
    **{"red": (214, 44, 40), "orange": (244, 138, 28), "yellow": (240, 220, 52), "green": (48, 164, 62)},
    **{"cyan": (62, 208, 216), "blue": (42, 76, 208), "purple": (142, 52, 176), "white": (238, 238, 234)},
}


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


def _drop() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return np.stack([0.85 * np.sin(t) * np.sin(t / 2) ** 1.6, -np.cos(t)], axis=1)


def _fish() -> np.ndarray:
    t = np.linspace(-0.82 * np.pi, 0.82 * np.pi, 40)
    body = np.stack([0.25 + 0.75 * np.cos(t), 0.48 * np.sin(t)], axis=1)
    return np.vstack([body, _corners("-1 0.62, -0.72 0, -1 -0.62")])


def _cloud() -> np.ndarray:
    """The outer edge, seen from the middle, of four discs that stand on a straight line."""
    angles, along = np.linspace(0, 2 * np.pi, 120, endpoint=False), np.linspace(0, 1.5, 301)
    x, y = (each[:, None] * along for each in (np.cos(angles), np.sin(angles)))
    discs = ((-0.62, 0.18, 0.38), (-0.2, -0.2, 0.42), (0.32, -0.12, 0.4), (0.66, 0.2, 0.36), (0, 0.2, 0.4))
    inside = np.any([np.hypot(x - a, y - b) < radius for a, b, radius in discs], axis=0) & (y < 0.5)
    far = (inside * along).max(axis=1)
    return np.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1) * far[:, None])


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
    "oval": _regular(48) * (1, 0.66),
    "drop": _drop(),
    "lightning": _corners("0.1 -1, 0.6 -1, 0.22 -0.25, 0.62 -0.25, -0.4 1, -0.1 0.12, -0.55 0.12"),
    "house": _corners(
        "0 -1, 1 -0.1, 0.8 -0.1, 0.8 1, 0.25 1, 0.25 0.35, -0.25 0.35, -0.25 1, -0.8 1, -0.8 -0.1, -1 -0.1"
    ),
    "fish": _fish(),
    "elbow": _corners("-0.85 -1, -0.3 -1, -0.3 0.42, 0.85 0.42, 0.85 1, -0.85 1"),
    "tee": _corners("-1 -0.95, 1 -0.95, 1 -0.4, 0.28 -0.4, 0.28 1, -0.28 1, -0.28 -0.4, -1 -0.4"),
    "cloud": _cloud(),
    "bar": _corners("-1 -0.22, 1 -0.22, 1 0.22, -1 0.22"),
    "hourglass": _corners("-0.8 -1, 0.8 -1, 0.14 0, 0.8 1, -0.8 1, -0.14 0"),
    "mushroom": np.concatenate([_regular(48, np.pi)[:25], _corners("0.3 0, 0.3 0.85, -0.3 0.85, -0.3 0")]),
    "tree": _corners(
        "0 -1, 0.55 -0.3, 0.25 -0.3, 0.8 0.4, 0.17 0.4, 0.17 1, -0.17 1, -0.17 0.4, -0.8 0.4, -0.25 -0.3, -0.55 -0.3"
    ),
}


@cache
def outline(shape: str, side: int = CANVAS) -> np.ndarray:
    """The soft outline of a shape, float32 (side, side) in 0..1, centred, its longer side FILLED of that wide."""
    points = POLYGONS[shape]
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) / (high - low).max()
    fine, across = 4, side * FILLED  # drawn four times larger, then averaged
    mask = np.zeros((side * fine, side * fine), np.uint8)
    corners = np.rint((points * across + side / 2) * fine).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255)
    if shape == "ring":
        cv2.circle(mask, (side * fine // 2, side * fine // 2), int(across * fine * 0.2), 0, -1)
    small = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 0.8 * (side / CANVAS)).astype(np.float32) / 255)


@cache
def _relief(shape: str, side: int) -> np.ndarray:
    inside = (outline(shape, side) > 0.5).astype(np.uint8)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    return np.asarray((0.62 + 0.38 * np.clip(depth / (5 * (side / CANVAS)), 0, 1)).astype(np.float32))


@cache
def _grid(side: int) -> np.ndarray:
    """Rows and columns, from the middle: float32 (2, side, side)."""
    return np.asarray(np.mgrid[0:side, 0:side].astype(np.float32) - side / 2)


def pattern(texture: str, rng: np.random.Generator, side: int = CANVAS) -> np.ndarray:
    """A pattern of the named texture at a random angle and phase: float32 (side, side) in 0..1."""
    if texture == "plain":
        return np.zeros((side, side), np.float32)
    angle, phase_u, phase_v = rng.uniform(0, 2 * np.pi, 3).astype(np.float32)
    rows, columns = _grid(side)
    u = np.cos(angle) * columns + np.sin(angle) * rows
    v = np.cos(angle) * rows - np.sin(angle) * columns
    turn = 2 * np.pi / (side / CANVAS)  # a whole period in usual pixels
    if texture == "striped":
        wave = np.sin(u * (turn / 13) + phase_u) * 4
    elif texture == "checked":
        wave = np.sin(u * (turn / 22) + phase_u) * np.sin(v * (turn / 22) + phase_v) * 10
    elif texture == "ringed":
        wave = np.sin(np.hypot(u, v) * (turn / 15) + phase_u) * 4
    elif texture == "halved":
        wave = u * (turn / 4)
    elif texture == "netted":
        wave = (np.maximum(np.cos(u * (turn / 13) + phase_u), np.cos(v * (turn / 13) + phase_v)) - 0.75) * 6
    else:  # spotted
        wave = (np.cos(u * (turn / 15) + phase_u) + np.cos(v * (turn / 15) + phase_v) - 0.75) * 5
    return np.asarray(np.clip(wave + 0.5, 0, 1))


def sprite(look: Look, rng: np.random.Generator, side: int = CANVAS, rough: float = 0) -> np.ndarray:
    """Draws a look: premultiplied RGBA uint8 (side, side, 4); `rng` chooses tint, pattern and light; `rough` is how
    strong the noise in its colour is, as a part of it."""
    colour = np.array(RGB[look.colour], np.float32) + rng.uniform(-12, 12, 3).astype(np.float32)
    # The pattern is dark on bright colours and bright on dark ones, so that it shows on all.
    other = colour * 0.3 if colour.sum() > 330 else colour * 0.35 + 165
    mix = (pattern(look.texture, rng, side) * 0.9)[..., None]
    light = rng.uniform(0, 2 * np.pi)
    rows, columns = _grid(side)
    slope = 1 + 0.22 * (np.cos(light) * columns + np.sin(light) * rows) / (side * FILLED / 2)
    shade = (_relief(look.shape, side) * slope)[..., None]
    rgb = (colour * (1 - mix) + other * mix) * shade
    if rough:
        rgb = rgb * (1 + rough * scenery.noise(side, side, rng)[..., :1])
    alpha = outline(look.shape, side)[..., None]
    rgba = np.concatenate([np.clip(rgb, 0, 255) * alpha, alpha * 255], axis=2)
    return np.asarray(np.rint(rgba), np.uint8)


def background(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    """A cluttered picture, uint8 RGB (h, w, 3)."""
    middle = rng.uniform(60, 180, 3)
    picture = np.empty((h, w, 3), np.float32)
    picture[:] = (0.5 * middle.mean() + 0.5 * middle).astype(np.float32)  # half way to grey
    for cells, strength in ((3, 45), (9, 28), (30, 16)):
        grid = rng.uniform(-strength, strength, (cells, cells + 1, 3)).astype(np.float32)
        grid = 0.5 * grid + 0.5 * grid.mean(axis=2, keepdims=True)
        picture += cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)
    canvas = np.clip(picture, 0, 255).astype(np.uint8)
    often = max(1, h * w // 40_000)  # wide scenes have more in them
    for _ in range(int(rng.integers(5, 13)) * often):
        x0, y0, x1, y1 = (rng.random(4) * (w, h, w, h)).astype(int).tolist()
        tint = rng.uniform(30, 220, 3)
        colour = (0.45 * tint + 0.55 * tint.mean()).tolist()
        kind = rng.integers(0, 3)
        if kind == 0:
            cv2.line(canvas, (x0, y0), (x1, y1), colour, int(rng.integers(1, 6)), cv2.LINE_AA)
        elif kind == 1:
            axes = (int(rng.integers(4, 26)), int(rng.integers(4, 26)))
            cv2.ellipse(canvas, (x0, y0), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            corners = np.array([x0, y0]) + rng.integers(-28, 29, (3, 2))
            cv2.fillPoly(canvas, [corners.astype(np.int32)], colour, cv2.LINE_AA)
    canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.8, 2.2)))
    for _ in range(int(rng.integers(1, 4)) * often):  # patches with the textures of objects, to distract
        y, x = int(rng.integers(0, h - CANVAS)), int(rng.integers(0, w - CANVAS))
        side = int(rng.integers(24, CANVAS))
        mark = pattern(TEXTURES[int(rng.integers(1, 4))], rng)[:side, :side, None] * rng.uniform(-45, 45, 3)
        window = canvas[y : y + side, x : x + side]
        window[:] = np.clip(window + mark, 0, 255)
    return np.asarray(canvas)


def _scene(plan: Plan, view: Camera, natural: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The background as a picture, and how far (x, y) it reaches beyond the frame on each side."""
    size = np.array([plan.width, plan.height])
    border = np.array([BORDER, BORDER])
    if view.strong:  # as far as the corners of the frames see
        corners = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]) * size / 2
        back = np.linalg.inv(view.matrices[:, :, :2])
        seen = np.einsum("tij,tkj->tki", back, corners[None] - view.matrices[:, None, :, 2])
        border = np.ceil(np.maximum(np.abs(seen).max(axis=(0, 1)) - size / 2, 0)).astype(int) + 4
    w, h = (int(each) for each in size + 2 * border)
    kind = rng.random() if natural else 1.0
    if kind < 0.35:
        return scenery.leaves(h, w, rng), border
    return scenery.mist(h, w, rng) if kind < 0.5 else background(h, w, rng), border


def _side(across: float, natural: bool) -> int:
    """The side of the sprite of an object: large enough, but not so large that much would be lost on the way."""
    return next((side for side in SIDES[:-1] if side * FILLED >= across), SIDES[-1]) if natural else CANVAS


def render(plan: Plan, natural: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 (T, height, width, 3) RGB and visible masks bool (K, T, height, width) of the K objects, the last
    one in front: pixels of an object that another one hides are not in its mask. natural: half of the backgrounds, and
    the colours of half of the clips' objects, have the statistics of natural pictures."""
    height, width, frames = plan.height, plan.width, len(plan.items[0].track.xy)
    view = plan.camera or weak(frames, min(height, width), rng)
    scene, border = _scene(plan, view, natural, rng)
    rough = float(rng.uniform(0.05, 0.25)) if natural and rng.random() < 0.5 else 0.0
    across = {item.look: item.across for item in plan.items}
    drawn = {item.look: np.empty(0) for item in plan.items}
    for look in drawn:
        drawn[look] = sprite(look, rng, _side(across[look], natural), rough)
    places, forms = _in_image(plan, view, [len(drawn[item.look]) for item in plan.items])
    near = _near(plan, view, places, rng) if view.kind == "parallax" else []
    middle = np.array([width, height]) / 2
    video = np.empty((frames, height, width, 3), np.uint8)
    owner = np.zeros((frames, height, width), np.uint8)
    blur = float(rng.uniform(0.3, 0.65))
    for t in range(frames):
        linear = view.matrices[t, :, :2]
        matrix = np.column_stack([linear, view.matrices[t, :, 2] + middle - linear @ (middle + border)])
        picture = cv2.warpAffine(scene, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
        for k, item in enumerate(plan.items):
            if item.track.visible[t]:
                _paste(picture, owner[t], drawn[item.look], forms[k, t], places[k, t] + middle, k + 1)
        for image, path in near:
            _paste(picture, owner[t], image, np.eye(2), path[t] + middle, 0)
        video[t] = cv2.GaussianBlur(picture, (3, 3), blur)
    labels = np.arange(1, len(plan.items) + 1, dtype=np.uint8)
    return _expose(video, rng), owner[None] == labels[:, None, None, None]


def _in_image(plan: Plan, view: Camera, sides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (K, T, 2) and sprite-to-image matrices (K, T, 2, 2) of all objects as the camera sees them."""
    xy, scale, angle, shear = (
        np.stack([getattr(item.track, name) for item in plan.items]) for name in ("xy", "scale", "angle", "shear")
    )
    filled = np.array(sides) * FILLED
    size = (np.array([item.across for item in plan.items]) / filled)[:, None] * scale  # (K, T)
    cos, sin = np.cos(angle) * size, np.sin(angle) * size
    # rotation times shear along x
    form = np.stack([np.stack([cos, cos * shear - sin], -1), np.stack([sin, sin * shear + cos], -1)], -2)
    linear = view.matrices[:, :, :2]
    return np.einsum("tij,ktj->kti", linear, xy) + view.matrices[None, :, :, 2], linear[None] @ form


def _near(
    plan: Plan, view: Camera, places: np.ndarray, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Patches in front of the scene that go by faster, with their positions (T, 2): up to five of those tried that
    hide none of the objects at `places` (K, T, 2)."""
    size = np.array([plan.width, plan.height])
    path = NEAR * view.matrices[:, :, 2]
    wide = np.array([item.across for item in plan.items])[:, None] / 2 * np.stack([i.track.scale for i in plan.items])
    patches: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(24):
        radius = rng.uniform(0.05, 0.16) * size.min()
        spot = rng.uniform(-0.5, 0.5, 2) * (size + 2 * np.abs(path).max(axis=0)) + path
        clear = np.linalg.norm(places - spot, axis=-1) > 0.9 * (wide + radius)
        if clear.all() and len(patches) < 5:
            patches.append((scenery.patch(int(2 * radius), rng), spot))
    return patches


def _paste(
    picture: np.ndarray, owner: np.ndarray, image: np.ndarray, form: np.ndarray, place: np.ndarray, label: int
) -> None:
    """Blends a sprite into the picture and writes its label where it covers at least half a pixel."""
    (height, width), side = owner.shape, len(image)
    reach = np.abs(form).sum(axis=1) * (side * FILLED / 2 + 3 * (side / CANVAS)) + 1
    x0, y0 = (int(v) for v in np.maximum(np.floor(place - reach), 0))
    x1, y1 = (int(v) for v in np.minimum(np.ceil(place + reach) + 1, (width, height)))
    if x0 >= x1 or y0 >= y1:
        return
    offset = place - (x0, y0) - form @ (side / 2 - 0.5, side / 2 - 0.5) - 0.5
    patch = cv2.warpAffine(image, np.column_stack([form, offset]), (x1 - x0, y1 - y0))
    alpha = patch[..., 3:]
    window = picture[y0:y1, x0:x1]
    window[:] = patch[..., :3] + (window.astype(np.uint16) * (255 - alpha) // 255).astype(np.uint8)
    owner[y0:y1, x0:x1][alpha[..., 0] >= 128] = label


@cache
def _noise_bank() -> np.ndarray:
    """Unit normal noise, float32 (320, 320, 3), from which every frame takes a window."""
    return np.random.default_rng(7).standard_normal((320, 320, 3)).astype(np.float32)


def _expose(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light that changes over time and across the frame, and sensor noise."""
    frames, height, width, _ = video.shape
    u = np.linspace(0, 2 * np.pi, frames)
    level, swing = rng.uniform(0.88, 1.08), rng.uniform(0, 0.09)
    gain = level + swing * np.sin(rng.uniform(0.3, 1.5) * u + rng.uniform(0, 6))
    cast = rng.uniform(0.94, 1.06, 3)
    ramp = 1 + rng.uniform(-0.12, 0.12) * np.linspace(-1, 1, width) + rng.uniform(-0.1, 0.1)
    light = (gain[:, None, None] * ramp[:, None] * cast).astype(np.float32)  # (T, W, 3)
    bank, sigma = _noise_bank(), np.float32(rng.uniform(1.5, 5))
    rows, columns = rng.integers(0, 320 - height, frames), rng.integers(0, 320 - width, frames)
    result = np.empty_like(video)
    for t in range(frames):
        window = bank[rows[t] : rows[t] + height, columns[t] : columns[t] + width]
        result[t] = np.clip(video[t] * light[t] + sigma * window, 0, 255)
    return result
