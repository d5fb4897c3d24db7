"""Results show and save themselves: HTML that loads nothing, a figure, an overlay, a folder."""

import base64
import copy
import io
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clips import picture, tiny_model, write_clip, write_frames
from dshmp.common.errors import UserError
from dshmp.inference.segmenter import Segmenter
from dshmp.results.result import Result, load_results
from dshmp.video.overlay import MOTION, STATIC, TRACK

SENTENCE = "the red <b>star</b> & moving left"


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(*tiny_model(), device="cpu")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return np.stack([picture(3 * i, 48, 64) for i in range(11)])


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


class Tags(HTMLParser):
    """Checks that what is opened is closed, and keeps the text and its colours."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.coloured: dict[str, list[str]] = {}
        self.colour = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [] if tag == "img" else [tag]
        self.colour = dict(attrs).get("style") or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.colour = ""

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        self.coloured.setdefault(self.colour, []).append(data)


def css(colour: tuple[int, int, int]) -> str:
    return "color:#" + "".join(f"{each:02x}" for each in colour)


def test_html(segmenter: Segmenter, tmp_path: Path, clip: np.ndarray) -> None:
    result = segmenter(clip, SENTENCE)
    html = result._repr_html_()
    tags = Tags(html)
    assert tags.open == []
    assert SENTENCE in "".join(tags.text)
    words = {group: [w.text for w in result.words if w.group == group] for group in ("static", "motion")}
    assert tags.coloured[css(STATIC)] == [*words["static"], "static"]
    assert tags.coloured[css(MOTION)] == [*words["motion"], "motion"]
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|<script", html)
    assert len(html) < 100_000
    shown = pictures(html)
    assert len(shown) == 8
    assert shown[0].shape[1] == 150
    assert html.count("<rect") == 11
    video = write_clip(tmp_path / "clip.mp4", 300)
    long = segmenter(video, "a cat", frames="100:290", threshold=1.0)
    assert "nothing matches" in long._repr_html_()
    assert long._repr_html_().count("<rect") == 160
    assert "not understood: cat" in long._repr_html_()
    # picture 100 of the file, darkened
    assert np.abs(pictures(long._repr_html_())[0][30:40, 5:20].mean((0, 1)) - (127, 0, 0)).max() < 25


def test_pixels_are_those_of_the_video_while_it_is_there(
    segmenter: Segmenter, tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = clip.copy()
    result = segmenter(own, "a cat", threshold=1.0)
    with_pixels = pictures(result._repr_html_())[0]
    assert with_pixels[10, 10, 0] > 100
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), replace(result)):
        assert other == result
        assert (pictures(other._repr_html_())[0][10, 10].astype(int) - TRACK).max() < 10
    del own
    assert (pictures(result._repr_html_())[0][10, 10].astype(int) - TRACK).max() < 10
    monkeypatch.chdir(tmp_path)
    write_frames(Path("frames"), 5, 48, 64)
    result = pickle.loads(pickle.dumps(segmenter("frames", "a cat", threshold=1.0)))
    monkeypatch.chdir("/")
    assert pictures(result._repr_html_())[0][10, 10, 0] > 100
    (tmp_path / "frames" / "f002.png").write_bytes(b"damaged")
    assert len(pictures(result._repr_html_())) == 5
    assert pictures(segmenter(iter(clip), "a cat")._repr_html_())


def test_figure(segmenter: Segmenter, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    result = segmenter(iter(clip), SENTENCE + " $ 5_$")
    for figure in (result.plot(), result.plot(clip)):
        assert len(figure.axes) == 9
        figure.savefig(file := io.BytesIO(), format="png")
        assert file.getvalue()
    assert not pyplot.get_fignums()
    with pytest.raises(UserError, match="10 frames of 64x48, but the result is about 11 of 64x48"):
        result.plot(clip[1:])
    with pytest.raises(UserError, match=r"gone\.mp4"):
        result.plot("gone.mp4")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'dshmp\[plots\]'"):
        result.plot()


def test_overlay(segmenter: Segmenter, tmp_path: Path, clip: np.ndarray) -> None:
    source = write_clip(tmp_path / "clip.mp4", 12, audio="aac")
    result = segmenter(source, SENTENCE, frames="2:9")
    path = result.video(tmp_path / "overlay.mp4")
    for _ in range(2):
        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == 7
            assert container.streams.audio
        result.video(str(path))  # of ours, so it is replaced
    (tmp_path / "mine.mp4").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.mp4: is there, and not as dshmp wrote it"):
        result.video(tmp_path / "mine.mp4")
    assert (tmp_path / "mine.mp4").read_text() == "mine"
    alone = segmenter(iter(clip), "a cat")
    with pytest.raises(UserError, match="does not know its video any more"):
        alone.video(tmp_path / "alone.mp4")
    for other in (iter(clip[1:]), write_clip(tmp_path / "long.mp4", 14), write_clip(tmp_path / "short.mp4", 3)):
        with pytest.raises(UserError, match="give the video that was asked about"):
            alone.video(tmp_path / "alone.mp4", other)
    assert not (tmp_path / "alone.mp4").exists()
    assert alone.video(tmp_path / "alone.mp4", iter(clip)).is_file()


def test_a_folder(segmenter: Segmenter, tmp_path: Path, clip: np.ndarray) -> None:
    first, second = segmenter(clip, [SENTENCE, "a cat"], fps=8)
    folder = first.save(tmp_path / "saved")
    (read,) = load_results(folder)
    assert read.to_json() == first.to_json()
    (folder / "notes.txt").write_text("mine")
    second.save(str(folder))
    shorter = segmenter(clip[:5], "a cat")
    assert shorter.save(folder) == folder  # the same sentence again
    assert [each.to_json() for each in load_results(folder)] == [first.to_json(), shorter.to_json()]
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(list(folder.glob("02-*/masks/*.png"))) == 5
    mask = np.asarray(Image.open(next(folder.glob("01-*/masks/00003.png"))))
    assert (mask == first.mask(3) * 255).all()
    (next(folder.glob("02-*/masks")) / "00007.png").write_text("mine")
    with pytest.raises(UserError, match=r"00007\.png: is not of the answer that is replaced"):
        second.save(folder)
    assert load_results(folder)[1].to_json() == shorter.to_json()
    with pytest.raises(UserError, match="exists and is not a result of dshmp"):
        first.save(write_frames(tmp_path / "frames", 2, 48, 64))
    with pytest.raises(UserError, match=r"holds answers about an array, not .*frames; choose another folder"):
        segmenter(tmp_path / "frames", "a cat").save(folder)
    assert len(list(tmp_path.iterdir())) == 2
    assert not [each for each in folder.iterdir() if each.name.startswith(".dshmp-")]


def test_results_that_were_read_show_their_masks(tmp_path: Path, segmenter: Segmenter, clip: np.ndarray) -> None:
    (result,) = load_results(segmenter(clip, "a cat").save(tmp_path / "saved"))
    assert isinstance(result, Result)
    assert len(pictures(result._repr_html_())) == 8
    assert "origin" not in result.to_json()
    assert "origin" not in repr(result)
