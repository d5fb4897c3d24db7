"""HDR video (ITU-R BT.2100: PQ or HLG) as ordinary pictures, BT.709 with the gamma of sRGB."""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

HDR = PQ, HLG = 16, 18  # transfer functions as FFmpeg numbers them
BT709 = 1  # and primaries
WHITE = 203.0  # cd/m2 of a white sheet in HDR (ITU-R BT.2408); it is 1 in what follows
KNEE = 0.5  # up to here brightness is kept; all above, however bright, is pressed into the rest below 1
TO_BT709 = np.array(  # linear RGB of BT.2020 -> BT.709 (ITU-R BT.2087)
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
ROWS = 64  # mapped at a time, so that a large frame takes little memory
LUMINANCE = np.array([[0.2627, 0.6780, 0.0593]], np.float32)  # of BT.2020


def to_rgb(frame: Any) -> NDArray[np.uint8]:
    """The decoded frame (of PyAV) as RGB uint8 (H, W, 3); HDR is tone-mapped, other frames are only converted."""
    if frame.color_trc not in HDR:
        return np.asarray(frame.to_ndarray(format="rgb24"))
    image = np.asarray(frame.to_ndarray(format="rgb48le"))
    return np.concatenate([_shown_rows(image[top : top + ROWS], frame) for top in range(0, len(image), ROWS)])


def _shown_rows(signal: NDArray[np.uint16], frame: Any) -> NDArray[np.uint8]:
    light = np.take(_linear(frame.color_trc), signal)
    if frame.color_trc == HLG:  # the display's part: gamma 1.2 on a screen of 1000 cd/m2
        light *= cv2.pow(cv2.transform(light, LUMINANCE), 0.2)[..., None] * (1000 / WHITE)
    if frame.color_primaries != BT709:
        light = np.maximum(cv2.transform(light, TO_BT709), 0)
    # y / (1 + y), below 1, finds the place in a table evenly
    return np.take(_shown(), np.asarray(light / (1 + light) * 65535, np.uint16))


@lru_cache
def _linear(transfer: int) -> NDArray[np.float32]:
    """(65536,) of 16-bit signals: PQ -> light, white sheet 1; HLG -> light of the scene, 0 to 1."""
    signal = np.linspace(0, 1, 65536)
    if transfer == PQ:
        root = signal ** (1 / 78.84375)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return np.asarray(light * (10_000 / WHITE), np.float32)
    high = (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(signal <= 0.5, signal**2 / 3, high).astype(np.float32)


@lru_cache
def _shown() -> NDArray[np.uint8]:
    """(65536,) of y / (1 + y) for light y: its 8-bit signal, of sRGB, after the tone curve."""
    part = np.linspace(0, 1, 65536)
    light = part / np.maximum(1 - part, 1e-9)
    above = np.maximum(light - KNEE, 0) / (1 - KNEE)
    light = np.where(light <= KNEE, light, KNEE + (1 - KNEE) * above / (1 + above))
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (signal * 255).round().astype(np.uint8)
