"""Files that would start other programs, open other files or the network, or never end: each is told in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clips import picture, tiny_model, write_clip
from dshmp.checkpoint import CONFIG, TOKENIZER, WEIGHTS, find_model, load_config, load_model, load_tensors, save_model
from dshmp.cli import main
from dshmp.common.errors import UserError
from dshmp.common.hub import looks_local
from dshmp.data.a2d import Clip, read_masks
from dshmp.data.base import read_json, read_rows
from dshmp.data.images import read_frame
from dshmp.data.mevis import MevisSplit
from dshmp.data.refcoco import read_references
from dshmp.evaluation.predictions import Predictions, validate_zip
from dshmp.interop.mask2former import initialise
from dshmp.interop.safe_load import read_arrays, read_tensors
from dshmp.model.dshmp import DsHmp
from dshmp.model.text import pretrained_encoder
from dshmp.model.tokenizer import load_tokenizer, save_tokenizer
from dshmp.training.logging import describe, forget
from dshmp.training.recipe import load_recipe
from dshmp.video.container import open_container
from dshmp.video.images import FORMATS, SUFFIXES
from dshmp.video.io import open_video
from dshmp.video.overlay import overlay_writer

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n%%EOF\n"
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n"
PIPE = "is a pipe or a device where a regular file is needed"
LISTS = {
    "lists itself": HLS.format("list"),
    "never ends": HLS.format("clip.mp4"),
    "ends": HLS.format("clip.mp4") + "#EXT-X-ENDLIST\n",
    "after a byte order mark": "\ufeff" + HLS.format("clip.mp4"),
    "of concat": "ffconcat version 1.0\nfile clip.mp4\n",
    "of the network": HLS.format("http://127.0.0.1:9/clip.ts"),
    "of DASH": '<?xml version="1.0"?>\n<!-- a -->\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>\n',
    "PLS": "[playlist]\nFile1=clip.mp4\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
}


class Reached(BaseException):
    """Which nobody takes for a fault of a file."""


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Nothing here may take a minute: a read that waits is broken off."""

    def stop(*_: object) -> None:
        raise Reached("the end of a minute")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def dshmp(*arguments: object) -> str:
    """The only line of a command that has to fail with exit code 2, within a minute."""
    script = "from dshmp.cli import main; main()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(open_video(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Other programs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_postscript_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **_: pytest.fail(f"started {arguments}"))
    alone = tmp_path / f"1{suffix}"
    alone.write_bytes(POSTSCRIPT)
    assert refusal(alone) == f"{alone}: not an image, or damaged (it is no JPEG or PNG or BMP or WEBP or TIFF or AVIF)"
    Image.fromarray(picture(0)).save(tmp_path / "0.png")
    assert refusal(tmp_path).startswith(f"{alone}: not an image")


@pytest.mark.parametrize("kind", ["GIF", "PPM", "ICO", "PDF", "EPS"])
def test_other_formats_stay_shut(tmp_path: Path, kind: str) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "a.png", kind)
    assert "a.png: not an image" in refusal(tmp_path / "a.png")


def test_what_suffixes_promise_is_read(tmp_path: Path) -> None:
    kinds = {".jpg": "JPEG", ".jpeg": "MPO", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
    kinds |= {".jfif": "JPEG", ".apng": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF"}
    assert kinds.keys() == SUFFIXES
    assert set(kinds.values()) - {"MPO"} == set(FORMATS)
    for suffix, kind in kinds.items():
        Image.fromarray(picture(0)).save(tmp_path / f"a{suffix}", kind)
        assert len(list(open_video(tmp_path / f"a{suffix}"))) == 1


# Other files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["list", "list.m3u8", "list.mp4", "list.mpd", "list.ffconcat", "list.sdp"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_videos_is_none(tmp_path: Path, kind: str, name: str) -> None:
    write_clip(tmp_path / "clip.mp4")
    (tmp_path / "list").write_text(HLS.format("list"))
    path = tmp_path / name
    path.write_text(LISTS[kind])
    assert refusal(path).startswith(f"{path}: not a video of a kind that can be read")


def test_a_list_of_videos_at_the_command(tmp_path: Path) -> None:
    path = tmp_path / "clip.m3u8"
    path.write_text(HLS.format("clip.m3u8"))
    assert dshmp("segment", path, "a cat", "--out", tmp_path / "out").startswith(
        f"dshmp: {path}: not a video of a kind"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["clip%03d", "a:b", "http:b", "concat:a|b"])
@pytest.mark.parametrize("kind", ["mp4", "tiff", "png"])
def test_a_name_means_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (f"{name}.{kind}", f"clip001.{kind}", f"clip002.{kind}"):
        write_clip(tmp_path / path, 3) if kind == "mp4" else Image.fromarray(picture(0)).save(path)
    assert len(list(open_video(f"{name}.{kind}"))) == (3 if kind == "mp4" else 1)
    if kind != "png":
        Path(f"{name}.{kind}").unlink()
        assert "No such file" in refusal(Path(f"{name}.{kind}"))


def test_a_name_that_is_written_means_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("http:a", "%03d"):
        Path(folder).mkdir()
        with overlay_writer(Path(folder, "a:b%d.mp4"), 48, 64, 25) as write:
            write(picture(0), 0.0)
        assert len(list(open_video(Path(folder, "a:b%d.mp4")))) == 1


def test_sound_is_read_as_pictures_are(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", audio="aac")
    with open_container(path) as container:
        assert container.name == "fd:"
        assert len(container.streams.audio) == 1


@pytest.mark.parametrize("kind", ["mkv", "avi", "ts", "mpg", "flv", "h264", "nut", "y4m", "gif"])
def test_kinds_of_files_are_told_by_content(tmp_path: Path, kind: str) -> None:
    import av

    path = tmp_path / f"clip.{kind}"
    codec, colours = {"y4m": ("rawvideo", "yuv420p"), "gif": ("gif", "rgb8"), "h264": ("libx264", "yuv420p")}.get(
        kind, ("mpeg2video" if kind in ("ts", "mpg") else "flv" if kind == "flv" else "mpeg4", "yuv420p")
    )
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, colours
        for index in range(12):
            output.mux(
                stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24").reformat(format=colours))
            )
        output.mux(stream.encode(None))
    path = path.rename(tmp_path / "clip")
    assert len(list(open_video(path))) == 12


@pytest.mark.parametrize("kind", ["dds", "ico", "sgi"])
def test_kinds_that_are_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(picture(0)).save(path)
    assert refusal(path).startswith(f"{path}: not a video of a kind that can be read (")


# No end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip.mp4", "frame.png", "clip"])
def test_pipes_and_devices_are_no_videos(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert refusal(tmp_path / name) == f"{tmp_path / name}: cannot be read ({PIPE})"
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert refusal(tmp_path / name) == f"{tmp_path / name}: cannot be read ({PIPE})"


@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_pipes_and_devices_are_no_frames(tmp_path: Path, target: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to(target)
    assert refusal(tmp_path) == f"{tmp_path / '1.png'}: not an image, or damaged ({PIPE})"
    with pytest.raises(UserError, match=PIPE):
        read_frame(tmp_path / "1.png")


@pytest.fixture(params=["pipe", "/dev/zero"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A pipe that nobody writes to, or a link to a device without an end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to(request.param)
    return tmp_path / "endless"


READERS: dict[str, Callable[[Path], object]] = {
    "config": load_config,
    "weights": load_tensors,
    "checkpoint": read_tensors,
    "pickle": read_arrays,
    "recipe": load_recipe,
    "JSON": read_json,
    "CSV": lambda path: read_rows(path, Clip),
    "references": read_references,
    "HDF5": read_masks,
    "predictions": Predictions,
    "tokeniser": load_tokenizer,
}


@pytest.mark.parametrize("kind", READERS)
def test_regular_files_only(endless: Path, kind: str) -> None:
    with pytest.raises(UserError) as caught:
        READERS[kind](endless)
    assert str(endless) in str(caught.value)
    assert PIPE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_regular_files_only_at_the_command(
    endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: endless\n")
    for arguments, said in (
        (("batch", endless), f"cannot be read as a list ({PIPE})"),
        (("train", recipe), f"cannot be read as a recipe ({PIPE})"),
        (("convert", endless, tmp_path / "out"), f"cannot be read ({PIPE})"),
        (("segment", endless, "a cat"), f"cannot be read ({PIPE})"),
    ):
        monkeypatch.setattr("sys.argv", ["dshmp", *map(str, arguments)])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert capsys.readouterr().err == f"dshmp: {endless}: {said}\n"


def test_an_entry_among_predictions(endless: Path) -> None:
    with pytest.raises(UserError, match=PIPE):
        Predictions(endless.parent).read_json("endless")


def test_hdf5_that_leads_to_other_files(tmp_path: Path) -> None:
    import h5py

    (tmp_path / "secret").write_bytes(bytes(12))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["reMask"], file["instance"] = np.zeros((1, 3, 4), np.uint8), [1]
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["reMask"], file["instance"] = h5py.ExternalLink("other.h5", "reMask"), [1]
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["instance"] = [1]
        file.create_dataset("reMask", (1, 3, 4), np.uint8, external=[("secret", 0, 12)])
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((1, 3, 4), np.uint8)
        layout[:] = h5py.VirtualSource("other.h5", "reMask", (1, 3, 4))
        file["instance"] = [1]
        file.create_virtual_dataset("reMask", layout)
    assert read_masks(tmp_path / "other.h5")[0] == [1]
    for name in ("link", "raw", "virtual"):
        with pytest.raises(UserError, match=rf"{name}\.h5: 'reMask' is kept in another file, which is not read"):
            read_masks(tmp_path / f"{name}.h5")


# Sizes ------------------------------------------------------------------------------------------------------------

DOUBLED = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
RECIPES = {
    "[" * 5000: "is not valid YAML (too many brackets in each other)",
    "steps: " + "{a: " * 400 + "}" * 400: "is not valid YAML (too many brackets in each other)",
    "- &a [*a]": "expected a mapping of recipe keys",
    DOUBLED: "refers more than 20 times to what it said before",
    "a: 1\n" * 300_000: "is larger than 1,048,576 bytes",
    "base: " + "x" * 300: "its base is none ('xxx",
    'base: "a\\0b"': r"its base is none ('a\x00b' cannot be the name of a file)",
    'base: "\\ud800"': "its base is none ('utf-8' codec",
    "steps: " + "9" * 5000: "is not valid YAML (Exceeds the limit",
    "steps: !!int x": "is not valid YAML",
    "steps: !!timestamp x": "is not valid YAML",
    "task: whole\ndata: {mevis: {root: " + "x" * 300 + "}}": "data.mevis.root: 'xxx",
    'task: whole\ndata: {mevis: {root: "a\\0b"}}': r"data.mevis.root: 'a\x00b' cannot be the name of a file",
    "task: whole\ndata: {mevis: {root: x}}\ninit: " + "x/" * 3000: ": no such model; name",
}


@pytest.mark.parametrize("text", RECIPES, ids=range(len(RECIPES)))
def test_recipes_of_any_size(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert RECIPES[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_of_a_recipe_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("task: whole\nlearning_rate: &rate 1e-4\nweight_decay: *rate\ndata: {mevis: {root: x}}\n")
    assert load_recipe(path).weight_decay == 1e-4
    for text in ("[" * 5000, "a: " + "9" * 5000):
        with pytest.raises(UserError, match="is not valid YAML"):
            load_recipe(path, [f"steps={text}"])


METRICS = [
    "[" * 100_000,
    "{",
    "{}",
    "3",
    '{"step": "x"}',
    '{"step": 1, "loss": [2]}',
    '{"step": 1' + "0" * 5000 + "}",
    '{"step": NaN}',
    "\udcff",
    "",
]


def test_damaged_records_of_a_run(tmp_path: Path) -> None:
    """Lines of metrics.jsonl that are none are left out; run.json that is none begins anew."""
    path = tmp_path / "metrics.jsonl"
    whole = ['{"step": 1, "loss": 0.5}', '{"step": 2, "loss": 0.25}']
    path.write_text("\n".join([whole[0], *METRICS, whole[1], '{"step": 3, "lo']), errors="surrogateescape")
    forget(path, 2)
    assert path.read_text().splitlines() == whole
    wrong = ['{"id": 5, "starts": []}', '{"id": "a", "starts": 3}', '{"id": "\\ud800", "starts": []}', "[]"]
    for text in (*METRICS, *wrong):
        (tmp_path / "run.json").write_text(text, errors="surrogateescape")
        identity = describe(tmp_path / "run.json", 2)
        known = json.loads((tmp_path / "run.json").read_text())
        assert (known["id"], [start["step"] for start in known["starts"]]) == (identity, [2])
    assert describe(tmp_path / "run.json", 3) == identity
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=PIPE):
        forget(path, 2)


def archive(path: Path, *entries: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def test_zip_files_that_unpack_to_much(tmp_path: Path) -> None:
    """Neither deep names nor small files of endless content take time or memory."""
    begun = time.monotonic()
    path = archive(tmp_path / "deep.zip", *((f"{i}" + "/a" * 32_000, b"") for i in range(10)))
    with pytest.raises(UserError, match=r"deep\.zip: is neither .* zip file \(a name in it has 64,001 characters\)"):
        Predictions(path)
    for name in ("predict.json", "predictions.json"):
        path = archive(tmp_path / f"{name}.zip", (name, b"[" + b"[]," * 10_000_000 + b"0]"))
        with pytest.raises(UserError, match=r"is not valid JSON \(unpacks to 30,000,003 bytes\)"):
            Predictions(path).read_json(name)
    (tmp_path / "predict.json").write_bytes(b" " * 2**21)
    with pytest.raises(UserError, match="is larger than 1,048,576 bytes"):
        Predictions(tmp_path).read_json("predict.json")
    many = [{"image_id": str(i), "score": 0.5} for i in range(50_000)]
    path = archive(tmp_path / "whole.zip", ("predictions.json", json.dumps(many).encode()))
    assert len(Predictions(path).read_json("predictions.json")) == 50_000
    assert time.monotonic() - begun < 20


def test_a_zip_file_writes_no_control_codes(tmp_path: Path, mini: Path) -> None:
    path = archive(tmp_path / "evil.zip", ("a\x1b[31m\x07\nb.png", b""))
    split = MevisSplit(mini, "valid_u")
    first = split.expressions[0]
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(f"{first.video}/{first.id}/{split.videos[first.video].frames[0]}.png", b"")
    findings = validate_zip(path, split, "mevis")
    assert r"a\x1b[31m\x07\nb.png: the split has nothing of this name" in findings
    assert all(finding.isprintable() for finding in findings)


def test_what_is_told_is_printable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"a\x1b[31m\x07\xff")
    monkeypatch.setattr("sys.argv", ["dshmp", "data", "mini", "jhmdb", str(tmp_path / name)])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out == f"wrote {tmp_path}/a\\x1b[31m\\x07\\udcff\n"


def test_messages_are_printable(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\x07\nb"
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(caught.value).isprintable()
    assert r"a\x1b[31m\x07\nb: cannot be read as a recipe" in str(caught.value)


TOKENISERS: dict[str, tuple[str, Any]] = {
    "its model is a WordLevel": ("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}),
    "its normalizer is a Replace": (
        "normalizer",
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1_000_000},
    ),
    "its pre_tokenizer is a Whitespace": ("pre_tokenizer", {"type": "Whitespace"}),
}


@pytest.mark.parametrize("fault", TOKENISERS)
def test_tokenisers_of_other_kinds(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "tokenizer.json"
    save_tokenizer(tiny_model()[1].tokenizer, path)
    key, value = TOKENISERS[fault]
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=fault):
        load_tokenizer(path)


def test_a_tokeniser_that_makes_its_library_panic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {})  # as Rust's in Python

    def fail(*_: object, **__: object) -> None:
        raise panic("range end index 18446744073709551610 out of range")

    monkeypatch.setattr("dshmp.model.tokenizer.Tokenizer", SimpleNamespace(from_file=fail))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="range end index"):
        load_tokenizer(tmp_path)


# The network ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test stands in a folder of its own, and whatever reaches out ends it."""

    def fail(*arguments: object, **_: object) -> None:
        raise Reached(f"asked the network for {arguments}")

    for name in ("huggingface_hub.snapshot_download", "huggingface_hub.hf_hub_download", "socket.getaddrinfo"):
        monkeypatch.setattr(name, fail)
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(f"transformers.utils.hub.{name}", fail)
    monkeypatch.chdir(tmp_path)


PATHS = [
    *("./x", "../x", "/x/y", "~/x", "C:/x", "C:\\x", "a/b/c", "runs/typo", "runs/", "link", ""),
    *("x.json", "a/b.safetensors", "x/y.PTH"),
]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("source", PATHS)
def test_paths_are_not_sought_on_the_network(source: str) -> None:
    Path("runs").mkdir()
    Path("link").symlink_to("nowhere")
    assert looks_local(source)
    for load in (find_model, load_tokenizer, pretrained_encoder):
        with pytest.raises(UserError) as caught:
            load(source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["roberta-base", "FacebookAI/roberta-base", "jane/tiny.v1.5", "jane_d/x"])
def test_ids_are(no_network: None, source: str) -> None:
    assert not looks_local(source)
    with pytest.raises(Reached, match="network"):
        load_tokenizer(source)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("folder", ["m", "jane/m"])
def test_a_model_without_a_file_is_not_sought_on_the_network(folder: str) -> None:
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        shutil.rmtree(folder, ignore_errors=True)
        save_model(*tiny_model(), Path(folder))
        Path(folder, name).unlink()
        with pytest.raises(UserError, match=r"m(/|: holds no model).*") as caught:
            load_model(folder)
        assert name in str(caught.value)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("folder", ["m", "jane/m"])
def test_folders_of_other_programs_are_not_sought_on_the_network(folder: str) -> None:
    Path(folder).mkdir(parents=True)
    config = tiny_model()[0].config
    said = []
    for load in (load_tokenizer, pretrained_encoder, lambda source: initialise(DsHmp(config), source)):
        with pytest.raises(UserError) as caught:
            load(folder)
        said.append(str(caught.value))
    values = {"model_type": "mask2former", "backbone_config": {"model_type": "swin"}, "backbone": "a/b"}
    Path(folder, "config.json").write_text(json.dumps({**values, "use_pretrained_backbone": True}))
    with pytest.raises(UserError, match="cannot be loaded as transformers' Mask2Former"):
        initialise(DsHmp(config), folder)
    Path(folder, "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(UserError, match="cannot load the text encoder"):
        pretrained_encoder(folder)
    assert not [line for line in said if "\n" in line]
