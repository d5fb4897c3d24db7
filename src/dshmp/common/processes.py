"""Processes that share the work: they leave Ctrl-C to the one that started them, and never outlive it."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, context, resource_tracker
from typing import Any

from dshmp.common.signals import held

# signals that a terminal sends to all processes of a command
_TERMINAL = {getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)}


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Hold the terminal's signals back. A process that is started meanwhile never gets them."""
    change = getattr(signal, "pthread_sigmask", lambda how, signals: ())
    before = change(getattr(signal, "SIG_BLOCK", 0), _TERMINAL)
    try:
        yield
    finally:
        change(getattr(signal, "SIG_SETMASK", 0), before)


class QuietProcess(context.SpawnProcess):
    """Never gets the terminal's signals. It begins afresh: a fork of one with threads, such as torch's, may hang."""

    def start(self) -> None:
        if os.name == "posix":
            with _signals_blocked():
                resource_tracker.ensure_running()  # which lets signals through when it begins
        with held(), _signals_blocked():
            super().start()


class _Quiet(context.SpawnContext):
    Process = QuietProcess


@contextlib.contextmanager
def worker_pool(workers: int, begin: Callable[..., None] | None = None, *args: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, each of which first does `begin(*args)`. Where an exception passes, Ctrl-C too, they are
    ended, whatever they do."""
    others = set(multiprocessing.active_children())
    with _signals_blocked():  # multiprocessing starts a process of its own here
        pool = ProcessPoolExecutor(workers, _Quiet(), _begin, (begin, *args))
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        queues = vars(pool).copy()  # a worker that is just beginning would stumble over their absence
        pool.shutdown(wait=False, cancel_futures=True)
        # who is at work may finish in a second; a pool whose workers are killed before it cancelled the rest stumbles
        deadline = time.monotonic() + 1
        for process in (left := set(multiprocessing.active_children()) - others):
            process.join(max(deadline - time.monotonic(), 0))
        for process in left:
            process.kill()
        del queues
        raise


def _begin(begin: Callable[..., None] | None, *args: Any) -> None:
    after_parent(lambda: os._exit(1))
    if begin is not None:
        begin(*args)


def after_parent(end: Callable[[], None]) -> None:
    """Do this, in a thread, as soon as the process that started this one is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow(sentinel: int = parent.sentinel) -> None:
        connection.wait([sentinel])
        end()

    threading.Thread(target=follow, daemon=True).start()
