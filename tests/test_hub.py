"""To the Hugging Face hub and back, without a network: the hub is a folder."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects

import tiny
from dshmp.card import Card
from dshmp.checkpoint import CONFIG, EXTRA_STATE, README, TOKENIZER, WEIGHTS, load_model, save_model
from dshmp.common.errors import UserError
from dshmp.inference.segmenter import Segmenter

FILES = {CONFIG, README, TOKENIZER, WEIGHTS}
CARD = Card(
    name="tiny", data="nothing", recipe={"steps": 0}, scores={"valid_u": {"J&F": 1.5}}, limits=("It knows nothing.",)
)


class Hub:
    """Repositories as folders; what huggingface_hub's calls were given is kept."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[dict[str, Any]] = []

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:
        self.calls.append({"private": private})
        repo_id = repo_id if "/" in repo_id else f"jane/{repo_id}"
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        self.calls.append(options)
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        self.calls.append(options)
        folder, copy = self.root / repo_id, self.root / "snapshot"
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        copy.mkdir(exist_ok=True)
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            shutil.copy(folder / name, copy / name)
        return str(copy)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.chdir(tmp_path)  # so that no id is a folder here
    monkeypatch.setattr(HfApi, "create_repo", lambda _, **given: hub.create_repo(**given))
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **given: hub.upload_folder(**given))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(tiny.model(), tiny.tokenizer(), device="cpu", card=CARD)


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)


def test_there_and_back(hub: Hub, segmenter: Segmenter, video: np.ndarray) -> None:
    address = segmenter.push_to_hub("jane/tiny", private=True, branch="dev", commit_message="First")
    assert address == "https://huggingface.co/jane/tiny/commit/1"
    assert hub.calls[0] == {"private": True}
    assert hub.calls[1]["commit_message"] == "First"
    assert hub.calls[1]["revision"] == "dev"
    assert {path.name for path in (hub.root / "jane/tiny").iterdir()} == FILES

    back = Segmenter.from_pretrained("jane/tiny", device="cpu")
    assert back.card == CARD
    assert back.config == segmenter.config
    for sentence in tiny.SENTENCES:
        one, other = segmenter(video, sentence), back(video, sentence)
        assert one.score == other.score
        assert np.array_equal(one.masks, other.masks)


def test_the_readme_on_the_hub(hub: Hub, segmenter: Segmenter) -> None:
    segmenter.push_to_hub("jane/tiny")
    card = ModelCard.load(hub.root / "jane/tiny" / README)
    assert card.data.library_name == "dshmp"
    assert card.data.pipeline_tag == "image-segmentation"
    assert [(r.dataset_name, r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        ("valid_u", "J&F", 1.5)
    ]
    assert 'Segmenter.from_pretrained("jane/tiny")' in card.text
    assert "--model jane/tiny" in card.text
    assert str(segmenter.generate_model_card("jane/tiny")) == str(card)


def test_only_our_files_are_fetched_as_asked(hub: Hub, segmenter: Segmenter, tmp_path: Path) -> None:
    segmenter.save_pretrained(hub.root / "jane/tiny")
    for name in ("pytorch_model.bin", "optimizer.pt", "more/config.json", "tokenizer_config.json"):
        (hub.root / "jane/tiny" / name).parent.mkdir(exist_ok=True)
        (hub.root / "jane/tiny" / name).write_bytes(b"x")
    asked = {"revision": "v1", "token": "secret", "cache_dir": tmp_path, "local_files_only": True}
    Segmenter.from_pretrained("jane/tiny", "cpu", "float32", **asked)  # type: ignore[arg-type]
    assert hub.calls == [asked]
    assert {path.name for path in (hub.root / "snapshot").iterdir()} == FILES


def test_load_model_reads_the_hub(hub: Hub, segmenter: Segmenter) -> None:
    segmenter.save_pretrained(hub.root / "jane/tiny")
    model, _ = load_model("jane/tiny", revision="v1")
    assert model.config == segmenter.config
    assert hub.calls == [{"revision": "v1"}]


def test_what_the_hub_holds_is_no_model(hub: Hub, segmenter: Segmenter) -> None:
    folder = hub.root / "jane/tiny"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("hello")
    with pytest.raises(UserError, match=r"^jane/tiny: holds no model on the hub \(config.json is missing\)$"):
        Segmenter.from_pretrained("jane/tiny")
    with pytest.raises(UserError, match=r"tiny: holds README.md, but no model of this program; name another folder"):
        segmenter.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "hello"


def test_a_foreign_config(hub: Hub) -> None:
    """The mixin would hand a config's keys to __init__."""
    (hub.root / "jane/tiny").mkdir(parents=True)
    (hub.root / "jane/tiny" / CONFIG).write_text('{"precision": "float16", "device": "meta", "card": 1}')
    with pytest.raises(UserError, match="is not a configuration of this program"):
        Segmenter.from_pretrained("jane/tiny", device="cpu")


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        Segmenter.from_pretrained("nobody/nothing", device="cpu", cache_dir=tmp_path)
    text = str(caught.value)
    assert text.startswith("nobody/nothing: is neither a folder here nor to be had from the hub (")
    assert "HF_HUB_OFFLINE=0" in text
    assert "\n" not in text


def test_default_never_asks_the_hub(hub: Hub) -> None:
    seg = Segmenter.from_pretrained("default", device="cpu", revision="v9")
    assert hub.calls == []
    assert seg.card.scores
    assert seg.card.limits


@pytest.mark.parametrize(
    ("lacking", "said"),
    [({}, ""), ({"scores": {}}, "does not state scores"), ({"scores": {}, "limits": ()}, "scores or limits")],
)
def test_a_thin_card_is_warned_of(
    lacking: dict[str, Any], said: str, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    seg = Segmenter(tiny.model(), tiny.tokenizer(), device="cpu", card=replace(CARD, **lacking))
    with caplog.at_level(logging.WARNING, "dshmp"):
        seg.push_to_hub("jane/tiny")
    assert (said in caplog.text) if said else not caplog.text
    assert (hub.root / "jane/tiny" / WEIGHTS).is_file()


def test_what_cannot_be_pushed(hub: Hub, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^jane/my tiny: cannot be pushed to the hub"):
        segmenter.push_to_hub("jane/my tiny")

    def refused(_: HfApi, **__: Any) -> None:
        raise OSError("403 Client Error.\n\n403 Forbidden: you may not.\nMore.")

    monkeypatch.setattr(HfApi, "create_repo", refused)
    with pytest.raises(UserError) as caught:
        segmenter.push_to_hub("jane/tiny")
    assert str(caught.value) == (
        "jane/tiny: cannot be pushed to the hub (403 Client Error. 403 Forbidden: you may not.)"
    )


def test_a_full_disk_is_not_the_hubs_fault(hub: Hub, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match=r"model.safetensors: cannot be written \(No space left on device\)"):
        segmenter.push_to_hub("jane/tiny")
    assert not list((hub.root / "jane/tiny").iterdir())


def test_a_name_without_an_owner(hub: Hub, segmenter: Segmenter) -> None:
    """The hub says whose it is."""
    segmenter.push_to_hub("tiny", delete_patterns="*.bin", ignore_patterns=["*.md"])
    assert 'from_pretrained("jane/tiny")' in (hub.root / "jane/tiny" / README).read_text()
    assert hub.calls[-1]["delete_patterns"] == "*.bin"
    assert hub.calls[-1]["ignore_patterns"] == ["*.md"]


def test_left_overs_go_along(hub: Hub, tmp_path: Path) -> None:
    """What a converted model keeps for the way back is saved, pushed and fetched with it."""
    folder = tmp_path / "converted"
    save_model(tiny.model(), tiny.tokenizer(), folder)
    (folder / EXTRA_STATE).write_bytes(b"x")
    Segmenter.from_pretrained(folder, "cpu").push_to_hub("jane/tiny")
    Segmenter.from_pretrained("jane/tiny", "cpu").save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == FILES | {EXTRA_STATE}
    assert (tmp_path / "again" / EXTRA_STATE).read_bytes() == b"x"
