"""The whole task on every data set, alone and mixed, with and without augmentation."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from dshmp.common.errors import UserError
from dshmp.config import from_dict
from dshmp.data.mini import make_mini
from dshmp.data.registry import DATASETS, dataset
from dshmp.model.dshmp import DsHmp
from dshmp.model.frames import prepare_frames
from dshmp.training.recipe import Recipe
from dshmp.training.task import open_splits
from dshmp.training.whole_task import VideoBatch, WholeTask

AUGMENTATION = {"frames": 5, "short_sides": [40, 48], "long_side": 80, "crop_scales": [50], "crop_sizes": [40, 60]}
SPLITS = {"jhmdb": "test"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minis")
    for name in DATASETS:
        make_mini(name, dataset(name).mini, folder / name, 0)
    return folder


def task(folder: Path, names: list[str], weights: Sequence[float] = (1.0, 1.0, 1.0), **more: Any) -> WholeTask:
    data = {
        name: {"root": str(folder / name), "split": SPLITS.get(name, "train"), "weight": weight}
        for name, weight in zip(names, weights, strict=False)
    }
    values = tiny.recipe("whole", folder) | {"data": data, "steps": 40} | more
    recipe = from_dict(Recipe, values)
    torch.manual_seed(0)
    return WholeTask(recipe, DsHmp(recipe.model), tiny.tokenizer(), open_splits(recipe))


def tensors(batch: Any) -> list[Tensor]:
    values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return [
        tensor
        for value in values
        for tensor in (
            [value] if isinstance(value, Tensor) else tensors(value) if dataclasses.is_dataclass(value) else []
        )
    ]


def shaped(batch: VideoBatch) -> None:
    """What a batch promises of its shapes."""
    sentences, length = batch.labelled.shape
    assert batch.images.shape[1] == length
    assert batch.clip.max() < len(batch.images)
    assert batch.candidates.shape[:3:2] == (sentences, length)
    assert batch.candidates.shape[-2:] == batch.images.shape[-2:]
    assert batch.targets.masks.shape[-2:] == batch.images.shape[-2:]
    assert batch.labelled.any(1).all()
    assert not batch.candidates.transpose(1, 2)[~batch.labelled].any()
    assert batch.texts.mask.shape[0] == sentences


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", [None, AUGMENTATION], ids=["plain", "augmented"])
@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_can_be_learned(name: str, augmentation: Any, folder: Path) -> None:
    learned = task(folder, [name], augmentation=augmentation)
    for step in range(2):
        batches = learned.batches(step)
        for batch, again in zip(batches, learned.batches(step), strict=True):
            shaped(batch)
            assert all(torch.equal(a, b) for a, b in zip(tensors(batch), tensors(again), strict=True))
            losses = learned.losses(batch, step, learned.counts(batch, step))
            total = torch.stack(list(losses.values())).sum()
            total.backward()
            assert total.isfinite()
    if name in ("a2d", "jhmdb"):
        assert not batch.labelled.all()
    else:
        assert batch.labelled.all()
    if augmentation and name not in ("a2d", "jhmdb"):
        assert batch.images.shape[1] == 5  # stills too


DRAWN = {**AUGMENTATION, "crop": 0, "flip": 0, "rotate": 0, "jitter": 0, "short_sides": []}


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", [None, DRAWN], ids=["plain", "drawn"])
@pytest.mark.parametrize("name", ["mevis", "a2d", "refcoco"])
def test_the_model_learns_with_the_true_times(
    name: str, augmentation: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted from the first frame that is shown in use; a still that moves is regular."""
    learned = task(folder, [name], augmentation=augmentation)
    told: list[Tensor] = []
    decode_motion = learned.model.decode_motion
    monkeypatch.setattr(learned.model, "decode_motion", lambda *given: told.append(given[2]) or decode_motion(*given))
    gaps = set()
    for batch in (batch for step in range(4) for batch in learned.batches(step)):
        learned.losses(batch, 0, learned.counts(batch, 0))
        assert torch.equal(told[-1], batch.position)
        gaps |= set(batch.position.diff().flatten().tolist())
        for row, number, clip in zip(batch.position, batch.targets.expressions, batch.clip, strict=True):
            if name == "refcoco":
                assert row.tolist() == list(range(len(row)))
                continue
            item = learned.splits[name].expressions[number]
            frames = learned.splits[name].frames(item.video, [int(t) + (item.shown or (0,))[0] for t in row])
            height, width = frames[0].shape[:2]
            config = learned.model.config.input
            if augmentation is not None:
                config = dataclasses.replace(config, short_side=min(height, width), long_side=max(height, width))
            assert torch.equal(prepare_frames(frames, config), batch.images[clip])
    assert (gaps <= {1.0}) == (name == "refcoco" or (name, augmentation) == ("mevis", None))


def test_unlabelled_frames_teach_nothing(folder: Path) -> None:
    """Whatever stands for masks in them."""
    learned = task(folder, ["a2d"])
    batch = learned.batches(0)[0]
    assert not batch.labelled.all()
    dirty = batch.candidates | ~batch.labelled[:, None, :, None, None]
    targets = dataclasses.replace(
        batch.targets,
        masks=batch.targets.masks
        | ~batch.labelled[:, None, :, None, None] & batch.targets.valid[:, :, None, None, None],
    )
    losses = [
        learned.losses(each, 0, learned.counts(each, 0))
        for each in (batch, dataclasses.replace(batch, candidates=dirty, targets=targets))
    ]
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], msg=name)


def test_a_mixture_keeps_its_ratio_and_its_rows_apart(folder: Path) -> None:
    names = ["mevis", "refcoco", "ref-youtube-vos"]
    learned = task(folder, names, [2.0, 1.0, 1.0], steps=4000, augmentation=AUGMENTATION)
    share = np.bincount(learned.source) / len(learned.source)
    assert np.abs(share - [0.5, 0.25, 0.25]).max() < 0.03
    rows = learned.contrast.rows
    first = np.cumsum([0, *(len(split.expressions) for split in learned.splits.values())]).tolist()
    parts = [set(rows[a:b].tolist()) for a, b in pairwise(first)]
    assert len(rows) == first[-1]
    assert not parts[0] & parts[1]
    assert not parts[1] & parts[2]
    assert len(learned.contrast.bank.visited) == sum(map(len, parts))
    groups = learned.contrast.groups
    assert len(set(groups.video[list(parts[0])].tolist()) & set(groups.video[list(parts[1])].tolist())) == 0
    assert (groups.category[list(parts[0])] == -1).all()  # MeViS names none
    assert (groups.category[list(parts[1])] >= 0).all()
    for step in range(6):
        source = int(learned.source[step])
        for batch in learned.batches(step):
            shaped(batch)
            assert all(first[source] <= index < first[source + 1] for index in batch.targets.expressions)


def test_an_epoch_goes_through_videos_or_expressions(folder: Path) -> None:
    for sample in ("videos", "expressions"):
        learned = task(folder, ["mevis"], sample=sample, sentences=1, batch=3)
        (sampler,) = learned.samplers
        batches = [batch for step in range(sampler.per_epoch) for batch in learned.batches(step)]
        names = [name for batch in batches for name in batch.names]
        videos = {name.split("/")[0] for name in names}
        split = learned.splits["mevis"]
        assert videos == {item.video for item in split.expressions}
        assert len(set(names)) == len(names) == len(videos if sample == "videos" else split.expressions)
        assert len(split.expressions) > len(videos)


def test_the_motion_part_learns_from_the_last_layers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of what each layer alone gives; the memory bank meets the last one."""

    def same(*shape: int, **_: Any) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr("dshmp.training.losses.uniform", same)
    monkeypatch.setattr("dshmp.model.candidates.OBJECT", 0.0)  # a model that has learned nothing finds no object
    model = tiny.with_switches(tiny.MODEL, {"frame_decoder.layers": 4})
    learned = task(folder, ["mevis"], model=model, perceptions=3)
    learned.model = tiny.model({"frame_decoder.layers": 4}).train()
    batch = learned.batches(0)[0]

    def losses(perceptions: int, without: int = 0) -> dict[str, Tensor]:
        perceive = DsHmp.perceive_clips

        def shortened(*given: Any) -> Any:
            state = perceive(*given)
            return dataclasses.replace(state, layers=state.layers[: len(state.layers) - without])

        learned.recipe = dataclasses.replace(learned.recipe, perceptions=perceptions)
        with monkeypatch.context() as patch:
            patch.setattr(DsHmp, "perceive_clips", shortened)
            return learned.losses(batch, 0, learned.counts(batch, 0))

    together = losses(3)
    assert len(learned.criterion.contrast.seen) == 1
    alone = [losses(1, without) for without in range(3)]
    for name, value in together.items():
        if name.startswith("frame ") or name == "contrast":
            torch.testing.assert_close(value, alone[0][name], msg=name)
        else:
            torch.testing.assert_close(value, torch.stack([each[name] for each in alone]).mean(), msg=name)
            assert not torch.isclose(value, alone[0][name]), name
    with pytest.raises(UserError, match=r"^perceptions: 3 is too many, the frame decoder has 1 layers"):
        task(folder, ["mevis"], perceptions=3)
