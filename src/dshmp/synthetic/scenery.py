"""Pictures with the statistics of natural ones: noise of 1/f amplitude, and dead leaves (shapes of many sizes that hide
each other)."""

from functools import cache

import cv2
import numpy as np

FIELD = 512  # side of the stored noise in pixels
FIELDS = 4
STEEP = 1.2  # amplitude falls with this power of the frequency


@cache
def _fields() -> np.ndarray:
    """Noise of about 1/f amplitude that repeats without a seam, float32 (FIELDS, FIELD, FIELD, 3): mean 0, deviation 1;
    its three channels are much alike, as those of photographs are."""
    rng = np.random.default_rng(11)
    rate = np.hypot(np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD))
    rate = rate**STEEP
    rate[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((FIELDS, 4, FIELD, FIELD)))
    pink = np.fft.irfft2(white / rate, s=(FIELD, FIELD))
    pink /= pink.std(axis=(2, 3), keepdims=True)
    mixed = 0.94 * pink[:, :1] + 0.34 * pink[:, 1:]
    return np.ascontiguousarray(mixed.transpose(0, 2, 3, 1), dtype=np.float32)


def noise(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """1/f noise in colour, float32 (height, width, 3), deviation about 1."""
    field = _fields()[int(rng.integers(FIELDS))]
    top, left = (int(each) for each in rng.integers(0, FIELD, 2))
    rows, columns = (np.arange(top, top + height) % FIELD, np.arange(left, left + width) % FIELD)
    if rng.random() < 0.5:
        columns = columns[::-1]
    return np.asarray(field[rows][:, columns])


def _palette(count: int, rng: np.random.Generator) -> np.ndarray:
    """Colours of one picture, float64 (count, 3): of very different brightness, most of them greyish."""
    tint = rng.uniform(0, 255, (count, 3))
    vivid = rng.beta(1, 3, (count, 1))
    return np.asarray(vivid * tint + (1 - vivid) * rng.uniform(20, 235, (count, 1)))


def mist(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """1/f noise around a colour, uint8 RGB (height, width, 3)."""
    return _uint8(_palette(1, rng)[0] * 0.5 + 64 + noise(height, width, rng) * rng.uniform(18, 42))


def leaves(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Dead leaves, uint8 RGB (height, width, 3): the number of shapes falls with the third power of their size."""
    canvas = np.empty((height, width, 3), np.uint8)
    colours = _palette(int(rng.integers(3, 9)), rng)
    canvas[:] = _uint8(colours[0])
    least, most = rng.uniform(3, 7), rng.uniform(35, 70)
    angular = rng.random()  # the share of polygons
    count = int(2.5 * height * width / (2 * np.pi * least**2 * np.log(most / least)))
    # the inverse of the distribution function
    radii = least / np.sqrt(1 - rng.random(count) * (1 - (least / most) ** 2))
    places = rng.random((count, 2)) * (width, height)
    angles, forms = rng.uniform(0, 360, count), rng.uniform(0.35, 1, count)
    tints = np.clip(colours[rng.integers(0, len(colours), count)] + rng.normal(0, 16, (count, 3)), 0, 255)
    corners = np.sort(rng.uniform(0, 2 * np.pi, (count, 5)), axis=1)
    polygons = np.stack([np.cos(corners), np.sin(corners)], -1) * radii[:, None, None] * 1.2 + places[:, None]
    rounded, whole = np.rint(polygons).astype(np.int32), np.rint(places).astype(int).tolist()
    straight = (rng.random(count) < angular).tolist()
    axes = np.rint(np.stack([radii, np.maximum(radii * forms, 1)], 1)).astype(int).tolist()
    for i, colour in enumerate(tints.tolist()):
        if straight[i]:
            cv2.fillConvexPoly(canvas, rounded[i], colour)
        else:
            cv2.ellipse(canvas, whole[i], axes[i], angles[i], 0, 360, colour, -1)
    soft = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.6, 1.3)))
    return _uint8(soft * (1 + noise(height, width, rng) * np.float32(rng.uniform(0.03, 0.16))))


def patch(side: int, rng: np.random.Generator) -> np.ndarray:
    """A rough blob: premultiplied RGBA uint8 (side, side, 4), transparent at its corners."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radii = rng.uniform(0.55, 0.95, 12) * (side / 2 - 1)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + side / 2
    mask = cv2.fillPoly(np.zeros((side, side), np.uint8), [np.rint(points).astype(np.int32)], 255)
    alpha = cv2.GaussianBlur(mask, (0, 0), 1.0).astype(np.float32)[..., None] / 255
    rgb = _uint8(_palette(1, rng)[0] + 18 * noise(side, side, rng))
    return _uint8(np.concatenate([rgb * alpha, alpha * 255], axis=2))


def _uint8(picture: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(picture, 0, 255), np.uint8)
