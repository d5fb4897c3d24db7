"""Reading Ref-YouTube-VOS: the miniature, valid without test, hidden and released truth, and what is broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dshmp.common.errors import UserError
from dshmp.data import ref_youtube_vos
from dshmp.data.images import index_mask, save_palette_png
from dshmp.data.mini import draw_clips, first_frames
from dshmp.data.ref_youtube_vos import RefYoutubeVosSplit, expressions_file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "ytvos"
    ref_youtube_vos.write_mini(root, seed=3)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "ytvos"))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_the_miniature_is_what_was_drawn(made: Path) -> None:
    split = RefYoutubeVosSplit(made, "train")
    assert split.has_truth
    clips = draw_clips(3, 3, families=("easy", "alike", "relative"))
    for video, clip in zip(split.videos.values(), clips, strict=True):
        frames, masks = first_frames(clip, hidden=(0, 5))
        assert video.frames == tuple(f"{5 * t:05d}" for t in range(8))
        read = np.stack(split.frames(video.name, [1, 7]))
        assert np.abs(read.astype(int) - frames[[1, 7]]).mean() < 8  # JPEG
        found = split.masks(video.name, range(1, len(masks) + 1), range(8), masks.shape[2:])
        np.testing.assert_array_equal(found, masks)
        assert [video.objects[k]["category"] for k in sorted(video.objects)] == [i.look.shape for i in clip.items]


def test_expressions_in_the_order_of_the_file(made: Path) -> None:
    split = RefYoutubeVosSplit(made, "train")
    entries = json.loads(expressions_file(made, "train").read_text())["videos"]
    listed = [(video, key, item["exp"]) for video, e in entries.items() for key, item in e["expressions"].items()]
    assert [(item.video, item.id, item.text) for item in split.expressions] == listed
    for item in split.expressions:
        assert item.objects == (int(entries[item.video]["expressions"][item.id]["obj_id"]),) == item.annotations
        assert item.category == split.videos[item.video].objects[item.objects[0]]["category"]


def test_valid_is_without_the_test_videos_and_without_truth(made: Path) -> None:
    split = RefYoutubeVosSplit(made, "valid")
    listed = json.loads(expressions_file(made, "valid").read_text())["videos"]
    test = json.loads(expressions_file(made, "test").read_text())["videos"]
    assert (len(listed), len(test), len(split.videos)) == (5, 2, 3)
    assert not set(split.videos) & set(test)
    assert {item.video for item in split.expressions} == set(split.videos)
    assert not split.has_truth
    assert {item.objects for item in split.expressions} == {()}
    assert len(split.frames(next(iter(split.videos)))) == 8


@pytest.mark.parametrize("where", ["expressions", "meta.json"])
def test_released_truth_of_valid(where: str, root: Path) -> None:
    hidden = RefYoutubeVosSplit(root, "valid")
    shape = hidden.frames(next(iter(hidden.videos)), [0])[0].shape[:2]
    path = root / "valid" / "meta.json"
    if where == "expressions":
        path = expressions_file(root, "valid")
    else:
        shutil.copy(expressions_file(root, "valid"), path)

    def name_objects(values: Any) -> None:
        for entry in values["videos"].values():
            for item in entry["expressions"].values():
                item["obj_id"] = "2"

    change(path, name_objects)
    assert not RefYoutubeVosSplit(root, "valid").has_truth  # there are no masks
    mask = np.zeros((2, *shape), bool)
    mask[1, 3:9, 4:20] = True
    for video in hidden.videos.values():
        save_palette_png(root / "valid" / "Annotations" / video.name / f"{video.frames[0]}.png", index_mask(mask))
    assert not RefYoutubeVosSplit(root, "valid").has_truth  # YouTube-VOS's own: first frames only
    for video in hidden.videos.values():
        for frame in video.frames:
            save_palette_png(root / "valid" / "Annotations" / video.name / f"{frame}.png", index_mask(mask))
    split = RefYoutubeVosSplit(root, "valid")
    assert split.has_truth
    item = split.expressions[0]
    np.testing.assert_array_equal(split.masks(item.video, item.annotations, [2], shape)[0, 0], mask[1])


def first_mask(root: Path) -> Path:
    return sorted((root / "train" / "Annotations").rglob("*.png"))[0]


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no expressions": (lambda r: expressions_file(r, "train").unlink(), "meta_expressions.json: missing"),
    "no test file": (
        lambda r: expressions_file(r, "test").unlink(),
        "test/meta_expressions.json: missing; it is no longer published",
    ),
    "no meta": (lambda r: (r / "train" / "meta.json").unlink(), "train/meta.json: missing"),
    "no videos": (lambda r: expressions_file(r, "train").write_text("{}"), "videos: is missing"),
    "objects are words": (
        lambda r: expressions_file(r, "train").write_text(
            expressions_file(r, "train").read_text().replace('"obj_id": "1"', '"obj_id": "one"')
        ),
        "obj_id: must be a valid integer",
    ),
    "no mask": (lambda r: first_mask(r).unlink(), "mask is missing"),
    "a coloured mask": (lambda r: Image.open(first_mask(r)).convert("RGB").save(first_mask(r)), "is a RGB image"),
    "a small mask": (lambda r: Image.open(first_mask(r)).resize((9, 8)).save(first_mask(r)), "is 9x8, its frame is"),
    "a cut mask": (lambda r: first_mask(r).write_bytes(first_mask(r).read_bytes()[:60]), "cannot be read as an image"),
}


def read_all(root: Path) -> None:
    for name in ("valid", "train"):
        split = RefYoutubeVosSplit(root, name)
        for video in split.videos if name == "train" else ():
            size = split.frames(video, [0])[0].shape
            split.masks(video, [1], range(8), (size[0], size[1]))


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named(kind: str, root: Path) -> None:
    damage, message = BROKEN[kind]
    damage(root)
    with pytest.raises(UserError) as caught:
        read_all(root)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_split(made: Path) -> None:
    with pytest.raises(UserError, match="no split 'val'; choose from train, valid"):
        RefYoutubeVosSplit(made, "val")
