"""Draws clips and writes a synthetic data set in the on-disk layout of MeViS.

    <root>/synthetic.json                                  settings and counts
    <root>/<split>/JPEGImages/<video>/<00000>.jpg       frames
    <root>/<split>/meta_expressions.json                {"videos": {video: {...}}}
    <root>/<split>/mask_dict.json                       {anno_id: [COCO RLE or null per frame]}

Splits are train, valid_u and test. Beside MeViS's keys, an expression has "subsets", "static_ids" (objects that fit
the static words alone), "motion" (what it claims) and "pair" (shared by the two sides of a direction pair), and a
video has "objects", "size" (height, width) and "family". mask_dict.json covers all objects, meant or not.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from dshmp.errors import UserError
from dshmp.files import atomic_folder, is_vacant, output_folder, regular
from dshmp.processes import worker_pool
from dshmp.synthetic.grammar import resolve
from dshmp.synthetic.plan import FAMILIES, SCHEDULE, SPLITS, SUBSETS, Expression, Item, plan_clip, reversed_motion
from dshmp.synthetic.render import render

VERSION = 1
QUALITY = 92  # of the JPEG files


@dataclass(frozen=True)
class Clip:
    """A drawn clip: frames uint8 (T, H, W, 3) RGB and visible masks bool (K, T, H, W)."""

    family: str
    frames: np.ndarray
    masks: np.ndarray
    items: tuple[Item, ...]
    expressions: tuple[Expression, ...]


# --- Drawing ---


def make_clip(seed: int, family: str | None = None, split: str = "train") -> Clip:
    """Draws a clip: a pure function of its arguments.

    family: one of FAMILIES ("easy": two or three objects and one-phase motions; "pairs": two look-alikes, one doing
    the time reverse of the other; "close": 128 x 128 pixels, objects of 40 and more; ...), or None for any.
    split: one of SPLITS; only "test" has held-out wordings.
    """
    plan = plan_clip(seed, family, split)
    frames, masks = render(
        [item.look for item in plan.items],
        list(plan.tracks),
        [item.across for item in plan.items],
        plan.height,
        plan.width,
        np.random.default_rng([seed, 2]),
    )
    return Clip(plan.family, frames, masks, plan.items, plan.expressions)


def time_reversed(clip: Clip) -> Clip:
    """The same clip backwards in time: same pixels, same sentences, now meaning the objects that they fit."""
    items = tuple(replace(item, motion=reversed_motion(item.motion)) for item in clip.items)
    looks, moves = [item.look for item in items], [item.motion for item in items]
    expressions = tuple(
        replace(expression, meant=resolve(expression.meaning, looks, moves).meant) for expression in clip.expressions
    )
    return Clip(clip.family, clip.frames[::-1], clip.masks[:, ::-1], items, expressions)


# --- Writing ---


def _encode(clip: Clip) -> tuple[list[bytes], list[list[dict[str, Any] | None]]]:
    """JPEG files of the frames, and per object one COCO RLE (or None where not visible) per frame."""
    files = []
    for frame in clip.frames:
        done, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        if not done:
            raise ValueError("OpenCV could not encode a frame")
        files.append(data.tobytes())
    count, frames = clip.masks.shape[:2]
    # (K, T, H, W) -> (H, W, K*T), each mask column by column as COCO wants it
    flat = clip.masks.reshape(count * frames, *clip.masks.shape[2:]).view(np.uint8)
    codes = coco.encode(np.asfortranarray(flat.transpose(1, 2, 0)))
    seen = flat.reshape(count * frames, -1).max(axis=1) > 0
    rles = [
        {"size": [int(v) for v in code["size"]], "counts": code["counts"].decode("ascii")} if shown else None
        for code, shown in zip(codes, seen, strict=True)
    ]
    return files, [rles[k * frames : (k + 1) * frames] for k in range(count)]


def _entry(clip: Clip, video: str, anno: int) -> dict[str, Any]:
    """The video's entry in meta_expressions.json; its first object has annotation id `anno`."""
    base = video.removesuffix("_r")
    expressions = {}
    for number, expression in enumerate(clip.expressions):
        expressions[str(number)] = {
            "exp": expression.text,
            "obj_id": list(expression.meant),
            "anno_id": [anno + i for i in expression.meant],
            "subsets": list(expression.subsets),
            "static_ids": list(expression.static),
            "motion": expression.meaning.claim,
        }
        if "direction pairs" in expression.subsets:
            expressions[str(number)]["pair"] = f"{base}-{number}"
    objects = {
        str(i): {
            "anno_id": anno + i,
            **{name: getattr(item.look, name) for name in ("shape", "colour", "texture", "size")},
            "motion": item.motion.name,
        }
        for i, item in enumerate(clip.items)
    }
    return {
        "frames": [f"{t:05d}" for t in range(len(clip.frames))],
        "expressions": expressions,
        "objects": objects,
        "size": list(clip.frames.shape[1:3]),
        "family": clip.family,
    }


def clip_seed(seed: int, split: str, index: int) -> int:
    """The seed of the clip with this index in a split of the synthetic data set with this seed."""
    return int(np.random.SeedSequence([seed, SPLITS.index(split), index]).generate_state(1, np.uint64)[0])


def _write_clips(
    folder: str, split: str, seed: int, family: str | None, start: int, stop: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws and writes the clips start..stop-1 of a split (time reversals included); returns their JSON entries."""
    videos: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    for index in range(start, stop):
        clip = make_clip(clip_seed(seed, split, index), family or SCHEDULE[index % len(SCHEDULE)], split)
        files, rles = _encode(clip)
        video = f"{split[0]}{index:06d}"
        versions = [(video, clip, files, rles)]
        if clip.family == "pairs":
            versions.append((f"{video}_r", time_reversed(clip), files[::-1], [codes[::-1] for codes in rles]))
        for number, (name, version, images, codes_per_object) in enumerate(versions):
            anno = (2 * index + number) * 10
            videos[name] = _entry(version, name, anno)
            masks |= {str(anno + i): codes for i, codes in enumerate(codes_per_object)}
            target = Path(folder, split, "JPEGImages", name)
            target.mkdir(parents=True)
            for t, data in enumerate(images):
                Path(target, f"{t:05d}.jpg").write_bytes(data)
    return videos, masks


CHUNK = 20  # clips per job


def make_synthetic(
    root: Path,
    *,
    train: int = 6000,
    valid: int = 400,
    test: int = 200,
    seed: int = 0,
    family: str | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Writes a synthetic data set of `train` + `valid` + `test` clips (and the time
    reversals of the direction pairs, 15 % more).

    A clip of about 88 x 112 pixels takes about 85 kB on disk, 6,600 clips 570 MB. family: of all clips, one of
    FAMILIES, or None for those of SCHEDULE in turn. progress(done, total) is called as clips are done. Returns False,
    having done nothing, if `root` is a complete synthetic data set with the same settings.

    Raises UserError if there is no such family, or if `root` exists and is anything else but an empty folder.
    """
    if family is not None and family not in FAMILIES:
        raise UserError(f"{family!r} is no family of clips; choose from {', '.join(FAMILIES)}")
    settings = {"version": VERSION, "seed": seed, "train": train, "valid": valid, "test": test, "family": family}
    target = output_folder(root)
    if os.path.lexists(target) and not is_vacant(target):
        _check_same(root, settings)
        return False
    with atomic_folder(root) as work:
        jobs = [
            (str(work), split, seed, family, start, min(start + CHUNK, count))
            for split, count in zip(SPLITS, (train, valid, test), strict=True)
            for start in range(0, count, CHUNK)
        ]
        counts = _run(work, jobs, train + valid + test, workers, progress)
        work.joinpath("synthetic.json").write_text(json.dumps({**settings, "splits": counts}, indent=1) + "\n")
    return True


def _run(
    root: Path,
    jobs: list[tuple[str, str, int, str | None, int, int]],
    total: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Runs the jobs, writes the JSON files of each split, and returns the counts per split."""
    videos: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    masks: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    done = 0
    for split in SPLITS:
        root.joinpath(split, "JPEGImages").mkdir(parents=True)
    with worker_pool(workers) as pool:
        for job, (made, codes) in zip(jobs, pool.map(_write_clips, *zip(*jobs, strict=True)), strict=True):
            videos[job[1]] |= made
            masks[job[1]] |= codes
            done += job[5] - job[4]
            if progress is not None:
                progress(done, total)
    for split in SPLITS:
        root.joinpath(split, "meta_expressions.json").write_text(json.dumps({"videos": videos[split]}))
        root.joinpath(split, "mask_dict.json").write_text(json.dumps(masks[split]))
    return {split: count(videos[split]) for split in SPLITS}


def count(videos: dict[str, Any]) -> dict[str, Any]:
    """Videos, expressions, and expressions per subset, of the "videos" of a meta_expressions.json."""
    expressions = [e for video in videos.values() for e in video["expressions"].values()]
    subsets = Counter(subset for expression in expressions for subset in expression["subsets"])
    return {
        "videos": len(videos),
        "expressions": len(expressions),
        "subsets": {subset: subsets[subset] for subset in SUBSETS},
    }


def _check_same(root: Path, settings: dict[str, Any]) -> None:
    try:
        with open(root / "synthetic.json", encoding="utf-8", opener=regular) as file:
            found = json.load(file)
    except (OSError, ValueError):
        raise UserError(
            f"{root} exists and is not a complete synthetic data set: remove it or choose another folder"
        ) from None
    differing = [name for name, value in settings.items() if found.get(name) != value]
    if differing:
        name = differing[0]
        raise UserError(
            f"{root} holds a synthetic data set with {name} {found.get(name)}, not {settings[name]}: "
            "remove it or choose another folder"
        )
