"""Image files of data sets: what is damaged, huge or of another format is told in a line."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dshmp.common.errors import UserError
from dshmp.data.images import read_frame, read_frames, read_index_mask, save_jpeg, save_palette_png


def png(width: int, height: int, data: bytes = b"", *chunks: bytes) -> bytes:
    """A grey PNG."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND")


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def written(kind: str) -> bytes:
    memory = BytesIO()
    Image.new("L", (9, 8)).save(memory, kind)
    return memory.getvalue()


TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 70_000_000))
BAD = {
    "bomb": png(60_000, 60_000, zlib.compress(b"")),
    "large": png(9000, 9000, zlib.compress(b"")),
    "text bomb": png(9, 8, zlib.compress(bytes(80)), TEXT),
    "another format": written("TIFF"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 8\n",
    "cut off": written("PNG")[:45],
    "empty": b"",
    "damaged": png(9, 8, b"no zlib stream"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_told(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "00000.png"
    path.write_bytes(BAD[kind])
    for read in (read_frame, read_index_mask):
        with pytest.raises(UserError, match=r"00000\.png: ") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_memory_that_runs_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image, mode: str) -> None:
        raise MemoryError

    path = tmp_path / "a.png"
    path.write_bytes(written("PNG"))
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(UserError, match=r"a\.png: cannot be read as an image \(MemoryError\)"):
        read_frame(path)


def test_a_mask_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(9, 8, b"no zlib stream"))
    with pytest.raises(UserError, match="is 9x8, its frame is 8x9; fetch it again"):
        read_index_mask(path, (9, 8))
    indices = np.arange(256, dtype=np.uint8).reshape(8, 32)
    save_palette_png(path, indices)
    np.testing.assert_array_equal(read_index_mask(path, (8, 32)), indices)


def test_frames_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for t in range(3):
        save_jpeg(tmp_path / f"{t}.jpg", np.full((8, 9, 3), 80 * t, np.uint8))
    read = []
    monkeypatch.setattr("dshmp.data.images.read_frame", lambda path: read.append(path.name) or read_frame(path))
    frames = read_frames(tmp_path, ("0", "1", "2"), [2, 0, 2])
    assert [int(frame.mean() / 80 + 0.5) for frame in frames] == [2, 0, 2]
    assert read == ["2.jpg", "0.jpg"]
    assert len(read_frames(tmp_path, ("0", "1", "2"))) == 3
