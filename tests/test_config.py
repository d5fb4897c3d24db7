"""Configuration and recipes: read strictly, explained when wrong, and all those of the repository work."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from dshmp.checkpoint import build_model
from dshmp.common.errors import UserError
from dshmp.config import ModelConfig, MotionConfig, from_dict, to_dict
from dshmp.model.dshmp import DsHmp
from dshmp.recipes import FOLDER as CONFIGS
from dshmp.training.recipe import About, LossWeights, Recipe, Source, load_recipe, save_recipe


def test_round_trip_through_json() -> None:
    for config in (ModelConfig(), tiny.config({"motion.merge": "mean", "input.motion_fps": 8.0})):
        assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_defaults_stand_for_what_is_not_said() -> None:
    assert from_dict(MotionConfig, {"stages": 1}) == dataclasses.replace(MotionConfig(), stages=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hiden_size": 64}, "config: unknown key 'hiden_size'; did you mean 'hidden_size'?"),
        ({"motion": {"task": 1}}, "config.motion: unknown key 'task'; did you mean 'stages'?"),
        ({"motion": {"zzzz": 1}}, "config.motion: unknown key 'zzzz'; known: blocks, window,"),
        ({"hidden_size": "64"}, "config.hidden_size: must be a valid integer, found '64'"),
        ({"hidden_size": True}, "config.hidden_size: must be a valid integer, found True"),
        ({"hidden_size": None}, "config.hidden_size: must be a valid integer, found None"),
        ({"motion": 3}, "config.motion: must be a mapping, found 3"),
        ({"motion": {"merge": "median"}}, "config.motion.merge: must be 'weighted' or 'mean', found 'median'"),
        ({"motion": {"position": 1}}, "config.motion.position: must be a valid boolean, found 1"),
        ({"input": {"mean": [1.0, 2.0]}}, "config.input.mean.2: is missing"),
        ({"input": {"mean": [1.0, 2.0, 3.0, 4.0]}}, "config.input.mean: must have at most 3 items, not 4, found ["),
        ({"motion": {"heads": 0}}, "config.motion.heads: must be at least 1, found 0"),
        ({"backbone": {"depths": [2, 0]}}, "config.backbone.depths.1: must be at least 1, found 0"),
        ({"hidden_size": {0: {(): 1}}}, "config: keys must be str, int"),
        ({"input": {"motion_fps": "fast"}}, "config.input.motion_fps: must be a valid number, found 'fast'"),
        ({"backbone": {"depths": [2, "2"]}}, "config.backbone.depths.1: must be a valid integer, found '2'"),
        ([1], "config: must be a mapping, found [1]"),
    ],
)
def test_wrong_values_are_named(values: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(ModelConfig, values)
    assert str(caught.value).startswith(message)


def test_whole_numbers_are_floats_too() -> None:
    threshold = from_dict(ModelConfig, {"readout": {"threshold": 1}}).readout.threshold
    assert isinstance(threshold, float)
    assert threshold == 1.0


@pytest.mark.parametrize(
    "switches",
    [
        {"hidden_size": 33},
        {"motion.window": 4},
        {"language.encoder.num_attention_heads": 5},
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_together(switches: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^here\.json: ") as caught:
        build_model(tiny.config(switches), "here.json")
    assert "\n" not in str(caught.value)


def test_recipe_round_trip(tmp_path: Path) -> None:
    data = {"mevis": Source(root="x", weight=2.0)}
    recipe = Recipe(task="whole", data=data, weights=LossWeights(probe=0.0), model=tiny.config())
    save_recipe(tmp_path, recipe)
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("text", ["1e-4", "1.e-4", "1.0e-4", "0.0001", "+1E-4"])
def test_numbers_with_an_exponent(text: str, tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", {"task": "whole", "data": {"mevis": {"root": "1e-4x"}}})
    recipe = load_recipe(path, [f"learning_rate={text}"])
    assert recipe.learning_rate == 1e-4
    assert recipe.data["mevis"].root == "1e-4x"


def test_base_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    base = "data: {mevis: {root: w}}\nsteps: 5\ntask: whole\nmodel: {motion: {stages: 1, blocks: 2}}\n"
    (tmp_path / "base.yaml").write_text(f"{base}warmup: 1\nnegatives: 0\n")
    (tmp_path / "deep" / "mid.yaml").write_text("base: ../base.yaml\nsteps: 6\nbatch: 2\n")
    path = tmp_path / "deep" / "top.yaml"
    path.write_text("base: mid.yaml\nbatch: 3\nmodel: {motion: {blocks: 4}}\n")
    recipe = load_recipe(path, ["weights.label=1.5", "model.motion.position=false", "init=null", "points=7"])
    assert (recipe.data["mevis"].root, recipe.steps, recipe.batch, recipe.points, recipe.init) == ("w", 6, 3, 7, None)
    assert recipe.model.motion == MotionConfig(stages=1, blocks=4, position=False)
    assert recipe.weights == LossWeights(label=1.5)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("task: whole\ndata: {mevis: {root: w}}\n", ["steps"], "'steps' is not of the form key=value"),
        ("task: whole\ndata: {mevis: {root: w}}\n", ["stepz=3"], "r.yaml: unknown key 'stepz'; did you mean 'steps'?"),
        ("task: whole\ndata: {mevis: {root: w}}\n", ["steps=0"], "r.yaml.steps: must be at least 1, found 0"),
        (
            "task: whole\ndata: {mevis: {root: w}}\n",
            ["steps=many"],
            "r.yaml.steps: must be a valid integer, found 'many'",
        ),
        ("task: whole\ndata: {mevis: {root: w}}\n", ["steps=[1"], "steps=[1: is not valid YAML"),
        ("task: whole\ndata: {}\n", [], "r.yaml.data: names no data set; known: mevis, ref-youtube-vos, "),
        (
            "task: half\ndata: w\n",
            [],
            "r.yaml.task: must be 'perception', 'language', 'motion' or 'whole', found 'half'",
        ),
        ("- a\n", [], "r.yaml: expected a mapping of recipe keys"),
        ("a: [1\n", [], "is not valid YAML"),
        ("base: none.yaml\n", [], "none.yaml: cannot be read as a recipe (No such file"),
        ("data: w\n", [], "r.yaml.task: is missing"),
        ("tasks: whole\ndata: w\n", [], "r.yaml: unknown key 'tasks'; did you mean 'task'?"),
        ('task: whole\ndata: {"a\\nb": 3}\n', [], r"r.yaml.data.a\nb: must be a mapping, found 3"),
        ("task: whole\ndata: {mevis: {root: w}}\nbase: r.yaml\n", [], "r.yaml: is its own base"),
    ],
)
def test_wrong_recipes(text: str, overrides: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "r.yaml", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_recipes(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for name, message in (("no.yaml", "cannot be read"), ("", "cannot be read"), ("binary.yaml", "cannot be read")):
        with pytest.raises(UserError, match=message):
            load_recipe(tmp_path / name)


WHOLE = "task: whole\ndata: {mevis: {root: w}}\nsteps: 20000\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["learning_rate=0"], "learning_rate: must be above 0, found 0"),
        (["learning_rate=.nan"], "learning_rate: must be a finite number, found nan"),
        (["clip_norm=-1"], "clip_norm: must be above 0, found -1"),
        (["temperature=0"], "temperature: must be above 0, found 0"),
        (["batch=0"], "batch: must be at least 1, found 0"),
        (["sentences=0"], "sentences: must be at least 1, found 0"),
        (["sentences=2.5"], "sentences: must be a valid integer, found 2.5"),
        (["sentence=1"], "unknown key 'sentence'; did you mean 'sentences'?"),
        (["negatives=-1"], "negatives: must be at least 0, found -1"),
        (["weight_decay=.inf"], "weight_decay: must be a finite number, found inf"),
        (["weights.mask=-5"], "weights.mask: must be at least 0, found -5"),
        (["weights.contrst=1"], "weights: unknown key 'contrst'; did you mean 'contrast'?"),
        (["bank_delta=1"], "bank_delta: must be below 1, found 1"),
        (["data.refcocoo={root: w}"], "data: 'refcocoo' is no data set known here; did you mean 'refcoco'?"),
        (["data.imagenet={root: w}"], "data: 'imagenet' is no data set known here; known: mevis, ref-youtube-vos"),
        (["data.mevis.weight=0"], "data.mevis.weight: must be above 0, found 0"),
        (["data.mevis.ratio=2"], "data.mevis: unknown key 'ratio'; known: root, split, validation, weight"),
        (["augmentation.frames=0"], "augmentation.frames: must be at least 1, found 0"),
        (["about.paper=46.4"], "about.reproduces: is missing"),
    ],
    ids=str,
)
def test_impossible_values(changes: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(WHOLE)
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "r.yaml", changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_negatives_the_start_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(WHOLE)
    assert load_recipe(tmp_path / "r.yaml", ["steps=100", "negatives=0"]).negatives == 0
    assert load_recipe(tmp_path / "r.yaml", ["steps=100", "weights.contrast=0"]).steps == 100
    assert load_recipe(tmp_path / "r.yaml", ["steps=100", "task=perception"]).steps == 100


def test_what_a_recipe_is_about_does_not_make_it_another() -> None:
    recipe = Recipe(task="whole", data={"mevis": Source(root="x")})
    assert dataclasses.replace(recipe, about=About(reproduces="Table 3")) == recipe


def test_every_recipe_of_the_repository() -> None:
    """Sizes of those that say what they are about: test_configs.py."""
    for path in CONFIGS.glob("synthetic/*.yaml"):
        with torch.device("meta"):
            model = DsHmp(load_recipe(path).model)
        assert sum(parameter.numel() for parameter in model.parameters()) > 0
