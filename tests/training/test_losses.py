"""Matching, set losses, similarity, contrastive learning: reference values, gradients, invariances."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from dshmp.training import losses as losses_module
from dshmp.training.contrastive import MemoryBank, TargetGroups, anchor, contrastive_loss, sample_negatives
from dshmp.training.losses import (
    Level,
    SetCriterion,
    SetPrediction,
    SetTargets,
    assign,
    importance_points,
    matching_costs,
    sample_points,
    set_losses,
    similarity_loss,
    uniform,
)

CPU = torch.device("cpu")


def example(batch: int = 2, found: int = 3, frames: int = 4, queries: int = 5) -> tuple[SetPrediction, SetTargets]:
    generator = torch.Generator().manual_seed(0)
    prediction = SetPrediction(
        torch.randn(batch, queries, 2, generator=generator),
        3 * torch.randn(batch, queries, frames, 8, 10, generator=generator),
    )
    masks = torch.randn(batch, found, frames, 4, 5, generator=generator) > 0
    masks = masks.repeat_interleave(8, 3).repeat_interleave(8, 4)  # smooth enough to be told apart
    valid = torch.ones(batch, found, dtype=torch.bool)
    return prediction, SetTargets(masks, valid, torch.ones(batch, frames, dtype=torch.bool))


def points_for(*shape: int, seed: int = 1) -> Tensor:
    return uniform(*shape, 2, device=CPU, generator=torch.Generator().manual_seed(seed))


def supervised(
    predictions: list[SetPrediction],
    targets: SetTargets,
    num_masks: Tensor | float,
    num_points: int,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Losses of all layers and their matches."""
    level, criterion = Level(predictions, targets), SetCriterion(num_points)
    indices = criterion.match(level, generator)
    counts = criterion.counts(targets, len(indices[0, 0])) | {"masks": torch.as_tensor(num_masks)}
    return criterion.losses(level, indices, counts, generator), indices


# ---- matching ------------------------------------------------------------------------------------


def test_points_name_places_at_every_resolution() -> None:
    ramp = (torch.arange(8.0) + 0.5).expand(1, 1, 4, 8)
    points = torch.tensor([[[0.25, 0.5], [0.5, 0.3], [0.75, 0.6]]])
    torch.testing.assert_close(sample_points(ramp, points), torch.tensor([[[2.0, 4.0, 6.0]]]))
    fine = (torch.arange(16.0) + 0.5).expand(1, 1, 6, 16) / 2
    torch.testing.assert_close(sample_points(fine, points), sample_points(ramp, points))


def test_each_target_is_matched_once_and_best() -> None:
    prediction, targets = example()
    points = points_for(2, 40)
    costs, indices = matching_costs(prediction, targets, points), tiny.match(prediction, targets, points)
    assert torch.equal((indices >= 0).sum(1), torch.tensor([3, 3]))
    for table, row in zip(costs, indices, strict=True):
        queries = row.argsort()[-3:]
        assert torch.equal(row[queries], torch.arange(3))
        ours = table[queries, torch.arange(3)].sum()
        assert all(
            ours <= table[list(choice), [0, 1, 2]].sum() + 1e-5
            for choice in torch.cartesian_prod(*[torch.arange(5)] * 3).tolist()
            if len(set(choice)) == 3
        )


def test_perfect_prediction_is_recovered() -> None:
    _, targets = example(queries=3)
    order = torch.tensor([2, 0, 1])
    masks = 10 * (2 * targets.masks[:, order].float() - 1)
    indices = tiny.match(SetPrediction(torch.zeros(2, 3, 2), masks), targets, points_for(2, 60))
    assert torch.equal(indices, order.expand(2, 3))


def test_more_targets_than_queries() -> None:
    prediction, targets = example(found=7, queries=5)
    indices = tiny.match(prediction, targets, points_for(2, 40))
    assert (indices >= 0).all()
    assert all(len(row.unique()) == 5 for row in indices)


def test_layers_stack_along_the_batch() -> None:
    costs = torch.rand(3, 2, 5, 4, generator=torch.Generator().manual_seed(3))
    present = torch.tensor([[True, False, True, True], [False] * 4])
    stacked = assign(costs.flatten(0, 1), present.repeat(3, 1)).view(3, 2, 5)
    assert torch.equal(stacked, torch.stack([assign(layer, present) for layer in costs]))
    assert (stacked[:, 1] == -1).all()
    assert not (stacked == 1).any()


def test_layers_are_matched_as_if_alone() -> None:
    """At frame and at video level, which differ in every size."""
    clip, clips = example()
    frame, _ = example(batch=8, frames=1, queries=7)
    levels = [Level([frame, SetPrediction(-frame.logits, -frame.masks)] * 2, clips.by_frame()), Level([clip], clips)]
    criterion, generator = SetCriterion(30), torch.Generator().manual_seed(5)
    found = [criterion.match(level, generator) for level in levels]
    assert [each.shape for each in found] == [(4, 8, 7), (1, 2, 5)]
    replay = torch.Generator().manual_seed(5)
    for level, indices in zip(levels, found, strict=True):
        for prediction, row in zip(level.predictions, indices, strict=True):
            points = uniform(len(row), 30, 2, device=CPU, generator=replay)
            assert torch.equal(row, tiny.match(prediction, level.targets, points))


def test_costs_are_the_same_bit_by_bit_with_all_layers_sampled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, targets = example()
    tables = []
    monkeypatch.setattr(losses_module, "assign", lambda *given: tables.append(given[0]) or assign(*given))
    SetCriterion(30).match(Level([prediction] * 3, targets), torch.Generator().manual_seed(5))
    replay = torch.Generator().manual_seed(5)
    points = [uniform(2, 30, 2, device=CPU, generator=replay) for _ in range(3)]
    assert torch.equal(tables[0], torch.cat([matching_costs(prediction, targets, at) for at in points]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_prediction_is_matched_all_the_same(bad: float) -> None:
    """So that its loss is not finite either, which is how training notices."""
    prediction, targets = example()
    prediction.masks[0, 1, 2] = bad
    indices = tiny.match(prediction, targets, points_for(2, 40))
    assert torch.equal((indices >= 0).sum(1), targets.present.sum(1).clamp(max=indices.shape[1]))
    prediction.masks[0] = bad
    losses, _ = supervised([prediction], targets, 6, 40)
    assert not losses["mask"].isfinite()


# ---- set losses ----------------------------------------------------------------------------------


def test_importance_points_seek_the_uncertain() -> None:
    logits = torch.linspace(-8, 8, 64).expand(2, 16, 64)  # uncertain along the middle column
    points = importance_points(logits, 80, torch.Generator().manual_seed(0))
    assert points.shape == (2, 80, 2)
    distance = (points[..., 0] - 0.5).abs()
    assert distance[:, :60].median() < 0.1
    assert distance[:, 60:].median() > 0.15


def test_good_predictions_cost_less_and_gradients_lead_there() -> None:
    prediction, targets = example()
    logits, masks = prediction.logits.clone().requires_grad_(), prediction.masks.clone().requires_grad_()
    optimiser = torch.optim.Adam([logits, masks], lr=0.5)
    history = []
    for _ in range(25):
        generator = torch.Generator().manual_seed(0)
        losses, _ = supervised([SetPrediction(logits, masks)], targets, 6, 64, generator)
        loss = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


def test_gradient_goes_to_matched_masks_only() -> None:
    prediction, targets = example()
    masks = prediction.masks.clone().requires_grad_()
    indices = torch.tensor([[0, -1, 2, -1, -1], [-1, 1, -1, 0, -1]])
    losses = set_losses(SetPrediction(prediction.logits, masks), targets, indices, 4, num_points=64)
    (losses["mask"] + losses["dice"]).backward()
    assert torch.equal(masks.grad.abs().sum((2, 3, 4)) > 0, indices >= 0)


def test_normaliser_and_no_object_weight() -> None:
    prediction, targets = example()
    indices = tiny.match(prediction, targets, points_for(2, 40))
    points = points_for(6 * 4, 50)
    one = set_losses(prediction, targets, indices, 6, num_points=50, points=points)
    two = set_losses(prediction, targets, indices, torch.tensor(12), num_points=50, points=points, no_object=0.0)
    torch.testing.assert_close(two["mask"] * 2, one["mask"])
    torch.testing.assert_close(two["dice"] * 2, one["dice"])
    matched = -prediction.logits.log_softmax(2)[..., 0][indices >= 0]
    torch.testing.assert_close(two["cls"], matched.mean())


def losses_at(prediction: SetPrediction, targets: SetTargets, frames: int) -> tuple[dict[str, Tensor], Tensor]:
    """Losses with points fixed for each (match, frame), padding frames given points of their own."""
    indices = tiny.match(prediction, targets, points_for(2, 40)[: len(prediction.masks)])
    matches, total = int((indices >= 0).sum()), prediction.masks.shape[2]
    points = torch.cat([points_for(matches, frames, 50), points_for(matches, total - frames, 50, seed=2)], 1)
    return set_losses(prediction, targets, indices, 6, num_points=50, points=points.flatten(0, 1)), indices


def test_padding_changes_nothing() -> None:
    prediction, targets = example()
    expected, indices = losses_at(prediction, targets, 4)
    noise = torch.Generator().manual_seed(9)
    longer = SetPrediction(
        prediction.logits, torch.cat([prediction.masks, torch.randn(2, 5, 2, 8, 10, generator=noise)], 2)
    )
    filled = torch.rand(2, 3, 2, 32, 40, generator=noise) > 0.5
    padded = SetTargets(
        torch.cat([targets.masks, filled], 2),
        targets.valid,
        torch.cat([targets.frames, torch.zeros(2, 2, dtype=torch.bool)], 1),
    )
    padded = SetTargets(  # and one row of targets that only fills the batch
        torch.cat([padded.masks[:, :1], padded.masks], 1),
        torch.cat([torch.zeros(2, 1, dtype=torch.bool), padded.valid], 1),
        padded.frames,
    )
    losses, shifted = losses_at(longer, padded, 4)
    assert torch.equal(shifted, torch.where(indices >= 0, indices + 1, indices))
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)


def test_padding_samples_change_nothing() -> None:
    """At frame level a padding frame is a sample of its own."""
    prediction, targets = example()
    expected, _ = losses_at(prediction, targets, 4)
    extra = SetPrediction(
        torch.cat([prediction.logits, torch.randn(1, 5, 2)]),
        torch.cat([prediction.masks, torch.randn(1, 5, 4, 8, 10)]),
    )
    padded = SetTargets(
        torch.cat([targets.masks, targets.masks[:1]]),
        torch.cat([targets.valid, targets.valid[:1]]),
        torch.cat([targets.frames, torch.zeros(1, 4, dtype=torch.bool)]),
    )
    assert int(padded.present.sum()) == 6
    indices = tiny.match(extra, padded, torch.cat([points_for(2, 40), points_for(1, 40)]))
    assert (indices[2] == -1).all()
    points = points_for(6, 4, 50).flatten(0, 1)
    losses = set_losses(extra, padded, indices, 6, num_points=50, points=points)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)


def test_order_of_targets_does_not_matter() -> None:
    prediction, targets = example()
    order = torch.tensor([2, 0, 1])
    expected, indices = losses_at(prediction, targets, 4)
    shuffled = SetTargets(targets.masks[:, order], targets.valid[:, order], targets.frames)
    losses, moved = losses_at(prediction, shuffled, 4)
    assert torch.equal(torch.where(moved >= 0, order[moved], -1), indices)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)


def test_unmatched_query_costs_class_loss_only() -> None:
    prediction, targets = example()
    expected, indices = losses_at(prediction, targets, 4)
    sure_of_nothing = torch.tensor([-20.0, 20.0]).expand(2, 1, 2)
    wider = SetPrediction(
        torch.cat([prediction.logits, sure_of_nothing], 1),
        torch.cat([prediction.masks, torch.full((2, 1, 4, 8, 10), -20.0)], 1),
    )
    losses, more = losses_at(wider, targets, 4)
    assert torch.equal(more[:, :5], indices)
    assert (more[:, 5] == -1).all()
    torch.testing.assert_close(losses["mask"], expected["mask"])
    torch.testing.assert_close(losses["dice"], expected["dice"])


@pytest.mark.parametrize("rows", [0, 2])
def test_nothing_to_find(rows: int) -> None:
    prediction, targets = example()
    targets = SetTargets(targets.masks[:, :rows], torch.zeros(2, rows, dtype=torch.bool), targets.frames)
    logits, masks = prediction.logits.clone().requires_grad_(), prediction.masks.clone().requires_grad_()
    losses, indices = supervised([SetPrediction(logits, masks)] * 2, targets, targets.present.sum(), 16)
    assert (indices == -1).all()
    assert losses["mask"].item() == losses["dice"].item() == 0
    assert losses["cls"] > 0
    torch.stack(list(losses.values())).sum().backward()
    assert logits.grad.abs().sum() > 0
    assert masks.grad.abs().sum() == 0  # a gradient of zeros, so that every process has one
    assert targets.by_frame().valid.shape == (8, rows)


def test_one_empty_sample_among_others() -> None:
    prediction, targets = example()
    valid = targets.valid.clone()
    valid[0] = False
    losses, indices = supervised([prediction], replace(targets, valid=valid), 3, 16)
    assert (indices[0, 0] == -1).all()
    assert (indices[0, 1] >= 0).sum() == 3
    assert all(loss.isfinite() for loss in losses.values())


def test_deep_supervision_sums_layers_matched_by_themselves() -> None:
    prediction, targets = example()
    flipped = SetPrediction(prediction.logits.flip(1), prediction.masks.flip(1))
    total, indices = supervised([prediction, flipped], targets, 6, 200, torch.Generator().manual_seed(0))
    assert indices.shape == (2, 2, 5)
    replay = torch.Generator().manual_seed(0)
    points = [uniform(2, 200, 2, device=CPU, generator=replay) for _ in range(2)]
    expected = dict.fromkeys(("cls", "mask", "dice"), torch.tensor(0.0))
    for layer, at, found in zip((prediction, flipped), points, indices, strict=True):
        assert torch.equal(tiny.match(layer, targets, at), found)
        losses = set_losses(layer, targets, found, 6, num_points=200, generator=replay)
        expected = {name: expected[name] + losses[name] for name in expected}
    for name, weight in (("cls", 2), ("mask", 5), ("dice", 5)):
        torch.testing.assert_close(total[name], weight * expected[name])


def test_by_frame_drops_the_unseen() -> None:
    _, targets = example()
    targets.masks[0, 1, 2] = False
    frames = targets.frames.clone()
    frames[1, 3] = False
    by_frame = replace(targets, frames=frames).by_frame()
    assert by_frame.masks.shape == (8, 3, 1, 32, 40)
    expected = torch.ones(2, 4, 3, dtype=torch.bool)
    expected[0, 2, 1] = False
    expected[1, 3] = False
    assert torch.equal(by_frame.valid.view(2, 4, 3), expected)
    assert torch.equal(by_frame.masks[5, 2, 0], targets.masks[1, 2, 1])


# ---- similarity loss -----------------------------------------------------------------------------


def test_similarity_of_one_target_attracts_and_of_two_repels() -> None:
    video_indices, frame_indices = torch.tensor([[0, -1]]), torch.tensor([[[0, 1]]])
    frames = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    losses = [
        similarity_loss(frames, frame_indices, torch.tensor([[[x, y], [5.0, 5.0]]]), video_indices).item()
        for x, y in ((3.0, -3.0), (1.0, 1.0), (-3.0, 3.0))
    ]
    assert losses == sorted(losses)


def test_similarity_ignores_the_unmatched_and_empty_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    frames, video = torch.randn(2, 3, 4, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    frame_indices, video_indices = torch.full((2, 3, 4), -1), torch.full((2, 5), -1)
    assert similarity_loss(frames, frame_indices, video, video_indices) == 0
    frame_indices[0, :, 1], video_indices[0, 2] = 0, 0
    loss = similarity_loss(frames, frame_indices, video, video_indices)
    torch.testing.assert_close(
        loss, similarity_loss(frames[:1, :, 1:2], frame_indices[:1, :, 1:2], video[:1], video_indices[:1])
    )
    frames[1], video[0, 0] = 100.0, 100.0
    torch.testing.assert_close(similarity_loss(frames, frame_indices, video, video_indices), loss)


# ---- contrastive learning ------------------------------------------------------------------------


def filled_bank(rows: int = 12, channels: int = 64) -> MemoryBank:
    bank = MemoryBank(rows, channels)
    values = torch.randn(rows, channels, generator=torch.Generator().manual_seed(0))
    bank.update(torch.arange(rows), values)
    return bank


def groups(videos: list[int], categories: list[int] | None = None) -> TargetGroups:
    return TargetGroups(torch.tensor(videos), torch.tensor(categories or [-1] * len(videos)))


def test_bank_moves_by_equation_8() -> None:
    bank = MemoryBank(4, 3)
    first, second = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 0.0, -1.0]])
    bank.update(torch.tensor([2]), first)
    torch.testing.assert_close(bank.centroids[2:3], first)
    bank.update(torch.tensor([2]), second)
    torch.testing.assert_close(bank.centroids[2:3], 0.2 * first + 0.8 * second)
    assert bank.visited.tolist() == [False, False, True, False]
    assert set(bank.state_dict()) == {"centroids", "visited"}


def test_bank_takes_the_mean_of_one_target_in_any_order() -> None:
    index, anchors = torch.tensor([1, 3, 1, 1]), torch.randn(4, 3)
    forward, backward, mean = filled_bank(4, 3), filled_bank(4, 3), filled_bank(4, 3)
    forward.update(index, anchors)
    backward.update(index.flip(0), anchors.flip(0))
    mean.update(torch.tensor([1, 3]), torch.stack([anchors[[0, 2, 3]].mean(0), anchors[1]]))
    torch.testing.assert_close(forward.centroids, backward.centroids)
    torch.testing.assert_close(forward.centroids, mean.centroids)


@pytest.mark.parametrize("host", [False, True])
def test_a_bank_on_the_host_stays_there(host: bool) -> None:
    bank = MemoryBank(4, 3, host).to("meta")
    assert bank.visited.device.type == "meta"
    assert bank.centroids.device.type == ("cpu" if host else "meta")
    assert set(bank.state_dict()) == {"centroids", "visited"}


def test_anchor_is_the_mean_of_matched_tokens() -> None:
    tokens = torch.randn(3, 4, 5)
    anchors, found = anchor(tokens, torch.tensor([[-1, 0, -1, -1], [1, -1, 0, -1], [-1] * 4]))
    torch.testing.assert_close(anchors, torch.stack([tokens[0, 1], tokens[1, [0, 2]].mean(0), torch.zeros(5)]))
    assert found.tolist() == [True, True, False]


def test_negatives_of_the_same_video_and_category_come_first() -> None:
    videos, categories = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2], [5, 5, 7, -1, 5, 5, 5, 5, -1, -1]
    visited = torch.ones(10, dtype=torch.bool)
    known = groups(videos, categories)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        rows = sample_negatives(torch.tensor([0, 6]), known, visited, 5, generator)
        assert (rows >= 0).all()
        assert rows[0, 0] == 1
        assert set(rows[0, 1:3].tolist()) == {2, 3}
        assert set(rows[0, 3:].tolist()) <= {4, 5, 6, 7, 8, 9}
        assert set(rows[1, :3].tolist()) == {4, 5, 7}
        assert all(len(row.unique()) == 5 for row in rows)


def test_negatives_are_visited_and_never_the_own_row() -> None:
    visited = torch.tensor([True, True, False, True, False, True])
    index = torch.tensor([0, 2, 5])
    rows = sample_negatives(index, groups([0, 0, 0, 1, 1, 1]), visited, 100)
    assert rows.shape == (3, 6)
    assert [set(row[row >= 0].tolist()) for row in rows] == [
        {1, 3, 5},
        {0, 1, 3, 5},
        {0, 1, 3},
    ]


def test_random_negatives_vary() -> None:
    alone = groups(list(range(40)))
    visited = torch.ones(40, dtype=torch.bool)
    draws = [
        set(sample_negatives(torch.tensor([7]), alone, visited, 10, torch.Generator().manual_seed(seed))[0].tolist())
        for seed in range(4)
    ]
    assert len(set.union(*draws)) > 15
    assert 7 not in set.union(*draws)


def test_contrastive_equation_9() -> None:
    bank = filled_bank()
    v = torch.randn(64, generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize(bank.centroids, dim=1) @ torch.nn.functional.normalize(v, dim=0)
    scores = (unit / 0.07).exp()
    negatives = torch.tensor([[1, 5, -1]])
    loss = contrastive_loss(v[None], torch.tensor([3]), negatives, bank)
    torch.testing.assert_close(loss, -(scores[3] / (scores[3] + scores[1] + scores[5])).log())
    scaled = contrastive_loss(9 * v[None], torch.tensor([3]), negatives, bank)
    torch.testing.assert_close(scaled, loss)


def test_contrastive_loss_falls_towards_the_own_centroid() -> None:
    bank = filled_bank()
    index = torch.tensor([4])
    rows = sample_negatives(index, groups([0] * 12), bank.visited, 10)
    start = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    path = [torch.lerp(start, bank.centroids[index], share) for share in (0.0, 0.5, 1.0)]
    losses = [contrastive_loss(v, index, rows, bank).item() for v in path]
    assert losses[0] > losses[1] > losses[2]
    v = start.clone().requires_grad_()
    contrastive_loss(v, index, rows, bank).backward()
    stepped = contrastive_loss(start - 0.01 * v.grad, index, rows, bank).item()
    assert stepped < losses[0]


def test_contrastive_loss_without_positive_or_negatives() -> None:
    bank, v = MemoryBank(5, 3), torch.randn(2, 3, requires_grad=True)
    index = torch.tensor([0, 1])
    rows = sample_negatives(index, groups([0] * 5), bank.visited, 4)
    loss = contrastive_loss(v, index, rows, bank)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(v.grad, torch.zeros(2, 3))
    bank.update(index, v)
    rows = sample_negatives(index, groups([0] * 5), bank.visited, 0)
    assert rows.shape == (2, 0)
    assert contrastive_loss(v, index, rows, bank).item() == 0


def test_mixed_precision_keeps_the_losses() -> None:
    bank, v = filled_bank(), torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    index = torch.tensor([0, 4])
    rows = sample_negatives(index, groups([0] * 12), bank.visited, 10)
    prediction, targets = example()
    frames, ids = torch.randn(1, 2, 3, 8), torch.zeros(1, 2, 3, dtype=torch.long)

    def all_of_them() -> list[Tensor]:
        costs = matching_costs(prediction, targets, points_for(2, 40))
        similar = similarity_loss(frames, ids, frames[:, 0], ids[:, 0])
        return [costs, similar, contrastive_loss(v, index, rows, bank)]

    expected = all_of_them()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = all_of_them()
    for ours, theirs in zip(mixed, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
