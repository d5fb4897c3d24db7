"""Candidates: geometry of masks, links, the camera, and what is not there."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from dshmp.model.camera import background_motion, camera_motion, follow_corners, followed
from dshmp.model.candidates import Candidates, detect
from dshmp.model.dshmp import DsHmp
from dshmp.model.geometry import (
    BOX,
    CHANNELS,
    GRID,
    NUMBERS,
    OUTLINE,
    MotionGeometry,
    cumulative,
    every,
    grid_size,
    mask_geometry,
)
from dshmp.model.text import TextFeatures
from dshmp.model.trajectories import LONGEST_GAP, align, gather, link, neighbours

SIZE = grid_size(72, 128)


def drawn(*centre: float, axes: tuple[float, float] = (0.15, 0.08), angle: float = 0, size: Any = SIZE) -> Tensor:
    """An ellipse at a place in short sides from the middle, (h, w) bool."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = (x - width / 2) / GRID - centre[0], (y - height / 2) / GRID - centre[1]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return torch.from_numpy((u / axes[0]) ** 2 + (v / axes[1]) ** 2 <= 1)


# ------------------------------------------------------------------------------------- geometry


def test_the_grid_has_square_cells() -> None:
    assert grid_size(72, 128) == (GRID, round(GRID * 128 / 72))
    assert grid_size(1280, 720) == (round(GRID * 16 / 9), GRID)


def test_geometry_of_an_ellipse() -> None:
    """Second moments of an ellipse with half axes a, b are a^2/4 and b^2/4."""
    for angle in (0.0, 0.5, -1.2):
        (found,) = mask_geometry(drawn(0.3, -0.12, angle=angle)[None])
        torch.testing.assert_close(found[:2], torch.tensor([0.3, -0.12]), atol=3e-3, rtol=0)
        assert float(found[2]) == pytest.approx(0.5 * np.log(np.pi * 0.15 * 0.08), abs=0.03)
        long, short = 0.15**2, 0.08**2
        lean = (long - short) / (long + short)
        wanted = torch.tensor([lean * np.cos(2 * angle), lean * np.sin(2 * angle)])
        torch.testing.assert_close(found[3:5].double(), wanted, atol=0.04, rtol=0)
        assert found[6:10].tolist() == [0, 0, 0, 0]
    (found,) = mask_geometry(drawn(0.3, -0.12)[None])
    torch.testing.assert_close(found[BOX], torch.tensor([0.15, -0.2, 0.45, -0.04]), atol=0.02, rtol=0)
    assert float(found[5]) == pytest.approx(np.pi / 4, abs=0.05)


def test_contact_with_the_border_and_masks_of_a_few_cells() -> None:
    width = SIZE[1] / GRID / 2
    masks = torch.stack([drawn(-width, 0), drawn(width, 0), drawn(0, -0.5), drawn(0, 0.5), drawn(5, 5)])
    found = mask_geometry(masks)
    assert (found[:4, 6:10] > 0).tolist() == (torch.eye(4)[:, [0, 2, 1, 3]][[0, 1, 2, 3]] > 0).tolist()
    assert not found[4].any()
    few = torch.zeros(1, *SIZE, dtype=torch.bool)
    few[0, 3, 3:6] = True
    assert not mask_geometry(few).any()
    assert mask_geometry(few[:0]).shape == (0, CHANNELS)


def test_the_outline_keeps_its_form_where_place_and_size_change() -> None:
    def outline(*centre: float, scale: float = 1, angle: float = 0) -> Tensor:
        return mask_geometry(drawn(*centre, axes=(0.2 * scale, 0.1 * scale), angle=angle)[None])[0, NUMBERS:]

    one = outline(0, 0)
    assert one.shape == (OUTLINE**2,)
    assert (one - outline(0.3, -0.2)).abs().mean() < 0.05
    assert (one - outline(0.1, 0.1, scale=1.8)).abs().mean() < 0.05
    assert (one - outline(0, 0, angle=1.2)).abs().mean() > 0.2


# ---------------------------------------------------------------------------------------- links


def test_neighbours_stand_in_at_the_ends_and_over_gaps() -> None:
    seen = torch.zeros(1, 60, 2, dtype=torch.bool)
    seen[0, :12, 0] = True
    seen[0, [5, 6], 0] = False
    seen[0, [3, 50], 1] = True
    earlier, later = neighbours(seen, 2, 2)
    assert earlier[0, [0, 1, 2, 7, 8, 9, 11], 0].tolist() == [0, 0, 0, 4, 4, 7, 9]
    assert later[0, [0, 3, 4, 8, 10, 11], 0].tolist() == [2, 7, 7, 10, 11, 11]
    assert earlier[0, 5, 0] == later[0, 5, 0] == 5  # not seen itself
    assert earlier[0, 50, 1] == 50  # seen last too long ago
    assert LONGEST_GAP < 47


def paths(length: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that move steadily, tokens that say who each is, and an order of slots new in each frame."""
    generator = torch.Generator().manual_seed(1)
    place, speed = (torch.rand(count, 2, generator=generator) * factor - factor / 2 for factor in (1.2, 0.04))
    centre = place + speed * torch.arange(length)[:, None, None]
    boxes = torch.cat([centre - 0.08, centre + 0.08], -1)[None]
    who = torch.rand(1, length, count, generator=generator).argsort(-1)
    tokens = torch.randn(1, 1, count, 16, generator=generator).expand(1, length, -1, -1)
    return gather(tokens, who), gather(boxes, who), who


@pytest.mark.parametrize("by", ["tokens", "boxes", "both"])
def test_links_follow_objects_through_slots_and_gaps(by: str) -> None:
    tokens, boxes, who = paths(20, 6)
    present = torch.ones(1, 20, 6, dtype=torch.bool)
    present[who == 2] = torch.arange(20).remainder(7) < 5  # one is hidden now and then
    order = link(tokens if by != "boxes" else None, boxes if by != "tokens" else None, present, None)
    assert (order.sort(-1).values == torch.arange(6)).all()
    along, there = who.gather(2, order)[0], present.gather(2, order)[0]
    for slot in range(6):
        assert len(along[:, slot][there[:, slot]].unique()) == 1


def test_links_are_those_of_eq_3_where_nothing_is_hidden() -> None:
    tokens, _, _ = paths(20, 6)
    assert torch.equal(link(tokens, None, torch.ones(1, 20, 6, dtype=torch.bool), None), align(tokens))


def test_links_go_with_the_camera() -> None:
    """Two alike objects that stand still are told apart while the picture jumps from one to the other."""
    boxes = torch.tensor([[-0.3, -0.1, -0.1, 0.1], [0.1, -0.1, 0.3, 0.1]]).expand(1, 6, 2, 4).clone()
    shift = torch.tensor([0.0, 0.4, 0, 0.4, 0, 0.4])
    boxes[..., [0, 2]] += shift[None, :, None, None]
    motion = torch.eye(2, 3).expand(1, 6, 2, 3).clone()
    motion[0, 1:, 0, 2] = shift[1:] - shift[:-1]
    present = torch.ones(1, 6, 2, dtype=torch.bool)
    assert (link(None, boxes, present, motion) == torch.arange(2)).all()
    assert not (link(None, boxes, present, None) == torch.arange(2)).all()


def test_candidates_without_anything_to_link_by_are_refused() -> None:
    with pytest.raises(ValueError, match="neither tokens nor geometry"):
        link(None, None, torch.ones(1, 2, 3, dtype=torch.bool), None)
    with pytest.raises(ValueError, match="tokens or geometry"):
        _ = Candidates(torch.ones(1, 2, dtype=torch.bool)).shape


# --------------------------------------------------------------------------------------- camera


def scenery(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    noise = cv2.resize(rng.integers(0, 255, (40, 60)).astype(np.uint8), (480, 320), interpolation=cv2.INTER_CUBIC)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def view(scene: Any, x: float, y: float, zoom: float = 1, turn: float = 0) -> Any:
    """A picture of 100 x 160 pixels, whose middle shows the scene's, moved by (x, y) pixels."""
    cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
    linear = np.array([[cos, -sin], [sin, cos]])
    offset = np.array([80 + x, 50 + y]) - 0.5 - linear @ (np.array([240, 160]) - 0.5)
    return cv2.warpAffine(scene, np.column_stack([linear, offset]), (160, 100))


def test_the_cameras_motion_is_found() -> None:
    scene = scenery()
    motion, sure = background_motion(follow_corners(view(scene, 0, 0), view(scene, 6, -3, 1.04, 0.03)))
    cos, sin = 1.04 * np.cos(0.03), 1.04 * np.sin(0.03)
    np.testing.assert_allclose(motion, [[cos, -sin, 0.06], [sin, cos, -0.03]], atol=4e-3)
    assert sure > 0.8


def test_a_large_object_is_left_out_where_a_candidate_covers_it() -> None:
    """It fills two thirds of the picture and moves against the camera."""
    scene, other = scenery(), scenery(1)

    def picture(t: int) -> Any:
        frame = view(scene, 3.0 * t, 0)
        frame[:, 40:150] = view(other, -4.0 * t, 0)[:, 40:150]
        return frame

    covered = np.zeros((2, 50, 80), bool)
    covered[:, :, 19:76] = True
    points = list(followed(np.stack([picture(0), picture(1)])))
    motions, sure = camera_motion(points, covered)
    assert motions.shape == (2, 2, 3)
    assert float(motions[1, 0, 2]) == pytest.approx(0.03, abs=3e-3)
    assert float(sure[1]) > 0.7
    wrong, _ = background_motion(points[1])
    assert wrong[0, 2] < 0
    assert float(sure[0]) == 0


def test_an_unknown_motion_is_none_and_not_sure() -> None:
    flat = np.full((100, 160), 90, np.uint8)
    for pair in ((flat, flat), (view(scenery(), 0, 0), view(scenery(5), 0, 0))):
        motion, sure = background_motion(follow_corners(*pair))
        assert (motion == np.eye(2, 3)).all()
        assert sure == 0


def test_motions_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    camera = torch.eye(2, 3) + 0.05 * torch.randn(1, 11, 2, 3, generator=generator)
    square = torch.nn.functional.pad(camera[0], (0, 0, 0, 1)).double()
    square[:, 2, 2] = 1
    pose = torch.eye(3, dtype=torch.float64)
    for t, found in enumerate(cumulative(camera)[0]):
        pose = square[t] @ pose if t else pose
        torch.testing.assert_close(found, pose)
    over = every(camera, 3)
    torch.testing.assert_close(over[0, 7].double(), (square[7] @ square[6] @ square[5])[:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(over[0, 1].double(), square[1][:2], atol=1e-6, rtol=0)


def test_a_followed_object_moves_against_the_background() -> None:
    """Its geometry says that it stands still; with the camera's motion it is told as the same object before a camera
    that keeps still, place aside."""
    reader = MotionGeometry(8, 8, camera=True)
    still = mask_geometry(drawn(0, 0)[None]).expand(1, 12, 1, CHANNELS)
    moving = torch.stack([mask_geometry(drawn(0.04 * t - 0.2, 0)[None]) for t in range(12)])[None]
    seen = torch.ones(1, 12, 1, dtype=torch.bool)
    time = torch.arange(12.0)[None]
    pan = torch.eye(2, 3).expand(1, 12, 2, 3).clone()
    pan[..., 0, 2] = -0.04
    heard: list[Tensor] = []
    reader.read.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    for geometry, camera in ((still, pan), (moving, None), (still, None)):
        reader(geometry, seen, camera, torch.ones(1, 12), time, 1, slice(0, 12))
    speeds = [each.detach()[0, 6, 0, -2:] for each in heard]
    torch.testing.assert_close(speeds[0], speeds[1], atol=0.05, rtol=0)
    assert float(speeds[0][0]) == pytest.approx(16 * 0.04, abs=0.05)
    assert speeds[2].abs().max() == 0


def test_parts_of_a_clip_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = MotionGeometry(8, 8, camera=True)
    generator = torch.Generator().manual_seed(2)
    geometry = torch.rand(2, 70, 3, CHANNELS, generator=generator)
    seen = torch.rand(2, 70, 3, generator=generator) < 0.6
    camera = torch.eye(2, 3) + 0.02 * torch.randn(2, 70, 2, 3, generator=generator)
    args = geometry, seen, camera, torch.rand(2, 70, generator=generator), torch.arange(70.0).expand(2, 70), 1
    with torch.no_grad():
        whole = reader(*args, slice(0, 70))
        parts = torch.cat([reader(*args, slice(start, min(start + 9, 70))) for start in range(0, 70, 9)], 1)
    torch.testing.assert_close(parts[seen], whole[seen], atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------ detection


def test_detection_leaves_out_duplicates_and_what_is_no_object() -> None:
    shown = torch.stack([drawn(-0.4, 0), drawn(-0.39, 0), drawn(0.4, 0), drawn(0.4, 0.2), drawn(5, 5)]).float()
    masks = torch.nn.functional.interpolate(shown[None] * 20 - 10, (18, 32), mode="bilinear")
    logits = torch.tensor([[[1.0, 0], [2.0, 0], [3.0, 0], [-2.0, 1], [4.0, 0]]])
    found = detect(logits, masks, (72, 128))
    assert found.present.tolist() == [[False, True, True, False, False]]
    torch.testing.assert_close(found.geometry[0, 2, :2], torch.tensor([0.4, 0]), atol=0.02, rtol=0)
    assert not found.geometry[0, [0, 3, 4]].any()
    assert found.covered.shape == (1, *SIZE)
    assert 0 < found.covered.sum() < shown[[1, 2]].sum() * 1.2


# ---------------------------------------------------------------------------------- in the model


def clip(batch: int = 2, length: int = 11, count: int = 5, hidden: int = 32) -> Candidates:
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(batch, 1, count, hidden, generator=generator) + 0.2 * torch.randn(
        batch, length, count, hidden, generator=generator
    )
    geometry = torch.rand(batch, 1, count, CHANNELS, generator=generator) + 0.05 * torch.rand(
        batch, length, count, CHANNELS, generator=generator
    )
    geometry[..., 12:14] += geometry[..., 10:12]
    present = torch.rand(batch, length, count, generator=generator) < 0.7
    camera = torch.eye(2, 3) + 0.02 * torch.randn(batch, length, 2, 3, generator=generator)
    frames = torch.ones(batch, length, dtype=torch.bool)
    return Candidates(frames, tokens, geometry, present, camera, torch.rand(batch, length, generator=generator))


def ours() -> tuple[DsHmp, TextFeatures]:
    torch.manual_seed(0)
    model = tiny.model()
    return model, model.language(tiny.tokenizer()(list(tiny.SENTENCES[:2])))


def answers(model: DsHmp, given: Candidates, text: TextFeatures, stride: int = 1) -> dict[str, Tensor]:
    with torch.no_grad():
        video = model.eval().decode_motion(given, text, stride=stride)
    return {"logits": video.logits, "pointer": video.readout.pointer, "attention": video.attention}


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_not_there_changes_nothing(stride: int) -> None:
    model, text = ours()
    given = clip()
    wild = torch.where(given.seen[..., None], 0.0, 7.0)
    assert given.tokens is not None
    assert given.geometry is not None
    other = replace(given, tokens=given.tokens + wild, geometry=given.geometry + wild)
    plain = answers(model, given, text, stride)
    close(plain, answers(model, other, text, stride))
    more = given.each(
        lambda x: torch.cat([x, torch.zeros_like(x[:, :, :2])], 2) if x.ndim > 2 and x.shape[2] == 5 else x
    )
    assert more.shape == (2, 11, 7)
    found = answers(model, more, text, stride)
    pointer = found.pop("pointer")
    close(found, {name: plain[name] for name in found})
    torch.testing.assert_close(pointer[..., :5], plain["pointer"][..., :5], atol=1e-4, rtol=1e-4)
    assert pointer[..., 5:7].max() < -1e30
    assert (plain["pointer"][..., :5].amin((0, 1))[~given.seen.any(0)] < -1e30).all()


def test_slots_do_not_matter() -> None:
    """Candidates in other slots in every frame: the same answer, at those slots."""
    model, text = ours()
    given = clip()
    who = torch.rand(given.shape).argsort(-1)
    moved = replace(given.in_order(who), linked=False)
    plain, found = answers(model, given, text), answers(model, moved, text)
    pointer = torch.cat([who, torch.full_like(who[..., :1], 5)], -1)[:, None].expand_as(plain["pointer"])
    plain["pointer"] = plain["pointer"].gather(3, pointer)
    # trajectories are numbered by their slots in the first frame; nothing else is by slots
    close(found, plain)


def test_frames_of_padding_change_nothing() -> None:
    model, text = ours()
    given = clip()
    longer = given.each(lambda x: torch.cat([x, x[:, :4]], 1))
    longer = replace(longer, frames=torch.arange(15).expand(2, 15) < 11)
    plain, found = answers(model, given, text), answers(model, longer, text)
    close(
        plain,
        {"logits": found["logits"], "pointer": found["pointer"][:, :, :11], "attention": found["attention"][..., :11]},
    )


def test_tokens_or_geometry_alone() -> None:
    model, text = ours()
    given = clip()
    found = [
        answers(model, each, text)["logits"]
        for each in (given, replace(given, tokens=None), replace(given, geometry=None))
    ]
    assert all(each.isfinite().all() for each in found)
    assert (found[0] - found[1]).abs().max() > 1e-4
    assert (found[0] - found[2]).abs().max() > 1e-4


def test_no_candidate_at_all_is_answered_with_nothing_visible() -> None:
    model, text = ours()
    given = clip()
    found = answers(model, replace(given, present=torch.zeros(given.shape, dtype=torch.bool)), text)
    assert found["logits"].isfinite().all()
    assert (found["pointer"].argmax(-1) == 5).all()


def test_a_clip_whose_tokens_are_dropped_in_training_is_one_without_tokens() -> None:
    torch.manual_seed(0)
    model = DsHmp(tiny.config({"motion.token_dropout": 1.0})).train()
    torch.nn.init.normal_(model.motion.input_projection.bias)
    text = model.language(tiny.tokenizer()(list(tiny.SENTENCES[:2])))
    given = clip()
    assert given.tokens is not None
    order = given.order()
    given = given.in_order(order)
    with torch.no_grad():
        one = model.decode_motion(given, text).logits
        two = model.decode_motion(replace(given, tokens=given.tokens * 3 + 1), text).logits
        without = model.decode_motion(replace(given, tokens=None), text).logits
    assert torch.equal(one, two)
    assert torch.equal(one, without)


def test_gradients_reach_geometry() -> None:
    model, text = ours()
    model.train().decode_motion(clip(), text).logits.square().sum().backward()
    assert model.motion.geometry is not None
    for name, parameter in model.motion.geometry.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
