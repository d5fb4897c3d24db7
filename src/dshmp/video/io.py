"""Anything with frames in it, opened once and read as often as needed without ever being held in memory.

Frames are RGB and the right way up: the rotation or mirroring that a camera notes in the file is applied. Pixels count
as square: a sample aspect ratio is left alone, so that masks fit the coded frame. Every frame keeps its own time, hence
variable frame rates come out in sync. Where the size changes in a file, later frames are resized to the first one's.
"""

import bisect
import contextlib
import functools
import io
import itertools
import logging
import os
import re
import reprlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import av
import cv2
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, ImageSequence

from dshmp import limits
from dshmp.arguments import Place, Rate, checked
from dshmp.errors import UserError
from dshmp.files import reason, regular, writing
from dshmp.video.hdr import HDR, to_rgb
from dshmp.video.images import DECODER_ERRORS, FORMATS, MAX_PIXELS, MAX_SIDE, SUFFIXES, open_image

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("dshmp")
warn_once = functools.lru_cache(log.warning)  # a video may be opened several times, first to see whether it can be

Pixels = NDArray[np.uint8]  # (H, W, 3) uint8, RGB
Video = Union[str, Path, NDArray[np.uint8], "Tensor", Image.Image, Iterable["Picture"]]
Picture = Union[Pixels, "Tensor", Image.Image, str, Path]
FrameRange = str | tuple[int, int | None] | None

CONTAINERS = (
    "mov,matroska,avi,asf,flv,mpeg,mpegts,mpegvideo,ogg,nut,mxf,gxf,rm,wtv,dv,dhav,nsv,nuv,swf,ivf,obu,flic,gif,apng,"
    "yuv4mpegpipe,av1,h261,h263,h264,hevc,vvc,m4v,mjpeg,mjpeg_2000,vc1,vc1test,dirac,dnxhd,jpegxl_anim,jpeg_pipe,"
    "png_pipe,bmp_pipe,webp_pipe,tiff_pipe,j2k_pipe,jpegxl_pipe,qoi_pipe,pbm_pipe,pgm_pipe,ppm_pipe,pam_pipe,exr_pipe,"
    "hdr_pipe,dpx_pipe"
)
"""FFmpeg's demuxers of single files of moving or still pictures. Playlists (hls, dash, concat), patterns of names
(image2) and what reads beside its file (vobsub, mlv) would open files nobody named."""
FRAME_CODECS = {"h264", "hevc", "vvc", "vp9", "av1", "libdav1d", "mpeg2video", "mjpeg", "prores", "dnxhd", "ffv1"}
"""Of which a packet is a frame that is shown, where they are not interlaced; of VP8 and MPEG-4 some are not."""
# (a, b, u, c, d) of the display matrix of each EXIF orientation
ORIENTATIONS = {
    **{2: [-1, 0, 0, 0, 1], 3: [-1, 0, 0, 0, -1], 4: [1, 0, 0, 0, -1]},
    **{5: [0, 1, 0, 1, 0], 6: [0, 1, 0, -1, 0], 7: [0, -1, 0, -1, 0], 8: [0, -1, 0, 1, 0]},
}
UNKNOWN_RATE = 10.0  # frames per second at which a folder or an array is played back when nobody says how fast it is


@dataclass(frozen=True)
class Frame:
    """One frame: RGB uint8 `image` (H, W, 3) and its `time` in seconds from the start of the video."""

    image: Pixels
    time: float


@dataclass(frozen=True)
class VideoSource:
    """A video whose frames can be iterated over again and again."""

    name: str  # for messages: the file's stem, the folder's name, or "video"
    path: Path | None
    height: int
    width: int
    fps: float | None  # average frames per second; None where it isn't known (images, arrays)
    expected: int | None  # frames that an iteration will give, as far as the header tells; only an estimate
    frames: Callable[[int], Iterator[Frame]]  # from the frame of this number on
    begin: float = 0.0  # seconds on the file's own clock, as of its sound, at which the first frame is shown
    start: int = 0
    stop: int | None = None
    positions: tuple[int, ...] | None = None  # places in time of all frames, counted in frames; None: 0, 1, 2 ...
    names: tuple[str, ...] | None = None  # of a folder's frames, without their suffixes

    def __iter__(self) -> Iterator[Frame]:
        """Decode from the range's beginning; raises UserError where it holds no frame."""
        frames = itertools.islice(self.frames(self.start), self.stop and self.stop - self.start)
        if (first := next(frames, None)) is None:
            length = f" (about {self.expected} frames)" if self.expected is not None else ""
            chosen = f"{self.start}:{self.stop or ''}{length}"
            raise UserError(f"{self.name}: no frame in the range {chosen}; choose an earlier one")
        yield first
        yield from frames

    @property
    def count(self) -> int | None:
        """Frames in the chosen range, as far as known."""
        ends = [end for end in (self.stop, self.expected) if end is not None]
        return max(min(ends) - self.start, 0) if ends else None


def open_video(video: Video, frames: FrameRange = None, fps: float | None = None) -> VideoSource:
    """Open `video` and look at its first frame.

    Args:
        video: path of a video file, an image or a folder of images (sorted naturally); uint8 array or tensor
            (T, H, W, 3), a tensor also (T, 3, H, W); picture of Pillow; paths of images, in their order; or an iterable
            of pictures, arrays (H, W, 3) or tensors, which is copied to a temporary file first.
        frames: "A:B" or (A, B): only frames A <= t < B; either end of the text may be left out.
        fps: of images, arrays and iterators; a video file knows its own, and a warning says so.

    Raises TypeError for an argument of another type, UserError for a wrong value or a video that cannot be read.
    """
    start, stop = parse_range(frames)
    if fps is not None:
        fps = checked("fps", fps, Rate, "a number of frames per second, 0.001 to 10,000")
    if isinstance(video, Image.Image):
        video = ImageSequence.Iterator(video)
    if isinstance(video, str | Path):
        path = Path(video)
        with _decoding(path):
            source = _open_path(path, fps)
        source = replace(source, frames=functools.partial(_guarded, path, source.frames))
    elif isinstance(video, np.ndarray) or hasattr(video, "detach"):
        source = _open_array(_as_array(video), fps)
    elif isinstance(video, Iterable) and not isinstance(video, bytes | bytearray | Mapping):
        images = iter(video)
        first = next(images, None)
        if isinstance(first, str | Path):
            files = [Path(item) for item in (first, *images)]
            source = _stills("video", None, functools.partial(_read_images, files), len(files), fps)
        else:
            given = () if first is None else itertools.chain([first], images)
            source = _spooled(map(_as_array, itertools.islice(given, stop)), fps)
    else:
        raise TypeError(f"cannot read a video from {type(video).__name__}; give a path, an array, or frames or paths")
    return replace(source, start=start, stop=stop)


def _as_array(image: Any) -> Any:
    """A picture of Pillow, upright, or a uint8 tensor, whose colours may come before its sides, as an array; other
    things as they are."""
    if isinstance(image, Image.Image):
        return np.asarray(_rgb(image))
    if hasattr(image, "detach"):
        if str(image.dtype) != "torch.uint8":
            raise UserError(f"a tensor of frames must be uint8, 0 to 255, not {image.dtype}")
        array = np.asarray(image.detach().cpu().numpy())
        first = array.ndim > 2 and array.shape[-3] == 3 and array.shape[-1] != 3
        return np.ascontiguousarray(np.moveaxis(array, -3, -1)) if first else array
    return image


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """What a decoder raises is a fault of this video: UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot be decoded ({type(error).__name__}: {reason(error)}); convert it") from error


def _guarded(path: Path, frames: Callable[[int], Iterator[Frame]], start: int) -> Iterator[Frame]:
    with _decoding(path):
        yield from frames(start)


def check_sentences(expressions: Iterable[str]) -> None:
    """Raises UserError where one of the sentences is a file: who names several videos means several runs."""
    for text in expressions:
        if os.path.isfile(text) or re.fullmatch(r"\S+\.\w{2,4}", text):
            fault = f"{text!r} is a file, but only the first argument is a video, the rest are sentences"
            raise UserError(f"{fault}; for several videos write a list of video,expression: dshmp batch LIST.csv")


def parse_range(frames: FrameRange) -> tuple[int, int | None]:
    """ "A:B" -> (A, B); None, ":" -> (0, None). Raises UserError where it is no range."""
    if isinstance(frames, str):
        match = re.fullmatch(r"\s*(\d{0,20})\s*:\s*(\d{0,20})\s*", frames)
        if match is None:
            raise UserError(f"frames {reprlib.repr(frames)} is not a range; write A:B, for instance 0:100 or 50:")
        frames = int(match[1] or 0), int(match[2]) if match[2] else None
    if frames is None:
        return 0, None
    known = "A:B or (A, B), with A and B up to a billion"
    start, stop = checked("frames", frames, tuple[Place, Place | None], known)
    if stop is not None and stop <= start:
        raise UserError(f"frames {start}:{stop} is empty; the end must come after the start")
    return start, stop


def _open_path(path: Path, fps: float | None) -> VideoSource:
    try:
        if path.is_dir():
            files = [f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
            if not files:
                raise UserError(f"{path}: a folder without frames; put images in it, or name a video file")
            _check_pattern(path, files)
            files.sort(key=lambda f: re.sub(r"\d+", lambda number: number[0].zfill(20), f.name.lower()))  # 2 before 10
            source = _stills(path.resolve().name, path, functools.partial(_read_images, files), len(files), fps)
            return replace(source, names=tuple(file.stem for file in files))
        open(path, "rb", opener=regular).close()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    if path.suffix.lower() in SUFFIXES:
        if (animation := _open_animation(path, fps)) is not None:
            return animation
        return _stills(path.stem, path, functools.partial(_read_images, [path]), 1, fps)
    if fps is not None:
        warn_once("%s: fps is ignored, since a video file knows its own; it is for images and arrays", path)
    return _open_file(path)


def _check_pattern(folder: Path, files: list[Path]) -> None:
    """Raises UserError where two files have the same number, or without one the same stem: an image and its mask, most
    likely."""
    known: dict[tuple[str, ...], Path] = {}
    for file in sorted(files):
        key = tuple(re.findall(r"\d+", file.stem)) or (file.stem,)
        if (other := known.setdefault(key, file)) is not file:
            fault = f"{file.name} and {other.name} are both the frame {' '.join(key)}"
            raise UserError(f"{folder}: {fault}; keep frames of one kind there, and masks in another folder")


def _open_file(path: Path) -> VideoSource:
    with open_container(path) as container:
        stream = _video_stream(container, path)
        if stream.codec_context.color_trc in HDR:
            warn_once("%s: HDR, tone-mapped; the model knows ordinary video, so an SDR copy may do better", path)
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else None
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        left = sum(not entry.is_discard for entry in stream.index_entries)  # by an edit list
        listed = min(int(stream.frames), left or int(stream.frames))
        expected = listed or round(seconds * (fps or 0)) or None
    told, begin = False, 0.0

    def decoded(place: _Place) -> Iterator[tuple[Any, float]]:
        """Frames from a place on, and their times on the file's clock; nothing where the frame of that place does not
        come of itself. Damaged packets are passed over, with one warning."""
        nonlocal told
        with open_container(path) as container:
            stream = _video_stream(container, path)
            stream.thread_type = "AUTO"
            packets = itertools.islice(container.demux(stream), place.packet, None)
            count, found = place.before, place.pts is None
            damaged, time, step = 0, float("-inf"), 1 / (fps or UNKNOWN_RATE)
            while True:
                try:
                    shown = next(packets).decode()
                except (StopIteration, av.error.EOFError):
                    break
                except av.error.FFmpegError:
                    damaged += 1
                    continue
                for frame in shown:
                    # where time stamps are missing or broken, the order of decoding counts
                    known = frame.time is not None and frame.time > time
                    time = float(frame.time) if known else time + step if count else 0.0
                    count += 1
                    found = found or frame.pts == place.pts
                    if found:
                        yield frame, time
                    elif frame.pts is None or frame.pts > place.pts:
                        return
            # by time where frames are not counted in the header, as the rate may vary
            short = count < 0.9 * listed if listed else time + step - begin < 0.9 * seconds
            if count and found and (damaged or short) and not told:
                told = True
                whole = f" of about {expected}" if short and expected else ""
                log.warning("%s: damaged or cut off; took the %s frames%s that could be decoded", path, count, whole)

    if (opened := next(decoded(BEGIN), None)) is None:
        raise UserError(f"{path}: no frame could be decoded; the file is damaged or its codec is unknown")
    first, begin = opened
    matrix = _display_matrix(
        first, path
    )  # of this frame only: reading it ties a frame in a cycle that outlives its turn
    height, width, _ = _upright(to_rgb(first), matrix).shape
    places = functools.cache(functools.partial(_places, path, first.pts, first.interlaced_frame))

    def frames(start: int) -> Iterator[Frame]:
        known = places() if start else None
        if known is not None and start >= len(known.times):
            return
        shown = iter(()) if known is None else decoded(known.find(start))
        head = list(itertools.islice(shown, 1)) or itertools.islice(decoded(BEGIN), start, None)
        for frame, time in itertools.chain(head, shown):
            image = _upright(to_rgb(frame), matrix)
            if image.shape[:2] != (height, width):
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            yield Frame(image, time - begin)

    return VideoSource(path.stem, path, height, width, fps, expected, frames, begin)


class _Place(NamedTuple):
    """Where decoding begins, and which frame is wanted."""

    packet: int  # number of the first one
    before: int  # frames before it
    pts: int | None  # of the first frame wanted; None: whichever comes


BEGIN = _Place(0, 0, None)


class _Places(NamedTuple):
    """Where the frames of a file are, by its packets alone, none of them decoded."""

    times: list[int]  # of the frames, in the order in which they are shown, as the file counts time
    keys: list[tuple[int, int]]  # number and time of packets with which decoding may begin

    def find(self, start: int) -> _Place:
        """Frame `start`, and the last key frame before it."""
        pts = self.times[start]
        packet, time = max((key for key in self.keys if key[1] <= pts), default=(0, self.times[0]))
        return _Place(packet, bisect.bisect_left(self.times, time), pts)


def _places(path: Path, first: int | None, interlaced: bool) -> _Places | None:
    """None where packets are not frames or have no times of their own, or the frame that comes `first` is another."""
    with open_container(path) as container:
        stream = _video_stream(container, path)
        codec = stream.codec_context
        # AVI has but an order of packets
        ordered = container.format.name == "avi" and codec.has_b_frames
        if codec.name not in FRAME_CODECS or interlaced or ordered:
            return None
        times: list[int] = []
        keys: list[tuple[int, int]] = []
        latest = float("-inf")
        for number, packet in enumerate(container.demux(stream)):
            if not packet.size:  # the end
                break
            if packet.pts is None:
                return None
            if packet.is_keyframe and packet.pts > latest:
                keys.append((number, packet.pts))
            latest = max(latest, packet.pts)
            if not packet.is_discard:  # which an edit list leaves out
                times.append(packet.pts)
    times.sort()
    whole = times and times[0] == first and all(a < b for a, b in itertools.pairwise(times))
    return _Places(times, keys) if whole else None


def open_container(path: Path) -> Any:
    """Open a file of `CONTAINERS` with FFmpeg, which learns its content but no name: nothing that it holds, nor `%03d`
    or a colon in its name, can lead to another file. Raises UserError."""
    try:
        with open(path, "rb", opener=regular) as file:
            options = {"fd": str(file.fileno()), "protocol_whitelist": "fd", "format_whitelist": CONTAINERS}
            return av.open("fd:", options=options, metadata_errors="replace")
    except av.error.FFmpegError as error:
        hint = "give a whole MP4, MKV, AVI or the like, no list of others"
        raise UserError(f"{path}: not a video of a kind that can be read ({reason(error)}); {hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None


def _video_stream(container: Any, path: Path) -> Any:
    """The first stream of moving pictures (cover art doesn't count)."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise UserError(f"{path}: the codec of its video is unknown")
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < height * width <= MAX_PIXELS or max(height, width) > MAX_SIDE:
                raise UserError(f"{path}: frames of {width}x{height} pixels, the most is 8192x8192; scale it down")
            return stream
    kinds = sorted({str(stream.type) for stream in container.streams})
    raise UserError(f"{path}: no video in this file, only {' and '.join(kinds) or 'nothing'}")


def _display_matrix(frame: Any, path: Path) -> list[int]:
    """(a, b, u, c, d, ...) of the display matrix, which sends (x, y) to (a x + c y, b x + d y), of the first frame."""
    try:
        if (side := frame.side_data.get("DISPLAYMATRIX")) is not None:
            return list(np.frombuffer(bytes(side), dtype=np.int32).tolist())
    except ValueError:  # EXIF, which PyAV does not know; such a packet is a picture's file, whose EXIF Pillow reads
        with open_container(path) as container:
            packet = next(container.demux(_video_stream(container, path)))
        with contextlib.suppress(*DECODER_ERRORS), Image.open(io.BytesIO(bytes(packet)), formats=FORMATS) as image:
            return ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), [1, 0, 0, 0, 1])
    return [1, 0, 0, 0, 1]


def _upright(image: Pixels, matrix: list[int]) -> Pixels:
    """The image with its display matrix applied."""
    a, b, _, c, d = matrix[:5]
    if abs(a) < abs(b):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _stills(
    name: str, path: Path | None, images: Callable[[int], Iterable[Pixels]], count: int, fps: float | None
) -> VideoSource:
    """Images of one size at even times; `images` begins with the image of the number it is given."""

    def frames(start: int) -> Iterator[Frame]:
        return (Frame(image, index / (fps or UNKNOWN_RATE)) for index, image in enumerate(images(start), start))

    height, width, _ = next(frames(0)).image.shape
    return VideoSource(name, path, height, width, fps, count, frames)


def _read_images(files: list[Path], start: int) -> Iterator[Pixels]:
    first = None
    for index in (0, *range(max(start, 1), len(files))):
        file = files[index]
        try:
            with open_image(file) as opened:
                image = _rgb(opened)
        except DECODER_ERRORS as error:
            raise UserError(f"{file}: not an image, or damaged ({reason(error)})") from None
        first = first or image
        if image.size != first.size:
            sizes = f"{image.width}x{image.height}, but the first frame is {first.width}x{first.height}"
            raise UserError(f"{file}: {sizes}; all frames must be of one size")
        if index >= start:
            yield np.asarray(image)


def _rgb(image: Image.Image) -> Image.Image:
    """The picture upright, in colours of 8 bits: 16-bit grey is scaled, where Pillow itself would clip it to white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.float64).clip(0, 65535) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def _open_animation(path: Path, fps: float | None) -> VideoSource | None:
    """The frames of an animated picture, each with its time; None where it is but one."""
    try:
        with open_image(path) as opened:
            count = getattr(opened, "n_frames", 1)
            if count == 1 or opened.format == "TIFF":  # its further pictures are pages
                return None
            width, height = opened.size
    except DECODER_ERRORS:  # the still reader says what is wrong
        return None

    def frames(start: int) -> Iterator[Frame]:
        time, index = 0.0, 0
        try:
            with open_image(path) as opened:
                for index, shown in enumerate(ImageSequence.Iterator(opened)):
                    if index >= start:
                        yield Frame(np.asarray(shown.convert("RGB")), index / fps if fps else time)
                    time += (shown.info.get("duration") or 1000 / UNKNOWN_RATE) / 1000
        except DECODER_ERRORS as error:
            raise UserError(f"{path}: frame {index} cannot be read ({reason(error)})") from None

    next(frames(0))
    return VideoSource(path.stem, path, height, width, fps, count, frames)


def _open_array(array: NDArray[Any], fps: float | None) -> VideoSource:
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not array.size:
        raise UserError(f"a video array must be uint8 (T, H, W, 3) and not empty, not {array.dtype} {array.shape}")
    return _stills("video", None, lambda start: array[start:], len(array), fps)


def _spooled(images: Iterator[Any], fps: float | None) -> VideoSource:
    """The images, copied to a temporary file, from which they are read again: each by itself, without loss, at about
    35 to 60 % of its size, by HuffYUV, in a tenth of the time of PNG."""
    ends, shape, place = [0], None, Path(f"{tempfile.gettempdir()} (the temporary folder, TMPDIR)")
    encoder: Any = av.CodecContext.create("huffyuv", "w")
    with writing(place, place), tempfile.TemporaryFile() as file:
        for count, image in enumerate(images):
            dtype, size = (image.dtype, image.shape) if isinstance(image, np.ndarray) else (None, (0, 0, 0))
            shape = shape or size
            if dtype != np.uint8 or size != shape or size[2:] != (3,) or 0 in size:
                raise UserError(f"frame {count} must be a uint8 array (H, W, 3), and all frames of one size")
            if not count:
                encoder.height, encoder.width, _ = size
                encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
            (packet,) = encoder.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
            if (end := ends[-1] + packet.size) > limits.SPOOL:
                fault = f"frames of an iterator take more than {limits.SPOOL >> 30} GiB there"
                raise UserError(f"{place}: {fault}; write them to a video file and give that, or give fewer at once")
            file.write(packet)
            ends.append(end)
        if shape is None:
            raise UserError("the iterator gave no frames")
        packed = np.memmap(file, np.uint8, "r")

    def read(start: int) -> Iterator[Pixels]:
        decoder: Any = av.CodecContext.create("huffyuv", "r")
        decoder.extradata, decoder.pix_fmt = encoder.extradata, "rgb24"
        decoder.height, decoder.width = encoder.height, encoder.width
        for begin, end in itertools.pairwise(ends[start:]):
            (frame,) = decoder.decode(av.Packet(packed[begin:end].tobytes()))
            yield frame.to_ndarray(format="rgb24")

    return _stills("video", None, read, len(ends) - 1, fps)
