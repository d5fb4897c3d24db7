"""J and F against the reference scorer, and what they say in cases whose answer is known."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden
from dshmp.evaluation.metrics import jf, jf_frames


def unpack(arrays: dict[str, np.ndarray], name: str, offsets: str, index: int, shape: np.ndarray) -> np.ndarray:
    start, end = arrays[offsets][index : index + 2]
    return np.unpackbits(arrays[name][start:end])[: shape.prod()].reshape(shape).astype(bool)


def test_reference_pairs() -> None:
    arrays, info = golden.load("k_metrics")
    for index, kind in enumerate(info["meta"]["kinds"]):
        shape = arrays["shapes"][index]
        truth = unpack(arrays, "annotation_bits", "offsets", index, shape)
        pred = unpack(arrays, "segmentation_bits", "offsets", index, shape)
        assert jf_frames(pred, truth)[0] == pytest.approx(arrays["J"][index], abs=1e-9), kind
        assert jf_frames(pred, truth)[1] == pytest.approx(arrays["F"][index], abs=1e-9), kind


def test_reference_pairs_with_void_pixels() -> None:
    arrays, _ = golden.load("k_metrics")
    for case, index in enumerate(arrays["void_pair_index"]):
        shape = arrays["shapes"][index]
        truth = unpack(arrays, "annotation_bits", "offsets", index, shape)
        pred = unpack(arrays, "segmentation_bits", "offsets", index, shape)
        void = unpack(arrays, "void_bits", "void_offsets", case, shape)
        assert jf_frames(pred, truth, void)[0] == pytest.approx(arrays["J_void"][case], abs=1e-9)
        assert jf_frames(pred, truth, void)[1] == pytest.approx(arrays["F_void"][case], abs=1e-9)


def full_frame_scores(pred: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The definition, over the whole image."""

    def line(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        below, right = padded[1:, :-1] != mask, padded[:-1, 1:] != mask
        corner = padded[1:, 1:] != mask
        corner[-1], corner[:, -1] = False, False
        return below | right | corner

    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    union = (pred | truth).sum()
    region = (pred & truth).sum() / union if union else 1.0
    a, b = line(pred), line(truth)
    if not a.any() or not b.any():
        return region, float(a.any() == b.any())
    precision = (a & (cv2.dilate(b.astype(np.uint8), disk) > 0)).sum() / a.sum()
    recall = (b & (cv2.dilate(a.astype(np.uint8), disk) > 0)).sum() / b.sum()
    return region, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blobs(rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    masks = np.zeros((frames, height, width), np.uint8)
    for mask in masks:
        for _ in range(rng.integers(0, 3)):
            centre = (int(rng.integers(width)), int(rng.integers(height)))
            axes = (int(rng.integers(1, width // 3)), int(rng.integers(1, height // 3)))
            cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, 360, 1, -1)
    return masks


def test_window_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    pred, truth = blobs(rng, 60, 50, 70), blobs(rng, 60, 50, 70)
    expected = np.array([full_frame_scores(p > 0, t > 0) for p, t in zip(pred, truth, strict=True)])
    np.testing.assert_allclose(jf_frames(pred, truth)[0], expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(jf_frames(pred, truth)[1], expected[:, 1], atol=1e-12)
    assert jf(pred, truth) == pytest.approx(tuple(expected.mean(0)))


def test_every_frame_in_one_pass() -> None:
    rng = np.random.default_rng(2)
    pred, truth = blobs(rng, 12, 40, 60), blobs(rng, 12, 40, 60)
    void = rng.random(pred.shape) < 0.1
    assert jf_frames(pred, truth, void)[0].shape == (12,)
    assert jf_frames(pred[0], truth[0])[0].shape == ()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 24))
def test_any_masks_score_as_defined_both_ways(seed: int, height: int, width: int) -> None:
    """Noise, lines and dots of every density, down to images of one pixel."""
    rng = np.random.default_rng(seed)
    density = rng.choice([0.01, 0.1, 0.5, 0.99], 2)[:, None, None]
    pred, truth = rng.random((2, height, width)) < density
    j, f = (float(value) for value in jf_frames(pred, truth))
    assert (j, f) == pytest.approx(full_frame_scores(pred, truth), abs=1e-12)
    assert (j, f) == pytest.approx(tuple(float(value) for value in jf_frames(truth, pred)), abs=1e-12)
    assert 0 <= j <= 1
    assert 0 <= f <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30), st.integers(0, 30))
def test_where_masks_lie_does_not_matter(seed: int, down: int, right: int) -> None:
    """Two places in one frame, neither at its border."""
    rng = np.random.default_rng(seed)
    pred, truth = (mask[0] for mask in (blobs(rng, 1, 30, 30), blobs(rng, 1, 30, 30)))
    places = [np.zeros((2, 64, 64), np.uint8) for _ in range(2)]
    places[0][:, 1:31, 1:31] = pred, truth
    places[1][:, 1 + down : 31 + down, 1 + right : 31 + right] = pred, truth
    assert jf_frames(*places[0]) == jf_frames(*places[1])


def test_boundaries_out_of_reach() -> None:
    left, right = np.zeros((2, 40, 200), bool)
    left[10:20, 10:20], right[10:20, 180:190] = True, True
    assert (float(jf_frames(left, right)[0]), float(jf_frames(left, right)[1])) == (0, 0)
    both = left | right
    assert float(jf_frames(left, both)[0]) == 0.5
    assert float(jf_frames(left, both)[1]) == pytest.approx(2 / 3)  # precision 1, recall 1/2


def test_symmetry() -> None:
    rng = np.random.default_rng(1)
    pred, truth = blobs(rng, 20, 40, 60), blobs(rng, 20, 40, 60)
    np.testing.assert_allclose(jf_frames(pred, truth)[0], jf_frames(truth, pred)[0])
    np.testing.assert_allclose(jf_frames(pred, truth)[1], jf_frames(truth, pred)[1])


def test_empty_and_full_masks() -> None:
    empty, full = np.zeros((3, 20, 30), bool), np.ones((3, 20, 30), bool)
    blob = empty.copy()
    blob[:, 5:15, 5:15] = True
    assert jf(empty, empty) == (1.0, 1.0)
    assert jf(full, full) == (1.0, 1.0)
    assert jf(blob, blob) == (1.0, 1.0)
    assert jf(blob, empty) == jf(empty, blob) == (0.0, 0.0)
    assert jf(full, empty) == (0.0, 1.0)  # neither has a boundary
    assert jf(full, blob) == (pytest.approx(100 / 600), 0.0)


def test_void_everywhere_leaves_two_empty_masks() -> None:
    pred, truth = np.eye(9, dtype=bool), np.zeros((9, 9), bool)
    void = np.ones((9, 9), bool)
    assert jf_frames(pred, truth, void)[0] == 1.0
    assert jf_frames(pred, truth, void)[1] == 1.0


def test_any_non_zero_value_is_object() -> None:
    truth = np.zeros((2, 12, 12), bool)
    truth[:, 3:9, 3:9] = True
    for pred in (truth, truth.astype(np.uint8) * 255, truth.astype(np.int64) * 256, truth * 0.5):
        assert jf(pred, truth) == (1.0, 1.0)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4, 4\).*\(2, 4, 5\)"):
        jf(np.zeros((2, 4, 4), bool), np.zeros((2, 4, 5), bool))
    with pytest.raises(ValueError, match="without frames"):
        jf(np.zeros((0, 4, 4), bool), np.zeros((0, 4, 4), bool))
    with pytest.raises(ValueError, match="one shape"):
        jf_frames(np.zeros((4, 4), bool), np.zeros((4, 4), bool), np.zeros((4, 5), bool))[0]
