"""CVAT's XML as people export it: polygons, masks in groups, labels and colours; and what is no such file."""

import logging
from pathlib import Path

import numpy as np
import pytest

from answers import LENGTH, SIZE
from clips import write_frames
from dshmp.common.errors import UserError
from dshmp.formats.reading import read_tracks
from dshmp.video.io import open_video
from dshmp.video.source import VideoSource

SIDES = "<original_size><width>61</width><height>45</height></original_size>"
META = f"<version>1.1</version><meta><task>{SIDES}</task></meta>"
SQUARE = 'points="2.00,3.00;12.00,3.00;12.00,13.00;2.00,13.00"'
DOT = 'rle="0, 2, 1, 1" left="5" top="6" width="2" height="2"'
SHAPE = 'outside="0" occluded="0" keyframe="1"'


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> VideoSource:
    return open_video(write_frames(tmp_path_factory.mktemp("video") / "clip", LENGTH, *SIZE), fps=25.0)


def mask(rle: str, left: int, top: int, width: int, height: int) -> str:
    """A track of one mask."""
    place = f'left="{left}" top="{top}" width="{width}" height="{height}"'
    return f'<track id="0" label="x"><mask frame="0" {SHAPE} rle="{rle}" {place}/></track>'


def written(place: Path, body: str, meta: str = META) -> Path:
    path = place / "clip.xml"
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?><annotations>{meta}{body}</annotations>', encoding="utf-8")
    return path


def test_polygons_masks_and_words(source: VideoSource, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = f"""
    <track id="0" label="Star" source="manual"><polygon frame="1" keyframe="1" outside="0" {SQUARE}>
      <attribute name="color">Dark red</attribute><attribute name="big">true</attribute>
      <attribute name="age">3.5</attribute></polygon>
      <polygon frame="2" keyframe="0" outside="0" {SQUARE}/>
      <polygon frame="3" keyframe="1" outside="1" {SQUARE}/></track>
    <track id="1" label="dog" group_id="4"><mask frame="0" {SHAPE} {DOT}/>
      <mask frame="1" outside="1" keyframe="1" occluded="0" {DOT}/></track>
    <track id="2" label="dog" group_id="4"><mask frame="4" {SHAPE} {DOT}/></track>
    <track id="3" label="dog" group_id="4">
      <mask frame="4" {SHAPE} rle="0, 1" left="0" top="0" width="1" height="1"/></track>
    <track id="4" label="cat"><box frame="0" {SHAPE} xtl="1" ytl="1" xbr="5" ybr="5"/></track>"""
    with caplog.at_level(logging.WARNING, "dshmp"):
        found = read_tracks(written(tmp_path, body), source)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'clip.xml'}: tracks of box are no masks and left out"
    ]
    star, dog = found.items
    assert (star.name, star.words) == ("0", ("star", "dark", "red"))
    assert (dog.name, dog.words) == ("g4", ("dog",))
    assert sorted(star.masks) == [1, 2]
    assert sorted(dog.masks) == [0, 4]
    square = np.zeros(SIZE, bool)
    square[3:13, 2:12] = True
    assert np.array_equal(found.masks(1)["0"], square)
    dot = np.zeros(SIZE, bool)
    dot[6:8, 5:7] = [[True, True], [False, True]]
    assert np.array_equal(found.masks(0)["g4"], dot)
    dot[0, 0] = True
    assert np.array_equal(found.masks(4)["g4"], dot)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("", "holds no masks or polygons, only nothing"),
        (f'<track id="0" label="x"><box frame="0" {SHAPE}/></track>', "only box; draw masks, boxes are none"),
        ('<image id="0" name="a"/>', "is CVAT for images; export as CVAT for video 1.1"),
        (f'<track id="0" label="x"><mask {SHAPE} {DOT}/></track>', "track 0: a mask lacks or spoils 'frame'"),
        (f'<track id="0"><mask frame="x" {SHAPE} {DOT}/></track>', "track 0: a mask lacks or spoils"),
        (mask("1, a", 0, 0, 2, 1), "spoils"),
        (mask("1, 2", 0, 0, 2, 1), "3 of 2"),
        (
            f'<track id="0"><mask frame="0" {SHAPE} rle="4" left="60" top="0" width="2" height="2"/></track>',
            "leaves the",
        ),
        (
            f'<track id="0"><mask frame="0" {SHAPE} rle="-4" left="0" top="0" width="2" height="2"/></track>',
            "leaves the",
        ),
        (
            f'<track id="0"><polygon frame="0" {SHAPE} points="1,2;3,4"/></track>',
            "frame 0 is no list of polygons",
        ),
        (f'<track id="0"><polygon frame="0" {SHAPE} points="1,2;3,nan;5,6"/></track>', "leaves its image"),
        (f'<track id="0"><polygon frame="0" outside="1" {SQUARE}/></track>', "no object is seen"),
        ("<track>", "cannot be read as XML"),
    ],
)
def test_bad_files_are_told(body: str, told: str, source: VideoSource, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as caught:
        read_tracks(written(tmp_path, body), source)
    assert str(tmp_path / "clip.xml") in str(caught.value)


def test_another_video_or_no_xml(source: VideoSource, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the video is 61x99 there, the video's frames are 61x45"):
        read_tracks(written(tmp_path, "", META.replace("45", "99")), source)
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for content in (b"", b"\x00\xff", f"{bomb}]><annotations>&i;</annotations>".encode()):
        (tmp_path / "clip.xml").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as XML"):
            read_tracks(tmp_path / "clip.xml", source)
