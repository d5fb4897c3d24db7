"""What the page shows follows from the answers, without a model."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clips import write_clip
from dshmp import load_results
from dshmp.common.errors import UserError
from dshmp.common.progress import Progress
from dshmp.common.rle import encode
from dshmp.model.parser import Word
from dshmp.results.answer import ObjectResult
from dshmp.results.result import Result
from dshmp.serve import downloads, html, session
from dshmp.serve.session import View
from dshmp.video.io import open_video
from dshmp.video.overlay import OBJECTS

FRAMES, HEIGHT, WIDTH = 12, 48, 64
BOXES = ((slice(0, 24), slice(0, 32)), (slice(24, 48), slice(32, 64)), (slice(10, 30), slice(20, 50)))
SCORES = (0.9, 0.6, 0.2)


def quiet(phase: str, done: int, total: int | None) -> None: ...


def candidate(number: int) -> ObjectResult:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[BOXES[number]] = True
    evidence = np.arange(1, FRAMES + 1) ** float(number)
    return ObjectResult(SCORES[number], (encode(mask),) * FRAMES, tuple((evidence / evidence.sum()).tolist()))


def result(expression: str = "the red zorp moving", meant: int = 1, unknown: tuple[str, ...] = ("zorp",)) -> Result:
    """One whose first `meant` candidates of three are meant."""
    items = tuple(map(candidate, range(3)))
    words = (Word("red", 4, 7, "static"), Word("zorp", 8, 12, "static"), Word("moving", 13, 19, "motion"))
    union = np.any([item.masks for item in items[:meant]], axis=0)
    evidence = np.mean([item.evidence for item in items[:meant]], axis=0)
    return Result(
        expression=expression,
        words=words,
        found=True,
        score=SCORES[0],
        threshold=0.75 if meant == 1 else 0.5,
        height=HEIGHT,
        width=WIDTH,
        fps=25.0,
        times=tuple(t / 25 for t in range(FRAMES)),
        evidence=tuple(evidence.tolist()),
        objects=items[:meant],
        rle=tuple(map(encode, union)),
        others=items[meant:],
        unknown=unknown,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture
def view(clip: Path) -> View:
    return session.first_view(clip, [result(), result("the other one", unknown=())])


def test_at_first_it_is_what_the_model_answered(view: View) -> None:
    assert session.shown(view) == list(view.results)


def test_a_threshold_chooses_as_the_model_would_have(view: View) -> None:
    lower = session.with_threshold(view, 0.5)
    assert session.shown(lower) == [result(meant=2), result("the other one", meant=2, unknown=())]
    assert session.shown(session.with_threshold(lower, 0.75)) == list(view.results)


def test_above_all_scores_nothing_is_found_and_the_best_tells_when(view: View) -> None:
    none = session.shown(session.with_threshold(view, 0.95))[0]
    assert not none.found
    assert not none.masks.any()
    assert none.evidence == candidate(0).evidence
    assert none.others == tuple(map(candidate, range(3)))


def test_an_object_is_switched_in_the_sentence_that_is_looked_at(view: View) -> None:
    other = session.switched(session.with_sentence(view, 1), 2, True)
    first, second = session.shown(other)
    assert first == view.results[0]
    assert second.objects == (candidate(0), candidate(2))
    assert (second.masks == candidate(0).masks | candidate(2).masks).all()
    assert session.shown(session.switched(other, 2, False)) == list(view.results)


def test_a_sentence_that_is_not_there_cannot_be_looked_at(view: View) -> None:
    with pytest.raises(IndexError):
        session.with_sentence(view, 2)


def frame(path: Path, index: int = 5) -> np.ndarray:
    return [each.image for each in open_video(path)][index]


def test_the_video_is_drawn_in_the_chosen_colours(view: View, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.mp4" for name in "abc"]
    blue = session.coloured(view, 0, "#0000ff")
    for each, path in zip((view, blue, session.switched(view, 0, False)), paths, strict=True):
        session.draw_page_video(path, each, quiet)
    plain = frame(paths[2]).astype(int)
    scale = plain.shape[1] // WIDTH
    inside = (slice(4 * scale, 20 * scale), slice(4 * scale, 12 * scale))
    for path, colour in ((paths[0], OBJECTS[0]), (paths[1], (0, 0, 255))):
        seen = frame(path).astype(int)[inside].mean((0, 1))
        assert np.abs(seen - (0.55 * plain[inside].mean((0, 1)) + 0.45 * np.array(colour))).max() < 8
        outside = frame(path).astype(int)[-20:, -20:]
        assert np.abs(outside - plain[-20:, -20:]).max() < 12


def test_progress_is_told_and_may_stop_the_drawing(view: View, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []

    def progress(phase: str, done: int, total: int | None) -> None:
        told.append((phase, done, total))
        if done == 3:
            raise InterruptedError

    stopping: Progress = progress
    with pytest.raises(InterruptedError):
        session.draw_page_video(tmp_path / "part.mp4", view, stopping)
    assert told == [("drawing", index, FRAMES) for index in (1, 2, 3)]


@pytest.mark.parametrize("colour", ["", "red", "#12345", "#1234567890", "url(x)"])
def test_what_is_no_colour_is_refused(view: View, colour: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011, whichever way it is found out
        session.coloured(view, 0, colour)


def test_sentences_are_lines() -> None:
    assert session.sentences_of("  the  dog\n\n the cat \nthe dog\n") == ["the dog", "the cat"]
    with pytest.raises(UserError, match="no sentence given"):
        session.sentences_of(" \n\t\n")


def test_words_are_marked_and_nothing_that_was_typed_is_markup() -> None:
    text = html.words_html(result())
    assert '<span class="static" title="static word">red</span>' in text
    assert '<span class="motion" title="motion word">moving</span>' in text
    assert '<span class="unknown"' in text
    assert ">zorp</span>" in text
    typed = "<b>${alert(1)}{{value}}`\\"
    assert not set(html.escaped(typed)) & set("<>${}`\\")


def test_the_timeline_has_a_bar_per_frame_and_its_highest_where_evidence_is(view: View) -> None:
    later = session.switched(session.switched(view, 0, False), 1, True)
    bars = [line.split('"')[0] for line in html.timeline_html(later).split(' height="')[1:]]
    heights = [float(bar) for bar in bars]
    assert len(heights) == FRAMES
    assert heights == sorted(heights)
    assert heights[-1] == 100
    assert f'data-length="{FRAMES / 25:.4f}"' in html.timeline_html(later)


def test_candidates_are_listed_with_scores(view: View) -> None:
    text = html.objects_html(view)
    assert [f'data-number="{number}"' in text for number in range(4)] == [True, True, True, False]
    assert text.count("checked") == 1
    assert all(f">{score:.2f}<" in text for score in SCORES)
    bare = Result(**{**vars(result()), "objects": (), "others": ()})
    assert "No candidates" in html.objects_html(session.first_view(view.video, [bare]))


def test_downloads_hold_what_is_shown(view: View, tmp_path: Path) -> None:
    changed = session.switched(session.with_threshold(view, 0.5), 0, False)
    paths = downloads.write(list(downloads.KINDS), changed, tmp_path)
    assert [path.name for path in paths] == [
        "result.json",
        "01-the-red-zorp-moving-overlay.mp4",
        "02-the-other-one-overlay.mp4",
        *("coco.json", "ytvis.json", "yolo.zip", "cvat.xml", "labelstudio.zip", "mots.zip", "davis.zip"),
        *("alpha.zip", "csv.zip"),
    ]
    assert all(path.is_file() for path in paths)
    read = load_results(tmp_path / "result.json")
    assert [each.rle for each in read] == [each.rle for each in session.shown(changed)]
    assert [len(each.objects) for each in read] == [1, 2]
    assert json.loads((tmp_path / "result.json").read_text())["video"] == "clip.mp4"
    with zipfile.ZipFile(tmp_path / "davis.zip") as archive:
        assert len(archive.namelist()) == 2 * FRAMES
        picture = Image.open(io.BytesIO(archive.read("davis/01/00003.png")))
    assert ((np.asarray(picture) > 0) == candidate(1).masks[3]).all()
    assert len(list(open_video(paths[1]))) == FRAMES
