"""How time, memory and temporary disk grow with a video's length: a model answers one sentence about made videos, each
in a fresh process that is set up as the command's is; no overlay is drawn.

Usage: python benchmarks/length.py [MODEL] [--size 360 640] [--fps 25] [--frames 1000 20000]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

RUN = """
import json, resource, sys, time
from dshmp.common.environment import collect_rarely, keep_memory, share_cores
keep_memory(), share_cores(), collect_rarely()
from dshmp import Segmenter
segmenter = Segmenter.from_pretrained(sys.argv[1])
start, work = time.perf_counter(), time.process_time()
result = segmenter(sys.argv[2], "the red one moving right", targets="single")
wall, work = time.perf_counter() - start, time.process_time() - work
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"frames": len(result.times), "wall": wall, "cpu": work, "peak": peak}))
"""


def write_clip(path: Path, frames: int, size: tuple[int, int], fps: float) -> None:
    """Squares that go to and fro over a ground that drifts."""
    import av
    import numpy as np

    height, width = size
    small = np.random.default_rng(0).integers(60, 120, (height // 8, width // 4, 3), dtype=np.uint8)
    ground = small.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index in range(frames):
            left = index // 4 % width
            frame = ground[:height, left : left + width].copy()
            for number, speed in enumerate((3, 5)):
                place = abs((index * speed) % (2 * (width - 80)) - (width - 80))
                frame[60 + 120 * number :][:60, place : place + 60] = (220, 40, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def measure(model: str, path: Path) -> dict[str, float]:
    """Seconds, MiB at the peak, and GiB of disk that were taken meanwhile."""
    free = [shutil.disk_usage(tempfile.gettempdir()).free] * 2
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            free[1] = min(free[1], shutil.disk_usage(tempfile.gettempdir()).free)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run = subprocess.run([sys.executable, "-c", RUN, model, str(path)], stdout=subprocess.PIPE, check=True)
    finally:
        done.set()
        watcher.join()
    return {**json.loads(run.stdout), "disk": (free[0] - free[1]) / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--fps", type=float, default=25)
    parser.add_argument("--frames", type=int, nargs="+", default=[1000, 20000])
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, {given.size[0]}x{given.size[1]}, {given.fps:g} frames a second")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in given.frames:
            path = Path(folder, f"{frames}.mp4")
            start = time.perf_counter()
            write_clip(path, frames, tuple(given.size), given.fps)
            print(f"made {frames} frames in {time.perf_counter() - start:.0f} s", file=sys.stderr)
            rows.append(row := measure(given.model, path))
            path.unlink()
            each = 1000 * row["wall"] / row["frames"], 1000 * row["cpu"] / row["frames"]
            print(
                f"{row['frames']:7} frames: {row['wall']:6.0f} s, {each[0]:.1f} ms a frame (CPU {each[1]:.1f}), "
                f"peak {row['peak']:.0f} MiB, temporary disk {row['disk']:.1f} GiB",
                flush=True,
            )
    first, last = rows[0], rows[-1]
    if last["frames"] > first["frames"]:
        growth = (last["peak"] - first["peak"]) * 1024 / (last["frames"] - first["frames"])
        print(f"growth of the peak: {growth:.1f} KiB a frame")


if __name__ == "__main__":
    main()
