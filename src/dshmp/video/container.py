"""Video files, by FFmpeg: frames upright and at their own times, from any of them on."""

import bisect
import contextlib
import functools
import io
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.stream import Disposition
from PIL import ExifTags, Image

from dshmp.common.errors import UserError
from dshmp.common.files import reason, regular
from dshmp.video.hdr import HDR, to_rgb
from dshmp.video.images import DECODER_ERRORS, FORMATS, MAX_PIXELS, MAX_SIDE
from dshmp.video.source import UNKNOWN_RATE, Frame, Pixels, VideoSource

log = logging.getLogger("dshmp")
warn_once = functools.lru_cache(log.warning)  # a video may be opened several times, first to see whether it can be

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


def open_file(path: Path) -> VideoSource:
    """A file of moving pictures, which knows its own rate. Raises UserError."""
    with open_container(path) as container:
        stream = video_stream(container, path)
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
            stream = video_stream(container, path)
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
    # of this frame only: reading it ties a frame in a cycle that outlives its turn
    matrix = _display_matrix(first, path)
    height, width, _ = upright(to_rgb(first), matrix).shape
    places = functools.cache(functools.partial(_places, path, first.pts, first.interlaced_frame))

    def frames(start: int) -> Iterator[Frame]:
        known = places() if start else None
        if known is not None and start >= len(known.times):
            return
        shown = iter(()) if known is None else decoded(known.find(start))
        head = list(itertools.islice(shown, 1)) or itertools.islice(decoded(BEGIN), start, None)
        for frame, time in itertools.chain(head, shown):
            image = upright(to_rgb(frame), matrix)
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
        stream = video_stream(container, path)
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


def video_stream(container: Any, path: Path) -> Any:
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
            packet = next(container.demux(video_stream(container, path)))
        with contextlib.suppress(*DECODER_ERRORS), Image.open(io.BytesIO(bytes(packet)), formats=FORMATS) as image:
            return ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), [1, 0, 0, 0, 1])
    return [1, 0, 0, 0, 1]


def upright(image: Pixels, matrix: list[int]) -> Pixels:
    """The image with its display matrix applied."""
    a, b, _, c, d = matrix[:5]
    if abs(a) < abs(b):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
