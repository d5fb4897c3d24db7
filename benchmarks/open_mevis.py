"""Seconds from opening MeViS's mask_dict.json to the first mask, and peak memory: parsed whole, or indexed.

Usage: python benchmarks/open_mevis.py [--megabytes 200]

Each way has a process of its own; its memory is the peak above what the imports take (Linux only).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dshmp.common.rle import decode, encode
from dshmp.data.mevis import MaskIndex

FRAMES, SIZE = 80, (480, 854)


def write(path: Path, megabytes: int) -> None:
    """Annotations of 80 frames of 854x480, a little more than 1 kB a mask."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    ragged = (rng.random((120, 1)) * 6).repeat(4, axis=0)
    track = []
    for t in range(FRAMES):
        far = np.hypot(rows - 240, columns - 200 - 5 * t) + ragged
        track.append(None if t == 3 else encode(far < 150))
    text = json.dumps(track)
    with open(path, "w") as file:
        for i in range(max(1, megabytes * 10**6 // len(text))):
            file.write(f'{", " if i else "{"}"{i}": {text}')
        file.write("}")


def memory() -> float:
    """Peak of this process in MB. (getrusage's would count what the parent took.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(way: str, path: Path) -> None:
    encode(np.zeros((8, 8), bool))  # imports what decoding needs
    before, start = memory(), time.perf_counter()
    if way == "json.load":
        with open(path, encoding="utf-8") as file:
            track = json.load(file)["0"]
    else:
        found = MaskIndex(path).track(0)
        assert found is not None
        track = found
    assert decode(track[:1]).any()
    print(f"{way:18} {time.perf_counter() - start:8.3f} s {memory() - before:8.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mask_dict.json")
        write(path, options.megabytes)
        print(f"{path.name}: {path.stat().st_size / 10**6:.0f} MB")
        for way in ("json.load", "index"):
            command = [sys.executable, __file__, "--measure", way, str(path)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
