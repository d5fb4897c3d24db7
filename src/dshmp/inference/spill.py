"""Tensors of a video's chunks in a temporary file, so that memory does not grow with the video."""

import shutil
import tempfile
from collections.abc import Sequence

from safetensors.torch import load, save
from torch import Tensor

SPILL_LIMIT = 4 * 2**30  # bytes of one file; half of the disk's free room where that is less


class Spill:
    """Up to `SPILL_LIMIT` bytes or a full disk. Beyond that nothing is kept or, with `lossless`, the rest in memory.
    The file goes with the object."""

    def __init__(self, lossless: bool = False) -> None:
        self.rest: list[list[Tensor]] | None = [] if lossless else None
        self.file = tempfile.TemporaryFile(prefix="dshmp-", buffering=0)  # noqa: SIM115
        self.limit = min(SPILL_LIMIT, shutil.disk_usage(tempfile.gettempdir()).free // 2)
        self.ends = [0]
        self.complete = True

    def write(self, tensors: Sequence[Tensor]) -> None:
        """Add a chunk."""
        self.complete = self.complete and self.ends[-1] + sum(tensor.nbytes for tensor in tensors) <= self.limit
        if self.complete:
            data = save({str(index): tensor.cpu().contiguous() for index, tensor in enumerate(tensors)})
            try:
                self.complete = self.file.write(data) == len(data)
            except OSError:  # the disk is full
                self.complete = False
        if self.complete:
            self.ends.append(self.ends[-1] + len(data))
        elif self.rest is not None:
            self.rest.append([tensor.cpu() for tensor in tensors])

    def read(self, chunk: int) -> list[Tensor]:
        """Exactly what was written for a chunk, on the CPU; nothing where it was not kept."""
        if (beyond := chunk + 1 - len(self.ends)) >= 0:
            return self.rest[beyond] if self.rest is not None else []
        self.file.seek(self.ends[chunk])
        tensors = load(self.file.read(self.ends[chunk + 1] - self.ends[chunk]))
        return [tensors[str(index)] for index in range(len(tensors))]

    def close(self) -> None:
        self.file.close()
