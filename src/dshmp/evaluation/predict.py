"""`dshmp predict`: every expression of a split answered, laid out as scoring and the benchmarks' servers read it.

    mevis          <video>/<expression>/<frame>.png               0 and 255, grey
    youtube_vos    Annotations/<video>/<expression>/<frame>.png   the same
    davis          anno_<annotator>/<video>/<frame>.png           object ids, palette
    coco           predictions.json                               COCO's results, all video tokens of every sample

and predict.json, which says how it was done. A run that was stopped goes on where it was: what stands under its final
name is whole, and is looked at before it is skipped. Several processes (accelerate, torchrun) share the videos. The
result is the same byte by byte, however often a run was stopped and however many processes there were.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dshmp import __version__
from dshmp.config import to_dict
from dshmp.data.base import Expression, Split, by_video, checked_name, frame_size, read_json, times_shown
from dshmp.data.masks import rle_fault, save_palette_png
from dshmp.data.registry import dataset
from dshmp.errors import UserError
from dshmp.evaluation.coco import FILE, frame_list, image_id
from dshmp.evaluation.predictions import TOPS, is_whole_png
from dshmp.evaluation.submission import folders, packed, zip_beside
from dshmp.files import (
    atomic_write,
    destination,
    digest,
    is_vacant,
    locked,
    move_into,
    output_folder,
    reason,
    regular,
    save_json,
    scratch,
)
from dshmp.predictor import Precision, Progress, Segmenter, Targets
from dshmp.result import Rle, encode
from dshmp.video.io import UNKNOWN_RATE, Frame, Pixels, VideoSource
from dshmp.video.overlay import save_png

if TYPE_CHECKING:
    from accelerate import PartialState

    from dshmp.model.dshmp import DsHmp

log = logging.getLogger(__name__)
T = TypeVar("T")

FACTS = "predict.json"
PARTS = "parts"
"""Detections per video, until all are there."""
ASKED = 64
"""Expressions that are asked at once: what is kept of a video grows with them."""
BACKGROUND = 0.1
"""Probability of the background where DAVIS's objects are merged."""
KEPT = 2**30
"""Bytes of decoded frames that are kept where a video is asked about more than once."""
GREY, INDICES = 0, 3
"""Colour types of PNG."""


@dataclass(frozen=True)
class Piece:
    """What is written wholly or not at all: a folder of masks, or a file of detections."""

    path: str
    """Below the folder of predictions."""
    video: str
    items: tuple[Expression, ...]
    """The expressions that it answers, each in one piece only; in DAVIS one annotator's, by object."""


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    videos: int
    expressions: int
    skipped: int
    """Expressions that were answered before."""
    frame_list: str | None
    """Where the frames are named, for a data set that leaves it open."""
    zip: Path | None


def run(
    name: str,
    root: Path,
    split_name: str,
    out: Path,
    *,
    model: str = "default",
    device: str = "auto",
    precision: Precision = "auto",
    threshold: float | None = None,
    targets: Targets | None = None,
    overwrite: bool = False,
    zip_path: Path | None = None,
    zipped: bool = True,
    progress: Progress | None = None,
) -> Summary | None:
    """Answer all expressions of a split; None in all processes but the first.

    Args:
        threshold: as for `Segmenter`.
        targets: by default the data set's. COCO's layout takes all video tokens, so neither this nor a threshold.
        overwrite: begin anew: the predictions in `out`, which must be of this split, are removed.
        zip_path: of the zip file for the server; `<out>.zip` by default.
        zipped: whether one is written where the data set has a server.

    Raises:
        UserError: wrong arguments; `out` or the zip file is something else's; the disk is full; or some videos
            failed, and the others are done.
    """
    data = dataset(name)
    if data.layout == "coco" and (threshold is not None or targets is not None):
        raise UserError(
            f"{name}: every candidate is written with its score; leave out --threshold, --single and --many"
        )
    if data.layout not in TOPS and zip_path is not None:
        raise UserError(f"{name}: no server takes a zip file of this data set; leave out --zip")
    out = output_folder(out)
    split = data.open(Path(root), split_name)
    plan = pieces(split, data.layout)
    archive = destination(zip_path or zip_beside(out)) if zipped and data.layout in TOPS else None
    with _processes(device) as state, contextlib.ExitStack() as stack:
        own = state.device.type == "cuda" and device == "auto"  # one GPU for each process
        segmenter = Segmenter.from_pretrained(model, str(state.device) if own else device, precision)
        settings: dict[str, Any] = {"dataset": name, "split": split_name, "model": model}
        limit, kind = segmenter.readout(threshold, targets or data.targets)
        if data.layout == "coco":
            limit, kind = 0.0, "many"
        else:
            settings |= {"threshold": limit, "targets": kind}
        settings |= _model_facts(segmenter) | _split_facts(split)
        predictor = Predictor(segmenter, split, data.layout, out, limit, kind)

        def begin() -> set[str]:
            stack.enter_context(locked(out, wait=False))
            before = _facts(out)
            ours = archive is None or (archive.is_file() and digest(archive) == before.get("zip"))
            if archive is not None and os.path.lexists(archive) and not ours:
                raise UserError(
                    f"{archive}: is there, and not of the predictions in {out}; move it away, or name another --zip"
                )
            if "zip" in before:
                settings["zip"] = before["zip"]
            _check_same(out, before, settings, overwrite)
            save_json(out / FACTS, {**settings, "complete": False})
            if overwrite:
                _forget(out, split, data.layout, plan)
            found = whole(out, split, data.layout, plan)
            if archive is not None and len(found) < len(plan):
                archive.unlink(missing_ok=True)  # no older one is taken for this run's
            return found

        done = _from_first(state, begin)
        source, published = frame_list(split)
        if state.is_main_process and not published:
            log.warning("the frames are %s: these are not the frames of published figures", source)
        pending = [piece for piece in plan if piece.path not in done]
        skipped = sum(len(piece.items) for piece in plan if piece.path in done)
        with _room(out):
            failures = _work(predictor, pending, state, f"videos ({skipped:,} expressions skipped)", progress)
        if not state.is_main_process:
            return None
        count = len({piece.video for piece in plan})
        for failure in failures:
            log.error(failure)
        if failures:
            raise UserError(f"{len(failures)} of {count} videos failed, see above; the others are done")
        with _room(out):
            if data.layout == "coco":
                _merge(out, plan)
            if archive is None:
                save_json(out / FACTS, {**settings, "complete": True})
            else:
                with packed(out, split, data.layout, archive) as made:  # known as ours before it has its name
                    save_json(out / FACTS, {**settings, "zip": digest(made), "complete": True})
        return Summary(count, len(split.expressions), skipped, source, archive)


# What is to be done -----------------------------------------------------------------------------------------------


def pieces(split: Split, layout: str) -> list[Piece]:
    """All that is to be written, video by video. Raises UserError where a name cannot be that of a file."""
    for video in split.videos.values():
        for what, name in (("video", video.name), *(("frame", frame) for frame in video.frames)):
            checked_name(split.folder, what, name)
    for item in split.expressions:
        checked_name(split.folder, "expression", item.id)
    if layout in TOPS:
        wanted = zip(folders(split, layout), split.expressions, strict=True)
        return [Piece(folder.path, item.video, (item,)) for folder, item in wanted]
    if layout == "coco":
        return [Piece(f"{PARTS}/{video}.json", video, tuple(items)) for video, items in by_video(split).items()]
    found: defaultdict[tuple[str, int], list[Expression]] = defaultdict(list)
    for item in split.expressions:
        found[item.video, item.extra["annotator"]].append(item)
    return [
        Piece(f"anno_{annotator}/{video}", video, tuple(sorted(items, key=lambda item: item.objects)))
        for (video, annotator), items in found.items()
    ]


def deal(plan: Sequence[Piece], split: Split, ranks: int) -> list[list[str]]:
    """The videos of each of `ranks` processes, so that all have about the same work: frames times expressions."""
    work: defaultdict[str, int] = defaultdict(int)
    for piece in plan:
        length = len(split.videos[piece.video].frames)
        work[piece.video] += sum(length if item.shown is None else len(item.shown) for item in piece.items)
    order = list(work)
    dealt: list[list[str]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for video in sorted(order, key=lambda video: -work[video]):
        rank = load.index(min(load))
        dealt[rank].append(video)
        load[rank] += work[video]
    return [sorted(videos, key=order.index) for videos in dealt]


# What is done -----------------------------------------------------------------------------------------------------


def whole(out: Path, split: Split, layout: str, plan: Sequence[Piece]) -> set[str]:
    """Paths of the pieces that are there, nothing of them missing or damaged."""
    if layout == "coco":
        if _are_detections(out / FILE, [item for piece in plan for item in piece.items]):
            return {piece.path for piece in plan}
        return {piece.path for piece in plan if _are_detections(out / piece.path, piece.items)}
    colour = INDICES if layout == "davis" else GREY
    sizes: dict[str, tuple[int, int] | None] = {}
    found = set()
    for piece in plan:
        if (out / piece.path).is_dir():
            if piece.video not in sizes:
                sizes[piece.video] = _size(split, piece.video)
            frames = {f"{frame}.png" for frame in split.videos[piece.video].frames}
            if _are_masks(out / piece.path, frames, sizes[piece.video], colour):
                found.add(piece.path)
    return found


def _size(split: Split, video: str) -> tuple[int, int] | None:
    """(H, W) of a video's frames; None where they cannot be read, which is told once it is answered anew."""
    try:
        return frame_size(split, video)
    except UserError:
        return None


def _are_masks(folder: Path, frames: set[str], size: tuple[int, int] | None, colour: int) -> bool:
    if size is None:
        return False
    try:
        return all(is_png(_content(folder / name), size, colour) for name in frames)
    except OSError:
        return False


def _content(path: Path) -> bytes:
    with open(path, "rb", opener=regular) as file:
        return file.read()


def is_png(content: bytes, size: tuple[int, int], colour: int) -> bool:
    """Whether this is a whole PNG of 8 bits, `size` (H, W) and this colour type."""
    header = b"IHDR" + size[1].to_bytes(4) + size[0].to_bytes(4) + bytes([8, colour])
    return content[12:26] == header and is_whole_png(content)


def _are_detections(path: Path, items: Sequence[Expression]) -> bool:
    """Whether this is a list of COCO's results with some for each of these samples, and for no other."""
    try:
        entries = json.loads(_content(path))
        samples = {entry["image_id"] for entry in entries}
        faults = [rle_fault(entry["segmentation"], tuple(entry["segmentation"]["size"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return samples == {image_id(item) for item in items if says(item)} and not any(faults)


# Doing it ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """Answers videos, and writes the answers: those of a video get their names when all are there."""

    segmenter: Segmenter
    split: Split
    layout: str
    out: Path
    threshold: float
    targets: Targets

    def __call__(self, plan: Sequence[Piece]) -> None:
        """Write these pieces of one video, whose frames are decoded once.

        Raises UserError where a frame cannot be read, or an expression cannot be answered.
        """
        video = plan[0].video
        for item in (item for piece in plan for item in piece.items if not says(item)):
            log.warning("%s, expression %s: says nothing, so nothing is the answer", video, item.id)
        with scratch(self.out) as work:
            if self.layout == "coco":
                for piece in plan:
                    _write_list(work / piece.path, self._detect(video, piece.items))
            else:

                def read(position: int) -> Pixels:
                    return self.split.frames(video, [position])[0]

                groups = grouped(plan, self._most)
                keep = read if len(groups) == 1 else _keeping(read)
                for group in groups:
                    self._paint(video, group, keep, work)
            for piece in plan:
                path = self.out / piece.path
                path.parent.mkdir(parents=True, exist_ok=True)
                move_into(work / piece.path, path) if self.layout != "coco" else os.replace(work / piece.path, path)

    @property
    def _most(self) -> int:
        """Expressions that are asked at once; where pixel features read the words, only the decoding is shared."""
        return 1 if self.segmenter.model.features_read_text else ASKED

    def _text(self, item: Expression) -> str:
        """What the model is asked: a sentence that is too long for it is cut."""
        text = fitting(self.segmenter, item.text)
        if len(text) < len(item.text):
            log.warning("%s, expression %s: is too long, asked as far as %r", item.video, item.id, text[-40:])
        return text

    def _paint(self, video: str, plan: Sequence[Piece], read: Callable[[int], Pixels], work: Path) -> None:
        """A PNG per piece and frame, below `work`."""
        names = self.split.videos[video].frames
        source = _source(video, range(len(names)), read)
        davis = self.layout == "davis"
        asked = {piece.path: [item for item in piece.items if says(item)] for piece in plan}
        texts = [self._text(item) for items in asked.values() for item in items]
        size = (source.height, source.width)
        with contextlib.ExitStack() as stack:
            drawn: Iterable[Sequence[Any]] = ([] for _ in names)
            if texts:
                clip = stack.enter_context(self.segmenter.encode(source, texts, self.threshold, self.targets))
                drawn = (answers for _, answers in clip.decode_masks(probability if davis else _cover, False))
            for name, answers in zip(names, drawn, strict=True):
                rest = iter(answers)
                for piece in plan:
                    path = work / piece.path / f"{name}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    items = asked[piece.path]
                    own = list(islice(rest, len(items)))
                    if davis:
                        save_palette_png(path, merge_objects(own, [item.objects[0] for item in items], size))
                    else:
                        save_png(path, own[0] if own else np.zeros(size, np.uint8))

    def _detect(self, video: str, items: Sequence[Expression]) -> list[dict[str, Any]]:
        """COCO's results of a video's samples: all video tokens, in the frame that is scored."""
        every = tuple(range(len(self.split.videos[video].frames)))
        windows: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            if says(item):
                windows[every if item.shown is None else item.shown].append(index)
        groups = [
            (shown, found[start : start + self._most])
            for shown, found in windows.items()
            for start in range(0, len(found), self._most)
        ]
        positions = sorted(set().union(*windows))
        frames = dict(zip(positions, self.split.frames(video, positions), strict=True))
        results: dict[int, list[dict[str, Any]]] = {}
        for shown, group in groups:
            source = _source(video, shown, frames.__getitem__)
            places = [_place(shown, 0 if (scored := items[i].scored) is None else scored[0]) for i in group]
            rles: list[list[Rle]] = [[] for _ in group]
            texts = [self._text(items[i]) for i in group]
            with self.segmenter.encode(source, texts, self.threshold, self.targets) as clip:
                for t, (_, masks) in enumerate(clip.frames(False)):
                    for e in (e for e, place in enumerate(places) if place == t):
                        rles[e] = [encode(mask) for mask in masks[e]]
                for i, answer, found in zip(group, clip.answers, rles, strict=True):
                    results[i] = [
                        {"image_id": image_id(items[i]), "category_id": 1, "segmentation": rle, "score": score}
                        for score, rle in zip(answer.final_scores, found, strict=True)
                    ]
        return [entry for index in range(len(items)) for entry in results.get(index, ())]


def says(item: Expression) -> bool:
    """Whether there is anything to ask; nothing is the answer to nothing."""
    return bool(item.text.strip())


def fitting(segmenter: Segmenter, text: str) -> str:
    """The beginning of a sentence, as much as the model's language encoder takes."""
    tokenizer, config = segmenter.tokenizer.tokenizer, segmenter.config.language
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no character

    def count(text: str) -> int:
        return len(tokenizer(text.lower() if config.normalise else text, verbose=False)["input_ids"])

    if config.overlong == "error" and count(text) > config.max_tokens:
        offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        last = config.max_tokens - 2  # the sentence's end is a token too
        while last and count(text) > config.max_tokens:
            text = text[: offsets[last][1]].rstrip()
            last -= 1
    return text


def grouped(plan: Sequence[Piece], most: int) -> list[list[Piece]]:
    """The pieces in order, in groups of no more than `most` expressions, or of one piece."""
    groups: list[list[Piece]] = []
    room = 0
    for piece in plan:
        if not groups or len(piece.items) > room:
            groups.append([])
            room = most
        groups[-1].append(piece)
        room -= len(piece.items)
    return groups


def _source(video: str, positions: Sequence[int], read: Callable[[int], Pixels]) -> VideoSource:
    """The frames at these positions, decoded whenever they are iterated over."""
    if not positions:
        raise UserError("has no frames")
    first = read(positions[0])
    height, width = first.shape[:2]

    def frames() -> Iterator[Frame]:
        for index, position in enumerate(positions):
            image = read(position) if index else first
            if image.shape[:2] != (height, width):
                size, should = f"{image.shape[1]}x{image.shape[0]}", f"{width}x{height}"
                raise UserError(f"its frame {position} is {size}, the first one {should}; all must be of one size")
            yield Frame(image, index / UNKNOWN_RATE)

    return VideoSource(video, None, height, width, None, len(positions), frames, positions=times_shown(positions))


def _keeping(read: Callable[[int], Pixels]) -> Callable[[int], Pixels]:
    """The same frames, which are kept for the next time as far as KEPT goes."""
    kept: dict[int, Pixels] = {}

    def keep(position: int) -> Pixels:
        if position in kept:
            return kept[position]
        image = read(position)
        if (len(kept) + 1) * image.nbytes <= KEPT:
            kept[position] = image
        return image

    return keep


def _place(shown: Sequence[int], scored: int) -> int:
    """Where in a window the scored frame is: of several times, the one nearest to the middle, as windows are centred
    on it and repeat the ends of their video."""
    return min((t for t, position in enumerate(shown) if position == scored), key=lambda t: abs(t - len(shown) // 2))


def _cover(logits: Tensor) -> Pixels:
    """Mask logits (K, H, W) -> (H, W) uint8, 255 where any of the masks is."""
    covered: Pixels = (logits > 0).any(0).cpu().numpy() * np.uint8(255)
    return covered


def probability(logits: Tensor) -> Tensor:
    """Mask logits (K, H, W) -> (H, W), the greatest of the masks' probabilities; 0 where there is no mask."""
    return logits.sigmoid().amax(0) if len(logits) else logits.new_zeros(logits.shape[1:])


def merge_objects(probabilities: Sequence[Tensor], ids: Sequence[int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Merge the masks of objects as in ReferFormer's evaluation of DAVIS: probabilities below 0.5 become 0, background
    has 0.1, and the greatest one wins; of equals, the first.

    Args:
        probabilities: (H, W) per object.
        ids: of the objects.
        size: (H, W), for there may be no object.

    Returns:
        (H, W) uint8 object ids, 0 is background.
    """
    known = [item.float().cpu() for item in probabilities]
    stack = torch.stack([torch.full(size, BACKGROUND), *(item * (item >= 0.5) for item in known)])
    indices: NDArray[np.uint8] = np.array([0, *ids], np.uint8)[stack.argmax(0).numpy()]
    return indices


def _write_list(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """A JSON list, one entry a line, without ever holding it all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write("[")
        for index, entry in enumerate(entries):
            file.write(",\n" if index else "\n")
            json.dump(entry, file, separators=(",", ":"))
        file.write("\n]\n")


def _merge(out: Path, plan: Sequence[Piece]) -> None:
    """All detections in one file, video by video; nothing to do where it was done before."""
    if all((out / piece.path).is_file() for piece in plan):
        with atomic_write(out / FILE) as part:
            _write_list(part, (entry for piece in plan for entry in json.loads((out / piece.path).read_bytes())))
    _remove_pieces(out, (out / piece.path for piece in plan))


def _forget(out: Path, split: Split, layout: str, plan: Sequence[Piece]) -> None:
    """Remove what predictions of this split write; what else lies in the folder stays."""
    if layout == "coco":
        _remove_pieces(out, [out / FILE, *(out / piece.path for piece in plan)])
        return
    for piece in plan:
        names = split.videos[piece.video].frames
        _remove_pieces(out, (out / piece.path / f"{name}.png" for name in names))


def _remove_pieces(out: Path, files: Iterable[Path]) -> None:
    """Remove files, and the folders up to `out` that nothing is left in."""
    folders: set[Path] = set()
    for file in files:
        file.unlink(missing_ok=True)
        folders |= {folder for folder in file.parents if out in folder.parents}
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()


# How it is done ---------------------------------------------------------------------------------------------------


def _model_facts(segmenter: Segmenter) -> dict[str, Any]:
    size, card = segmenter.config.input, segmenter.card
    return {
        "weights": fingerprint(segmenter.model),
        "pretraining": card.source,
        "training": card.data,
        "seed": card.recipe.get("seed"),
        "resolution": f"short side {size.short_side}, long side at most {size.long_side}",
        "precision": str(segmenter.precision).removeprefix("torch."),
        "code": __version__,
    }


def _split_facts(split: Split) -> dict[str, Any]:
    asked = hashlib.sha256()
    frames = 0
    for item in split.expressions:
        shown = split.videos[item.video].frames if item.shown is None else item.shown
        frames += len(shown)
        asked.update(json.dumps([item.video, item.id, item.text, shown, item.scored]).encode())
    return {
        "frame_list": frame_list(split)[0],
        "expressions": asked.hexdigest(),
        "counts": {
            "videos": len({item.video for item in split.expressions}),
            "expressions": len(split.expressions),
            "expression frames": frames,
        },
    }


def fingerprint(model: "DsHmp") -> str:
    """SHA256 of a model's numbers and weights, wherever they lie."""
    digest = hashlib.sha256(json.dumps(to_dict(model.config), sort_keys=True).encode())
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


DECISIVE = ("dataset", "split", "expressions", "frame_list", "weights", "precision", "threshold", "targets", "code")
"""Of predict.json, what a run that goes on must share with the one before."""
HASHES = ("expressions", "weights")
PLACES = ("dataset", "split")
"""These decide where predictions lie."""


def _facts(out: Path) -> dict[str, Any]:
    """predict.json of the run before, which makes a folder ours; nothing where the folder is empty.

    Raises UserError where it is someone else's.
    """
    if (out / FACTS).is_file():
        facts = read_json(out / FACTS)
        if not {"dataset", "split", "expressions", "weights"} <= facts.keys():
            raise UserError(f"{out / FACTS}: is not of `dshmp predict`; choose another --out")
        return facts
    if not is_vacant(out):
        raise UserError(f"{out}: is not empty and holds no predictions; choose another --out")
    return {}


def _check_same(out: Path, before: dict[str, Any], settings: dict[str, Any], overwrite: bool) -> None:
    """Raises UserError where `out` holds predictions that this run cannot go on with, nor may overwrite."""
    for key in DECISIVE if before else ():
        if before.get(key) != settings.get(key) and not (overwrite and key not in PLACES):
            values = "" if key in HASHES else f" ({before.get(key)}, not {settings.get(key)})"
            anew = "" if key in PLACES else ", or begin anew with --overwrite"
            raise UserError(f"{out}: holds predictions made with different {key}{values}; choose another --out{anew}")


@contextlib.contextmanager
def _room(out: Path) -> Iterator[None]:
    """Raises UserError where something cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: cannot be written ({reason(error)}); make room, or see to what is wrong, and "
            "start the same command again: it goes on where it stopped"
        ) from None


# Between processes ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _processes(device: str) -> "Iterator[PartialState]":
    """The processes that a launcher started, or this one alone. They talk by gloo, on GPUs too: there is little to
    say, and the first one to finish may wait for hours."""
    from accelerate import PartialState

    launched = {"backend": "gloo", "timeout": timedelta(days=7)} if "LOCAL_RANK" in os.environ else {}
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), **launched)
    try:
        yield state
    finally:
        state.destroy_process_group()


def _from_first(state: "PartialState", make: Callable[[], T]) -> T:
    """What the first process makes; where it fails, all stop."""
    from accelerate.utils import broadcast_object_list

    box: list[Any] = [None, None]
    if state.is_main_process:
        try:
            box[0] = make()
        except (UserError, OSError) as error:
            box[1] = str(error)
    broadcast_object_list(box)
    if box[1] is not None:
        raise UserError(box[1])  # from all of them, as a launcher stops the others as soon as one has failed
    made: T = box[0]
    return made


def _work(
    predictor: Predictor, plan: Sequence[Piece], state: "PartialState", phase: str, progress: Progress | None
) -> list[str]:
    """Write the pieces, each process its share of the videos; what failed in any of them."""
    from accelerate.utils import gather_object

    videos: defaultdict[str, list[Piece]] = defaultdict(list)
    for piece in plan:
        videos[piece.video].append(piece)
    mine = deal(plan, predictor.split, state.num_processes)[state.process_index]
    failures = []
    for done, video in enumerate(mine):
        if progress and state.is_main_process:
            progress(phase, done, len(mine))
        try:
            predictor(videos[video])
        except UserError as error:
            failures.append(f"{video}: {error}")
    if progress and state.is_main_process:
        progress(phase, len(mine), len(mine))
    gathered: list[str] = gather_object(failures)
    return gathered
