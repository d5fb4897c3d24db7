"""Pictures for people: masks over frames, and in a panel below the sentence, its static and motion words, and when."""

import contextlib
import heapq
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dshmp.common.errors import UserError
from dshmp.common.files import reason
from dshmp.video.container import open_container
from dshmp.video.fonts import font_for, load_font
from dshmp.video.source import UNKNOWN_RATE, Pixels

if TYPE_CHECKING:
    from dshmp.model.parser import Word

log = logging.getLogger("dshmp")

Masks = NDArray[np.bool_]
Colour = tuple[int, int, int]
Pieces = list[tuple[str, Colour]]  # words, each in its colour

OBJECTS: tuple[Colour, ...] = (  # one per object meant, in turn
    *((255, 82, 119), (58, 214, 176), (167, 119, 255), (255, 209, 71)),
    *((70, 178, 255), (255, 140, 66), (157, 224, 82), (240, 120, 220)),
)
STATIC, MOTION, PLAIN, QUIET = (97, 190, 255), (255, 178, 64), (222, 226, 232), (128, 138, 152)
PANEL, TRACK, WHITE = (18, 21, 27), (38, 44, 54), (255, 255, 255)
LEGEND: Pieces = [("static", STATIC), ("motion", MOTION)]

MP4: dict[str, Any] = {"format": "mp4", "options": {"movflags": "faststart"}}
AUDIO_IN_MP4 = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")
NARROWEST = 240  # pixels that a panel needs for its text; a narrower frame stands in its middle
TICKS = 90_000  # time stamps per second of an overlay video


@dataclass(frozen=True)
class Caption:
    """What is said of one expression over one clip: score, objects found, evidence and time per frame, a last note."""

    expression: str
    words: "Sequence[Word]"
    score: float
    found: int
    evidence: Sequence[float]
    times: Sequence[float]
    note: str = ""


def draw_masks(
    image: Pixels,
    masks: Masks,
    truth: Masks | None = None,
    scale: int = 1,
    first: int = 0,
    weight: int = 1,
    colours: Sequence[Colour] = OBJECTS,
) -> Pixels:
    """Tint and outline `masks` (K, H, W) on a copy of `image` (H, W, 3), `scale` times as large; `truth` (H, W) in
    white. Of the `colours`, which are taken in turn, the `first` comes first; outlines are `weight` times as thick."""
    size = (image.shape[1] * scale, image.shape[0] * scale)
    canvas = np.array(image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))

    def enlarged(mask: Masks) -> Masks:  # with smooth instead of staircase borders
        return np.asarray(cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR) > 127)

    def outline(mask: Masks, colour: Colour, thickness: int) -> None:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, colour, thickness)

    for index, mask in enumerate(map(enlarged, masks), first):
        colour = colours[index % len(colours)]
        canvas[mask] = 0.55 * canvas[mask] + 0.45 * np.array(colour)
        outline(mask, colour, max(1, round(min(size) / 240)) * weight)
    if truth is not None:
        outline(enlarged(truth), WHITE, weight)
    return canvas


def _pieces(caption: Caption) -> Pieces:
    """The expression in pieces between spaces, each in the colour of its word; punctuation keeps to its word. Letters
    that no font has are left out, and a last piece says so."""
    colours: list[Colour] = [PLAIN] * len(caption.expression)
    for word in caption.words:
        colour = {"static": STATIC, "motion": MOTION}.get(word.group or "", PLAIN)
        colours[word.start : word.end] = [colour] * (word.end - word.start)
    found = re.finditer(r"[^ ]+", caption.expression)
    pieces = [(m[0], next((c for c in colours[m.start() : m.end()] if c != PLAIN), PLAIN)) for m in found]
    if lacking := font_for(caption.expression)[1]:
        pieces = [(text.translate(dict.fromkeys(map(ord, lacking))), colour) for text, colour in pieces]
        pieces += [(word, QUIET) for word in ("(letters", "left", "out:", "no", "font", "has", "them)")]
    return [(text, colour) for text, colour in pieces if text]


def _verdict(caption: Caption) -> Pieces:
    note = f" · {caption.note}" if caption.note else ""
    if not caption.found:
        return [("nothing", PLAIN), ("matches", PLAIN), (f"{caption.score:.2f}{note}", QUIET)]
    objects = "1 object" if caption.found == 1 else f"{caption.found} objects"
    return [(f"{caption.score:.2f}", WHITE), (f"{objects}{note}", QUIET)]


def _length(pieces: Pieces, font: Any) -> float:
    return float(font.getlength(" ".join(text for text, _ in pieces)))


def _wrap(pieces: Pieces, width: float, font: Any, most: int) -> list[Pieces]:
    """Lines of at most `width` pixels; after `most` lines the rest is cut with an ellipsis."""
    lines: list[Pieces] = [[]]
    for text, colour in pieces:
        while len(text) > 1 and _length([(text, colour)], font) > width:  # one word wider than the picture
            text = text.rstrip("…")[:-1] + "…"
        if lines[-1] and _length([*lines[-1], (text, colour)], font) > width:
            lines.append([])
        lines[-1].append((text, colour))
    if len(lines) > most:
        text, colour = lines[most - 1][-1]
        lines[most - 1][-1] = (f"{text}…", colour)
    return lines[:most]


def _text(draw: ImageDraw.ImageDraw, x: float, y: float, pieces: Pieces, font: Any) -> None:
    for text, colour in pieces:
        draw.text((x, y), text, fill=colour, font=font)
        x += font.getlength(f"{text} ")


def _bars(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], evidence: Sequence[float]) -> None:
    """Evidence over time: one bar per frame, or per few frames where more would not fit."""
    left, top, right, bottom = box
    draw.rounded_rectangle(box, (bottom - top) // 8, fill=TRACK)
    bars = min(len(evidence), (right - left) // 2)
    edges = np.linspace(left, right, bars + 1).round()
    for (x, end), values in zip(pairwise(edges), np.array_split(np.asarray(evidence), bars), strict=True):
        height = float(values.max()) / max(evidence) * (bottom - top)
        draw.rectangle((x, round(bottom - height), max(x, end - 2), bottom), fill=MOTION)


def enlargement(width: int) -> int:
    """How many times as large a frame of this width is drawn, so that text below it is readable."""
    return min(max(-(-400 // width), 1), 4)


class OverlayPainter:
    """Paints one expression's answer on the frames of a clip, its objects in `colours` in turn. Below the frame,
    enlarged where it is small, stand the sentence, static words blue and motion words amber; the verdict; the evidence
    over time with a playhead. `size` is the picture's (H, W), both even, as 4:2:0 video needs."""

    def __init__(self, height: int, width: int, caption: Caption, colours: Sequence[Colour] = OBJECTS) -> None:
        self.caption, self.colours = caption, colours
        self.scale = enlargement(width)
        full = max(width * self.scale, NARROWEST)
        full += full % 2
        self.left = (full - width * self.scale) // 2
        self.top = height * self.scale
        size = 9 + full // 70
        large, self.font = load_font(size, font_for(caption.expression)[0]), load_font(round(size * 0.78))
        pad, line = round(size * 0.8), round(size * 1.4)
        lines = _wrap(_pieces(caption), full - 2 * pad, large, most=4)
        below = pad // 2 + line * len(lines)
        self.track = (pad, below + 2 * size, full - 5 * size, below + 3 * size)
        rows = self.top + below + 3 * size + pad
        self.size = (rows + rows % 2, full)
        self.panel = Image.new("RGB", (full, self.size[0] - self.top), PANEL)
        draw = ImageDraw.Draw(self.panel)
        for row, pieces in enumerate(lines):
            _text(draw, pad, pad // 2 + row * line, pieces, large)
        verdict = _verdict(caption)
        _text(draw, pad, below + size // 3, LEGEND, self.font)
        _text(draw, full - pad - _length(verdict, self.font), below + size // 3, verdict, self.font)
        _bars(draw, self.track, caption.evidence)

    def __call__(self, image: Pixels, masks: Masks, index: int) -> Pixels:
        """image (H, W, 3) uint8, masks (K, H, W) bool, number of the frame in the clip -> (H', W', 3) uint8."""
        picture = Image.new("RGB", self.size[::-1], PANEL)
        drawn = draw_masks(image, masks, scale=self.scale, colours=self.colours)
        picture.paste(Image.fromarray(drawn), (self.left, 0))
        picture.paste(self.panel, (0, self.top))
        draw = ImageDraw.Draw(picture)
        left, top, right, bottom = self.track
        top, bottom, reach = self.top + top, self.top + bottom, (bottom - top) // 5
        x = left + (right - left) * index // max(len(self.caption.times) - 1, 1)
        draw.rectangle((x, top - reach, x + self.size[1] // 500, bottom + reach), fill=WHITE)
        time = f"{self.caption.times[index]:.1f} s"
        draw.text((right + reach * 3, (top + bottom) / 2), time, fill=QUIET, font=self.font, anchor="lm")
        return np.asarray(picture)


class Coding(NamedTuple):
    """How a video is encoded."""

    codec: str
    pixels: str  # FFmpeg's format of the pixels
    container: str
    options: dict[str, str]  # the codec's


H264 = Coding("libx264", "yuv420p", "mp4", {"preset": "veryfast", "crf": "19"})


@contextlib.contextmanager
def overlay_writer(
    path: Path, height: int, width: int, fps: float | None, coding: Coding = H264
) -> Iterator[Callable[[Pixels, float], None]]:
    """Gives a function that adds a picture (H, W, 3), or (H, W, 4) with alpha, uint8, shown from `time` on (seconds;
    must grow)."""
    start, last = None, -1
    options = {"movflags": "faststart"} if coding.container != "webm" else {}
    with av.open(f"file:{path}", "w", format=coding.container, options=options) as container:
        rate = Fraction(fps or UNKNOWN_RATE).limit_denominator(60_000)
        stream: Any = container.add_stream(coding.codec, rate=rate, options=coding.options)
        stream.codec_context.thread_count = 1  # the same input, the same bytes
        stream.height, stream.width, stream.pix_fmt = height, width, coding.pixels
        stream.codec_context.time_base = Fraction(1, TICKS)
        stream.codec_context.colorspace = 1  # BT.709, what players assume of untagged files too
        stream.codec_context.color_range = 1

        def write(picture: Pixels, time: float) -> None:
            nonlocal start, last
            start = time if start is None else start
            last = max(round((time - start) * TICKS), last + 1)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24" if picture.shape[2] == 3 else "rgba")
            frame = frame.reformat(format=coding.pixels, dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = last, Fraction(1, TICKS)
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode(None))


def add_sound(video: Path, source: Path | None, start: float) -> None:
    """Copy the sound of `source` from `start` (seconds) on into `video`, as long as that is; where MP4 cannot hold it,
    or it is damaged, a warning."""
    if source is None or not source.is_file():
        return
    part = video.with_name(f"with-sound-{video.name}")
    try:
        with open_container(source) as sounding, av.open(f"file:{video}") as silent:
            if not sounding.streams.audio:
                return
            sound, pictures = sounding.streams.audio[0], silent.streams.video[0]
            codec = None if sound.codec_context is None else sound.codec_context.codec.canonical_name
            if codec not in AUDIO_IN_MP4:
                raise UserError(f"MP4 does not take {codec}")
            first = round(start / sound.time_base)
            end = first + round(pictures.duration * pictures.time_base / sound.time_base)
            begun = (p for p in sounding.demux(sound) if p.pts is not None and p.pts >= first)
            packets = heapq.merge(
                ((float(p.dts * p.time_base), p) for p in silent.demux(pictures) if p.size),
                ((float(p.pts * p.time_base) - start, p) for p in takewhile(lambda p: p.pts < end, begun)),
                key=lambda timed: timed[0],
            )
            with av.open(f"file:{part}", "w", **MP4) as output:
                streams = {each.type: output.add_stream_from_template(each) for each in (pictures, sound)}
                for _, packet in packets:
                    if packet.stream.type == "audio":
                        packet.pts = packet.dts = packet.pts - first
                    packet.stream = streams[packet.stream.type]
                    output.mux(packet)
        os.replace(part, video)
    except (av.error.FFmpegError, UserError) as error:
        log.warning("%s: its sound cannot go into the overlay (%s)", source, reason(error))
        part.unlink(missing_ok=True)


def sheet_frames(count: int, columns: int = 8) -> list[int]:
    """Numbers of at most `columns` frames, evenly spread from the first to the last."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(columns, count))})


def contact_sheet(path: Path, images: Pixels, rows: Sequence[tuple[Caption, Masks, Masks]], title: str) -> None:
    """One PNG that shows all answers about a clip (T, H, W, 3) at a glance, time from left to right; `rows` hold per
    expression what is said of it, masks (T, K, H, W) and true mask (T, H, W)."""
    cell, gap, pad, side, track, head = 208, 6, 24, 300, 22, 64
    shown = sheet_frames(len(images))
    height = max(round(cell * images.shape[1] / images.shape[2]), 1)
    scale = max(1, -(-cell * 2 // images.shape[2]))
    step, left = height + track + 34, pad + side
    right = left + len(shown) * (cell + gap) - gap
    small = load_font(14)
    sheet = Image.new("RGB", (right + pad, head + len(rows) * step + 14), PANEL)
    draw = ImageDraw.Draw(sheet)
    draw.text((pad, 20), title, fill=WHITE, font=load_font(22))
    legend: Pieces = [("truth: white outline  ", QUIET), *LEGEND]
    _text(draw, right - _length(legend, small), 24, legend, small)
    for index, (caption, masks, truth) in enumerate(rows):
        top = head + index * step
        large = load_font(19, font_for(caption.expression)[0])
        lines = _wrap(_pieces(caption), side - 26, large, most=5)
        for number, pieces in enumerate(lines):
            _text(draw, pad, top + number * 26, pieces, large)
        _text(draw, pad, top + len(lines) * 26 + 8, _verdict(caption), small)
        for x, t in zip(range(left, right, cell + gap), shown, strict=True):
            dark = np.where(masks[t].any(axis=0)[..., None], images[t], images[t] // 2)  # so that masks leap to the eye
            picture = draw_masks(dark, masks[t], truth[t], scale, first=index, weight=2)
            sheet.paste(Image.fromarray(picture).resize((cell, height), Image.Resampling.BOX), (x, top))
            place, time = (x + 6, top + height - 20), f"{caption.times[t]:.1f} s"
            draw.text(place, time, WHITE, small, stroke_width=2, stroke_fill=PANEL)
        below = top + height + 6
        _bars(draw, (left, below, right, below + track), caption.evidence)
        draw.text((left - 12, below + track / 2), "evidence", fill=QUIET, font=small, anchor="rm")
    save_png(path, np.asarray(sheet))


def save_png(path: Path, picture: Pixels) -> None:
    """Write a picture (H, W[, 3]) as PNG."""
    _, data = cv2.imencode(".png", picture[..., ::-1] if picture.ndim == 3 else picture)
    path.write_bytes(data.tobytes())
