"""Tracks made elsewhere: what other tools write is read, and the motion part chooses among them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

import tiny
from clips import write_clip, write_frames
from dshmp.common.errors import UserError
from dshmp.common.options import Options
from dshmp.config import InputConfig
from dshmp.formats.reading import find_tracks, read_tracks
from dshmp.formats.tracks import Tracks, array_tracks
from dshmp.inference.segment import segment_to_folder
from dshmp.inference.segmenter import Segmenter
from dshmp.inference.tracked import FramesRead, track_candidates
from dshmp.model.candidates import Candidates
from dshmp.model.dshmp import DsHmp
from dshmp.model.geometry import cumulative
from dshmp.results.result import load_results
from dshmp.video.io import open_video
from dshmp.video.source import VideoSource

LENGTH, SIZE = 7, (48, 64)
SENTENCES = ["the red star", "the one that moves left and then turns back"]


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """Two objects (2, T, H, W): a square that goes right, away in frame 3; a bar that is seen from frame 2 on."""
    found = np.zeros((2, LENGTH, *SIZE), bool)
    for t in range(LENGTH):
        found[0, t, 8:20, 4 + 5 * t : 16 + 5 * t] = t != 3
        found[1, t, 30:40, 40:60] = t >= 2
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, as a folder of frames."""
    return write_frames(tmp_path_factory.mktemp("video") / "clip", LENGTH, *SIZE)


@pytest.fixture(scope="module")
def source(folder: Path) -> VideoSource:
    return open_video(folder, fps=8.0)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(tiny.geometry_model(), tiny.tokenizer(), device="cpu")


@dataclass
class Detections:
    """What is read of supervision's class."""

    mask: np.ndarray
    tracker_id: np.ndarray
    data: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.mask)


def rle(mask: np.ndarray) -> dict[str, Any]:
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def polygon(mask: np.ndarray) -> list[list[float]]:
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [[float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]]


def youtube_vis(masks: np.ndarray, code: Callable[[np.ndarray], Any] = rle) -> dict[str, Any]:
    annotations = [
        {
            "id": k + 7,
            "video_id": 3,
            "category_id": 1 + k,
            "segmentations": [code(m) if m.any() else None for m in each],
        }
        for k, each in enumerate(masks)
    ]
    video = {"id": 3, "height": SIZE[0], "width": SIZE[1], "length": LENGTH, "file_names": ["clip/f000.png"]}
    labels = [{"id": 1, "name": "Star"}, {"id": 2, "name": "dog"}]
    return {"videos": [video], "categories": labels, "annotations": annotations}


def coco_video(masks: np.ndarray) -> dict[str, Any]:
    images = [
        {"id": 50 + t, "video_id": 1, "frame_id": t, "file_name": f"f{t:03d}.png", "height": SIZE[0], "width": SIZE[1]}
        for t in range(LENGTH)
    ]
    annotations = [
        {"id": 100 * k + t, "image_id": 50 + t, "instance_id": k, "category_id": 1, "segmentation": rle(mask)}
        for k, each in enumerate(masks)
        for t, mask in enumerate(each)
        if mask.any()
    ]
    return {"videos": [{"id": 1, "name": "clip"}], "images": images, "categories": [], "annotations": annotations}


def written(kind: str, masks: np.ndarray, place: Path) -> Path:
    """Tracks as another tool writes them."""
    place.mkdir(exist_ok=True)
    path = place / f"{kind}.json"
    if kind == "youtube-vis":
        path.write_text(json.dumps(youtube_vis(masks)))
    elif kind == "polygons":
        path.write_text(json.dumps(youtube_vis(masks, polygon)))
    elif kind == "results":
        path.write_text(json.dumps([row | {"score": 0.5} for row in youtube_vis(masks)["annotations"]]))
    elif kind == "coco-video":
        path.write_text(json.dumps(coco_video(masks)))
    elif kind == "mots-text":
        path = place / "clip.txt"
        rows = [
            (t, 1000 + k, 1, *SIZE, rle(m)["counts"]) for k, e in enumerate(masks) for t, m in enumerate(e) if m.any()
        ]
        path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    elif kind == "folders":
        path = place / "folders"
        for k, each in enumerate(masks):
            (path / f"object {k}").mkdir(parents=True)
            for t, mask in enumerate(each):
                if mask.any() or t != 3:  # a missing file is as good as an empty one
                    Image.fromarray(mask.astype(np.uint8) * 255).save(path / f"object {k}" / f"f{t:03d}.png")
    else:
        path = place / kind
        path.mkdir()
        for t in range(LENGTH):
            if kind == "mots":
                index = np.where(masks[1, t], 2005, np.where(masks[0, t], 1001, 0)).astype(np.uint16)
                index[0, 0] = 10_000
                Image.fromarray(index).save(path / f"f{t:03d}.png")
            else:
                index = np.where(masks[1, t], 2, masks[0, t]).astype(np.uint8)
                index[0, 0] = 255
                image = Image.fromarray(index, "P")
                image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
                image.save(path / f"f{t:03d}.png")
    return path


def as_array(tracks: Tracks) -> np.ndarray:
    found = np.zeros((len(tracks.items), LENGTH, *SIZE), bool)
    for t in range(LENGTH):
        for k, track in enumerate(tracks.items):
            found[k, t] = tracks.masks(t).get(track.name, False)
    return found


KINDS = {
    "youtube-vis": (["7", "8"], [("star",), ("dog",)]),
    "polygons": (["7", "8"], [("star",), ("dog",)]),
    "results": (["7", "8"], [(), ()]),
    "coco-video": (["0", "1"], [(), ()]),
    "mots-text": (["1000", "1001"], [("car",), ("car",)]),
    "folders": (["object 0", "object 1"], [(), ()]),
    "davis": (["1", "2"], [(), ()]),
    "mots": (["1001", "2005"], [("car",), ("pedestrian", "person")]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_other_tools_write_is_read(kind: str, masks: np.ndarray, source: VideoSource, tmp_path: Path) -> None:
    found = read_tracks(written(kind, masks, tmp_path), source)
    names, words = KINDS[kind]
    assert [track.name for track in found.items] == names
    assert [track.words for track in found.items] == words
    assert np.array_equal(as_array(found), masks)
    assert [len(track.masks) for track in found.items] == [LENGTH - 1, LENGTH - 2]  # where it is not seen there is none


def test_arrays_and_detections_are_read(masks: np.ndarray, source: VideoSource) -> None:
    detections = []
    for t in range(LENGTH):
        there = [k for k in (1, 0) if masks[k, t].any()]
        numbers, labels = np.array([7 + k for k in there]), np.array(["red star", "dog"])[there]
        detections.append(Detections(masks[there, t], numbers, {"class_name": labels}))
    found = find_tracks(detections, source)
    assert [(track.name, track.words) for track in found.items] == [("7", ("red", "star")), ("8", ("dog",))]
    assert np.array_equal(as_array(found), masks)
    for given in (masks, masks.astype(np.int32), torch.from_numpy(masks), masks.astype(np.uint8) * 255):
        found = find_tracks(given, source)
        assert [track.name for track in found.items] == ["1", "2"]
        assert np.array_equal(as_array(found), masks)


def davis_palette() -> list[int]:
    """The 256 colours that DAVIS' annotations have: three bits of an index, lowest first, are the highest bit of red,
    green and blue, the next three their second highest, and so on."""
    return [
        sum((index >> 3 * place + channel & 1) << 7 - place for place in range(3))
        for index in range(256)
        for channel in range(3)
    ]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_davis_with_its_own_palette(bits: int, masks: np.ndarray, source: VideoSource, tmp_path: Path) -> None:
    """As DAVIS has them, in whatever number of bits; 255 is void in 8."""
    assert davis_palette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    for t in range(LENGTH):
        index = np.where(masks[1, t], 3, masks[0, t]).astype(np.uint8)
        index[0, 0] = 255 if bits == 8 else 0
        image = Image.fromarray(index, "P")
        image.putpalette(davis_palette()[: 3 << bits])
        image.save(tmp_path / f"f{t:03d}.png", bits=bits)
    found = read_tracks(tmp_path, source)
    assert [track.name for track in found.items] == ["1", "3"]
    assert np.array_equal(as_array(found), masks)


@pytest.mark.parametrize("compact", [False, True])
def test_what_supervision_itself_writes(compact: bool, masks: np.ndarray, source: VideoSource) -> None:
    """Its own classes, where the library is installed; frames without a detection among them."""
    supervision = pytest.importorskip("supervision")
    if compact and not hasattr(supervision, "CompactMask"):
        pytest.skip("an older version has plain masks alone")
    detections = []
    for t in range(LENGTH):
        there = np.array([k for k in (1, 0) if masks[k, t].any() and t != 4], int)
        boxes = supervision.mask_to_xyxy(masks[there, t]).astype(np.float32).reshape(-1, 4)
        own = masks[there, t]
        each = supervision.Detections.empty()
        if len(there):
            own = supervision.CompactMask.from_dense(own, boxes, image_shape=SIZE) if compact else own
            labels = {"class_name": np.array(["red star", "dog"])[there]}
            each = supervision.Detections(boxes, mask=own, tracker_id=7 + there, data=labels)
        detections.append(each)
    found = find_tracks(detections, source)
    assert [(track.name, track.words) for track in found.items] == [("7", ("red", "star")), ("8", ("dog",))]
    expected = masks.copy()
    expected[:, 4] = False
    assert np.array_equal(as_array(found), expected)


def test_geometry_is_that_of_the_masks(masks: np.ndarray, segmenter: Segmenter, source: VideoSource) -> None:
    found, times = candidates(segmenter.config.input, source, array_tracks(masks, SIZE), True)
    assert len(times) == LENGTH
    assert found.present is not None
    assert found.geometry is not None
    assert found.camera is not None
    assert torch.equal(found.present[0], torch.from_numpy(masks.any((2, 3)).T))
    middle = [(t, (10 + 5 * t - 32) / 48) for t in range(LENGTH) if t != 3]
    for t, x in middle:
        assert found.geometry[0, t, 0, 0] == pytest.approx(x, abs=0.02)
        assert found.geometry[0, t, 0, 1] == pytest.approx((14 - 24) / 48, abs=0.02)
    assert torch.equal(cumulative(found.camera), torch.eye(3).expand(1, LENGTH, 3, 3).to(cumulative(found.camera)))


def test_answers_are_tracks(masks: np.ndarray, segmenter: Segmenter, folder: Path) -> None:
    for result in segmenter(folder, SENTENCES, fps=8.0, tracks=masks, threshold=0.0, all_objects=True):
        assert result.found
        names = [item.track for item in (*result.objects, *result.others)]
        assert set(names) <= {"1", "2"}
        assert len(set(names)) == len(names)  # no track is answered twice
        for item in (*result.objects, *result.others):
            assert item.track is not None
            assert np.array_equal(item.masks, masks[int(item.track) - 1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_the_masks_of_the_file(
    kind: str, masks: np.ndarray, segmenter: Segmenter, folder: Path, tmp_path: Path
) -> None:
    """From the file to the result on disk, not a pixel changes."""
    path = written(kind, masks, tmp_path / "tracks")
    given = folder, SENTENCES, tmp_path / "out", Options(threshold=0.0), lambda _: segmenter
    written_to, _, _ = segment_to_folder(*given, fps=8.0, tracks=path)
    names = KINDS[kind][0]
    for result in load_results(written_to):
        assert result.found
        for item in result.objects:
            assert item.track is not None
            assert np.array_equal(item.masks, masks[names.index(item.track)])
        union = masks[[names.index(item.track or "") for item in result.objects]].any(0)
        assert np.array_equal(result.masks, union)


def candidates(config: InputConfig, source: VideoSource, tracks: Tracks, still: bool) -> tuple[Candidates, list[float]]:
    read = FramesRead(source, config, still)
    read.finish(lambda *_: None)
    return track_candidates(read, tracks), read.times


def test_a_still_camera_needs_no_pictures(
    masks: np.ndarray, segmenter: Segmenter, source: VideoSource, tmp_path: Path
) -> None:
    """Where the times are known without; a video file is decoded for them. A model without a camera asks for none."""

    def broken(start: int) -> Any:
        raise AssertionError("decoded")

    config, silent = segmenter.config.input, replace(source, frames=broken)
    given = array_tracks(masks, SIZE)
    seen, times = candidates(config, source, given, True)
    blind, same = candidates(config, silent, given, True)
    assert times == same == [frame.time for frame in source]
    for name, value in vars(seen).items():
        assert torch.equal(value, getattr(blind, name)) if isinstance(value, torch.Tensor) else True
    part = replace(silent, start=2, stop=5)
    assert candidates(config, part, given, True)[1] == times[2:5]
    with pytest.raises(AssertionError, match="decoded"):
        candidates(config, silent, given, False)
    with pytest.raises(UserError, match="no frame in the range 99:"):
        candidates(config, replace(source, start=99), given, True)
    file = open_video(write_clip(tmp_path / "clip.mp4", LENGTH, *SIZE))
    assert candidates(config, file, given, True)[1] == [frame.time for frame in file]
    plain = Segmenter(tiny.model({"motion.camera": False}), tiny.tokenizer(), device="cpu")
    assert plain.answer(silent, [SENTENCES[0]], tracks=masks, threshold=0.0)[0].found


def test_a_label_tells_which_track_fits(masks: np.ndarray, segmenter: Segmenter, folder: Path, tmp_path: Path) -> None:
    labelled = written("youtube-vis", masks, tmp_path)
    plain = written("results", masks, tmp_path)
    scores = {
        path: segmenter(folder, "the red star", fps=8.0, tracks=path, threshold=0.0).score for path in (labelled, plain)
    }
    assert scores[labelled] != scores[plain]
    other = [
        segmenter(folder, "the blue disc", fps=8.0, tracks=path, threshold=0.0).score for path in (labelled, plain)
    ]
    assert other[0] == other[1]  # no label is among its words


def test_tracks_may_say_what_they_look_like(masks: np.ndarray, folder: Path) -> None:
    """A model that reads appearance answers as one that does not where tracks have none, or until it has learned."""
    switches = {"motion.geometry": True, "motion.matching": "tracks", "motion.object_position": False}
    plain = tiny.model(switches)
    seeing = DsHmp(tiny.config(switches | {"motion.appearance": 3})).eval()
    assert not seeing.motion.appearance.weight.any()  # type: ignore[union-attr]
    seeing.load_state_dict(plain.state_dict(), strict=False)
    blind = array_tracks(masks, SIZE)
    looks = np.array([[1, 2, 3], [0, -1, 1]], np.float32)

    def score(model: DsHmp, *rows: np.ndarray | None) -> float:
        tracks = replace(
            blind,
            items=tuple(replace(item, appearance=row) for item, row in zip(blind.items, rows, strict=True)),
        )
        return Segmenter(model, tiny.tokenizer(), device="cpu")(
            folder, SENTENCES[0], fps=8.0, tracks=tracks, threshold=0.0
        ).score

    known = score(plain, None, None)
    assert score(plain, *looks) == score(seeing, None, None) == score(seeing, *looks) == known
    torch.nn.init.normal_(seeing.motion.appearance.weight)  # type: ignore[union-attr]
    assert score(seeing, None, None) == known
    assert score(seeing, *looks) != known
    assert score(seeing, *looks) == pytest.approx(score(seeing, *(5 * looks)), abs=1e-6)  # its direction alone counts
    assert score(seeing, looks[0], None) not in (known, score(seeing, *looks))
    for wrong in (looks[0, :2], np.array([1, 2, np.nan], np.float32)):
        with pytest.raises(UserError, match=r"track 1 has an appearance .*reads 3 numbers"):
            score(seeing, wrong, None)


def test_a_range_of_frames(masks: np.ndarray, segmenter: Segmenter, folder: Path, tmp_path: Path) -> None:
    path = written("folders", masks, tmp_path)
    result = segmenter(folder, SENTENCES[0], fps=8.0, tracks=path, frames="2:5", threshold=0.0, all_objects=True)
    for item in (*result.objects, *result.others):
        assert np.array_equal(item.masks, masks[int(item.track[-1:] or 0), 2:5])  # type: ignore[index]


def test_answers_on_disk_name_their_tracks(
    masks: np.ndarray, segmenter: Segmenter, folder: Path, tmp_path: Path
) -> None:
    path = written("davis", masks, tmp_path)
    options = Options(threshold=0.0)
    given = folder, SENTENCES, tmp_path / "out", options, lambda _: segmenter
    written_to, results, new = segment_to_folder(*given, fps=8.0, tracks=path)
    assert new == len(SENTENCES)
    again = load_results(written_to)
    assert [[item.track for item in each.objects] for each in again] == [
        [item.track for item in each.objects] for each in results
    ]
    assert all(item.track in ("1", "2") for each in again for item in each.objects)
    png = np.asarray(Image.open(next(written_to.glob("01-*/masks/f005.png"))))
    assert np.array_equal(png > 0, results[0].mask(5))
    assert segment_to_folder(*given, fps=8.0, tracks=path)[2] == 0
    with pytest.raises(UserError, match="tracks"):
        segment_to_folder(*given, fps=8.0)
    Image.new("L", SIZE[::-1], 1).save(path / "f006.png")
    with pytest.raises(UserError, match="before the tracks changed"):
        segment_to_folder(*given, fps=8.0, tracks=path)


def spoilt(kind: str, masks: np.ndarray, place: Path) -> Any:
    """Tracks that are wrong in one way."""
    document = youtube_vis(masks)
    first = document["annotations"][0]
    if kind == "missing":
        return place / "nothing.json"
    if kind == "suffix":
        (place / "tracks.yaml").write_text("a: 1")
        return place / "tracks.yaml"
    if kind == "empty folder":
        (place / "empty").mkdir()
        return place / "empty"
    if kind in ("cut", "number", "no annotations"):
        text = json.dumps(document)
        text = {"cut": text[:100], "number": "5", "no annotations": '{"videos": []}'}[kind]
        (place / "x.json").write_text(text)
        return place / "x.json"
    if kind == "no segmentations":
        del first["segmentations"]
    elif kind == "lengths differ":
        first["segmentations"] = first["segmentations"][:-1]
    elif kind == "size":
        first["segmentations"][0]["size"] = [10, 10]
    elif kind == "video's size":
        document["videos"][0]["width"] = 80
    elif kind == "counts":
        first["segmentations"][0]["counts"] = "~~~"
    elif kind == "polygon":
        first["segmentations"][0] = [[1, 2, 3]]
    elif kind == "same id":
        document["annotations"][1]["id"] = first["id"]
    elif kind == "too short":
        for each in document["annotations"]:
            each["segmentations"] = each["segmentations"][:-1]
    elif kind == "too long":
        for each in document["annotations"]:
            each["segmentations"].append(None)
    elif kind == "nothing seen":
        for each in document["annotations"]:
            each["segmentations"] = [None] * LENGTH
    elif kind == "other videos":
        document["videos"] = [{"id": 1, "name": "cats"}, {"id": 2, "name": "dogs"}]
    elif kind == "videos without names":
        document["videos"] = []
        document["annotations"][1]["video_id"] = 9
    elif kind in ("coco without ids", "coco twice", "coco size"):
        document = coco_video(masks)
        if kind == "coco without ids":
            del document["annotations"][0]["instance_id"]
        elif kind == "coco twice":
            document["annotations"][1]["image_id"] = document["annotations"][0]["image_id"]
        else:
            document["images"][0]["height"] = 99
    elif kind in ("mots line", "mots name", "mots twice", "mots size"):
        path = written("mots-text", masks, place)
        lines = path.read_text().splitlines()
        lines[1] = {
            "mots line": "1 1000 car",
            "mots name": lines[1].replace(" 1000 ", " car1 "),
            "mots twice": lines[0],
            "mots size": lines[1].replace(" 48 64 ", " 40 64 "),
        }[kind]
        path.write_text("\n".join(lines))
        return path
    elif kind in ("png size", "png name", "png damaged", "png late"):
        path = written("davis", masks, place)
        if kind == "png size":
            Image.new("L", (8, 8), 1).save(path / "f001.png")
        elif kind == "png name":
            (path / "f001.png").rename(path / "00001.png")
        elif kind == "png late":
            (path / "f001.png").rename(path / "f099.png")
        else:
            (path / "f001.png").write_bytes(b"\x89PNG nothing")
        return path
    elif kind == "array":
        return masks[0]
    elif kind == "array's size":
        return masks[:, :, :-1]
    elif kind == "array's length":
        return masks[:, :-1]
    elif kind == "nothing at all":
        return masks[:0]
    (place / "x.json").write_text(json.dumps(document))
    return place / "x.json"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("missing", "no such file"),
        ("suffix", "no kind of tracks"),
        ("empty folder", "no object is seen"),
        ("cut", "not valid JSON"),
        ("number", "x.json"),
        ("no annotations", "annotations"),
        ("no segmentations", "one mask or null per frame"),
        ("lengths differ", "6 and 7 frames"),
        ("size", "has size"),
        ("video's size", "80x48"),
        ("counts", "run lengths"),
        ("polygon", "polygons"),
        ("same id", "two tracks have the id 7"),
        ("too short", "of 6 frames, the video has 7"),
        ("too long", "of 8 frames, the video has 7"),
        ("nothing seen", "no object is seen"),
        ("other videos", "none called 'clip'"),
        ("videos without names", "2 videos"),
        ("coco without ids", "which object is it"),
        ("coco twice", "two masks in frame 0"),
        ("coco size", "64x99"),
        ("mots line", "line 2 is no MOTS"),
        ("mots name", "line 2 is no MOTS"),
        ("mots twice", "two masks in frame 0"),
        ("mots size", "line 2"),
        ("png size", "8x8"),
        ("png name", "called as no frame"),
        ("png damaged", "cannot be read as an image"),
        ("png late", "called as no frame"),
        ("array", "shape"),
        ("array's size", "64x47"),
        ("array's length", "of 6 frames, the video has 7"),
        ("nothing at all", "shape"),
    ],
)
def test_bad_tracks_are_told(
    kind: str, told: str, masks: np.ndarray, segmenter: Segmenter, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        segmenter(folder, SENTENCES[0], fps=8.0, tracks=spoilt(kind, masks, tmp_path))
    assert "\n" not in str(caught.value)


def test_given_tracks_are_checked(
    masks: np.ndarray, segmenter: Segmenter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of files are: their size, and that each has a name of its own."""
    monkeypatch.setattr(Segmenter, "_phrases", lambda *_: [])  # what these candidates do not read
    good = array_tracks(masks, SIZE)
    assert segmenter(folder, SENTENCES[0], fps=8.0, tracks=good, threshold=0.0).found
    first, second = good.items
    odd = array_tracks(masks[..., :-1], (SIZE[0], SIZE[1] - 1))
    spoilt_ones = {
        "63x48 pixels, the video of 64x48": [odd, replace(good, items=odd.items), replace(odd, items=good.items)],
        "2 tracks are called 1": [replace(good, items=(first, replace(second, name="1")))],
    }
    for told, each in ((told, each) for told, several in spoilt_ones.items() for each in several):
        with pytest.raises(UserError, match=told):
            segmenter(folder, SENTENCES[0], fps=8.0, tracks=each)
        with pytest.raises(UserError, match=told):
            segmenter(folder, SENTENCES[0], fps=8.0, candidates=lambda *_, found=each: found)


def test_no_sentence_is_told(masks: np.ndarray, segmenter: Segmenter, folder: Path) -> None:
    with pytest.raises(UserError, match="no expression"):
        segmenter(folder, [], fps=8.0, tracks=masks)


def test_tracks_of_another_type_are_refused(segmenter: Segmenter, folder: Path) -> None:
    for given in (5, [1, 2], np.zeros((1, LENGTH, *SIZE), np.float32)):
        with pytest.raises(TypeError, match="tracks must be"):
            segmenter(folder, SENTENCES[0], fps=8.0, tracks=given)


def test_a_model_without_geometry_cannot_choose(masks: np.ndarray, folder: Path) -> None:
    plain = Segmenter(tiny.model({"motion.geometry": False}), tiny.tokenizer(), device="cpu")
    with pytest.raises(UserError, match="reads no geometry"):
        plain(folder, SENTENCES[0], fps=8.0, tracks=masks)
