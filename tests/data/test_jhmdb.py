import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dshmp.common.errors import UserError
from dshmp.data.check import examine
from dshmp.data.jhmdb import ANNOTATION, LIST, JhmdbSplit, check, drawn_frames, write_mini
from dshmp.data.mini import draw_clips, make_mini, resized

SEED = 5
SIZE = (48, 64)
VIDEO = "mini_0_clap_f_nm_np1_fr_med_0"
SHORT = "mini_1_run_f_nm_np1_fr_med_1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("jhmdb") / "mini"
    make_mini("jhmdb", write_mini, root, SEED)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of the miniature to damage."""
    return Path(shutil.copytree(whole, tmp_path, dirs_exist_ok=True))


def test_frames_and_masks_are_those_drawn(whole: Path) -> None:
    split = JhmdbSplit(whole)
    assert split.has_truth
    assert "drawn with seed 0" in split.frame_list
    assert len(split.videos) == 4
    assert len(split.expressions) == 12
    drawn = [resized(clip, *SIZE) for clip in draw_clips(4, SEED, families=("easy",))]
    for item in split.expressions:
        frames, masks = drawn[int(item.video[5])]
        (position,) = item.scored or ()
        assert item.extra["image_id"] == f"v_{item.video}_f_{position + 1}"
        assert item.extra["action"] in item.video
        assert len(item.shown or ()) == 8
        for frame, t in zip(split.frames(item.video, item.shown), item.shown or (), strict=True):
            np.testing.assert_array_equal(frame, frames[t])
        found = split.masks(item.video, item.annotations, item.scored or (), SIZE)
        np.testing.assert_array_equal(found, masks[:1, position][:, None])
    everything = range(len(split.videos[VIDEO].frames))
    np.testing.assert_array_equal(split.masks(VIDEO, [1], everything, SIZE)[0], drawn[0][1][0])
    assert split.masks(VIDEO, [], [0, 1], SIZE).shape == (0, 2, *SIZE)
    assert sum(f.stat().st_size for f in whole.rglob("*") if f.is_file()) < 3e6


def test_frames_without_a_mask_are_no_part_of_the_video(whole: Path) -> None:
    split = JhmdbSplit(whole)
    files = list((whole / "Rename_Images" / "run" / SHORT).glob("*.png"))
    assert len(split.videos[SHORT].frames) == len(files) - 3
    here = [item for item in split.expressions if item.video == SHORT]
    assert max(t for item in here for t in item.shown or ()) < len(files) - 3
    with pytest.raises(UserError, match="ends before frame"):
        split.masks(SHORT, [1], [len(files) - 1], SIZE)


def test_drawn_frames_are_always_the_same() -> None:
    assert drawn_frames("abc", 40) == drawn_frames("abc", 40) == [8, 9, 31]
    assert drawn_frames("abd", 40) != drawn_frames("abc", 40)
    assert drawn_frames("abc", 2) == [1, 2]


def listed(entries: list[tuple[str, int, int, str]]) -> str:
    """MTTR's list, whose paths begin where its authors kept the data."""
    return json.dumps(
        [
            [video, f"./jhmdb_sentences/Rename_Images/clap/{video}/{frame:05d}.png", "x/puppet_mask.mat", count, text]
            for video, frame, count, text in entries
        ]
    )


def test_listed_samples_decide(root: Path) -> None:
    (root / LIST).write_text(listed([(VIDEO, 1, 9, "a"), (SHORT, 4, 10, "b"), (VIDEO, 9, 9, "a")]))
    split = JhmdbSplit(root, window=4)
    assert split.frame_list == f"MTTR's list ({LIST})"
    found = [(item.video, item.text, item.shown, item.scored) for item in split.expressions]
    assert found == [
        (VIDEO, "a", (0, 0, 0, 1), (0,)),
        (VIDEO, "a", (6, 7, 8, 8), (8,)),
        (SHORT, "b", (1, 2, 3, 4), (3,)),
    ]
    assert not examine(check, root, full=True).findings


def test_a_whole_data_set_has_no_findings(whole: Path) -> None:
    for full in (False, True):
        report = examine(check, whole, full=full)
        assert [str(item) for item in report.findings] == []
        assert any("not MTTR's" in note for note in report.notes)


def test_published_counts_are_compared(root: Path) -> None:
    (root / "mini.json").unlink()
    told = "the published data set has 928 videos, 2,784 expressions"
    (finding,) = examine(check, root).findings
    assert str(finding).startswith(f"{ANNOTATION}: holds 4 videos, 12 expressions, {told}")
    (root / LIST).write_text(listed([(VIDEO, 1, 9, "a")]))
    (finding,) = examine(check, root).findings
    assert str(finding).startswith(f"{LIST}: holds 1 videos, 1 expressions, {told}")


def save_mat(**values: Any) -> Callable[[Path], None]:
    return lambda root: scipy.io.savemat(root / MAT, values)


def cut(name: Path) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-300]) and None


MAT = Path("puppet_mask", "clap", VIDEO, "puppet_mask.mat")
PNG = Path("Rename_Images", "clap", VIDEO, "00001.png")
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no sentences": (lambda r: (r / ANNOTATION).unlink(), f"{ANNOTATION}: missing"),
    "a third column": (lambda r: (r / ANNOTATION).write_text("a,b\nc,d,e\n"), "line 2 has 3 columns, not 2"),
    "sentences are binary": (
        lambda r: (r / ANNOTATION).write_bytes(b"\xff\xfe"),
        f"{ANNOTATION}: cannot be read as utf-8-sig text",
    ),
    "row of an unknown video": (
        lambda r: (r / ANNOTATION).write_text("video,query\nnobody,him\n"),
        f"{ANNOTATION}: names nobody, which is not in Rename_Images",
    ),
    "a video twice": (
        lambda r: (r / ANNOTATION).write_text(f"video,query\n{VIDEO},a\n{VIDEO},b\n"),
        f"{ANNOTATION}: video '{VIDEO}', expression '2' is there 2 times",
    ),
    "no frames": (lambda r: (r / "Rename_Images").rename(r / "frames"), "Rename_Images: missing or without videos"),
    "no masks": (lambda r: (r / "puppet_mask").rename(r / "masks"), f"{MAT}: masks are missing"),
    "a frame is missing": (lambda r: (r / PNG).unlink(), f"{PNG}: frame is missing"),
    "video without frames": (lambda r: [f.unlink() for f in (r / PNG).parent.iterdir()], f"{VIDEO}: holds no frames"),
    "frame cut off": (cut(PNG), f"{PNG}: cannot be read as an image"),
    "frame is text": (lambda r: (r / PNG).write_text("no"), f"{PNG}: cannot be read as an image"),
    "frames of another size": (
        lambda r: Image.new("RGB", (8, 9)).save(r / PNG),
        "puppet_mask.mat: masks of size [48, 64], its frames have [9, 8]",
    ),
    "no mat": (lambda r: (r / MAT).unlink(), f"{MAT}: masks are missing"),
    "mat cut off": (cut(MAT), f"{MAT}: cannot be read as a MATLAB file"),
    "mat is empty": (lambda r: (r / MAT).write_bytes(b""), f"{MAT}: cannot be read as a MATLAB file"),
    "mat is text": (lambda r: (r / MAT).write_text("no" * 200), f"{MAT}: cannot be read as a MATLAB file"),
    "mat of another name": (save_mat(mask=np.ones((4, 4, 4))), f"{MAT}: part_mask is nothing of shape ()"),
    "mat of text": (save_mat(part_mask="no"), f"{MAT}: part_mask is char of shape (1,)"),
    "mat of another shape": (save_mat(part_mask=np.ones((2, 2, 2, 2))), "part_mask is double of shape (2, 2, 2, 2)"),
    "list of a clip without end": (
        lambda r: (r / LIST).write_text(listed([(VIDEO, 9, 99_999, "a")])),
        f"{LIST}: 0.3: must be at most 1000",
    ),
    "list cut off": (lambda r: (r / LIST).write_text('[["a"'), f"{LIST}: is not valid JSON"),
    "list of another form": (lambda r: (r / LIST).write_text('[["a"]]'), f"{LIST}: 0.1: is missing"),
    "list of other videos": (
        lambda r: (r / LIST).write_text(listed([("x", 1, 2, "a")])),
        "frame 1 of 2 of x is not there",
    ),
    "list beyond the end": (
        lambda r: (r / LIST).write_text(listed([(VIDEO, 9, 8, "a")])),
        f"{LIST}: frame 9 of 8 of {VIDEO} is not there",
    ),
    "list of more masks": (
        lambda r: (r / LIST).write_text(listed([(VIDEO, 9, 99, "a")])),
        f"{VIDEO}/00099.png: frame is missing",
    ),
    "list with a sample twice": (
        lambda r: (r / LIST).write_text(listed([(VIDEO, 1, 9, "a"), (VIDEO, 1, 9, "a")])),
        f"{LIST}: video '{VIDEO}', expression '1' is there 2 times",
    ),
    "list that counts differently": (
        lambda r: (r / LIST).write_text(listed([(VIDEO, 1, 9, "a"), (VIDEO, 2, 8, "a")])),
        f"{LIST}: counts the frames of {VIDEO} differently",
    ),
    "list with a count of text": (
        lambda r: (r / LIST).write_text(listed([(VIDEO, 1, 9, "a")]).replace(" 9,", ' "9",')),
        f"{LIST}: 0.3: must be a valid integer, found '9'",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, root: Path) -> None:
    damage, line = DAMAGE[kind]
    damage(root)
    lines = [str(item) for item in examine(check, root, full=True).findings]
    assert any(line in item for item in lines), lines
    assert not any("\n" in item or "could not go on" in item for item in lines)


def test_reading_damage(root: Path) -> None:
    with pytest.raises(UserError, match="has no split 'train'; choose from test"):
        JhmdbSplit(root, "train")
    split = JhmdbSplit(root)
    with pytest.raises(UserError, match=r"masks of size \[48, 64\], its frames have \[9, 9\]"):
        split.masks(VIDEO, [1], [0], (9, 9))
    cut(PNG)(root)
    with pytest.raises(UserError, match="cannot be read as an image"):
        split.frames(VIDEO, [0])
    (root / MAT).unlink()
    with pytest.raises(UserError, match="masks are missing"):
        JhmdbSplit(root)
