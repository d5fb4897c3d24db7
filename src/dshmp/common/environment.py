"""What the command asks of the system for itself before torch is imported; importing the library asks for nothing."""

import ctypes
import gc
import os

SWITCH = "DSHMP_KEEP_MEMORY"  # 0: the ways of the C library and of torch
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def collect_rarely() -> None:
    """Python looks for garbage after 100,000 new objects, not 700: libraries make a million when they are loaded."""
    gc.set_threshold(100_000)


def share_cores() -> None:
    """Threads of torch that wait for another sleep. By default they spin, and where other programs want the cores, too,
    a small model is slower by a factor of ten and more. OMP_WAIT_POLICY decides where it is set."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_memory() -> None:
    """Memory that is freed stays with the process, since to ask the system for zeroed pages again and again takes long.

    By default glibc asks the system for each large block, gives it back at once, and every page of feature maps is
    zeroed anew. From here on large blocks come from the heap, up to 2 GiB at its end stay there, and torch asks for
    pages of 2 MiB, which also aligns its blocks so that a freed one fits the next. Other systems stay as they are.
    """
    if os.environ.get(SWITCH) == "0" or os.name != "posix":
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
