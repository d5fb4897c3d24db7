"""Overlay videos."""

from pathlib import Path

from clips import picture
from dshmp.video.overlay import overlay_writer


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        with overlay_writer(tmp_path / name, 480, 640, 25.0) as write:
            for index in range(30):
                write(picture(index, 480, 640), index / 25)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
