"""Pictures for people: masks over frames, the sentence with its static and motion words told apart, and when.

The frame itself stays uncovered: what is said about it stands in a panel below. Small frames are shown enlarged, so
that text is readable at any size.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from dshmp.errors import UserError
from dshmp.files import reason
from dshmp.video.io import open_container

if TYPE_CHECKING:
    from dshmp.model.words import Word

log = logging.getLogger("dshmp")

Image = NDArray[np.uint8]
Masks = NDArray[np.bool_]
Colour = tuple[int, int, int]

OBJECTS: tuple[Colour, ...] = (
    (255, 82, 119),
    (58, 214, 176),
    (167, 119, 255),
    (255, 209, 71),
    (70, 178, 255),
    (255, 140, 66),
    (157, 224, 82),
    (240, 120, 220),
)
"""One colour per object meant, in turn."""
STATIC: Colour = (97, 190, 255)
MOTION: Colour = (255, 178, 64)
PLAIN: Colour = (222, 226, 232)
QUIET: Colour = (128, 138, 152)
PANEL: Colour = (18, 21, 27)
TRACK: Colour = (38, 44, 54)
WHITE: Colour = (255, 255, 255)

AUDIO_IN_MP4 = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"})
NARROWEST = 240
"""Pixels that a panel needs for its text; a narrower frame stands in its middle."""
TICKS = 90_000
"""Time stamps per second of an overlay video."""


@dataclass(frozen=True)
class Caption:
    """What the panel says of one expression over one clip."""

    expression: str
    words: "Sequence[Word]"
    score: float
    found: int
    """Objects meant; 0 = nothing matches."""
    evidence: Sequence[float]
    """Per frame; drawn relative to its greatest value."""
    times: Sequence[float]
    note: str = ""
    """Added to the verdict, for instance a measured IoU."""


# Masks ------------------------------------------------------------------------------------------------------------


def enlargement(width: int) -> int:
    """How many times a frame of this width is enlarged so that text below it is readable (1 to 4)."""
    return min(max(-(-400 // width), 1), 4)


def draw_masks(
    image: Image, masks: Masks, truth: Masks | None = None, scale: int = 1, first: int = 0, weight: int = 1
) -> Image:
    """Tint and outline `masks` (K, H, W) on a copy of `image` (H, W, 3), `scale` times as large.

    `truth` (H, W) is outlined in white. Colours are taken from the `first` on; outlines are `weight` times as thick.
    """
    import cv2

    height, width = image.shape[0] * scale, image.shape[1] * scale
    canvas = np.array(image)
    if scale > 1:
        canvas = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_CUBIC)
    thickness = max(1, round(min(width, height) / 240)) * weight

    def enlarge(mask: Masks) -> Image:
        full: Image = mask.astype(np.uint8)
        if scale > 1:  # smooth instead of staircase borders
            full = (cv2.resize(full * 255, (width, height), interpolation=cv2.INTER_LINEAR) > 127).astype(np.uint8)
        return full

    def outline(mask: Image, colour: Colour, width: int) -> None:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
        x, y, w, h = cv2.boundingRect(mask)
        inside = np.pad(mask[y : y + h, x : x + w], width)  # so that the frame's border doesn't count as inside
        edge = inside - cv2.erode(inside, kernel)
        part = canvas[y : y + h, x : x + w]
        part[edge[width:-width, width:-width].astype(bool)] = colour

    for index, mask in enumerate(masks):
        if not mask.any():
            continue
        colour = OBJECTS[(first + index) % len(OBJECTS)]
        full = enlarge(mask)
        x, y, w, h = cv2.boundingRect(full)
        part = canvas[y : y + h, x : x + w]
        tint = (*(0.45 * value for value in colour), 0)
        cv2.add(cv2.convertScaleAbs(part, alpha=0.55), tint, dst=part, mask=full[y : y + h, x : x + w])
        outline(full, colour, thickness)
    if truth is not None and truth.any():
        outline(enlarge(truth), WHITE, weight)
    return canvas


# Text -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)  # Pillow's own, so that every machine draws the same


def _pieces(caption: Caption) -> list[tuple[str, Colour]]:
    """The expression in pieces between spaces, each in the colour of its word; punctuation keeps to its word."""
    colours: list[Colour] = [PLAIN] * len(caption.expression)
    for word in caption.words:
        colour = {"static": STATIC, "motion": MOTION}.get(word.group or "", PLAIN)
        colours[word.start : word.end] = [colour] * (word.end - word.start)
    pieces: list[tuple[str, Colour]] = []
    start = 0
    for part in caption.expression.split(" "):
        if part:
            inside = colours[start : start + len(part)]
            pieces.append((part, next((c for c in inside if c != PLAIN), PLAIN)))
        start += len(part) + 1
    return pieces


def _wrap(pieces: list[tuple[str, Colour]], width: float, font: Any, most: int) -> list[list[tuple[str, Colour]]]:
    """Lines of at most `width` pixels; after `most` lines the rest is cut with an ellipsis."""
    space = font.getlength(" ")
    lines: list[list[tuple[str, Colour]]] = [[]]
    used = 0.0
    for text, colour in pieces:
        if font.getlength(text) > width:  # one word wider than the picture
            fitting = (n for n in range(len(text) - 1, 0, -1) if font.getlength(text[:n] + "…") <= width)
            text = text[: next(fitting, 0)] + "…"
        length = font.getlength(text)
        if lines[-1] and used + space + length > width:
            if len(lines) == most:
                last, shade = lines[-1][-1]
                lines[-1][-1] = (last.rstrip("…") + "…", shade)
                return lines
            lines.append([])
            used = 0.0
        used += length + (space if lines[-1] else 0.0)
        lines[-1].append((text, colour))
    return lines


def _text(draw: Any, x: float, y: float, pieces: Sequence[tuple[str, Colour]], font: Any) -> float:
    for text, colour in pieces:
        draw.text((x, y), text, fill=colour, font=font)
        x += font.getlength(text) + font.getlength(" ")
    return x


def _verdict(caption: Caption) -> list[tuple[str, Colour]]:
    note = f" · {caption.note}" if caption.note else ""
    if not caption.found:
        return [("nothing matches", PLAIN), (f"{caption.score:.2f}{note}", QUIET)]
    objects = "1 object" if caption.found == 1 else f"{caption.found} objects"
    return [(f"{caption.score:.2f}", WHITE), (f"{objects}{note}", QUIET)]


def _swatches(draw: Any, x: float, y: float, font: Any) -> float:
    """The legend of the two colours; returns where it ends."""
    for label, colour in (("static", STATIC), ("motion", MOTION)):
        side = font.size * 0.62
        top = y + font.size * 0.36
        draw.rounded_rectangle((x, top, x + side, top + side), side * 0.25, fill=colour)
        draw.text((x + side * 1.5, y), label, fill=QUIET, font=font)
        x += side * 1.5 + font.getlength(label) + font.size * 0.9
    return x


def _bars(draw: Any, box: tuple[int, int, int, int], evidence: Sequence[float]) -> None:
    """Evidence over time, one bar per frame or per pixel column, whichever is wider."""
    left, top, right, bottom = box
    draw.rounded_rectangle(box, max((bottom - top) // 8, 1), fill=TRACK)
    values = np.asarray(evidence, dtype=np.float64)
    if not len(values) or not values.max() > 0:
        return
    width, height = right - left, bottom - top
    bars = min(len(values), max(width // 2, 1))
    edges = np.linspace(0, len(values), bars + 1).astype(int)
    heights = np.array([values[a:b].max() for a, b in itertools.pairwise(edges)]) / values.max()
    gap = 1 if width / bars >= 4 else 0
    for index, value in enumerate(heights):
        x0, x1 = left + index * width / bars, left + (index + 1) * width / bars - gap
        draw.rectangle((round(x0), round(bottom - value * height), max(round(x1) - 1, round(x0)), bottom), fill=MOTION)


class OverlayPainter:
    """Paints one expression's answer on the frames of a clip: `painter(image, masks, index) -> picture`.

    The picture is the frame, enlarged where it is small, with a panel below: the sentence, static words blue and
    motion words amber; the verdict; the evidence over time with a playhead. `size` is the picture's (H, W), both
    even, as 4:2:0 video needs.
    """

    def __init__(self, height: int, width: int, caption: Caption) -> None:
        self.scale = enlargement(width)
        self.caption = caption
        self.frame_size = (height * self.scale, width * self.scale)
        full = max(self.frame_size[1], NARROWEST)
        self.left = (full - self.frame_size[1]) // 2
        self.panel, self.track = self._panel(full + full % 2)
        rows = self.frame_size[0] + self.panel.shape[0]
        self.size = (rows + rows % 2, self.panel.shape[1])

    def _panel(self, width: int) -> tuple[Image, tuple[int, int, int, int]]:
        """The panel without its playhead, and where the track of the timeline lies in it."""
        caption = self.caption
        size = 9 + width // 70
        large, small = _font(size), _font(round(size * 0.78))
        pad, line = round(size * 0.8), round(size * 1.4)
        inner = width - 2 * pad
        lines = _wrap(_pieces(caption), inner, large, most=4)
        verdict = _verdict(caption)
        length = sum(small.getlength(text) for text, _ in verdict) + small.getlength(" ")
        legend = sum(small.getlength(text) for text in ("static", "motion")) + small.size * 4.5
        two_rows = legend + length > inner
        small_line = round(small.size * 1.6)
        track_height = max(round(size * 1.1), 6)
        top = pad // 2 + line * len(lines) + round(size * 0.25)
        height = top + small_line * (2 if two_rows else 1) + round(size * 0.3) + track_height + pad
        panel = Pillow.new("RGB", (width, height), PANEL)
        draw = ImageDraw.Draw(panel)
        for row, pieces in enumerate(lines):
            _text(draw, pad, pad // 2 + row * line, pieces, large)
        _swatches(draw, pad, top, small)
        if two_rows:
            top += small_line
            _text(draw, pad, top, verdict, small)
        else:
            _text(draw, width - pad - length, top, verdict, small)
        top += small_line + round(size * 0.3)
        clock = small.getlength("000.0 s") + size * 0.4
        right = width - pad - (round(clock) if inner > 3 * clock else 0)
        track = (pad, top, right, top + track_height)
        _bars(draw, track, caption.evidence)
        self.clock = (right + round(size * 0.5), top + (track_height - small.size) / 2 - small.size * 0.12, small)
        self.has_clock = inner > 3 * clock
        return np.array(panel), track

    def __call__(self, image: Image, masks: Masks, index: int, truth: Masks | None = None) -> Image:
        """image (H, W, 3) uint8, masks (K, H, W) bool, number of the frame in the clip -> (H', W', 3) uint8."""
        picture = np.empty((*self.size, 3), dtype=np.uint8)
        picture[:] = PANEL
        height, width = self.frame_size
        picture[:height, self.left : self.left + width] = draw_masks(image, masks, truth, self.scale)
        panel = picture[height : height + self.panel.shape[0]]
        panel[:] = self.panel
        left, top, right, bottom = self.track
        last = max(len(self.caption.times) - 1, 1)
        x = round(left + (right - left - 1) * (index / last))
        thick = max(1, self.size[1] // 400)
        reach = max((bottom - top) // 5, 1)
        panel[top - reach : bottom + 1 + reach, max(x - thick // 2, 0) : x - thick // 2 + thick] = WHITE
        if self.has_clock:
            x_text, y_text, font = self.clock
            strip = Pillow.fromarray(panel[:, right + 1 + thick :])
            ImageDraw.Draw(strip).text(
                (x_text - right - 1 - thick, y_text), f"{self.caption.times[index]:.1f} s", fill=QUIET, font=font
            )
            panel[:, right + 1 + thick :] = np.asarray(strip)
        return picture


# Video ------------------------------------------------------------------------------------------------------------


class OverlayWriter:
    """Writes pictures with their own times as H.264 in MP4.

    As a context manager it leaves the finished file, or nothing where an exception passes. The sound of `audio`
    (a video file) goes along uncut in quality where MP4 can hold it, from the first picture's time on; otherwise
    it is dropped with a line in the log.
    """

    def __init__(self, path: Path, height: int, width: int, fps: float | None, audio: Path | None = None) -> None:
        if height % 2 or width % 2:
            raise ValueError(f"4:2:0 video needs even sizes, not {width}x{height}")
        self.path = path
        self.fps = fps or 10.0
        self.size = (height, width)
        self.start: float | None = None
        self.last = -1
        self.sound: _Sound | None = None
        try:
            self._open(audio)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise

    def _open(self, audio: Path | None) -> None:
        import av

        self.container = av.open(f"file:{self.path}", "w", format="mp4", options={"movflags": "faststart"})
        rate = Fraction(self.fps).limit_denominator(60_000)
        self.stream: Any = self.container.add_stream("libx264", rate=rate)
        self.stream.height, self.stream.width = self.size
        self.stream.pix_fmt = "yuv420p"
        self.stream.options = {"preset": "veryfast", "crf": "19"}
        self.stream.codec_context.time_base = Fraction(1, TICKS)
        self.stream.codec_context.colorspace = 1  # BT.709, what players assume of untagged files too
        self.stream.codec_context.color_range = 1
        if audio is None or not audio.is_file():
            return
        try:
            self.sound = _Sound.open(audio, self.container)
            self.container.start_encoding()
        except (av.error.FFmpegError, UserError) as error:
            log.warning("%s: its sound cannot go into the overlay (%s)", audio, reason(error))
            self.sound = None
            self.container.close()
            self._open(None)

    def write(self, picture: Image, time: float) -> None:
        """Add a picture (H, W, 3) uint8 shown from `time` on (seconds; must grow)."""
        import av

        if self.start is None:
            self.start = time
        stamp = max(round((time - self.start) * TICKS), self.last + 1)
        self.last = stamp
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = stamp, Fraction(1, TICKS)
        self.container.mux(self.stream.encode(frame))
        if self.sound is not None:
            self.sound.copy(self.start, time)

    def close(self) -> None:
        """Finish the file."""
        if self.last < 0:
            raise ValueError("an overlay video needs at least one picture")
        assert self.start is not None
        self.container.mux(self.stream.encode(None))
        if self.sound is not None:
            self.sound.copy(self.start, self.start + self.last / TICKS + 1 / self.fps)
            self.sound.source.close()
        self.container.close()

    def abort(self) -> None:
        """Give up: nothing remains."""
        if self.sound is not None:
            self.sound.source.close()
        try:
            self.container.close()
        finally:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self.close()
            except BaseException:
                self.abort()
                raise
        else:
            self.abort()


@dataclass
class _Sound:
    """The first audio stream of a file, copied packet by packet as the pictures advance."""

    source: Any
    packets: Iterator[Any]
    target: Any
    output: Any
    waiting: Any = None

    @classmethod
    def open(cls, path: Path, output: Any) -> "Self | None":
        source = open_container(path)
        streams = source.streams.audio
        codec = streams[0].codec_context.name if streams and streams[0].codec_context is not None else None
        if codec not in AUDIO_IN_MP4:
            source.close()
            if streams:
                log.warning("%s: its sound (%s) cannot go into an MP4 overlay and is left out", path, codec)
            return None
        target = output.add_stream_from_template(streams[0])
        return cls(source, source.demux(streams[0]), target, output)

    def copy(self, start: float, until: float) -> None:
        """Copy the packets that begin before `until` (seconds in the source); what lies before `start` is dropped."""
        import av

        while True:
            if self.waiting is None:
                try:
                    self.waiting = next(self.packets, None)
                except av.error.FFmpegError:
                    return
            packet = self.waiting
            if packet is None:
                return
            if packet.pts is None or packet.size == 0 or packet.pts * packet.time_base < start:
                self.waiting = None
                continue
            if packet.pts * packet.time_base >= until:
                return
            shift = round(start / packet.time_base)
            packet.pts -= shift
            if packet.dts is not None:
                packet.dts -= shift
            packet.stream = self.target
            self.output.mux(packet)
            self.waiting = None


# Contact sheet ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SheetRow:
    """One expression on a contact sheet: its caption and, for chosen frames, image, masks (K, H, W), truth."""

    caption: Caption
    frames: Sequence[int]
    images: Sequence[Image]
    masks: Sequence[Masks]
    truth: Sequence[Masks] | None = None


def sheet_frames(count: int, columns: int = 8) -> list[int]:
    """Numbers of at most `columns` frames, evenly spread from the first to the last."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(columns, count))})


def contact_sheet(path: Path, rows: Sequence[SheetRow], title: str = "", cell: int = 208) -> None:
    """One PNG that shows all answers at a glance: a row per expression, time from left to right.

    `cell` is the width of a picture in pixels.
    """
    import cv2

    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    columns = max(len(row.frames) for row in rows)
    source_height, source_width = rows[0].images[0].shape[:2]
    height = max(round(cell * source_height / source_width), 1)
    gap, pad, side = 6, 24, 300
    large, small = _font(19), _font(14)
    head = 64 if title else pad
    track = 22
    step = height + track + 34
    width = pad + side + columns * (cell + gap) - gap + pad
    sheet = Pillow.new("RGB", (width, head + len(rows) * step + 14), PANEL)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((pad, 20), title, fill=WHITE, font=_font(22))
        legend = sum(small.getlength(text) for text in ("static", "motion")) + small.size * 4.5
        x = width - pad - legend
        _swatches(draw, x, 24, small)
        if any(row.truth is not None for row in rows):
            label = "truth: white outline"
            draw.text((x - small.getlength(label) - 24, 24), label, fill=QUIET, font=small)
    for index, row in enumerate(rows):
        top = head + index * step
        lines = _wrap(_pieces(row.caption), side - 26, large, most=5)
        for number, pieces in enumerate(lines):
            _text(draw, pad, top + number * 26, pieces, large)
        below = top + len(lines) * 26 + 8
        verdict = _verdict(row.caption)
        for number, line in enumerate(_wrap(verdict, side - 26, small, most=3)):
            _text(draw, pad, below + number * 20, line, small)
        left = pad + side
        for column, (frame, image, masks) in enumerate(zip(row.frames, row.images, row.masks, strict=True)):
            truth = row.truth[column] if row.truth is not None else None
            scale = max(1, -(-cell * 2 // source_width))
            dark = np.where(np.any(masks, axis=0)[..., None], image, image // 2)  # so that masks leap to the eye
            picture = draw_masks(dark.astype(np.uint8), masks, truth, scale, first=index, weight=2)
            picture = cv2.resize(picture, (cell, height), interpolation=cv2.INTER_AREA)
            x = left + column * (cell + gap)
            sheet.paste(Pillow.fromarray(picture), (x, top))
            draw.text((x + 6, top + height - 20), f"{row.caption.times[frame]:.1f} s", fill=WHITE, font=small,
                      stroke_width=2, stroke_fill=PANEL)  # fmt: skip
        right = left + columns * (cell + gap) - gap
        _bars(draw, (left, top + height + 6, right, top + height + 6 + track), row.caption.evidence)
        label = "evidence"
        draw.text((left - small.getlength(label) - 12, top + height + 8), label, fill=QUIET, font=small)
    save_png(path, np.asarray(sheet))


def save_png(path: Path, picture: Image) -> None:
    """Write a picture (H, W[, 3]) as PNG. Raises ValueError where it is no picture."""
    import cv2

    done, data = cv2.imencode(".png", picture[..., ::-1] if picture.ndim == 3 else picture)
    if not done:
        raise ValueError(f"{path}: no picture that PNG can hold, {picture.dtype} {picture.shape}")
    path.write_bytes(data.tobytes())
