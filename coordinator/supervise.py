"""Child processes of the server: started, restarted with backoff, and always reaped.

A child that ends, or cannot be started, never ends the server.

Guarantees of :meth:`Child.run`, also when it is cancelled:

1. the child gets SIGTERM and ``STOP_GRACE_S`` to end; then its whole session gets SIGKILL;
2. it is waited for, so no zombie stays;
3. should the server itself be killed, the kernel ends the child (:mod:`protocol.leash`).

Children have a session of their own: Ctrl-C at the terminal reaches the server only, which
then stops them in its order.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from protocol.leash import leashed

STOP_GRACE_S = 10.0
_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 60.0
_HEALTHY_AFTER_S = 60.0
"""A child that lived this long failed for a new reason: the backoff starts again."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Child:
    """A ``barnraise`` command that has to run as long as the server does."""

    name: str
    arguments: Sequence[str]
    log_path: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        """Keep the child running until cancelled."""
        delay_s = _FIRST_DELAY_S
        while True:
            started_s = time.monotonic()
            code = await self._try_once()
            if time.monotonic() - started_s > _HEALTHY_AFTER_S:
                delay_s = _FIRST_DELAY_S
            log = str(self.log_path)
            _log.warning("child_ended", child=self.name, code=code, again_in_s=delay_s, log=log)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def _try_once(self) -> int | None:
        """One life of the child; None when it could not be started (no space, no memory)."""
        try:
            return await self._run_once()
        except OSError as error:
            _log.warning("child_not_started", child=self.name, problem=str(error))
            return None

    async def _run_once(self) -> int:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *leashed((sys.executable, "-m", "barnraise", *self.arguments)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        _log.info("child_started", child=self.name, pid=process.pid)
        try:
            return await process.wait()
        finally:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Stop a child that may still run; returns when it and its session are gone."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await process.wait()
        except TimeoutError:
            _log.warning("child_killed", pid=process.pid)
    # What it left in its session goes too, also after a crash.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
