"""Draws clips and writes a synthetic data set in the on-disk layout of MeViS.

    <root>/synthetic.json                             settings and counts
    <root>/<split>/JPEGImages/<video>/<00000>.jpg     frames
    <root>/<split>/meta_expressions.json              {"videos": {video: {...}}}
    <root>/<split>/mask_dict.json                     {anno_id: [COCO RLE or null per frame]}

Splits are train, valid_u and test. Beside MeViS's keys, an expression has "subsets", "static_ids" (objects that fit
the static words alone), "motion" (what it claims) and "pair" (shared by the two sides of a direction pair), and a
video has "objects", "size" (height, width), "family" and, in version 2, "camera": its "kind" and its "matrices"
(T, 2, 3), scene pixels (from the middle) to image pixels (from the middle). mask_dict.json covers all objects, meant
or not.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dshmp.common.errors import UserError
from dshmp.common.files import atomic_folder, destination, is_vacant, regular
from dshmp.common.processes import worker_pool
from dshmp.common.rle import encode
from dshmp.synthetic.cast import FAMILIES
from dshmp.synthetic.grammar import resolve
from dshmp.synthetic.plan import SPLITS, Plan, plan_clip
from dshmp.synthetic.render import render
from dshmp.synthetic.sentences import SUBSETS
from dshmp.synthetic.world import schedule, world_of

QUALITY = 92  # of the JPEG files
CHUNK = 20  # clips that a process makes at a time


@dataclass(frozen=True)
class Clip(Plan):
    """A plan, drawn: frames uint8 (T, H, W, 3) RGB and visible masks bool (K, T, H, W)."""

    frames: np.ndarray
    masks: np.ndarray


def make_clip(seed: int, family: str | None = None, split: str = "train", version: int = 2) -> Clip:
    """Draws a clip: a pure function of its arguments.

    family: one of FAMILIES ("easy": two or three objects and one-phase motions; "pairs": two look-alikes, one doing
    the time reverse of the other; "close": 128 x 128 pixels, objects of 40 and more; ...), or None for any.
    split: one of SPLITS; only "test" has held-out wordings. version: of the data set, 1 or 2.
    """
    plan = plan_clip(seed, family, split, version)
    frames, masks = render(plan, world_of(version).natural, np.random.default_rng([seed, 2]))
    return Clip(**vars(plan), frames=frames, masks=masks)


def time_reversed(clip: Clip) -> Clip:
    """The same clip backwards in time: same pixels, same sentences, now meaning the objects that they fit."""
    items = tuple(replace(item, motion=item.motion.reversed, track=item.track.reversed) for item in clip.items)
    looks, moves = [item.look for item in items], [item.motion for item in items]
    sentences = tuple(replace(each, meant=resolve(each.meaning, looks, moves).meant) for each in clip.expressions)
    view = clip.camera and clip.camera.reversed
    frames, masks = clip.frames[::-1], clip.masks[:, ::-1]
    return replace(clip, frames=frames, masks=masks, items=items, expressions=sentences, camera=view)


def _entry(clip: Clip, video: str, anno: int) -> dict[str, Any]:
    """The video's entry in meta_expressions.json; its first object has annotation id `anno`."""
    objects: dict[int, dict[str, Any]] = {}
    for i, item in enumerate(clip.items):
        objects[i] = {"anno_id": anno + i, **asdict(item.look), "motion": item.motion.name}
    expressions: dict[int, dict[str, Any]] = {}
    for i, sentence in enumerate(clip.expressions):
        meant = {"obj_id": sentence.meant, "anno_id": [anno + k for k in sentence.meant]}
        told = {"subsets": sentence.subsets, "static_ids": sentence.static, "motion": sentence.meaning.claim}
        pair = {"pair": f"{video.removesuffix('_r')}-{i}"} if "direction pairs" in sentence.subsets else {}
        expressions[i] = {"exp": sentence.text, **meant, **told, **pair}
    frames, size = [f"{t:05d}" for t in range(len(clip.frames))], clip.frames.shape[1:3]
    facts = {"frames": frames, "expressions": expressions, "objects": objects, "size": size, "family": clip.family}
    if clip.camera is None:
        return facts
    return facts | {"camera": {"kind": clip.camera.kind, "matrices": clip.camera.matrices.round(5).tolist()}}


def clip_seed(seed: int, split: str, index: int) -> int:
    return int(np.random.SeedSequence([seed, SPLITS.index(split), index]).generate_state(1, np.uint64)[0])


def _write_clip(
    folder: Path, split: str, seed: int, version: int, family: str, index: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the frames of a clip, and of its time reversal where it has one; returns their entries in
    meta_expressions.json and in mask_dict.json."""
    clip, video = make_clip(clip_seed(seed, split, index), family, split, version), f"{split[0]}{index:06d}"
    ways = {video: clip} | ({f"{video}_r": time_reversed(clip)} if clip.family == "pairs" else {})
    videos, masks = dict[str, Any](), dict[str, Any]()
    for anno, (name, way) in zip((20 * index, 20 * index + 10), ways.items(), strict=False):
        videos[name] = _entry(way, name, anno)
        for i, of_object in enumerate(way.masks):
            masks[str(anno + i)] = [encode(mask) if mask.any() else None for mask in of_object]
        target = folder / "JPEGImages" / name
        target.mkdir()
        for t, frame in enumerate(way.frames):
            _, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            Path(target, f"{t:05d}.jpg").write_bytes(data.tobytes())
    return videos, masks


def make_synthetic(
    root: Path,
    *,
    train: int = 6000,
    valid: int = 400,
    test: int = 200,
    seed: int = 0,
    family: str | None = None,
    version: int = 2,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Writes a synthetic data set of `train` + `valid` + `test` clips (and the time reversals of the direction pairs,
    15 % more); 6,600 clips take about 570 MB. Returns False, having done nothing, where `root` holds the same already.

    family: of all clips, one of FAMILIES, or None for those of the version's schedule in turn. progress(done, total) is
    called as clips are done. Raises UserError if there is no such family or version, or if `root` is anything else but
    an empty folder.
    """
    if family is not None and family not in FAMILIES:
        raise UserError(f"{family!r} is no family of clips; choose from {', '.join(FAMILIES)}")
    world_of(version)
    settings = {"version": version, "seed": seed, "train": train, "valid": valid, "test": test, "family": family}
    target = destination(root, folder=True)
    if os.path.lexists(target) and not is_vacant(target):
        advice = "remove it or choose another folder"
        try:
            with open(root / "synthetic.json", encoding="utf-8", opener=regular) as file:
                found = dict(json.load(file))
        except (OSError, ValueError, TypeError, RecursionError):
            raise UserError(f"{root} exists and is not a complete synthetic data set: {advice}") from None
        for name, value in settings.items():
            if (there := found.get(name)) != value:
                raise UserError(f"{root} holds a synthetic data set with {name} {there}, not {value}: {advice}")
        return False
    counts: dict[str, Any] = {}
    done, total = 0, train + valid + test
    with atomic_folder(root) as work, worker_pool(workers) as pool:
        for split, count in zip(SPLITS, (train, valid, test), strict=True):
            (work / split / "JPEGImages").mkdir(parents=True)
            versions, families = zip(*schedule(version, split, count), strict=True) if count else ((), ())
            families = families if family is None else (family,) * count
            videos, masks = dict[str, Any](), dict[str, Any]()
            make = partial(_write_clip, work / split, split, seed)
            for entries, codes in pool.map(make, versions, families, range(count), chunksize=CHUNK):
                videos |= entries
                masks |= codes
                done += 1
                if progress is not None:
                    progress(done, total)
            (work / split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
            (work / split / "mask_dict.json").write_text(json.dumps(masks))
            sentences = [each for video in videos.values() for each in video["expressions"].values()]
            belonging = Counter(subset for each in sentences for subset in each["subsets"])
            of_subsets = {subset: belonging[subset] for subset in SUBSETS}
            counts[split] = {"videos": len(videos), "expressions": len(sentences), "subsets": of_subsets}
        (work / "synthetic.json").write_text(json.dumps({**settings, "splits": counts}, indent=1) + "\n")
    return True
