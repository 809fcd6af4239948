"""The C library's allocator, told to keep the memory that a step frees: the next step asks for the same again."""

from __future__ import annotations

import ctypes
import os
import platform

# Numbers of glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEPT = 1 << 30  # bytes at the top of the heap that stay with the process; it needed them a moment ago
_LARGEST = 64 << 20  # bytes of an allocation that is kept; larger ones, tables among them, go back when freed
_SET_BY_USER = ("MALLOC_", "GLIBC_TUNABLES", "ARROW_DEFAULT_MEMORY_POOL")


def keep_freed_memory() -> bool:
    """Have freed memory reused rather than given back to the kernel; return whether that could be set.

    By default glibc unmaps a step's megabytes when they are freed, and the next step faults on each of their pages:
    thousands of faults, about a tenth of a step on a CPU. All threads share one arena, and Arrow uses it too, so that
    what the reader has freed serves the model.

    Nothing is set where the environment sets an allocator, or with another C library.
    """
    if any(name.startswith(_SET_BY_USER) for name in os.environ) or platform.libc_ver()[0] != "glibc":
        return False
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = ctypes.CDLL(None).mallopt
    options = ((_TRIM_THRESHOLD, _KEPT), (_MMAP_THRESHOLD, _LARGEST), (_ARENA_MAX, 1))
    taken = [mallopt(option, value) for option, value in options]  # all of them, whatever one says
    return all(taken)
