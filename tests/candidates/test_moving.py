"""What moves by itself is found without knowing what it is."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dshmp.candidates import find_source
from dshmp.candidates import moving as module
from dshmp.candidates.moving import Moving, _averaged, _followed, _Frame, _mean
from dshmp.checkpoint import load_tensors
from dshmp.common.errors import UserError
from dshmp.common.rle import decode
from dshmp.formats.tracks import Tracks, array_tracks
from dshmp.inference.segmenter import Segmenter
from dshmp.inference.tracked import FramesRead, track_candidates
from dshmp.model.candidates import Candidates
from dshmp.model.moving import CHANNELS, OUTPUTS, MovingObjects, flow_input, flow_size, optical_flow
from dshmp.synthetic.moving import SIZE, make_scene
from dshmp.synthetic.scenery import leaves
from dshmp.training import moving as training
from dshmp.training.moving import loss, targets
from dshmp.video.io import open_video
from dshmp.video.source import Frame

LENGTH, HEIGHT, WIDTH = 12, 192, 320


def quiet(*_: object) -> None:
    pass


def scene(pan: float, *speeds: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) of a camera that pans so many pixels a frame, and masks (K, T, H, W) of discs that go at
    these speeds relative to the ground."""
    rng = np.random.default_rng(5)
    ground, cloth = leaves(HEIGHT, WIDTH + 200, rng), leaves(HEIGHT + 200, WIDTH + 400, np.random.default_rng(9))
    frames, masks = [], np.zeros((len(speeds), LENGTH, HEIGHT, WIDTH), bool)
    for t in range(LENGTH):
        frame = ground[:, 100 - round(pan * t) :][:, :WIDTH].copy()
        for k, (dx, dy) in enumerate(speeds):
            x, y = 90 + 140 * k + (pan + dx) * t, 90 + dy * t
            disc = cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (round(x), round(y)), 34, 1, -1) > 0
            cover = cloth[150 - round(y) :, 350 - round(x) :][:HEIGHT, :WIDTH]
            frame[disc], masks[k, t] = cover[disc], disc
        frames.append(frame)
    return np.stack(frames), masks


def found(frames: np.ndarray, **settings: object) -> tuple[Tracks, np.ndarray]:
    """The tracks and their masks (K, T, H, W)."""
    source = find_source("moving", [f"{key}={value}" for key, value in settings.items()])
    tracks = source(open_video(frames, None, 24.0), [], torch.device("cpu"), quiet)
    masks = np.zeros((len(tracks.items), *frames.shape[:3]), bool)
    for k, track in enumerate(tracks.items):
        for t, rle in track.masks.items():
            masks[k, t] = decode([rle])[0]
    return tracks, masks


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_scenes_are_pure_functions_of_their_seed() -> None:
    a, b, c = make_scene(4), make_scene(4), make_scene(5)
    assert (a.frames == b.frames).all()
    assert (a.instances == b.instances).all()
    assert not (a.frames == c.frames).all()
    assert a.frames.shape == (3, *SIZE, 3)
    assert a.instances.shape == SIZE
    assert any(make_scene(seed).instances.max() > 1 for seed in range(12))


def test_targets_are_middles() -> None:
    instances = np.zeros((96, 160), np.uint8)
    instances[10:21, 30:61] = 2
    told = targets(instances)
    assert told[0].sum() == 11 * 31
    assert told[1, 15, 45] == 0
    assert told[1, 15, 30] == pytest.approx(15 / 96)
    assert told[2, 10, 45] == pytest.approx(5 / 96)


def test_loss_falls_as_the_answer_improves() -> None:
    instances = np.zeros((32, 32), np.uint8)
    instances[8:20, 8:20] = 1
    target = torch.from_numpy(targets(instances))[None]
    right = torch.cat([target[:, :1] * 20 - 10, target[:, 1:]], 1)
    assert loss(right, target) < 0.05 < loss(torch.zeros_like(right), target) < loss(-right, target)


def test_a_camera_alone_moves_nothing() -> None:
    frames, _ = scene(3.0)
    given = flow_input(frames[1], optical_flow(frames[1], frames[2]), optical_flow(frames[1], frames[0]))
    assert given.shape == (CHANNELS, HEIGHT // 2, WIDTH // 2)
    assert np.isfinite(given).all()
    assert np.abs(given[:4, 8:-8, 8:-8]).mean() < 0.1


def test_an_object_moves_against_the_camera() -> None:
    frames, masks = scene(3.0, (3.0, 0.0))
    given = flow_input(frames[1], optical_flow(frames[1], frames[2]), optical_flow(frames[1], frames[0]))
    inside = cv2.erode(masks[0, 1].astype(np.uint8), np.ones((25, 25)))[::2, ::2] > 0
    for channel in (0, 2):  # forward, and backward turned round
        assert np.median(given[channel][inside]) == pytest.approx(np.log1p(3.0), abs=0.25)


@pytest.mark.parametrize(("height", "width"), [(480, 854), (1080, 1920), (1920, 1080), (100, 100), (40, 2000)])
def test_any_size_is_read(height: int, width: int) -> None:
    small = flow_size(height, width)
    assert all(side % 32 == 0 for side in small)
    if max(small) < 400:
        network = MovingObjects().eval()
        assert network(torch.zeros(1, CHANNELS, small[0] // 2, small[1] // 2)).shape == (
            *(1, OUTPUTS),
            *(small[0] // 2, small[1] // 2),
        )


def test_the_mean_is_taken_along_the_flow() -> None:
    """A spot that goes two pixels a frame is as clear in the mean as in a frame."""
    frames = []
    for t in range(5):
        output = np.zeros((3, 16, 32), np.float32)
        output[0, 6:9, 6 + 2 * t : 9 + 2 * t] = 1
        flow = np.zeros((16, 32, 2), np.float32)
        flow[..., 0] = 2
        frames.append(_Frame(np.zeros((32, 64, 3), np.uint8), output, flow, -flow))
    np.testing.assert_allclose(_mean(frames, 2, 2), frames[2].output, atol=1e-6)
    alone = [each.output for each in _averaged(iter(frames), 0)]
    np.testing.assert_array_equal(np.stack(alone), np.stack([each.output for each in frames]))


def test_few_frames_are_held() -> None:
    alive: list[int] = []

    def many() -> object:
        import weakref

        for _ in range(40):
            flow = np.zeros((16, 32, 2), np.float32)
            frame = _Frame(np.zeros((32, 64, 3), np.uint8), np.zeros((3, 16, 32), np.float32), flow, flow)
            weakref.finalize(frame, alive.pop)
            alive.append(1)
            yield frame

    held = [len(alive) for _ in _averaged(many(), 2)]  # type: ignore[arg-type]
    assert len(held) == 40
    assert max(held) <= 8


@pytest.mark.parametrize("pan", [0.0, 4.0, -4.0])
def test_what_moves_is_found(pan: float) -> None:
    """-4: the camera follows it, so that in the picture it stands still."""
    frames, masks = scene(pan, (4.0, 0.0))
    tracks, own = found(frames)
    assert max(iou(each, masks[0]) for each in own) > 0.6
    assert (tracks.height, tracks.width) == (HEIGHT, WIDTH)
    assert all(not track.words for track in tracks.items)


def test_two_are_two() -> None:
    frames, masks = scene(1.0, (4.0, 1.0), (-4.0, 0.0))
    _, own = found(frames)
    assert all(max(iou(each, mask) for each in own) > 0.5 for mask in masks)


def test_nothing_moves() -> None:
    frames, _ = scene(0.0)
    result = Segmenter.from_pretrained("default", device="cpu")(frames, "the one that moves left", candidates="moving")
    assert not result.found
    assert not result.masks.any()
    assert result.frame_count == LENGTH


def test_one_frame_and_two() -> None:
    frames, _ = scene(0.0, (4.0, 0.0))
    assert found(frames[:1])[0].items == ()  # no flow
    assert all(max(track.masks) < 2 for track in found(frames[:2])[0].items)


def test_a_sentence_chooses() -> None:
    frames, masks = scene(1.0, (4.0, 1.0), (-4.0, 0.0))
    segmenter = Segmenter.from_pretrained("default", device="cpu")
    texts = ["the one that moves to the right", "the one that moves to the left"]
    for result, mask in zip(segmenter(frames, texts, candidates="moving", fps=12.0), masks, strict=True):
        assert result.found
        assert iou(result.masks, mask) > 0.5


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("threshold=2", "candidates.threshold: must be at most 1"),
        ("treshold=0.4", "candidates: unknown key 'treshold'; did you mean 'threshold'?"),
        ("objects=0", "candidates.objects: must be at least 1"),
    ],
)
def test_wrong_settings_are_told(setting: str, told: str) -> None:
    with pytest.raises(UserError, match=told.replace("?", r"\?").replace(".", r"\.")):
        find_source("moving", [setting])


def test_sources_have_names() -> None:
    with pytest.raises(UserError, match="candidates must be open or coco or sam3 or moving, not 'movng'"):
        find_source("movng")  # type: ignore[arg-type]


def test_a_source_of_ones_own() -> None:
    frames, masks = scene(0.0, (4.0, 0.0))
    asked: list[list[str]] = []

    def own(video: object, phrases: list[str], device: torch.device, progress: object) -> Tracks:
        asked.append(list(phrases))
        return array_tracks(masks, (HEIGHT, WIDTH))

    segmenter = Segmenter.from_pretrained("default", device="cpu")
    result = segmenter(frames, "the one that moves to the right", candidates=own, still_camera=True, fps=12.0)
    assert asked == [[]]
    assert result.found
    assert iou(result.masks, masks[0]) == 1


def test_a_range_of_frames_is_numbered_as_the_video() -> None:
    frames, masks = scene(0.0, (4.0, 0.0))
    part = Moving()(open_video(frames, "4:10", 24.0), [], torch.device("cpu"), quiet)
    assert min(part.items[0].masks) >= 4
    assert iou(decode([part.items[0].masks[7]])[0], masks[0, 7]) > 0.6


@pytest.mark.parametrize("part", [None, "3:9"])
@pytest.mark.parametrize("order", [list(range(LENGTH)), [3, 4, 4, 8, 3, 5], []])
def test_the_camera_is_seen_in_the_pictures_that_a_source_reads(part: str | None, order: list[int]) -> None:
    """In whatever order; what it leaves out is read afterwards, and what it reads in order is not read again."""
    pictures, masks = scene(1.0, (4.0, 1.0))
    tracks, config = array_tracks(masks, (HEIGHT, WIDTH)), Segmenter.from_pretrained("default").config.input
    decoded: list[int] = []

    def frames(start: int) -> Iterator[Frame]:
        for number in range(start, LENGTH):
            decoded.append(number)
            yield Frame(pictures[number], number / 24)

    def read(order: list[int]) -> Candidates:
        notes = FramesRead(replace(open_video(pictures, part, 24.0), frames=frames), config, False)
        video = notes.noting()
        for first in order:
            if video.start <= first < (video.stop or LENGTH):
                next(video.frames(first))
        notes.finish(quiet)
        return track_candidates(notes, tracks)

    expected = read([])
    assert expected.sure is not None
    assert expected.sure[0, 1:].min() > 0.5
    once, decoded[:] = list(decoded), []
    found = read(order)
    for name in ("camera", "sure", "geometry", "present"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    if order == sorted(set(order)):
        assert decoded == once


def test_weights_are_small() -> None:
    file = Path(module.__file__).parents[1] / "assets" / "moving.safetensors"
    assert file.stat().st_size < 5e6
    assert Moving().window == 2


def test_images_of_a_folder(tmp_path: Path) -> None:
    frames, masks = scene(0.0, (4.0, 0.0))
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{t:03d}.png")
    source = Moving()(open_video(tmp_path), [], torch.device("cpu"), quiet)
    assert len(source.items) >= 1
    assert iou(decode([source.items[0].masks[5]])[0], masks[0, 5]) > 0.6


def test_a_lower_threshold_finds_more() -> None:
    frames, _ = scene(1.0, (4.0, 1.0), (-4.0, 0.0))
    areas = [found(frames, threshold=value)[1].sum() for value in (0.9, 0.5, 0.1)]
    assert areas == sorted(areas)
    assert areas[0] < areas[2]


def test_tracks_and_candidates_are_not_both_given() -> None:
    frames, masks = scene(0.0, (4.0, 0.0))
    segmenter = Segmenter.from_pretrained("default", device="cpu")
    with pytest.raises(UserError, match="tracks and candidates are both given"):
        segmenter(frames, "the one that moves", tracks=masks, candidates="moving", fps=12.0)


def test_a_source_without_memory_is_told() -> None:
    def own(*_: object) -> Tracks:
        raise torch.OutOfMemoryError

    segmenter = Segmenter.from_pretrained("default", device="cpu")
    with pytest.raises(UserError, match="not enough memory on cpu"):
        segmenter(scene(0.0)[0], "the one that moves", candidates=own, fps=12.0)


def test_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SHARD", 3)
    ran = []
    for steps in (2, 3, 3):
        words = ["", str(tmp_path), "--scenes", "6", "--steps", str(steps), "--batch", "2", "--workers", "1"]
        monkeypatch.setattr("sys.argv", words)
        training.main()
        ran.append(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"])
    assert ran == [2, 3, 3]
    MovingObjects().load_state_dict(load_tensors(tmp_path / "moving.safetensors"))
    assert len(list((tmp_path / "scenes").iterdir())) == 2


def test_two_that_touch_for_a_while_stay_who_they_are() -> None:
    gaps, height, width, side = [*range(24, -1, -2), *[0] * 6, *range(2, 25, 2)], 96, 160, 20
    frames, before = [], gaps[0]
    for gap in gaps:
        output, backward = np.zeros((3, height, width), np.float32), np.zeros((height, width, 2), np.float32)
        places = np.zeros((2, height, width), bool)
        for k, left in enumerate((80 - gap // 2 - side, 80 + gap // 2)):
            places[k, 40 : 40 + side, left : left + side] = True
            backward[places[k], 0] = (gap - before) / 2 * (1 if k == 0 else -1)
        for part in [places.any(0)] if gap == 0 else places:  # while they touch, all votes are for one middle
            ys, xs = np.nonzero(part)
            output[0][part] = 0.99
            output[1][part], output[2][part] = (xs.mean() - xs) / 96, (ys.mean() - ys) / 96
        frames.append(_Frame(np.zeros((height * 2, width * 2, 3), np.uint8), output, -backward, backward))
        before = gap
    seen = [
        {n: np.nonzero(c > 0.5)[1].mean() for n, c in objects.items()}
        for _, objects in _followed(iter(frames), Moving())
    ]
    assert all(objects.keys() == {0, 1} for objects in seen)
    first = min(seen[0], key=seen[0].__getitem__)
    assert all(objects[first] < objects[1 - first] - 15 for objects in seen)
