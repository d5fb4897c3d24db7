"""Results: run lengths decode to what was put in, and files are written wholly or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dshmp.common.errors import UserError
from dshmp.common.files import save_json
from dshmp.common.rle import decode, encode
from dshmp.model.parser import Word
from dshmp.results.answer import ObjectResult
from dshmp.results.result import Result, load_results


def make(masks: np.ndarray) -> Result:
    """A result of two objects, `masks` (2, T, H, W)."""
    count = masks.shape[1]
    share = (1 / count,) * count
    objects = tuple(ObjectResult(0.8, tuple(encode(m) for m in mask), share) for mask in masks)
    return Result(
        expression="red star",
        words=(Word("red", 0, 3, "static"), Word("star", 4, 8, "static")),
        found=True,
        score=0.8,
        threshold=0.5,
        height=masks.shape[2],
        width=masks.shape[3],
        fps=8.0,
        times=tuple(i / 8 for i in range(count)),
        evidence=share,
        objects=objects,
        rle=tuple(encode(m) for m in masks.any(axis=0)),
    )


def test_run_lengths_round_trip() -> None:
    masks = np.random.default_rng(0).random((4, 13, 17)) > 0.6
    masks[0], masks[1] = False, True
    rles = [encode(mask) for mask in masks]
    assert all(isinstance(rle["counts"], str) and rle["size"] == [13, 17] for rle in rles)
    assert (decode(rles) == masks).all()


def test_masks_decode_on_demand() -> None:
    masks = np.random.default_rng(1).random((2, 3, 9, 11)) > 0.5
    result = make(masks)
    assert result.masks.dtype == bool
    assert (result.masks == masks.any(axis=0)).all()
    assert (result.mask(2) == masks.any(axis=0)[2]).all()
    assert (result.objects[1].masks == masks[1]).all()
    assert result.frame_count == 3


def test_json_holds_everything() -> None:
    result = make(np.ones((2, 3, 9, 11), bool))
    answer = json.loads(json.dumps(result.to_json()))
    assert answer["frame_count"] == 3
    assert Result.from_json(answer, 9, 11).to_json() == result.to_json()
    assert (answer["expression"], answer["found"], answer["score"]) == ("red star", True, 0.8)
    assert answer["words"][1] == {"text": "star", "start": 4, "end": 8, "group": "static"}
    assert decode(answer["objects"][1]["rle"]).all()
    assert sum(answer["evidence"]) == pytest.approx(1, abs=1e-6)


def test_failed_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save_json(path, {"old": True})
    with pytest.raises(TypeError):
        save_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_repr_is_a_line() -> None:
    result = replace(make(np.ones((2, 300, 9, 11), bool)), expression="red\nstar " * 100)
    assert len(repr(result)) < 160
    assert "\n" not in repr(result)
    assert "found=True, score=0.800, objects=2, frames=300, size=11x9" in repr(result)
    assert len(repr(result.objects)) < 160


def test_results_are_read_back(tmp_path: Path) -> None:
    result = make(np.random.default_rng(2).random((2, 3, 9, 11)) > 0.5)
    result = replace(result, others=result.objects[:1])
    old = result.to_json()
    del old["others"]  # as an earlier version wrote it
    save_json(tmp_path / "result.json", {"height": 9, "width": 11, "results": [result.to_json(), old]})
    for path in (tmp_path, tmp_path / "result.json", str(tmp_path)):
        first, second = load_results(path)
        assert first.to_json() == result.to_json()
        assert (first.masks == result.masks).all()
        assert second == replace(first, others=())
    for text in ("", "[]", "{}", "[" * 100_000, '{"height": 9, "width": 11, "results": [{"found": 3}]}'):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(UserError, match=r"result\.json: cannot be read"):
            load_results(tmp_path)
