"""Child processes of the demonstration: each in its own session, logged, and always reaped.

Shutdown order: SIGTERM to every child still running, newest first (workers before the
coordinator, so that they can say goodbye); wait up to ``GRACE_S``; SIGKILL what is left of
their sessions; wait again. Nothing outlives :meth:`Children.close`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from protocol.errors import ProtocolError
from protocol.leash import leashed

GRACE_S = 20.0
_BARNRAISE = (sys.executable, "-m", "barnraise")


class ChildError(ProtocolError):
    """A command of the demonstration ended badly; the message ends with its last lines."""

    reason = "CHILD_FAILED"


def child_environment(temporary: Path) -> dict[str, str]:
    """One torch thread per process: two spinning threads beside a busy process cost 5-20 times.

    Args:
        temporary: the children's own temporary folder, so that what they leave can be seen.
    """
    return os.environ | {
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


@dataclass
class Child:
    """One running ``barnraise`` command."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def last_lines(self, count: int = 12) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-count:])

    def kill_hard(self) -> None:
        """``kill -9`` of this one process, as an out-of-memory killer would; then reap it."""
        self.process.kill()
        self.process.wait()

    def family(self) -> list[psutil.Process]:
        """The process and its descendants that are alive now."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@dataclass
class Children:
    """Starts children and guarantees their end."""

    folder: Path
    children: list[Child] = field(default_factory=list)
    # Not in ``folder``: a socket's path has at most 107 bytes.
    temporary: Path = field(
        default_factory=lambda: Path(tempfile.mkdtemp(prefix="barnraise-demo-"))
    )
    _seen: dict[int, psutil.Process] = field(default_factory=dict)

    def __enter__(self) -> Self:
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if kind is not None:  # else the caller looks at what is left first
            shutil.rmtree(self.temporary, ignore_errors=True)

    def start(self, name: str, *arguments: str) -> Child:
        """Run ``barnraise ARGUMENTS`` in the background, its output appended to its log."""
        log_path = self.folder / "logs" / f"{name}.log"
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                leashed([*_BARNRAISE, *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(self.temporary),
                start_new_session=True,
            )
        child = Child(name, process, log_path)
        self.children.append(child)
        return child

    def call(self, name: str, *arguments: str, timeout_s: float = 300) -> str:
        """Run ``barnraise ARGUMENTS`` to its end.

        Returns:
            Its standard output.

        Raises:
            ChildError: it failed, or took longer than ``timeout_s``.
        """
        try:
            result = subprocess.run(
                [*_BARNRAISE, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=child_environment(self.temporary),
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ChildError(f"{name} took longer than {timeout_s:.0f} s") from error
        (self.folder / "logs" / f"{name}.log").write_text(result.stdout + result.stderr)
        if result.returncode != 0:
            tail = "\n".join((result.stdout + result.stderr).splitlines()[-12:])
            raise ChildError(f"{name} ended with exit code {result.returncode}:\n{tail}")
        return result.stdout

    def remember_families(self) -> None:
        """Note every descendant, so that :meth:`orphans` can look for them after the end."""
        for child in self.children:
            for process in child.family():
                self._seen[process.pid] = process

    def orphans(self) -> list[str]:
        """Descendants ever noted that still run."""
        alive = []
        for process in self._seen.values():
            try:
                # is_running compares the start time: a reused pid is not ours.
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(f"{process.pid} {process.name()}")
            except psutil.NoSuchProcess:
                continue
        return alive

    def leftovers(self) -> list[str]:
        """Files and sockets in the children's temporary folder; removes it."""
        left = [str(path) for path in sorted(self.temporary.rglob("*"))]
        shutil.rmtree(self.temporary)
        return left

    def stop(self, child: Child, grace_s: float = GRACE_S) -> int:
        """End one child politely, then not.

        Returns:
            Its exit code, negative for the signal that ended it.
        """
        if child.running:
            child.process.terminate()
            try:
                child.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._kill_session(child)
        return child.process.wait()

    def close(self) -> None:
        """Stop everything, newest first; see the module's shutdown order."""
        for child in reversed(self.children):
            self.stop(child)
        for child in self.children:
            self._kill_session(child)

    @staticmethod
    def _kill_session(child: Child) -> None:
        try:
            os.killpg(child.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
