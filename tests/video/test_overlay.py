"""Overlay videos, and the letters below their pictures."""

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clips import picture
from dshmp.video import fonts
from dshmp.video.overlay import Caption, OverlayPainter, _pieces, contact_sheet, overlay_writer


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No font but Pillow's own is installed."""
    fonts.font_for.cache_clear()
    monkeypatch.setattr(fonts, "_installed", list)
    yield
    fonts.font_for.cache_clear()


def caption(sentence: str) -> Caption:
    return Caption(sentence, (), 0.5, 1, [0.5, 0.5], [0.0, 0.1])


def panel(sentence: str) -> np.ndarray:
    return np.asarray(OverlayPainter(240, 480, caption(sentence)).panel)


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        with overlay_writer(tmp_path / name, 480, 640, 25.0) as write:
            for index in range(30):
                write(picture(index, 480, 640), index / 25)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_plain_letters_are_drawn_with_pillows_own_font() -> None:
    assert fonts.font_for("A dog that's running, to the left...") == (None, "")


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="a font with these letters comes with matplotlib")
@pytest.mark.parametrize("letter", "äéñłжωй–’")
def test_letters_beyond_ascii_are_drawn(letter: str) -> None:
    """As the chosen font has them, and not as it draws a letter that it lacks."""
    path, lacking = fonts.font_for(f"the d{letter}g")
    assert lacking == ""
    font = fonts.load_font(20, path)
    assert bytes(font.getmask(letter)) != bytes(font.getmask(fonts.UNKNOWN))
    assert not np.array_equal(panel(f"the d{letter}g"), panel("the dg"))


@pytest.mark.usefixtures("no_fonts")
def test_signs_that_are_never_drawn_are_not_missed() -> None:
    assert fonts.font_for("a\u00a0dog\u200d\ufe0f\tx\u3000") == (None, "")


@pytest.mark.usefixtures("no_fonts")
def test_letters_of_no_font_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dshmp"):
        for _ in range(2):
            assert np.array_equal(panel("the d狗g 狗 runs"), panel("the d\U0010fffeg \U0010fffe runs"))
    assert "no installed font has '狗'" in caplog.text
    assert "install one" in caplog.text
    assert len(caplog.records) == 2  # one of each sentence
    said = " ".join(text for text, _ in _pieces(caption("the d狗g 狗 runs")))
    assert said == "the dg runs (letters left out: no font has them)"
    assert " ".join(text for text, _ in _pieces(caption("狗"))) == "(letters left out: no font has them)"


def test_an_installed_font_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the system's folders; damaged files there and fonts without the letter do not matter."""
    building = pytest.importorskip("fontTools.fontBuilder")
    pens = pytest.importorskip("fontTools.pens.ttGlyphPen")
    pen = pens.TTGlyphPen(None)
    pen.moveTo((100, 0))
    for place in ((100, 700), (900, 700), (900, 0)):
        pen.lineTo(place)
    pen.closePath()
    builder = building.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "dog"])
    builder.setupCharacterMap({ord("狗"): "dog"})
    builder.setupGlyf({".notdef": pens.TTGlyphPen(None).glyph(), "dog": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "dog": (1000, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    (tmp_path / "deep").mkdir()
    builder.save(tmp_path / "deep/Test.ttf")
    (tmp_path / "Damaged.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path), str(tmp_path / "absent")))
    monkeypatch.setattr(fonts, "_installed", fonts._installed.__wrapped__)  # not as it was found before
    fonts.font_for.cache_clear()
    assert fonts.font_for("狗") == (tmp_path / "deep/Test.ttf", "")
    fonts.font_for.cache_clear()


def test_sheet_with_other_letters(tmp_path: Path) -> None:
    images, masks = np.stack([picture(0), picture(1)]), np.zeros((2, 1, 48, 64), bool)
    contact_sheet(tmp_path / "a.png", images, [(caption("der große Hund ж"), masks, masks[:, 0])], "title")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 300
