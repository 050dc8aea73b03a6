"""Give the memory of large arrays back to the system when they are freed.

glibc keeps freed blocks of up to 32 MiB, in an arena for each thread: what a reduce took would stay
with the daemon for good.
"""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_LARGE_BYTES = 1 << 20
_ARENAS = 2


def give_back_large_blocks() -> None:
    """For this process, from now on; nothing where the C library is another."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)
