"""Augmentation: pixels, masks and words stay true of each other."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest

from dshmp.common.errors import UserError
from dshmp.config import from_dict
from dshmp.data import transforms as module
from dshmp.data.transforms import (
    OFF,
    Augmentation,
    affine_path,
    augment,
    colour_matrix,
    crop,
    flip,
    jitter,
    pseudo_clip,
    resize,
    rotate,
    sample_positions,
)
from dshmp.synthetic import make_clip

COLOURS = np.array([(220, 30, 30), (30, 200, 40), (40, 60, 230)], np.uint8)
EVERYTHING = Augmentation(short_sides=(72, 96, 130), crop=1, flip=1, rotate=1, jitter=1)
SENTENCE = "the one on the left"


def clip(length: int = 5, height: int = 90, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Three flat discs on grey that move, the third absent from half of the frames."""
    frames = np.full((length, height, width, 3), 128, np.uint8)
    masks = np.zeros((3, length, height, width), bool)
    for t in range(length):
        for g, (x, y) in enumerate([(30 + 2 * t, 30), (85 - 3 * t, 45), (40 + t, 70)]):
            if g == 2 and t > length // 2:
                continue
            stamp = cv2.circle(np.zeros((height, width), np.uint8), (x, y), 13, 1, -1).astype(bool)
            masks[:, t, stamp] = False
            masks[g, t] = stamp
            frames[t, stamp] = COLOURS[g]
    return frames, masks


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def check_aligned(frames: np.ndarray, masks: np.ndarray, rim: int = 2) -> None:
    """Each mask covers the pixels of its object's colour, but for a rim."""
    distance = np.abs(frames[None].astype(int) - COLOURS[:, None, None, None]).max(-1)  # (G, T, H, W)
    kernel = np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)
    for g, t in np.ndindex(masks.shape[:2]):
        mask = masks[g, t].astype(np.uint8)
        core = cv2.erode(mask, kernel, borderValue=0).astype(bool)
        around = cv2.dilate(mask, kernel).astype(bool)
        assert (distance[g, t][core] < 30).all()
        assert (distance[g, t][~around] > 30).all()


# --- Pixels and masks ---


@pytest.mark.parametrize("seed", range(12))
def test_frames_and_masks_stay_aligned(seed: int) -> None:
    frames, masks = clip()
    generator = rng(seed)
    check_aligned(*crop(frames, masks, generator, EVERYTHING))
    check_aligned(*resize(frames, masks, int(generator.integers(40, 200)), 240))
    check_aligned(*flip(frames, masks, [SENTENCE])[:2])
    check_aligned(*rotate(frames, masks, generator.uniform(-30, 30)))
    check_aligned(*pseudo_clip(frames[0], masks[:, 0], generator, EVERYTHING))
    check_aligned(*augment(frames, masks, [SENTENCE], generator, replace(EVERYTHING, jitter=0))[:2], rim=4)


@pytest.mark.parametrize("seed", range(8))
def test_shapes_types_and_determinism(seed: int) -> None:
    frames, masks = clip()
    kept = frames.copy(), masks.copy()
    first = augment(frames, masks, [SENTENCE], rng(seed), EVERYTHING)
    second = augment(frames, masks, [SENTENCE], rng(seed), EVERYTHING)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert first[2] == second[2] == ("the one on the right",)
    assert (first[0].dtype, first[1].dtype) == (np.uint8, bool)
    assert first[0].shape[:3] == first[1].shape[1:]
    assert min(first[0].shape[1:3]) in EVERYTHING.short_sides
    assert first[1].any()
    assert not first[1][2, 3:].any()  # what was hidden stays hidden
    assert np.array_equal(frames, kept[0])
    assert np.array_equal(masks, kept[1])


def test_other_seeds_give_other_clips() -> None:
    frames, masks = clip()
    results = [augment(frames, masks, [SENTENCE], rng(seed), EVERYTHING)[0] for seed in (1, 2)]
    assert results[0].shape != results[1].shape or not np.array_equal(*results)


def test_nothing_happens_when_all_is_off() -> None:
    frames, masks = clip()
    result = augment(frames, masks, [SENTENCE], rng(), OFF)
    assert np.array_equal(result[0], frames)
    assert np.array_equal(result[1], masks)
    assert result[2] == (SENTENCE,)


@pytest.mark.parametrize("objects", [0, 2])
def test_no_target_stays_no_target(objects: int) -> None:
    frames, _ = clip()
    nothing = np.zeros((objects, *frames.shape[:3]), bool)
    out, masks, _ = augment(frames, nothing, [SENTENCE], rng(), EVERYTHING)
    assert masks.shape == (objects, *out.shape[:3])
    assert not masks.any()
    assert pseudo_clip(frames[0], nothing[:, 0], rng(), EVERYTHING)[1].shape == (objects, 8, *frames.shape[1:3])


def test_masks_of_another_length_are_refused() -> None:
    frames, masks = clip()
    with pytest.raises(ValueError, match="do not belong together"):
        augment(frames, masks[:, 1:], [SENTENCE], rng(), OFF)


def test_flipped_twice_is_itself() -> None:
    frames, masks = clip()
    once = flip(frames, masks, [SENTENCE])
    twice = flip(*once)
    assert np.array_equal(once[0][:, :, ::-1], frames)
    assert np.array_equal(twice[0], frames)
    assert np.array_equal(twice[1], masks)
    assert twice[2] == (SENTENCE,)


def test_one_uncertain_sentence_keeps_a_clip_from_being_flipped() -> None:
    frames, masks = clip()
    assert flip(frames, masks, [SENTENCE, "dog left"])[2] == (SENTENCE, "dog left")
    assert flip(frames, masks, [SENTENCE, "the dog"])[2] == flip(frames, masks, [SENTENCE])[2] + ("the dog",)


def test_an_uncertain_sentence_is_not_flipped() -> None:
    frames, masks = clip()
    result = flip(frames, masks, ["dog left"])
    assert result[0] is frames
    assert result[1] is masks
    assert result[2] == ("dog left",)


@pytest.mark.parametrize("seed", range(20))
def test_a_crop_keeps_the_target(seed: int) -> None:
    frames, masks = clip()
    small = replace(EVERYTHING, crop_scales=(400,), crop_sizes=(60, 120))  # windows of 14 to 27 pixels
    out, cut = crop(frames, masks[:1], rng(seed), small)
    assert np.count_nonzero(cut) >= module.KEPT * np.count_nonzero(masks[:1])
    assert out.shape[:3] == cut.shape[1:]
    assert frames.shape[1] == out.shape[1] or out.shape[1] <= 28


def test_a_crop_drifts_if_asked_and_stays_inside() -> None:
    length, height, width = 6, 90, 120
    place = np.stack(np.broadcast_arrays(np.arange(height)[:, None], np.arange(width), 0), -1).astype(np.uint8)
    frames, masks = np.stack([place] * length), np.zeros((0, length, height, width), bool)
    moved = 0
    for seed in range(10):
        out, _ = crop(frames, masks, rng(seed), EVERYTHING)
        corners = out[:, 0, 0, :2].astype(int)
        assert (out[:, -1, -1, :2] - corners == np.array(out.shape[1:3]) - 1).all()  # a window of the frame
        steps = np.diff(corners, axis=0)
        assert (np.sign(steps).max(0) - np.sign(steps).min(0) <= 1).all()  # one way along each axis
        moved += bool(steps.any())
        still, _ = crop(frames, masks, rng(seed), replace(EVERYTHING, crop_drift=False))
        assert (still[:, 0, 0] == still[0, 0, 0]).all()
    assert moved > 5


@pytest.mark.parametrize("text", ["the disc that enters the frame", "leaves to the right", "the dog in the middle"])
def test_no_crop_where_the_sentence_speaks_of_the_frame(text: str) -> None:
    frames, masks = clip()
    only = replace(OFF, crop=1)
    assert augment(frames, masks, [text], rng(3), only)[0].shape == frames.shape
    assert augment(frames, masks, ["the red disc"], rng(3), only)[0].shape != frames.shape


@pytest.mark.parametrize(("size", "expected"), [((480, 854), (360, 641)), ((854, 480), (641, 360))])
def test_resize_keeps_the_aspect(size: tuple[int, int], expected: tuple[int, int]) -> None:
    frames, masks = np.zeros((1, *size, 3), np.uint8), np.zeros((1, 1, *size), bool)
    assert resize(frames, masks, 360, 768)[0].shape[1:3] == expected
    assert max(resize(frames, masks, 512, 768)[1].shape[2:]) == 768


def test_rotation_fills_with_the_mean_colour_and_no_mask() -> None:
    frames = np.full((2, 60, 80, 3), (10, 120, 240), np.uint8)
    out, masks = rotate(frames, np.ones((1, 2, 60, 80), bool), 20)
    assert (out == frames).all()
    assert not masks[0, :, 0, 0].any()
    assert masks[0, :, 30, 40].all()


# --- Colour ---


def test_jitter_leaves_grey_grey_and_hue_where_a_colour_is_named() -> None:
    grey = np.repeat(np.arange(60, 180, dtype=np.uint8).reshape(1, 10, 12, 1), 3, axis=3)
    for seed in range(5):
        out = jitter(grey, rng(seed), Augmentation()).astype(int)
        assert np.ptp(out, axis=-1).max() <= 2
    frames, masks = clip()
    only_hue = replace(OFF, jitter=1, brightness=0, contrast=0, saturation=0)
    named = augment(frames, masks, ["the red disc"], rng(1), only_hue)[0]
    unnamed = augment(frames, masks, ["the disc"], rng(1), only_hue)[0]
    assert np.abs(named.astype(int) - frames).max() <= 1
    assert np.abs(unnamed.astype(int) - frames).max() > 10


@pytest.mark.parametrize("text", ["the RED car", "reddish dog", "two grey cats", "the golden star", "redhead"])
def test_colours_are_found(text: str) -> None:
    assert module._COLOUR.search(text)


@pytest.mark.parametrize("text", ["a tired dog", "the infrared camera", "walking bluntly", "a standing man"])
def test_what_only_looks_like_a_colour(text: str) -> None:
    assert not module._COLOUR.search(text)


def test_colour_matrix() -> None:
    mean = np.array([100.0, 110.0, 120.0])
    assert np.allclose(colour_matrix(1, 1, 1, 0, mean), np.eye(3, 4), atol=1e-9)
    assert np.allclose(colour_matrix(1, 1, 1, 1, mean), np.eye(3, 4), atol=1e-9)
    faded = colour_matrix(1, 1, 0, 0, mean) @ (200, 50, 50, 1)
    assert np.allclose(faded, faded[0])
    assert np.allclose(colour_matrix(1.1, 1, 1, 0, mean) @ (100, 50, 20, 1), (110, 55, 22))


# --- Which frames ---


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 30, 200])
def test_positions(length: int) -> None:
    config = Augmentation()
    for seed in range(30):
        positions = sample_positions(length, rng(seed), config)
        assert len(positions) == 8
        assert positions == sorted(positions)
        assert 0 <= positions[0] <= positions[-1] < length
        assert any(positions[-1] - p <= 10 and p - positions[0] <= 10 for p in positions)
        assert len(set(positions)) == min(8, length) if length > 7 else set(positions) == set(range(length))


def test_positions_show_the_target() -> None:
    visible = np.zeros(300, bool)
    visible[170] = True
    for seed in range(20):
        assert any(visible[sample_positions(300, rng(seed), Augmentation(), visible)])
    assert len(sample_positions(300, rng(), Augmentation(), np.zeros(300, bool))) == 8


# --- Clips from stills ---


@pytest.mark.parametrize("seed", range(10))
def test_paths_are_smooth_and_keep_the_order_of_the_scene(seed: int) -> None:
    widest = Augmentation(frames=12, path_angle=30, path_shear=0.3, path_zoom=1, path_shift=0.9)
    path = affine_path((90, 120), rng(seed), widest)
    beside, above = path[:, :, :2] @ np.array([[1, 1], [1, -1]]), path[:, :, :2] @ np.array([[1, -1], [1, 1]])
    assert (beside[:, 0] > 0).all()  # what is rather to the right than above or below stays to the right
    assert (above[:, 1] > 0).all()  # likewise below
    steps = np.abs(np.diff(affine_path((90, 120), rng(seed), Augmentation(frames=12)) @ (60, 45, 1), axis=0))
    assert steps.max() < 5  # pixels per frame


def test_a_pseudo_clip_moves_and_shows_the_target() -> None:
    frames, masks = clip()
    moved, truth = pseudo_clip(frames[0], masks[:2, 0], rng(2), Augmentation())
    assert moved.shape == (8, *frames.shape[1:])
    assert truth.shape == (2, 8, *frames.shape[1:3])
    assert all(not np.array_equal(a, b) for a, b in pairwise(moved))
    assert truth.any((2, 3)).all()


# --- Config ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flip": 1.5}, "augmentation.flip: must be at most 1, found 1.5"),
        ({"crop": -0.1}, "augmentation.crop"),
        ({"jitter": float("nan")}, "augmentation.jitter"),
        ({"angle": 90.0}, "augmentation.angle: must be at most 30, found 90"),
        ({"path_shear": 0.5}, "augmentation.path_shear"),
        ({"hue": 0.6}, "augmentation.hue"),
        ({"brightness": 1.0}, "augmentation.brightness"),
        ({"frames": 0}, "augmentation.frames: must be at least 1, found 0"),
        ({"short_sides": (288, 0)}, "augmentation.short_sides.1: must be at least 1, found 0"),
        ({"crop_sizes": (600, 384)}, "augmentation: crop_sizes: the smaller length comes first"),
        ({"crop_scales": ()}, "augmentation: crop_scales is empty"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        from_dict(Augmentation, values, "augmentation")


# --- Words ---


def test_pixels_and_words_of_the_world_agree_after_a_flip() -> None:
    """What moves to a side in the pixels does so in the words."""
    checked = 0
    for seed in range(6):
        drawn = make_clip(seed, "easy", version=1)
        for expression in drawn.expressions:
            if expression.meaning.claim not in ("left", "right") or not expression.meant:
                continue
            _, masks, (text,) = flip(drawn.frames, drawn.masks[list(expression.meant)], [expression.text])
            ends = [np.argwhere(masks[0, t]).mean(0)[1] for t in (0, -1)]
            side = "right" if ends[1] > ends[0] else "left"
            assert side in text.lower()
            assert {"left": "right", "right": "left"}[side] not in text.lower()
            checked += 1
    assert checked >= 2
