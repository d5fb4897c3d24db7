"""Workers end with the process that started them, and leave the terminal's signals to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dshmp.data.mini import make_mini
from dshmp.data.registry import dataset
from dshmp.processes import worker_pool

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


def wait(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["synthetic", "score"])
def test_none_lives_on(command: str, number: signal.Signals, tmp_path: Path) -> None:
    """Whatever ends the command, at several moments; told in one line, and nothing is left behind in the end."""
    make_mini("mevis", dataset("mevis").mini, tmp_path / "mevis")
    (tmp_path / "pred").mkdir()
    for video in (tmp_path / "mevis" / "valid_u" / "JPEGImages").iterdir():
        (tmp_path / "pred" / video.name).mkdir()
    arguments = {
        "synthetic": ["synthetic", "make", "new", "--train", "4000", "--valid", "0", "--test", "0", "--workers", "2"],
        "score": ["score", "mevis", "mevis", "--split", "valid_u", "--pred", "pred", "--out", "new", "--workers", "2"],
    }[command]
    codes = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
    for delay in (0.0, 0.4, 1.5):
        with subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            wait(lambda process=process: children(process.pid) or process.poll() is not None)
            time.sleep(delay)
            below = children(process.pid)
            # a terminal sends its signals to all of them
            if number in (signal.SIGINT, signal.SIGHUP):
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            _, told = process.communicate(timeout=60)
        if (tmp_path / "new" / "results.json").exists():  # it was done before
            continue
        assert process.returncode == codes[number], (delay, told)
        assert "Traceback" not in told, told
        assert number == signal.SIGKILL or len([x for x in told.splitlines() if x.startswith("dshmp: ")]) == 1, told
        wait(lambda below=below: not any(map(alive, below)))
    again = [*COMMAND, "synthetic", "make", "new", "--train", "1", "--valid", "0", "--test", "0", "--workers", "1"]
    if command == "synthetic":
        subprocess.run(again, cwd=tmp_path, check=True, capture_output=True)
    assert not list(tmp_path.glob(".dshmp*"))
