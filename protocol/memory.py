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
_SAY_JUST = (
    # oneDNN of the machine code of a kernel, and of its scratchpad. What it cannot compute at all
    # it says of a "primitive descriptor", so these words are all that is said.
    "could not create a primitive",
    "could not execute a primitive",
)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    return said in _SAY_JUST or any(words in said for words in _SAYS)
