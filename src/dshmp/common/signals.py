"""Signals that tell the command to end. Light, so that they are heeded while libraries are still being loaded."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_TOLD = {"SIGINT": "interrupted", "SIGTERM": "stopped by SIGTERM", "SIGHUP": "stopped, the terminal is gone"}
_GRACE = 10.0  # seconds for what libraries do when Python ends; what they wait for longer never comes
_received: list[int] = []
_held = 0


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """A signal ends this by SystemExit, so that half-written results are cleared away, and is told in one line. The
    exit code is 130 for Ctrl-C, 143 for SIGTERM and 129 for a terminal that was closed."""
    numbers = [getattr(signal, name) for name in _TOLD if hasattr(signal, name)]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)  # under nohup
    for number in numbers:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        if _received:
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(f"dshmp: {_TOLD[signal.Signals(_received[0]).name]}", file=sys.stderr, flush=True)
            last = threading.Timer(_GRACE, os._exit, [128 + _received[0]])
            last.daemon = True
            last.start()
            exit_if_signalled()


def exit_if_signalled() -> None:
    """Progress bars call this too, as some libraries lose what is raised in their callbacks."""
    if _received and not _held:
        raise SystemExit(128 + _received[0])


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A signal waits until this is done: what is being started or made may not be left half-way. Signals come to the
    main thread alone."""
    global _held
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    exit_if_signalled()


def _leave(number: int, frame: object) -> None:
    _received.append(number)
    sys.unraisablehook = lambda _: None  # of what arrives where nothing can be raised
    exit_if_signalled()
