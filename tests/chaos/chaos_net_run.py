"""A whole tiny run in a small internet: the organiser on a public host, workers anywhere."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from chaos_net import Host, Internet, open_internet

from protocol.envelope import open_envelope, parse_envelope
from protocol.wire import records_pb2 as wire

PORT = 7443


def _worker_rig() -> ModuleType:
    path = Path(__file__).parents[1] / "swarm" / "worker_rig.py"
    if "worker_rig" not in sys.modules:
        spec = importlib.util.spec_from_file_location("worker_rig", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["worker_rig"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["worker_rig"]


class NetRun:
    """One run; ``organiser`` has the coordinator and the anchor."""

    def __init__(self, folder: Path, internet: Internet) -> None:
        self._rig: Any = _worker_rig()
        self.folder, self.run, self.internet = folder, folder / "run", internet
        self.organiser = internet.host("organiser")
        self.coordinator: Any = None
        self.link = ""
        self._hosts: dict[str, Host] = {}
        self.workers: dict[str, Any] = {}

    def init(self, **settings: Any) -> None:
        given = {
            # Long: a round closes when the workers, which load for seconds, have committed.
            **self._rig.SETTINGS,
            **{"duration_s": 200.0, "grace_s": 30.0, "port": PORT},
            **settings,
        }
        toml = self.folder / "run.toml"
        text = self._rig.RUN_TOML.replace("127.0.0.1", self.organiser.address)
        toml.write_text(text.format(**given))
        self._rig.write_dataset(self.folder / "data")
        arguments = ("--config", str(toml), "--data", str(self.folder / "data"))
        self._rig.barnraise("coordinator", "init", *arguments, "--run-dir", str(self.run))
        self.link = (self.run / "join-link.txt").read_text().strip()

    def serve(self) -> None:
        arguments = ("coordinator", "serve", "--run-dir", str(self.run))
        self.coordinator = self._start("coordinator", self.organiser, *arguments)
        self.coordinator.wait_for("Serving")

    def _start(self, name: str, host: Host, *arguments: str) -> Any:
        log = self.folder / f"{name}.log"
        return self._rig.Process(log, *arguments, inside=host.command())

    def home(self, name: str) -> Path:
        return self.folder / name

    def join(self, name: str, host: Host, *options: str) -> None:
        self._hosts[name] = host
        given = ("--name", name, "--threads", "1", "--yes", "--dedicated")
        self.command(name, "join", self.link, *given, *options)

    def work(self, name: str) -> Any:
        home = ("--home", str(self.home(name)), "--json-logs", "--until-finished")
        process = self._start(name, self._hosts[name], "worker", "run", *home)
        self.workers[name] = process
        return process

    def command(self, name: str, *arguments: str, check: bool = True) -> Any:
        """``barnraise worker ...`` on the host of a worker, in its folder."""
        inside, home = self._hosts[name].command(), ("--home", str(self.home(name)))
        return self._rig.barnraise("worker", *arguments, *home, check=check, inside=inside)

    def finish(self) -> None:
        """Wait until every worker has done its part of the run."""
        for name, worker in self.workers.items():
            assert worker.wait(240) == 0, f"{name}:\n{worker.text()[-6000:]}"

    def close(self) -> None:
        for process in (*self.workers.values(), self.coordinator):
            if process is not None:
                process.end()

    # ---- what came of it

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        path = f"file:{self.run}/coordinator.db?mode=ro"
        with closing(sqlite3.connect(path, uri=True)) as database:
            return list(database.execute(sql))

    def known(self, name: str) -> tuple[bool, list[str]]:
        """Client mode and addresses of a worker, as the coordinator tells them to others."""
        ((client_mode, addresses),) = self.rows(
            f"SELECT client_mode, multiaddrs FROM workers WHERE display_name = '{name}'"
        )
        return bool(client_mode), json.loads(addresses)

    def reducers(self) -> dict[int, set[str]]:
        """Display names of each round's reducers, in its last attempt."""
        names = dict(self.rows("SELECT worker, display_name FROM workers"))
        found: dict[int, set[str]] = {}
        for round_, data in self.rows(
            "SELECT round, envelope FROM rosters ORDER BY round, attempt"
        ):
            roster = open_envelope(parse_envelope(data), wire.Roster).record
            found[round_] = {names[item.reducer] for item in roster.reducers}
        return found

    def check(self, *, members: int, rounds: int) -> None:
        """Every round settled with all members merged, and one state everywhere."""
        assert (
            self.rows("SELECT phase, members FROM rounds WHERE phase != 'OPEN'")
            == [("SETTLED", members)] * rounds
        )
        settled = events(self.coordinator.text(), "round_settled")
        states = [event["state"] for event in settled]
        assert len(states) == rounds
        for name, worker in self.workers.items():
            steps = [event["state"] for event in events(worker.text(), "outer step made")]
            assert steps == states, name


def events(text: str, name: str) -> list[dict[str, Any]]:
    """The log lines of one event."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == name]


def event(name: str, **fields: str) -> str:
    """A pattern for a log line."""
    parts = [f'"{key}": "{value}' for key, value in fields.items()]
    return "".join(f"(?=.*{part})" for part in [*parts, f'"event": "{name}"']) + ".*"


@contextmanager
def open_run(folder: Path) -> Iterator[NetRun]:
    """A run with nothing started yet."""
    with open_internet() as internet:
        run = NetRun(folder, internet)
        try:
            yield run
        finally:
            run.close()
