"""`dshmp predict`: every expression of a split answered, laid out as scoring and the benchmarks' servers read it.

    mevis          <video>/<expression>/<frame>.png               0 and 255, grey
    youtube_vos    Annotations/<video>/<expression>/<frame>.png   the same
    davis          anno_<annotator>/<video>/<frame>.png           object ids, palette
    coco           predictions.json                               COCO's results, all video tokens of every sample

and predict.json, which says how it was done. A run that was stopped goes on where it was: what has its final name is
complete, and is checked before it is skipped. Several processes (accelerate, torchrun) share the videos. The result is
the same byte by byte, however often a run was stopped and however many processes there were.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dshmp import __version__
from dshmp.common.errors import UserError
from dshmp.common.files import atomic_write, destination, digest, is_vacant, locked, move_into, save_json, scratch
from dshmp.common.options import Options, Targets
from dshmp.common.progress import Progress
from dshmp.config import to_dict
from dshmp.data.base import Expression, Split, frame_size, read_json, times_shown
from dshmp.data.images import rle_fault, save_palette_png
from dshmp.data.registry import dataset
from dshmp.evaluation.coco import FILE, ImageId, frame_list, image_id
from dshmp.evaluation.predictions import FACTS, TOPS, Predictions, packed, zip_of
from dshmp.inference.segmenter import Segmenter
from dshmp.video.images import DECODER_ERRORS
from dshmp.video.io import open_video
from dshmp.video.overlay import save_png
from dshmp.video.source import Pixels

if TYPE_CHECKING:
    from accelerate import PartialState

    from dshmp.model.dshmp import DsHmp

log = logging.getLogger(__name__)
T = TypeVar("T")

PATHS = {layout: top + "{0.video}/{0.id}" for layout, top in TOPS.items()}
PATHS |= {"davis": "anno_{0.extra[annotator]}/{0.video}", "coco": "parts/{0.video}.json"}
BATCH = 64  # expressions of a video that are answered together: what is kept of the video grows with them
BACKGROUND = 0.1  # probability of the background where DAVIS's objects are merged


class Piece(NamedTuple):
    """What is written wholly or not at all, at `path` below the predictions: a folder of masks, or detections. It
    answers one expression; in DAVIS one annotator's of a video, by object; in COCO's layout all of a video."""

    path: str
    video: str
    items: tuple[Expression, ...]


class Summary(NamedTuple):
    """What a run did: what predict.json says, and how many expressions were answered before."""

    facts: dict[str, Any]
    skipped: int
    zip: Path | None


def run(
    name: str,
    root: Path,
    split_name: str,
    out: Path,
    options: Options,
    *,
    zip_path: Path | None = None,
    zipped: bool = True,
    progress: Progress | None = None,
) -> Summary | None:
    """Answer all expressions of a split; None in all processes but the first. With `options.overwrite` the predictions
    in `out`, which must be of this split, are removed. If `zipped`, and where the data set has a server, a zip file for
    it is written, `<out>.zip` by default. Raises UserError also where some videos failed, and the others are done."""
    data = dataset(name)
    everything = data.layout == "coco"  # all video tokens of every sample
    if everything and (options.threshold is not None or options.targets is not None):
        raise UserError(f"{name}: all candidates are written; leave out --threshold, --single and --many")
    if data.layout not in TOPS and zip_path is not None:
        raise UserError(f"{name}: no server takes a zip file of this data set; leave out --zip")
    out = destination(out, folder=True)
    split = data.open(Path(root), split_name)
    plan = pieces(split, data.layout)
    archive = zip_of(out, zip_path) if zipped and data.layout in TOPS else None
    with contextlib.ExitStack() as stack:
        state = _processes(options.device)
        stack.callback(state.destroy_process_group)
        own_gpu = state.device.type == "cuda" and options.device == "auto"
        device = str(state.device) if own_gpu else options.device
        segmenter = Segmenter.from_pretrained(options.model, device, options.precision, options.overrides or ())
        segmenter.tokenizer.release = replace(segmenter.config.release, overlong="cut")  # rather than fail at the end
        threshold, targets = segmenter.readout(options.threshold, options.targets or data.targets)
        settings: dict[str, Any] = {"dataset": name, "split": split_name, "model": options.model}
        settings |= {"set": options.overrides} if options.overrides else {}
        settings |= {} if everything else {"threshold": threshold, "targets": targets}
        settings |= _facts(segmenter, split)
        readout: tuple[float, Targets] = (0.0, "many") if everything else (threshold, targets)
        predictor = Predictor(segmenter, split, data.layout, out, plan, *readout)

        def begin() -> set[str]:
            stack.enter_context(locked(out, wait=False))
            before = _check_folder(out, settings, options.overwrite)
            settings.update({"zip": before["zip"]} if "zip" in before else {})
            ours = archive and archive.is_file() and digest(archive) == before.get("zip")
            if archive and os.path.lexists(archive) and not ours:
                raise UserError(f"{archive}: is there, and not of the predictions in {out}; name another --zip")
            save_json(out / FACTS, settings | {"complete": False})
            if options.overwrite:
                predictor.remove()
            done = predictor.finished()
            if archive and len(done) < len(plan):
                archive.unlink(missing_ok=True)  # no older one is taken for this run's
            return done

        done = _from_first(state, begin)
        pending = [piece for piece in plan if piece.path not in done]
        skipped = len(split.expressions) - sum(len(piece.items) for piece in pending)
        failures = _share(predictor, pending, state, f"videos ({skipped:,} expressions skipped)", progress)
        if not state.is_main_process:
            return None
        for failure in failures:
            log.error(failure)
        if failures:
            of_all = f"{len(failures)} of {settings['counts']['videos']}"
            raise UserError(f"{of_all} videos failed, see above; the others are done")
        predictor.merge()
        with packed(out, split, data.layout, archive) if archive else contextlib.nullcontext() as made:
            settings |= {"zip": digest(made)} if made else {}  # known as ours before it has its name
            settings |= {"complete": True}
            save_json(out / FACTS, settings)
        return Summary(settings, skipped, archive)


def pieces(split: Split, layout: str) -> list[Piece]:
    """All that is to be written, video by video."""
    found: defaultdict[tuple[str, str], list[Expression]] = defaultdict(list)
    for item in split.expressions:
        found[PATHS[layout].format(item), item.video].append(item)
    if layout == "davis":
        for items in found.values():
            items.sort(key=lambda item: item.objects)
    return [Piece(path, video, tuple(items)) for (path, video), items in found.items()]


@dataclass(frozen=True)
class Predictor:
    """Answers videos, and writes the answers."""

    segmenter: Segmenter
    split: Split
    layout: str
    out: Path
    plan: Sequence[Piece]
    threshold: float
    targets: Targets

    def files(self, piece: Piece) -> list[str]:
        frames = self.split.videos[piece.video].frames
        return [piece.path] if self.layout == "coco" else [f"{piece.path}/{frame}.png" for frame in frames]

    def finished(self) -> set[str]:
        """Paths of the pieces that are there, nothing of them missing or damaged."""
        predictions = Predictions(self.out)
        if self.layout == "coco":
            merged = _are_detections(predictions, FILE, self.split.expressions)
            return {p.path for p in self.plan if merged or _are_detections(predictions, p.path, p.items)}
        size = functools.cache(functools.partial(frame_size, self.split))
        mode = "P" if self.layout == "davis" else "L"

        def is_whole(piece: Piece) -> bool:
            with contextlib.suppress(UserError):  # no frame, which is told in its turn
                images = (predictions.image(name, size(piece.video)) for name in self.files(piece))
                return predictions.holds(piece.path) and all(getattr(image, "mode", None) == mode for image in images)
            return False

        return {piece.path for piece in self.plan if is_whole(piece)}

    def remove(self) -> None:
        """Remove what predictions of this split write; what else lies in the folder stays."""
        merged = [FILE] if self.layout == "coco" else []
        self._remove([*merged, *(file for piece in self.plan for file in self.files(piece))])

    def merge(self) -> None:
        """COCO's detections in one file, video by video; nothing to do where it was done before."""
        if self.layout == "coco":
            parts = [self.out / piece.path for piece in self.plan]
            if all(part.is_file() for part in parts):
                with atomic_write(self.out / FILE) as file:
                    _write_list(file, [entry for part in parts for entry in json.loads(part.read_bytes())])
            self._remove(piece.path for piece in self.plan)

    def _remove(self, names: Iterable[str]) -> None:
        """Remove files, and the folders up to `out` that nothing is left in."""
        folders: set[Path] = set()
        for file in (self.out / name for name in names):
            file.unlink(missing_ok=True)
            folders |= {folder for folder in file.parents if self.out in folder.parents}
        for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def predict(self, plan: Sequence[Piece]) -> None:
        """Write these pieces of one video, which get their names when all are there."""
        with scratch(self.out) as work:
            if self.layout == "coco":
                for piece in plan:
                    _write_list(work / piece.path, self._detect(piece))
            else:
                self._write_masks(plan, work)
            for piece in plan:
                path = self.out / piece.path
                path.parent.mkdir(parents=True, exist_ok=True)
                move_into(work / piece.path, path)

    def _groups(self, items: Sequence[T]) -> list[Sequence[T]]:
        """What is answered together. Where pixel features read the words, only the decoding is shared."""
        size = 1 if self.segmenter.config.backbone.language_fusion else BATCH
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _write_masks(self, plan: Sequence[Piece], work: Path) -> None:
        """A PNG per piece and frame, below `work`. Every frame is decoded once."""
        video = plan[0].video
        names = self.split.videos[video].frames
        source = open_video(self.split.frames(video, [position])[0] for position in range(len(names)))
        davis = self.layout == "davis"
        save = save_palette_png if davis else save_png
        asked = {piece.path: _spoken(piece.items) for piece in plan}
        for piece in plan:
            (work / piece.path).mkdir(parents=True)
            for name in () if asked[piece.path] else names:
                save(work / piece.path / f"{name}.png", np.zeros((source.height, source.width), np.uint8))
        for group in self._groups([piece for piece in plan if asked[piece.path]]):
            texts = [item.text for piece in group for item in asked[piece.path]]
            with self.segmenter.ask(source, texts, threshold=self.threshold, targets=self.targets) as clip:
                decoded: Iterator[Any] = clip.decode_masks(probability if davis else _cover, False)
                for name, (_, answers) in zip(names, decoded, strict=True):
                    rest = iter(answers)
                    for piece in group:
                        ids = [item.objects[0] for item in asked[piece.path]] if davis else []
                        mask = merge_objects([next(rest) for _ in ids], ids) if davis else next(rest)
                        save(work / piece.path / f"{name}.png", mask)

    def _detect(self, piece: Piece) -> list[dict[str, Any]]:
        """COCO's results of a video's samples: all video tokens, in the frame that is scored."""
        every = tuple(range(len(self.split.videos[piece.video].frames)))
        windows: defaultdict[tuple[int, ...], list[Expression]] = defaultdict(list)
        asked = _spoken(piece.items)
        for item in asked:
            windows[every if item.shown is None else item.shown].append(item)
        positions = sorted(set().union(*windows))
        images = self.split.frames(piece.video, positions) if positions else []
        frames = dict(zip(positions, images, strict=True))
        entries: dict[ImageId, list[dict[str, Any]]] = {}
        for shown, together in windows.items():
            source = replace(open_video(np.stack([frames[t] for t in shown])), positions=times_shown(shown))
            for group in self._groups(together):
                texts = [item.text for item in group]
                answers = self.segmenter.answer(source, texts, threshold=self.threshold, targets=self.targets)
                for item, answer in zip(group, answers, strict=True):
                    place = scored_place(shown, item.scored[0] if item.scored else 0)
                    entries[image_id(item)] = [
                        {"image_id": image_id(item), "category_id": 1, "segmentation": o.rle[place], "score": o.score}
                        for o in answer.objects
                    ]
        return [entry for item in asked for entry in entries[image_id(item)]]


def _spoken(items: Sequence[Expression]) -> list[Expression]:
    """Those that the model is asked: nothing is the answer to a sentence without a word."""
    return [item for item in items if item.text.strip()]


def scored_place(shown: Sequence[int], scored: int) -> int:
    """Where in a window the scored frame is: of several times, the one nearest to the middle, as windows are centred
    on it and repeat the ends of their video."""
    return min((t for t, position in enumerate(shown) if position == scored), key=lambda t: abs(t - len(shown) // 2))


def _cover(logits: Tensor) -> Pixels:
    """Mask logits (K, H, W) -> (H, W) uint8, 255 where any of the masks is."""
    return np.asarray((logits > 0).any(0).cpu().numpy() * np.uint8(255))


def probability(logits: Tensor) -> Tensor:
    """Mask logits (K, H, W) -> (H, W), the greatest of the masks' probabilities; 0 where there is no mask."""
    return logits.sigmoid().amax(0) if len(logits) else logits.new_zeros(logits.shape[1:])


def merge_objects(probabilities: Sequence[Tensor], ids: Sequence[int]) -> NDArray[np.uint8]:
    """Merge the objects of a frame as in ReferFormer's evaluation of DAVIS: probabilities (H, W) below 0.5 become 0,
    background has 0.1, and the greatest one wins; of equals, the first. (H, W) uint8 object ids, 0 is background."""
    known = [item.float().cpu() for item in probabilities]
    stack = torch.stack([torch.full_like(known[0], BACKGROUND), *(item * (item >= 0.5) for item in known)])
    return np.asarray(np.array([0, *ids], np.uint8)[stack.argmax(0).numpy()])


def _are_detections(predictions: Predictions, name: str, items: Sequence[Expression]) -> bool:
    """Whether this is a list of COCO's results with some for each of these samples, and for no other."""
    try:
        entries = predictions.read_json(name)
        faults = [rle_fault(entry["segmentation"], tuple(entry["segmentation"]["size"])) for entry in entries]
        samples = {entry["image_id"] for entry in entries}
    except (UserError, *DECODER_ERRORS):
        return False
    return samples == {image_id(item) for item in _spoken(items)} and not any(faults)


def _write_list(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """A JSON list, one entry a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",".join("\n" + json.dumps(entry, separators=(",", ":")) for entry in entries)
    path.write_text(f"[{lines}\n]\n", encoding="utf-8")


DECISIVE = (
    *("dataset", "split", "expressions", "frame_list", "set", "weights"),
    *("precision", "threshold", "targets", "code"),
)
# what a run that goes on must share with the one before, and the first two also where it begins anew


def _facts(segmenter: Segmenter, split: Split) -> dict[str, Any]:
    size, card = segmenter.config.input, segmenter.card
    asked, frames = hashlib.sha256(), 0
    for item in split.expressions:
        shown = split.videos[item.video].frames if item.shown is None else item.shown
        frames += len(shown)
        asked.update(json.dumps([item.video, item.id, item.text, shown, item.scored]).encode())
    return {
        "weights": fingerprint(segmenter.model),
        "pretraining": card.source,
        "training": card.data,
        "seed": card.recipe.get("seed"),
        "resolution": f"short side {size.short_side}, long side at most {size.long_side}",
        "precision": str(segmenter.precision).removeprefix("torch."),
        "code": __version__,
        "frame_list": frame_list(split),
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


def _check_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The predict.json of the run before; nothing where the folder is empty. Raises UserError where the folder is
    someone else's, or of predictions that this run can neither go on with nor overwrite."""
    path = out / FACTS
    if not path.is_file():
        if is_vacant(out):
            return {}
        raise UserError(f"{out}: is not empty and holds no predictions; choose another --out")
    before = read_json(path)
    if not {"dataset", "split", "expressions", "weights"} <= before.keys():
        raise UserError(f"{path}: is not of `dshmp predict`; choose another --out")
    for key in DECISIVE[:2] if overwrite else DECISIVE:
        if before.get(key) != settings.get(key):
            values = f"{str(before.get(key))[:50]}, not {str(settings.get(key))[:50]}"
            anew = "" if key in DECISIVE[:2] else ", or begin anew with --overwrite"
            raise UserError(f"{out}: holds predictions of a different {key} ({values}); choose another --out{anew}")
    return before


def _processes(device: str) -> "PartialState":
    """The processes that a launcher started, or this one alone. They talk by gloo, on GPUs too: there is little to
    say, and the first one to finish may wait for hours."""
    from accelerate import PartialState

    launched = {"backend": "gloo", "timeout": timedelta(days=7)} if "LOCAL_RANK" in os.environ else {}
    return PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), **launched)


def _from_first(state: "PartialState", make: Callable[[], T]) -> T:
    """What the first process makes; where it fails, all stop."""
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = make()
        except (UserError, OSError) as error:
            outcome[1] = str(error)
    made, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise UserError(failure)  # from all of them, as a launcher stops the others as soon as one has failed
    return cast(T, made)


def _share(
    predictor: Predictor, plan: Sequence[Piece], state: "PartialState", phase: str, progress: Progress | None
) -> list[str]:
    """Write the pieces, each process its share of the videos; what failed in any of them."""
    from accelerate.utils import gather_object

    videos: defaultdict[str, list[Piece]] = defaultdict(list)
    for piece in plan:
        videos[piece.video].append(piece)
    mine = deal(plan, predictor.split, state.num_processes)[state.process_index]
    failures = []
    told = progress if progress and state.is_main_process else lambda *_: None
    for done, video in enumerate(mine):
        told(phase, done, len(mine))
        try:
            predictor.predict(videos[video])
        except UserError as error:
            failures.append(f"{video}: {error}")
    told(phase, len(mine), len(mine))
    return cast(list[str], gather_object(failures))


def deal(plan: Sequence[Piece], split: Split, ranks: int) -> list[list[str]]:
    """The videos of each of `ranks` processes, so that all have about the same work: frames times expressions."""
    work: defaultdict[str, int] = defaultdict(int)
    for piece in plan:
        length = len(split.videos[piece.video].frames)
        work[piece.video] += sum(length if item.shown is None else len(item.shown) for item in piece.items)
    most_first = sorted(work, key=lambda video: -work[video])
    place = {video: number % (2 * ranks) for number, video in enumerate(most_first)}  # to and fro among the processes
    return [[video for video in work if place[video] in (rank, 2 * ranks - 1 - rank)] for rank in range(ranks)]
