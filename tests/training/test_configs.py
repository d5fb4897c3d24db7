"""The recipes of the paper's tables: what they say, their sizes, and a short life of each at reduced width."""

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    RobertaConfig,
    RobertaModel,
    SwinConfig,
)

import tiny
from dshmp import cli
from dshmp.checkpoint import load_model
from dshmp.common.errors import UserError
from dshmp.common.options import Options
from dshmp.config import ModelConfig, flat, from_dict, to_dict
from dshmp.data.mini import make_mini
from dshmp.data.registry import DATASETS, dataset
from dshmp.evaluation.score import evaluate
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import save_tokenizer
from dshmp.recipes import FOLDER as CONFIGS
from dshmp.recipes import find_recipe
from dshmp.training.configs import needs
from dshmp.training.recipe import load_recipe, recipes
from dshmp.training.train import run
from recipe_rows import ROWS, changes

SWIN_T, VIDEO_SWIN_T, VIDEO_SWIN_B = (92_398_398, 217_044_030), (92_724_906, 217_370_538), (156_113_548, 280_759_180)
"""Parameters that learn, and all; those with Swin-T are the release's."""
NO_STAGES = (89_234_238, 213_879_870)
"""Without what hierarchical motion perception alone has."""
OURS = (92_987_280, 217_632_912)
SIZES = {
    "ablations/cl": NO_STAGES,
    "ablations/cues_direct": (91_863_358, 216_508_990),
    "ablations/cues_words": SWIN_T,
    "ablations/ds": NO_STAGES,
    "ablations/ds_cl": NO_STAGES,
    "ablations/ds_hmp": SWIN_T,
    "ablations/full": SWIN_T,
    "ablations/hmp": SWIN_T,
    "ablations/hmp_cl": SWIN_T,
    "ablations/matching_none": SWIN_T,
    "ablations/matching_tracks": (92_593_806, 217_239_438),
    "ablations/negatives_10": SWIN_T,
    "ablations/negatives_200": SWIN_T,
    "ablations/no_camera": (92_983_696, 217_629_328),
    "ablations/no_static": (92_789_391, 217_435_023),
    "ablations/none": NO_STAGES,
    "ablations/ours": OURS,
    "ablations/soft": OURS,
    "ablations/stages_1": (91_602_750, 216_248_382),
    "ablations/stages_2": (92_000_574, 216_646_206),
    "ablations/time": (92_660_542, 217_306_174),
    "ablations/time_displacement": (92_529_470, 217_175_102),
    "ablations/time_none": SWIN_T,
    "ablations/time_position": (92_529_470, 217_175_102),
    "ablations/tokens_hidden": OURS,
    "ablations/tokens_kept": OURS,
    "ours/mevis": (93_118_352, 217_763_984),
    "ours/tracks_mevis": (2_497_939, 127_696_237),
    "paper/a2d_b": VIDEO_SWIN_B,
    "paper/a2d_t": VIDEO_SWIN_T,
    "paper/mevis": SWIN_T,
    "paper/mevis_release": SWIN_T,
    "paper/ref_youtube_vos_b": VIDEO_SWIN_B,
    "paper/ref_youtube_vos_t": VIDEO_SWIN_T,
    "paper/refcoco_b": VIDEO_SWIN_B,
    "paper/refcoco_t": VIDEO_SWIN_T,
}


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


RECIPES = {name_of(path): recipe for path, recipe in recipes(CONFIGS).items()}


# --- what they say


def test_the_list() -> None:
    assert RECIPES.keys() == {*SIZES, "ours/finetune"}  # whose model is the one it begins with
    assert sorted(path for path in CONFIGS.glob("**/*.yaml") if name_of(path) not in RECIPES) == sorted(
        [CONFIGS / "paper" / "base.yaml", *(CONFIGS / "synthetic").glob("*.yaml")]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    """At full size, on the meta device."""
    asked = needs(RECIPES[name])
    assert (asked.trained, asked.parameters) == SIZES[name]
    assert asked.memory_gb is not None
    assert asked.gpu_hours is not None


@pytest.mark.parametrize("name", SIZES)
def test_the_first_line_is_the_command(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    assert lines[0].removesuffix(f" --out {run_of(name)}") == f"# dshmp train {name}"
    assert re.match(r"# [A-Z].*[.:;]$|# [A-Z]", lines[1])


def run_of(name: str) -> str:
    """Folder of the run that a recipe's first line starts."""
    words = (CONFIGS / f"{name}.yaml").read_text().splitlines()[0].split()
    return words[-1] if "--out" in words else f"runs/{name.rpartition('/')[2]}"


def test_no_two_runs_share_a_folder() -> None:
    assert len({run_of(name) for name in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize("name", SIZES)
def test_what_comes_then(name: str) -> None:
    """A recipe that starts from this one's run, or this run's model on a split of a data set."""
    about = RECIPES[name].about
    assert about is not None
    for command in about.then:
        words = shlex.split(command)
        assert words[0] == "dshmp"
        if words[1] == "train":
            following = name_of(find_recipe(words[2]))
            assert RECIPES[following].init == run_of(name)
            continue
        options = dict(zip(words[4::2], words[5::2], strict=True))
        assert words[1] in ("predict", "evaluate")
        assert words[3].startswith("data/")
        assert options["--split"] in DATASETS[words[2]].splits
        assert options["--model"] == run_of(name)


def test_the_settings_of_the_paper() -> None:
    recipe = RECIPES["paper/mevis"]
    model, augmentation = recipe.model, recipe.augmentation
    assert augmentation is not None
    assert (recipe.learning_rate, recipe.steps, recipe.batch, recipe.sentences) == (5e-5, 50_000, 8, 1)
    assert (recipe.weights.label, recipe.weights.mask, recipe.weights.dice, recipe.weights.similarity) == (2, 5, 5, 1)
    assert (recipe.weights.contrast, recipe.temperature, recipe.bank_delta) == (0.5, 0.07, 0.2)
    assert (recipe.negatives, recipe.contrast_start, recipe.points, recipe.no_object) == (100, 10_000, 12_544, 0.1)
    assert (recipe.clip_norm, recipe.weight_decay, recipe.backbone_factor) == (0.01, 0.05, 0.1)
    assert (recipe.sample, recipe.perceptions, recipe.warmup) == ("expressions", 3, 10)
    assert (model.frame_decoder.dropout, model.motion.dropout) == (0.1, 0.1)
    assert recipe.weights.trajectory == recipe.weights.probe == recipe.weights.link == 0
    assert (augmentation.frames, augmentation.reach, augmentation.long_side) == (8, 10, 640)
    assert (model.frame_decoder.queries, model.motion.queries, model.motion.stages) == (20, 10, 3)
    assert (model.language.split, model.motion.merge, model.motion.matching) == ("paper", "weighted", "hungarian")
    assert not model.motion.position
    assert not model.motion.displacement
    assert (model.readout.masks, model.readout.targets) == ("embedding", "many")
    assert (model.input.short_side, model.input.long_side) == (360, 640)
    for name in ("paper/ref_youtube_vos_t", "paper/a2d_b"):
        assert RECIPES[name].steps == 50_000
        assert RECIPES[name].model.readout.targets == "single"
    assert RECIPES["paper/refcoco_t"].steps == RECIPES["paper/refcoco_b"].steps == 300_000


def test_the_release_is_its_preset() -> None:
    from dshmp.interop.release import release_config

    assert release_config(RECIPES["paper/mevis_release"].model) == RECIPES["paper/mevis_release"].model


def test_ours_are_the_defaults() -> None:

    assert RECIPES["ours/mevis"].model == ModelConfig()
    assert RECIPES["ours/mevis"].data == RECIPES["paper/mevis"].data
    assert (RECIPES["ours/mevis"].sample, RECIPES["ours/mevis"].perceptions) == ("videos", 1)


def test_a_row_of_the_ablations_differs_in_its_switches_alone() -> None:
    assert {f"ablations/{name}" for name in ROWS} == {name for name in RECIPES if name.startswith("ablations/")}
    for name, switches in ROWS.items():
        assert changes(RECIPES["paper/mevis"], RECIPES[f"ablations/{name}"]) == switches
    swapped = load_recipe(CONFIGS / "ablations" / "ds.yaml", ["data.mevis.root=synthetic/v1"])
    assert changes(RECIPES["ablations/ds"], swapped) == {"data.mevis.root": "synthetic/v1"}


# --- the command


@pytest.mark.slow
def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["dshmp", "configs", str(CONFIGS / "paper")])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if "mevis_release" not in line and " mevis " in line]
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    assert cells[:6] == ["mevis", "Table 3, MeViS val", "J&F 46.4, J 43.0, F 49.8", "mevis", "92.4 M", "217.0 M"]
    assert all(float(cell) > 1 for cell in cells[6:])


@pytest.mark.slow
def test_estimates() -> None:
    """The hours are those of the authors' own training for their own recipe; what is learned at once takes memory."""
    release = RECIPES["paper/mevis_release"]
    hours = needs(release).gpu_hours
    assert hours == pytest.approx(8 * 17, rel=0.01)
    again = needs(replace(release, steps=110_000, run=replace(release.run, checkpointing=True))).gpu_hours
    assert again == pytest.approx(2 * 4 / 3 * 8 * 17, rel=0.01)
    about = release.about
    assert about is not None
    assert about.memory_gb is not None
    one, all_eight = (
        needs(replace(release, run=replace(release.run, micro_batch=size))).memory_gb for size in (1, None)
    )
    assert one is not None
    assert all_eight == pytest.approx(one + 7 * about.memory_gb)
    silent = needs(replace(release, about=None))
    assert silent.memory_gb is silent.gpu_hours is None


def test_a_model_that_cannot_be_is_told() -> None:
    recipe = RECIPES["paper/mevis"]
    wrong = replace(recipe, model=replace(recipe.model, motion=replace(recipe.model.motion, window=4)))
    with pytest.raises(UserError, match=r"motion\.stages = 3 needs motion\.window of at least 8"):
        needs(wrong)


@pytest.mark.slow
def test_estimates_are_below_24_gb() -> None:
    """That of the release's larger frames is above in float32, which it does not use."""
    for name, recipe in RECIPES.items():
        memory = needs(recipe).memory_gb
        if name == "ours/finetune":
            continue
        assert memory is not None
        assert memory < 24 or (name, recipe.precision) == ("paper/mevis_release", "float16")


def test_nothing_to_list(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("steps: 3\n")
    with pytest.raises(UserError, match="no recipe in it says what it is about"):
        list(recipes(tmp_path))


# --- a short life of each: three steps, interrupted after two, and an evaluation

WIDTH: dict[str, Any] = {
    "model": {
        key: value
        for key, value in tiny.MODEL.items()
        if key in ("hidden_size", "pixel_decoder")  # the switches stay the recipe's
    }
    | {
        "language": {"encoder": tiny.MODEL["language"]["encoder"]},
        "backbone": {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]},
        "frame_decoder": {"queries": 6, "layers": 3, "heads": 2, "ffn": 32},
        "motion": {"blocks": 2, "queries": 4, "decoder_layers": 1, "heads": 2, "ffn": 32, "contrast_size": 16},
        "input": {"short_side": 48, "long_side": 80},
    },
    "augmentation": {"short_sides": [48, 64], "long_side": 80, "crop_scales": [50], "crop_sizes": [40, 60]},
    "steps": 3,
    "batch": 2,
    "precision": "float32",  # the release's float16 needs a GPU
    "warmup": 1,
    "points": 16,
    "contrast_start": 1,
    "run.log_every": 1,
    "run.checkpoint_every": 1,
}
THEN = {
    "ref-youtube-vos": [("ref-youtube-vos", "train"), ("ref-davis17", "val")],
    "a2d": [("a2d", "test"), ("jhmdb", "test")],
}
"""Data set of the training -> those of the evaluation; the split of that name elsewhere."""
HELD_OUT = {"mevis": "valid_u", "refcoco": "val", "refcoco+": "val", "refcocog": "val"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins of the published weights: roberta-base, mask2former and video_swin.pth, random and small."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = from_dict(ModelConfig, WIDTH["model"])
    RobertaModel(RobertaConfig(**to_dict(model.language.encoder))).save_pretrained(folder / "roberta-base")
    save_tokenizer(tiny.tokenizer().tokenizer, folder / "roberta-base" / "tokenizer.json")
    sizes, decoder = WIDTH["model"]["backbone"], WIDTH["model"]["frame_decoder"]
    swin = SwinConfig(**sizes, window_size=7, out_features=[f"stage{i}" for i in range(1, 5)])
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=1,
        encoder_feedforward_dim=32,
        num_attention_heads=2,
        dim_feedforward=32,
        decoder_layers=decoder["layers"] + 1,
        num_queries=9,
        num_labels=80,
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "mask2former")
    video = from_dict(ModelConfig, tiny.with_switches(WIDTH["model"], {"backbone.temporal_window": 8}))
    torch.save(tiny.kinetics(DsHmp(video).perception.backbone), folder / "video_swin.pth")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in DATASETS:
        make_mini(name, dataset(name).mini, folder / name, 0)
    return folder


class Killed(Exception):
    pass


def live(name: str, runs: Path, weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Train a recipe at reduced width until it is killed in its third step, then to the end; tells how many steps were
    begun."""
    recipe = RECIPES[name]
    values = dict(WIDTH)
    values["data"] = {each: {"root": str(data / each)} for each in recipe.data}
    for key, stand_in in (("text_encoder", "roberta-base"), ("mask2former",) * 2, ("video_swin", "video_swin.pth")):
        if getattr(recipe, key) is not None:
            values[key] = str(weights / stand_in)
    if recipe.init is not None:
        values["init"] = str(runs / Path(recipe.init).name)
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in flat(values)]
    steps = 0
    update = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, closure: Any = None) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise Killed
        return update(self, closure)

    out = runs / Path(run_of(name)).name
    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    with pytest.raises(Killed):
        run(CONFIGS / f"{name}.yaml", overrides, out, "cpu")
    run(CONFIGS / f"{name}.yaml", overrides, out, "cpu")
    return steps


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


ORDER = sorted((name for name in SIZES if RECIPES[name].task == "whole"), key=lambda name: bool(RECIPES[name].init))
"""Those that others start from come first; the one of task motion lives in test_train.py."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDER)
def test_a_short_life(name: str, runs: Path, weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live(name, runs, weights, data, monkeypatch) == 3 + 1
    folder = runs / Path(run_of(name)).name
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = [line for line in lines if "frame cls" in line]
    assert [line["step"] for line in figures] == [1, 2, 3]
    assert all(torch.tensor(line["cls"]).isfinite() for line in figures)
    assert ("contrast" in figures[0]) == bool(RECIPES[name].negatives)
    saved = load_recipe(folder / "recipe.yaml")
    assert saved.about == RECIPES[name].about
    model, _ = load_model(folder)
    assert model.config == saved.model
    first = next(iter(RECIPES[name].data))
    for scored, split in THEN.get(first) or [(each, HELD_OUT[each]) for each in RECIPES[name].data]:
        scores = evaluate(
            scored, data / scored, split, folder / scored, Options(model=str(folder), device="cpu"), workers=1
        )
        assert scores is not None
        assert not scores.damaged
        assert (folder / scored / "results.json").is_file()
