"""Reading Ref-DAVIS17: the miniature, four annotators, void, real videos where they are at hand, and what is broken."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dshmp.common.errors import UserError
from dshmp.data import ref_davis
from dshmp.data.check import examine
from dshmp.data.mini import draw_clips, first_frames
from dshmp.data.ref_davis import VOID, RefDavisSplit

REAL = Path(__file__).resolve().parents[3] / "shared" / "davis_mini"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "davis"
    ref_davis.write_mini(root, seed=2)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "davis"))


def test_the_miniature_is_what_was_drawn(made: Path) -> None:
    for number, name in enumerate(("train", "val")):
        split = RefDavisSplit(made, name)
        assert split.has_truth
        clips = draw_clips(2, 2 + number, families=("easy", "relative"))
        for video, clip in zip(split.videos.values(), clips, strict=True):
            frames, masks = first_frames(clip, hidden=(3, 5))
            read = np.stack(split.frames(video.name))
            assert np.abs(read.astype(int) - frames).mean() < 8  # JPEG
            indices = split.index_masks(video.name)
            assert indices.dtype == np.uint8
            void = indices == VOID
            assert void.any()
            found = split.masks(video.name, sorted(video.objects), range(8), masks.shape[2:])
            np.testing.assert_array_equal(found, masks)
            np.testing.assert_array_equal(split.index_masks(video.name, [5, 2]), indices[[5, 2]])
            assert [video.objects[k]["category"] for k in sorted(video.objects)] == [i.look.shape for i in clip.items]


def test_four_annotators_in_the_order_of_the_benchmark(made: Path) -> None:
    split = RefDavisSplit(made, "val")
    for video in split.videos.values():
        said = [item for item in split.expressions if item.video == video.name]
        assert [item.id for item in said] == [str(i) for i in range(4 * len(video.objects))]
        assert [item.extra["annotator"] for item in said] == [0, 1, 2, 3] * len(video.objects)
        assert [item.objects for item in said] == [(k,) for k in sorted(video.objects) for _ in range(4)]
        assert said[2].text.startswith("déjà vu: the ")
        assert said[3].text.endswith(", naïvely moving")
        assert said[0].category == video.objects[1]["category"]


def test_misspelt_names_are_mended(made: Path) -> None:
    texts = made / "davis_text_annotations"
    assert "clasic-car 1 " in (texts / "Davis17_annot1.txt").read_text()
    split = RefDavisSplit(made, "train")
    assert {item.video for item in split.expressions} == {"bear", "classic-car"}


def test_objects_are_sorted_as_strings(root: Path) -> None:
    for file, encoding in ref_davis.ANNOTATORS:
        path = root / "davis_text_annotations" / file
        lines = "".join(f'libby {k} "number {k}"\n' for k in (10, 2, 3, 4, 5, 6, 7, 8, 9))
        path.write_text(path.read_text(encoding) + lines, encoding)
    said = [item for item in RefDavisSplit(root, "val").expressions if item.video == "libby"]
    assert said[4].objects == (10,)
    assert said[7].id == "7"
    assert said[8].text == "number 2"


def test_texts_as_they_are_found(root: Path) -> None:
    """Windows line ends, stray spaces, Latin-1's own line break, a missing quote, videos of other splits."""
    path = root / "davis_text_annotations" / "Davis17_annot2.txt"
    text = 'libby 1 "a dog \x85 running "\r\n\r\nlibby  2  "a cat\r\naerobatics 1 "a plane"\r\n'
    path.write_bytes(text.encode("latin-1"))
    texts = ref_davis.read_texts(root, 2)
    assert texts == {
        ("libby", "1"): "a dog \x85 running",
        ("libby", "2"): "a cat",
        ("aerobatics", "1"): "a plane",
    }


def images(root: Path) -> Path:
    return root / "JPEGImages" / "480p"


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no list": (lambda r: (r / "ImageSets/2017/val.txt").unlink(), "val.txt: missing"),
    "no text": (lambda r: (r / "davis_text_annotations/Davis17_annot2.txt").unlink(), "Davis17_annot2.txt: missing"),
    "other encoding": (
        lambda r: shutil.copy(
            r / "davis_text_annotations/Davis17_annot2.txt", r / "davis_text_annotations/Davis17_annot1.txt"
        ),
        "Davis17_annot1.txt: cannot be read as utf-8 text",
    ),
    "no number": (
        lambda r: (r / "davis_text_annotations/Davis17_annot1.txt").write_text('\nlibby "a dog"\n'),
        "Davis17_annot1.txt: line 2 is not",
    ),
    "no frames": (
        lambda r: [shutil.rmtree(r / f / "480p/libby") for f in ("JPEGImages", "Annotations_unsupervised")],
        "libby: has no frame",
    ),
    "no frame": (lambda r: (images(r) / "libby/00003.jpg").unlink(), "00003.jpg: frame is missing"),
    "no mask": (
        lambda r: (r / "Annotations_unsupervised/480p/libby/00003.png").unlink(),
        "00003.png: mask is missing",
    ),
    "no such video": (lambda r: (r / "ImageSets/2017/val.txt").write_text("dog\n"), "dog: has no frame"),
}


def read_all(root: Path) -> None:
    split = RefDavisSplit(root, "val")
    for video in split.videos:
        split.frames(video)
        split.index_masks(video)


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named(kind: str, root: Path) -> None:
    damage, message = BROKEN[kind]
    damage(root)
    with pytest.raises(UserError) as caught:
        read_all(root)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real videos are not at hand")
def test_real_videos() -> None:
    split = RefDavisSplit(REAL, "val")
    assert list(split.videos) == ["blackswan", "car-shadow", "dog", "drift-straight", "libby"]
    assert sum(len(video.frames) for video in split.videos.values()) == 249
    assert len(split.expressions) == 20
    first = split.expressions[0]
    assert (first.id, first.text, first.objects, first.extra) == ("0", "a black swan", (1,), {"annotator": 0})
    (frame,) = split.frames("blackswan", [0])
    assert frame.shape == (480, 854, 3)
    mask = split.masks("blackswan", [1], [0, 49], (480, 854))
    np.testing.assert_array_equal(mask[0], split.index_masks("blackswan", [0, 49]) == 1)
    assert 0.02 < mask.mean() < 0.3
    assert examine(ref_davis.check, REAL, own=True).findings == []
