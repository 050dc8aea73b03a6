"""Children that end when their parent does, also when that is killed with -9.

:func:`leashed` puts this file before a command. On Linux the kernel does the rest: the process asks
for a signal at its parent's death and then becomes the command (the request survives ``execve``,
see prctl(2)). Elsewhere the command runs without it; the next start finds the old one's lock, or
its end of idle time. It is a program of its own because code that runs between fork and exec in
a process with gRPC's threads may deadlock.

A child in a group of its own does not get the Ctrl-C that a terminal sends to its parent's. To have
it ignore SIGINT would not do: p2pd takes it in hand again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_OWN_GROUP, _SAME_GROUP = "own-group", "same-group"


def leashed(
    command: Sequence[str],
    *,
    own_group: bool = False,
    end: signal.Signals = signal.SIGTERM,
) -> list[str]:
    """The command that runs ``command`` on a leash to this process.

    Start it from the main thread: the kernel takes the end of the thread that started it for the
    parent's.

    Args:
        own_group: in a process group of its own.
        end: what it gets; SIGKILL alone ends a process that is stopped.
    """
    if sys.platform != "linux" and not own_group:
        return list(command)
    group = _OWN_GROUP if own_group else _SAME_GROUP
    # Isolated and without site: it starts within a few hundredths of a second.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), group, str(int(end)), *command]


def is_leashed(pid: int) -> bool:
    """Whether the process that runs what :func:`leashed` gave has become the command, or is gone.

    Before that it may not be stopped: stopped, it would outlive us.
    """
    from pathlib import Path  # slow to load, and of no use to the program

    try:
        return __file__.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True


def _main() -> None:
    parent, group, end, command = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    if group == _OWN_GROUP:
        os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, end)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    _main()
