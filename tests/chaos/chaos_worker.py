"""A whole run on loopback in which a worker can be made to fail, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
from chaos_peers import load

from protocol.identity import Identity
from protocol.leash import leashed

worker_rig: Any = load("worker_rig")

MARK = "BARNRAISE_CHAOS_HOME"
"""In the environment of a worker and of all that it starts: the folder that it belongs to."""

FIRED = '"event": "fault_fired"'
_PATIENCE_S = 60.0


class Peer(worker_rig.Process):  # type: ignore[misc]
    """A worker or an anchor, perhaps with faults, in a temporary folder of its own."""

    def __init__(
        self,
        home: Path,
        log: Path,
        faults: Sequence[str],
        *arguments: str,
        readings: Path | None = None,
    ) -> None:
        """
        Args:
            readings: what its sensors read is in that file; see :mod:`chaos_governed`.
        """
        self.home, self.log = home, log
        # Short: it holds UNIX sockets.
        self.temporary = Path(tempfile.gettempdir()) / f"chaos-{home.name}-{os.getpid()}"
        self.temporary.mkdir(exist_ok=True)
        program = [sys.executable, "-m", "barnraise", *arguments]
        if faults:
            chaos = str(Path(__file__).with_name("chaos_process.py"))
            options = [option for fault in faults for option in ("--fault", fault)]
            points = ("--points", "chaos_points_worker")
            program = [sys.executable, chaos, *points, *options, "--", *arguments]
        if readings is not None:
            assert not faults, "one thing at a time"
            governed = str(Path(__file__).with_name("chaos_governed.py"))
            program = [sys.executable, governed, str(readings), *arguments]
        environment = {MARK: str(home), "TMPDIR": str(self.temporary)}
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                leashed(program),
                env={**worker_rig.ENVIRONMENT, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def tree(self) -> list[psutil.Process]:
        """The process and all that it has started, whosever child that is by now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.home):
                    found.append(process)
            except psutil.Error:  # it ended just now, or is not ours
                continue
        return found

    def signal(self, *numbers: int) -> None:
        for number in numbers:
            self.popen.send_signal(number)

    def kill(self) -> None:
        """``kill -9``; what it had started must end by itself."""
        children = [process for process in self.tree() if process.pid != self.popen.pid]
        self.popen.kill()
        self.popen.wait()
        assert psutil.wait_procs(children, timeout=_PATIENCE_S)[1] == []

    def daemon(self) -> psutil.Process:
        (found,) = [process for process in self.tree() if process.name() == "p2pd"]
        return found

    def status(self) -> dict[str, Any]:
        """``worker status --json``, by way of its socket."""
        from worker.config import Home
        from worker.control import ask

        status: dict[str, Any] = ask(Home(self.home), "status")["status"]
        return status

    def wait_for_status(self, **wanted: Any) -> dict[str, Any]:
        deadline_s = time.monotonic() + _PATIENCE_S
        status: dict[str, Any] = {}
        while time.monotonic() < deadline_s:
            status = self.status()
            if all(status[name] == value for name, value in wanted.items()):
                return status
            time.sleep(0.05)
        raise AssertionError(f"{wanted} did not come; the last was {status}")

    def leftovers(self) -> list[str]:
        """What must not be there once it has ended."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while (alive := self.tree()) and time.monotonic() < deadline_s:
            time.sleep(0.05)  # a killed trainer is init's to reap
        found = [f"process {process}" for process in alive]
        found += [str(path) for path in self.temporary.rglob("*")]
        found += [str(path) for path in self.home.rglob("*") if _temporary(path)]
        return found

    def end(self) -> None:
        super().end()
        for process in self.tree():
            process.kill()


def _temporary(path: Path) -> bool:
    # A download in the scratch folder is there to be resumed; a part elsewhere is not.
    half = (path.parent.name == "scratch") != (path.suffix == ".part")
    return path.is_socket() or half or path.suffix in (".new", ".tmp", ".encoding")


class Rig(worker_rig.Rig):  # type: ignore[misc]
    """The run; the coordinator's own anchor only where asked for."""

    def serve(self, *, anchor: bool = True) -> Any:
        options = () if anchor else ("--no-anchor",)
        return self.start(
            "coordinator", "coordinator", "serve", "--run-dir", str(self.run), *options
        )

    def work(
        self, name: str, *options: str, faults: Sequence[str] = (), readings: Path | None = None
    ) -> Peer:
        arguments = ("worker", "run", "--home", str(self.home(name)), "--json-logs", *options)
        return self._peer(name, faults, arguments, readings)

    def anchor(self, name: str, *, faults: Sequence[str] = ()) -> Peer:
        self.home(name).mkdir(exist_ok=True)
        place = ("--home", str(self.home(name)), "--identity", str(self.key(name)))
        listen = ("--listen", "/ip4/127.0.0.1/tcp/0", "--json-logs")
        return self._peer(name, faults, ("worker", "anchor", "--link", self.link, *place, *listen))

    def _peer(
        self,
        name: str,
        faults: Sequence[str],
        arguments: Sequence[str],
        readings: Path | None = None,
    ) -> Peer:
        log = self.folder / f"{name}.log"
        peer = Peer(self.home(name), log, faults, *arguments, readings=readings)
        self.processes.append(peer)
        return peer

    def key(self, name: str) -> Path:
        return Path(self.folder / f"{name}.key")

    def anchor_keys(self, *names: str) -> list[str]:
        """Make keys for anchors of our own; their PeerIDs, for the run's configuration."""
        found = []
        for name in names:
            identity = Identity.generate()
            identity.save(self.key(name))
            found.append(identity.peer_id)
        return found

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        name = f"file:{self.run}/coordinator.db?mode=ro"
        with closing(sqlite3.connect(name, uri=True)) as database:
            return list(database.execute(sql))

    def settled(self) -> int:
        ((count,),) = self.rows("SELECT count(*) FROM rounds WHERE phase = 'SETTLED'")
        return int(count)

    def wait_settled(self, count: int) -> None:
        """Until so many rounds are settled in all."""
        deadline_s = time.monotonic() + 2 * _PATIENCE_S
        while self.settled() < count:
            assert time.monotonic() < deadline_s, f"{self.settled()} of {count} rounds settled"
            time.sleep(0.1)

    def close(self) -> None:
        super().close()
        for process in self.processes:
            if isinstance(process, Peer):
                subprocess.run(["rm", "-rf", str(process.temporary)], check=True)


def fault(point: str, do: str, **options: Any) -> str:
    return json.dumps({"point": point, "do": do, **options})


def events(text: str, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == name]


@contextmanager
def open_rig(folder: Path) -> Iterator[Rig]:
    rig = Rig(folder)
    try:
        yield rig
    finally:
        rig.close()


def stand_still(peer: Peer) -> list[psutil.Process]:
    """Stop a worker and all that belongs to it, as a machine does that is suspended."""
    tree = peer.tree()
    for process in tree:
        process.send_signal(signal.SIGSTOP)
    return tree


def check_record(rig: Rig) -> None:
    """The record verifies, no sequence was merged twice, and nobody signed two records for one
    assignment."""
    database = f"sqlite:///{rig.run}/coordinator.db"
    root = rig.link.rsplit("root=", 1)[1]
    worker_rig.barnraise("ledger", "verify", "--db", database, "--root", root)
    merged = rig.rows(
        "SELECT a.epoch, a.start_batch, c.steps FROM assignments a "
        "JOIN contributions c USING (assignment_id) WHERE a.status = 'merged'"
    )
    batches = [(epoch, start + i) for epoch, start, steps in merged for i in range(steps)]
    assert len(batches) == len(set(batches))
    ((consumed,),) = rig.rows("SELECT sum(stop - start) FROM intervals WHERE state = 'consumed'")
    assert consumed == len(batches)
    server = (rig.folder / "coordinator.log").read_text()
    assert not events(server, "equivocation")


def merged_units(rig: Rig, name: str) -> set[str]:
    """Assignments of a worker that were merged, in hex."""
    worker = Identity.load(rig.home(name) / "worker.key").peer_id
    rows = rig.rows("SELECT hex(assignment_id), worker FROM assignments WHERE status = 'merged'")
    return {unit.lower() for unit, owner in rows if owner == worker}


def wait_for_receipts(rig: Rig, name: str) -> set[str]:
    """Until a worker holds a receipt for each unit that was merged up to now; those units."""
    wanted, deadline_s = merged_units(rig, name), time.monotonic() + _PATIENCE_S
    while True:
        file = f"file:{rig.home(name)}/journal.db?mode=ro"
        with closing(sqlite3.connect(file, uri=True)) as journal:
            rows = journal.execute("SELECT hex(assignment_id) FROM receipt WHERE leaf IS NOT NULL")
            missing = wanted - {row[0].lower() for row in rows}
        if not missing:
            return wanted
        assert time.monotonic() < deadline_s, f"no receipts for {missing}"
        time.sleep(0.1)


def check_receipts(rig: Rig, name: str, units: set[str]) -> None:
    """A worker's receipts for these units verify."""
    done = worker_rig.barnraise("worker", "receipts", "--home", str(rig.home(name)), "--json")
    held = {row["assignment_id"]: row["state"] for row in json.loads(done.stdout)}
    assert units
    assert {unit: held.get(unit) for unit in units} == dict.fromkeys(units, "verified")
