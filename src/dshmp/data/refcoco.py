"""RefCOCO, RefCOCO+ and RefCOCOg: sentences for objects of COCO's images. A "video" is one image, its only frame.

    <root>/train2014/COCO_train2014_<image>.jpg
    <root>/<dataset>/refs(unc).p           a pickle: a list of objects, each with its sentences; RefCOCOg: refs(umd).p
    <root>/<dataset>/instances.json        COCO's images, annotations and categories
    <root>/<dataset>/instances_<dataset>_<split>.json   both in one, as ReferFormer converts them: an image per sentence

`<dataset>` is refcoco, refcoco+ or refcocog. The converted file is read where there are no references in a pickle.
"""

import json
import math
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.data.base import Expression, Video, checked_name, checked_text, integer, read_json
from dshmp.data.check import CheckReport
from dshmp.data.images import read_frame, save_jpeg
from dshmp.data.masks import decode_rle, rle_fault
from dshmp.data.mini import draw_clips, resized
from dshmp.errors import UserError
from dshmp.pickles import read_pickle

DATASETS = ("refcoco", "refcoco+", "refcocog")
SENTENCES = {  # of the splits by unc and, for RefCOCOg, by umd
    "refcoco": {"train": 120_624, "val": 10_834, "testA": 5_657, "testB": 5_095},
    "refcoco+": {"train": 120_191, "val": 10_758, "testA": 5_726, "testB": 4_889},
    "refcocog": {"train": 80_512, "val": 4_896, "test": 9_602},
}

LARGEST = 2**15
"""Pixels of an image's side."""
_surrogate = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Mask:
    """An annotation's mask as COCO stores it: polygons, or run lengths of a crowd."""

    segmentation: list[Any] | dict[str, Any]
    size: tuple[int, int]
    """(H, W) of its image."""


# Reading ----------------------------------------------------------------------------------------------------------


class RefcocoSplit:
    """A split of RefCOCO, RefCOCO+ (train, val, testA, testB) or RefCOCOg (train, val, test).

    All sentences of an object share its annotation id, hence their target. `annotations` holds the masks that the split
    means, by annotation id, as the file `source` stores them; the rest of that file is dropped once it is parsed.

    Raises UserError naming the file where something is missing or malformed.
    """

    def __init__(self, root: Path, split: str, dataset: str = "refcoco") -> None:
        if split not in SENTENCES[dataset]:
            raise UserError(f"{root}: {dataset} has no split {split!r}; choose from {', '.join(SENTENCES[dataset])}")
        self.folder = Path(root)
        self.has_truth = True
        self.videos: dict[str, Video] = {}
        self.expressions: list[Expression] = []
        self.annotations: dict[int, Mask] = {}
        references, converted = reference_file(self.folder, dataset), converted_file(self.folder, dataset, split)
        if references.is_file():
            self.source = instances_file(self.folder, dataset)
            found = _from_references(references, self.source, split, self.annotations)
        elif converted.is_file():
            self.source = converted
            found = _from_converted(converted, self.annotations)
        else:
            raise UserError(f"{references}: missing, and so is {converted.name}; unpack {dataset} there")
        grouped: dict[str, list[Expression]] = {}
        for item in found:
            grouped.setdefault(item.video, []).append(item)
        for name, items in grouped.items():
            self.videos[name] = Video(name, (name,))
            self.expressions += items
        if not self.expressions:
            raise UserError(f"{references}: holds no sentence of the split {split!r}")

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """The image (H, W, 3) uint8 RGB, as often as position 0 is asked for; once by default."""
        names = self.videos[video].frames
        count = 1 if positions is None else len([names[i] for i in positions])
        return [read_frame(image_file(self.folder, video))] * count

    def masks(
        self, video: str, annotations: Sequence[int], positions: Sequence[int], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Masks (G, T, H, W) of the annotations; `size` is (H, W) of the image."""
        out = np.zeros((len(annotations), len(positions), *size), dtype=bool)
        for g, annotation in enumerate(annotations):
            where = f"{self.source}: annotation {annotation}"
            if annotation not in self.annotations:
                raise UserError(f"{where} is missing; fetch the file again")
            mask = self.annotations[annotation]
            if mask.size != tuple(size):
                raise UserError(f"{where} is of an image of size {list(mask.size)}, {video} has {list(size)}")
            out[g] = draw_mask(mask, where)
        return out


def reference_file(root: Path, dataset: str) -> Path:
    return root / dataset / f"refs({'umd' if dataset == 'refcocog' else 'unc'}).p"


def instances_file(root: Path, dataset: str) -> Path:
    return root / dataset / "instances.json"


def converted_file(root: Path, dataset: str, split: str) -> Path:
    return root / dataset / f"instances_{dataset}_{split}.json"


def image_file(root: Path, name: str) -> Path:
    return root / "train2014" / f"{name}.jpg"


def draw_mask(mask: Mask, where: str) -> NDArray[np.bool_]:
    """(H, W) bool. Raises UserError, whose message begins with `where`, for what is no mask of COCO's."""
    from pycocotools import mask as coco

    fault = _fault(mask)
    if fault:
        raise UserError(f"{where} {fault}; fetch the file again")
    codes = mask.segmentation
    if isinstance(codes, list):
        codes = coco.merge(coco.frPyObjects(codes, *mask.size))
    elif isinstance(codes["counts"], list):
        codes = coco.frPyObjects(codes, *mask.size)
    else:
        return decode_rle(codes, mask.size, where)
    return np.asarray(coco.decode(codes), dtype=bool)


def _fault(mask: Mask) -> str | None:
    """What is wrong with a mask, or None: pycocotools takes coordinates and run lengths on trust."""
    codes = mask.segmentation
    if isinstance(codes, list):
        most = 2 * max(mask.size)
        for polygon in codes:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return "has a polygon that is no list of three or more x, y"
            if not all(type(v) in (int, float) and math.isfinite(v) and abs(v) <= most for v in polygon):
                return "has a polygon that leaves its image"
        return None if codes else "has no polygon"
    if not isinstance(codes, dict):
        return "has neither polygons nor run lengths"
    counts = codes.get("counts")
    if not isinstance(counts, list):
        return rle_fault(codes, mask.size)
    if codes.get("size") != list(mask.size):
        return f"has size {codes.get('size')}, its image has {list(mask.size)}"
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != math.prod(mask.size):
        return "has run lengths that do not cover its image"
    return None


def _from_references(path: Path, instances: Path, split: str, masks: dict[int, Mask]) -> list[Expression]:
    """The sentences of a split; fills `masks`."""
    chosen = [item for item in read_references(path) if item["split"] == split]
    annotations, shown = {item["ann_id"] for item in chosen}, {item["image_id"] for item in chosen}

    def keep(entry: dict[str, Any]) -> dict[str, Any] | None:
        """Of 200,000 annotations, most of which the split does not mean, none stays in memory."""
        if "segmentation" in entry:
            return entry if entry["id"] in annotations else None
        return None if "file_name" in entry and entry["id"] not in shown else entry

    try:
        content = read_json(instances, keep)
        names = {integer(item["id"]): str(item["name"]) for item in content["categories"]}
        images = {integer(item["id"]): item for item in content["images"] if item is not None}
        kept = {integer(item["id"]): item for item in content["annotations"] if item is not None}
        masks.update((key, _mask(item, images[integer(item["image_id"])])) for key, item in kept.items())
        stems = {key: _stem(instances, item) for key, item in images.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{instances}: is not as COCO writes it ({error!r}); fetch it again") from None
    expressions = []
    for item in chosen:
        if item["image_id"] not in stems:
            raise UserError(
                f"{instances}: image {item['image_id']} is missing, which {path.name} names; fetch it again"
            )
        expressions += [
            Expression(
                stems[item["image_id"]],
                str(sentence["sent_id"]),
                sentence["sent"],
                objects=(item["ann_id"],),
                annotations=(item["ann_id"],),
                category=names.get(item["category_id"]),
                extra={"ref_id": item["ref_id"]},
            )
            for sentence in item["sentences"]
        ]
    return expressions


def _from_converted(path: Path, masks: dict[int, Mask]) -> list[Expression]:
    """The sentences of a converted file; fills `masks`."""
    content = read_json(path)
    expressions = []
    try:
        names = {integer(item["id"]): str(item["name"]) for item in content["categories"]}
        objects = {integer(item["image_id"]): item for item in content["annotations"]}
        for image in content["images"]:
            item = objects[integer(image["id"])]
            annotation = integer(item["original_id"])
            masks.setdefault(annotation, _mask(item, image))
            expressions.append(
                Expression(
                    _stem(path, image),
                    str(image["id"]),
                    checked_text(image["caption"]),
                    objects=(annotation,),
                    annotations=(annotation,),
                    category=names.get(item["category_id"]),
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is not as ReferFormer converts it ({error!r}); convert it again") from None
    return expressions


def _mask(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> Mask:
    size = integer(image["height"]), integer(image["width"])
    if not 0 < min(size) <= max(size) <= LARGEST:
        raise ValueError(f"image {image['id']} is {size[1]}x{size[0]}")
    return Mask(annotation["segmentation"], size)


def _stem(path: Path, image: Mapping[str, Any]) -> str:
    """The name of an image, which `path` gives."""
    return checked_name(path, "image", Path(str(image["file_name"])).stem)


# The pickle -------------------------------------------------------------------------------------------------------


def read_references(path: Path) -> list[dict[str, Any]]:
    """The objects of a refs pickle. Raises UserError; nothing that the file names is ever run."""
    content = read_pickle(path, "list of references", {})
    if not isinstance(content, list):
        raise UserError(f"{path}: holds no list of references; fetch it again")
    for number, item in enumerate(content):
        if not _is_reference(item):
            raise UserError(f"{path}: reference {number} is not as REFER writes it; fetch the file again")
    return content


def _is_reference(item: Any) -> bool:
    numbers = ("ref_id", "ann_id", "image_id", "category_id")
    return (
        isinstance(item, dict)
        and all(type(item.get(key)) is int for key in numbers)
        and isinstance(item.get("split"), str)
        and isinstance(item.get("sentences"), list)
        and all(
            isinstance(sentence, dict)
            and type(sentence.get("sent_id")) is int
            and isinstance(sentence.get("sent"), str)
            and not _surrogate.search(sentence["sent"])
            for sentence in item["sentences"]
        )
    )


# Checking ---------------------------------------------------------------------------------------------------------


def check(root: Path, report: CheckReport, dataset: str = "refcoco") -> None:
    """Layout, published counts, and that every sentence has an image of the right size and a mask."""
    mend = f"fetch {dataset} again, or COCO's train2014 if an image is named"
    if not (root / "train2014").is_dir():
        report.found(root / "train2014", "missing", "unpack COCO's train2014 there")
    references = reference_file(root, dataset)
    splits = [split for split in SENTENCES[dataset] if report.wants(split)]
    if references.is_file():
        report.attempt(mend, lambda: _check_splits(references, SENTENCES[dataset]))
    else:
        present = [split for split in splits if converted_file(root, dataset, split).is_file()]
        if not present:
            report.found(references, f"missing, and so are the converted {dataset} files", f"unpack {dataset} there")
            return
        report.note(f"{references.name} is not there, the converted splits are read: {', '.join(present)}")
        splits = present
    for split in splits:
        opened = report.attempt(mend, partial(RefcocoSplit, root, split, dataset))
        if opened is None:
            if references.is_file():
                return  # the same files hold all splits
            continue
        path = references if references.is_file() else converted_file(root, dataset, split)
        report.count(path, f"sentences of {split}", len(opened.expressions), SENTENCES[dataset][split], mend)
        _check_split(opened, split, path, mend, report)


def _check_splits(path: Path, known: Iterable[str]) -> None:
    unknown = {item["split"] for item in read_references(path)} - set(known)
    if unknown:
        raise UserError(f"{path}: names the splits {', '.join(sorted(unknown))}, which the data set does not have")


def _check_split(split: RefcocoSplit, name: str, path: Path, mend: str, report: CheckReport) -> None:
    ids = {(item.video, item.id) for item in split.expressions}
    if len(ids) < len(split.expressions):
        report.found(path, f"holds {len(split.expressions) - len(ids)} sentence id(s) of {name} twice", mend)
    empty = sum(not item.text.strip() for item in split.expressions)
    if empty:
        report.found(path, f"holds {empty} empty sentence(s) of {name}", mend)
    targets: dict[str, list[int]] = {}
    for item in split.expressions:
        targets.setdefault(item.video, []).append(item.annotations[0])
    missing = {number for numbers in targets.values() for number in numbers if number not in split.annotations}
    for number in sorted(missing):
        report.found(split.source, f"annotation {number} is missing, which {path.name} names", mend)
    decoded = set(report.sample(targets))
    for video in report.each(f"{name} images", list(targets)):
        image = image_file(split.folder, video)
        if not image.is_file():
            report.found(image, "missing", mend)
            continue
        if video not in decoded:
            continue
        frame = report.attempt(mend, partial(read_frame, image))
        if frame is None:
            continue
        for number in dict.fromkeys(targets[video]):
            if number not in missing:
                report.attempt(mend, partial(split.masks, video, [number], [0], (frame.shape[0], frame.shape[1])))


# Miniature --------------------------------------------------------------------------------------------------------

_CATEGORIES = {1: ("person", "person"), 18: ("animal", "dog"), 37: ("sports", "sports ball"), 44: ("kitchen", "bottle")}


def write_mini(folder: Path, seed: int, dataset: str = "refcoco") -> None:
    """Eight images with two or three objects each, up to three sentences per object.

    The second object of every image is a crowd in run lengths, the others are polygons. testA is all people, testB
    has none, as in RefCOCO.
    """
    height, width = 84, 112
    names = list(SENTENCES[dataset])
    layout = [names[0]] * 4 + names[1:] + [names[1]] * (5 - len(names))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for number, (clip, split) in enumerate(zip(draw_clips(8, seed, families=("alike", "easy")), layout, strict=True)):
        frames, masks = resized(clip, height, width)
        middle = len(frames) // 2
        image, file_name = 1000 + 7 * number, f"COCO_train2014_{1000 + 7 * number:012d}.jpg"
        save_jpeg(folder / "train2014" / file_name, frames[middle])
        images.append({"id": image, "file_name": file_name, "height": height, "width": width, "license": 1})
        visible = [i for i in range(len(masks)) if masks[i, middle].any()]
        for place, i in enumerate(visible[:3]):
            mask, annotation = masks[i, middle], 50_000 + 10 * number + place
            look = clip.items[i].look
            category = 1 if split == "testA" else list(_CATEGORIES)[1 + place % 3]
            ys, xs = np.nonzero(mask)
            annotations.append(
                {
                    "id": annotation,
                    "image_id": image,
                    "category_id": category,
                    "segmentation": _run_lengths(mask) if place == 1 else _polygons(mask),
                    "iscrowd": int(place == 1),
                    "area": float(mask.sum()),
                    "bbox": [float(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)],
                }
            )
            texts = [
                f"the {look.colour} {look.shape}",
                f"{look.texture} {look.shape}",
                f"{look.colour} {look.texture} one",
            ]
            texts = texts[: 1 + (number + place) % 3]
            first = 3 * len(references)
            references.append(
                {
                    "sent_ids": [first + n for n in range(len(texts))],
                    "file_name": file_name.replace(".jpg", f"_{annotation}.jpg"),
                    "ann_id": annotation,
                    "ref_id": len(references),
                    "image_id": image,
                    "split": split,
                    "sentences": [
                        {"tokens": text.split(), "raw": text.capitalize(), "sent_id": first + n, "sent": text}
                        for n, text in enumerate(texts)
                    ],
                    "category_id": category,
                }
            )
    categories = [{"supercategory": above, "id": key, "name": name} for key, (above, name) in _CATEGORIES.items()]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (folder / dataset).mkdir()
    instances_file(folder, dataset).write_text(json.dumps(content))
    reference_file(folder, dataset).write_bytes(pickle.dumps(references, protocol=2))


def _polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """A rectangle per run of a row, so that polygons give the very mask (H, W)."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(padded, axis=1)
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [
        [float(v) for v in (x0, y, x1, y, x1, y + 1, x0, y + 1)] for (y, x0), (_, x1) in zip(starts, ends, strict=True)
    ]


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Uncompressed run lengths of a mask (H, W), column by column, beginning with what is not covered."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff([0, *edges, mask.size])
    return {"counts": [int(count) for count in counts], "size": list(mask.shape)}
