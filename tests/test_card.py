"""The card: what it states is shown and nothing else, and none of it is interpreted."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import tiny
from dshmp.card import Card, lacks, model_card, with_scores
from dshmp.checkpoint import CONFIG, README, find_model, load_config
from dshmp.config import from_dict, to_dict
from dshmp.training.recipe import Recipe, trained_card

FULL = Card(
    name="one",
    source="converted",
    data="MeViS, split train",
    datasets=("jane/mevis",),
    recipe={"steps": 3, "weights": {"label": 2.0}, "take": ["motion", None]},
    scores={"valid_u": {"J&F": 64.5, "N-acc": 43.0}, "valid_u, static": {"J&F": 65.0, "mine": 1 / 3}},
    limits=("It is slow.", "It is small."),
    licence="apache-2.0",
)
SECTIONS = ("What it is", "Use it", "Data", "Recipe", "Scores", "Limits")


def section(card: ModelCard, title: str) -> str:
    text: str = card.text.split(f"\n## {title}\n")[1].split("\n## ")[0].strip()
    return text


@pytest.mark.parametrize("card", [FULL, Card()], ids=["full", "empty"])
def test_a_card_is_plain_json(card: Card) -> None:
    assert from_dict(Card, json.loads(json.dumps(to_dict(card)))) == card


def test_the_readme_states_the_card(tmp_path: Path) -> None:
    (tmp_path / README).write_text(str(model_card(FULL, "jane/one")))
    card = ModelCard.load(tmp_path / README)
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["jane/mevis"]
    assert card.data.metrics == ["J&F", "N-acc", "mine"]
    assert card.data.model_name == "one"
    assert [(r.dataset_name, r.metric_type, r.metric_value) for r in card.data.eval_results] == [
        ("valid_u", "j-and-f", 64.5),
        ("valid_u", "n-acc", 43.0),
        ("valid_u, static", "j-and-f", 65.0),
        ("valid_u, static", "mine", 1 / 3),
    ]
    assert card.text.startswith("\n# one\n")
    assert [line[3:] for line in card.text.splitlines() if line.startswith("## ")] == list(SECTIONS)
    assert "Origin of the weights: converted" in section(card, "What it is")
    assert 'Segmenter.from_pretrained("jane/one")' in section(card, "Use it")
    assert section(card, "Data") == "MeViS, split train"
    assert "steps: 3" in section(card, "Recipe")
    table = section(card, "Scores").splitlines()
    assert table[0] == "|  | J&F | N-acc | mine |"
    assert table[2:4] == [r"| valid\_u | 64.5 | 43 |  |", r"| valid\_u, static | 65 |  | 0.333333 |"]
    assert section(card, "Limits") == "- It is slow.\n- It is small."


def test_an_empty_card_says_so() -> None:
    card = model_card(Card())
    assert section(card, "Scores") == "Not scored yet."
    assert section(card, "Data") == section(card, "Recipe") == "Not stated."
    assert section(card, "Limits") == "None stated."
    for key in ("model-index", "metrics", "datasets", "license"):
        assert key not in card.data.to_dict()
    assert lacks(Card()) == ["data", "recipe", "scores", "limits"]
    assert lacks(FULL) == []


def test_scores_are_added() -> None:
    card = with_scores(Card(limits=("x",)), "valid_u", {"J&F": 1, "J": 2.5})
    card = with_scores(card, "test", {"J&F": 3.0})
    assert card.scores == {"valid_u": {"J&F": 1.0, "J": 2.5}, "test": {"J&F": 3.0}}
    assert card.limits == ("x",)
    assert with_scores(card, "valid_u", {"J": 4.0}).scores == {"valid_u": {"J": 4.0}, "test": {"J&F": 3.0}}
    assert card.scores["valid_u"] == {"J&F": 1.0, "J": 2.5}


HOSTILE = "a\n---\nlicense: mit\n# b {{ 7 * 7 }} {% x %} <script>1</script> ![c](http://d) `e` | *f* &lt; !!python/x"


def test_no_text_is_interpreted() -> None:
    card = model_card(
        Card(
            name=HOSTILE,
            source=HOSTILE,
            data=HOSTILE,
            recipe={HOSTILE: [HOSTILE, "```\n\n## Limits"]},
            scores={HOSTILE: {HOSTILE: 1.0}},
            limits=(HOSTILE, "1. one", "- two", "# three", "=== four"),
        )
    )
    read = ModelCard(str(card))
    assert str(read) == str(card)
    assert set(read.data.to_dict()) == {
        "language",
        "library_name",
        "metrics",
        "model-index",
        "pipeline_tag",
        "tags",
    }
    assert [result.dataset_name for result in read.data.eval_results] == [HOSTILE]
    lines = [line for line in read.text.splitlines() if not line.startswith("    ")]
    assert [line[3:] for line in lines if line.startswith("## ")] == list(SECTIONS)
    assert sum(line.startswith("# ") for line in lines) == 1
    shown = "\n".join(lines)
    for raw in ("<script", "](http://d", "&lt;", "`e`", "*f*"):
        assert raw not in shown.replace("\\" + raw[0], "")
    assert "{{ 7 \\* 7 }}" in shown
    assert len(section(read, "Scores").splitlines()) == 3
    assert section(read, "Limits").splitlines()[1:] == [r"- 1\. one", r"- \- two", r"- \# three", r"- \=== four"]


def recipe(**more: object) -> Recipe:
    return from_dict(Recipe, {**tiny.recipe("motion", Path("synthetic/tiny")), **more})


def test_training_fills_the_card(tmp_path: Path) -> None:
    card = trained_card(recipe(init="runs/language", take=["language", "perception"]), "motion", 2)
    assert card.name == "motion"
    assert card.data == "mevis (synthetic/tiny), split train"
    assert card.source == "training continued from runs/language (of which language, perception)"
    assert "model" not in card.recipe
    assert (card.recipe["steps"], card.recipe["trained_steps"]) == (3, 2)
    assert lacks(card) == ["scores", "limits"]
    assert from_dict(Card, json.loads(json.dumps(to_dict(card)))) == card
    (tmp_path / "synthetic.json").write_text("{}")
    data = {"mevis": {"root": str(tmp_path)}}
    card = trained_card(recipe(data=data, text_encoder="jane/roberta", run={"cache": str(tmp_path / "c")}), "x", 3)
    assert card.data == f"mevis ({tmp_path.name}), split train (made by dshmp synthetic make)"
    assert card.source == "random weights, trained; text encoder from jane/roberta"
    assert str(tmp_path) not in json.dumps(to_dict(card))


def test_the_default_models_card() -> None:
    folder = find_model("default")
    card = load_config(folder / CONFIG).card
    assert lacks(card) == []
    assert card.licence == "apache-2.0"
    assert (folder / README).read_text(encoding="utf-8") == str(model_card(card, "default"))
    assert any("real footage" in limit for limit in card.limits)
