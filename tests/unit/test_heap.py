"""What a daemon's large arrays took is the system's again when they are freed."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: the setting is for good. The blocks are such as glibc would keep.
_PROGRAM = """
import ctypes, sys
import psutil
from worker.heap import give_back_large_blocks

if sys.argv[1] == "give":
    give_back_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
BLOCK = 4 << 20
libc.free(libc.malloc(16 << 20))  # from here on glibc takes blocks of that size from its heap
resident = psutil.Process().memory_info
before = resident().rss
blocks = [libc.malloc(BLOCK) for _ in range(12)]
small = libc.malloc(300 << 10)  # lies above them, and stays
for block in blocks:
    ctypes.memset(block, 1, BLOCK)
taken = resident().rss - before
for block in blocks:
    libc.free(block)
print(taken >> 20, (resident().rss - before) >> 20)
"""


def _mib(argument: str) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, argument], capture_output=True, text=True, check=True
    )
    taken, kept = done.stdout.split()
    return int(taken), int(kept)


def test_large_blocks_are_given_back() -> None:
    taken, kept = _mib("give")
    assert taken >= 40 and kept <= 4
    if sys.platform == "linux":
        assert _mib("keep")[1] >= 40  # else this proves nothing
