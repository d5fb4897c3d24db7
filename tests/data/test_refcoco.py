import json
import os
import pickle
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dshmp.common.errors import UserError
from dshmp.data.check import examine
from dshmp.data.mini import draw_clips, make_mini, resized
from dshmp.data.refcoco import (
    DATASETS,
    SENTENCES,
    RefcocoSplit,
    check,
    converted_file,
    read_references,
    reference_file,
    write_mini,
)

SEED = 2
SIZE = (84, 112)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco") / "mini"
    make_mini("refcoco", write_mini, root, SEED)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of the miniature to damage."""
    return Path(shutil.copytree(whole, tmp_path, dirs_exist_ok=True))


def drawn() -> list[tuple[np.ndarray, np.ndarray]]:
    """Image (H, W, 3) and the masks (K, H, W) of its visible objects, per image."""
    found = []
    for clip in draw_clips(8, SEED, families=("alike", "easy")):
        frames, masks = resized(clip, *SIZE)
        here = masks[:, len(frames) // 2]
        found.append((frames[len(frames) // 2], here[here.any((1, 2))]))
    return found


@pytest.mark.parametrize("dataset", DATASETS)
def test_frames_and_masks_are_those_drawn(dataset: str, tmp_path: Path) -> None:
    write_mini(tmp_path, SEED, dataset)
    truth = drawn()
    images, objects = set(), 0
    for name in SENTENCES[dataset]:
        split = RefcocoSplit(tmp_path, name, dataset)
        assert split.has_truth
        assert [item.video for item in split.expressions] == sorted(item.video for item in split.expressions)
        for item in split.expressions:
            number, place = divmod(item.annotations[0] - 50_000, 10)
            image, masks = truth[number]
            assert item.objects == item.annotations
            assert item.shown is None
            (frame,) = split.frames(item.video)
            assert np.abs(frame.astype(int) - image).mean() < 8  # a lossy codec
            np.testing.assert_array_equal(split.masks(item.video, item.annotations, [0], SIZE)[0, 0], masks[place])
        images |= set(split.videos)
        objects += len(split.annotations)
    assert len(images) == 8
    assert objects == sum(min(len(masks), 3) - (len(masks) > 1) for _, masks in truth)  # nothing is said of crowds
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 3e6


def test_sentences_of_an_object_share_its_target(whole: Path) -> None:
    split = RefcocoSplit(whole, "train")
    rows = defaultdict(set)
    for item in split.expressions:
        rows[item.target].add(item.annotations)
    assert all(len(found) == 1 for found in rows.values())
    assert len(rows) < len(split.expressions)
    assert len({(item.video, item.id) for item in split.expressions}) == len(split.expressions)
    people = {item.category for item in RefcocoSplit(whole, "testA").expressions}
    assert people == {"person"}


def test_crowds_are_run_lengths_and_the_rest_polygons(whole: Path) -> None:
    """The readers of RefCOCO know polygons only."""
    content = json.loads((whole / "refcoco" / "instances.json").read_text())
    assert {(each["iscrowd"], type(each["segmentation"])) for each in content["annotations"]} == {(0, list), (1, dict)}
    kinds = {type(codes) for codes, _ in RefcocoSplit(whole, "train").annotations.values()}
    assert kinds == {list}


def test_only_annotations_of_the_split_are_kept(whole: Path) -> None:
    split = RefcocoSplit(whole, "val")
    assert set(split.annotations) == {item.annotations[0] for item in split.expressions}
    with pytest.raises(UserError, match="annotation 50000 is missing"):
        split.masks("COCO_train2014_000000001000", [50_000], [0], SIZE)


def convert(root: Path, split: str, keep: bool = False) -> None:
    """Writes a split as ReferFormer converts it; the original references go unless `keep`."""
    references = pickle.loads(reference_file(root, "refcoco").read_bytes())
    content = json.loads((root / "refcoco" / "instances.json").read_text())
    images = {item["id"]: item for item in content["images"]}
    annotations = {item["id"]: item for item in content["annotations"]}
    new: dict[str, Any] = {"images": [], "annotations": [], "categories": content["categories"]}
    for item in references:
        for sentence in item["sentences"] if item["split"] == split else []:
            number = len(new["images"]) + 1
            image, annotation = images[item["image_id"]], annotations[item["ann_id"]]
            new["images"].append({**image, "id": number, "original_id": image["id"], "caption": sentence["sent"]})
            new["annotations"].append({**annotation, "id": number, "image_id": number, "original_id": annotation["id"]})
    converted_file(root, "refcoco", split).write_text(json.dumps(new))
    if not keep:
        reference_file(root, "refcoco").unlink()


def test_converted_files_hold_the_same(root: Path, whole: Path) -> None:
    original = RefcocoSplit(whole, "train")
    convert(root, "train")
    split = RefcocoSplit(root, "train")
    assert list(split.videos) == list(original.videos)
    assert [(item.text, item.target, item.category) for item in split.expressions] == [
        (item.text, item.target, item.category) for item in original.expressions
    ]
    for a, b in zip(split.expressions, original.expressions, strict=True):
        np.testing.assert_array_equal(
            split.masks(a.video, a.annotations, [0], SIZE), original.masks(b.video, b.annotations, [0], SIZE)
        )
    report = examine(check, root, full=True)
    assert not report.findings
    with pytest.raises(UserError, match="missing, and so is instances_refcoco_val"):
        RefcocoSplit(root, "val")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(protocol: int, root: Path) -> None:
    path = reference_file(root, "refcoco")
    content = read_references(path)
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol))
    assert read_references(path) == content


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> Any:
        return self.what


REFUSED: dict[str, tuple[bytes, str]] = {
    **{
        f"code, protocol {n}": (pickle.dumps([Evil(os.system, "touch evil")], n), "asks for 'posix.system'")
        for n in range(6)
    },
    "a number of thousands of digits": (pickle.dumps([10**5000], 2), "asks for the instruction LONG4, which no list"),
    "an array": (pickle.dumps([np.zeros(3)], 2), "_reconstruct', which no list of references needs"),
    "an extension": (b"\x80\x02\x82\x01.", "asks for the instruction EXT1"),
    "nested tuples": (b"\x80\x02" + b"N" + b"\x85" * 100_000 + b".", "refs(unc).p: 0: must be a valid dictionary"),
    "a huge memo": (b"\x80\x02]r\xff\xff\xff\xffN" + b"j\x00\x00\x00\x00.", "is damaged or no pickle"),
    "a persistent id": (b"Pabc\n.", "asks for the instruction PERSID"),
    "text": (b"<html>", "asks for the instruction"),
    "nothing": (b"", "is damaged or no pickle (EOFError)"),
    "cut off": (pickle.dumps([{"a": "b" * 100}], 2)[:-40], "is damaged or no pickle"),
    "a mapping": (pickle.dumps({}, 2), "must be a valid list, found {}"),
    "other things": (pickle.dumps([{"ref_id": 1}], 2), "0.ann_id: is missing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED)
def test_pickles_that_are_refused(kind: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    data, message = REFUSED[kind]
    reference_file(root, "refcoco").write_bytes(data)
    with pytest.raises(UserError) as caught:
        RefcocoSplit(root, "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (root / "evil").exists()
    lines = [str(item) for item in examine(check, root).findings]
    assert any(line.startswith("refcoco/refs(unc).p: ") for line in lines)


def test_a_whole_data_set_has_no_findings(whole: Path) -> None:
    for full in (False, True):
        assert [str(item) for item in examine(check, whole, full=full).findings] == []
    assert not examine(check, whole, splits=("testA",)).findings


def test_published_counts_are_compared(root: Path) -> None:
    (root / "mini.json").unlink()
    lines = [str(item) for item in examine(check, root).findings]
    assert any("the published data set has 120,624 expressions" in line for line in lines)
    assert any("the published data set has 5,095 expressions" in line for line in lines)


def references(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = reference_file(root, "refcoco")
        content = pickle.loads(path.read_bytes())
        change(content)
        path.write_bytes(pickle.dumps(content, 2))

    return apply


def instances(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / "refcoco" / "instances.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def segmentation(value: Any, place: int = 0) -> Callable[[Path], None]:
    return instances(lambda v: v["annotations"][place].update(segmentation=value))


def converted(root: Path) -> None:
    convert(root, "train")
    path = converted_file(root, "refcoco", "train")
    content = json.loads(path.read_text())
    content["annotations"].pop()
    path.write_text(json.dumps(content))


IMAGE = Path("train2014", "COCO_train2014_000000001000.jpg")
PICKLE, JSON = "refcoco/refs(unc).p", "refcoco/instances.json"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing there": (lambda r: (r / PICKLE).unlink(), f"{PICKLE}: missing, and so is instances_refcoco_train.json"),
    "no instances": (lambda r: (r / JSON).unlink(), f"{JSON}: missing"),
    "instances cut off": (lambda r: (r / JSON).write_text('{"images": ['), f"{JSON}: is not valid JSON"),
    "instances are a list": (lambda r: (r / JSON).write_text("[]"), f"{JSON}: must be a valid dictionary"),
    "no categories": (instances(lambda v: v.pop("categories")), f"{JSON}: categories: is missing"),
    "image without size": (instances(lambda v: v["images"][0].pop("height")), f"{JSON}: images.0.height: is missing"),
    "annotation missing": (
        instances(lambda v: v["annotations"].pop(0)),
        f"{JSON}: lacks image 1000 or its annotation 50000",
    ),
    "image not listed": (
        references(lambda v: v[0].update(image_id=5)),
        f"{JSON}: lacks image 5 or its annotation",
    ),
    "id twice": (
        references(lambda v: v[1]["sentences"][0].update(sent_id=v[0]["sentences"][0]["sent_id"])),
        f"{PICKLE}: video 'COCO_train2014_000000001000', expression '0' is there 2 times",
    ),
    "empty sentence": (references(lambda v: v[0]["sentences"][0].update(sent=" ")), "expression '0' has no text"),
    "no sentence": (references(lambda v: v[0].pop("sentences")), f"{PICKLE}: 0.sentences: is missing"),
    "two numbers": (segmentation([[1, 2]]), "annotation 50000 is no list of polygons, each of three or more x, y"),
    "text as polygon": (segmentation([["a"] * 6]), "annotation 50000 has a polygon that leaves its image"),
    "far away": (segmentation([[0, 0, 1e9, 0, 1, 1]]), "annotation 50000 has a polygon that leaves its image"),
    "no polygon": (segmentation([]), "annotation 50000 is no list of polygons"),
    "no mask": (segmentation(None), "annotation 50000 is no COCO run lengths"),
    "run lengths too short": (
        segmentation({"counts": [4, 4], "size": list(SIZE)}),
        "annotation 50000 has run lengths that cover 8 of 9,408 pixels",
    ),
    "run lengths of text": (segmentation({"counts": "", "size": list(SIZE)}), "annotation 50000 has run lengths"),
    "run lengths of another size": (
        segmentation({"counts": [4, 4], "size": [2, 4]}),
        "annotation 50000 has size [2, 4], its frames have [84, 112]",
    ),
    "another image size": (
        instances(lambda v: v["images"][0].update(height=85)),
        "annotation 50000 is of an image of size [85, 112], COCO_train2014_000000001000 has [84, 112]",
    ),
    "no images": (
        lambda r: (r / "train2014").rename(r / "val2014"),
        "train2014: the folder is missing; fetch refcoco again, or COCO's train2014",
    ),
    "image missing": (lambda r: (r / IMAGE).unlink(), f"{IMAGE}: frame is missing"),
    "image cut off": (
        lambda r: (r / IMAGE).write_bytes((r / IMAGE).read_bytes()[:-900]),
        f"{IMAGE}: cannot be read as an image",
    ),
    "image of infinite height": (
        instances(lambda v: v["images"][0].update(height=float("inf"))),
        f"{JSON}: images.0.height: must be",
    ),
    "image below 0": (instances(lambda v: v["images"][0].update(height=-5)), f"{JSON}: images.0.height: must be"),
    "image of light years": (
        instances(lambda v: v["images"][0].update(height=10**12)),
        f"{JSON}: images.0.height: must be",
    ),
    "annotation without id": (
        instances(lambda v: v["annotations"][0].pop("id")),
        f"{JSON}: annotations.0.id: is missing",
    ),
    "annotation of a list": (
        instances(lambda v: v["annotations"][0].update(id=[1])),
        f"{JSON}: annotations.0.id: must be",
    ),
    "half a character": (
        references(lambda v: v[0]["sentences"][0].update(sent="a \ud800")),
        f"{PICKLE}: 0.sentences.0.sent: ",
    ),
    "run lengths that decoders hang on": (
        segmentation({"counts": "\u0100\u0100", "size": list(SIZE)}),
        "annotation 50000 has run lengths that are damaged",
    ),
    "converted without a mask": (converted, "instances_refcoco_train.json: lacks image 15 or its annotation"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, root: Path) -> None:
    damage, line = DAMAGE[kind]
    damage(root)
    lines = [str(item) for item in examine(check, root, full=True).findings]
    assert any(line in item for item in lines), lines
    assert not any("\n" in item or "could not go on" in item for item in lines)


def test_unknown_splits(whole: Path) -> None:
    with pytest.raises(UserError, match="refcocog has no split 'testA'; choose from train, val, test"):
        RefcocoSplit(whole, "testA", "refcocog")
    lines = [str(item) for item in examine(partial(check, dataset="refcocog"), whole).findings]
    assert any(line.startswith("refcocog/refs(umd).p: missing") for line in lines)
