"""Anything with frames in it, opened once and read as often as needed without ever being held in memory.

`open_video` takes a file that FFmpeg reads, a folder of images, one image, an array (T, H, W, 3) or an iterator of
frames, and gives a `VideoSource`. Frames are RGB and the right way up: the rotation or mirroring that a camera notes
in the file is applied. Pixels count as square: a sample aspect ratio is left alone, so that masks fit the coded
frame. Every frame keeps its own time, hence variable frame rates come out in sync. Where the size changes within a
file, later frames are resized to the first one's.
"""

import itertools
import logging
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.errors import UserError
from dshmp.files import reason, regular
from dshmp.video.images import DECODER_ERRORS, MAX_PIXELS, SUFFIXES, open_image

log = logging.getLogger("dshmp")

Image = NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""
Video = str | Path | NDArray[np.uint8] | Iterable[Image]
FrameRange = str | tuple[int, int | None] | None

VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
        *(".3gp", ".ogv", ".mxf", ".gif", ".vob"),
    }
)
"""What video files are often called; any file may be one."""
CONTAINERS = (
    *("mov", "matroska", "avi", "asf", "flv", "mpeg", "mpegts", "mpegvideo", "ogg", "nut", "mxf", "gxf", "rm", "wtv"),
    *("dv", "dhav", "nsv", "nuv", "swf", "ivf", "obu", "flic", "yuv4mpegpipe"),
    *("av1", "h261", "h263", "h264", "hevc", "vvc", "m4v", "mjpeg", "mjpeg_2000", "vc1", "vc1test", "dirac", "dnxhd"),
    *("gif", "apng", "jpegxl_anim"),
    *("jpeg_pipe", "png_pipe", "bmp_pipe", "webp_pipe", "tiff_pipe", "j2k_pipe", "jpegxl_pipe", "qoi_pipe"),
    *("pbm_pipe", "pgm_pipe", "ppm_pipe", "pam_pipe", "exr_pipe", "hdr_pipe", "dpx_pipe"),
)
"""FFmpeg's demuxers of single files that hold moving pictures or one still picture; no other is used. Playlists (hls,
dash, concat), patterns of names (image2) and what reads beside its file (vobsub, mlv) would open files nobody named."""
PLAYLIST = re.compile(
    rb"(\xef\xbb\xbf)?\s*(#EXTM3U|ffconcat|\[(playlist|reference)\]|v=0\s|(<[?!][^>]*>\s*)*<(MPD|smil|asx)\b)",
    re.IGNORECASE,
)
"""How HLS, FFmpeg's concat, PLS, ASF references, SDP, DASH, SMIL and ASX begin: lists of other files."""
UNKNOWN_RATE = 10.0
"""Frames per second at which a folder or an array is played back when nobody says how fast it is."""


@dataclass(frozen=True)
class Frame:
    """One frame: RGB uint8 `image` (H, W, 3) and its `time` in seconds from the start of the video."""

    image: Image
    time: float


@dataclass(frozen=True)
class VideoSource:
    """A video whose frames can be iterated over again and again."""

    name: str
    """What messages and folders call it: the file's stem, the folder's name, or "video"."""
    path: Path | None
    height: int
    width: int
    fps: float | None
    """Average frames per second; None where it isn't known (images, arrays)."""
    expected: int | None
    """Frames that an iteration will give, as far as the header tells; only an estimate."""
    frames: Callable[[], Iterator[Frame]]
    start: int = 0
    stop: int | None = None
    positions: tuple[int, ...] | None = None
    """Places in time of the frames of a whole iteration, counted in frames, where they are not 0, 1, 2 ..."""

    def __iter__(self) -> Iterator[Frame]:
        """Decode from the beginning; raises UserError where the range holds no frame."""
        found = False
        for frame in itertools.islice(self.frames(), self.start, self.stop):
            found = True
            yield frame
        if not found:
            length = f" (about {self.expected} frames)" if self.expected is not None else ""
            chosen = f"{self.start}:{'' if self.stop is None else self.stop}"
            raise UserError(f"{self.name}: no frame in the range {chosen}{length}; choose an earlier one")

    @property
    def count(self) -> int | None:
        """Frames in the chosen range, as far as known."""
        if self.expected is None:
            return None if self.stop is None else self.stop - self.start
        last = self.expected if self.stop is None else min(self.stop, self.expected)
        return max(last - self.start, 0)


def open_video(video: Video, frames: FrameRange = None, fps: float | None = None) -> VideoSource:
    """Open `video` and look at its first frame.

    Args:
        video: path of a video file, an image or a folder of images (sorted naturally); uint8 array (T, H, W, 3);
            or an iterable of uint8 arrays (H, W, 3), which is copied to a temporary file as it is read.
        frames: "A:B" or (A, B): only frames A <= t < B; either end of the text may be left out.
        fps: how fast images, arrays and iterators are; not for video files, which know it themselves.

    Raises:
        UserError: nothing there, not a video, nothing decodes, frames of unequal sizes, wrong shape or type.
    """
    start, stop = parse_range(frames)
    if fps is not None and not 0 < fps < float("inf"):
        raise UserError(f"fps must be a positive number, not {fps}")
    if isinstance(video, str | Path):
        source = _open_path(Path(video), fps)
    elif isinstance(video, np.ndarray):
        source = _open_array(video, fps)
    elif isinstance(video, Iterable):
        source = _open_iterator(iter(video), fps)
    else:
        raise UserError(f"cannot read a video from {type(video).__name__}; give a path, an array or frames")
    fields = {name: getattr(source, name) for name in source.__dataclass_fields__}
    return VideoSource(**{**fields, "start": start, "stop": stop})


def check_sentences(expressions: Iterable[str]) -> None:
    """Raises UserError where one of the sentences is a file: who names several videos means several runs."""
    for text in expressions:
        if os.path.isfile(text) or Path(text).suffix.lower() in VIDEO_SUFFIXES:
            raise UserError(
                f"{text!r} is a file, but only the first argument is a video and the rest are sentences; for several "
                "videos write a list of video,expression and run: dshmp batch LIST.csv"
            )


def parse_range(frames: FrameRange) -> tuple[int, int | None]:
    """ "A:B" -> (A, B); None, ":" -> (0, None). Raises UserError where it is no range."""
    if frames is None:
        return 0, None
    if isinstance(frames, str):
        match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", frames)
        if match is None:
            raise UserError(f"frames {frames!r} is not a range; write A:B, for instance 0:100 or 50:")
        start, stop = int(match[1] or 0), int(match[2]) if match[2] else None
    else:
        start, stop = frames
    if start < 0 or (stop is not None and stop <= start):
        raise UserError(f"frames {start}:{'' if stop is None else stop} is empty; the end must come after the start")
    return start, stop


# Files ------------------------------------------------------------------------------------------------------------


def _open_path(path: Path, fps: float | None) -> VideoSource:
    try:
        if path.is_dir():
            return _open_folder(path, fps)
        with open(path, "rb", opener=regular) as file:
            if not os.fstat(file.fileno()).st_size:
                raise UserError(f"{path}: the file is empty (0 bytes)")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file or folder") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    if path.suffix.lower() in SUFFIXES:
        return _images(path, path.stem, [path], fps)
    return _open_file(path)


def _open_file(path: Path) -> VideoSource:
    warned: set[str] = set()
    with open_container(path) as container:
        stream = _video_stream(container, path)
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else None
        expected = int(stream.frames) or None
        if expected is None and fps is not None:
            seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
            expected = round(seconds * fps) or None
    first = next(_decode(path, fps, None, set()), None)
    if first is None:
        raise UserError(f"{path}: no frame could be decoded; the file is damaged or its codec is unknown")
    height, width = first.image.shape[:2]

    def frames() -> Iterator[Frame]:
        return (_at_size(frame, height, width) for frame in _decode(path, fps, expected, warned))

    return VideoSource(path.stem, path, height, width, fps, expected, frames)


def open_container(path: Path) -> Any:
    """Open a file with FFmpeg, which learns its content but no name: nothing that it holds, nor `%03d` or a colon in
    its name, can lead to another file.

    Raises:
        UserError: it cannot be read, or is none of `CONTAINERS`.
    """
    import av

    try:
        with open(path, "rb", opener=regular) as file:
            options = {"fd": str(file.fileno()), "protocol_whitelist": "fd", "format_whitelist": ",".join(CONTAINERS)}
            return av.open("fd:", options=options, metadata_errors="replace")
    except av.error.ArgumentError:  # what FFmpeg says of a format beyond the list
        raise UserError(f"{path}: {_unreadable(path, 'of a kind that can be read')}") from None
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: {_unreadable(path, f'that can be read ({reason(error)})')}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None


def _unreadable(path: Path, why: str) -> str:
    """What is said of a file that FFmpeg, allowed `CONTAINERS` only, does not open."""
    with open(path, "rb", opener=regular) as file:
        head = file.read(4096)
    if PLAYLIST.match(head):
        return "a list that names other files; give the video itself, or join them: ffmpeg -i LIST -c copy video.mp4"
    if head.isascii() and b"\0" not in head:
        why = "but a text file"
    return f"not a video {why}; give a whole MP4, MKV, AVI or the like"


def _video_stream(container: Any, path: Path) -> Any:
    """The first stream of moving pictures (cover art doesn't count)."""
    from av.stream import Disposition

    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        kinds = sorted({str(s.type) for s in container.streams})
        raise UserError(f"{path}: no video in this file, only {' and '.join(kinds) or 'nothing'}")
    stream = moving[0]
    context = stream.codec_context
    if context is None:
        raise UserError(f"{path}: the codec of its video is unknown")
    _check_size(context.height, context.width, str(path))
    return stream


def _decode(path: Path, fps: float | None, expected: int | None, warned: set[str]) -> Iterator[Frame]:
    """All frames that decode. Damaged packets are passed over, with one warning (kept in `warned`)."""
    import av

    def warn(message: str) -> None:
        if message not in warned:
            warned.add(message)
            log.warning("%s: %s", path, message)

    with open_container(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        index, damaged, last = 0, 0, -1.0
        matrix: tuple[int, int, int, int] | None = None
        step = 1 / (fps or UNKNOWN_RATE)
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
                decoded = packet.decode()
            except StopIteration:
                break
            except av.error.EOFError:
                break
            except av.error.FFmpegError:
                damaged += 1
                if damaged > 1000:  # a demuxer that fails for ever would never end
                    break
                continue
            for frame in decoded:
                time = frame.time if frame.time is not None else last + step
                if time <= last:  # broken time stamps: keep the order of decoding
                    time = last + step
                last = time
                if index == 0:  # of one frame only: reading it ties the frame in a cycle that outlives its turn
                    matrix = _display_matrix(frame)
                yield Frame(_upright(frame.to_ndarray(format="rgb24"), matrix), float(time))
                index += 1
        short = expected is not None and index < 0.9 * expected
        if index and (damaged or short):
            whole = f" of about {expected}" if short else ""
            warn(f"damaged or cut off; took the {index} frames{whole} that could be decoded")


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of the display matrix, which sends (x, y) to (a x + c y, b x + d y)."""
    try:
        side = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # a kind of side data that PyAV does not know, as a TIFF's
        return None
    if side is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(side), dtype=np.int32)[:5].tolist()
    return a, b, c, d


def _upright(image: Image, matrix: tuple[int, int, int, int] | None) -> Image:
    """The image with its display matrix applied."""
    if matrix is None:
        return image
    a, b, c, d = matrix
    if abs(a) >= abs(b):
        flip_x, flip_y = a < 0, d < 0
    else:
        image = image.transpose(1, 0, 2)
        flip_x, flip_y = c < 0, b < 0
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _at_size(frame: Frame, height: int, width: int) -> Frame:
    if frame.image.shape[:2] == (height, width):
        return frame
    import cv2

    resized = cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA)
    return Frame(np.asarray(resized, dtype=np.uint8), frame.time)


# Images, arrays, iterators ----------------------------------------------------------------------------------------


def _open_folder(folder: Path, fps: float | None) -> VideoSource:
    files = [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
    if not files:
        known = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise UserError(f"{folder}: a folder without frames; put images ({known}) in it, or name a video file")
    return _images(folder, folder.resolve().name, sorted(files, key=_natural), fps)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key in which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _images(path: Path, name: str, files: list[Path], fps: float | None) -> VideoSource:
    height, width = _read_image(files[0]).shape[:2]

    def frames() -> Iterator[Frame]:
        for index, file in enumerate(files):
            image = _read_image(file)
            if image.shape[:2] != (height, width):
                size, first = f"{image.shape[1]}x{image.shape[0]}", f"{width}x{height}"
                raise UserError(f"{file}: {size}, but {files[0].name} is {first}; all frames must be of one size")
            yield Frame(image, index / (fps or UNKNOWN_RATE))

    return VideoSource(name, path, height, width, fps, len(files), frames)


def _read_image(file: Path) -> Image:
    from PIL import ImageOps

    try:
        with open_image(file) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except PermissionError:
        raise UserError(f"{file}: no permission to read it") from None
    except DECODER_ERRORS as error:
        raise UserError(f"{file}: not an image, or damaged ({reason(error)})") from None


def _open_array(array: NDArray[Any], fps: float | None) -> VideoSource:
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise UserError(f"a video array must be uint8 (T, H, W, 3), not {array.dtype} {array.shape}")
    if 0 in array.shape:
        raise UserError(f"the video array holds no frames or no pixels: {array.shape}")
    count, height, width = array.shape[:3]
    _check_size(height, width, "video array")

    def frames() -> Iterator[Frame]:
        return (Frame(image, index / (fps or UNKNOWN_RATE)) for index, image in enumerate(array))

    return VideoSource("video", None, height, width, fps, count, frames)


def _open_iterator(images: Iterator[Image], fps: float | None) -> VideoSource:
    first = next(images, None)
    if first is None:
        raise UserError("the iterator gave no frames")
    _check_frame(first, 0)
    shape = first.shape
    spool = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the source)
    images = itertools.chain([first], images)
    stored = 0

    def frames() -> Iterator[Frame]:
        nonlocal stored
        for index in itertools.count():
            if index < stored:
                spool.seek(index * first.nbytes)
                image = np.frombuffer(spool.read(first.nbytes), dtype=np.uint8).reshape(shape)
            else:
                fresh = next(images, None)
                if fresh is None:
                    return
                _check_frame(fresh, index, shape)
                image = np.array(fresh)
                spool.seek(index * first.nbytes)
                spool.write(image.tobytes())
                stored += 1
            yield Frame(image, index / (fps or UNKNOWN_RATE))

    weakref.finalize(frames, spool.close)
    return VideoSource("video", None, shape[0], shape[1], fps, None, frames)


def _check_frame(image: object, index: int, shape: tuple[int, ...] | None = None) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"frame {index} must be a uint8 array (H, W, 3), not {found}")
    if shape is not None and image.shape != shape:
        raise UserError(f"frame {index} is {image.shape}, but frame 0 is {shape}; all frames must be of one size")
    _check_size(image.shape[0], image.shape[1], f"frame {index}")


def _check_size(height: int, width: int, where: str) -> None:
    if height < 1 or width < 1:
        raise UserError(f"{where}: frames of {width}x{height} pixels")
    if height * width > MAX_PIXELS:
        raise UserError(f"{where}: frames of {width}x{height} pixels are larger than 8192x8192; scale it down first")
