"""Augmentation of clips: what is changed in the pixels is changed in the masks and, where it matters, in the words.

A clip is frames (T, H, W, 3) uint8 RGB, masks (G, T, H, W) bool and the sentences said of it. Every function is pure,
draws from the generator it is given, and treats all frames of a clip alike. Where a change would make a sentence untrue
it is left out: no flip where "left" cannot be mirrored with certainty, no crop where the sentence speaks of the frame's
border, no change of hue where it names a colour. Time is never reversed: that turns "rises" into "falls".
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from dshmp.config import Count, Share
from dshmp.data.mirror import mirror_sentence
from dshmp.video.images import scaled_size

Frames = NDArray[np.uint8]  # or one of them
Masks = NDArray[np.bool_]
Floats = NDArray[np.float64]
Clip = tuple[Frames, Masks]
AugmentedClip = tuple[Frames, Masks, tuple[str, ...]]

Strength = Annotated[float, Field(ge=0, le=0.9)]
# In degrees. With it and `path_shear`, a thing beside another stays beside it: tan(30 degrees) + 0.3 < 1.
Angle = Annotated[float, Field(ge=0, le=30)]
TRIES = 10  # draws before a change that would lose the target is given up
KEPT = 0.1  # share of the target's pixels that a crop keeps; no sentence means a sliver at the border


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to a clip; `crop`, `flip`, `rotate` and `jitter` are probabilities per clip, and 0 is off.

    Frames, sizes, crop and flip are the release's; rotation and colour are ours (the release has neither for videos).
    With a drift, the crop's window moves along a straight line, as if the camera panned (the release pans along one
    diagonal only): motion in the image then differs from motion in the scene, and the synthetic data's sentences mean
    the former. RefCOCO's stills are better off without a crop. The flip is of frames, masks and words (the release
    leaves the words as they are). The `path_*` of pseudo-clips are the largest shift (as part of the sides), rotation
    (release: 15 degrees), zoom (scales lie between 1 / (1 + this) and 1 + this) and shear (as a slope).
    """

    frames: Count = 8
    reach: Count = 10  # frames lie this many at most before or after a reference frame
    short_sides: tuple[Count, ...] = (288, 320, 352, 384, 416, 448, 480, 512)  # one of these, or none: no resizing
    long_side: Count = 768  # no longer than this after resizing (ReferFormer: 640)
    crop: Share = 0.5  # a window is cut out before resizing
    crop_scales: tuple[Count, ...] = (400, 500, 600)  # it is measured on the clip with a short side of one of these
    crop_sizes: tuple[Count, Count] = (384, 600)  # range of its height and of its width
    crop_drift: bool = True
    flip: Share = 0.5
    rotate: Share = 0.25
    angle: Angle = 10.0
    jitter: Share = 0.5
    brightness: Strength = 0.2  # factors lie in 1 +- this; likewise contrast and saturation
    contrast: Strength = 0.2
    saturation: Strength = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05  # largest turn as part of the colour circle
    path_shift: Strength = 0.08
    path_angle: Angle = 10.0
    path_zoom: Share = 0.15
    path_shear: Annotated[float, Field(ge=0, le=0.3)] = 0.1

    def __post_init__(self) -> None:
        if self.crop and not self.crop_scales:
            raise ValueError("crop_scales is empty; name a length, or set crop to 0")
        if self.crop_sizes[0] > self.crop_sizes[1]:
            raise ValueError(f"crop_sizes: the smaller length comes first, found {self.crop_sizes}")


OFF = Augmentation(short_sides=(), crop=0, flip=0, rotate=0, jitter=0)  # nothing happens to a clip


def augment(
    frames: Frames, masks: Masks, texts: Sequence[str], generator: Generator, config: Augmentation
) -> AugmentedClip:
    """Crop, resize, flip, rotation and colour in this order, each by chance, of frames (T, H, W, 3) and masks
    (G, T, H, W), G may be 0; with the sentences that are true of the result."""
    if frames.ndim != 4 or masks.shape[1:] != frames.shape[:3]:
        raise ValueError(f"frames {frames.shape} and masks {masks.shape} do not belong together")
    cropped, flipped, rotated, jittered = generator.random(4) < (config.crop, config.flip, config.rotate, config.jitter)
    if cropped and not any(map(_BORDER.search, texts)):
        frames, masks = crop(frames, masks, generator, config)
    if config.short_sides:
        frames, masks = resize(frames, masks, int(generator.choice(config.short_sides)), config.long_side)
    if flipped:
        frames, masks, texts = flip(frames, masks, texts)
    if rotated:
        frames, masks = rotate(frames, masks, generator.uniform(-config.angle, config.angle))
    if jittered:
        frames = jitter(frames, generator, config, hue=not any(map(_COLOUR.search, texts)))
    return frames, masks, tuple(texts)


def sample_positions(
    length: int, generator: Generator, config: Augmentation, visible: Masks | None = None
) -> list[int]:
    """Positions of the frames of a clip in a video of `length` frames, in order of time.

    A reference at random and others within reach of it; frames repeat only where there are too few. `visible`
    (length,) bool says where something meant is to be seen: if anywhere, then also in the clip.
    """
    seen = np.arange(length) if visible is None else np.flatnonzero(visible)
    for _ in range(TRIES):
        positions = _around(int(generator.integers(length)), length, generator, config)
        if not len(seen) or np.isin(positions, seen).any():
            return positions
    return _around(int(generator.choice(seen)), length, generator, config)


def _around(reference: int, length: int, generator: Generator, config: Augmentation) -> list[int]:
    near = range(max(reference - config.reach, 0), min(reference + config.reach + 1, length))
    others = [position for position in near if position != reference]
    count = min(config.frames - 1, len(others))
    drawn = generator.choice(others, count, replace=False).tolist() if count else []
    again = generator.choice(near, config.frames - 1 - count).tolist()
    return sorted([reference, *drawn, *again])


def crop(frames: Frames, masks: Masks, generator: Generator, config: Augmentation) -> Clip:
    """Cuts a window out of every frame, drifting if so configured.

    The windows are the release's, which first scales the clip and then cuts; here the window is scaled instead, so
    that pixels are resampled once. Where no draw keeps a tenth of the target the clip stays whole.
    """
    length, height, width = frames.shape[:3]
    pixels = np.count_nonzero(masks)
    for _ in range(TRIES):
        short = int(generator.choice(config.crop_scales))
        scaled = scaled_size((height, width), short, 1333)
        low, high = np.minimum(scaled, config.crop_sizes[0]), np.minimum(scaled, config.crop_sizes[1])
        share = generator.integers(low, high, endpoint=True) / scaled
        h, w = np.maximum(np.rint(share * (height, width)), 1).astype(int).tolist()
        start, end = generator.integers(0, (height - h, width - w), (2, 2), endpoint=True)
        way = np.sort(generator.random(length)) if config.crop_drift else np.zeros(length)
        corners = np.rint(start + way[:, None] * (end - start)).astype(int)
        windows = [(t, slice(y, y + h), slice(x, x + w)) for t, (y, x) in enumerate(corners.tolist())]
        cut = np.stack([masks[:, *window] for window in windows], axis=1)
        if np.count_nonzero(cut) >= KEPT * pixels:
            return np.stack([frames[window] for window in windows]), cut
    return frames, masks


def resize(frames: Frames, masks: Masks, short_side: int, long_side: int) -> Clip:
    """Resizes to a short side, less where the long side would then exceed `long_side`."""
    size = frames.shape[1:3]
    h, w = scaled_size(size, short_side, long_side)
    if (h, w) == size:
        return frames, masks
    smooth = cv2.INTER_AREA if h < size[0] else cv2.INTER_LINEAR
    ways = smooth, cv2.INTER_NEAREST_EXACT
    return _each(frames, masks, lambda t, image, way: cv2.resize(image, (w, h), interpolation=way), ways)


def flip(frames: Frames, masks: Masks, sentences: Sequence[str]) -> AugmentedClip:
    """Flips left and right in pixels and words, or nothing at all where the words are not certain."""
    mirrored = [text for sentence in sentences if (text := mirror_sentence(sentence)) is not None]
    if len(mirrored) < len(sentences):
        return frames, masks, tuple(sentences)
    return np.ascontiguousarray(frames[:, :, ::-1]), np.ascontiguousarray(masks[..., ::-1]), tuple(mirrored)


def rotate(frames: Frames, masks: Masks, angle: float) -> Clip:
    """Rotates about the middle by `angle` degrees; what comes in from outside has the clip's mean colour."""
    height, width = frames.shape[1:3]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    return _warp(frames, masks, np.broadcast_to(turn, (len(frames), 2, 3)))


def _warp(frames: Frames, masks: Masks, forward: Floats) -> Clip:
    """Frames and masks moved by one affine map (2, 3) per frame, `forward` (T, 2, 3) in pixels (x, y)."""
    size = frames.shape[2], frames.shape[1]
    mean = frames[:, ::4, ::4].mean((0, 1, 2)).tolist()

    def change(t: int, image: Frames, way: int) -> Any:
        return cv2.warpAffine(image, forward[t], size, flags=way, borderValue=mean if image.ndim == 3 else [0])

    return _each(frames, masks, change, (cv2.INTER_LINEAR, cv2.INTER_NEAREST))


def _each(frames: Frames, masks: Masks, change: Callable[[int, Frames, int], Any], ways: tuple[int, int]) -> Clip:
    """`change(t, image, way)` of every frame, and of every mask that shows something: interpolated in two ways."""
    images = np.stack([change(t, np.ascontiguousarray(image), ways[0]) for t, image in enumerate(frames)])
    out = np.zeros((*masks.shape[:2], *images.shape[1:3]), bool)
    for g, t in np.argwhere(masks.any((2, 3))):
        out[g, t] = change(t, np.ascontiguousarray(masks[g, t]).view(np.uint8), ways[1])
    return images, out


def jitter(frames: Frames, generator: Generator, config: Augmentation, hue: bool = True) -> Frames:
    """New brightness, contrast, saturation and, if asked, hue: one affine map of RGB for the whole clip."""
    spread = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    brightness, contrast, saturation, turn = generator.uniform(-spread, spread)
    mean = frames[:, ::4, ::4].mean((0, 1, 2))
    matrix = colour_matrix(1 + brightness, 1 + contrast, 1 + saturation, turn * hue, mean)
    picture = np.ascontiguousarray(frames).reshape(-1, *frames.shape[2:])  # (T, H, W, 3) -> (T*H, W, 3)
    return np.reshape(cv2.transform(picture, matrix), frames.shape)


_GREY = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def colour_matrix(brightness: float, contrast: float, saturation: float, hue: float, mean: Floats) -> Floats:
    """(3, 4) affine map of RGB: hue turned by a part of the circle, distance from grey and then from the grey of
    `mean` (3,) scaled, all scaled by the brightness. Grey stays grey."""
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn = np.array([[1, 0, 0], [0, saturation * cos, -saturation * sin], [0, saturation * sin, saturation * cos]])
    linear = brightness * contrast * np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ
    offset = brightness * (1 - contrast) * (_GREY @ mean)
    return np.column_stack([linear, np.full(3, offset)])


def pseudo_clip(image: Frames, masks: Masks, generator: Generator, config: Augmentation) -> Clip:
    """A clip of `config.frames` frames from a still (H, W, 3), which moves, turns, grows and shears a little, smoothly.

    Every map is applied to the whole image and so small that what stands beside (above) something else still does;
    the sentence stays true. Where no draw keeps a tenth of the target in each frame the still is repeated.
    Masks (G, H, W) become (G, T, H, W).
    """
    frames = np.repeat(image[None], config.frames, axis=0)
    repeated = np.repeat(masks[:, None], config.frames, axis=1)
    pixels = np.count_nonzero(masks)
    for _ in range(TRIES):
        moved = _warp(frames, repeated, affine_path(image.shape[:2], generator, config))
        if np.count_nonzero(moved[1], axis=(0, 2, 3)).min() >= KEPT * pixels:
            return moved
    return frames, repeated


def affine_path(size: tuple[int, int], generator: Generator, config: Augmentation) -> Floats:
    """One affine map about the middle per frame, (T, 2, 3) in pixels (x, y), for images of `size` (H, W).

    Shift, angle, scale and shear follow quadratic Bezier curves, which never leave the range of their ends.
    """
    u = np.linspace(0, 1, config.frames)[:, None]
    ends = generator.uniform(-1, 1, (3, 5))
    curve = (1 - u) ** 2 * ends[0] + 2 * u * (1 - u) * ends[1] + u**2 * ends[2]  # (T, 5)
    x, y = curve[:, 0] * config.path_shift * size[1], curve[:, 1] * config.path_shift * size[0]
    angle = np.radians(config.path_angle) * curve[:, 2]
    scale = (1 + config.path_zoom) ** curve[:, 3]
    shear = config.path_shear * curve[:, 4]
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.stack([cos, cos * shear - sin, sin, sin * shear + cos], 1).reshape(-1, 2, 2)  # rotation times shear
    middle = (np.array(size[::-1]) - 1) / 2
    offset = np.stack([x, y], 1) + middle - linear @ middle
    return np.concatenate([linear, offset[:, :, None]], axis=2)


# Colours keep their names: no change of hue beside one of these.
_COLOUR = re.compile(
    r"\b(?:black|white|gr[ea]y|red|orange|yellow|green|cyan|blue|purple|violet|pink|magenta|brown|beige|tan|golden?|"
    r"silver|bronze|copper|cream|ivory|maroon|crimson|scarlet|amber|emerald|lime|olive|teal|turquoise|aqua|navy|indigo|"
    r"lilac|lavender|peach|khaki|ginger|blonde?|brunette|tabby|pale|colou?r\w*)(?:d?ish|head|haired|s)?\b",
    re.IGNORECASE,
)
# A crop moves the frame's border and middle, and with them who comes into the frame, and when.
_BORDER = re.compile(
    r"\b(?:(?:frame|view|scene|screen|picture|image|photo|edge|border|corner)s?|sight|middle|cent(?:er|re)|enter\w*|"
    r"exit\w*|leav(?:e|es|ing)|left (?:the|its|his|her|their)|(?:comes?|coming|came) in|arriv\w*|depart\w*|emerg\w*|"
    r"appear\w*|disappear\w*|vanish\w*)\b",
    re.IGNORECASE,
)
