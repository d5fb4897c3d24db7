"""`dshmp data check` and `dshmp data mini`: miniatures are whole, and every kind of damage gives its line."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dshmp.cli import app
from dshmp.common.errors import UserError
from dshmp.common.rle import encode
from dshmp.data import mevis
from dshmp.data.check import CheckReport, examine
from dshmp.data.images import read_index_mask, save_jpeg, save_palette_png
from dshmp.data.mini import make_mini
from dshmp.data.registry import DATASETS, dataset, open_split

OURS = ("mevis", "ref-youtube-vos", "ref-davis17")
SQUARE = np.zeros((6, 7), bool)
SQUARE[1:4, 2] = True


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Miniatures by name, written once."""

    @cache
    def make(name: str) -> Path:
        out = tmp_path_factory.mktemp("minis") / name
        make_mini(name, DATASETS[name].mini, out)
        return out

    return make


def lines(name: str, root: Path, full: bool = True, **options: Any) -> list[str]:
    return [str(item) for item in examine(dataset(name).check, root, full=full, **options).findings]


# --- Miniatures ---


@pytest.mark.parametrize("name", OURS)
def test_miniatures_are_whole(name: str, made: Callable[[str], Path]) -> None:
    root = made(name)
    for full in (True, False):
        report = examine(dataset(name).check, root, full=full)
        assert report.findings == []
        assert "published counts are not compared" in report.notes[0]
    assert sum(item.stat().st_size for item in root.rglob("*") if item.is_file()) < 3e6
    assert json.loads((root / "mini.json").read_text()) == {"dshmp_mini": 1, "dataset": name, "seed": 0}
    for split in DATASETS[name].splits:
        if name != "mevis" or split != "test":
            assert open_split(name, root, split).expressions


@pytest.mark.parametrize("name", OURS)
def test_equal_seeds_make_equal_miniatures(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    def contents(root: Path) -> dict[str, bytes]:
        return {str(item.relative_to(root)): item.read_bytes() for item in root.rglob("*") if item.is_file()}

    make_mini(name, DATASETS[name].mini, tmp_path / "same", 0)
    make_mini(name, DATASETS[name].mini, tmp_path / "other", 1)
    assert contents(tmp_path / "same") == contents(made(name))
    assert contents(tmp_path / "other") != contents(made(name))
    assert lines(name, tmp_path / "other") == []


def test_a_whole_file_of_another_layout_is_not_fetched_again(made: Callable[[str], Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(made("mevis"), tmp_path / "mevis"))
    path = root / "valid_u" / "meta_expressions.json"
    path.write_text('{"videos": {"a": {"pictures": ["00000"]}}}')  # whole
    (line,) = [line for line in lines("mevis", root) if "valid_u" in line]
    assert line.endswith(
        "videos.a.frames: is missing; mend it, or compare it with the layout in the documentation (docs/data.md)"
    )
    path.write_text('{"videos": {"a"')
    (line,) = [line for line in lines("mevis", root) if "valid_u" in line]
    assert line.endswith("; fetch or unpack it again")


def test_a_miniature_is_written_wholly_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path, seed: int) -> None:
        (folder / "half").write_text("")
        raise OSError("no space left")

    out = tmp_path / "out"
    with pytest.raises(OSError, match="no space left"):
        make_mini("mevis", fail, out)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    make_mini("mevis", lambda folder, seed: None, out)  # an empty folder may be there
    assert [item.name for item in out.iterdir()] == ["mini.json"]
    with pytest.raises(UserError, match="is there already"):
        make_mini("mevis", lambda folder, seed: None, out)


def test_a_miniature_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("")
    make_mini("mevis", lambda folder, seed: None, tmp_path / "out")
    assert (tmp_path / "out.partial" / "mine").is_file()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    make_mini("mevis", lambda folder, seed: None, Path("."))
    assert [item.name for item in (tmp_path / "empty").iterdir()] == ["mini.json"]


# --- Damage ---


def edit(path: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        values = json.loads((root / path).read_text())
        change(values)
        (root / path).write_text(json.dumps(values))

    return apply


def files(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[2]


def first_of(values: dict[str, Any]) -> Any:
    return next(iter(values.values()))


def first_expression(values: Any) -> Any:
    return first_expressions(values)["0"]


def first_expressions(values: Any) -> Any:
    return first_of(values["videos"])["expressions"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-150])


def shrink(path: Path) -> None:
    with Image.open(path) as image:
        small = image.resize((9, 8))
    small.save(path)


def grey_to_rgb(path: Path) -> None:
    with Image.open(path) as image:
        coloured = image.convert("RGB")
    coloured.save(path)


def damage_rle(masks: Any) -> None:
    track = first_of(masks)
    track[1]["counts"] = track[1]["counts"][:-2]


def erase(root: Path, pattern: str) -> None:
    """Nobody drew object 1."""
    for path in root.glob(pattern):
        indices = read_index_mask(path).copy()
        indices[indices == 1] = 0
        save_palette_png(path, indices)


def say(root: Path, line: str) -> None:
    (root / TEXT).write_text((root / TEXT).read_text() + f"{line}\n")


META, MASKS = "train/meta_expressions.json", "train/mask_dict.json"
YTVOS = "meta_expressions/train/meta_expressions.json"
JPEG, PNG = "train/JPEGImages/*/*.jpg", "train/Annotations/*/*.png"
DAVIS_JPEG, DAVIS_PNG = "JPEGImages/480p/*/*.jpg", "Annotations_unsupervised/480p/*/*.png"
TEXT = "davis_text_annotations/Davis17_annot1.txt"

DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str, str]] = {
    # what: (data set, how, the line's path ends with, the line holds)
    "frame missing": (
        "mevis",
        lambda r: files(r, JPEG).unlink(),
        "00002.jpg",
        "frame is missing; fetch or unpack it again",
    ),
    "frame empty": ("mevis", lambda r: files(r, JPEG).write_bytes(b""), "00002.jpg", "is empty (0 bytes)"),
    "frame cut off": ("mevis", lambda r: cut(files(r, JPEG)), "00002.jpg", "cannot be read as an image"),
    "frame small": ("mevis", lambda r: shrink(files(r, JPEG)), "00002.jpg", "is 9x8, other frames of the video"),
    "video missing": (
        "mevis",
        lambda r: shutil.rmtree(files(r, "train/JPEGImages/*")),
        "",
        "the folder is missing; fetch or unpack it again",
    ),
    "no expressions": ("mevis", lambda r: (r / META).unlink(), META, "missing"),
    "expressions cut off": ("mevis", lambda r: cut(r / META), META, "is not valid JSON"),
    "expression without text": (
        "mevis",
        edit(META, lambda v: first_expression(v).update(exp=" ")),
        META,
        "has no text",
    ),
    "pairs torn": (
        "mevis",
        edit(META, lambda v: first_expression(v)["anno_id"].append(1)),
        META,
        "obj_id and 2 anno_id",
    ),
    "pairs that disagree": (
        "mevis",
        edit(META, lambda v: first_expressions(v).update(x={"exp": "it", "obj_id": [0, 0], "anno_id": [0, 1]})),
        META,
        "has anno_id 1 for object 0, elsewhere 0",
    ),
    "frame listed twice": (
        "mevis",
        edit(META, lambda v: first_of(v["videos"])["frames"].append("00000")),
        META,
        "lists no frame, or one of them twice",
    ),
    "masks cut off": ("mevis", lambda r: cut(r / MASKS), MASKS, "is not valid JSON (cut off at"),
    "masks missing": ("mevis", lambda r: (r / MASKS).unlink(), MASKS, "missing"),
    "annotation missing": (
        "mevis",
        edit(MASKS, lambda v: v.pop("0")),
        MASKS,
        "annotation 0 is missing, which a sentence of",
    ),
    "track short": ("mevis", edit(MASKS, lambda v: v["0"].pop()), MASKS, "has masks for 7 frames, the video has 8"),
    "run lengths damaged": ("mevis", edit(MASKS, damage_rle), MASKS, "annotation 0, frame 1 has run lengths that"),
    "mask of another size": (
        "mevis",
        edit(MASKS, lambda v: v["0"][1].update(size=[3, 4])),
        MASKS,
        "annotation 0, frame 1 has size [3, 4], its frames have",
    ),
    "valid without test": (
        "ref-youtube-vos",
        lambda r: shutil.rmtree(r / "meta_expressions/test"),
        "meta_expressions/test/meta_expressions.json",
        "missing",
    ),
    "object not named": (
        "ref-youtube-vos",
        edit(YTVOS, lambda v: first_expression(v).pop("obj_id")),
        YTVOS,
        "has expressions without obj_id",
    ),
    "mask missing": (
        "ref-youtube-vos",
        lambda r: files(r, PNG).unlink(),
        "00010.png",
        "mask is missing; fetch or unpack it again",
    ),
    "mask in colour": ("ref-youtube-vos", lambda r: grey_to_rgb(files(r, PNG)), "00010.png", "is a RGB image"),
    "mask cut off": ("ref-youtube-vos", lambda r: cut(files(r, PNG)), "00010.png", "cannot be read as an image"),
    "mask small": ("ref-youtube-vos", lambda r: shrink(files(r, PNG)), "00010.png", "is 9x8, its frame is"),
    "frame of DAVIS missing": ("ref-davis17", lambda r: files(r, DAVIS_JPEG).unlink(), "00002.jpg", "is missing"),
    "mask of DAVIS missing": ("ref-davis17", lambda r: files(r, DAVIS_PNG).unlink(), "00002.png", "is missing"),
    "text line garbled": ("ref-davis17", lambda r: (r / TEXT).write_text("\nbear"), TEXT, "line 2 is not `<video>"),
    "text line missing": (
        "ref-davis17",
        lambda r: (r / TEXT).write_text("".join((r / TEXT).read_text().splitlines(True)[1:])),
        TEXT,
        "says nothing of object 1 of 'bear'",
    ),
    "an expression without anno_id": (
        "mevis",
        edit(META, lambda v: first_expressions(v).update(x={"exp": "it"})),
        META,
        "expression 'x' has no anno_id, as 1 of",
    ),
    "ids that are not whole": (
        "mevis",
        edit(META, lambda v: first_expression(v).update(obj_id=[0.9], anno_id=[0.9])),
        META,
        "expressions.0.obj_id.0: must be a valid integer, found 0.9",
    ),
    "ids in a string": (
        "mevis",
        edit(META, lambda v: first_expression(v).update(obj_id="10", anno_id="10")),
        META,
        "expressions.0.obj_id: must be a valid list, found '10'",
    ),
    "objects that are no objects": (
        "mevis",
        edit(META, lambda v: first_of(v["videos"]).update(objects={"1": "dog"})),
        META,
        "objects.1: must be a valid dictionary, found 'dog'",
    ),
    "static objects that nobody drew": (
        "mevis",
        edit(
            META,
            lambda v: (first_of(v["videos"]).update(objects={"1": {}}), first_expression(v).update(static_ids=[1])),
        ),
        META,
        "has static_ids that are no objects with an anno_id",
    ),
    "half a character": (
        "mevis",
        edit(META, lambda v: first_expression(v).update(exp="a \ud800 dog")),
        META,
        "surrogates not allowed",
    ),
    "an expression twice": (
        "mevis",
        lambda r: (r / META).write_text((r / META).read_text().replace('"0": {', '"1": {"exp": "b"}, "0": {', 1)),
        META,
        "an object holds '1' twice",
    ),
    "an annotation twice": (
        "mevis",
        lambda r: (r / MASKS).write_text((r / MASKS).read_text()[:-1] + ', "0": []}'),
        MASKS,
        "holds annotation '0' twice",
    ),
    "run lengths that decoders hang on": (
        "mevis",
        edit(MASKS, lambda v: v["0"][1].update(counts="\u0100\u0100" + v["0"][1]["counts"])),
        MASKS,
        "annotation 0, frame 1 has run lengths that are damaged",
    ),
    "size of text": (
        "mevis",
        edit(MASKS, lambda v: v["0"][1].update(size=["3", "4"])),
        MASKS,
        "annotation 0, frame 1 has size ['3', '4'], its frames have",
    ),
    "object 1.9": (
        "ref-youtube-vos",
        edit(YTVOS, lambda v: first_expression(v).update(obj_id=1.9)),
        YTVOS,
        "expressions.0.obj_id: must be a valid integer",
    ),
    "object 0": (
        "ref-youtube-vos",
        edit(YTVOS, lambda v: first_expression(v).update(obj_id="0")),
        YTVOS,
        "expressions.0.obj_id: must be at least 1",
    ),
    "object in no mask": (
        "ref-youtube-vos",
        lambda r: erase(r, "train/Annotations/000*/*.png"),
        "",
        "no mask shows object 1, which a sentence means",
    ),
    "object of DAVIS in no mask": (
        "ref-davis17",
        lambda r: erase(r, "Annotations_unsupervised/480p/libby/*.png"),
        "libby",
        "no mask shows object 1, which a sentence means",
    ),
    "object 01": ("ref-davis17", lambda r: say(r, 'libby 01 "the x"'), TEXT, "is not `<video> <object>"),
    "object 300": ("ref-davis17", lambda r: say(r, 'libby 300 "the x"'), TEXT, "is not `<video> <object>"),
    "an object that nobody drew": (
        "ref-davis17",
        lambda r: (r / TEXT).write_text((r / TEXT).read_text() + 'bear 7 "a goose"\n'),
        "480p/bear",
        "no mask shows object 7, which a sentence means",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_gives_its_line(kind: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    name, damage, path, message = DAMAGE[kind]
    root = Path(shutil.copytree(made(name), tmp_path / "copy"))
    damage(root)
    found = examine(dataset(name).check, root, full=True).findings
    told = [item for item in found if str(item.path).endswith(path) and message in str(item)]
    assert told, "\n".join(map(str, found))
    assert len(found) <= 6
    assert not any("\n" in str(item) or item.path.is_absolute() for item in found)


def test_published_counts_and_checksums(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Without its mark, a miniature is a real data set of which much is missing; unless one says it is one's own."""
    for name in OURS:
        root = Path(shutil.copytree(made(name), tmp_path / name))
        (root / "mini.json").unlink()
        assert any("the published data set has" in line for line in lines(name, root, full=False))
        assert lines(name, root, own=True) == []
    (line,) = lines("mevis", tmp_path / "mevis", splits=("valid_u",))
    assert line.startswith("valid_u/meta_expressions.json: holds 3 videos, ")
    assert "the published data set has 50 videos, 793 expressions or 50 videos, 907 expressions; fetch" in line
    (line,) = lines("ref-youtube-vos", tmp_path / "ref-youtube-vos", splits=("valid",))
    assert "the published data set has 202 videos, 834 expressions, 5,486 frames;" in line
    (line,) = lines("ref-davis17", tmp_path / "ref-davis17", splits=("val",))
    assert "the published data set has 30 videos, 61 objects, 244 expressions, 1,999 frames;" in line


def test_version_2_of_mevis_has_counts_of_its_own(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(made("mevis"), tmp_path / "mevis"))
    (root / "mini.json").unlink()
    found = {"videos": 3, "expressions": len(open_split("mevis", root, "train").expressions)}
    monkeypatch.setitem(mevis.COUNTS, "train", ({"videos": 3, "expressions": 1}, found))
    assert lines("mevis", root, splits=("train",)) == []  # the published checksum is version 1's
    monkeypatch.setitem(mevis.COUNTS, "train", (found,))
    (line,) = lines("mevis", root, splits=("train",))
    assert line.startswith("train/mask_dict.json: has the SHA256 ")
    assert f"published is {mevis.SHA256['train']}; fetch" in line


def test_a_fast_check_decodes_a_sample(made: Callable[[str], Path], tmp_path: Path) -> None:
    report = CheckReport(full=False)
    assert report.sample(range(1000), 4) == [0, 250, 500, 750]
    assert CheckReport(full=True).sample(range(1000), 4) == list(range(1000))
    root = Path(shutil.copytree(made("mevis"), tmp_path / "mevis"))
    for path in root.glob("*/JPEGImages/*/*.jpg"):
        path.write_bytes(np.random.default_rng(0).bytes(500))
    fast, full = lines("mevis", root, full=False), lines("mevis", root)
    assert 50 < len(fast) <= len(full) == 72


@pytest.mark.parametrize("error", [KeyError("b"), MemoryError(), Image.DecompressionBombError("b"), EOFError()])
def test_what_a_check_did_not_foresee_is_a_finding(error: Exception, tmp_path: Path) -> None:
    def check(root: Path, report: CheckReport) -> None:
        report.found(root / "a", "is wrong")
        raise error

    assert [str(item) for item in examine(check, tmp_path).findings] == [
        "a: is wrong; fetch or unpack it again",
        f".: the check could not go on ({error!r}); mend what is named above and check again",
    ]


def test_findings_are_lines_that_a_terminal_may_show(tmp_path: Path) -> None:
    def check(root: Path, report: CheckReport) -> None:
        report.found(root / "a\nb\x1b[31m", "is \ud800")
        report.note("a\x07")

    report = examine(check, tmp_path)
    assert [str(item) for item in report.findings] == ["a\\nb\\x1b[31m: is \\ud800; fetch or unpack it again"]
    assert report.notes == ["a\\x07"]


# --- Names ---

NAMES = [
    "../../x",
    "/etc",
    "a\nb\x1b[31m",
    "\ud800",
    "a\0b",
    "",
    ".",
    "..",
    "v" * 300,
    "Annotations",
    "predict.json",
    "._x",
]


def renamed(values: dict[str, Any], old: str, new: str) -> None:
    values[new] = values.pop(old)


def rename_video(path: str) -> Callable[[str], Callable[[Path], None]]:
    return lambda name: edit(path, lambda v: renamed(v["videos"], next(iter(v["videos"])), name))


PLACES: dict[str, tuple[str, str, Callable[[str], Callable[[Path], None]]]] = {
    "video of MeViS": ("mevis", "train", rename_video(META)),
    "expression of MeViS": (
        "mevis",
        "train",
        lambda name: edit(META, lambda v: renamed(first_expressions(v), "0", name)),
    ),
    "frame of MeViS": (
        "mevis",
        "train",
        lambda name: edit(META, lambda v: first_of(v["videos"])["frames"].append(name)),
    ),
    "video of Ref-YouTube-VOS": ("ref-youtube-vos", "train", rename_video(YTVOS)),
    "expression of Ref-YouTube-VOS": (
        "ref-youtube-vos",
        "train",
        lambda name: edit(YTVOS, lambda v: renamed(first_expressions(v), "0", name)),
    ),
    "image of RefCOCO": (
        "refcoco",
        "train",
        lambda name: edit("refcoco/instances.json", lambda v: v["images"][0].update(file_name=f"{name}.jpg")),
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_no_file_can_have_are_refused(
    place: str, name: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    dataset_name, split, rename = PLACES[place]
    if place == "image of RefCOCO" and name in ("../../x", "/etc", "", ".", "a\0b"):
        return  # only the last part of the path is a name
    root = Path(shutil.copytree(made(dataset_name), tmp_path / "copy"))
    rename(name)(root)
    with pytest.raises(UserError, match="so no file can be called so"):
        open_split(dataset_name, root, split)
    found = lines(dataset_name, root, splits=(split,))
    assert any("so no file can be called so" in line for line in found)
    assert all(line.isprintable() for line in found)


def test_names_in_text_files_are_refused(made: Callable[[str], Path], tmp_path: Path) -> None:
    davis = Path(shutil.copytree(made("ref-davis17"), tmp_path / "davis"))
    (davis / "ImageSets/2017/val.txt").write_text("libby\n../../x\n")
    a2d = Path(shutil.copytree(made("a2d"), tmp_path / "a2d"))
    with open(a2d / "Release/videoset.csv", "a") as file:
        file.write("../../x,18,0,0,80,112,24,3,1\n")
    jhmdb = Path(shutil.copytree(made("jhmdb"), tmp_path / "jhmdb"))
    with open(jhmdb / "jhmdb_annotation.txt", "a") as file:
        file.write("../../x,foo\n")
    for name, root, split in (("ref-davis17", davis, "val"), ("a2d", a2d, "test"), ("jhmdb", jhmdb, "test")):
        with pytest.raises(UserError, match="holds one of / "):
            open_split(name, root, split)
        assert any("'../../x' holds one of" in line for line in lines(name, root))


def test_ones_own_splits_may_have_any_name(made: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "mine"
    shutil.copytree(made("mevis") / "valid", root / "clips")
    assert lines("mevis", root, own=True) == []
    assert lines("mevis", root, own=True, splits=("clips",)) == []
    files(root, "clips/JPEGImages/*/*.jpg").unlink()
    assert "frame is missing; put it right, or take it out" in lines("mevis", root, own=True, splits=("clips",))[0]
    command = ["data", "check", "mevis", str(root), "--split", "clips"]
    assert CliRunner().invoke(app, [*command, "--own"]).exit_code == 1
    assert isinstance(CliRunner().invoke(app, command).exception, UserError)


def own(root: Path, change: Callable[[Any], Any]) -> None:
    """Own data: one video, of which an object is drawn by every form of a mask that COCO has."""
    for t in range(4):
        save_jpeg(root / "clips" / "JPEGImages" / "abc" / f"{t}.jpg", np.zeros((6, 7, 3), np.uint8))
    clip = {"frames": list("0123"), "expressions": {"0": {"exp": "it", "obj_id": [0], "anno_id": [7]}}}
    forms = [{"size": [6, 7], "counts": [13, 3, 26]}, encode(SQUARE), [[2, 1, 3, 1, 3, 4, 2, 4]], None]
    masks = {"7": forms}
    change(masks)
    (root / "clips" / "meta_expressions.json").write_text(json.dumps({"videos": {"abc": clip}}))
    (root / "clips" / "mask_dict.json").write_text(json.dumps(masks))


def test_masks_of_ones_own_data_in_every_form(tmp_path: Path) -> None:
    own(tmp_path, lambda masks: None)
    assert lines("mevis", tmp_path, own=True) == []
    masks = open_split("mevis", tmp_path, "clips").masks("abc", [7], range(4), (6, 7))
    np.testing.assert_array_equal(masks[0], [SQUARE, SQUARE, SQUARE, SQUARE * False])


BAD: dict[str, tuple[Any, str]] = {
    "size": ({"size": [7, 6], "counts": [42]}, "has size [7, 6], its frames have [6, 7]"),
    "too short": ({"size": [6, 7], "counts": [13, 3]}, "has run lengths that cover 16 of 42 pixels"),
    "garbage": ({"size": [6, 7], "counts": ["a", -3]}, "has run lengths that are damaged"),
    "compressed garbage": ({"size": [6, 7], "counts": "~~~"}, "has run lengths that are damaged"),
    "a line": ([[0, 0, 1, 1]], "is no list of polygons, each of three or more x, y"),
    "outside": ([[0, 0, 999, 0, 1, 1]], "has a polygon that leaves its image"),
    "text": ("it", "is no COCO run lengths"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_masks_of_ones_own_data_are_named(kind: str, tmp_path: Path) -> None:
    mask, fault = BAD[kind]
    own(tmp_path, lambda masks: masks["7"].__setitem__(2, mask))
    assert lines("mevis", tmp_path, own=True) == [
        f"clips/mask_dict.json: annotation 7, frame 2 {fault}; mend the entry"
    ]
    with pytest.raises(UserError) as caught:
        open_split("mevis", tmp_path, "clips").masks("abc", [7], [2], (6, 7))
    assert f"mask_dict.json: annotation 7, frame 2 {fault}; mend it, or fetch the file again" in str(caught.value)


def test_too_many_masks_are_told(tmp_path: Path) -> None:
    own(tmp_path, lambda masks: masks["7"].append(None))
    (line,) = lines("mevis", tmp_path, own=True)
    assert line == "clips/mask_dict.json: annotation 7 has masks for 5 frames, the video has 4; mend the entry"


# --- The commands ---


def test_check_command(made: Callable[[str], Path], tmp_path: Path) -> None:
    runner = CliRunner()
    root = Path(shutil.copytree(made("mevis"), tmp_path / "mevis"))
    result = runner.invoke(app, ["data", "check", "mevis", str(root), "--full"])
    assert result.exit_code == 0
    assert result.stdout == f"MeViS in {root} (all decoded): nothing is wrong\n"
    assert "train frames" in result.stderr
    files(root, JPEG).unlink()
    (root / "valid_u" / "mask_dict.json").unlink()
    result = runner.invoke(app, ["data", "check", "mevis", str(root)])
    assert result.exit_code == 1
    first, second, summary = result.stdout.splitlines()
    assert first.startswith("train/JPEGImages/")
    assert second.startswith("valid_u/mask_dict.json: missing; fetch or unpack it again")
    assert summary == f"MeViS in {root} (a sample decoded): 2 things are wrong"
    assert runner.invoke(app, ["data", "check", "mevis", str(root), "--split", "valid"]).exit_code == 0
    result = runner.invoke(app, ["data", "check", "mevis", str(root), "--split", "test"])
    assert (result.exit_code, result.stdout.splitlines()[0]) == (
        1,
        "test: no such data set split; fetch or unpack it again",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "imagenet", "."], "'imagenet' is no data set known here; choose from mevis, "),
        (["check", "mevis", "nowhere"], "nowhere: no such folder"),
        (
            ["check", "mevis", ".", "--split", "val"],
            "MeViS has no split 'val'; choose from train, valid_u",
        ),
        (["mini", "imagenet", "out"], "'imagenet' is no data set known here"),
        (["mini", "mevis", "."], ".: is there already"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["data", *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_mini_command(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "mini"
    result = CliRunner().invoke(app, ["data", "mini", "ref-davis17", str(out), "--seed", "4"])
    assert (result.exit_code, result.stdout) == (0, f"wrote {out}\n")
    assert lines("ref-davis17", out) == []
