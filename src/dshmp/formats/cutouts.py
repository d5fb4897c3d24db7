"""Cut-outs for editing: what a sentence means with all else transparent, and a clip around each object."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

from dshmp.common.errors import UserError
from dshmp.common.rle import Rle, area, box, decode
from dshmp.formats.answers import Answers
from dshmp.video.overlay import Coding, overlay_writer
from dshmp.video.source import Pixels

log = logging.getLogger("dshmp")

VP9 = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4"}
CUTOUTS = {
    "cutout.mov": Coding("prores_ks", "yuva444p10le", "mov", {"profile": "4444"}),
    "cutout.webm": Coding("libvpx-vp9", "yuva420p", "webm", VP9),
}
MARGIN = 4  # pixels around a mask that keep their colours, though transparent: codecs smear colours over borders
LEAST = 16  # pixels of a clip's side

Window = tuple[int, int, int, int]  # x, y, width, height


def save(answers: Answers, path: Path) -> None:
    """`frames/<frame>.png`, `cutout.mov` (ProRes 4444), `cutout.webm` (VP9), as far as this FFmpeg has the codecs, and
    `object-<track>.mp4` for each object, cropped. Frames are read one by one. Raises UserError where the video has
    fewer than were answered."""
    if answers.video is None:
        raise UserError("cut-outs need the video's pixels; give the video")
    (result,) = answers.results
    (path / "frames").mkdir()
    size = answers.height, answers.width
    windows = {each.id: around(each.object.rle, *size) for each in answers.objects}
    margin = np.ones((2 * MARGIN + 1,) * 2, np.uint8)
    count = 0
    with contextlib.ExitStack() as stack:
        cut = [
            stack.enter_context(overlay_writer(path / name, *size, result.fps, coding))
            for name, coding in CUTOUTS.items()
            if _known(coding.codec)
        ]
        clips = {
            number: stack.enter_context(overlay_writer(path / f"object-{number}.mp4", h, w, result.fps))
            for number, (_, _, w, h) in windows.items()
        }
        for rle, name, frame in zip(result.rle, answers.files, answers.video, strict=False):
            mask = decode([rle])[0].astype(np.uint8)
            picture = np.dstack([frame.image * cv2.dilate(mask, margin)[..., None], 255 * mask])
            Image.fromarray(picture).save(path / "frames" / f"{Path(name).stem}.png")
            for write in cut:
                write(picture, frame.time)
            for number, write in clips.items():
                write(cropped(frame.image, windows[number]), frame.time)
            count += 1
    if count < result.frame_count:
        raise UserError(
            f"{answers.name}: has {count} frames, the answer {result.frame_count}; give the video that was asked about"
        )


def _known(codec: str) -> bool:
    try:
        return bool(av.Codec(codec, "w"))
    except av.codec.codec.UnknownCodecError:
        log.warning("this PyAV cannot write %s; the other cut-outs are written", codec)
        return False


def around(rles: Sequence[Rle], height: int, width: int) -> Window:
    """The window that holds a mask in all frames, with even sides, within the frame where that is large enough."""
    boxes = np.array([box(rle) for rle in rles if area(rle)] or [[0, 0, 1, 1]], int)
    start, end = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
    sides = np.maximum(end - start + (end - start) % 2, LEAST)
    x, y = np.maximum(np.minimum(start, np.array([width, height]) - sides), 0)
    return int(x), int(y), int(sides[0]), int(sides[1])


def cropped(image: Pixels, window: Window) -> Pixels:
    """The part of a frame in a window; beyond the frame, its border goes on."""
    x, y, width, height = window
    part = image[y : y + height, x : x + width]
    return np.pad(part, ((0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0)), mode="edge")
