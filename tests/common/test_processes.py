"""Workers end with the process that started them, and leave the terminal's signals to it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import tiny
from clips import tiny_model, write_clip
from dshmp.checkpoint import save_model
from dshmp.common.processes import worker_pool
from dshmp.data.base import frame_size
from dshmp.data.mini import make_mini
from dshmp.data.registry import dataset
from dshmp.evaluation.predictions import write_zip
from dshmp.interop.release import release_config
from dshmp.model.dshmp import DsHmp
from dshmp.model.tokenizer import TextTokenizer
from dshmp.recipes import FOLDER
from dshmp.synthetic.make import make_synthetic
from dshmp.video.overlay import save_png

COMMAND = [sys.executable, "-m", "dshmp"]


def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def children(parent: int) -> list[int]:
    """Processes below this one, itself not among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, above = int(path.parent.name), int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
        if above == parent:
            found += [number, *children(number)]
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_an_exception_ends_them_at_once() -> None:
    begun = time.monotonic()

    def work() -> None:
        with worker_pool(2) as pool:
            assert pool.submit(sleep, 0).result() != os.getpid()
            pool.submit(sleep, 100)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - begun < 30


def heed() -> None:
    """Also where the tests run under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def python(script: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=heed)
    return done.returncode, done.stdout, done.stderr


def blocked() -> None:
    print(sorted(number.name for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])))


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_the_first_process_does_not_get_the_signals_of_a_terminal() -> None:
    script = f"""
import sys
sys.path[:0] = {[str(each) for each in Path(__file__).parents[:2]]!r}
from dshmp.common.processes import QuietProcess
from test_processes import blocked
process = QuietProcess(target=blocked)
process.start()
process.join()
"""
    assert python(script) == (0, "['SIGHUP', 'SIGINT']\n", "")


def test_a_signal_waits_while_a_process_is_started() -> None:
    script = """
import os, signal
from dshmp.common.signals import heeded, held
with heeded():
    with held():
        os.kill(os.getpid(), signal.SIGTERM)
        print("started")
    print("never")
"""
    assert python(script) == (143, "started\n", "dshmp: stopped by SIGTERM\n")


def test_a_signal_while_a_worker_begins() -> None:
    script = """
import os, signal
from multiprocessing import popen_spawn_posix
from dshmp.common.processes import worker_pool
from dshmp.common.signals import heeded
launch = popen_spawn_posix.Popen._launch
def launch_and_stop(*args):
    launch(*args)
    os.kill(os.getpid(), signal.SIGTERM)
popen_spawn_posix.Popen._launch = launch_and_stop
if __name__ == "__main__":
    with heeded(), worker_pool(1) as pool:
        pool.submit(os.getpid)
"""
    assert python(script) == (143, "", "dshmp: stopped by SIGTERM\n")


def test_a_signal_while_a_scratch_folder_is_made_leaves_nothing(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from filelock import BaseFileLock
from dshmp.common.files import scratch
from dshmp.common.signals import heeded
acquire = BaseFileLock.acquire
def acquire_and_stop(self, *args, **more):
    acquire(self, *args, **more)
    os.kill(os.getpid(), signal.SIGTERM)
BaseFileLock.acquire = acquire_and_stop
with heeded(), scratch(Path({str(tmp_path)!r}) / "new"):
    print("never")
"""
    assert python(script) == (143, "", "dshmp: stopped by SIGTERM\n")
    assert not list(tmp_path.iterdir())


def test_a_signal_that_is_ignored_stays_so() -> None:
    script = """
import os, signal
from dshmp.common.signals import heeded
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with heeded():
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on")
"""
    assert python(script) == (0, "goes on\n", "")


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize(
    ("module", "words"), [("typer", "--help"), ("dshmp.cli", "--help"), ("numpy", "data mini mevis x")]
)
def test_a_signal_while_libraries_are_loaded(module: str, words: str, number: str, code: int) -> None:
    script = f"""
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{number})
sys.meta_path.insert(0, Finder())
sys.argv = ["dshmp", *{words!r}.split()]
runpy.run_module("dshmp", run_name="__main__")
"""
    found, out, told = python(script)
    assert (found, out, told.count("\n"), told[:7]) == (code, "", 1, "dshmp: "), told


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

CODES = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
COMMANDS = {  # words, of which {good} is the folder of `inputs`; all that they write goes to the folder they run in
    "synthetic make": "synthetic make new --train 4000 --valid 0 --test 0 --version 1 --workers 2",
    "score": "score mevis {good}/mevis --split valid_u --pred {good}/pred --out new --workers 2",
    "evaluate": "evaluate mevis {good}/mevis --split valid_u --out new --workers 2 --model {good}/model --device cpu",
    "ablate": "ablate {good}/ablation.yaml --rows {good}/rows --tables 2d --seeds 2 --jobs 2 --out new --device cpu",
    "convert": "convert {good}/theirs new.pth --to-release",
    "train": "train {good}/train.yaml --out new --device cpu",
    "predict": "predict mevis {good}/mevis --split valid_u --out new --model {good}/model --device cpu",
    "segment": "segment {good}/clip.mp4 dog --out new --model {good}/model --device cpu",
    "batch": "batch {good}/list.csv --out new --model {good}/model --device cpu",
    "data mini": "data mini mevis new",
    "data check": "data check mevis {good}/mevis --full",
    "submission": "submission mevis {good}/mevis {good}/pred.zip --split valid_u",
    "demo": "demo --out new --device cpu",
}
# How many moments of each, from its first one to the last; by hand, `DSHMP_MOMENTS=15 pytest -s` tries all commands.
MOMENTS = int(os.environ.get("DSHMP_MOMENTS", "0"))
STOPPED = re.compile("interrupted$|stopped by SIGTERM|stopped, the terminal is gone$")
TRIED = COMMANDS if MOMENTS else ["synthetic make", "score", "ablate", "convert"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    good = tmp_path_factory.mktemp("good")
    make_mini("mevis", dataset("mevis").mini, good / "mevis")
    split = dataset("mevis").open(good / "mevis", "valid_u")
    for item in split.expressions:
        (folder := good / "pred" / item.video / item.id).mkdir(parents=True)
        for name in split.videos[item.video].frames:
            save_png(folder / f"{name}.png", np.zeros(frame_size(split, item.video), np.uint8))
    write_zip(good / "pred", split, "mevis")
    save_model(*tiny_model(), good / "model")
    model, tokenizer = tiny_model(fusion=True)
    config = release_config(model.config)
    save_model(DsHmp(config), TextTokenizer(config, tokenizer.tokenizer), good / "theirs")
    write_clip(good / "clip.mp4", 400)
    (good / "list.csv").write_text("video,expression\n" + "".join(f"clip.mp4,dog {i}\n" for i in range(3)))
    make_synthetic(good / "data", train=4, valid=2, test=0, version=1, workers=1)
    values = tiny.recipe("whole", good / "data", steps=2000, log_every=50, validate_every=500, checkpoint_every=500)
    tiny.write_recipe(good / "train.yaml", values)
    tiny.write_recipe(good / "ablation.yaml", values)
    (good / "rows").mkdir()
    for path in (FOLDER / "ablations").glob("*.yaml"):
        (good / "rows" / path.name).write_bytes(path.read_bytes())
    return good


def interrupted(words: list[str], place: Path, number: signal.Signals, delay: float) -> tuple[int, str, bool, float]:
    """Run a command and send it a signal: its exit code, what it said on stderr, whether any process outlived it, and
    the seconds from the signal to its end."""
    with subprocess.Popen(
        [*COMMAND, *words],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed,
    ) as process:
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        below, sent = children(process.pid), time.monotonic()
        # a terminal sends its signals to all of them
        if number in (signal.SIGINT, signal.SIGHUP) and process.poll() is None:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, told = process.communicate(timeout=60)
        seconds = time.monotonic() - sent
    deadline = time.monotonic() + 30
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return process.returncode, told, any(map(alive, below)), seconds


@linux
@pytest.mark.slow
@pytest.mark.parametrize("command", TRIED)
def test_none_lives_on(command: str, inputs: Path, tmp_path: Path) -> None:
    """Whatever ends the command, at several moments; told in one line, and nothing is left behind in the end."""
    words = COMMANDS[command].format(good=inputs).split()
    longest = 6.0
    if MOMENTS:
        begun = time.monotonic()
        with subprocess.Popen(
            [*COMMAND, *words],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                process.wait(12)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
        longest = min(time.monotonic() - begun, 12)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        (tmp_path / "new.pth").unlink(missing_ok=True)
    wrong, done = [], Counter[str]()
    for number in (*CODES,) if not MOMENTS else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for moment in range(MOMENTS or 2):
            delay = 0.1 + (longest - 0.1) * moment / (MOMENTS or 2)
            place = tmp_path / f"{number.name} {moment}"
            place.mkdir()
            code, told, left, seconds = interrupted(words, place, number, delay)
            lines = [line for line in told.splitlines() if line.startswith("dshmp: ") and STOPPED.search(line)]
            if code == -number != -9 and "Traceback" not in told:  # while Python begins or ends, without us
                done["at once"] += 1
                continue
            if code in (0, 1) and "Traceback" not in told:
                done["done before"] += 1
                continue
            done[f"{code}"] += 1
            killed = number == signal.SIGKILL
            fault = [code] if code != CODES[number] else []
            fault += ["lines"] if not killed and len(lines) != 1 else []
            fault += ["traceback"] if "Traceback" in told or "ignored in" in told else []
            fault += ["left"] if left else []
            fault += ["late"] if seconds > 20 else []
            fault += ["rests"] if not killed and list(place.rglob(".dshmp-*")) else []
            if fault:
                wrong.append((number.name, round(delay, 2), fault, round(seconds, 1), told[-1500:]))
    print(f"| {command} | {longest:.1f} | {dict(done)} | {len(wrong)} |")
    for each in wrong:
        print(*each, sep="\n    ")
    assert not wrong
