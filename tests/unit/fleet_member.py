"""A member of a fleet that does what a file in its folder says, and writes down what it is told.

``python fleet_member.py --home FOLDER ...``, or with ``--fleet FOLDER`` the fleet itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from protocol.errors import UsageError
from worker.config import Home, WorkerConfig
from worker.control import control_server
from worker.fleet import Fleet
from worker.status import Board


class Member:
    def __init__(self, home: Home) -> None:
        self.home, self.board = home, Board("member", "run")
        self.end = asyncio.Event()

    def say(self, what: str) -> None:
        with (self.home.path / "said").open("a") as file:
            file.write(what + "\n")

    def on_signal(self, number: signal.Signals) -> None:
        self.say(number.name)
        if number == signal.SIGTERM or not (self.home.path / "stubborn").exists():
            self.end.set()

    def handle(self, command: str, _arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        self.board.connected = True  # somebody asked
        if command != "status":
            self.say(command)
            if (self.home.path / "refuses").exists():
                raise UsageError("no")
        if command in ("pause", "resume"):
            self.board.paused = command == "pause"
        return {"status": self.board.snapshot()}

    async def live(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.on_signal, number)
        self.say("up")
        while (self.home.path / "late").exists():  # noqa: ASYNC110 - a file of the test's
            await asyncio.sleep(0.02)
        async with control_server(self.home, self.handle):
            await self.end.wait()


def main() -> None:
    if "--fleet" in sys.argv:
        place = Home(Path(sys.argv[-1]))
        asyncio.run(
            Fleet(place, lambda: WorkerConfig.load(place.config), (), ("-P", __file__)).run()
        )
        return
    home = Home(Path(sys.argv[sys.argv.index("--home") + 1]))
    (home.path / "environment").write_text(json.dumps(dict(os.environ)))
    plan = home.path / "plan"
    ends = json.loads(plan.read_text()) if plan.exists() else []
    member = Member(home)
    if ends:
        plan.write_text(json.dumps(ends[1:]))
        member.say("up")
        if ends[0] < 0:
            os.kill(os.getpid(), -ends[0])
        sys.exit(ends[0])
    asyncio.run(member.live())


if __name__ == "__main__":
    main()
