"""Short scenes in which it is known what moves by itself: textured layers under a moving camera, with parallax, objects
that the camera follows, things that stand in front, shadows and water. `dshmp.candidates.moving` learns from their
optical flow."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dshmp.synthetic import scenery

SIZE = 192, 320  # height and width of a scene in pixels
STEPS = (-1, 0, 1)  # its frames; labels are those of the middle one
MARGIN = 96  # pixels that the scenery reaches beyond the frame


@dataclass(frozen=True)
class Scene:
    """frames (3, H, W, 3) uint8 RGB, of times -1, 0, 1; instances (H, W) uint8 of time 0: 0 is what the camera alone
    moves, 1, 2 ... are what moves by itself."""

    frames: NDArray[np.uint8]
    instances: NDArray[np.uint8]


def make_scene(seed: int) -> Scene:
    """A scene; a pure function of its seed."""
    rng = np.random.default_rng([seed, 77])
    height, width = SIZE
    pace = float(np.exp(rng.uniform(math.log(0.6), math.log(9))))  # pixels per frame of the fastest object
    count = int(rng.choice((1, 1, 1, 2, 2, 3, 4)))
    speeds = pace * np.concatenate([[1.0], rng.uniform(0.4, 1, count - 1)])
    headings = rng.uniform(0, 2 * np.pi, count)
    moves = speeds[:, None] * np.stack([np.cos(headings), 0.5 * np.sin(headings)], 1)
    pan = _pan(rng, moves[0])
    zoom, roll = rng.normal(0, 0.008) * (rng.random() < 0.5), rng.normal(0, 0.006) * (rng.random() < 0.4)
    near = rng.uniform(0.3, 1.2) * (rng.random() < 0.7)  # how much faster than the farthest the nearest ground goes by
    depth = _depth(rng) * near
    jolts = rng.normal(0, 0.5, (3, 2)) * (rng.random() < 0.4)
    grounds = [_ground_motion(step, pan, zoom, roll, depth, jolts[i]) for i, step in enumerate(STEPS)]
    picture = _picture(height + 2 * MARGIN, width + 2 * MARGIN, rng)
    water = _water(rng)
    frames = [_look(picture, motion + (0 if water is None else water[i])) for i, motion in enumerate(grounds)]
    instances = np.zeros(SIZE, np.uint8)
    things = [(_Thing(rng), moves[k], k + 1) for k in range(count)]
    things += [(_Thing(rng), np.zeros(2), 0) for _ in range(int(rng.choice((0, 0, 1, 2, 3))))]
    order = rng.permutation(len(things))
    poles, pole_speed = _poles(rng), pan * (1 + near * rng.uniform(0.5, 2))
    for k in order:
        thing, move, label = things[k]
        nearness = 1 + near * rng.uniform(0, 1.3)
        for i, step in enumerate(STEPS):
            shift = (pan * nearness + move) * step + jolts[i]
            pose = thing.pose(step, 1 + zoom * step, roll * step, shift, label > 0)
            if thing.shadow and label:
                _darken(frames[i], thing, pose)
            alpha = _put(frames[i], thing.sprite(step if label else 0), pose)
            if step == 0:
                instances[alpha > 127] = label
    for pole in poles:
        for i, step in enumerate(STEPS):
            cover = pole.draw(frames[i], pole_speed * step + jolts[i], 1 + zoom * step)
            if step == 0:
                instances[cover > 127] = 0
    return Scene(_developed(np.stack(frames), rng), _large(instances))


def _pan(rng: np.random.Generator, followed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels per frame by which the scenery goes by."""
    chance = rng.random()
    if chance < 0.3:
        return -followed * rng.uniform(0.75, 1.1) + rng.normal(0, 0.2, 2)
    if chance < 0.5:
        return rng.normal(0, 0.15, 2)
    speed, heading = np.exp(rng.uniform(math.log(0.3), math.log(8))), rng.uniform(0, 2 * np.pi)
    return np.asarray(np.array([np.cos(heading), 0.4 * np.sin(heading)]) * speed)


def _depth(rng: np.random.Generator) -> NDArray[np.float32]:
    """How near the ground is, (H, W) from 0 to 1: nearer below, and in hills."""
    height, width = SIZE
    rows = np.clip((np.linspace(0, 1, height) - rng.uniform(0, 0.6)) / 0.8, 0, 1)[:, None]
    hills = cv2.resize(rng.random((4, 6)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    steps = hills > rng.uniform(0.4, 0.7)
    kind = rng.choice(3)
    return np.asarray(
        (rows * np.ones((1, width)), rows * 0.6 + 0.4 * hills, 0.7 * rows + 0.3 * steps)[kind], np.float32
    )


def _ground_motion(
    step: int, pan: NDArray[np.float64], zoom: float, roll: float, depth: NDArray[np.float32], jolt: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Per pixel of a frame where in the scenery it looks, (H, W, 2) x, y."""
    height, width = SIZE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cx, cy = x - width / 2, y - height / 2
    size, turn = 1 + zoom * step, roll * step
    cos, sin = math.cos(turn) / size, math.sin(turn) / size
    shift = pan * step + jolt
    at_x = cos * cx + sin * cy + width / 2 - shift[0] * (1 + depth)
    at_y = -sin * cx + cos * cy + height / 2 - shift[1] * (1 + depth)
    return np.stack([at_x, at_y], 2).astype(np.float32)


def _look(picture: NDArray[np.uint8], where: NDArray[np.float32]) -> NDArray[np.uint8]:
    place = (where + MARGIN).astype(np.float32)
    return np.asarray(cv2.remap(picture, place[..., 0], place[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


def _water(rng: np.random.Generator) -> NDArray[np.float32] | None:
    """Something in the scenery that ripples or waves, (3, H, W, 2) pixels; it is no object."""
    if rng.random() > 0.25:
        return None
    height, width = SIZE
    coarse = rng.normal(0, 1, (3, int(rng.integers(4, 20)), int(rng.integers(6, 32)), 2)).astype(np.float32)
    waves = np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC) for each in coarse])
    where = _depth(rng)[None, ..., None] > rng.uniform(0.2, 0.6)
    return np.asarray(waves * where * rng.uniform(0.3, 2.0), np.float32)


def _picture(height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Scenery: leaves or mist, with lines and large even parts."""
    picture = np.ascontiguousarray((scenery.leaves if rng.random() < 0.65 else scenery.mist)(height, width, rng))
    for _ in range(int(rng.integers(0, 3))):  # sky, walls, roads
        other = scenery.mist(height, width, rng)
        mask = np.zeros((height, width), np.uint8)
        if rng.random() < 0.5:
            level, slope = int(rng.uniform(0, 1) * height), int(rng.normal(0, 0.15) * height)
            corners = np.array([[0, level], [width, level + slope], [width, height * 2], [0, height * 2]])
        else:
            corners = (rng.uniform(-0.1, 1.1, (4, 2)) * (width, height)).astype(int)
            corners = cv2.convexHull(corners.astype(np.int32))[:, 0]
        cv2.fillPoly(mask, [corners.astype(np.int32)], 255)
        picture = np.ascontiguousarray(np.where(mask[..., None] > 0, other, picture))
    for _ in range(int(rng.integers(0, 8))):
        start, end = (rng.uniform(0, 1, (2, 2)) * (width, height)).astype(int).tolist()
        cv2.line(picture, start, end, rng.integers(0, 255, 3).tolist(), int(rng.integers(1, 6)))
    return picture


class _Thing:
    """An object: parts of one or more textures, some of which swing as limbs do."""

    def __init__(self, rng: np.random.Generator) -> None:
        height, width = SIZE
        self.side = int(np.exp(rng.uniform(math.log(30), math.log(150))))
        self.place = rng.uniform((0.08, 0.12), (0.92, 0.9)) * (width, height)
        self.shadow = rng.random() < 0.3
        self.turn, self.grow = rng.normal(0, 0.03) * (rng.random() < 0.5), rng.normal(0, 0.012) * (rng.random() < 0.5)
        side = self.side
        cloth = _picture(side, side, rng) if rng.random() < 0.6 else scenery.mist(side, side, rng)
        second = scenery.mist(side, side, rng)
        body = _blob(side, (side / 2, side / 2), rng.uniform(0.22, 0.48, 2) * side, rng.uniform(0, np.pi), rng)
        self.parts = [(body, cloth, 0.0)]
        for _ in range(int(rng.choice((0, 0, 1, 2, 4)))):
            angle = rng.uniform(0, 2 * np.pi)
            middle = (0.5 + 0.24 * np.array([np.cos(angle), np.sin(angle)])) * side
            axes = np.array([rng.uniform(0.12, 0.26), rng.uniform(0.05, 0.12)]) * side
            limb = _blob(side, tuple(middle), axes, angle, rng)
            self.parts.append((limb, cloth if rng.random() < 0.5 else second, rng.normal(0, 0.12)))

    def sprite(self, step: int) -> NDArray[np.float32]:
        """RGB and alpha, premultiplied, (side, side, 4) from 0 to 255."""
        canvas: NDArray[np.float32] = np.zeros((self.side, self.side, 4), np.float32)
        for mask, cloth, swing in self.parts:
            part = np.dstack([cloth.astype(np.float32), np.full(mask.shape, 255, np.float32)]) * (mask[..., None] / 255)
            if swing and step:
                turn = cv2.getRotationMatrix2D((self.side / 2, self.side / 2), math.degrees(swing * step), 1)
                part = cv2.warpAffine(part, turn, (self.side, self.side))
            canvas = np.asarray(part + canvas * (1 - part[..., 3:] / 255), np.float32)
        return canvas

    def pose(self, step: int, size: float, roll: float, shift: NDArray[np.float64], free: bool) -> NDArray[np.float64]:
        """From the sprite to the frame, (2, 3)."""
        height, width = SIZE
        turn, size = (roll + free * self.turn * step), size * (1 + free * self.grow * step)
        cos, sin = math.cos(turn) * size, math.sin(turn) * size
        middle = np.array([width, height]) / 2
        away = (self.place - middle) * size + middle + shift
        linear = np.array([[cos, -sin], [sin, cos]])
        return np.column_stack([linear, away - linear @ np.full(2, self.side / 2)])


@dataclass(frozen=True)
class _Pole:
    """A post, trunk, or rail nearer than all else: what goes by fast without being an object."""

    ends: NDArray[np.float64]  # (2, 2) x, y
    width: int
    colour: list[int]

    def draw(self, frame: NDArray[np.uint8], shift: NDArray[np.float64], size: float) -> NDArray[np.uint8]:
        """Draw it; returns its alpha in the frame, (H, W) from 0 to 255."""
        middle = np.array([SIZE[1], SIZE[0]]) / 2
        alpha = np.zeros(SIZE, np.uint8)
        start, end = np.rint(((self.ends - middle) * size + middle + shift) * 16).astype(int).tolist()
        cv2.line(alpha, start, end, 255, self.width, cv2.LINE_AA, 4)
        share = alpha[..., None] / 255
        frame[:] = np.asarray(self.colour) * share + frame * (1 - share)
        return alpha


def _poles(rng: np.random.Generator) -> list[_Pole]:
    """None, or a few beside each other."""
    height, width = SIZE
    if rng.random() > 0.3:
        return []
    lean, thick = rng.normal(0, 0.1), float(np.exp(rng.uniform(math.log(2), math.log(14))))
    colour = rng.integers(20, 236, 3)
    poles = []
    for _ in range(int(rng.integers(1, 9))):
        x = rng.uniform(-0.2, 1.2) * width
        top, bottom = rng.choice((-0.5, rng.uniform(0, 0.6))) * height, rng.uniform(0.6, 1.5) * height
        tilt = lean + rng.normal(0, 0.02)
        ends = np.array([[x + tilt * (top - bottom), top], [x, bottom]])
        shade = np.clip(colour + rng.normal(0, 12, 3), 0, 255).astype(int).tolist()
        poles.append(_Pole(ends, max(1, round(thick * rng.uniform(0.8, 1.2))), shade))
    return poles


def _blob(
    side: int, middle: tuple[float, float], axes: NDArray[np.float64], angle: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A rough ellipse or polygon, (side, side) from 0 to 255 with soft edges."""
    corners = np.linspace(0, 2 * np.pi, 16 if rng.random() < 0.75 else 5, endpoint=False)
    radii = rng.uniform(0.75, 1.1, len(corners))
    points = np.stack([axes[0] * np.cos(corners), axes[1] * np.sin(corners)], 1) * radii[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    points = points @ np.array([[cos, sin], [-sin, cos]]) + middle
    mask = cv2.fillPoly(np.zeros((side, side), np.uint8), [np.rint(points).astype(np.int32)], 255)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), 0.7), np.float32)


def _put(frame: NDArray[np.uint8], sprite: NDArray[np.float32], pose: NDArray[np.float64]) -> NDArray[np.float32]:
    """Draw it; returns its alpha in the frame, (H, W) from 0 to 255."""
    drawn = cv2.warpAffine(sprite, pose, SIZE[::-1])
    alpha = drawn[..., 3:]
    frame[:] = np.clip(drawn[..., :3] + frame * (1 - alpha / 255), 0, 255)
    return np.asarray(alpha[..., 0])


def _darken(frame: NDArray[np.uint8], thing: _Thing, pose: NDArray[np.float64]) -> None:
    """A soft shadow below the object, which moves with it and is no part of it."""
    x, y = pose[:, :2] @ (thing.side / 2, thing.side * 0.85) + pose[:, 2]
    shade = np.zeros(SIZE, np.float32)
    cv2.ellipse(shade, (int(x), int(y)), (int(thing.side * 0.4), max(2, int(thing.side * 0.1))), 0, 0, 360, 0.45, -1)
    frame[:] = frame * (1 - cv2.GaussianBlur(shade, (0, 0), 3)[..., None])


def _large(instances: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Without what is hardly seen."""
    for label in range(1, int(instances.max()) + 1):
        if (instances == label).sum() < 60:
            instances[instances == label] = 0
    return instances


def _developed(frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blur, light and noise of a camera."""
    blur = rng.uniform(0.3, 1.3) if rng.random() < 0.6 else 0.0
    light, grain = 1 + rng.normal(0, 0.015, 3), rng.uniform(0, 6)
    shown = []
    for i, frame in enumerate(frames):
        soft = cv2.GaussianBlur(frame, (0, 0), blur) if blur else frame
        noisy = np.clip(soft * light[i] + rng.normal(0, grain, soft.shape), 0, 255).astype(np.uint8)
        _, code = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))])
        shown.append(np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR)))
    return np.stack(shown)
