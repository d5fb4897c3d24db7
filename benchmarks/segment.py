"""Seconds that 10 s of 320x240 video at 25 frames a second take, decoding and drawing included.

Usage: python benchmarks/segment.py [MODEL]
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dshmp import Segmenter
from dshmp.common.options import Options
from dshmp.inference.segment import segment_to_folder
from dshmp.video.overlay import overlay_writer

HEIGHT, WIDTH, FPS, SECONDS = 240, 320, 25, 10
EXPRESSIONS = ("the one that moves to the left", "the red disc that turns back", "everything that is moving")


def write_clip(path: Path) -> None:
    """Squares that drift over noise."""
    rng = np.random.default_rng(0)
    background = rng.integers(60, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    with overlay_writer(path, HEIGHT, WIDTH, FPS) as write:
        for index in range(FPS * SECONDS):
            frame = background.copy()
            frame[100:140, index : index + 40] = (220, 40, 40)
            frame[20:60, 270 - index : 310 - index] = (220, 40, 40)
            write(frame, index / FPS)


def main() -> None:
    """One expression, then all of them, each with a fresh decoding."""
    model = sys.argv[1] if len(sys.argv) > 1 else "default"
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "clip.mp4")
        write_clip(clip)
        start = time.perf_counter()
        segmenter = Segmenter.from_pretrained(model)
        print(f"{time.perf_counter() - start:5.1f} s  loading {model}")
        for count in (1, len(EXPRESSIONS)):
            start = time.perf_counter()
            out = Path(folder, f"out{count}")
            segment_to_folder(clip, EXPRESSIONS[:count], out, Options(model=model), lambda _: segmenter)
            frames = FPS * SECONDS
            print(f"{time.perf_counter() - start:5.1f} s  {frames} frames of {WIDTH}x{HEIGHT}, expressions: {count}")


if __name__ == "__main__":
    main()
