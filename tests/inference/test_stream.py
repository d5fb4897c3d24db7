"""Streams: windows are answered as clips are, objects keep their ids, few frames are held, sources end well."""

import contextlib
import functools
import gc
import http.server
import itertools
import logging
import os
import socket
import socketserver
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import tiny
from clips import picture, tiny_model, transport_stream, write_clip, write_frames
from dshmp.common.errors import UserError
from dshmp.common.rle import encode
from dshmp.inference.segmenter import Segmenter
from dshmp.inference.stream import FrameResult, Identities, window_frames, windows
from dshmp.model.candidates import Candidates
from dshmp.model.tokenizer import TextTokenizer, train_tokenizer
from dshmp.results.result import Result
from dshmp.video.live import open_live
from dshmp.video.source import Frame

SENTENCES = ("the red star moving left", "The one that turns  back")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(*tiny_model(), device="cpu")


@pytest.fixture(scope="module")
def tracker() -> Segmenter:
    """A model that can choose among tracks."""
    model = tiny.geometry_model()
    return Segmenter(model, TextTokenizer(model.config, train_tokenizer(SENTENCES, 300)), device="cpu")


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("dshmp"), "propagate", True)
    return caplog


def same(frames: list[FrameResult], result: Result) -> bool:
    """Whether a stream's frames say what a call says."""
    told = [(f.found, f.score, f.expression, f.rle, [(o.score, o.rle) for o in f.objects]) for f in frames]
    return told == [
        (result.found, result.score, result.expression, rle, [(o.score, o.rle[t]) for o in result.objects])
        for t, rle in enumerate(result.rle)
    ] and [f.time for f in frames] == list(result.times)


def test_a_short_file_is_answered_as_by_a_call(segmenter: Segmenter, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 14, times=[40 * t + t * t for t in range(14)])
    frames = list(segmenter.stream(clip, SENTENCES[0]))
    assert same(frames, segmenter(clip, SENTENCES[0]))
    assert [f.number for f in frames] == list(range(14))
    assert [o.id for o in frames[3].objects] == [1, 2, 3, 4]
    assert frames[3].image.shape == (48, 64, 3)
    assert frames[3].mask.any()
    assert "image" not in repr(frames[3])
    several = list(segmenter.stream(str(clip), SENTENCES))
    for number, result in enumerate(segmenter(clip, SENTENCES)):
        assert same([each[number] for each in several], result)
    folder = write_frames(tmp_path / "frames", 5, 48, 64)
    images = np.stack([picture(3 * t) for t in range(5)])
    for source in (folder, images, list(images), iter(images), sorted(folder.iterdir())):
        assert same(list(segmenter.stream(source, SENTENCES[0], fps=8)), segmenter(images, SENTENCES[0], fps=8))


def test_frames_come_when_their_window_is_complete_and_are_never_revised(segmenter: Segmenter) -> None:
    taken: list[int] = []

    def source() -> Iterator[np.ndarray]:
        for t in itertools.count():
            taken.append(t)
            yield picture(t)

    found = segmenter.stream(source(), SENTENCES[0], fps=8, window=6, overlap=2)
    given = []
    for frame in itertools.islice(found, 20):
        given.append((frame.number, frame.time))
        window = 0 if frame.number < 6 else (frame.number - 6) // 4 + 1
        assert taken[-1] + 1 == 6 + 4 * window
    assert given == [(t, t / 8) for t in range(20)]
    ended = list(segmenter.stream([picture(t) for t in range(17)], SENTENCES[0], window=6, overlap=2, memory=0))
    assert [frame.number for frame in ended] == list(range(17))
    last = segmenter(np.stack([picture(t) for t in range(11, 17)]), SENTENCES[0])
    assert [frame.rle for frame in ended[14:]] == list(last.rle[3:])


@pytest.mark.parametrize("model", ["segmenter", "tracker"])
@pytest.mark.parametrize("memory", [40, 7])
def test_a_window_knows_what_is_remembered(
    model: str, memory: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all is remembered, the last window is answered as the whole video is; else as its end is."""
    own: Segmenter = request.getfixturevalue(model)
    read: list[Candidates] = []
    decode = own.model.decode_motion

    def seen(found: Candidates, *rest: Any, **more: Any) -> Any:
        read.append(found)
        return decode(found, *rest, **more)

    monkeypatch.setattr(own.model, "decode_motion", seen)
    clip = [picture(t) for t in range(17)]
    frames = list(own.stream(clip, SENTENCES, fps=8, window=6, overlap=2, memory=memory))
    last, read[:] = read[-2:], []
    whole = own(np.stack(clip), SENTENCES, fps=8)
    first = max(0, 17 - 6 - memory)
    for one, other in zip(last, read, strict=True):
        for name in ("tokens", "present", "geometry", "camera", "sure"):
            if (value := getattr(other, name)) is not None:
                start = first + (name in ("camera", "sure") and first > 0)  # nobody knows how it got to the first frame
                apart = (getattr(one, name)[:, start - first :].float() - value[:, start:].float()).abs()
                assert (apart > 1e-3).float().mean() < 0.01, name  # a cell at a mask's border may fall to either side
    if not first:
        for number, result in enumerate(whole):
            ended = [each[number] for each in frames[14:]]
            assert ended[0].score == pytest.approx(result.score, abs=1e-2)
            assert [each.found for each in ended] == [result.found] * 3


def test_windows() -> None:
    def numbers(count: int) -> list[tuple[list[float], int]]:
        frames = (Frame(np.zeros((1, 1, 3), np.uint8), t) for t in range(count))
        return [([frame.time for frame in each], fresh) for each, fresh in windows(frames, 4, 1)]

    assert numbers(0) == []
    assert numbers(3) == [([0, 1, 2], 3)]
    assert numbers(4) == [([0, 1, 2, 3], 4)]
    assert numbers(8) == [([0, 1, 2, 3], 4), ([3, 4, 5, 6], 3), ([4, 5, 6, 7], 1)]
    assert window_frames(None, None, None, 25, 8) == (48, 24, 96)
    assert window_frames(None, None, None, None, 8) == (16, 8, 32)
    assert window_frames("2s", "0.5 s", "3s", 10, 8) == (20, 5, 30)
    assert window_frames("20", 4, 0, None, None) == (20, 4, 0)


def test_ids_follow_objects() -> None:
    def at(*lefts: int) -> list[dict[str, Any]]:
        masks = np.zeros((len(lefts), 20, 60), bool)
        for mask, left in zip(masks, lefts, strict=True):
            mask[5:15, left : left + 10] = left >= 0
        return [encode(mask) for mask in masks]

    known = Identities()
    assert known(0, [at(0, 2, 4, 6), at(40, 38, 36, 34)]) == [1, 2]
    # in another order, with one that is new where the second was before
    assert known(2, [at(36, 34, 32, 30), at(4, 6, 8, 10), at(-1, -1, 34, 36)]) == [2, 1, 3]
    # the first is not meant any more; what comes to its place is not it
    assert known(4, [at(20, 20, 20, 20), at(32, 30, 28, 26)]) == [4, 2]
    assert known(6, []) == []
    assert known(8, [at(28, 26, 24, 22)]) == [5]


def test_ids_last_through_a_long_video(segmenter: Segmenter) -> None:
    clip = [picture(t) for t in range(40)]
    seen = [{o.id for o in frame.objects} for frame in segmenter.stream(clip, SENTENCES[0], window=8, overlap=4)]
    assert all(len(ids) == 4 for ids in seen)
    assert seen[0] & seen[-1]


def test_few_frames_are_held(segmenter: Segmenter) -> None:
    class Picture(np.ndarray):  # an array that can be told to be alive
        pass

    def endless() -> Iterator[np.ndarray]:
        for t in itertools.count():
            image = picture(t, 32, 32).view(Picture)
            made.append(weakref.ref(image))
            yield image

    made: list[weakref.ref[Any]] = []
    most = 0
    found = segmenter.stream(endless(), SENTENCES[0], window=24, overlap=2)
    for number, _frame in enumerate(found):
        if number % 50 == 0:
            gc.collect()
            most = max(most, sum(ref() is not None for ref in made))
        if number == 600:
            break
    assert len(made) > 600
    assert most <= 24 + 2


def test_candidates_that_move(tracker: Segmenter) -> None:
    rng = np.random.default_rng(0)
    ground = cv2_noise(rng, 96, 160)
    clip = np.stack([ground] * 14)
    for t, frame in enumerate(clip):
        frame[30:60, 10 + 6 * t : 40 + 6 * t] = (220, 30, 30)
    asked: dict[str, Any] = {"candidates": "moving", "threshold": 0.0, "still_camera": True}
    batch = tracker(clip, SENTENCES[0], fps=8, **asked)
    assert batch.objects
    assert same(list(tracker.stream(iter(clip), SENTENCES[0], fps=8, **asked)), batch)
    frames = list(tracker.stream(iter(clip), SENTENCES[0], fps=8, window=8, overlap=4, **asked))
    assert len(frames) == 14
    assert frames[2].objects[0].id == frames[-1].objects[0].id == 1


def cv2_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(60, 120, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("gone.mp4", {}, r"gone\.mp4: cannot be read"),
        ("ftp://host/clip.mp4", {}, "ftp://host/clip.mp4: addresses begin with http://"),
        ("http://127.0.0.1:9/clip.mp4", {}, "127.0.0.1:9/clip.mp4: cannot be opened"),
        ("rtsp://me:secret@127.0.0.1:9/cam", {}, r"^rtsp://127.0.0.1:9/cam: cannot be opened"),
        (98, {}, "camera 98: cannot be opened"),
        (-1, {}, "a camera's number must be 0 to 99, not -1"),
        (iter(()), {"window": 1}, "a window of 1 frames; choose 2 to 4096"),
        (iter(()), {"window": 8, "overlap": 8}, "an overlap of 8 frames in windows of 8; choose 1 to 7"),
        (iter(()), {"window": "2s"}, "window 2s: .*give fps"),
        (iter(()), {"window": "long"}, "window must be a number of frames, or of seconds such as 2s, not 'long'"),
        (iter(()), {"threshold": 2}, "threshold"),
        (iter(()), {"fps": -1}, "fps must be"),
        (iter(()), {"candidates": "unknown"}, "candidates must be"),
    ],
)
def test_what_is_wrong_is_told_at_once(segmenter: Segmenter, source: Any, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        segmenter.stream(source, SENTENCES[0], **options)


def test_wrong_types(segmenter: Segmenter) -> None:
    for source, options in [(3.5, {}), (True, {}), (None, {}), (b"x", {}), (iter(()), {"window": 2.5})]:
        with pytest.raises(TypeError):
            segmenter.stream(source, SENTENCES[0], **options)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="tracks"):
        segmenter.stream(iter(()), SENTENCES[0], tracks="tracks.json")  # type: ignore[call-overload]
    with pytest.raises(UserError, match="no expression"):
        segmenter.stream(iter(()), [])
    with pytest.raises(UserError, match="frame 1 is of another size"):
        list(segmenter.stream(iter([picture(0), picture(0, 50, 50)]), SENTENCES[0]))
    with pytest.raises(UserError, match=r"frame 1 is at 1\.0 s, that before it at 1\.0 s"):
        list(segmenter.stream([Frame(picture(t), 1.0) for t in range(2)], SENTENCES[0]))
    assert list(segmenter.stream(iter(()), SENTENCES[0])) == []


def test_unknown_words_are_told_once(segmenter: Segmenter, warnings: pytest.LogCaptureFixture) -> None:
    frames = list(segmenter.stream([picture(t) for t in range(20)], "the zyxwvutsrq moving left", window=4))
    assert frames[-1].unknown == ("zyxwvutsrq",)
    assert len([each for each in warnings.messages if "zyxwvutsrq" in each]) == 1


def test_a_named_pipe(segmenter: Segmenter, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    data, (pipe, file) = transport_stream(20), (tmp_path / "pipe", tmp_path / "clip.ts")
    file.write_bytes(data)
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    frames = list(segmenter.stream(pipe, SENTENCES[0]))
    writer.join()
    assert same(frames, segmenter(file, SENTENCES[0]))
    assert warnings.messages == []


def test_a_pipe_with_something_else(segmenter: Segmenter, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    writer = threading.Thread(target=pipe.write_bytes, args=(b"no video" * 1000,))
    writer.start()
    with pytest.raises(UserError, match="pipe: no video that can be read from a pipe"):
        segmenter.stream(pipe, SENTENCES[0])
    writer.join()


@contextlib.contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def log_message(self, *_: Any) -> None:
        self.asked.append(self.path)


def test_an_address(segmenter: Segmenter, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    (tmp_path / "clip.ts").write_bytes(transport_stream(20))
    files: Any = functools.partial(Quiet, directory=str(tmp_path))
    with served(files) as address:
        frames = list(segmenter.stream(f"{address}/clip.ts", SENTENCES[0]))
    assert same(frames, segmenter(tmp_path / "clip.ts", SENTENCES[0]))
    assert warnings.messages == []


def test_no_other_address_is_opened(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "clip.ts").write_bytes(transport_stream(5))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n")

    class Elsewhere(Quiet):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "/clip.ts")
            self.end_headers()

    Quiet.asked.clear()
    files: Any = functools.partial(Quiet, directory=str(tmp_path))
    with served(files) as address, pytest.raises(UserError, match="cannot be opened"):
        segmenter.stream(f"{address}/list.m3u8", SENTENCES[0])
    with served(Elsewhere) as address, pytest.raises(UserError, match="cannot be opened"):
        segmenter.stream(f"{address}/moved", SENTENCES[0])
    assert set(Quiet.asked) == {"/list.m3u8", "/moved"}


def test_what_breaks_off_ends_with_a_warning(segmenter: Segmenter, warnings: pytest.LogCaptureFixture) -> None:
    data = transport_stream(20)

    class Broken(Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) * 2 // 3])

    with served(Broken) as address:
        frames = list(segmenter.stream(f"{address}/clip.ts", SENTENCES[0]))
    assert 5 < len(frames) < 20
    assert len(warnings.messages) == 1
    assert "clip.ts: broke off after" in warnings.messages[0]


def test_a_source_that_goes_on_is_taken_at_the_models_pace(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UDP does not wait: of 25 frames a second about 8 are taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr("dshmp.video.live.PATIENCE", (20.0, 1.0))
    data, stop = transport_stream(100), threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            while not stop.is_set():
                for start in range(0, len(data), 188):
                    out.sendto(data[start : start + 188], ("127.0.0.1", port))
                    time.sleep(0.0002)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        live = open_live(f"udp://127.0.0.1:{port}", pace=8.0)
        frames = list(itertools.islice(live.frames, 6))
    finally:
        stop.set()
        sender.join()
    assert live.fps == 8.0
    assert np.diff([frame.time for frame in frames]).min() > 0.1


class Rtsp(socketserver.StreamRequestHandler):
    """As much of a camera as is needed: MPEG-TS in RTP, over the connection itself."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            method, address, _ = line.decode().split(" ", 2)
            headers = {}
            while (header := self.rfile.readline().strip()) != b"":
                name, _, value = header.decode().partition(": ")
                headers[name.lower()] = value
            body, more = "", "Public: OPTIONS, DESCRIBE, SETUP, PLAY\r\n"
            if method == "DESCRIBE":
                lines = (
                    "v=0",
                    "o=- 0 0 IN IP4 127.0.0.1",
                    "s=camera",
                    "t=0 0",
                    "m=video 0 RTP/AVP 33",
                    "a=control:track",
                )
                body = "".join(f"{line}\r\n" for line in lines)
                more = f"Content-Type: application/sdp\r\nContent-Base: {address}/\r\n"
            elif method == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
            answer = f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}"
            self.wfile.write(answer.encode())
            if method == "PLAY":
                with contextlib.suppress(OSError):
                    self.play(transport_stream(60))
                return

    def play(self, data: bytes) -> None:
        for number, start in enumerate(range(0, len(data), 188 * 7)):
            part = data[start : start + 188 * 7]
            packet = struct.pack(">BBHII", 0x80, 33, number, number * 1000, 1) + part
            self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)


def test_rtsp(segmenter: Segmenter) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Rtsp) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address = f"rtsp://127.0.0.1:{server.server_address[1]}/camera"
        frames = list(segmenter.stream(address, SENTENCES[0], window=8))
        thread.join()
    assert 15 <= len(frames) <= 20  # of 2.4 s about 8 a second
    assert (np.abs(frames[0].image.astype(int) - picture(0)) < 40).mean() > 0.9


def test_a_camera(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture) -> None:
    class Camera:
        def __init__(self, number: int, system: int) -> None:
            self.left = 40

        def read(self) -> tuple[bool, Any]:
            time.sleep(0.02)
            self.left -= 1
            return self.left > 0, picture(self.left)[..., ::-1]

        def get(self, _: int) -> float:
            return 50.0

        def release(self) -> None:
            pass

    monkeypatch.setattr("cv2.VideoCapture", Camera)
    frames = list(segmenter.stream(0, SENTENCES[0], fps=25))
    assert 10 <= len(frames) <= 25
    assert (frames[0].image == picture(39)).all()
    assert warnings.messages[-1] == "camera 0: broke off after 39 frames"


def test_what_the_model_cannot_keep_up_with_is_left_out(
    monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    class Camera:
        count = 0

        def __init__(self, number: int, system: int) -> None: ...

        def read(self) -> tuple[bool, Any]:
            time.sleep(0.001)
            Camera.count += 1
            return Camera.count < 400, picture(Camera.count)

        def get(self, _: int) -> float:
            return 1000.0

        def release(self) -> None:
            pass

    monkeypatch.setattr("cv2.VideoCapture", Camera)
    frames = open_live(0, fps=1000.0).frames
    next(frames)
    time.sleep(0.2)  # the queue of 16 is full long before
    assert Camera.count > 40
    rest = len(list(frames))
    assert rest < 300
    assert "camera 0: the model is slower; now 500 frames a second are taken" in warnings.messages
