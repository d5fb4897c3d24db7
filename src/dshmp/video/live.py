"""Sources of frames that are read once and may never end: cameras, addresses, pipes, iterators.

Cameras, addresses and pipes are read in a thread, so that Ctrl-C is heeded while they are waited for. Some of them wait
for the reader (pipes, HTTP). The others go on (cameras, RTSP): of those so many frames a second are taken as a model
was trained on, fewer where it cannot keep up.
"""

import contextlib
import logging
import math
import os
import re
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from queue import Full, Queue
from typing import Annotated, Any

import av
import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from dshmp.common.arguments import Rate, checked
from dshmp.common.errors import UserError
from dshmp.common.files import reason
from dshmp.video.container import CONTAINERS, upright, video_stream
from dshmp.video.hdr import to_rgb
from dshmp.video.io import Video, as_array, open_video
from dshmp.video.source import UNKNOWN_RATE, Frame, Pixels

log = logging.getLogger("dshmp")

LiveVideo = Video | int | Iterable[Frame]
Moment = tuple[float, Callable[[], Pixels]]  # when a frame is shown, in seconds, and what makes its picture

PROTOCOLS = {
    **{"http": "http,tcp", "https": "https,tls,tcp", "udp": "udp", "tcp": "tcp"},
    **{"rtsp": "rtsp,tcp", "rtsps": "rtsps,rtsp,tls,tcp", "rtmp": "rtmp,tcp"},
}
"""Schemes of addresses, and FFmpeg's protocols that each needs."""
WAITING = ("http", "https", "tcp")  # what these send is taken wholly, however long that takes
DEMUXERS = f"{CONTAINERS},mpjpeg,rtsp"
PATIENCE = 20.0, 10.0  # seconds to wait for an address to open, and for its next packet
AHEAD = 16, 4  # frames that wait for the model, of sources that go on, and of those that wait
STDIN = "-"


@dataclass(frozen=True)
class LiveSource:
    """Frames of one size, in order, to be read once."""

    name: str  # for messages
    fps: float | None  # as far as known
    frames: Iterator[Frame]


def open_live(source: LiveVideo, fps: float | None = None, pace: float | None = None) -> LiveSource:
    """Open a source and wait for its first frame's size, but read no further.

    Args:
        source: the number of a camera; an address (rtsp://, rtsps://, http://, https://, rtmp://, udp://, tcp://); "-"
            (stdin) or a named pipe; what `open_video` takes; an iterable of pictures, as there, or of `Frame`.
        fps: of images, arrays and iterables; of a source that goes on (camera, RTSP, RTMP, UDP) so many frames a second
            are taken at most, `pace` by default. Other sources know their own, and a warning says so.

    Raises TypeError for an argument of another type, UserError for a wrong value or a source that cannot be opened.
    """
    if fps is not None:
        fps = checked("fps", fps, Rate, "a number of frames per second, 0.001 to 10,000")
    if isinstance(source, int) and not isinstance(source, bool):
        number: int = checked("a camera's number", source, Annotated[int, Field(ge=0, le=99)], "0 to 99")
        return _received(f"camera {number}", partial(_open_camera, number), fps or pace, goes_on=True)
    if isinstance(source, str) and (scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", source)):
        kind, name = scheme[1].lower(), without_password(source)
        if kind not in PROTOCOLS:
            raise UserError(f"{name}: addresses begin with {'://, '.join(PROTOCOLS)}://, or give a file")
        goes_on = kind not in WAITING
        return _received(name, partial(_open_address, source, name, kind), _rate(goes_on, name, fps, pace), goes_on)
    if isinstance(source, str | Path) and (source == STDIN or _is_pipe(source)):
        name = "stdin" if source == STDIN else str(source)
        return _received(name, partial(_open_pipe, source, name), _rate(False, name, fps, pace), goes_on=False)
    if isinstance(source, Iterable) and not _read_again(source):
        return LiveSource("video", fps, _pictures(source, fps))
    video = open_video(source, fps=fps)  # type: ignore[arg-type]  # tells what it does not know
    return LiveSource(video.name, video.fps, iter(video))


def _read_again(source: Any) -> bool:
    """Whether `open_video` reads it without a copy, or says that it is none."""
    known = str | Path | Image.Image | np.ndarray | bytes | bytearray | Mapping
    return isinstance(source, known) or hasattr(source, "detach")


def _rate(goes_on: bool, name: str, fps: float | None, pace: float | None) -> float | None:
    if fps is not None and not goes_on:
        log.warning("%s: fps is ignored, since a video knows its own; it is for cameras, RTSP, images and arrays", name)
    return (fps or pace) if goes_on else None


def without_password(address: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"//[^/@]*@", "//", address)


def _is_pipe(path: str | Path) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):  # told by who opens it
        return False


def _pictures(pictures: Iterable[Any], fps: float | None) -> Iterator[Frame]:
    """Of an iterable, read one by one in the caller's own thread."""
    size, moment = None, -math.inf
    for number, each in enumerate(pictures):
        if isinstance(each, str | Path):
            each = next(iter(open_video(each))).image
        moment, last = each.time if isinstance(each, Frame) else number / (fps or UNKNOWN_RATE), moment
        image = as_array(each.image if isinstance(each, Frame) else each)
        size = size or getattr(image, "shape", None)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"frame {number} must be a uint8 array (H, W, 3), or a picture")
        if image.shape != size or not image.size:
            raise UserError(f"frame {number} is of another size than the first, or empty; give frames of one size")
        if not moment > last:
            raise UserError(f"frame {number} is at {moment} s, that before it at {last} s; give frames in their order")
        yield Frame(image, moment)


def _received(
    name: str, opened: Callable[[], tuple[float | None, Iterator[Moment]]], rate: float | None, goes_on: bool
) -> LiveSource:
    """A source that a thread opens and reads, at most `rate` frames a second."""
    waiting: Queue[Any] = Queue(AHEAD[0] if goes_on else AHEAD[1])
    left = threading.Event()  # nobody reads on
    threading.Thread(target=_read, args=(name, opened, rate, goes_on, waiting, left), daemon=True).start()

    def taken() -> Any:
        item = waiting.get()
        if isinstance(item, BaseException):
            raise item
        return item

    fps = taken()

    def frames() -> Iterator[Frame]:
        while (frame := taken()) is not None:
            yield frame

    reading = frames()
    weakref.finalize(reading, left.set)  # also where no frame was ever asked for
    return LiveSource(name, min(filter(None, (fps, rate)), default=None), reading)


def _read(
    name: str,
    opened: Callable[[], tuple[float | None, Iterator[Moment]]],
    rate: float | None,
    goes_on: bool,
    waiting: "Queue[Any]",
    left: threading.Event,
) -> None:
    """Puts the rate, the frames and None at the end, or what is to be raised."""

    def put(item: Any) -> None:
        while not left.is_set():
            with contextlib.suppress(Full):
                return waiting.put(item, timeout=0.2)

    try:
        fps, moments = opened()
        put(fps)
        period, due, late, size = 1 / rate if rate else 0.0, 0.0, False, None
        with contextlib.closing(moments):  # type: ignore[type-var]  # they are generators
            for moment, picture in moments:
                if left.is_set():
                    return
                if rate and moment + 1e-3 < due:
                    continue
                if goes_on and waiting.full():
                    late = True
                    continue
                if late:  # there is room again
                    late, period = False, 2 * (period or 1 / UNKNOWN_RATE)
                    log.warning("%s: the model is slower; now %.3g frames a second are taken", name, 1 / period)
                    rate = 1 / period
                due = max(due, moment - period) + period
                image = picture()
                size = size or image.shape[1::-1]
                if image.shape[1::-1] != size:
                    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                put(Frame(image, moment))
                del image
        put(None)
    except UserError as error:
        put(error)
    except Exception as error:  # of a decoder, as in `open_video`
        put(UserError(f"{name}: cannot be decoded ({type(error).__name__}: {reason(error)})"))


def _camera_system() -> int:
    """OpenCV's way to cameras here; not FFmpeg, of which PyAV has brought another version."""
    return {"win32": cv2.CAP_DSHOW, "darwin": cv2.CAP_AVFOUNDATION}.get(sys.platform, cv2.CAP_V4L2)


def _open_camera(number: int) -> tuple[float | None, Iterator[Moment]]:
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it tells on stderr what it tried
    try:
        camera = cv2.VideoCapture(number, _camera_system())
        good, image = camera.read()
    finally:
        cv2.utils.logging.setLogLevel(before)
    if not good:
        raise UserError(f"camera {number}: cannot be opened, or gives no picture; see whether it is there and free")

    def moments(image: Any) -> Iterator[Moment]:
        begin, good, count = time.monotonic(), True, 0
        try:
            while good:
                count += 1
                yield time.monotonic() - begin, partial(_as_rgb, image)
                good, image = camera.read()
            log.warning("camera %s: broke off after %s frames", number, count)
        finally:
            camera.release()

    return camera.get(cv2.CAP_PROP_FPS) or UNKNOWN_RATE, moments(image)


def _open_address(address: str, name: str, kind: str) -> tuple[float | None, Iterator[Moment]]:
    options = {"protocol_whitelist": PROTOCOLS[kind], "format_whitelist": DEMUXERS}
    if kind.startswith("http"):
        options["max_redirects"] = "0"
    elif kind.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    try:
        container = av.open(address, options=options, timeout=PATIENCE, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        hint = "see whether it is right and leads to a video itself, not to a list or another address"
        raise UserError(f"{name}: cannot be opened ({reason(error)}); {hint}") from None
    return _moments(container, name)


def _open_pipe(source: str | Path, name: str) -> tuple[float | None, Iterator[Moment]]:
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if source == STDIN else open(source, "rb") as file:
            options = {"fd": str(file.fileno()), "protocol_whitelist": "fd", "format_whitelist": DEMUXERS}
            container = av.open("fd:", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        hint = "send MKV, MPEG-TS, Y4M or the like, as `ffmpeg -f yuv4mpegpipe -` does"
        raise UserError(f"{name}: no video that can be read from a pipe ({reason(error)}); {hint}") from None
    return _moments(container, name)


def _moments(container: Any, name: str) -> tuple[float | None, Iterator[Moment]]:
    """The rate and the frames of what has been opened. What cannot be decoded is passed over, and what breaks off ends,
    each with a warning."""
    stream = video_stream(container, Path(name))
    stream.thread_type = "SLICE"  # several frames at once would come later
    rate = stream.average_rate or stream.guessed_rate or Fraction(0)
    fps = float(rate) or UNKNOWN_RATE

    def moments() -> Iterator[Moment]:
        begin, time, count, damaged, matrix = None, -1 / fps, 0, 0, None
        packets = container.demux(stream)
        try:
            while True:
                try:
                    packet = next(packets, None)
                except av.error.EOFError:
                    packet = None
                except (av.error.FFmpegError, OSError) as error:
                    log.warning("%s: broke off after %s frames (%s)", name, count, reason(error))
                    break
                try:
                    shown = packet.decode() if packet is not None else []
                except av.error.EOFError:
                    shown = []
                except av.error.FFmpegError:
                    damaged += 1
                    continue
                for frame in shown:
                    begin = frame.time if begin is None else begin
                    own = None if frame.time is None or begin is None else float(frame.time - begin)
                    time = own if own is not None and own > time else time + 1 / fps
                    count += 1
                    matrix = matrix or _display_matrix(frame)
                    yield time, partial(_picture, frame, matrix)
                if packet is None:
                    break
            if not count:
                raise UserError(f"{name}: no frame could be decoded; its codec is unknown, or it ended too early")
            if damaged:
                log.warning("%s: damaged; took the %s frames that could be decoded", name, count)
        finally:
            container.close()

    return fps, moments()


def _as_rgb(image: Any) -> Pixels:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _picture(frame: Any, matrix: list[int]) -> Pixels:
    return upright(to_rgb(frame), matrix)


def _display_matrix(frame: Any) -> list[int]:
    """As `container.open_file` applies it, of the first frame."""
    with contextlib.suppress(ValueError):  # EXIF, which PyAV does not know
        if (side := frame.side_data.get("DISPLAYMATRIX")) is not None:
            return list(np.frombuffer(bytes(side), dtype=np.int32).tolist())
    return [1, 0, 0, 0, 1]
