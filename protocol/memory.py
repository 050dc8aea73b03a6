"""Telling an allocation that failed from other errors, on every device."""

from __future__ import annotations

import errno

_SAYS = (
    "can't allocate memory",  # torch, CPU, Linux
    "not enough memory",  # torch, CPU, Windows
    "out of memory",  # torch, CUDA and MPS
    "could not create a memory object",  # oneDNN
    "std::bad_alloc",
)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS)
