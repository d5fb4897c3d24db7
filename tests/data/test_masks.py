"""Run lengths are judged without decoding them, as decoders crash or hang on what is damaged."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dshmp.common.errors import UserError
from dshmp.common.rle import encode
from dshmp.data.images import decode_mask, mask_fault, rle_fault


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_run_lengths_as_they_are_written(height: int, width: int, seed: int, share: float) -> None:
    mask = np.kron(np.random.default_rng(seed).random((height, width)) < share, np.ones((3, 1), bool))
    assert rle_fault(encode(mask), (3 * height, width)) is None


def _number(value: int) -> str:
    """A number from 0 on in COCO's digits of 5 bits."""
    text = ""
    while True:
        digit, value = value & 31, value >> 5
        more = bool(value) or bool(digit & 16)
        text += chr(48 + digit + 32 * more)
        if not more:
            return text


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda rle: rle | {"counts": rle["counts"][:-3]}, "run lengths that"),
        (lambda rle: rle | {"counts": rle["counts"] + "o"}, "run lengths that are damaged"),
        (lambda rle: rle | {"counts": rle["counts"] + "1"}, "of 480 pixels"),
        (lambda rle: rle | {"counts": ""}, "run lengths that are damaged"),
        (lambda rle: rle | {"counts": "\ufffd" + rle["counts"]}, "run lengths that are damaged"),
        (lambda rle: rle | {"counts": "\u0100\u0100" + _number(480 - 30)}, "run lengths that are damaged"),
        (lambda rle: rle | {"counts": rle["counts"] + "\u00e9"}, "run lengths that are damaged"),
        (lambda rle: rle | {"counts": "oooooooo1"}, "run lengths that are damaged"),
        (lambda rle: rle | {"counts": 480}, "no COCO run lengths"),
        (lambda rle: rle | {"size": [24, 20]}, r"has size \[24, 20\], its frames have \[20, 24\]"),
        (lambda rle: rle | {"size": [20.0, 24.0]}, "its frames have"),
        (lambda rle: rle | {"size": ["20", "24"]}, "its frames have"),
        (lambda rle: rle | {"size": [True, 24]}, "its frames have"),
        (lambda rle: rle | {"size": 480}, "its frames have"),
        (lambda rle: "x", "no COCO run lengths"),
    ],
)
def test_damaged_run_lengths(change: Any, fault: str) -> None:
    mask = np.zeros((20, 24), bool)
    mask[4:9, 3:17] = True
    found = rle_fault(change(encode(mask)), mask.shape)
    assert found is not None
    assert re.search(fault, found), found
    with pytest.raises(UserError, match=r"^here "):
        decode_mask(change(encode(mask)), mask.shape, "here")
    np.testing.assert_array_equal(decode_mask(encode(mask), mask.shape, "here"), mask)


SQUARE = np.zeros((6, 7), bool)
SQUARE[1:4, 2:6] = True
FORMS: list[Any] = [
    [[2, 1, 6, 1, 6, 4, 2, 4]],
    [[2, 1, 4, 1, 4, 4, 2, 4], [4.0, 1, 6, 1, 6, 4, 4, 4]],
    encode(SQUARE),
    {"size": [6, 7], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 8]},
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask(form: Any) -> None:
    np.testing.assert_array_equal(decode_mask(form, (6, 7), "here"), SQUARE)


@pytest.mark.parametrize(
    ("form", "fault"),
    [
        ([], "no list of polygons"),
        ([[1, 2]], "no list of polygons"),
        ([None], "no list of polygons"),
        ([["a"] * 6], "a polygon that leaves its image"),
        ([[0, 0, 1e9, 0, 1, 1]], "a polygon that leaves its image"),
        ([[0, 0, float("nan"), 0, 1, 1]], "a polygon that leaves its image"),
        ({"size": [6, 7], "counts": [13, 3]}, "run lengths that "),
        ({"size": [6, 7], "counts": [43, -1]}, "run lengths that "),
        ({"size": [6, 7], "counts": ["42"]}, "run lengths that "),
        ({"size": [7, 6], "counts": [42]}, r"has size \[7, 6\], its frames have \[6, 7\]"),
        (None, "no COCO run lengths"),
    ],
)
def test_damage_of_every_form(form: Any, fault: str) -> None:
    found = mask_fault(form, (6, 7))
    assert found is not None
    assert re.search(fault, found), found
    with pytest.raises(UserError, match=r"^here .*mend it, or fetch the file again"):
        decode_mask(form, (6, 7), "here")
