"""Reading MeViS's layout: the synthetic data set, a split as MeViS writes it, and what is broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from dshmp.common.errors import UserError
from dshmp.data import mevis
from dshmp.data.mevis import MevisSplit
from dshmp.data.mini import draw_clips, first_frames

SIZE = (24, 31)


def box(left: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[5:15, left : left + 8] = 1
    return mask


def encode(mask: np.ndarray) -> dict[str, Any]:
    code = coco.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits of one video as MeViS has them: with masks, and with the truth hidden."""
    expressions = {
        "valid_u": {
            "0": {"exp": "The bird flying away", "obj_id": [3], "anno_id": [7]},
            "1": {"exp": "both", "obj_id": [3, 5], "anno_id": [7, 8]},
        },
        "valid": {"0": {"exp": "The bird flying away"}},
    }
    for split, entries in expressions.items():
        images = tmp_path / split / "JPEGImages" / "abc"
        images.mkdir(parents=True)
        for t in range(3):
            Image.fromarray(np.full((*SIZE, 3), 40 * t, np.uint8)).save(images / f"{t:05d}.jpg")
        videos = {"abc": {"frames": [f"{t:05d}" for t in range(3)], "expressions": entries}}
        (tmp_path / split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    masks = {"7": [encode(box(0)), None, encode(box(10))], "8": [encode(box(20))] * 3}
    (tmp_path / "valid_u" / "mask_dict.json").write_text(json.dumps(masks))
    return tmp_path


def test_mevis_as_it_is(root: Path) -> None:
    split = MevisSplit(root, "valid_u")
    assert split.videos["abc"].frames == ("00000", "00001", "00002")
    assert split.videos["abc"].objects == {}
    first, both = split.expressions
    assert (first.video, first.id, first.text) == ("abc", "0", "The bird flying away")
    assert (both.objects, both.annotations, both.subsets, both.extra) == ((3, 5), (7, 8), (), {})
    frames = split.frames("abc", [2, 0])
    assert [frame.shape for frame in frames] == [(*SIZE, 3)] * 2
    assert (frames[0].mean(), frames[1].mean()) == (80, 0)
    masks = split.masks("abc", both.annotations, [0, 1, 2], SIZE)
    expected = np.array([[box(0), box(0) * 0, box(10)], [box(20)] * 3], bool)
    np.testing.assert_array_equal(masks, expected)
    np.testing.assert_array_equal(split.masks("abc", [8], [2], SIZE), expected[1:, 2:])
    assert split.masks("abc", [], [0], SIZE).shape == (0, 1, *SIZE)


def test_a_split_with_hidden_truth(root: Path) -> None:
    """It has no masks at all, and needs none to be read."""
    split = MevisSplit(root, "valid")
    assert [(item.text, item.objects) for item in split.expressions] == [("The bird flying away", ())]
    assert len(split.frames("abc")) == 3


def test_the_generated_world(mini: Path) -> None:
    for name in ("train", "valid_u", "test"):
        split = MevisSplit(mini, name)
        assert {item.video for item in split.expressions} == set(split.videos)
        assert any("direction pairs" in item.subsets for item in split.expressions)
        for video in split.videos.values():
            frame = split.frames(video.name, [0])[0]
            annotations = [item["anno_id"] for item in video.objects.values()]
            masks = split.masks(video.name, annotations, range(len(video.frames)), frame.shape[:2])
            assert masks.any((1, 2, 3)).all()
        for item in split.expressions:
            objects = split.videos[item.video].objects
            assert [objects[object_id]["anno_id"] for object_id in item.objects] == list(item.annotations)
            assert set(item.objects) <= set(item.extra["static_ids"])


def rewrite(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return apply


def cut_image(folder: Path) -> None:
    path = folder / "JPEGImages" / "abc" / "00001.jpg"
    path.write_bytes(path.read_bytes()[:-200])


META, MASKS = "meta_expressions.json", "mask_dict.json"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no such data set split; splits there: valid"),
    "no frame": (lambda f: (f / "JPEGImages/abc/00001.jpg").unlink(), "00001.jpg: frame is missing"),
    "frame is text": (lambda f: (f / "JPEGImages/abc/00001.jpg").write_text("no"), "00001.jpg: cannot be read"),
    "frame cut off": (cut_image, "00001.jpg: cannot be read as an image"),
    "no expressions file": (lambda f: (f / META).unlink(), f"{META}: missing"),
    "no masks": (lambda f: (f / MASKS).unlink(), f"{MASKS}: missing"),
    "expressions cut off": (lambda f: (f / META).write_text('{"videos": {"abc'), f"{META}: is not valid JSON"),
    "masks cut off": (lambda f: (f / MASKS).write_text('{"7": [nul'), f"{MASKS}: is not valid JSON"),
    "binary": (lambda f: (f / META).write_bytes(b"\xff\xfe\x00"), f"{META}: cannot be read as utf-8 text"),
    "a list": (lambda f: (f / META).write_text("[]"), f"{META}: must be a valid dictionary"),
    "nothing in it": (lambda f: (f / META).write_text('{"videos": {}}'), f"{META}: holds no expression"),
    "no frames key": (
        rewrite(META, lambda v: v["videos"]["abc"].pop("frames")),
        f"{META}: videos.abc.frames: is missing",
    ),
    "no text": (
        rewrite(META, lambda v: v["videos"]["abc"]["expressions"]["0"].pop("exp")),
        "videos.abc.expressions.0.exp: is missing",
    ),
    "video is a list": (
        rewrite(META, lambda v: v["videos"].update(abc=[])),
        f"{META}: videos.abc: must be a valid dictionary",
    ),
    "ids are a number": (
        rewrite(META, lambda v: v["videos"]["abc"]["expressions"]["0"].update(obj_id=3)),
        f"{META}: videos.abc.expressions.0.obj_id: must be a valid list",
    ),
    "annotation missing": (rewrite(MASKS, lambda v: v.pop("7")), f"{MASKS}: annotation 7 is missing"),
    "annotation short": (
        rewrite(MASKS, lambda v: v["7"].pop()),
        f"{MASKS}: annotation 7 has masks for 2 frames, the video has 3",
    ),
    "masks of another size": (
        rewrite(MASKS, lambda v: v["7"].__setitem__(2, encode(np.ones((8, 9), np.uint8)))),
        f"{MASKS}: annotation 7, frame 2 has size [8, 9], its frames have [24, 31]",
    ),
}


def read_all(root: Path) -> None:
    split = MevisSplit(root, "valid_u")
    frames = split.frames("abc")
    split.masks("abc", [7], range(3), (frames[0].shape[0], frames[0].shape[1]))


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named(kind: str, root: Path) -> None:
    damage, message = BROKEN[kind]
    damage(root / "valid_u")
    with pytest.raises(UserError) as caught:
        read_all(root)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_place_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dshmp synthetic make"):
        MevisSplit(tmp_path, "train")


def test_objects_without_their_annotations(root: Path) -> None:
    """MeViS's script looks at anno_id only, and takes text."""
    path = root / "valid_u" / "meta_expressions.json"
    path.write_text(path.read_text().replace('"anno_id": [7, 8]', '"anno_id": ["7"]'))
    (item,) = [item for item in MevisSplit(root, "valid_u").expressions if (item.video, item.id) == ("abc", "1")]
    assert item.annotations == (7,)


def test_nothing_meant_as_in_version_2(root: Path) -> None:
    """An absent target has an empty anno_id: the truth is public, and it is no mask."""
    path = root / "valid_u" / "meta_expressions.json"
    values = json.loads(path.read_text())
    values["videos"]["abc"]["expressions"] = {
        "0": {"exp": "the bird that lands", "obj_id": [], "anno_id": [], "type": "no target", "audio": "a.wav"}
    }
    values["version"] = 2
    path.write_text(json.dumps(values))
    split = MevisSplit(root, "valid_u")
    (item,) = split.expressions
    assert (split.has_truth, item.objects, item.annotations) == (True, (), ())
    assert item.extra == {"type": "no target", "audio": "a.wav"}
    assert split.masks("abc", item.annotations, range(3), SIZE).shape == (0, 3, *SIZE)
    assert not MevisSplit(root, "valid").has_truth


def test_opening_a_split_reads_no_masks(root: Path) -> None:
    (root / "valid_u" / "mask_dict.json").unlink()
    assert MevisSplit(root, "valid_u").has_truth


def test_damaged_run_lengths_are_named(root: Path) -> None:
    """They are never given to the decoder, which would read beyond them."""
    path = root / "valid_u" / "mask_dict.json"
    masks = json.loads(path.read_text())
    masks["7"][2]["counts"] = masks["7"][2]["counts"][:-1] + "o"
    path.write_text(json.dumps(masks))
    with pytest.raises(UserError, match="annotation 7, frame 2 has run lengths that are damaged"):
        MevisSplit(root, "valid_u").masks("abc", [7], [2], SIZE)


def test_the_miniature_is_what_was_drawn(tmp_path: Path) -> None:
    mevis.write_mini(tmp_path, seed=5)
    first = 0  # annotation ids go on from split to split
    for number, name in enumerate(("train", "valid_u")):
        split = MevisSplit(tmp_path, name)
        clips = draw_clips(3, 5 + number, families=("alike", "easy", "relative"))
        for video, clip in zip(split.videos.values(), clips, strict=True):
            frames, masks = first_frames(clip, hidden=(0, 5))
            read = np.stack(split.frames(video.name))
            assert read.shape == frames.shape
            assert np.abs(read.astype(int) - frames).mean() < 8  # JPEG
            annotations = range(first, first + len(masks))
            found = split.masks(video.name, annotations, range(8), masks.shape[2:])
            np.testing.assert_array_equal(found, masks)
            assert found[0].any((1, 2)).tolist() == [t not in (0, 5) for t in range(8)]
            first += len(masks)
        counts = {len(item.annotations) for item in split.expressions}
        assert {0, 1} <= counts
        assert max(counts) > 1
        assert split.has_truth
    hidden = MevisSplit(tmp_path, "valid")
    assert not hidden.has_truth
    assert not (tmp_path / "valid" / "mask_dict.json").exists()
    assert {len(item.objects) for item in hidden.expressions} == {0}
