"""`dshmp ablate`: what the rows are, what a difference is, the page, what is refused, and a whole tiny ablation."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from scipy.stats import t as student

import tiny
from dshmp import cli
from dshmp.ablation import page as command
from dshmp.ablation import runs
from dshmp.ablation.figures import extremes, objects
from dshmp.ablation.page import page
from dshmp.ablation.record import RECORD, read_record, write_record
from dshmp.ablation.results import ABSENT, ALL, CRITICAL, PAIRS, Results, average, estimate, spread
from dshmp.ablation.rows import PARTS, TABLES, Table, chosen_tables, own_table, resolve
from dshmp.ablation.runs import SCORES, Run, Score, cross_fitted, plan, shard
from dshmp.checkpoint import save_model
from dshmp.common.errors import UserError
from dshmp.common.files import save_json
from dshmp.data.base import Expression
from dshmp.recipes import FOLDER as CONFIGS
from dshmp.training.held_out import SentenceScore
from dshmp.training.logging import describe
from dshmp.training.recipe import check_run_folder, load_recipe, save_recipe, trained_card
from recipe_rows import ROWS, TOGETHER, changes

OVER_OURS = ("ours", "no_static", "no_camera", "soft", "tokens_kept", "tokens_hidden")
BASE, FOLDER = CONFIGS / "synthetic" / "ablation.yaml", CONFIGS / "ablations"

# --- what a difference is


def test_an_interval_by_hand() -> None:
    """Two seeds, two videos of two sentences."""
    values = np.array([[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0]])
    found = estimate(values, ["a", "a", "b", "b"])
    seeds = 2.0 / 2  # the seeds' means 2.5 and 4.5 have variance 2
    videos = (2.0**2 + 2.0**2) / 4**2 * 2  # averages 2 3 4 5, from their mean -1.5 -0.5 and 0.5 1.5
    variance = seeds + videos
    freedom = variance**2 / (seeds**2 + videos**2)
    assert found.mean == 3.5
    assert found.half == pytest.approx(student.ppf(0.975, freedom) * math.sqrt(variance))
    assert "**" not in str(found)
    assert spread(values.mean(1), ".1f") == "3.5 ± 1.4"


def test_one_seed_and_one_video() -> None:
    values = np.array([[1.0, 1.0, 2.0, 2.0]])
    alone = estimate(values, ["a", "a", "b", "b"])
    variance = (1.0 + 1.0) / 16 * 2
    assert alone.half == pytest.approx(student.ppf(0.975, 1) * math.sqrt(variance))
    assert estimate(values, ["a"] * 4).half == math.inf
    assert "**" not in str(estimate(values, ["a"] * 4))
    assert spread(values.mean(1), ".1f") == "1.5"
    same = estimate(np.zeros((3, 4)), ["a", "b", "c", "d"])
    assert (same.mean, same.half, "**" in str(same)) == (0.0, 0.0, False)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("of_seeds", "of_videos"), [(1.0, 0.2), (0.2, 3.0), (0.5, 3.0)])
def test_intervals_hold_what_they_say(seeds: int, of_seeds: float, of_videos: float) -> None:
    """In 1000 simulated ablations the truth lies in the interval about as often as it says, rather more often."""
    rng = np.random.default_rng(0)
    videos, each, truth, inside = 40, 5, 0.7, 0
    names = [str(v) for v in range(videos) for _ in range(each)]
    for _ in range(1000):
        video = np.repeat(rng.normal(0, of_videos, videos), each)
        noise = rng.normal(0, 2.0, (seeds, videos * each))
        found = estimate(truth + rng.normal(0, of_seeds, (seeds, 1)) + video + noise, names)
        inside += abs(found.mean - truth) <= found.half
    assert 0.93 <= inside / 1000 <= 0.995


# --- rows


@pytest.mark.parametrize("base", [BASE, FOLDER / "full.yaml"])
def test_a_row_is_what_its_file_says_over_any_base(base: Path) -> None:
    rows = resolve(base, ["batch=7", "negatives=77"], FOLDER, TABLES.values())
    expected = ROWS | TOGETHER
    assert rows.keys() == {name for name in expected if name in TOGETHER or name not in OVER_OURS}
    plain = load_recipe(base, ["batch=7", "negatives=77"])
    for name, row in rows.items():
        said = expected[name] if not name.startswith("time") else {
            "model.motion.position": name in ("time", "time_position"),
            "model.motion.displacement": name in ("time", "time_displacement"),
        }  # fmt: skip
        differs = changes(plain, row.recipe)
        assert differs.keys() <= said.keys()
        assert all(said[key] == value for key, value in differs.items())
        full = load_recipe(FOLDER / f"{name.split('+')[-1]}.yaml")
        assert row.recipe.about is not None
        assert full.about is not None
        assert row.recipe.about.reproduces == full.about.reproduces


def test_rows_that_say_the_same_run_once() -> None:
    synthetic, paper = (resolve(base, [], FOLDER, TABLES.values()) for base in (BASE, FOLDER / "full.yaml"))
    assert {name: row.runs for name, row in synthetic.items() if row.runs != name} == {"time_position": "full"}
    assert {name: row.runs for name, row in paper.items() if row.runs != name} == {"time_none": "full"}
    assert (synthetic["none"].paper, synthetic["full"].paper, synthetic["time"].paper) == (39.7, 46.4, None)
    assert (synthetic["none+ours"].paper, synthetic["full+ours+soft"].paper) == (39.7, None)
    assert resolve(BASE, [], FOLDER, [own_table(["full+soft+ours"])])["full+soft+ours"].paper == 46.4


def test_the_papers_figures_of_the_parts() -> None:
    rows = resolve(BASE, [], FOLDER, [TABLES["1"]])
    results = Results(rows, [])
    means = {part: results.paper(average(pairs)) for part, pairs in PARTS.items()}
    assert means == {"DS": pytest.approx(1.85), "HMP": pytest.approx(3.0), "CL": pytest.approx(1.55)}


def test_runs_come_seed_by_seed(tmp_path: Path) -> None:
    rows = resolve(BASE, ["run.cache=null"], FOLDER, [TABLES["2d"], TABLES["time"]], 2)
    planned = plan(list(rows.values()), tmp_path)
    assert [(run.row, run.seed) for run in planned] == [
        (name, seed)
        for seed in (1, 2)
        for name in ("matching_none", "full", "matching_tracks", "time_none", "time_displacement", "time")
    ]
    assert all(run.recipe.seed == run.seed and run.recipe.run.cache == str(tmp_path / "cache") for run in planned)
    save_recipe(planned[0].folder, replace(planned[0].recipe, steps=7, warmup=1, contrast_start=1))
    with pytest.raises(UserError, match="matching_none-1: holds a run of another recipe"):
        plan(list(rows.values()), tmp_path)


def test_a_folder_named_in_another_way_holds_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(resolve(BASE, ["run.cache=null"], FOLDER, [TABLES["2d"]], 1).values())
    for run in plan(rows, tmp_path / "out"):
        save_recipe(run.folder, run.recipe)
    monkeypatch.chdir(tmp_path)
    assert plan(rows, Path("out"))[0].folder == Path("out/runs/matching_none-1")
    (tmp_path / "out").rename(tmp_path / "moved")
    plan(rows, tmp_path / "moved")


@pytest.mark.parametrize("change", [{"cache": "elsewhere"}, {"checkpointing": True}], ids=str)
def test_what_changes_no_result_may_change(change: dict[str, Any], tmp_path: Path) -> None:
    recipe = load_recipe(BASE)
    save_recipe(tmp_path, recipe)
    changed = replace(recipe, run=replace(recipe.run, **change))
    check_run_folder(tmp_path, changed)
    with pytest.raises(UserError, match="holds a run of another recipe"):
        check_run_folder(tmp_path, replace(changed, seed=recipe.seed + 1))


# --- the page


Scorer = Callable[[str, int, int], float]
"""Of a row, a seed and a sentence's number."""


def chosen(tables: str) -> dict[str, Table]:
    return {name: TABLES[name] for name in chosen_tables(tables)}


def canned(
    out: Path, tables: str, seeds: int, score: Callable[[str, int, int], float], critical: bool = True
) -> Results:
    """Finished runs with made-up scores of 30 videos with two sentences each; right ones are those above 50."""
    rows = resolve(BASE, [], FOLDER, chosen(tables).values(), seeds)
    planned = plan(list(rows.values()), out)
    for run in planned:
        write_scores(run, score, critical)
    return Results(rows, planned)


def write_scores(run: Run, score: Scorer, critical: bool) -> None:
    scores = []
    for number in range(60):
        value = score(run.row, run.seed, number)
        subsets = (CRITICAL,) if critical and number % 3 == 0 else ()
        right, empty = (value > 50, number % 5 == 0) if critical else (None, None)
        scores.append(Score(f"v{number // 2}", str(number % 2), subsets, value, right, empty))
    save_recipe(run.folder, run.recipe)
    document = {
        "measure": "J&F",
        "seconds": 120.0,
        "machine": "Machine: a.",
        "expressions": [asdict(each) for each in scores],
    }
    save_json(run.folder / SCORES, document)


def steady(row: str, seed: int, number: int) -> float:
    """The whole method 10 points better than without matching, give or take."""
    return 45 + 10 * (row == "full") + 3 * math.sin(seed * 7 + number) + 5 * math.cos(number // 2)


def test_a_page(tmp_path: Path) -> None:
    results = canned(tmp_path, "2d", 3, steady)
    found = results.contrast(results.differs("matching_none", "full"), [1, 2, 3], ALL)
    assert (found.mean, "**" in str(found)) == (pytest.approx(-10), True)
    text = page(results, "`base.yaml steps=3`", chosen("2d"), [])
    assert "Base: `base.yaml steps=3`: task" in text
    assert "60 sentences of 30 videos, 20 motion-critical, 60 right of pair" in text
    assert "Over 3 seeds (1, 2, 3)." in text
    assert "| none | 43.8 |" in text
    assert "a position in time, without which nothing tells which frame comes\nfirst" in text
    assert "**-10.0 [-10.0, -10.0]**" in text


def test_a_page_tells_differences_from_chance(tmp_path: Path) -> None:
    worse = canned(tmp_path / "a", "2d", 2, lambda row, seed, n: -steady(row, seed, n) + 100)
    assert "**+10.0 [+10.0, +10.0]**" in page(worse, "its base", chosen("2d"), [])
    noise = np.random.default_rng(0)
    level = canned(tmp_path / "b", "2d", 2, lambda row, seed, n: 50 + (row != "full") * 0.1 + 20 * noise.normal())
    text = page(level, "its base", chosen("2d"), [])
    assert "| none | 43.8 | " in text
    assert "**+" not in text
    assert "**-" not in text


def test_a_page_of_what_is_finished(tmp_path: Path) -> None:
    """Whole seeds of a table; rows without any run are named; subsets that the data lack are left out."""
    canned(tmp_path, "2a,2d", 2, steady, critical=False)
    (tmp_path / "runs" / "matching_none-2" / SCORES).unlink()
    for seed in (1, 2):
        (tmp_path / "runs" / f"cues_direct-{seed}" / SCORES).unlink()
    rows = resolve(BASE, [], FOLDER, chosen("2a,2d").values(), 2)
    results = Results(rows, plan(list(rows.values()), tmp_path))
    assert results.subsets == [ALL]
    assert results.seeds("matching_none", "full") == [1]
    text = page(results, "its base", chosen("2a,2d"), [])
    assert "Without a finished run, and so left out: without learnable queries." in text
    assert "Over one seed (1): the intervals cover other videos, not other seeds." in text
    assert "nothing is concluded" in text
    assert "Beside *" not in text.split("## Table 2d")[1]
    assert "Left out" not in text
    (tmp_path / "runs" / "full-1" / SCORES).unlink()
    text = page(Results(rows, plan(list(rows.values()), tmp_path)), "its base", chosen("2a,2d"), [])
    assert "Left out, as no two rows of theirs are finished with the same seed: Table 2d" in text
    assert "## Table 2d" not in text
    assert CRITICAL not in text
    assert PAIRS not in text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_description_of_a_run_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    assert runs._machine(tmp_path) == ""
    describe(tmp_path / "run.json", 3)  # as the run does that goes on
    assert runs._machine(tmp_path).startswith("Machine: ")


def test_a_page_is_the_same_from_the_record(tmp_path: Path) -> None:
    whole = canned(tmp_path / "a", "1,2d", 2, lambda row, seed, n: round(steady(row, seed, n)))
    assert {name: len(places) for name, places in whole.places.items()} == {
        ALL: 60,
        CRITICAL: 20,
        PAIRS: 60,
        ABSENT: 60,
    }
    text = page(whole, "its base", chosen("1,2d"), ["## A picture"])
    named = {whole.runs[key].folder.name: found for key, found in whole.found.items()}
    (tmp_path / "b").mkdir()
    write_record(tmp_path / "b", "its base", named, {"tokens.png": "## A picture"})
    found, pictures = read_record(tmp_path / "b", "its base")
    planned = plan(list(whole.rows.values()), tmp_path / "b")
    assert page(Results(whole.rows, planned, found), "its base", chosen("1,2d"), list(pictures.values())) == text
    assert (tmp_path / "b" / RECORD).stat().st_size < 500 * len(named) + 60 * 60


def test_runs_that_are_recorded_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another machine, which has the record and none of the runs: pictures stay as they were."""
    whole = canned(tmp_path / "a", "2d", 2, steady)
    named = {whole.runs[key].folder.name: found for key, found in whole.found.items()}
    del named["full-2"]
    out = tmp_path / "b"
    out.mkdir()
    write_record(out, "`synthetic/ablation`", named, {"tokens.png": "## A picture"})
    asked: list[str] = []

    def run_all(runs: list[Run], *_: object) -> list[str]:
        asked.extend(run.folder.name for run in runs)
        return ["full-2: failed"]

    monkeypatch.setattr("dshmp.ablation.page.run_all", run_all)
    path, failures = command.run("synthetic/ablation", [], out, tables="2d", seeds=2, device="cpu")
    assert (asked, failures) == (["full-2"], ["full-2: failed"])
    text = path.read_text()
    assert "Finished: 5 of 6 runs" in text
    assert text.endswith("## A picture\n")


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    results = canned(tmp_path, "2d", 1, steady)
    write_record(tmp_path, "its base", {"full-1": results.found["full", 1]}, {})
    document = json.loads((tmp_path / RECORD).read_text())
    document["runs"]["full-1"]["right"] = "1"
    (tmp_path / RECORD).write_text(json.dumps(document))
    with pytest.raises(UserError, match="run full-1 has not one score per sentence"):
        read_record(tmp_path, "its base")
    with pytest.raises(UserError, match="records runs of its base, not of another; name another folder with --out"):
        read_record(tmp_path, "another")


def test_a_verdict_is_no_stronger_than_its_interval(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    results = canned(
        tmp_path, "1", 5, lambda row, seed, n: steady(row, seed, n) + 3 * noise.normal() - 4 * ("cl" in row)
    )
    text = page(results, "its base", chosen("1"), [])
    assert "below: none (LMPM-like) (-1" in text
    assert "- DS cannot be told from what does nothing on this data: -" not in text  # the whole method has a bonus
    assert "- CL harms on this data: -" in text
    assert "the paper's +1.5 lies outside of the interval" in text
    assert "Over 5 seeds (1, 2, 3, 4, 5)." in text


def test_a_threshold_is_tuned_on_the_other_half_of_the_videos() -> None:
    def at(*iou: float) -> list[SentenceScore]:
        return [SentenceScore(each, None, False, False) for each in iou]

    scores = [at(10, 90, 10, 90), at(50, 20, 60, 20)]  # videos a and c are best at the second, b and d at the first
    assert [each.iou for each in cross_fitted(scores, ["a", "b", "c", "d"])] == [10, 20, 10, 20]
    assert [each.iou for each in cross_fitted(scores, ["a"] * 4)] == [10, 90, 10, 90]


def test_shards_share_the_runs() -> None:
    every = [Run(str(n), 0, load_recipe(BASE), Path(str(n))) for n in range(7)]
    parts = [shard(every, f"{n}/3") for n in (1, 2, 3)]
    assert sorted(run.row for part in parts for run in part) == [str(n) for n in range(7)]
    for wrong in ("0/3", "4/3", "1", "a/b", "1/2/3"):
        with pytest.raises(UserError, match="--shard: must be i/n"):
            shard(every, wrong)


def test_rows_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("batch: 8\nabout: {reproduces: mine, paper: null}\n")
    table = own_table([str(own), "ds+soft"])
    rows = resolve(BASE, [], FOLDER, [table])
    assert (rows[str(own)].recipe.batch, rows["ds+soft"].recipe.model.readout.pointing) == (8, "soft")
    assert [run.folder.name for run in plan(list(rows.values()), tmp_path)][:3] == ["mine-1", "ds+soft-1", "full-1"]
    with pytest.raises(UserError, match=r"nowhere\.yaml: missing, but \"Rows of one's own\" needs this row"):
        resolve(BASE, [], FOLDER, [own_table(["nowhere.yaml"])])


def test_each_table_has_its_seeds() -> None:
    rows = resolve(BASE, [], FOLDER, TABLES.values())
    assert {row.seeds for name, row in rows.items() if name in TABLES["1"].labels} == {5}
    assert {row.seeds for name, row in rows.items() if name not in TABLES["1"].labels and row.runs == name} == {3}
    planned = plan(list(rows.values()), Path("nowhere"))
    assert sum(run.row == "full" for run in planned) == 5
    assert sum(run.row == "stages_1" for run in planned) == 3


def test_runs_that_answered_other_sentences(tmp_path: Path) -> None:
    canned(tmp_path, "2d", 1, steady)
    path = tmp_path / "runs" / "full-1" / SCORES
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"expressions": document["expressions"][1:]}))
    rows = resolve(BASE, [], FOLDER, chosen("2d").values(), 1)
    with pytest.raises(UserError, match="scored on other sentences"):
        Results(rows, plan(list(rows.values()), tmp_path))
    path.write_text('{"measure": "J&F"}')
    with pytest.raises(UserError, match=r"scores\.json\.seconds: is missing"):
        Results(rows, plan(list(rows.values()), tmp_path))


@pytest.mark.parametrize("left", ["model", "nothing"])
def test_scores_that_are_removed_are_made_again_without_training(
    left: str, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints are gone by then."""
    path = tiny.write_recipe(tmp_path / "recipe.yaml", tiny.recipe("motion", mini))
    recipe, trained = load_recipe(path), []
    steps = recipe.steps if left == "model" else 1
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "model", trained_card(recipe, "run", steps))
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "seconds_per_step": 2.0}\n')
    monkeypatch.setattr(runs, "train", lambda *_: trained.append(1))
    monkeypatch.setattr(runs, "_score_motion", lambda *_: ("J&F", []))
    runs.train_and_score(tmp_path, "cpu")
    assert json.loads((tmp_path / SCORES).read_text()) == {
        "measure": "J&F",
        "seconds": 6.0,
        "machine": "",
        "expressions": [],
    }
    assert len(trained) == (left == "nothing")


# --- pictures


def test_sentences_are_chosen_by_rule() -> None:
    assert extremes(np.array([0.0, 3.0, -2.0, 3.0, 1.0, -2.0])) == {"largest gain": 1, "median": 0, "largest loss": 2}
    assert extremes(np.array([0.0])) == {"largest gain": 0}


def test_objects_with_the_most_sentences() -> None:
    items = [Expression("v", str(i), "x", objects) for i, objects in enumerate([(1,), (2,), (1, 2), (2,), (3,), (3,)])]
    assert [[item.id for item in group] for group in objects(items, 2)] == [["1", "3"], ["4", "5"]]


# --- the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such recipe"),
        ([str(BASE), "--tables", "2B"], "'2B' is no table; did you mean '2b'?"),
        ([str(BASE), "--tables", "banana"], "is no table; known: 1, 2a"),
        ([str(BASE), "--tables", ","], "'' is no table; known: 1, 2a"),
        ([str(BASE), "--rows", "nowhere"], "nowhere: no such folder of rows"),
        (
            [str(BASE), "--rows", str(CONFIGS / "synthetic")],
            "none.yaml: missing, but 'Table 1: the parts' needs this row",
        ),
        ([str(BASE), "--seeds", "0"], "--seeds: must be at least 1, found 0"),
        ([str(BASE), "--jobs", "0"], "--jobs: must be at least 1, found 0"),
        ([str(BASE), "--device", "abacus"], "device 'abacus' is not there"),
        ([str(CONFIGS / "synthetic" / "language.yaml")], "task language has nothing that the rows change"),
        ([str(BASE), "data.mevis.validation=null"], "no held-out split to compare on"),
        ([str(BASE), "stepz=3"], "unknown key 'stepz'"),
        ([str(BASE), "--page-only"], "no run is finished"),
    ],
)
def test_what_is_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [] if "--rows" in arguments else ["--rows", str(FOLDER)]
    monkeypatch.setattr(sys, "argv", ["dshmp", "ablate", *arguments, *options, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    told = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_that_misses_the_signal_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one in the last moments of its training, which goes on with its scoring."""
    told: list[int] = []
    process = SimpleNamespace(sentinel=0, terminate=lambda: told.append(1), is_alive=lambda: len(told) < 2)
    monkeypatch.setattr("dshmp.ablation.runs.connection.wait", lambda sentinels, timeout: None)
    runs._stop([process])  # type: ignore[list-item]
    assert len(told) == 2


# --- a whole tiny ablation


def start(base: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dshmp", "ablate", str(base), "--rows", str(FOLDER), "--out", str(out), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


PATIENCE = 3600
"""Seconds; the work takes a minute or two, and much longer on a machine that is busy with something else."""


def wait_for(there: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.slow
def test_an_ablation_survives_kills(mini: Path, tmp_path: Path) -> None:
    """A child is killed: the others go on. The command is told to stop: its children save. Killed: they stop too. The
    same command then comes to the end."""
    from dshmp.training.train import run as train

    values = tiny.recipe("perception", mini)
    train(tiny.write_recipe(tmp_path / "perception.yaml", values), [], tmp_path / "perception", "cpu")
    steps = {"steps": 300, "checkpoint_every": 10, "validate_every": 300, "patience": 300}
    values = tiny.recipe("motion", mini, init=str(tmp_path / "perception"), **steps)
    base, out = tiny.write_recipe(tmp_path / "base.yaml", values), tmp_path / "out"
    options = ("--tables", "2d", "--seeds", "2", "--jobs", "1", "--device", "cpu")
    first, second = (out / "runs" / f"{row}-0" for row in ("matching_none", "full"))

    process = start(base, out, *options)
    wait_for(lambda: list(first.glob("checkpoints/*.safetensors")), process)
    (child,) = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
    child.kill()
    wait_for(lambda: list(second.glob("checkpoints/*.safetensors")), process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert "1 run saves its state, and the same command goes on from there" in told
    assert "stopped by SIGTERM after step" in (second / "log.txt").read_text()

    process = start(base, out, *options)
    wait_for(lambda: (first / SCORES).exists(), process)
    wait_for(lambda: psutil.Process(process.pid).children(), process)
    children = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    psutil.wait_procs(children, timeout=PATIENCE)
    assert not any(each.is_running() and "spawn_main" in " ".join(each.cmdline()) for each in children)

    process = start(base, out, *options)
    said, told = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (0, f"wrote {out / 'README.md'}\n"), told
    for row in ("matching_none", "full"):
        for seed in (0, 1):
            folder = out / "runs" / f"{row}-{seed}"
            assert not (folder / "checkpoints").exists()
            assert (folder / "model" / "model.safetensors").is_file()
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            assert [line["step"] for line in lines if "cls" in line] == list(range(1, 301))
            scores = json.loads((folder / SCORES).read_text())["expressions"]
            rights = [100.0 * each["right"] for each in scores if each["right"] is not None]
            assert np.mean(rights) == pytest.approx(lines[-1]["right of pair"], abs=0.006)
    text = (out / "README.md").read_text()
    assert "Over 2 seeds (0, 1)." in text
    assert "](pictures/" not in text  # these compare rows of Table 1
    log = (first / "log.txt").read_bytes()
    process = start(base, out, *options)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert (first / "log.txt").read_bytes() == log  # there was nothing left to do
