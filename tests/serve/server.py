"""The page in a process of its own, where gradio's warnings are not errors. It writes to the file LOG when the model is
asked, and where else the process connects to: lines `begin`, `end REASON`, `outside HOST`.

    python server.py PORT LOG [SECONDS that files are kept]
"""

import sys
import threading
import time
from typing import Any

from dshmp.common.signals import heeded
from dshmp.inference.segmenter import Segmenter
from dshmp.serve import page
from dshmp.serve.server import serving

lock = threading.Lock()


def log(line: str) -> None:
    with lock, open(sys.argv[2], "a") as file:
        file.write(f"{line}\n")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
        if host not in ("127.0.0.1", "::1", "localhost"):
            log(f"outside {host}")


def logged(answer: Any) -> Any:
    def call(*given: Any, **asked: Any) -> Any:
        log("begin")
        end = "done"
        try:
            return answer(*given, **asked)
        except BaseException as error:
            end = type(error).__name__
            raise
        finally:
            log(f"end {end}")

    return call


if __name__ == "__main__":
    sys.addaudithook(watch)
    if len(sys.argv) > 3:
        page.SWEEP, page.KEPT = 1, int(sys.argv[3])
    Segmenter.answer = logged(Segmenter.answer)  # type: ignore[method-assign]
    with heeded(), serving(["default"], "cpu", "127.0.0.1", int(sys.argv[1]), max_upload=2) as address:
        print(address, flush=True)
        while True:
            time.sleep(3600)
