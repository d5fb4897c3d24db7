"""What answers are written as is read back: by the libraries it is meant for, our own reader, and readers made here."""

import contextlib
import csv
import io
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from answers import LENGTH, SIZE, drawn, result
from clips import write_clip, write_frames
from dshmp.common.errors import UserError, printable
from dshmp.formats import KINDS, cutouts, write
from dshmp.formats.label_studio import brush
from dshmp.formats.reading import find_tracks, read_tracks
from dshmp.formats.tracks import Tracks
from dshmp.formats.yolo import polygon
from dshmp.results.result import Result
from dshmp.video.io import open_video
from dshmp.video.source import VideoSource

TEXT = 'the ring "that" goes right & <on>'
FIRST = 2  # the answered frames begin there in a longer video


@pytest.fixture(scope="module")
def answer() -> Result:
    return result(TEXT, drawn(), (0.7, 0.9, 0.8))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VideoSource]:
    """A folder of frames, a file, and a range of a longer folder."""
    place = tmp_path_factory.mktemp("videos")
    folder = write_frames(place / "clip", LENGTH, *SIZE)
    longer = write_frames(place / "longer", LENGTH + 3, *SIZE)
    file = write_clip(place / "file.mp4", LENGTH, *SIZE)
    part = open_video(longer, f"{FIRST}:{FIRST + LENGTH}", 25.0)
    return {"folder": open_video(folder, fps=25.0), "file": open_video(file), "range": part}


@pytest.fixture
def source(sources: dict[str, VideoSource]) -> VideoSource:
    return sources["folder"]


def exclusive(masks: np.ndarray, scores: tuple[float, ...]) -> np.ndarray:
    """Masks (K, T, H, W), a pixel being the surest object's alone."""
    out, taken = np.zeros_like(masks), np.zeros(masks.shape[1:], bool)
    for k in np.argsort(scores)[::-1]:
        out[k] = masks[k] & ~taken
        taken |= masks[k]
    return out


def as_array(tracks: Tracks, first: int = 0) -> np.ndarray:
    found = np.zeros((len(tracks.items), LENGTH, *SIZE), bool)
    for t in range(LENGTH):
        for k, track in enumerate(tracks.items):
            found[k, t] = tracks.masks(first + t).get(track.name, False)
    return found


NAMES = {"coco": "{}", "ytvis": "{}", "cvat": "g{}", "mots": "300{}", "davis": "{}"}


@pytest.mark.parametrize("place", ["folder", "file", "range"])
@pytest.mark.parametrize("kind", NAMES)
def test_tracks_come_back_to_the_pixel(
    kind: str, place: str, answer: Result, sources: dict[str, VideoSource], tmp_path: Path
) -> None:
    """Result -> file -> reader of tracks -> masks."""
    source = sources[place]
    files = write([kind], [answer], source, tmp_path / "out")
    assert all(file.is_file() for file in files)
    found = read_tracks(tmp_path / "out" / f"{kind}{KINDS[kind].suffix}", source)
    expected = drawn() if not KINDS[kind].apart else exclusive(drawn(), (0.7, 0.9, 0.8))
    tracks = sorted(found.items, key=lambda track: track.name)
    assert [track.name for track in tracks] == [NAMES[kind].format(k) for k in (1, 2, 3)]
    assert np.array_equal(as_array(replace(found, items=tuple(tracks)), source.start), expected)
    if kind in ("coco", "ytvis", "cvat"):
        assert all(track.words == tuple(TEXT.lower().split()) for track in tracks)


def test_coco_tools_read_it(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    other = result("all", drawn()[:2].any(0, keepdims=True), (0.6,))
    (file,) = write(["coco"], [answer, other], source, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        opened = COCO(str(file))
    assert [each["name"] for each in opened.loadCats(opened.getCatIds())] == [TEXT, "all"]
    images = opened.loadImgs(opened.getImgIds())
    assert [each["file_name"] for each in images] == [f"f{t:03d}.png" for t in range(LENGTH)]
    masks = [*drawn(), drawn()[:2].any(0)]
    seen = 0
    for t, image in enumerate(images):
        for row in opened.loadAnns(opened.getAnnIds(image["id"])):
            mask = masks[row["track_id"] - 1][t]
            rows, columns = np.nonzero(mask)
            assert np.array_equal(opened.annToMask(row) > 0, mask)
            assert row["area"] == mask.sum()
            x, y, width, height = row["bbox"]
            assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert row["category_id"] == 1 + (row["track_id"] == 4)
            assert row["attributes"] == {"track_id": row["track_id"], "score": row["score"]}
            seen += 1
    assert seen == sum(mask.any() for each in masks for mask in each)


def test_coco_as_cvat_exports_it_is_read(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    """Images of no video, tracks among the attributes, and names of frames alone."""
    document = json.loads(json.dumps(answer.to_coco(source)))
    del document["videos"]
    for row in (*document["images"], *document["annotations"]):
        for key in ("video_id", "frame_id", "frame_index", "track_id"):
            row.pop(key, None)
    (tmp_path / "cvat.json").write_text(json.dumps(document))
    found = read_tracks(tmp_path / "cvat.json", source)
    assert np.array_equal(as_array(replace(found, items=tuple(sorted(found.items, key=lambda e: e.name)))), drawn())


def test_youtube_vis_has_a_mask_or_null_per_frame(answer: Result, sources: dict[str, VideoSource]) -> None:
    document = answer.to_ytvis(sources["range"])
    (video,) = document["videos"]
    assert video["length"] == len(video["file_names"]) == FIRST + LENGTH
    assert video["file_names"][0] == "longer/f000.png"
    for row, masks in zip(document["annotations"], drawn(), strict=True):
        assert [rle is not None for rle in row["segmentations"]] == [False] * FIRST + [bool(m.any()) for m in masks]
        assert row["areas"] == [None] * FIRST + [int(m.sum()) or None for m in masks]


def filled(line: str) -> np.ndarray:
    """The mask (H, W) of a line of Ultralytics' labels, filled as Ultralytics does."""
    points = np.array(line.split()[1:], float).reshape(-1, 2) * SIZE[::-1]
    canvas = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(canvas, [points.round().astype(np.int32)], 1)
    return canvas > 0


def test_polygons_are_the_masks(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    answer.to_yolo(tmp_path / "yolo", source)
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert data["names"] == {0: TEXT}
    for t in range(LENGTH):
        lines = (tmp_path / "yolo" / "labels" / f"f{t:03d}.txt").read_text().splitlines()
        seen = [mask for mask in drawn()[:, t] if mask.any()]
        assert len(lines) == len(seen)
        for line, mask in zip(lines, seen, strict=True):
            assert line.startswith("0 ")
            assert len(line.split()) >= 7
            extra = filled(line) & ~mask  # but for the line that joins the two bars
            assert np.array_equal(filled(line) & ~extra, mask)
            assert extra.sum() < 25
            assert not extra[:, :40].any()


def test_one_polygon_holds_parts_and_holes() -> None:
    """Of any mask, nearly all pixels: thin bridges and diagonal steps may add a few."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = cv2.GaussianBlur(generator.random((40, 50)), (0, 0), 3) > 0.5
        canvas = np.zeros(mask.shape, np.uint8)
        cv2.fillPoly(canvas, [polygon(mask).astype(np.int32)], 1)
        assert ((canvas > 0) != mask).mean() < 0.02


def test_cvat_has_a_track_for_each_mask(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    answer.to_cvat(tmp_path / "a.xml", source)
    root = ElementTree.parse(tmp_path / "a.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert root.findtext("meta/task/labels/label/name") == TEXT
    assert root.findtext("meta/task/size") == str(LENGTH)
    for track in root.findall("track"):
        first, *ends = track
        mask = drawn()[int(track.get("group_id", 0)) - 1, int(first.get("frame", 0))]
        x, y, w, h = (int(first.get(key, 0)) for key in ("left", "top", "width", "height"))
        runs = [int(run) for run in first.get("rle", "").split(", ")]
        inside = np.repeat(np.arange(len(runs)) % 2, runs).reshape(h, w)
        assert np.array_equal(inside > 0, mask[y : y + h, x : x + w])
        assert inside.sum() == mask.sum()
        assert [first.get("outside"), *(end.get("outside") for end in ends)] == ["0", "1"][: 1 + len(ends)]
        assert len(ends) == (first.get("frame") != str(LENGTH - 1))
    assert len(root.findall("track")) == sum(mask.any() for each in drawn() for mask in each)


def test_a_long_sentence_is_a_label_that_cvat_takes(source: VideoSource, tmp_path: Path) -> None:
    result("long " * 30, drawn(), (0.7, 0.9, 0.8)).to_cvat(tmp_path / "a.xml", source)
    labels = [each.get("label", "") for each in ElementTree.parse(tmp_path / "a.xml").getroot().iter("track")]
    assert max(map(len, labels)) == 64


def unpacked(data: list[int]) -> np.ndarray:
    """Label Studio's run lengths, by a reader of its own: bit by bit, literal blocks as well."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    length, word = take(32), take(5) + 1
    counts = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < length:
        repeated = take(1)
        count = take(counts[take(2)]) + 1
        values += [take(word)] * count if repeated else [take(word) for _ in range(count)]
    assert len(values) == length
    return np.array(values)


def test_label_studio_has_a_task_per_frame(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    write(["labelstudio"], [answer], source, tmp_path)
    tasks = json.loads((tmp_path / "labelstudio" / "tasks.json").read_text())
    assert tasks == json.loads(json.dumps(answer.to_label_studio(source)))
    assert [task["data"]["image"] for task in tasks] == [f"f{t:03d}.png" for t in range(LENGTH)]
    for t, task in enumerate(tasks):
        (prediction,) = task["predictions"]
        seen = [mask for mask in drawn()[:, t] if mask.any()]
        for item, mask in zip(prediction["result"], seen, strict=True):
            picture = unpacked(item["value"]["rle"]).reshape(*SIZE, 4)
            assert np.array_equal(picture, np.repeat(mask[..., None] * 255, 4, -1))
            assert item["value"]["brushlabels"] == [TEXT]
            assert (item["original_height"], item["original_width"]) == SIZE
    view = ElementTree.parse(tmp_path / "labelstudio" / "config.xml").getroot()
    assert [each.get("value") for each in view.iter("Label")] == [TEXT]
    assert {each.get("name") for each in view} == {tasks[0]["predictions"][0]["result"][0]["from_name"], "image"}


@pytest.mark.parametrize("shape", [(1, 1), (300, 400)])
def test_long_runs_are_split(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, bool)
    assert not unpacked(brush(mask)).any()
    mask[-1, -1] = True
    assert np.array_equal(unpacked(brush(mask)), np.repeat(mask.ravel() * 255, 4))


def test_davis_pngs_have_davis_colours(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    answer.to_davis(tmp_path / "davis", source)
    with Image.open(tmp_path / "davis" / "f004.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # type: ignore[index]
        assert set(np.unique(np.asarray(image))) == {0, 1, 2, 3}


def test_mots_text_has_classes_and_numbers(answer: Result, tmp_path: Path) -> None:
    answer.to_mots(tmp_path / "a.txt")
    rows = [line.split() for line in (tmp_path / "a.txt").read_text().splitlines()]
    assert {(row[1], row[2]) for row in rows} == {("3001", "3"), ("3002", "3"), ("3003", "3")}
    assert [int(row[0]) for row in rows] == sorted(int(row[0]) for row in rows)
    assert {tuple(map(int, row[3:5])) for row in rows} == {SIZE}


def decoded(path: Path, codec: str) -> list[np.ndarray]:
    """The frames of a video as RGBA, by a decoder that reads alpha."""
    with av.open(str(path)) as container:
        decoder = av.CodecContext.create(codec, "r")
        decoder.extradata = container.streams.video[0].codec_context.extradata
        packets = [packet for packet in container.demux(video=0) if packet.size]
        frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return [frame.to_ndarray(format="rgba") for frame in frames]


@pytest.mark.parametrize("place", ["folder", "file", "range"])
def test_cut_outs_have_alpha(place: str, answer: Result, sources: dict[str, VideoSource], tmp_path: Path) -> None:
    source = sources[place]
    files = write(["alpha"], [answer], source, tmp_path)
    out = tmp_path / "alpha"
    union = drawn().any(0)
    pngs = [file for file in files if file.suffix == ".png"]
    for file, frame, mask in zip(pngs, source, union, strict=True):
        picture = np.asarray(Image.open(file))
        assert np.array_equal(picture[..., 3], mask * 255)
        assert np.array_equal(picture[mask][:, :3], frame.image[mask])
        assert not picture[:5, :, :3][..., 40:, :].any()  # far from every object nothing is left
    for name, codec in (("cutout.mov", "prores"), ("cutout.webm", "libvpx-vp9")):
        found = decoded(out / name, codec)
        assert len(found) == LENGTH
        for picture, frame, mask in zip(found, source, union, strict=True):
            assert picture.shape == (*SIZE, 4)
            alpha = picture[..., 3] > 127
            assert (alpha & mask).sum() / (alpha | mask).sum() > (0.999 if codec == "prores" else 0.9)
            inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5))) > 0
            if inner.any():
                assert np.abs(picture[inner][:, :3].astype(int) - frame.image[inner]).mean() < 12
    with av.open(str(out / "object-2.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == LENGTH
    inside = next(iter(source)).image[9:45, 1:61]  # rows 10 to 44 and columns 2 to 60, with even sides
    assert frames[0].shape == inside.shape
    assert np.abs(frames[0].astype(int) - inside).mean() < 20


def test_a_codec_that_is_missing_is_told(
    answer: Result,
    source: VideoSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    coding = cutouts.CUTOUTS["cutout.mov"]._replace(codec="no_such_codec")
    monkeypatch.setattr(cutouts, "CUTOUTS", cutouts.CUTOUTS | {"cutout.mov": coding})
    with caplog.at_level(logging.WARNING, "dshmp"):
        answer.to_alpha(source, tmp_path / "cut")
    assert [record.getMessage() for record in caplog.records] == [
        "this PyAV cannot write no_such_codec; the other cut-outs are written"
    ]
    assert not (tmp_path / "cut" / "cutout.mov").exists()
    assert (tmp_path / "cut" / "cutout.webm").is_file()


def test_the_table_has_a_row_for_each_mask(answer: Result, sources: dict[str, VideoSource], tmp_path: Path) -> None:
    write(["csv"], [answer], sources["range"], tmp_path)
    with open(tmp_path / "csv" / "objects.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    same = json.loads((tmp_path / "csv" / "objects.json").read_text())
    assert [{key: str(value) for key, value in row.items()} for row in same] == rows
    masks = {(t, k): mask for k, each in enumerate(drawn()) for t, mask in enumerate(each) if mask.any()}
    assert len(rows) == len(masks)
    for row in rows:
        mask = masks[int(row["frame"]) - FIRST, int(row["track"]) - 1]
        ys, xs = np.nonzero(mask)
        assert (int(row["x"]), int(row["y"])) == (xs.min(), ys.min())
        assert (int(row["width"]), int(row["height"])) == (np.ptp(xs) + 1, np.ptp(ys) + 1)
        assert int(row["area"]) == mask.sum()
        assert float(row["centre_x"]) == pytest.approx(xs.mean() + 0.5, abs=0.01)
        assert float(row["time"]) == pytest.approx((int(row["frame"]) - FIRST) / 25)
        assert row["expression"] == TEXT


def test_several_sentences(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    """Numbers go on through all of them; what holds but one answer is there for each."""
    other = result("the bars", drawn()[1:2], (0.4,))
    files = write(["mots", "davis", "ytvis", "csv"], [answer, other], source, tmp_path / "a" / "b")
    names = {file.relative_to(tmp_path / "a" / "b").as_posix() for file in files}
    assert {"mots/01.txt", "mots/02.txt", "davis/01/f000.png", "davis/02/f004.png", "ytvis.json"} <= names
    rows = json.loads((tmp_path / "a" / "b" / "ytvis.json").read_text())["annotations"]
    assert [(row["id"], row["category_id"]) for row in rows] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    found = read_tracks(tmp_path / "a" / "b" / "davis" / "02", source)
    assert np.array_equal(as_array(found)[0], drawn()[1])


def test_what_found_nothing_is_written_too(source: VideoSource, tmp_path: Path) -> None:
    nothing = result("the elephant", drawn()[:0], ())
    files = write(list(KINDS), [nothing], source, tmp_path)
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"] == []
    assert (tmp_path / "yolo" / "labels" / "f000.txt").read_text() == ""
    assert (tmp_path / "mots.txt").read_text() == ""
    assert not np.asarray(Image.open(tmp_path / "davis" / "f000.png")).any()
    assert not any(file.name.startswith("object-") for file in files)
    assert {file.relative_to(tmp_path).parts[0].split(".")[0] for file in files} == set(KINDS)
    with pytest.raises(UserError, match="no object is seen"):
        read_tracks(tmp_path / "mots.txt", source)


def test_any_sentence_can_be_written(source: VideoSource, tmp_path: Path) -> None:
    """Control codes, half a surrogate pair, letters of all scripts."""
    text = 'the "\x07bell", \udc80 & <犬> \n that: goes'
    odd = result(text, drawn()[:1], (0.7,))
    write([kind for kind in KINDS if kind != "alpha"], [odd], source, tmp_path)
    for kind in ("coco", "ytvis", "cvat"):
        (track,) = read_tracks(tmp_path / f"{kind}{KINDS[kind].suffix}", source).items
        assert "<犬>" in track.words
    assert "犬" in yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())["names"][0]
    with open(tmp_path / "csv" / "objects.csv", newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["expression"] == printable(text)


def test_without_a_video_frames_are_counted(answer: Result, tmp_path: Path) -> None:
    assert [each["file_name"] for each in answer.to_coco()["images"]] == [f"{t:05d}.jpg" for t in range(LENGTH)]
    answer.to_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().startswith("frame,time,track")


def test_a_path_is_a_video_too(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    assert source.path is not None
    answer.to_alpha(source.path, tmp_path / "cut")
    assert (tmp_path / "cut" / "frames" / "f000.png").is_file()


def changed(answer: Result, source: VideoSource, kind: str, place: Path) -> Any:
    if kind == "unknown":
        return ["coco", "kitti"], [answer], source
    if kind == "none":
        return ["coco"], [], source
    if kind == "other video":
        return ["coco"], [replace(answer, width=99)], source
    if kind == "fewer frames":
        return ["ytvis"], [answer], replace(source, start=2)
    if kind == "two videos":
        return ["coco"], [answer, replace(answer, times=answer.times[:3])], source
    if kind == "shorter":
        return ["coco", "alpha"], [answer], replace(source, stop=3)
    many = replace(answer, objects=answer.objects[:1] * 255)
    if kind == "many":
        return ["davis"], [many], source
    (place / "yolo").mkdir(parents=True)
    (place / "yolo" / "data.yaml").write_text("mine")
    return ["coco", "yolo"], [answer], source


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("unknown", "'kitti' is no format that is written here; choose from coco, ytvis"),
        ("none", "no answer to write"),
        ("other video", "the video is 61x45, the answer 99x45"),
        ("two videos", "several videos or ranges"),
        ("fewer frames", "clip: has 5 frames, the answer goes on to frame 6"),
        ("shorter", "has 3 frames, the answer 5"),
        ("many", "255 objects are too many"),
        ("there", "data.yaml: is there already"),
    ],
)
def test_what_cannot_be_written_is_told_and_leaves_nothing(
    kind: str, told: str, answer: Result, source: VideoSource, tmp_path: Path
) -> None:
    place = tmp_path / "out"
    given = changed(answer, source, kind, place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=told):
        write(*given, place)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == (["out"] if before else [])


def test_methods_touch_nothing_that_is_there(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    for method in (answer.to_cvat, answer.to_mots, answer.to_csv):
        with pytest.raises(UserError, match="is there already"):
            method(tmp_path / "a")
    for method in (answer.to_davis, answer.to_yolo, lambda place: answer.to_alpha(source, place)):
        with pytest.raises(UserError, match="is there already"):
            method(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "mine"]


# --- By the libraries themselves, where they are installed


def test_supervision_takes_answers(answer: Result, source: VideoSource) -> None:
    pytest.importorskip("supervision", reason="needs `pip install supervision`")
    found = answer.to_supervision()
    assert len(found) == LENGTH
    assert [len(each) for each in found] == [int(drawn()[:, t].any((1, 2)).sum()) for t in range(LENGTH)]
    assert np.allclose(found[4].confidence, [0.7, 0.9, 0.8])
    assert list(found[4].data["class_name"]) == [TEXT] * 3
    for each, masks in zip(found, drawn().swapaxes(0, 1), strict=True):
        for box, mask in zip(each.xyxy, (mask for mask in masks if mask.any()), strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.array_equal(as_array(find_tracks(found, source)), drawn())


def test_supervision_reads_the_polygons(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="needs `pip install supervision`")
    write(["yolo"], [answer], source, tmp_path)
    assert source.path is not None
    labels = tmp_path / "yolo" / "labels"
    places = source.path, labels, tmp_path / "yolo" / "data.yaml"
    data = supervision.DetectionDataset.from_yolo(*map(str, places), force_masks=True)
    assert data.classes == [TEXT]
    for path, _, found in data:
        masks = [mask for mask in drawn()[:, int(Path(path).stem[1:])] if mask.any()]
        for own, mask in zip(found.mask, masks, strict=True):
            assert (own & mask).sum() / (own | mask).sum() > 0.9


def test_datumaro_reads_coco(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="needs `pip install datumaro`")
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    assert source.path is not None
    shutil.copytree(source.path, tmp_path / "coco" / "images" / "train")
    document = answer.to_coco(source)
    (tmp_path / "coco" / "annotations" / "instances_train.json").write_text(json.dumps(document))
    items = {item.attributes["id"] - 1: item for item in datumaro.Dataset.import_from(str(tmp_path / "coco"), "coco")}
    assert len(items) == LENGTH
    for t, item in items.items():
        masks = [mask for mask in drawn()[:, t] if mask.any()]
        found = [each for each in item.annotations if each.type is datumaro.AnnotationType.mask]  # boxes are there, too
        found.sort(key=lambda each: each.attributes["track_id"])
        for own, mask in zip(found, masks, strict=True):
            assert np.array_equal(own.image > 0, mask)


def test_datumaro_reads_cvats_masks(answer: Result, source: VideoSource, tmp_path: Path) -> None:
    """It reads masks of images alone, so ours are put into such."""
    datumaro = pytest.importorskip("datumaro", reason="needs `pip install datumaro`")
    assert source.path is not None
    shutil.copytree(source.path, tmp_path / "images")
    answer.to_cvat(tmp_path / "video.xml", source)
    root = ElementTree.parse(tmp_path / "video.xml").getroot()
    size = {"width": str(SIZE[1]), "height": str(SIZE[0])}
    images = [
        ElementTree.SubElement(root, "image", {"id": str(t), "name": f"f{t:03d}.png", **size}) for t in range(LENGTH)
    ]
    for track in root.findall("track"):
        track[0].attrib |= {"label": track.get("label", ""), "group_id": track.get("group_id", "")}
        images[int(track[0].get("frame", 0))].append(track[0])
        root.remove(track)
    (tmp_path / "annotations.xml").write_bytes(ElementTree.tostring(root))
    items = list(datumaro.Dataset.import_from(str(tmp_path / "annotations.xml"), "cvat"))
    assert len(items) == LENGTH
    for item in items:
        masks = [mask for mask in drawn()[:, item.attributes["frame"]] if mask.any()]
        found = sorted(item.annotations, key=lambda each: each.group)
        for own, mask in zip(found, masks, strict=True):
            assert np.array_equal(own.image > 0, mask)


def test_cvats_own_library_packs_masks_so(answer: Result, tmp_path: Path) -> None:
    masks = pytest.importorskip("cvat_sdk.masks", reason="needs `pip install cvat-sdk`")
    answer.to_cvat(tmp_path / "video.xml")
    for track in ElementTree.parse(tmp_path / "video.xml").getroot().iter("track"):
        x, y, w, h = (int(track[0].get(key, 0)) for key in ("left", "top", "width", "height"))
        mask = drawn()[int(track.get("group_id", 0)) - 1, int(track[0].get("frame", 0))]
        *runs, left, top, right, bottom = masks.encode_mask(mask, [x, y, x + w, y + h])
        assert track[0].get("rle") == ", ".join(str(int(run)) for run in runs)
        assert (left, top, right - left + 1, bottom - top + 1) == (x, y, w, h)


def test_label_studio_unpacks_its_masks() -> None:
    brushes = pytest.importorskip("label_studio_sdk.converter.brush", reason="needs `pip install label-studio-sdk`")
    for mask in drawn()[0]:
        assert np.array_equal(np.asarray(brushes.decode_rle(brush(mask))), np.repeat(mask.ravel() * 255, 4))
