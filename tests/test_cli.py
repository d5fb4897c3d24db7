"""The command: exit codes, one-line errors, help at once, resuming, interruption."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import dshmp
import tiny
from clips import write_clip
from dshmp import cli, load_results
from dshmp.checkpoint import save_model
from dshmp.cli.base import shown_progress
from dshmp.common.errors import UserError
from dshmp.common.lists import read_list
from dshmp.data.mini import make_mini
from dshmp.data.registry import DATASETS
from dshmp.model.frames import prepare_frames


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["dshmp", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code
    return code if isinstance(code, int) else int(code is not None)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr that isn't progress."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dshmp: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    "command", [[], ["segment"], ["batch"], ["demo"], ["train"], ["evaluate"], ["synthetic"], ["synthetic", "make"]]
)
def test_help_has_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert call(monkeypatch, *command, "--help") == 0
    text = capsys.readouterr().out
    assert "Usage: " in text
    assert "Example: dshmp" in text or command == ["synthetic"]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['dshmp', 'segment', '--help']\n"
        "from dshmp.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'av', 'cv2', 'spacy', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"dshmp {dshmp.__version__}\n"


def test_segment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    video = write_clip(tmp_path / "clip.mp4", 6)
    out = tmp_path / "out"
    sentences = ("the one that turns back", "a cat")
    assert call(monkeypatch, "segment", video, *sentences, "--model", model, "--out", out, "--frames", "1:5") == 0
    document = json.loads((out / "clip" / "result.json").read_text())
    assert [answer["expression"] for answer in document["results"]] == list(sentences)
    for folder, frames in [(result["folder"], result["frame_count"]) for result in document["results"]]:
        assert frames == 4
        assert len(list((out / "clip" / folder / "masks").glob("*.png"))) == 4
        with av.open(str(out / "clip" / folder / "overlay.mp4")) as container:
            assert len(list(container.decode(video=0))) == 4
    captured = capsys.readouterr()
    assert f"wrote {out / 'clip'}" in captured.out
    assert "4 objects: a cat" in captured.out
    again = ("segment", video, "a cat", "--model", model, "--out", out, "--frames", "1:5")
    assert call(monkeypatch, *again) == 0
    assert f"wrote {out / 'clip'} (1 of 1 answered before)" in capsys.readouterr().out
    assert call(monkeypatch, *again, "--single") == 2
    assert "'a cat' was answered with targets None, not single; replace the answer with --over" in one_line(capsys)
    assert call(monkeypatch, *again, "--single", "--overwrite") == 0
    assert "1 object: a cat" in capsys.readouterr().out


def test_stages_of_known_and_unknown_length(capsys: pytest.CaptureFixture[str]) -> None:
    def lines(*told: tuple[str, int, int | None]) -> dict[str, str]:
        with shown_progress("clip") as show:
            for step in told:
                show(*step)
        return {line.split()[1]: line for line in capsys.readouterr().err.splitlines() if line}

    running = lines(("frames", 16, 16), ("motion", 0, None))
    assert "16/16" in running["frames"]
    assert "0/?" in running["motion"]
    assert "37/?" in lines(("frames", 37, None))["frames"]
    assert "1/1" in lines(("motion", 0, None), ("motion", 1, 1))["motion"]


def test_bad_input_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    video = write_clip(tmp_path / "clip.mp4", 3)
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 30)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "empty").mkdir()
    for part, arguments in {
        "missing.mp4: cannot be read (No such file": [tmp_path / "missing.mp4", "a cat"],
        "text.mp4: not a video": [text, "a cat"],
        "a folder without frames": [tmp_path / "empty", "a cat"],
        "the expression is empty": [video, "  "],
        "tokens, the limit is": [video, "cat " * 300],
        "is not a range": [video, "a cat", "--frames", "1-5"],
        "no frame in the range": [video, "a cat", "--frames", "9:"],
        "between 0 and 1": [video, "a cat", "--threshold", "7"],
        "device 'abacus'": [video, "a cat", "--device", "abacus"],
        "fps must be": [video, "a cat", "--fps", "-1"],
        "no such model": [video, "a cat", "--model", tmp_path / "nowhere"],
        "file": [video, "a cat", "--out", tmp_path / "file"],
    }.items():
        given = arguments if "--model" in arguments else [*arguments, "--model", model]
        given = given if "--out" in given else [*given, "--out", tmp_path / "out"]
        assert call(monkeypatch, "segment", *given) == 2, part
        assert part in one_line(capsys)
    assert not (tmp_path / "out").exists()
    assert call(monkeypatch, "segment") == 2
    assert call(monkeypatch, "segment", video, "a cat", "--precision", "int3") == 2
    assert call(monkeypatch, "nonsense") == 2


def test_batch_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("one.mp4", "a/two.mp4", "b/two.mp4"):
        write_clip(tmp_path / name, 3)
    rows = ["video,expression", "one.mp4,a cat", 'a/two.mp4,"left, then back"', "one.mp4,a dog", "b/two.mp4,a cat"]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join([*rows, "missing.mp4,a cat"]))
    out = tmp_path / "out"
    arguments = ("batch", listed, "--model", model, "--out", out)
    assert call(monkeypatch, *arguments) == 2  # one fails, the rest is done
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dshmp: ")]
    errors = [line for line in lines if "warning" not in line]  # that a word is unknown
    assert "missing.mp4: cannot be read (No such file" in errors[0]
    assert "1 of 4 videos failed" in errors[1]
    names = sorted(folder.name for folder in out.iterdir())
    assert names[0] == "one"
    assert len(names) == 3
    assert names[1] == "two"
    assert names[2].startswith("two-")
    document = json.loads((out / "one" / "result.json").read_text())
    assert [answer["expression"] for answer in document["results"]] == ["a cat", "a dog"]

    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    (out / "one" / "result.json").unlink()  # as if never finished
    (out / "one").rename(tmp_path / "gone")
    listed.write_text("\n".join(rows))
    assert call(monkeypatch, *arguments) == 0
    assert "2 of 3 videos were finished before" in capsys.readouterr().out
    again = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert [p.parent.name for p in again if again[p] != stamps[p]] == ["one"]
    assert call(monkeypatch, *arguments, "--threshold", "0.9") == 2
    assert "with threshold None, not 0.9; replace the answer with --overwrite" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("result.json")} == again
    assert call(monkeypatch, *arguments, "--threshold", "0.9", "--overwrite") == 0
    assert all(p.stat().st_mtime_ns != again[p] for p in again)


def test_batch_of_json_lines_and_frame_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str) -> None:
    (tmp_path / "frames").mkdir()
    for index in range(3):
        Image.fromarray(np.full((20, 30, 3), index * 40, np.uint8)).save(tmp_path / "frames" / f"{index}.jpg")
    listed = tmp_path / "list.json"
    rows = [{"video": "a.mp4", "expression": "x"}, {"video": "b.mp4", "expression": "y"}]
    listed.write_text(json.dumps([*rows, {"video": "a.mp4", "expression": "z"}], indent=1), encoding="utf-16")
    assert read_list(listed) == {tmp_path / "a.mp4": ["x", "z"], tmp_path / "b.mp4": ["y"]}
    listed = tmp_path / "list.jsonl"
    listed.write_text(json.dumps({"video": "frames", "expression": "a cat"}) + "\n\n")
    assert call(monkeypatch, "batch", listed, "--model", model, "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out" / "frames" / "01-a-cat" / "masks").iterdir())) == 3


def test_masks_are_called_as_the_frames_of_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    """Those of a range, too; another range in place of it leaves none of the others."""
    (tmp_path / "cam").mkdir()
    for number in (8, 9, 10, 11):
        Image.fromarray(np.full((20, 30, 3), number * 20, np.uint8)).save(tmp_path / "cam" / f"left_{number}.jpg")
    given = "segment", tmp_path / "cam", "a cat", "--model", model, "--out", tmp_path / "out"
    assert call(monkeypatch, *given, "--frames", "1:3") == 0
    masks = tmp_path / "out" / "cam" / "01-a-cat" / "masks"
    assert {path.name for path in masks.iterdir()} == {"left_9.png", "left_10.png"}
    answers = json.loads((tmp_path / "out" / "cam" / "result.json").read_text())["results"]
    assert answers[0]["frames"] == ["left_9", "left_10"]
    assert call(monkeypatch, *given, "--frames", "2:", "--overwrite") == 0
    assert {path.name for path in masks.iterdir()} == {"left_10.png", "left_11.png"}
    assert load_results(tmp_path / "out" / "cam")[0].frame_count == 2


def test_a_damaged_answer_of_before_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "clip.mp4", 3)
    given = "segment", tmp_path / "clip.mp4", "a cat", "--model", model, "--out", tmp_path / "out"
    assert call(monkeypatch, *given) == 0
    path = tmp_path / "out" / "clip" / "result.json"
    document = json.loads(path.read_text())
    del document["results"][0]["evidence"]
    path.write_text(json.dumps(document))
    capsys.readouterr()
    assert call(monkeypatch, *given) == 2
    assert "is damaged" in one_line(capsys)
    assert call(monkeypatch, *given, "--overwrite") == 0
    assert len(load_results(path)[0].evidence) == 3


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.csv", "", "must name the columns"),
        ("a.csv", "video,expression\n", "the list is empty"),
        ("a.csv", "clip,words\nx,y\n", "must name the columns"),
        (
            "a.csv",
            "video,expression\nclip.mp4,\n",
            "line 2: cannot be read as a list (needs a video and an expression)",
        ),
        ("a.jsonl", '{"video": "x"\n', "line 1: cannot be read as a list (Expecting"),
        ("a.jsonl", "[1]\n", "line 1: cannot be read as a list (needs"),
        ("a.json", '[{"video": "x", "expression": "a"}, ["x", "a"]]', "entry 2: cannot be read as a list (needs"),
        ("a.json", '{"video": "x"}', "a.json: cannot be read as a list (a .json list is an array"),
        ("a.json", "[" * 100_000, "a.json: cannot be read as a list (maximum recursion"),
        ("a.jsonl", "[" * 100_000, "line 1: cannot be read as a list (maximum recursion"),
        (
            "a.csv",
            "video,expression\nx.mp4,a cat\na.mp4,the dog, which turns back\n",
            "line 3 has too many fields; put a sentence with a comma in quotes",
        ),
        ("a.csv", 'video,expression\n"a\n.mp4",a cat,\n', "line 3 has too many fields"),
        ("a.csv", 'video,expression\na.mp4,"the dog\nb.mp4,a cat\n', "is no row of a CSV"),
        ("a.csv", "video,expression,video\na.mp4,the dog,b.mp4\n", "each once"),
        ("a.csv", "video,expression\na\0b.mp4,the dog\n", "line 2: cannot be read as a list (embedded null byte)"),
    ],
)
def test_wrong_lists(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    text: str,
    part: str,
) -> None:
    (tmp_path / name).write_text(text)
    assert call(monkeypatch, "batch", tmp_path / name) == 2
    assert part in one_line(capsys)


def test_lists(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "a.mp4").touch()
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    (tmp_path / "a.csv").write_text(
        'expression,video,note\n"the dog,\nwhich turns back",a.mp4,x\r\na cat,d/../a.mp4,\n'
        '\na cat,link.mp4\n"a ""b""",./b.mp4\n'
    )
    assert read_list(tmp_path / "a.csv") == {
        tmp_path / "a.mp4": ["the dog, which turns back", "a cat"],
        tmp_path / "b.mp4": ['a "b"'],
    }


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_dialects_of_lists(tmp_path: Path, separator: str, encoding: str) -> None:
    rows = ["video,expression", 'ä.mp4,"a dog, then; a cat"', "b.mp4,a cat"]
    text = "\n".join([*(row.replace(",", separator, 1) for row in rows), ""])
    (tmp_path / "a.csv").write_text(text, encoding=encoding)
    assert list(read_list(tmp_path / "a.csv").values()) == [["a dog, then; a cat"], ["a cat"]]
    (tmp_path / "a.csv").write_text(f"sep={separator}\n{text}", encoding=encoding)  # as for Excel
    assert list(read_list(tmp_path / "a.csv").values()) == [["a dog, then; a cat"], ["a cat"]]


def test_a_list_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video,expression\nstraße.mp4,a cat\n", encoding="cp1252")
    with pytest.raises(UserError, match=r"a\.csv: its letters are in no form of Unicode; save it as UTF-8"):
        read_list(tmp_path / "a.csv")


def test_a_second_video_is_no_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    video = write_clip(tmp_path / "clip.mp4", 3)
    (tmp_path / "frames").mkdir()
    (tmp_path / "notes").touch()
    for text in ("b.mp4", "notes", "clip.MOV"):
        assert call(monkeypatch, "segment", video, text, "a cat", "--model", model, "--out", tmp_path / "out") == 2
        assert f"'{text}' is a file, but only the first argument is a video" in one_line(capsys)
    assert call(monkeypatch, "segment", video, "frames", "a" * 100, "--model", model, "--out", tmp_path / "out") == 0


def test_a_message_is_one_printable_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Names that files hold reach no terminal as they are."""
    torch.save({"evil\nline\x1b[31m": torch.ones(1), "x": torch.ones(1)}, tmp_path / "a.pth")
    assert call(monkeypatch, "convert", tmp_path / "a.pth", tmp_path / "m") == 2
    assert r"its names begin with evil\nline\x1b[31m, x" in one_line(capsys)
    torch.save({"evil\n" * 100_000: torch.ones(1), "x": torch.tensor(torch.nan)}, tmp_path / "a.pth")
    assert call(monkeypatch, "convert", tmp_path / "a.pth", tmp_path / "m") == 2
    assert one_line(capsys).endswith("x holds NaN or infinity; it is damaged, or the training behind it diverged")
    torch.save({"evil\n" * 100_000: torch.ones(1)}, tmp_path / "a.pth")
    assert call(monkeypatch, "convert", tmp_path / "a.pth", tmp_path / "m") == 2
    assert len(one_line(capsys)) < 1000
    logging.getLogger("dshmp").warning("%s", "a\nb")
    assert one_line(capsys) == r"dshmp: warning: a\nb"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_nothing(tmp_path: Path, model: str, number: int, code: int) -> None:
    video = write_clip(tmp_path / "clip.mp4", 1500)
    out = tmp_path / "out"
    script = "from dshmp.cli import main; main()"
    command = [sys.executable, "-c", script, "segment", video, "a cat", "--model", model, "--out", out]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if any(out.glob(".*.partial/*/masks/*.png")):
                break
            time.sleep(0.005)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == code
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4"]


def test_segment_tracks_as_a_user_does(tmp_path: Path, model: str) -> None:
    """The real command, in a process of its own: the answers are the tracks, and a bad file is one line."""
    video = write_clip(tmp_path / "clip.mp4", 6)
    masks = np.zeros((2, 6, 48, 64), bool)
    for t in range(6):
        masks[0, t, 4:16, 2 + 4 * t : 14 + 4 * t] = masks[1, t, 30:40, 40:60] = True
    for k, each in enumerate(masks):
        (tmp_path / "tracks" / f"object {k}").mkdir(parents=True)
        for t, mask in enumerate(each):
            Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "tracks" / f"object {k}" / f"{t:05d}.png")
    (tmp_path / "cut.json").write_text('{"videos": [')
    (tmp_path / "clip.yaml").write_text("<a/>")

    def command(tracks: str, out: str) -> subprocess.CompletedProcess[str]:
        words = ["segment", video, "the red star", "the one that turns", "--model", model, "--device", "cpu"]
        words += ["--tracks", tmp_path / tracks, "--still-camera", "--out", tmp_path / out]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        asked = [sys.executable, "-m", "dshmp", *map(str, words)]
        return subprocess.run(asked, capture_output=True, text=True, env=environment)

    done = command("tracks", "out")
    assert done.returncode == 0, done.stderr
    for result in load_results(tmp_path / "out" / "clip"):
        assert result.found
        for item in result.objects:
            assert item.track in ("object 0", "object 1")
            assert np.array_equal(item.masks, masks[int(item.track[-1])])
    for name, told in (("cut.json", "not valid JSON"), ("clip.yaml", "no kind of tracks")):
        failed = command(name, "bad")
        lines = [line for line in failed.stderr.splitlines() if line.startswith("dshmp: ")]
        assert failed.returncode == 2
        assert len(lines) == 1
        assert told in lines[0]
        assert "Traceback" not in failed.stderr
        assert not (tmp_path / "bad").exists()


def test_an_overlong_sentence_fails_alone_and_its_video_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", 3)
    table = tmp_path / "list.csv"
    table.write_text(f"video,expression\na.mp4,a cat\na.mp4,{'dog ' * 300}\nb.mp4,{'cat ' * 20_000}\n")
    assert call(monkeypatch, "batch", table, "--out", tmp_path / "out", "--model", model) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dshmp: ")]
    told = [line for line in lines if "warning" not in line]  # that a word is unknown
    assert [part in line for part, line in zip(("a.mp4: the ex", "b.mp4: the ex", "2 of 2"), told, strict=True)] == [
        True
    ] * 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert [answer["sentence"] for answer in json.loads((tmp_path / "out/a/result.json").read_text())["results"]] == [
        "a cat"
    ]


def test_json_is_all_of_stdout_and_quiet_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    video = write_clip(tmp_path / "clip.mp4", 3)
    options = ("--model", model, "--out", tmp_path / "out", "--json")
    choice = ("--threshold", "1", "--all-objects")
    assert call(monkeypatch, "segment", video, "a cat", *options, *choice) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert "wrote" in said.err
    assert answer["folder"] == str(tmp_path / "out" / "clip")
    assert answer["results"][0]["objects"] == []
    assert len(answer["results"][0]["others"]) == 4
    assert answer["results"] == [item.to_json() for item in dshmp.load_results(tmp_path / "out" / "clip")]
    assert call(monkeypatch, "segment", video, "a cat", *options) == 2  # other settings
    capsys.readouterr()
    (tmp_path / "list.csv").write_text("video,expression\nclip.mp4,a cat\nclip.mp4,a dog\n")
    assert call(monkeypatch, "batch", tmp_path / "list.csv", *options, *choice, "--quiet") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert [json.loads(line)["video"] for line in said.out.splitlines()] == [str(video)]


def test_values_of_the_input_are_set_for_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    video = write_clip(tmp_path / "clip.mp4", 3)
    sizes = []
    seen = lambda frames, config: sizes.append(config.short_side) or prepare_frames(frames, config)  # noqa: E731
    monkeypatch.setattr("dshmp.inference.encoded.prepare_frames", seen)
    options = ("--model", model, "--out", tmp_path / "out")
    values = ("--set", "input.short_side=32", "--set", "input.chunk=2")
    assert call(monkeypatch, "segment", video, "a cat", *options, *values) == 0
    assert set(sizes) == {32}
    (answer,) = json.loads((tmp_path / "out" / "clip" / "result.json").read_text())["results"]
    assert answer["settings"]["set"] == ["input.short_side=32", "input.chunk=2"]
    assert call(monkeypatch, "segment", video, "a cat", *options, *values) == 0
    assert "1 of 1 answered before" in capsys.readouterr().out
    for wrong, told in {
        "input.short_side=64": "was answered with set ['input.short_side=32', 'input.chunk=2'], not ['input.short_side",
        "input.short_sid=64": "input: unknown key 'short_sid'; did you mean 'short_side'?",
        "input.short_side=0": "input.short_side: must be at least 1, found 0",
        "input=3": "input: ",
        "motion.blocks=1": "motion: cannot be set for a run; what can: input.short_side, ",
        "input.short_side": "is not of the form key=value",
    }.items():
        sentence = "a cat" if "answered" in told else "a dog"
        assert call(monkeypatch, "segment", video, sentence, *options, "--set", wrong) == 2
        assert told in one_line(capsys)
    make_mini("mevis", DATASETS["mevis"].mini, tmp_path / "mini")
    data = ("mevis", tmp_path / "mini", "--split", "valid_u", "--model", model, "--out", tmp_path / "predictions")
    sizes.clear()
    assert call(monkeypatch, "predict", *data, *values) == 0
    assert set(sizes) == {32}
    facts = json.loads((tmp_path / "predictions" / "predict.json").read_text())
    assert facts["resolution"] == "short side 32, long side at most 80"
    assert call(monkeypatch, "predict", *data, *values) == 0
    capsys.readouterr()
    assert call(monkeypatch, "predict", *data) == 2
    assert "holds predictions of a different set (['input.short_side=32', 'input.chunk=2'], not None)" in one_line(
        capsys
    )
    assert call(monkeypatch, "evaluate", *data, *values, "--update-card") == 2
    assert "leave out --set" in one_line(capsys)


PRESETS: dict[str, dict[str, object]] = {
    "default": {},
    "release": {
        **{"release.overlong": "cut", "release.pad_to_max": True, "release.pad_token_id": 0, "release.exact": False},
        **{"release.window_shift": "test", "release.padded_frames": "seen", "release.score": "quality"},
        **{"release.autocast": "float16", "motion.matching": "inverse"},
    },
    "video-swin": {"backbone.temporal_window": 2, "backbone.clip": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, preset: str, precision: str) -> None:
    save_model(tiny.model(PRESETS[preset]), tiny.tokenizer(PRESETS[preset]), tmp_path / "model")
    video = write_clip(tmp_path / "clip.mp4", 6)
    options = ("--model", tmp_path / "model", "--out", tmp_path / "out", "--precision", precision, "--threshold", "0")
    assert call(monkeypatch, "segment", video, "the red star", *options) == 0
    assert dshmp.load_results(tmp_path / "out" / "clip")[0].found
