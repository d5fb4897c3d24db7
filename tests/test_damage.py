"""Damaged input of every kind is read, or refused in one line, soon, in little memory, and nothing else is touched.

300 cases here. By hand, `DSHMP_DAMAGE=10000 pytest -s tests/test_damage.py` tries so many and prints a table by kind;
`DSHMP_DAMAGE_KIND` names one kind, `DSHMP_DAMAGE_FIRST` the number of the first case.
"""

import functools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from clips import picture, tiny_model, write_clip
from damage import RAW, VALUES
from dshmp.checkpoint import load_config, load_model, save_model
from dshmp.common.errors import UserError
from dshmp.common.lists import read_list
from dshmp.common.options import Options
from dshmp.common.rle import encode
from dshmp.data.base import Expression, by_video, frame_size, read_shape
from dshmp.data.check import examine
from dshmp.data.images import save_palette_png
from dshmp.data.mini import make_mini
from dshmp.data.registry import DATASETS, dataset
from dshmp.evaluation import report
from dshmp.evaluation.coco import image_id
from dshmp.evaluation.predictions import validate_zip, write_zip
from dshmp.evaluation.score import run as score
from dshmp.inference.segment import segment_to_folder
from dshmp.inference.segmenter import Segmenter
from dshmp.interop.safe_load import read_tensors
from dshmp.model.tokenizer import load_tokenizer, save_tokenizer
from dshmp.results.folder import folder_names, owners_in, read_document
from dshmp.synthetic.make import make_synthetic
from dshmp.training import train
from dshmp.training.configs import overview
from dshmp.training.recipe import check_run_folder, load_recipe, save_recipe
from dshmp.video.io import open_video
from dshmp.video.overlay import save_png

COUNT = int(os.environ.get("DSHMP_DAMAGE", "300"))
HERE = Path(__file__).parent


class Kind(NamedTuple):
    make: Callable[[Path], object]
    """Makes good input in a folder that is there."""
    read: Callable[[Path, random.Random], object]
    """Reads it as the commands do. May raise nothing but UserError, and then leaves the folder as it was."""
    writes: str = ""
    """A pattern of files that may be written all the same."""


# How good input is made -------------------------------------------------------------------------------------------


def make_recipe(folder: Path) -> None:
    tiny.write_recipe(folder / "base.yaml", tiny.recipe("whole", Path("data")))
    more = {"base": "base.yaml", "steps": 20, "weights": {"mask": 2.0}, "about": {"reproduces": "nothing"}}
    tiny.write_recipe(folder / "recipe.yaml", more)


def make_lists(folder: Path) -> None:
    for name in ("clip.mp4", "other.mp4"):
        write_clip(folder / name, 3)
    rows = [("clip.mp4", "the red star"), ("clip.mp4", 'the one, "left"'), ("other.mp4", "ä 狗")]
    lines = ["video,expression", *(f'{video},"{text.replace(chr(34), chr(34) * 2)}"' for video, text in rows)]
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = [json.dumps({"video": video, "expression": text}) for video, text in rows]
    (folder / "list.jsonl").write_text("\n".join(told) + "\n", encoding="utf-8")


def make_run(folder: Path) -> None:
    """A finished run of three steps, and its data beside it."""
    data = folder.parent / "run data"
    make_synthetic(data, train=2, valid=1, test=1, version=1, workers=1)
    recipe = tiny.recipe("language", data, checkpoint_every=2, keep=2, validate_every=3)
    tiny.write_recipe(folder / "recipe.yaml", recipe)
    train.run(folder / "recipe.yaml", [], folder / "run", "cpu")


def make_model(folder: Path) -> None:
    save_model(*tiny_model(), folder / "model")


def make_weights(folder: Path) -> None:
    state = {"model": {f"a.{i}.weight": torch.arange(12.0).reshape(3, 4) + i for i in range(3)}, "step": 3}
    torch.save(state, folder / "new.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    arrays = {key: value.numpy() for key, value in state["model"].items()}  # type: ignore[attr-defined]
    import pickle

    (folder / "detectron.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, 2))
    from safetensors.torch import save_file

    save_file(state["model"], folder / "plain.safetensors")  # type: ignore[arg-type]


def make_tokenizer(folder: Path) -> None:
    save_tokenizer(tiny.tokenizer().tokenizer, folder / "tokenizer.json")


def make_predictions(folder: Path, name: str, split_name: str) -> None:
    """The truth as predictions; the data set lies beside."""
    chosen = dataset(name)
    root = folder.parent / f"{name} mini"
    if not root.exists():
        make_mini(name, chosen.mini, root)
    split = chosen.open(root, split_name)
    pred = folder / "pred"
    found = []
    for video, items in by_video(split).items():
        names, size = split.videos[video].frames, frame_size(split, video)
        for item in items:
            scored = range(len(names)) if item.scored is None else item.scored
            masks = split.masks(video, item.annotations, scored, size).any(0)
            for position, mask in zip(scored, masks, strict=True):
                if chosen.layout == "coco":
                    found.append(
                        {"image_id": image_id(item), "category_id": 1, "segmentation": encode(mask), "score": 0.5}
                    )
                elif chosen.layout == "davis":
                    save_palette_png(pred / "anno_0" / video / f"{names[position]}.png", mask.astype(np.uint8))
                else:
                    path = pred / ("Annotations" if chosen.layout == "youtube_vos" else "") / video / item.id
                    path.mkdir(parents=True, exist_ok=True)
                    save_png(path / f"{names[position]}.png", mask.astype(np.uint8) * 255)
    pred.mkdir(exist_ok=True)
    (pred / "predict.json").write_text(
        json.dumps({"dataset": name, "threshold": 0.5, "targets": "many", "weights": "x"})
    )
    if chosen.layout == "coco":
        (pred / "predictions.json").write_text(json.dumps(found))


def make_zip(folder: Path) -> None:
    make_predictions(folder, "mevis", "valid_u")
    root = folder.parent / "mevis mini"
    (folder / "pred" / "predict.json").unlink()
    write_zip(folder / "pred", dataset("mevis").open(root, "valid_u"), "mevis")
    shutil.rmtree(folder / "pred")


def make_results(folder: Path) -> None:
    """Of `score`, in a folder that it goes on with, with a model whose card has been filled, and of `segment`."""
    make_predictions(folder, "mevis", "valid_u")
    root = folder.parent / "mevis mini"
    score("mevis", root, "valid_u", folder / "pred", folder / "scores", 1)
    shutil.move(folder / "pred", folder.parent / "results pred")
    write_clip(folder.parent / "results clip.mp4", 3)
    save_model(*tiny_model(), folder.parent / "results model")
    segment_to_folder(folder.parent / "results clip.mp4", ["a red star"], folder / "out", *answering(folder.parent))


def answering(good: Path) -> tuple[Options, Callable[[Options], Segmenter]]:
    options = Options(model=str(good / "results model"), device="cpu")
    return options, functools.cache(lambda _: Segmenter.from_pretrained(options.model, "cpu"))


def make_arguments(folder: Path) -> None:
    write_clip(folder / "clip.mp4", 3)
    save_model(*tiny_model(), folder / "model")


@functools.cache
def segmenter() -> Segmenter:
    return Segmenter.from_pretrained(Path(os.environ["DSHMP_GOOD"], "arguments", "model"), "cpu")


def make_images(folder: Path) -> None:
    for kind in ("jpg", "png", "bmp", "webp"):
        (folder / kind).mkdir()
        for index in range(2):
            image = Image.fromarray(picture(index))
            image = image.convert("P") if kind == "png" and index else image
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(folder / kind / f"{index}.{kind}", exif=exif)


def make_videos(folder: Path) -> None:
    for suffix in ("mp4", "mkv", "avi", "ts", "mov"):
        write_clip(folder / f"clip.{suffix}", 6, audio="aac" if suffix in ("mp4", "mov") else None)
    images = [Image.fromarray(picture(index)) for index in range(4)]
    images[0].save(folder / "clip.gif", save_all=True, append_images=images[1:])


# How it is read ---------------------------------------------------------------------------------------------------


def all_of(read: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Read each, also after one that is refused."""
    faults = []
    for item in items:
        try:
            read(item)
        except UserError as error:
            faults.append(error)
    if faults:
        raise max(faults, key=lambda error: str(error).count("\n"))


def read_recipe(folder: Path, chance: random.Random) -> None:
    key = chance.choice(("steps", "model.hidden_size", "data.mevis.root", "run", "a", "about.memory_gb", "init", ""))
    text = chance.choice([*map(str, VALUES), "[" * 5000, "{a: " * 2000, "&a [*a]"])
    recipe = load_recipe(folder / "recipe.yaml", chance.choice(([], [], [f"{key}={text}"])))
    save_recipe(Path(os.environ["DSHMP_GOOD"], "again"), recipe)
    check_run_folder(folder / "run", recipe)
    overview(folder)


def read_lists(folder: Path, chance: random.Random) -> None:
    for name in ("list.csv", "list.jsonl"):
        jobs = read_list(folder / name)
        folder_names(list(jobs), owners_in(folder / "out"))
        all_of(open_video, jobs)


def read_run(folder: Path, chance: random.Random) -> None:
    """Go on with the run, at times with more steps."""
    train.run(folder / "recipe.yaml", [f"steps={chance.choice((3, 3, 4))}"], folder / "run", "cpu")


def read_model(folder: Path, chance: random.Random) -> None:
    _, tokenizer = load_model(folder / "model")
    tokenizer(["the red star", "ä"])
    load_config(folder / "model" / "config.json")


def read_weights(folder: Path, chance: random.Random) -> None:
    names = ["new.pth", "old.pth", "detectron.pkl", "plain.safetensors"]
    all_of(lambda name: [value.float().sum() for value in read_tensors(folder / name).values()], names)


def read_tokenizer(folder: Path, chance: random.Random) -> None:
    from dshmp.model.tokenizer import TextTokenizer

    tokenizer = load_tokenizer(folder)
    TextTokenizer(tiny.config(), tokenizer)(["the red star moves", "ä " * 20])


def read_data(folder: Path, chance: random.Random, name: str) -> None:
    chosen = dataset(name)
    found = examine(chosen.check, folder, full=True)
    faults = [finding for finding in found.findings if "the check could not go on" in finding.reason]
    assert not faults, faults
    assert all("\n" not in str(finding) for finding in found.findings)

    def use(split_name: str) -> None:
        split = chosen.open(folder, split_name)
        for item in split.expressions[:4] if split.has_truth else ():
            positions = list(item.scored or range(min(2, len(split.videos[item.video].frames))))
            split.masks(item.video, item.annotations, positions, frame_size(split, item.video))

    all_of(use, [split for split in chosen.splits if chosen.layout != "mevis" or (folder / split).is_dir()])


def read_predictions(folder: Path, chance: random.Random, name: str, split: str) -> None:
    root = Path(os.environ["DSHMP_GOOD"], f"{name} mini")
    pred = next(iter(folder.glob("pred*")), folder / "pred")
    if pred.suffix == ".zip":
        validate_zip(pred, dataset(name).open(root, split), "mevis")
    score(name, root, split, pred, None, 1)


def read_results(folder: Path, chance: random.Random) -> None:
    good = Path(os.environ["DSHMP_GOOD"])
    results = folder / "scores" / "results.json"
    other = read_shape(results, report.Results).model_dump()
    report.print_table(other | {"counts": {"videos": 1, "expressions": 1}, "subsets": {}}, other, "other")
    read_document(folder / "out" / "results clip")
    if chance.random() < 0.5:
        score("mevis", good / "mevis mini", "valid_u", good / "results pred", folder / "scores", 1, results)
    else:
        options, load = answering(good)
        segment_to_folder(
            good / "results clip.mp4", [chance.choice(("a red star", "b"))], folder / "out", options, load
        )


def read_pictures(folder: Path, chance: random.Random) -> None:
    all_of(lambda path: list(open_video(path)), sorted(folder.iterdir()))


def read_arguments(folder: Path, chance: random.Random) -> None:
    """A call of the library, with a few wrong arguments; the kinds of errors are those that it names."""
    odd = [*VALUES[: -len(RAW)], b"x", 1j, object(), np.zeros(3), {1}, (1, 2), "5:", "0:9"]
    odd += [float("nan"), float("inf"), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8), 10**400]
    names = ("video", "expression", "frames", "fps", "threshold", "targets", "progress")
    asked = {"video": folder / "clip.mp4", "expression": "a red star"}
    asked |= {name: chance.choice(odd) for name in chance.sample(names, chance.choice((1, 1, 2)))}
    try:
        segmenter()(asked.pop("video"), asked.pop("expression"), **asked)
    except (TypeError, ValueError) as error:
        raise UserError(error) from None


KINDS = {
    "arguments": Kind(make_arguments, read_arguments),
    "recipe": Kind(make_recipe, read_recipe),
    "list": Kind(make_lists, read_lists),
    "run": Kind(make_run, read_run, r"run/(recipe\.yaml|run\.json|metrics\.jsonl)"),
    "model": Kind(make_model, read_model),
    "weights": Kind(make_weights, read_weights),
    "tokenizer": Kind(make_tokenizer, read_tokenizer),
    "results": Kind(make_results, read_results),
    "images": Kind(make_images, read_pictures),
    "videos": Kind(make_videos, read_pictures),
    "zip": Kind(make_zip, functools.partial(read_predictions, name="mevis", split="valid_u")),
}
for _name, _split in {"mevis": "valid_u", "ref-davis17": "val", "jhmdb": "test", "refcoco": "val"}.items():
    KINDS[f"predictions of {_name}"] = Kind(
        functools.partial(make_predictions, name=_name, split_name=_split),
        functools.partial(read_predictions, name=_name, split=_split),
    )
for _name, _data in DATASETS.items():
    KINDS[_name] = Kind(
        lambda folder, data=_data: data.mini(folder, 0),
        functools.partial(read_data, name=_name),  # type: ignore[misc]
    )


def make_list(folder: Path, name: str, path: str, row: Callable[[Expression, int], list[Any]]) -> None:
    """A data set with MTTR's list of the samples of its test split."""
    chosen = dataset(name)
    chosen.mini(folder, 0)
    split = chosen.open(folder, "test")
    rows = [row(item, len(split.videos[item.video].frames)) for item in split.expressions]
    (folder / path).write_text(json.dumps(rows))


KINDS["jhmdb's list"] = Kind(
    functools.partial(
        make_list,
        name="jhmdb",
        path="jhmdb_sentences_samples_metadata.json",
        row=lambda item, length: [item.video, f"{int(item.id):05d}.png", "", length, item.text],
    ),
    functools.partial(read_data, name="jhmdb"),
)
KINDS["a2d's list"] = Kind(
    functools.partial(
        make_list,
        name="a2d",
        path="a2d_sentences_single_frame_test_annotations.json",
        row=lambda item, _: [item.text, item.video, *map(int, item.id.split("_"))],
    ),
    functools.partial(read_data, name="a2d"),
)


def try_cases(good: Path, wanted: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Cases in a process of their own; the case at which that dies is told, and another one goes on."""
    found: list[dict[str, Any]] = []
    environment = {**os.environ, "DSHMP_GOOD": str(good), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    while len(found) < len(wanted):
        command, asked = [sys.executable, HERE / "damage.py", good], json.dumps(wanted[len(found) :])
        options: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "env": environment}
        done = subprocess.run(command, input=asked, **options)
        found += [json.loads(line) for line in done.stdout.splitlines()]
        if len(found) < len(wanted):
            kind, number = wanted[len(found)]
            told = {"outcome": f"died ({done.returncode})", "told": done.stderr[-1000:], "what": ""}
            found.append({"kind": kind, "number": number, "seconds": 0, "memory": 0} | told)
    return found


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| kind | tried | read | refused | wrong | slowest, s | most, MB |", "|---|---|---|---|---|---|---|"]
    for kind in dict.fromkeys(each["kind"] for each in found):
        own = [each for each in found if each["kind"] == kind]
        counts = [sum(each["outcome"] == outcome for each in own) for outcome in ("read", "refused")]
        worst = f"{max(each['seconds'] for each in own):.1f} | {max(each['memory'] for each in own)}"
        lines.append(f"| {kind} | {len(own)} | {counts[0]} | {counts[1]} | {len(own) - sum(counts)} | {worst} |")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at memory in /proc")
def test_damaged_input(tmp_path: Path) -> None:
    good = tmp_path / "good"
    only, first = os.environ.get("DSHMP_DAMAGE_KIND"), int(os.environ.get("DSHMP_DAMAGE_FIRST", "0"))
    chosen = [kind for kind in KINDS if only in (None, kind)]
    for kind in chosen:
        (good / kind).mkdir(parents=True)
        KINDS[kind].make(good / kind)
    counts = [COUNT // len(chosen) + (index < COUNT % len(chosen)) for index in range(len(chosen))]
    found = try_cases(
        good, [(kind, first + i) for kind, count in zip(chosen, counts, strict=True) for i in range(count)]
    )
    print(table(found))
    wrong = [each for each in found if each["outcome"] not in ("read", "refused")]
    if record := os.environ.get("DSHMP_DAMAGE_RECORD"):
        Path(record).write_text(json.dumps(found, indent=0))
    assert not wrong, wrong[:3]
