"""Mask2Former's instances as candidates: what counts as one, where it is, how it goes on, what it is called."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants

import tiny
from dshmp.candidates import find_source, hub
from dshmp.candidates.coco_instances import CocoInstances, _Instances, _tracks, words_of
from dshmp.candidates.overlaps import box_overlap, boxes_of, first_of_each, is_new, mask_overlap
from dshmp.common.errors import UserError
from dshmp.common.options import Options
from dshmp.common.rle import encode
from dshmp.inference.segment import segment_to_folder
from dshmp.inference.segmenter import Segmenter
from dshmp.model.trajectories import LONGEST_GAP
from dshmp.video.source import VideoSource

CPU = torch.device("cpu")
H, W = 48, 64


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(tiny.geometry_model(), tiny.tokenizer(), device="cpu")


def silent(*_: Any) -> None:
    pass


def rectangle(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = (H, W)) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def output(masks: list[torch.Tensor], chances: list[tuple[int, float]], classes: int = 3) -> SimpleNamespace:
    """What Mask2Former gives for one picture: masks at a quarter of the size, each query's class and how sure it is."""
    logits = torch.full((1, len(masks), classes + 1), -9.0)
    for k, (label, chance) in enumerate(chances):
        logits[0, k, label], logits[0, k, -1] = np.log(chance), np.log(1 - chance)
    small = torch.stack([mask[::4, ::4] for mask in masks]).float() * 20 - 10
    hidden = torch.randn(1, len(masks), 8)
    return SimpleNamespace(
        class_queries_logits=logits, masks_queries_logits=small[None], transformer_decoder_last_hidden_state=hidden
    )


def test_sure_and_distinct_instances_remain_where_they_are() -> None:
    shapes = [rectangle(8, 8, 24, 40), rectangle(40, 4, 60, 20), rectangle(8, 8, 28, 40), rectangle(0, 40, 64, 48)]
    found = CocoInstances(most=5)._instances(output(shapes, [(1, 0.7), (0, 0.9), (2, 0.95), (0, 0.3)]), (H, W))
    assert found.classes == [2, 0]  # the surest first; the first is the third again, the last is not sure
    torch.testing.assert_close(found.boxes, torch.tensor([[8.0, 8, 28, 40], [40, 4, 60, 20]]), atol=2, rtol=0)
    assert found.tokens.shape == (2, 8)
    assert len(CocoInstances(most=1)._instances(output(shapes[:2], [(1, 0.7), (0, 0.9)]), (H, W)).masks) == 1
    none = CocoInstances()._instances(output(shapes[:1], [(1, 0.1)]), (H, W))
    assert (none.masks, none.classes, none.boxes.shape, none.tokens.shape) == ([], [], (0, 4), (0, 8))


def test_boxes_and_overlaps() -> None:
    masks = torch.stack([rectangle(3, 5, 10, 20), rectangle(3, 5, 10, 21), rectangle(9, 5, 20, 20)])
    boxes = boxes_of(masks.numpy())
    assert boxes.tolist() == [[3, 5, 10, 20], [3, 5, 10, 21], [9, 5, 20, 20]]
    assert boxes_of([]).shape == (0, 4)
    torch.testing.assert_close(mask_overlap(masks), box_overlap(boxes, boxes))  # they are rectangles
    assert box_overlap(boxes, boxes)[0].tolist() == pytest.approx([1, 15 / 16, 1 / 17])
    assert first_of_each(mask_overlap(masks) > 0.7) == [0, 2]
    assert first_of_each(mask_overlap(masks) > 0.99) == [0, 1, 2]
    assert [is_new(masks[0].numpy(), masks[1:].numpy(), most) for most in (0.7, 0.99)] == [False, True]


def instances(*found: tuple[int, int]) -> _Instances:
    """Squares that begin at x, with a class."""
    masks = torch.stack([rectangle(x, 10, x + 12, 22) for x, _ in found]) if found else torch.zeros(0, H, W).bool()
    tokens = torch.eye(4)[[label for _, label in found]]
    return _Instances(
        [encode(m.numpy()) for m in masks], boxes_of(masks.numpy()), tokens, [label for _, label in found]
    )


def test_instances_are_linked_and_named(source: VideoSource) -> None:
    frames = [instances((2 + 2 * t, 1), (50 - 2 * t, 0)) for t in range(3)]
    frames += [instances((44, 0)), instances((42, 0), (10, 1))]  # the first is away in frame 3, and comes later then
    items = _tracks(frames, source, {0: "person", 1: "dog", 2: "cell phone"}).items
    assert [sorted(track.masks) for track in items] == [[0, 1, 2, 4], [0, 1, 2, 3, 4]]
    assert [track.words[0] for track in items] == ["dog", "person"]
    assert "puppy" in items[0].words
    assert "man" in items[1].words
    assert words_of("cell phone")[:2] == ("cell", "phone")


def test_what_is_away_for_long_is_another_track(source: VideoSource) -> None:
    away = [instances()] * (LONGEST_GAP + 1)
    items = _tracks([instances((5, 1)), *away, instances((5, 1))], source, {1: "dog"}).items
    assert [list(track.masks) for track in items] == [[0], [LONGEST_GAP + 2]]
    assert [track.name for track in items] == ["1", "2"]
    assert _tracks(away, source, {1: "dog"}).items == ()


def test_a_folder_is_loaded_and_run(coco_folder: Path, source: VideoSource) -> None:
    find = find_source("coco", [f"model={coco_folder}", "threshold=0.2", "most=3"])
    assert isinstance(find, CocoInstances)
    told: list[tuple[str, int]] = []
    tracks = find(source, [], CPU, lambda phase, done, total: told.append((phase, done)))
    assert told[-1] == ("candidates", 7)
    assert (tracks.height, tracks.width) == (H, W)
    assert tracks.items
    for t in range(7):
        assert len(tracks.masks(t)) <= 3
        assert all(mask.shape == (H, W) and mask.any() for mask in tracks.masks(t).values())


def test_answers_are_written(coco_folder: Path, clip: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    given = clip, ["the dog", "the one that moves left"], tmp_path / "out"
    for threshold, found in ((0.2, True), (1.0, False)):
        settings = [f"candidates.model={coco_folder}", f"candidates.threshold={threshold}"]
        options = Options(threshold=0.0, overrides=settings, overwrite=True)
        folder, results, new = segment_to_folder(*given, options, lambda _: segmenter, fps=8.0, candidates="coco")
        assert new == 2
        assert [result.found for result in results] == [found, found]
        assert all(item.track is not None for result in results for item in result.objects)
        assert len(list(folder.glob("*/masks/*.png"))) == 14
    assert [result.score for result in results] == [0.0, 0.0]
    assert json.loads((folder / "result.json").read_text())["results"][0]["found"] is False


def test_a_model_that_is_not_there_is_told(
    coco_folder: Path, source: VideoSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def told(model: object) -> str:
        with pytest.raises(UserError) as caught:
            CocoInstances(model=str(model))(source, [], CPU, silent)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no folder with a config.json" in told(tmp_path / "nowhere")
    assert not caplog.records
    other = tmp_path / "other"
    shutil.copytree(coco_folder, other)
    (other / "config.json").write_text('{"model_type": "bert"}')
    assert "model_type is bert, not mask2former" in told(other)
    shutil.copy(coco_folder / "config.json", other)
    (other / "model.safetensors").write_bytes(b"damaged")
    assert "cannot be loaded as transformers' Mask2Former" in told(other)
    (other / "model.safetensors").unlink()
    (other / "pytorch_model.bin").write_bytes(b"a pickle")
    assert "cannot be loaded as transformers' Mask2Former" in told(other)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not to be had from the hub" in told("owner/name")
    assert not caplog.records


def test_the_hub_is_asked_once_for_plain_files(
    coco_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[str, Any]] = []

    def download(**given: Any) -> str:
        asked.append(given)
        if given.get("local_files_only") and len(asked) == 1:
            raise OSError("not in the cache")
        return str(coco_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.find_folder("owner/name", "abc", "5 MB, MIT") == coco_folder
    assert hub.find_folder("owner/name", "abc", "5 MB, MIT") == coco_folder  # it is in the cache now
    assert [each.get("local_files_only", False) for each in asked] == [True, False, True]
    assert {each["revision"] for each in asked} == {"abc"}
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked[1]["allow_patterns"])
    assert ["owner/name" in text and "5 MB, MIT" in text for text in caplog.messages] == [True]
