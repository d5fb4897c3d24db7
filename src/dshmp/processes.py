"""Processes that share the work: they leave Ctrl-C to the one that started them, and never outlive it."""

import contextlib
import copy
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, context
from multiprocessing.process import BaseProcess
from typing import Any

_TERMINAL = {getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)}
"""Signals that a terminal sends to all processes of a command."""


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Hold the terminal's signals back. A process that is started meanwhile never gets them: not even while it
    starts, when it could not handle them yet."""
    change = getattr(signal, "pthread_sigmask", lambda how, signals: ())
    before = change(getattr(signal, "SIG_BLOCK", 0), _TERMINAL)
    try:
        yield
    finally:
        change(getattr(signal, "SIG_SETMASK", 0), before)


class _Quiet(BaseProcess):
    """Never gets the terminal's signals."""

    def start(self) -> None:
        with _signals_blocked():
            super().start()


class _Spawned(_Quiet, context.SpawnProcess): ...


class _Forked(_Quiet, getattr(context, "ForkProcess", context.SpawnProcess)): ...  # type: ignore[misc]


def spawning(fork: bool = False) -> Any:
    """The context of processes that begin afresh: a fork of one with threads, such as torch's, may hang."""
    quiet = copy.copy(multiprocessing.get_context("fork" if fork else "spawn"))
    quiet.Process = _Forked if fork else _Spawned  # type: ignore[attr-defined]
    return quiet


@contextlib.contextmanager
def worker_pool(
    workers: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = (), fork: bool = False
) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes. Where an exception passes, Ctrl-C too, they are ended, whatever they do.

    With `fork` they share the memory of this process, which must have no threads; only on Linux.
    """
    others = set(multiprocessing.active_children())
    spawned = spawning(fork and sys.platform == "linux")
    with _signals_blocked():  # multiprocessing starts a process of its own here
        pool = ProcessPoolExecutor(workers, mp_context=spawned, initializer=_begin, initargs=(initializer, initargs))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        # who is at work may finish in a second; a pool whose workers are killed before it cancelled the rest stumbles
        deadline = time.monotonic() + 1
        for process in (left := set(multiprocessing.active_children()) - others):
            process.join(max(deadline - time.monotonic(), 0))
        for process in left:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    after_parent(lambda: os._exit(1))
    if initializer is not None:
        initializer(*initargs)


def after_parent(end: Callable[[], None]) -> None:
    """Do this, in a thread, as soon as the process that started this one is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow(sentinel: int = parent.sentinel) -> None:
        connection.wait([sentinel])
        end()

    threading.Thread(target=follow, daemon=True).start()
