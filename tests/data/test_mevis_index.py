"""Finding the annotations in a mask_dict.json, in any chunks."""

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dshmp.common.errors import UserError
from dshmp.common.rle import encode
from dshmp.data.mevis import MaskIndex, find_spans


def write_masks(path: Path, count: int = 40, seed: int = 0) -> dict[str, Any]:
    """Tracks of four frames, the second without the object."""
    rng = np.random.default_rng(seed)
    rles = [encode(np.kron(rng.random((5, 6)) < 0.5, np.ones((4, 3), bool))) for _ in range(7)]
    masks = {str(i): [rles[i % 7], None, rles[i % 5], rles[i % 3]] for i in range(count)}
    path.write_text(json.dumps(masks))
    return masks


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


@given(st.integers(0, 6), st.integers(1, 40), st.sampled_from([None, 1]))
@settings(max_examples=60, deadline=None)
def test_any_chunks(count: int, size: int, indent: int | None) -> None:
    rles = [{"size": [3, 4], "counts": "0\\`[]{}:,12"}, None, {"size": [3, 4], "counts": [5, 7]}, [[0, 1, 2, 3, 4, 5]]]
    masks = {str(i * 999): rles[: i % 5] for i in range(count)}
    data = json.dumps(masks, indent=indent).encode()
    found = {key: data[start:stop].rstrip(b", \n") for key, (start, stop) in find_spans(pieces(data, size)).items()}
    assert {key: json.loads(track) for key, track in found.items()} == masks


@pytest.mark.parametrize("end", range(1, 40))
def test_cut_off_anywhere(end: int) -> None:
    text = b'{"1": [{"size": [3, 4], "counts": "a]}"}]}'
    if not text[:end].endswith(b"]}"):
        with pytest.raises(ValueError, match=f"cut off at {end} bytes"):
            find_spans(pieces(text[:end], 16))


@pytest.mark.parametrize("text", [b"[]", b'"1": []', b'[{"1": []}]'])
def test_no_object(text: bytes) -> None:
    with pytest.raises(ValueError, match="expected a JSON object"):
        find_spans(pieces(text, 16))


@pytest.mark.parametrize("text", ['{"1": [nul]}', '{"1": [] []}', '{"1": {"a": []}, "2": []}', '{"1": [null]] }'])
def test_a_damaged_entry_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "mask_dict.json").write_text(text)
    with pytest.raises(UserError, match=r"mask_dict.json: annotation 1 is no"):
        MaskIndex(tmp_path / "mask_dict.json").track(1)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    write_masks(path, 15_000)
    assert path.stat().st_size > 2_000_000
    tracemalloc.start()
    with open(path, "rb") as file:
        count = len(find_spans(iter(lambda: file.read(2**16), b"")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 15_000
    assert peak < 400 * count  # the spans themselves


def test_tracks_are_those_written(tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    masks = write_masks(path)
    index = MaskIndex(path)
    assert {key: index.track(int(key)) for key in masks} == masks
    assert index.track(999) is None


def test_a_changed_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    write_masks(path)
    old = MaskIndex(path)
    masks = write_masks(path, seed=1)
    changed = path.stat().st_mtime_ns
    os.utime(path, ns=(changed, changed + 1))
    with pytest.raises(UserError, match="changed while it was in use"):
        old.track(0)
    new = MaskIndex(path)
    assert {key: new.track(int(key)) for key in masks} == masks


def test_an_annotation_twice(tmp_path: Path) -> None:
    path = tmp_path / "mask_dict.json"
    path.write_text('{"7": [null], "8": [null], "7": []}')
    with pytest.raises(UserError, match="holds annotation '7' twice"):
        MaskIndex(path)
