"""RefCOCO, RefCOCO+ and RefCOCOg: sentences for objects of COCO's images. A "video" is one image, its only frame.

    <root>/train2014/COCO_train2014_<image>.jpg
    <root>/<dataset>/refs(unc).p           a pickle: a list of objects, each with its sentences; RefCOCOg: refs(umd).p
    <root>/<dataset>/instances.json        COCO's images, annotations and categories
    <root>/<dataset>/instances_<dataset>_<split>.json   both in one, as ReferFormer converts them: an image per sentence

`<dataset>` is refcoco, refcoco+ or refcocog. The converted file is read where there are no references in a pickle.
"""

import json
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field

from dshmp.common.errors import UserError
from dshmp.common.pickles import read_pickle
from dshmp.common.rle import encode
from dshmp.data.base import Expression, Id, Name, Side, Size, Text, Video, read_shape, shaped
from dshmp.data.check import CheckReport, check_splits
from dshmp.data.images import ImageSplit, decode_mask, run_lengths, save_jpeg
from dshmp.data.mini import draw_clips, resized

DATASETS = ("refcoco", "refcoco+", "refcocog")
SENTENCES = {  # of the splits by unc and, for RefCOCOg, by umd
    "refcoco": {"train": 120_624, "val": 10_834, "testA": 5_657, "testB": 5_095},
    "refcoco+": {"train": 120_191, "val": 10_758, "testA": 5_726, "testB": 4_889},
    "refcocog": {"train": 80_512, "val": 4_896, "test": 9_602},
}


class _Image(BaseModel):
    id: Id
    file_name: Annotated[Name, BeforeValidator(lambda name: Path(str(name)).stem)]
    height: Side
    width: Side
    caption: Text = ""  # in a converted file, the sentence


class _Annotation(BaseModel):
    id: Id
    image_id: Id
    category_id: Id
    segmentation: Any
    iscrowd: Annotated[int, Field(ge=0, le=1)] = 0
    original_id: Id = 0  # in a converted file, the annotation's id in COCO


class _Category(BaseModel):
    id: Id
    name: str


class _Coco(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Sentence(BaseModel):
    sent_id: Id
    sent: Text


class _Reference(BaseModel):  # an object and what is said of it, in the pickle
    ann_id: Id
    image_id: Id
    split: str
    sentences: list[_Sentence]


class RefcocoSplit(ImageSplit):
    """A split of one of the three. All sentences of an object share its annotation id, hence their target.

    `extra["image_id"]` is the sentence's number, as which COCO's results know it; `extra["iscrowd"]` says whether its
    target is a crowd, which COCO's mAP leaves out.
    """

    def __init__(self, root: Path, split: str, dataset: str = "refcoco") -> None:
        references, converted = reference_file(root, dataset), converted_file(root, dataset, split)
        listed = references if references.is_file() else converted
        super().__init__(root, listed, dataset, split, SENTENCES[dataset])
        if not self.listed.is_file():
            raise UserError(f"{references}: missing, and so is {converted.name}; unpack {dataset} there")
        self.annotations: dict[int, tuple[Any, Size]] = {}  # one of COCO's forms, and its image's size
        self.source = converted if self.listed == converted else root / dataset / "instances.json"
        coco = read_shape(self.source, _Coco)
        rows: list[tuple[int, int, int, str]]  # of a sentence: the image's id, the annotation's, its own, and its words
        if self.listed == references:
            said = [item for item in read_references(references) if item.split == split]
            drawn = {item.id: item for item in coco.annotations}
            rows = [(item.image_id, item.ann_id, each.sent_id, each.sent) for item in said for each in item.sentences]
        else:
            drawn = {item.original_id: item for item in coco.annotations}
            meant = {item.image_id: item.original_id for item in coco.annotations}
            rows = [(item.id, meant.get(item.id, -1), item.id, item.caption) for item in coco.images]
        names = {item.id: item.name for item in coco.categories}
        images = {item.id: item for item in coco.images}
        found = []
        for image_id, number, key, text in rows:
            if image_id not in images or number not in drawn:
                told = f"lacks image {image_id} or its annotation {number}, which sentence {key} is about"
                raise UserError(f"{self.source}: {told}; fetch it again")
            image, category = images[image_id], names.get(drawn[number].category_id)
            self.annotations[number] = drawn[number].segmentation, (image.height, image.width)
            self.videos[image.file_name] = Video(image.file_name, (image.file_name,))
            extra = {"image_id": key, "iscrowd": drawn[number].iscrowd}
            found.append(Expression(image.file_name, str(key), text, (number,), (number,), category, extra=extra))
        self.keep(found, f"{references}: holds no sentence of the split {split!r}")

    def image_folder(self, video: str) -> Path:
        return self.folder / "train2014"

    def mask_size(self, video: str, annotations: Sequence[int], position: int) -> Size:
        """(H, W) of masks, without their image."""
        return self.annotations[annotations[0]][1]

    def track(self, video: str, annotation: int, positions: Sequence[int], size: Size) -> NDArray[np.bool_]:
        where = f"{self.source}: annotation {annotation}"
        if annotation not in self.annotations:
            raise UserError(f"{where} is missing; fetch the file again")
        codes, own = self.annotations[annotation]
        if own != tuple(size):
            raise UserError(f"{where} is of an image of size {list(own)}, {video} has {list(size)}")
        return decode_mask(codes, size, where)[None]


def reference_file(root: Path, dataset: str) -> Path:
    return root / dataset / f"refs({'umd' if dataset == 'refcocog' else 'unc'}).p"


def converted_file(root: Path, dataset: str, split: str) -> Path:
    return root / dataset / f"instances_{dataset}_{split}.json"


def read_references(path: Path) -> list[_Reference]:
    """The objects of a refs pickle. Raises UserError; nothing that the file names is ever run."""
    return shaped(list[_Reference], read_pickle(path, "list of references", {}), str(path))


def check(root: Path, report: CheckReport, dataset: str = "refcoco") -> None:
    """Layout, published counts, and that every sentence has an image of the right size and a mask."""
    report.mend = f"fetch {dataset} again, or COCO's train2014 if an image is named"
    names = list(SENTENCES[dataset])
    if not reference_file(root, dataset).is_file():
        there = [name for name in names if converted_file(root, dataset, name).is_file()]
        names = there or names[:1]
    counts = {name: ({"expressions": number},) for name, number in SENTENCES[dataset].items()}
    check_splits(report, root, names, partial(RefcocoSplit, dataset=dataset), counts)


_CATEGORIES = {1: ("person", "person"), 18: ("animal", "dog"), 37: ("sports", "sports ball"), 44: ("kitchen", "bottle")}


def write_mini(folder: Path, seed: int, dataset: str = "refcoco") -> None:
    """Eight images with two or three objects each, up to three sentences per object.

    The second object of every image is a crowd in run lengths, of which nothing is said, as the readers of RefCOCO
    know polygons only; the others are polygons. testA is all people, testB has none, as in RefCOCO.
    """
    names = list(SENTENCES[dataset])
    layout = [names[0]] * 4 + names[1:] + [names[1]] * (5 - len(names))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for number, (clip, split) in enumerate(zip(draw_clips(8, seed, families=("alike", "easy")), layout, strict=True)):
        frames, masks = resized(clip, 84, 112)
        middle = len(frames) // 2
        image = 1000 + 7 * number
        file_name = f"COCO_train2014_{image:012d}"
        save_jpeg(folder / "train2014" / f"{file_name}.jpg", frames[middle])
        images.append({"id": image, "file_name": f"{file_name}.jpg", "height": 84, "width": 112, "license": 1})
        visible = [i for i in range(len(masks)) if masks[i, middle].any()]
        for place, i in enumerate(visible[:3]):
            mask, look, is_crowd = masks[i, middle], clip.items[i].look, place == 1
            annotation = 50_000 + 10 * number + place
            category = 1 if split == "testA" else list(_CATEGORIES)[1 + place % 3]
            ids = {"id": annotation, "image_id": image, "category_id": category}
            uncompressed = {"counts": run_lengths(encode(mask)["counts"]), "size": list(mask.shape)}
            shape = {"segmentation": uncompressed if is_crowd else _polygons(mask), "iscrowd": int(is_crowd)}
            box = [float(v) for v in cv2.boundingRect(mask.astype(np.uint8))]
            annotations.append({**ids, **shape, "area": float(mask.sum()), "bbox": box})
            if is_crowd:
                continue
            thing = f"{look.texture} {look.shape}"
            texts = (f"the {look.colour} {look.shape}", thing, f"{look.colour} {look.texture} one")
            sentences = [
                {"tokens": text.split(), "raw": text.capitalize(), "sent_id": 3 * len(references) + n, "sent": text}
                for n, text in enumerate(texts[: 1 + (number + place) % 3])
            ]
            said = {"sent_ids": [each["sent_id"] for each in sentences], "file_name": f"{file_name}_{annotation}.jpg"}
            ids = {"ann_id": annotation, "ref_id": len(references), "image_id": image}
            references.append({**said, **ids, "split": split, "sentences": sentences, "category_id": category})
    categories = [{"supercategory": above, "id": key, "name": name} for key, (above, name) in _CATEGORIES.items()]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (folder / dataset).mkdir()
    (folder / dataset / "instances.json").write_text(json.dumps(content))
    reference_file(folder, dataset).write_bytes(pickle.dumps(references, protocol=2))


def _polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """A rectangle per run of a row, so that polygons give the very mask (H, W)."""
    steps = np.diff(mask.astype(np.int8), axis=1, prepend=0, append=0)
    starts, ends = np.argwhere(steps == 1).astype(float), np.argwhere(steps == -1)[:, 1].astype(float)
    return [[x, y, end, y, end, y + 1, x, y + 1] for (y, x), end in zip(starts.tolist(), ends.tolist(), strict=True)]
