"""A result for people to look at: HTML for notebooks, a figure, an overlay video."""

import base64
import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from dshmp.common.errors import UserError
from dshmp.common.files import owned_file
from dshmp.common.progress import Progress
from dshmp.common.rle import decode
from dshmp.results.answer import Answer, Origin
from dshmp.video.io import Video, open_video
from dshmp.video.overlay import (
    MOTION,
    OBJECTS,
    PANEL,
    PLAIN,
    QUIET,
    STATIC,
    TRACK,
    Caption,
    Colour,
    Masks,
    OverlayPainter,
    add_sound,
    draw_masks,
    overlay_writer,
    sheet_frames,
)
from dshmp.video.source import Pixels, VideoSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Paint = Callable[[Pixels, Masks, int], Pixels]  # image, masks (K, H, W), number of the frame -> a picture
CELL = 150  # pixels of a frame's long side in a strip
FRAMES = 8  # of a strip
BARS = 160  # of a timeline, at most


def pixels(result: Answer, video: Video | None) -> VideoSource | None:
    """The video that a result is about: what is given, or what is remembered; None where nothing is. Raises UserError
    where it cannot be read, or is another one."""
    known: Origin | None = result.origin
    if video is not None:
        source = open_video(video, None if known is None else (known.start, known.stop))
    elif known is None or (opened := known.open()) is None:
        return None
    else:
        source = opened
    size, count = (source.height, source.width), result.frame_count
    if size != (result.height, result.width) or (source.times is not None and source.count != count):
        told = f"{source.count} frames of {source.width}x{source.height}"
        asked = f"{count} of {result.width}x{result.height}"
        raise UserError(f"{source.name}: {told}, but the result is about {asked}; give the video that was asked about")
    return source


def _needed(result: Answer, video: Video | None) -> VideoSource:
    if (source := pixels(result, video)) is None:
        raise UserError("the result does not know its video any more; give it, too")
    return source


def masks_at(result: Answer, t: int) -> NDArray[np.bool_]:
    """(K, H, W): of the objects that are meant, in one frame."""
    found = [each.rle[t] for each in result.objects]
    return decode(found) if found else np.zeros((0, result.height, result.width), bool)


def strip(result: Answer, source: VideoSource | None, most: int = FRAMES) -> Iterator[tuple[int, Pixels]]:
    """Numbers of a few frames, and small pictures of them: what is meant in its colours, the rest darkened; masks alone
    where there is no video."""
    scale = CELL / max(result.height, result.width)
    size = max(round(result.width * scale), 1), max(round(result.height * scale), 1)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    for t in sheet_frames(result.frame_count, most):
        masks = masks_at(result, t)
        if source is None:
            image = np.full((result.height, result.width, 3), TRACK, np.uint8)
        else:
            image = next(iter(replace(source, start=source.start + t))).image
            image = np.where(np.any(masks, 0)[..., None], image, image // 2)
        smaller = [cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 127 for mask in masks]
        yield t, draw_masks(cv2.resize(image, size, interpolation=way), np.asarray(smaller, bool))


def to_html(result: Answer, video: Video | None = None) -> str:
    """A card of its own, which loads nothing: the sentence, static words blue and motion words orange; the verdict; a
    few frames; the evidence over time. Where the video cannot be read any more the masks are shown alone."""
    try:
        source = pixels(result, video)
        frames = list(strip(result, source))
    except UserError:
        if video is not None:
            raise
        frames = list(strip(result, None))
    unknown = f" · not understood: {', '.join(result.unknown)}" if result.unknown else ""
    shown = "".join(_cell(picture, result.times[t]) for t, picture in frames)
    quiet = f"color:{css(QUIET)}"
    legend = f'<span style="color:{css(STATIC)}">static</span> <span style="color:{css(MOTION)}">motion</span>'
    return (
        f'<div style="background:{css(PANEL)};color:{css(PLAIN)};padding:12px;border-radius:8px;max-width:1280px;'
        'font:14px/1.5 system-ui,sans-serif">'
        f'<div style="font-size:17px">{_sentence(result)}</div>'
        f'<div style="{quiet}"><b style="color:{css(PLAIN)}">{result.score:.2f}</b> '
        f"{html.escape(result.verdict + unknown)} · {legend}</div>"
        f'<div style="display:flex;flex-wrap:wrap;gap:4px;margin:8px 0">{shown}</div>'
        f'<div style="{quiet};font-size:12px">evidence, when the model saw it</div>{_timeline(result)}</div>'
    )


def css(colour: Sequence[int]) -> str:
    return f"#{bytes(colour).hex()}"


def _sentence(result: Answer) -> str:
    """The sentence as HTML, a span for each word that is static or motion."""
    text, parts, end = result.expression, [], 0
    for word in result.words:
        if word.group is not None and word.start >= end:
            colour = css(STATIC if word.group == "static" else MOTION)
            parts += [html.escape(text[end : word.start])]
            parts += [f'<span style="color:{colour}">{html.escape(text[word.start : word.end])}</span>']
            end = word.end
    return "".join([*parts, html.escape(text[end:])])


def _cell(picture: Pixels, time: float) -> str:
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    coded = base64.b64encode(data.tobytes()).decode()
    return (
        f'<figure style="margin:0"><img alt="" src="data:image/jpeg;base64,{coded}" style="display:block">'
        f'<figcaption style="color:{css(QUIET)};font-size:11px">{time:.1f} s</figcaption></figure>'
    )


def _timeline(result: Answer) -> str:
    """Evidence over time as SVG: a bar per frame, or per few frames where there are many."""
    most = max(result.evidence, default=0.0) or 1.0
    count = max(min(result.frame_count, BARS), 1)
    bars = [
        f'<rect x="{x}" y="{40 - 40 * values.max() / most:.1f}" width=".8" height="{40 * values.max() / most:.1f}"/>'
        for x, values in enumerate(np.array_split(np.asarray(result.evidence), count))
        if values.size
    ]
    style = f"width:100%;height:40px;background:{css(TRACK)};border-radius:4px"
    return (
        f'<svg viewBox="0 0 {count} 40" preserveAspectRatio="none" style="{style}" fill="{css(MOTION)}">'
        f"{''.join(bars)}</svg>"
    )


def plot(result: Answer, video: Video | None = None) -> "Figure":
    """A figure of matplotlib: a few frames above, the evidence over time below. Raises UserError where matplotlib is
    not installed, or the video cannot be read or is another one."""
    try:
        from matplotlib import pyplot  # shows figures in notebooks
    except ImportError:
        raise UserError("matplotlib: is not installed, but a figure needs it; pip install 'dshmp[plots]'") from None

    frames = list(strip(result, pixels(result, video)))
    figure: Figure = pyplot.figure(figsize=(9, 3), layout="constrained")
    pyplot.close(figure)  # or it would be shown, and held, beside what is returned
    grid = figure.add_gridspec(2, len(frames), height_ratios=(2, 1))
    for column, (t, picture) in enumerate(frames):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(picture)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{result.times[t]:.1f} s", fontsize=8)
    axes = figure.add_subplot(grid[1, :])
    axes.fill_between(result.times, result.evidence, color=np.array(MOTION) / 255, step="mid")
    axes.set(xlabel="seconds", ylabel="evidence", ylim=(0, None))
    title = f"{result.expression}\n{result.score:.2f}, {result.verdict}".replace("$", r"\$")
    figure.suptitle(title, fontsize=10)
    return figure


def write_video(result: Answer, path: Path, video: Video | None = None) -> Path:
    """The overlay of `dshmp segment`, as MP4. Raises UserError where `path` is there and not as it was written here, or
    as `pixels` does."""
    source = _needed(result, video)
    with owned_file(path.parent, path.name) as part:
        draw_overlay(part, source, result)
    return path


def draw_overlay(path: Path, source: VideoSource, result: Answer, colours: Sequence[Colour] = OBJECTS) -> None:
    """Masks over the video, below it the sentence and the evidence."""
    count = len(result.objects)
    caption = Caption(result.expression, result.words, result.score, count, result.evidence, result.times)
    painter = OverlayPainter(result.height, result.width, caption, colours)
    draw(path, source, result, painter, painter.size)


def draw(
    path: Path,
    source: VideoSource,
    result: Answer,
    paint: Paint,
    size: tuple[int, int],
    progress: Progress = lambda phase, done, total: None,
) -> None:
    """An MP4 of what `paint` makes of every frame, `size` high and wide, with the sound where there is one. Raises
    UserError where the source is not the result's video."""
    count = 0
    with overlay_writer(path, *size, result.fps) as write:
        for index, frame in enumerate(source):
            if (count := index + 1) > result.frame_count:
                break
            write(paint(frame.image, masks_at(result, index), index), result.times[index])
            progress("drawing", count, result.frame_count)
    if count != result.frame_count:
        fault = f"has {count if count < result.frame_count else 'more'} frames, the result is about"
        raise UserError(f"{source.name}: {fault} {result.frame_count}; give the video that was asked about")
    add_sound(path, source.path, source.begin + result.times[0])
