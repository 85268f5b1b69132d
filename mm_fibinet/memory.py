"""Memory: keep what is freed for the next batch, let go of what a run held, and how much a process held at most.

A batch's tensors are large (the challenge's triple of 4096 rows is 140 MB), and glibc gives every block of that size
back when it is freed, so that each new one is paid for in page faults: on CPU these cost several times what filling
the memory does. Telling malloc once to keep what it has makes a fresh tensor as cheap as a used one. The price is
that a process keeps its peak memory until it ends; it is the whole process's, so scripts ask for it, the library never
does.
"""

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

import pyarrow as pa

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
LARGEST_INT = 2**31 - 1
SWITCH = "MM_FIBINET_KEEP_FREED_MEMORY"


def keep_freed_memory() -> bool:
    """Set malloc up once for this process; elsewhere than on glibc, or with the variable SWITCH = 0, do nothing.

    Returns:
        whether freed memory is now kept.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT) and mallopt(M_TOP_PAD, 64 << 20))


def give_back_read_buffers() -> None:
    """Hand what reading parquet has left behind, some 0.6 GB of 3.6 million rows, to the system.

    Arrow keeps its buffers for the next file. They are free only once the last slice and the reader are gone, so call
    this after the function that read has returned.
    """
    pa.default_memory_pool().release_unused()


def forget_run() -> None:
    """Free what a run of this process held, on the GPU too, and count the peaks of the next one from here.

    Where the system is not Linux, or does not let its peak be reset, `peak_memory` stays that of all runs so far.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes what is held now


def peak_memory() -> int:
    """Bytes of main memory that this process has held at most.

    Linux's VmHWM. getrusage's peak, for other systems, also counts the parent's up to the start of this program.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
