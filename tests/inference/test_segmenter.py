"""The two passes: chunks and spilling change nothing, outputs are well-formed, interruptions leave nothing."""

import contextlib
import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from clips import picture, tiny_model, write_clip
from dshmp.common.errors import UserError
from dshmp.common.options import Options, Targets
from dshmp.common.progress import Progress
from dshmp.common.rle import decode
from dshmp.inference.segment import segment_to_folder
from dshmp.inference.segmenter import Segmenter
from dshmp.model.frame_decoder import disable_language
from dshmp.results.folder import folder_names, owners_in, slug
from dshmp.results.result import Result
from dshmp.video.container import open_container
from dshmp.video.overlay import Caption, OverlayPainter
from dshmp.video.source import VideoSource

SENTENCES = ("the red star moving left", "The one that turns  back")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return np.stack([picture(3 * i, 50, 70) for i in range(11)])


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(*tiny_model(), device="cpu")


@pytest.mark.parametrize(("masks", "fusion"), [("trajectories", False), ("embedding", True)])
def test_chunks_change_nothing(clip: np.ndarray, masks: str, fusion: bool) -> None:
    answers = [Segmenter(*tiny_model(chunk, masks, fusion), device="cpu")(clip, SENTENCES) for chunk in (1, 5, 100)]
    for one, other in itertools.product(zip(*answers, strict=True), repeat=2):
        for a, b in zip(one, other, strict=False):
            if a.expression == b.expression:
                assert a.score == pytest.approx(b.score, abs=1e-5)
                assert (a.masks == b.masks).mean() > 0.9999
    assert 0 < answers[0][0].masks.mean() < 1


@pytest.mark.parametrize("fusion", [False, True])
def test_perceiving_anew_equals_reading_back(clip: np.ndarray, fusion: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = Segmenter(*tiny_model(4, fusion=fusion), device="cpu")
    stored = segmenter(iter(clip), SENTENCES)
    for limit in (0, 60_000):  # nothing fits; the first chunk does
        monkeypatch.setattr("dshmp.inference.spill.SPILL_LIMIT", limit)
        again = segmenter(iter(clip), SENTENCES)
        assert all(a.rle == b.rle for a, b in zip(stored, again, strict=True))


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (500_000, 1), (2**40, 3)])
@pytest.mark.parametrize("fusion", [False, True])
def test_an_encoded_video_answers_as_a_call_does(
    clip: np.ndarray, fusion: bool, limit: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = Segmenter(*tiny_model(4, fusion=fusion), device="cpu")
    expected = segmenter(clip, SENTENCES, fps=8, all_objects=True)
    monkeypatch.setattr("dshmp.inference.spill.SPILL_LIMIT", limit)  # what does not fit is perceived anew
    seen: list[tuple[str, int, int | None]] = []
    with segmenter.encode(clip, fps=8, progress=lambda *step: seen.append(step)) as video:
        assert seen[-1] == ("frames", len(clip), len(clip))
        for _ in range(2):
            assert video(SENTENCES, all_objects=True) == expected
        assert video(SENTENCES[1], all_objects=True) == expected[1]
        assert not video(SENTENCES[0], threshold=1.0).found
        with pytest.raises(UserError, match="the expression is empty"):
            video(" ")
        with pytest.raises(UserError, match="threshold"):
            video(SENTENCES[0], threshold=2.0)
        assert video.spill is not None
        assert len(video.spill.ends) - 1 == kept  # of three chunks
    with pytest.raises(UserError, match="the encoded video is closed"):
        video(SENTENCES[0])


@pytest.mark.parametrize(("fusion", "heard"), [(False, False), (False, True), (True, True)])
def test_what_no_word_changes_is_computed_once(
    clip: np.ndarray, fusion: bool, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = Segmenter(*tiny_model(4, fusion=fusion), device="cpu")
    if not heard:
        disable_language(segmenter.model.perception)
    perception, calls = segmenter.model.perception, Counter[str]()
    for part in ("backbone", "frame_decoder"):
        getattr(perception, part).register_forward_hook(lambda *_, part=part: calls.update([part]))
    expected = segmenter(clip, SENTENCES)
    chunks, sentences = -(-len(clip) // 4), len(SENTENCES)
    assert calls["backbone"] == chunks * (sentences if fusion else 1)
    assert calls["frame_decoder"] == chunks * (sentences if heard else 1)
    with segmenter.encode(clip) as video:
        video(SENTENCES[0])
        calls.clear()
        assert [video(text) for text in SENTENCES] == expected
    assert calls["backbone"] == chunks * (sentences if fusion else 0)
    assert calls["frame_decoder"] == chunks * (sentences if heard else 0)


def test_expressions_do_not_touch_each_other(segmenter: Segmenter, clip: np.ndarray) -> None:
    together = segmenter(clip, SENTENCES)
    alone = segmenter(clip, SENTENCES[1])
    assert together[1] == alone


def test_result_is_well_formed(segmenter: Segmenter, clip: np.ndarray) -> None:
    seen: list[tuple[str, int, int | None]] = []
    result = segmenter(clip, SENTENCES[1], fps=8, progress=lambda *step: seen.append(step))
    assert result.expression == "The one that turns back"
    assert result.masks.shape == (11, 50, 70)
    assert result.found
    assert len(result.objects) == 4
    assert (np.stack([item.masks for item in result.objects]).any(axis=0) == result.masks).all()
    assert sum(result.evidence) == pytest.approx(1)
    assert all(sum(item.evidence) == pytest.approx(1) for item in result.objects)
    assert [item.score for item in result.objects] == sorted((o.score for o in result.objects), reverse=True)
    assert result.score == result.objects[0].score
    assert [word.text for word in result.words if word.group == "motion"] == ["turns", "back"]
    assert result.times[8] == 1
    assert ("motion", 0, None) in seen
    last = {stage: (done, total) for stage, done, total in seen}
    assert list(last.items()) == [("frames", (11, 11)), ("motion", (1, 1)), ("masks", (11, 11))]
    seen.clear()
    segmenter(iter(clip), "a cat", progress=lambda *step: seen.append(step))  # of unknown length
    assert all(done == total for done, total in {stage: rest for stage, *rest in seen}.values())


def test_nothing_matches(segmenter: Segmenter, clip: np.ndarray) -> None:
    result = segmenter(clip, "a cat", threshold=1.0)
    assert not result.found
    assert result.objects == ()
    assert 0 < result.score < 1
    assert not result.masks.any()
    assert result.masks.shape == (11, 50, 70)
    assert sum(result.evidence) == pytest.approx(1)


def test_single_target(segmenter: Segmenter, clip: np.ndarray) -> None:
    many, single = segmenter(clip, "a cat"), segmenter(clip, "a cat", targets="single")
    assert single.objects == many.objects[:1]
    assert single.rle == many.objects[0].rle


def test_faster_video_is_read_in_strides(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    strides = []
    decode_motion = segmenter.model.decode_motion
    monkeypatch.setattr(
        segmenter.model, "decode_motion", lambda *a, **k: (strides.append(k["stride"]), decode_motion(*a, **k))[1]
    )
    video = np.stack([picture(i) for i in range(7)])
    for fps in (None, 8, 25, 3, 1000):
        segmenter(video, "a cat", fps=fps)
    assert strides == [1, 1, 3, 1, 7]


def test_lower_precision(clip: np.ndarray) -> None:
    exact = Segmenter(*tiny_model(), device="cpu")(clip[:3], "a cat")
    for precision in ("bfloat16", "float16"):
        result = Segmenter(*tiny_model(), device="cpu", precision=precision)(clip[:3], "a cat")  # type: ignore[arg-type]
        assert result.score == pytest.approx(exact.score, abs=0.05)
        assert (result.masks == exact.masks).mean() > 0.9


def test_wrong_arguments(segmenter: Segmenter, clip: np.ndarray) -> None:
    for wrong in ({"threshold": 2.0}, {"threshold": float("nan")}, {"targets": "some"}, {"frames": "50:"}):
        with pytest.raises(UserError):
            segmenter(clip, "a cat", **wrong)  # type: ignore[call-overload]
    for expression in ("", "  ", [], "word " * 400):
        with pytest.raises(UserError):
            segmenter(clip, expression)
    with pytest.raises(UserError, match="device"):
        Segmenter.from_pretrained("default", device="tpu9")
    with pytest.raises(UserError, match="precision"):
        Segmenter.from_pretrained("default", precision="int3")  # type: ignore[arg-type]


# --- folders ---------------------------------------------------------------------------------------------------------


def answer(
    segmenter: Segmenter,
    video: Path,
    out: Path,
    *expressions: str,
    overwrite: bool = False,
    progress: Progress | None = None,
    frames: str | None = None,
    fps: float | None = None,
    overlay: bool = True,
    **given: Any,
) -> tuple[Path, list[Result]]:
    options = Options(model="tiny", overwrite=overwrite, **given)
    chosen: dict[str, Any] = {"progress": progress, "overlay": overlay}
    folder, results, _ = segment_to_folder(
        video, expressions or SENTENCES, out, options, lambda _: segmenter, frames, fps, **chosen
    )
    return folder, results


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_folder_of_a_rotated_odd_variable_rate_file(segmenter: Segmenter, tmp_path: Path) -> None:
    times = [0, 11, 42, 93, 164, 255, 400, 401, 900, 1500]
    video = write_clip(tmp_path / "clip.mp4", 10, 49, 63, rotation=90, times=times)
    folder, results = answer(segmenter, video, tmp_path / "out")
    assert folder == tmp_path / "out" / "clip"
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["01-the-red-star-moving-left", "02-the-one-that-turns-back", "result.json"]
    document = json.loads((folder / "result.json").read_text())
    assert (document["height"], document["width"]) == (63, 49)
    for name, result, written in zip(names[:2], results, document["results"], strict=True):
        masks = [np.asarray(Image.open(p)) for p in sorted((folder / name / "masks").iterdir())]
        assert (np.stack(masks) == result.masks * 255).all()
        assert (decode(written["rle"]) == result.masks).all()
        frames = decoded(folder / name / "overlay.mp4")
        assert [frame.time for frame in frames] == pytest.approx([t / 1000 for t in times], abs=1e-3)
        assert result.fps == pytest.approx(6)
        assert frames[0].width % 2 == frames[0].height % 2 == 0
        assert frames[0].height > frames[0].width  # upright
        assert frames[0].format.name == "yuv420p"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["clip"]


def test_large_frames_come_in_smaller_chunks(
    segmenter: Segmenter, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, for its caches; the answer is the same."""
    told: list[int] = []
    whole = segmenter(clip, "a cat")
    monkeypatch.setattr("dshmp.inference.encoded.CPU_PIXELS", 2 * 48 * 67)  # as large as two frames are in the network
    part = segmenter(
        clip, "a cat", progress=lambda phase, done, total: told.append(done) if phase == "frames" else None
    )
    assert told[:3] == [2, 4, 6]
    assert part.score == pytest.approx(whole.score, abs=1e-5)
    assert (part.masks != whole.masks).mean() < 1e-3


def test_no_overlay(segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks alone, of frames that are decoded once; with overlays it is another answer."""
    video, passes = write_clip(tmp_path / "clip.mp4", 6), []
    plain, _ = answer(segmenter, video, tmp_path / "plain", "a cat")
    whole = VideoSource.__iter__
    monkeypatch.setattr(VideoSource, "__iter__", lambda self: passes.append(self) or whole(self))
    folder, _ = answer(segmenter, video, tmp_path, "a cat", overlay=False)
    assert len(passes) == 1
    assert [path.name for path in (folder / "01-a-cat").iterdir()] == ["masks"]
    for mask in (folder / "01-a-cat" / "masks").iterdir():
        assert mask.read_bytes() == (plain / "01-a-cat" / "masks" / mask.name).read_bytes()
    with pytest.raises(UserError, match="was answered with overlay False, not None"):
        answer(segmenter, video, tmp_path, "a cat")


def test_what_fails_while_drawing_is_told(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overlays are drawn in a thread; nothing of the answer is left."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "clip" / "a"))

    monkeypatch.setattr("dshmp.video.overlay.save_png", fail)
    with pytest.raises(UserError, match="cannot be written"):
        answer(segmenter, write_clip(tmp_path / "clip.mp4", 30), tmp_path, "a cat")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_sound_stays_with_the_pictures(segmenter: Segmenter, tmp_path: Path, name: str) -> None:
    """A click at 0.6 s, whatever the file's clock begins with, is heard 0.4 s after frame 5."""
    with av.open(str(tmp_path / name), "w") as output:
        stream, sound = output.add_stream("libx264", rate=25), output.add_stream("aac", rate=48000)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for index in range(25):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        output.mux(stream.encode(None))
        wave = np.zeros((2, 48 * 1024), np.float32)
        wave[:, 28800:28900] = 0.9
        for start in range(0, wave.shape[1], 1024):
            part = np.ascontiguousarray(wave[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    folder, _ = answer(segmenter, tmp_path / name, tmp_path, "a cat", frames="5:")
    with av.open(str(folder / "01-a-cat" / "overlay.mp4")) as container:
        heard = [(frame.time, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
    time, loud = max(heard, key=lambda each: np.abs(each[1]).max())
    assert time + np.abs(loud).argmax() / 48000 == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(("codec", "kept"), [("aac", True), ("mp3", True), ("pcm_s16le", False)])
def test_sound_goes_along_where_it_can(
    segmenter: Segmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, kept: bool
) -> None:
    video = write_clip(tmp_path / "clip.mkv", 25, audio=codec)
    folder, _ = answer(segmenter, video, tmp_path, "a cat", frames="5:15")
    with av.open(str(folder / "01-a-cat" / "overlay.mp4")) as container:
        assert len(container.streams.audio) == kept
        packets = [p for p in container.demux() if p.size]
        ends = {p.stream.type: float(p.pts * p.time_base) for p in sorted(packets, key=lambda p: p.pts * p.time_base)}
        starts = [float(p.pts * p.time_base) for p in packets if p.stream.type == "audio"]
    assert ends["video"] == pytest.approx(9 / 25, abs=0.01)
    if kept:
        assert 0 <= starts[0] < 0.03
        assert ends["audio"] == pytest.approx(10 / 25, abs=0.04)
    assert ("sound" in caplog.text) == (not kept)
    masks = sorted(p.name for p in (folder / "01-a-cat" / "masks").iterdir())
    assert masks == [f"{i:05d}.png" for i in range(5, 15)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_leaves_nothing(
    segmenter: Segmenter, tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = write_clip(tmp_path / "clip.mp4")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "masks" and done == 5:
            raise error

    with pytest.raises(error):
        answer(segmenter, video, tmp_path / "new" / "out", progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "tmp"]
    assert not list(temporary.iterdir())
    done, _ = answer(segmenter, video, tmp_path / "out")
    before = (done / "result.json").read_bytes()
    with pytest.raises(error):
        answer(segmenter, video, tmp_path / "out", "a cat", progress=stop)
    assert (done / "result.json").read_bytes() == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["clip"]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def said(folder: Path) -> list[tuple[str, str, float]]:
    document = json.loads((folder / "result.json").read_text())
    return [(each["folder"], each["sentence"], each["threshold"]) for each in document["results"]]


def test_answers_are_added(segmenter: Segmenter, tmp_path: Path) -> None:
    """Whatever people put beside them stays, too."""
    video = write_clip(tmp_path / "clip.mp4", 4)
    folder, _ = answer(segmenter, video, tmp_path, "a dog")
    (folder / "notes.txt").write_text("mine")
    (folder / "01-a-dog" / "masks" / "notes.txt").write_text("mine")
    (folder / "07-mine").mkdir()
    before = files(folder)
    answer(segmenter, video, tmp_path, "a cat", "a dog", "a cat", threshold=None)
    after = files(folder)
    assert {name: after[name] for name in before if name != "result.json"} == {
        name: data for name, data in before.items() if name != "result.json"
    }
    assert [(name, text) for name, text, _ in said(folder)] == [("01-a-dog", "a dog"), ("08-a-cat", "a cat")]
    assert {p.name for p in folder.iterdir()} == {"01-a-dog", "07-mine", "08-a-cat", "notes.txt", "result.json"}


def test_another_answer_needs_overwrite(segmenter: Segmenter, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "clip.mp4", 6)
    folder, _ = answer(segmenter, video, tmp_path, "a dog", "a cat")
    (folder / "01-a-dog" / "notes.txt").write_text("mine")
    before = files(folder)
    for other in ({"threshold": 0.1}, {"frames": "0:3"}, {"fps": None, "single": True}):
        with pytest.raises(UserError, match=r"01-a-dog: 'a dog' was answered with .*--overwrite"):
            answer(segmenter, video, tmp_path, "a dog", **other)
    assert files(folder) == before
    _, (result,) = answer(segmenter, video, tmp_path, "a dog", threshold=0.1, frames="2:4", overwrite=True)
    assert (result.threshold, result.frame_count) == (0.1, 2)
    after = files(folder)
    assert sorted(n for n in after if n.startswith("01")) == [
        *(f"01-a-dog/masks/0000{t}.png" for t in (2, 3)),
        "01-a-dog/notes.txt",
        "01-a-dog/overlay.mp4",
    ]
    assert all(after[name] == before[name] for name in before if name.startswith("02"))
    assert [text for _, text, _ in said(folder)] == ["a dog", "a cat"]
    os.utime(video, (1, 1))
    with pytest.raises(UserError, match=r"'a cat' was answered before the video changed"):
        answer(segmenter, video, tmp_path, "a cat")


def test_a_file_of_the_users_is_in_the_way(segmenter: Segmenter, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "clip.mp4", 6)
    folder, _ = answer(segmenter, video, tmp_path, "a dog", frames="0:2")
    (folder / "01-a-dog" / "masks" / "00004.png").write_text("mine")
    before = files(folder)
    with pytest.raises(UserError, match=r"masks/00004.png: is not of the answer that is replaced"):
        answer(segmenter, video, tmp_path, "a dog", overwrite=True)
    assert files(folder) == before


@pytest.mark.slow
def test_an_addition_that_was_killed_goes_on(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of moving the files to their places: what is there then is the old or the new, and whole."""
    video = write_clip(tmp_path / "clip.mp4", 6)
    wanted: dict[str, bytes] = {}
    move = os.replace
    for last in range(1, 30):
        out = tmp_path / str(last)
        folder, _ = answer(segmenter, video, out, "a dog", frames="0:4")
        (folder / "01-a-dog" / "notes.txt").write_text("mine")
        before, moves = files(folder), []

        def killed(one: Path, other: Path, last: int = last, moves: list[Path] = moves) -> None:
            moves.append(other)
            if len(moves) == last:
                raise KeyboardInterrupt
            move(one, other)

        change = {"frames": "2:6", "overwrite": True}
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            try:
                answer(segmenter, video, out, "a dog", **change)
                wanted = files(folder)
                break
            except KeyboardInterrupt:
                pass
        ready = list(folder.glob(".dshmp-*.ready"))
        assert ready or files(folder) == before
        answer(segmenter, video, out, "a cat", frames="0:1")  # which settles it first
        assert (said(folder)[0][1], len(said(folder))) == ("a dog", 2)
        document = json.loads((folder / "result.json").read_text())["results"][0]
        assert document["settings"]["frames"] == ("2:6" if ready else "0:4")
        masks = {p.name for p in (folder / "01-a-dog" / "masks").iterdir()}
        assert masks == {f"{t:05d}.png" for t in (range(2, 6) if ready else range(4))}
        assert (folder / "01-a-dog" / "notes.txt").read_text() == "mine"
        assert not list(folder.glob(".dshmp-*"))
    assert last > 6
    assert len(wanted) == 4 + 3


def test_a_folder_of_somebody_elses(segmenter: Segmenter, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "clip.mp4")
    folder, _ = answer(segmenter, video, tmp_path, "a dog")
    (tmp_path / "other").mkdir()
    other = write_clip(tmp_path / "other" / "clip.mp4")
    with pytest.raises(UserError, match="holds the result of"):
        answer(segmenter, other, tmp_path)
    mine = tmp_path / "mine" / "clip"
    mine.mkdir(parents=True)
    (mine / "result.json").write_text("{}")
    with pytest.raises(UserError, match="not a result"):
        answer(segmenter, video, tmp_path / "mine")
    document = json.loads((folder / "result.json").read_text())
    document["results"][0]["folder"] = "../mine"  # as no file of ours says
    (folder / "result.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="not a result"):
        answer(segmenter, video, tmp_path, overwrite=True)


def test_videos_of_one_name_have_folders_of_their_own(segmenter: Segmenter, tmp_path: Path) -> None:
    videos = []
    for place in ("a", "b", "c"):
        (tmp_path / place).mkdir()
        videos.append(write_clip(tmp_path / place / ("Clip.mp4" if place == "c" else "clip.mp4"), 3))
    out = tmp_path / "out"
    answer(segmenter, videos[1], out, "a dog")
    names = folder_names(videos, owners_in(out))
    assert names[videos[1]] == "clip"  # as before, whatever has come to the list
    assert len({name.lower() for name in names.values()}) == 3
    assert folder_names(videos[:1], owners_in(out))[videos[0]] == names[videos[0]]
    strange = [tmp_path / name for name in ("...mp4", "CON.mp4", "a\x1b.mp4")]
    assert list(folder_names(strange, owners_in(out)).values()) == ["video", "_CON", "a_"]


def test_slug() -> None:
    assert slug("The dog, turning LEFT!") == "the-dog-turning-left"
    assert slug("../..//etc") == "etc"
    assert slug("🐕") == "expression"
    assert len(slug("word " * 50)) <= 40


@pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 1), (33, 640), (360, 203), (1080, 1920)])
def test_overlay_never_covers_the_frame(height: int, width: int) -> None:
    frame = np.full((height, width, 3), 90, np.uint8)
    caption = Caption("the incomprehensibly long-winded sentence " * 8, (), 0.4, 1, [0.5, 0.5], [0, 1])
    painter = OverlayPainter(height, width, caption)
    pictures = [painter(frame, np.zeros((1, height, width), bool), i) for i in (0, 1)]
    assert pictures[0].shape == (*painter.size, 3)
    assert painter.size[0] % 2 == painter.size[1] % 2 == 0
    scale = painter.scale
    assert (pictures[0][: height * scale, painter.left : painter.left + width * scale] == 90).all()
    assert (pictures[0] != pictures[1]).any()  # the playhead moves


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_gpu(clip: np.ndarray, precision: str) -> None:
    result = Segmenter(*tiny_model(), device="cuda", precision=precision)(clip, SENTENCES[0])  # type: ignore[arg-type]
    assert result.masks.shape == (11, 50, 70)


# --- arguments -------------------------------------------------------------------------------------------------------

WRONG: list[Any] = [None, True, 3, -1, 10**400, 2.5, float("nan"), float("inf"), -1e300, 1e-9, 1e300, b"x", "", "1-5"]
WRONG += ["\ud800", "x" * 5000, "9" * 20 + ":", "9" * 5000 + ":", [], [[1, [2]]], {}, {"a": 1}, (1,), (1, 2, 3), (5, 2)]
WRONG += [("a", "b"), (0, 10**30), (-1, 2), (None, 2), object(), np.float32("nan"), np.int64(-5), np.zeros(3), 1j]
WRONG += [torch.zeros(2), Path("none"), np.bool_(True), np.str_("some"), ["\udfff"], [None], [3], [b"a"], [" "], "\0"]
ARGUMENTS = ("expression", "frames", "fps", "threshold", "targets", "progress", "all_objects", "video")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_arguments_are_one_line(segmenter: Segmenter, clip: np.ndarray, name: str) -> None:
    for wrong in WRONG:
        given = {"video": clip[:1], "expression": "a cat", name: wrong}
        told = ""
        try:
            segmenter(given.pop("video"), given.pop("expression"), **given)
        except (TypeError, UserError) as error:
            told = str(error)
        assert "\n" not in told, (wrong, told)
        assert len(told) < 300 or name == "video", (wrong, told)  # a path is named whole
        assert not told or name in ("video", "expression") or name in told, (wrong, told)


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (TypeError, {"threshold": "0.5"}),
        (TypeError, {"threshold": True}),
        (TypeError, {"fps": "8"}),
        (TypeError, {"targets": 3}),
        (TypeError, {"frames": 3}),
        (TypeError, {"expression": 3}),
        (TypeError, {"expression": b"a cat"}),
        (TypeError, {"expression": ["a cat", None]}),
        (TypeError, {"progress": 3}),
        (TypeError, {"video": 3}),
        (UserError, {"threshold": np.float32(1.5)}),
        (UserError, {"fps": 1e300}),
        (UserError, {"fps": 1e-9}),
        (UserError, {"frames": "9" * 5000 + ":"}),
        (UserError, {"frames": (0, 10**30)}),
        (UserError, {"expression": "a \ud800 cat"}),
        (UserError, {"expression": "cat " * 1_000_000}),
    ],
)
def test_which_error(segmenter: Segmenter, clip: np.ndarray, error: type[Exception], wrong: dict[str, Any]) -> None:
    given = {"video": clip[:1], "expression": "a cat"} | wrong
    with pytest.raises(error):
        segmenter(given.pop("video"), given.pop("expression"), **given)
    segmenter(clip[:1], "a cat", threshold=np.float32(0.5), fps=np.int64(8), frames=(0, 1))


def test_a_sentence_that_is_cut_is_cut_before_it_is_read() -> None:
    words = tiny.tokenizer({"release.overlong": "cut", "language.max_tokens": 20})
    assert words(["cat " * 1_000_000]).input_ids.shape == (1, 20)


def test_videos_of_every_kind_are_one(segmenter: Segmenter, clip: np.ndarray, tmp_path: Path) -> None:
    frames, tensor = clip[:3], torch.from_numpy(clip[:3])
    pictures = [Image.fromarray(image) for image in frames]
    paths = [tmp_path / f"{name}.png" for name in "bca"]
    for path, image in zip(paths, pictures, strict=True):
        image.save(path)
    expected = segmenter(frames, "a cat")
    videos: list[Any] = [tensor, tensor.permute(0, 3, 1, 2), list(tensor), pictures, iter(pictures), paths, iter(paths)]
    for video in [*videos, [str(path) for path in paths]]:
        assert segmenter(video, "a cat") == expected
    assert segmenter(pictures[0], "a cat") == segmenter(frames[:1], "a cat")
    with pytest.raises(UserError, match="uint8"):
        segmenter(tensor.float(), "a cat")  # type: ignore[call-overload]
    with pytest.raises(UserError, match=r"none\.png"):
        segmenter([paths[0], tmp_path / "none.png"], "a cat")


@pytest.mark.parametrize("place", ["_display_matrix", "to_rgb", "decode"])
def test_whatever_a_decoder_raises_is_the_videos_fault(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("31 is not a valid Type")

    @contextlib.contextmanager
    def opened(path: Path) -> Iterator[Any]:
        with open_container(path) as real:
            packets = [SimpleNamespace(decode=fail)]
            yield SimpleNamespace(streams=real.streams, duration=real.duration, demux=lambda _: packets)

    if place == "decode":  # PyAV's own packets cannot be changed
        monkeypatch.setattr("dshmp.video.container.open_container", opened)
    else:
        monkeypatch.setattr(f"dshmp.video.container.{place}", fail)
    with pytest.raises(UserError, match=r"clip\.mp4: cannot be decoded \(RuntimeError: 31"):
        segmenter(write_clip(tmp_path / "clip.mp4", 2), "a cat")


@pytest.mark.parametrize("targets", ["many", "single"])
def test_candidates_that_are_not_meant(segmenter: Segmenter, clip: np.ndarray, targets: Targets) -> None:
    threshold = segmenter(clip, "a cat").objects[2].score
    for value in (threshold, 1.0):
        plain = segmenter(clip, "a cat", threshold=value, targets=targets)
        result = segmenter(clip, "a cat", threshold=value, targets=targets, all_objects=True)
        assert replace(result, others=()) == plain
        assert len(result.objects) + len(result.others) == 4
        assert all(item.score <= result.score and item.masks.shape == (11, 50, 70) for item in result.others)
