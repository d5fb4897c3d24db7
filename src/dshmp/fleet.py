"""The videos of `dshmp batch`: one after the other here, or on Ray, where processes of many machines share them.

Every process has a model of its own. A video is answered wholly or not at all, so one whose process was killed is given
to a new process, and what the dead one left half-written is removed by the next that writes there.
"""

import logging
import os
import signal
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dshmp.common.environment import collect_rarely, keep_memory, share_cores
from dshmp.common.errors import UserError
from dshmp.common.options import Options

if TYPE_CHECKING:
    from dshmp.common.progress import Progress
    from dshmp.results.result import Result

log = logging.getLogger("dshmp")

TRIES = 3  # that a video is given, each by another process where the one before died
LOCAL = "local"  # as an address: no cluster, but processes here


@dataclass(frozen=True, kw_only=True)
class Task:
    """A video of a list: `how` are further arguments of `segment_to_folder`; `name` is of its folder in `out`, which
    is a folder or a URL."""

    video: Path
    sentences: list[str]
    out: str
    name: str
    options: Options
    how: Mapping[str, Any]


@dataclass(kw_only=True)
class Outcome:
    """What became of a video: the folder of its answers, None where it failed; what is wrong, a line each; and
    warnings that were not shown yet."""

    task: Task
    folder: str | None = None
    results: "Sequence[Result]" = ()
    new: int = 0
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def answer(task: Task, progress: "Progress | None" = None) -> Outcome:
    """Answer what is asked about a video, in this process."""
    from dshmp.inference.segment import load, segment_to_folder
    from dshmp.remote import is_url, segment_to_url

    outcome = Outcome(task=task)
    given: dict[str, Any] = {"options": task.options, "load": load, "name": task.name, "progress": progress}
    given |= {"faults": outcome.faults, **task.how}
    try:
        if is_url(task.out):
            folder, results, new = segment_to_url(task.video, task.sentences, task.out, **given)
        else:
            path, results, new = segment_to_folder(task.video, task.sentences, Path(task.out), **given)
            folder = str(path)
        outcome.folder, outcome.results, outcome.new = folder, results, new
    except UserError as error:
        outcome.faults.append(str(error))
    return outcome


def on_ray(
    tasks: Sequence[Task], address: str, workers: int | None, progress: "Progress"
) -> Generator[Outcome, None, None]:
    """Answer the tasks on the Ray cluster at `address`, in at most so many `workers`, as they get done. A video that
    fails is tried again after the others. Raises UserError where there is no such cluster, or no room on it."""
    ray = _connect(address)
    try:
        # as many threads as a plain run has here: sums are then added in the same order, and the bytes are the same
        from torch import get_num_threads

        threads = get_num_threads()
        needs = _needs(ray.nodes(), tasks[0].options.device, threads)
        count = min(_room(ray.nodes(), needs), len(tasks), workers or len(tasks))
        if not count:
            wanted = " and ".join(f"{number} {kind}" for kind, number in needs.items())
            raise UserError(f"--ray {address}: no machine has {wanted} for a worker; set OMP_NUM_THREADS=1, or add one")
        kind = ray.remote(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0))(Worker)
        idle = [kind.remote(os.getcwd(), threads) for _ in range(count)]
        waiting = deque((task, 1) for task in tasks)
        busy: dict[Any, tuple[Any, Task, int]] = {}
        done = 0
        while waiting or busy:
            progress("videos", done, len(tasks))
            while waiting and idle:
                worker, (task, turn) = idle.pop(), waiting.popleft()
                busy[worker.answer.remote(task)] = worker, task, turn
            for ready in ray.wait(list(busy), timeout=1)[0]:
                worker, task, turn = busy.pop(ready)
                try:
                    outcome = ray.get(ready)
                except ray.exceptions.RayTaskError as error:  # what it raised itself
                    outcome = Outcome(task=task, faults=[f"{task.video}: {error.cause!r}"])
                except ray.exceptions.RayError as error:  # killed, by whom or for want of memory, or out of reach
                    outcome = Outcome(task=task, faults=[f"{task.video}: its worker died ({_first_line(error)})"])
                    log.warning("%s", *outcome.faults)
                    worker = kind.remote(os.getcwd(), threads)
                idle.append(worker)
                if outcome.folder is None and turn < TRIES:
                    waiting.append((task, turn + 1))
                    continue
                done += 1
                for message in outcome.warnings:
                    log.warning("%s", message)
                yield outcome
        progress("videos", done, len(tasks))
    finally:
        ray.shutdown()


class Worker:
    """A process of the cluster, with the folder and the threads of the one that sends it work."""

    def __init__(self, folder: str, threads: int) -> None:
        keep_memory()
        share_cores()
        collect_rarely()
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Ray has set it to the CPUs of the worker
        if os.path.isdir(folder):
            os.chdir(folder)
        import torch

        torch.set_num_threads(threads)

    def answer(self, task: Task) -> Outcome:
        warnings = _Messages()
        log.handlers, log.propagate = [warnings], False
        outcome = answer(task)
        outcome.warnings = warnings.lines
        return outcome


class _Messages(logging.Handler):
    """Keeps warnings for the process that shows them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _connect(address: str) -> Any:
    """Ray, connected. Raises UserError."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # or it tells its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it will be; the other way is a warning
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray; pip install 'dshmp[ray]'") from None
    stop = signal.getsignal(signal.SIGTERM)
    own: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # no such cluster, another version, no room for its files
        raise UserError(f"--ray {address}: no Ray cluster is there ({_first_line(error)})") from None
    signal.signal(signal.SIGTERM, stop)  # Ray has its own way to end
    return ray


def _needs(nodes: Sequence[Mapping[str, Any]], device: str, threads: int) -> dict[str, int]:
    """What a worker takes of a machine, in Ray's names: a GPU, if it may and there is any, or a CPU per thread."""
    gpus = any(node["Alive"] and node["Resources"].get("GPU") for node in nodes)
    return {"CPU": 1, "GPU": 1} if device.startswith("cuda") or (device == "auto" and gpus) else {"CPU": threads}


def _room(nodes: Sequence[Mapping[str, Any]], needs: Mapping[str, int]) -> int:
    """How many workers the living machines have room for."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(resources.get(kind, 0)) // number for kind, number in needs.items()) for resources in alive)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
