"""Words that neither the model nor the candidates tell anything about do not become a confident answer."""

import logging
from pathlib import Path

import numpy as np
import pytest

import tiny
from clips import picture
from dshmp.common.options import Options
from dshmp.common.rle import encode
from dshmp.config import EncoderConfig
from dshmp.formats.tracks import Track, Tracks
from dshmp.inference.encoded import Query
from dshmp.inference.segment import segment_to_folder
from dshmp.inference.segmenter import Segmenter
from dshmp.inference.tracked import unchecked, with_labels
from dshmp.model.tokenizer import LEARNT, TextTokenizer, train_tokenizer
from dshmp.results.result import load_results

MASKS = np.zeros((2, 6, 48, 64), bool)
for t in range(6):
    MASKS[0, t, 8:20, 4 + 7 * t : 16 + 7 * t] = True
    MASKS[1, t, 30:40, 40:56] = True
FRAMES = np.stack([picture(0, 48, 64)] * 6)


@pytest.fixture(scope="module")
def default() -> Segmenter:
    return Segmenter.from_pretrained("default", device="cpu")


def words_of(segmenter: Segmenter, text: str) -> list[str]:
    return [word.text for word in segmenter.tokenizer.unknown(text)]


def tracks(*labels: tuple[str, ...], vocabulary: frozenset[str] = frozenset()) -> Tracks:
    named = [Track(str(k), {t: encode(m) for t, m in enumerate(masks)}, labels[k]) for k, masks in enumerate(MASKS)]
    return Tracks(48, 64, tuple(named), 6, vocabulary)


def query(segmenter: Segmenter, text: str) -> Query:
    return segmenter._query(text)


def test_words_of_the_training_set_are_known(default: Segmenter) -> None:
    assert words_of(default, "the red star that moves left and then turns back") == []
    assert words_of(default, "The one that keeps still") == []


def test_other_words_are_unknown(default: Segmenter) -> None:
    assert words_of(default, "the dog eating grass") == ["dog", "eating", "grass"]
    assert words_of(default, "the red star, sneezing") == ["sneezing"]


def test_a_large_vocabulary_knows_all_words() -> None:
    texts = [f"{a}{b}{c}" for a in "bcdfghklmnpr" for b in "aeiou" for c in "bcdfghklmnprst" for _ in range(2)]
    small = TextTokenizer(tiny.config(), train_tokenizer(texts, 400))
    assert small.unknown("the zyzzyva runs")
    small.tokenizer.add_tokens([f"word{n}" for n in range(LEARNT)])
    assert small.unknown("the zyzzyva runs") == []
    assert EncoderConfig().vocab_size > LEARNT


def test_scores_are_halved_and_it_is_told(default: Segmenter, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dshmp"):
        result = default(FRAMES, "the one that sneezes to the right", tracks=MASKS, still_camera=True, fps=8.0)
    assert result.unknown == ("sneezes",)
    assert not result.found
    assert result.score <= 0.5
    assert [record.getMessage().count("'sneezes'") for record in caplog.records] == [1]
    known = default(FRAMES, "the one that moves to the right", tracks=MASKS, still_camera=True, fps=8.0)
    assert known.unknown == ()
    assert known.found
    assert [each.track for each in known.objects] == ["1"]


def test_a_guess_can_be_had_all_the_same(default: Segmenter) -> None:
    options = {"tracks": MASKS, "still_camera": True, "fps": 8.0}
    assert default(FRAMES, "the dog that moves to the right", **options).unknown == ("dog",)
    guess = default(FRAMES, "the dog that moves to the right", threshold=0.3, **options)
    assert guess.found
    assert guess.score < 0.5
    assert [each.track for each in guess.objects] == ["1"]


def test_labels_say_what_can_be_checked(default: Segmenter) -> None:
    asked = query(default, "the dogs on the left that move to the right")
    assert [word.text for word in unchecked(asked, tracks((), ()), False)] == ["dogs"]
    assert [word.text for word in unchecked(asked, tracks((), ()), True)] == ["dogs"]  # it knows no dogs
    assert unchecked(asked, tracks(("dog",), ("cat",)), False) == ()
    assert unchecked(asked, tracks((), (), vocabulary=frozenset({"dog", "person"})), False) == ()


@pytest.mark.parametrize(
    "text", ["the one that gets bigger", "the one that moves in a circle", "the object that turns a corner"]
)
def test_what_belongs_to_a_motion_is_no_look(default: Segmenter, text: str) -> None:
    assert unchecked(query(default, text), tracks((), ()), False) == ()


def test_motion_words_are_not_for_labels_to_tell(default: Segmenter) -> None:
    asked = query(default, "the dog eating")
    assert [word.text for word in unchecked(asked, tracks(("dog",), ("eating",)), False)] == ["eating"]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("the dog that moves right", [True, False]),
        ("the brown dog that moves right", [True, False]),
        ("the cat that moves right", [False, True]),
        ("the animal that moves right", [True, True]),
        ("the horse that moves right", [False, False]),
        ("the zebra that moves right", None),  # no source tells
        ("the one that moves right", None),
        ("the cat following the dog", [False, True]),  # it is about the first
    ],
)
def test_labels_choose(default: Segmenter, text: str, fits: list[bool] | None) -> None:
    from dshmp.inference.tracked import FramesRead, track_candidates
    from dshmp.video.io import open_video

    given = tracks(("brown", "dog", "animal"), ("black", "cat", "animal"), vocabulary=frozenset({"horse"}))
    read = FramesRead(open_video(FRAMES, None, 8.0), default.config.input, True)
    read.finish(lambda *_: None)
    told = with_labels(track_candidates(read, given), query(default, text), given).fits
    assert (None if told is None else [bool(each > 0) for each in told[0, 0]]) == fits


def test_results_keep_it(default: Segmenter, tmp_path: Path) -> None:
    from PIL import Image

    clip = tmp_path / "clip"
    clip.mkdir()
    for t, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(clip / f"{t:05d}.png")
    folder, (first, second), _ = segment_to_folder(
        clip, ["the red star", "the dog eating"], tmp_path / "out", Options(), lambda _: default, overlay=False
    )
    assert (first.unknown, second.unknown) == ((), ("dog", "eating"))
    assert [each.unknown for each in load_results(folder)] == [(), ("dog", "eating")]
