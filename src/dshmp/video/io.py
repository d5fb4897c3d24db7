"""Anything with frames in it, opened once and read as often as needed without ever being held in memory.

Frames are RGB and the right way up: the rotation or mirroring that a camera notes in the file is applied. Pixels count
as square: a sample aspect ratio is left alone, so that masks fit the coded frame. Every frame keeps its own time, hence
variable frame rates come out in sync. Where the size changes in a file, later frames are resized to the first one's.
"""

import contextlib
import functools
import itertools
import os
import re
import reprlib
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence

from dshmp.common import limits
from dshmp.common.arguments import Place, Rate, checked
from dshmp.common.errors import UserError
from dshmp.common.files import reason, regular, writing
from dshmp.video.container import open_file, warn_once
from dshmp.video.images import DECODER_ERRORS, SUFFIXES, open_image
from dshmp.video.source import UNKNOWN_RATE, Frame, Pixels, VideoSource

if TYPE_CHECKING:
    from torch import Tensor

Video = Union[str, Path, NDArray[np.uint8], "Tensor", Image.Image, Iterable["Picture"]]
Picture = Union[Pixels, "Tensor", Image.Image, str, Path]
FrameRange = str | tuple[int, int | None] | None


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
        source = replace(_open_array(as_array(video), fps), array=weakref.ref(video))
    elif isinstance(video, Iterable) and not isinstance(video, bytes | bytearray | Mapping):
        images = iter(video)
        first = next(images, None)
        if isinstance(first, str | Path):
            files = [Path(item) for item in (first, *images)]
            source = _stills("video", None, functools.partial(_read_images, files), len(files), fps)
        else:
            given = () if first is None else itertools.chain([first], images)
            source = _spooled(map(as_array, itertools.islice(given, stop)), fps)
    else:
        raise TypeError(f"cannot read a video from {type(video).__name__}; give a path, an array, or frames or paths")
    return replace(source, start=start, stop=stop)


def as_array(image: Any) -> Any:
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
    return open_file(path)


def _check_pattern(folder: Path, files: list[Path]) -> None:
    """Raises UserError where two files have the same number, or without one the same stem: an image and its mask, most
    likely."""
    known: dict[tuple[str, ...], Path] = {}
    for file in sorted(files):
        key = tuple(re.findall(r"\d+", file.stem)) or (file.stem,)
        if (other := known.setdefault(key, file)) is not file:
            fault = f"{file.name} and {other.name} are both the frame {' '.join(key)}"
            raise UserError(f"{folder}: {fault}; keep frames of one kind there, and masks in another folder")


def _stills(
    name: str, path: Path | None, images: Callable[[int], Iterable[Pixels]], count: int, fps: float | None
) -> VideoSource:
    """Images of one size at even times; `images` begins with the image of the number it is given."""

    times = tuple(index / (fps or UNKNOWN_RATE) for index in range(count))

    def frames(start: int) -> Iterator[Frame]:
        return (Frame(image, time) for image, time in zip(images(start), times[start:], strict=False))

    height, width, _ = next(frames(0)).image.shape
    return VideoSource(name, path, height, width, fps, count, frames, times=times)


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
