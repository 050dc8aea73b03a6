"""Give the memory of large arrays back to the system when they are freed.

glibc keeps freed blocks of up to 32 MiB, in an arena for each thread: what a reduce took would stay
with the daemon for good, and what a batch took with a trainer that has too little.
"""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_LARGE_BYTES = 1 << 20
_ARENAS = 2


def give_back_large_blocks() -> None:
    """For this process, those that are free and those to come; nothing with another C library."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_M_ARENA_MAX, _ARENAS)
        library.malloc_trim(ctypes.c_size_t(0))
