"""Runs a command that ends when its parent does: ``python -m coordinator.leash PID COMMAND...``.

A coordinator that is killed with -9 cannot stop its children. On Linux the kernel does it: this
process asks for SIGTERM at its parent's death and then becomes the command (the request survives
``execve``, see prctl(2)). Elsewhere the command runs without it, and a restarted coordinator's
new child finds the old one's lock. It is a program of its own because code that runs between
fork and exec in a process with gRPC's threads may deadlock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
