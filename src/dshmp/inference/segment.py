"""`dshmp segment`: what is not answered yet is asked, and added to the video's folder of answers."""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dshmp.candidates import find_source
from dshmp.common import files as disk
from dshmp.common.errors import UserError
from dshmp.common.options import Kind, Options
from dshmp.common.progress import Progress
from dshmp.formats import check_kinds, write
from dshmp.formats.answers import frame_names
from dshmp.inference.encoded import Asked, AskedVideo, Masks
from dshmp.inference.segmenter import Segmenter
from dshmp.inference.tracked import TrackedVideo
from dshmp.results.answer import EVIDENCE, RESULTS
from dshmp.results.folder import EXPORT, GENERATOR, MASKS, OVERLAY, answer_folder, publish, read_document, video_state
from dshmp.results.result import Result
from dshmp.video.io import open_video
from dshmp.video.source import Frame, Pixels, VideoSource

VIDEO_STATE, TRACKS_STATE = "video_state", "tracks_state"  # among the settings
CANDIDATES = "candidates."  # what settings of the candidates' source begin with
AHEAD = 2  # frames that the model may be ahead of the drawing


def load(options: Options) -> Segmenter:
    """The model that the options name, loaded once for all videos."""
    own = tuple(each for each in options.overrides or () if not each.startswith(CANDIDATES))
    return _load(options.model, options.device, options.precision, own)


_load = functools.cache(Segmenter.from_pretrained)


def segment_to_folder(
    video: Path,
    sentences: Sequence[str],
    out: Path,
    options: Options,
    load: Callable[[Options], Segmenter],
    frames: str | None = None,
    fps: float | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    all_objects: bool = False,
    overlay: bool = True,
    faults: list[str] | None = None,
    tracks: Path | None = None,
    candidates: Kind | None = None,
    still_camera: bool = False,
    exports: Sequence[str] = (),
) -> tuple[Path, list[Result], int]:
    """Add what was not answered with these settings to the folder `out/<name>` (by default as the video's): all or
    none, whatever interrupts it. `load` makes the model, if there is anything to answer.

    Writes `<NN-slug>/masks/<frame>.png` (0 and 255, in the frame's size; called as a folder's frames are, else numbers
    that count from the video's start) and, with `overlay`, `<NN-slug>/overlay.mp4` per sentence, and one `result.json`.
    Answers of before, too, are then written in the formats that `exports` names (`dshmp.formats`), from their run
    lengths, to `<NN-slug>/export`. Raises UserError where a sentence was answered with other settings and is not to be
    overwritten, or cannot be read by the model; with `faults` that is added there, and the others are answered. Returns
    the folder, the answers in the order of the sentences, and how many of these were not answered before.
    """
    exports = check_kinds(exports)
    folder, document = answer_folder(video, out, name)
    own: dict[str, Any] = {"model": options.model, "threshold": options.threshold, "targets": options.targets}
    own |= {"frames": frames, "fps": fps, "precision": options.precision, VIDEO_STATE: video_state(video)}
    own |= {"all_objects": True} if all_objects else {}  # settings of earlier versions are without
    own |= {} if overlay else {"overlay": False}
    own |= {"set": options.overrides} if options.overrides else {}
    own |= {"candidates": candidates} if candidates is not None else {}
    own |= {"tracks": str(tracks.resolve())} if tracks is not None else {}
    own |= {"still_camera": still_camera} if tracks is not None or candidates is not None else {}
    own |= {TRACKS_STATE: video_state(tracks, "**/*")} if tracks is not None else {}
    sentences = list(dict.fromkeys(sentences))
    known = {answer["sentence"]: answer for answer in document.get("results", ())}
    pending = [text for text in sentences if options.overwrite or text not in known or known[text]["settings"] != own]
    for text in () if options.overwrite else known.keys() & set(pending):
        before = known[text]["settings"]
        key = next(key for key in own | before if before.get(key) != own.get(key))
        changed = {VIDEO_STATE: "video", TRACKS_STATE: "tracks"}.get(key)
        how = f"before the {changed} changed" if changed else f"with {key} {before.get(key)}, not {own.get(key)}"
        where = folder / known[text]["folder"]
        fault = f"{where}: {text!r} was answered {how}"
        raise UserError(f"{fault}; replace the answer with --overwrite, or choose another --out")
    if pending:
        load(options)  # what is wrong with the model is no fault of a sentence
    for text in tuple(pending):
        try:
            load(options).tokenizer.check(text)
        except UserError as error:
            if faults is None:
                raise UserError(f"{video}: {error}") from None
            faults.append(f"{video}: {error}")
            pending.remove(text)
            sentences.remove(text)
    if not sentences:
        return folder, [], 0
    chosen = [each.removeprefix(CANDIDATES) for each in options.overrides or () if each.startswith(CANDIDATES)]
    if chosen and candidates is None:
        raise UserError(f"{CANDIDATES}{chosen[0]}: needs --candidates")
    find = None if candidates is None else find_source(candidates, chosen)
    if pending:
        source = open_video(video, frames, fps)
        with disk.scratch(folder if folder.is_dir() else folder.parent) as work, disk.writing(folder, work):
            asked = Asked(
                threshold=options.threshold,
                targets=options.targets,
                progress=progress,
                all_objects=all_objects,
                tracks=tracks,
                candidates=find,
                still_camera=still_camera,
            )
            with load(options).asking(source, pending, **asked) as clip:
                found = _write(work, clip, overlay)
            fact: dict[str, Any] = {"folder": "", "settings": own, "first_frame": source.start}
            if names := frame_names(source):
                fact["frames"] = names[source.start : source.start + len(found[0].times)]
            fresh: dict[str, Any] = {"generator": GENERATOR, "video": str(video.resolve()), "height": source.height}
            fresh |= {"width": source.width, "evidence": EVIDENCE, "results": []}
            told = zip(pending, found, strict=True)
            publish(work, folder, fresh, [{"sentence": text} | fact | each.to_json() for text, each in told])
        document = read_document(folder) or {}
    try:
        size = document["height"], document["width"]
        known = {answer["sentence"]: answer for answer in document["results"]}
        results = [Result.from_json(known[text], *size) for text in sentences]
    except (ValueError, TypeError, LookupError) as error:
        fault = f"an answer of before is damaged ({disk.reason(error)})"
        raise UserError(f"{folder / RESULTS}: {fault}; replace it with --overwrite") from None
    if exports:
        asked_for = dict(zip(sentences, results, strict=True))
        _export(folder, document, asked_for, exports, functools.partial(open_video, video, frames, fps))
    return folder, results, len(pending)


def _export(
    folder: Path,
    document: dict[str, Any],
    results: Mapping[str, Result],
    exports: Sequence[str],
    opened: Callable[[], VideoSource],
) -> None:
    """Write answers of a folder, by their sentences, in these formats, where they are not there in them yet."""
    pending = []
    for answer in document["results"]:
        there = folder / answer["folder"] / EXPORT
        known = {kind for kind, names in answer.get("exports", {}).items() if all((there / n).is_file() for n in names)}
        if answer["sentence"] in results and (kinds := [kind for kind in exports if kind not in known]):
            pending.append((answer, kinds))
    if not pending:
        return
    source = opened()
    with disk.scratch(folder) as work, disk.writing(folder, work):
        answers = []
        for place, (answer, kinds) in enumerate(pending):
            out = work / str(place) / EXPORT
            result = [results[answer["sentence"]]]
            written = {kind: write([kind], result, source, out) for kind in kinds}
            names = {kind: [file.relative_to(out).as_posix() for file in files] for kind, files in written.items()}
            answers.append(answer | {"exports": names})
        publish(work, folder, document, answers)


def _write(work: Path, clip: AskedVideo | TrackedVideo, overlay: bool) -> list[Result]:
    """The second pass: masks and overlay of every answer, in folders 0, 1 ... They are drawn and encoded in a thread,
    beside the model."""
    from dshmp.video.overlay import Caption, OverlayPainter, add_sound, overlay_writer, save_png

    source, names = clip.source, frame_names(clip.source)
    overlays: list[tuple[OverlayPainter, Callable[[Pixels, float], None]]] = []

    def draw(index: int, frame: Frame | None, masks: list[Masks]) -> None:
        number = source.start + index
        name = f"{names[number] if names else f'{number:05d}'}.png"
        for place, (answer, mask) in enumerate(zip(clip.answers, masks, strict=True)):
            save_png(work / str(place) / MASKS / name, answer.add(mask).astype(np.uint8) * 255)
            if overlay:
                assert frame is not None
                painter, write = overlays[place]
                write(painter(frame.image, mask, index), frame.time)

    with contextlib.ExitStack() as stack:
        for place, answer in enumerate(clip.answers):
            (work / str(place) / MASKS).mkdir(parents=True)
            if overlay:
                query, count = answer.query, len(answer.chosen)
                caption = Caption(query.expression, query.words, answer.best, count, answer.mean_evidence, clip.times)
                painter = OverlayPainter(source.height, source.width, caption)
                write = stack.enter_context(overlay_writer(work / str(place) / OVERLAY, *painter.size, clip.fps))
                overlays.append((painter, write))
        drawn: deque[Future[None]] = deque()
        thread = stack.enter_context(ThreadPoolExecutor(1))
        for index, (frame, masks) in enumerate(clip.frames(pixels=overlay)):
            drawn.append(thread.submit(draw, index, frame, masks))
            if len(drawn) > AHEAD:
                drawn.popleft().result()
        for each in drawn:
            each.result()
    for place in range(len(clip.answers)) if overlay else ():
        add_sound(work / str(place) / OVERLAY, source.path, source.begin + clip.times[0])
    return [clip.result(answer) for answer in clip.answers]
