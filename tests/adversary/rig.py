"""The processes of one scenario, and the facts that it waits for.

Invariant: the suite waits for facts in the coordinator's database, or for lines in a process's
log, and never for a time to pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from facts import Facts, Observer
from faults import Fault
from processes import Process, Timeout, call, command

from protocol.identity import Identity
from protocol.link import JoinLink
from worker.config import WorkerConfig

PEERS = ("ada", "bob", "cyd")
"""Honest: three donors, of whom ada can be reached and reduces."""

WHOLE_BATCHES = 1024  # no run has larger ones

_POLL_S = 0.1


class Arena:
    """The processes of one scenario."""

    def __init__(self, folder: Path, link: str) -> None:
        self.folder, self.link = folder, link
        self.run = folder / "run"
        self.processes: dict[str, Process] = {}
        self.horizon = 0  # settled rounds after which losses are compared
        self.observer = Observer(self.run / "coordinator.db")

    # ---- processes

    def serve(self, *, auditors: int = 1) -> None:
        """Start the coordinator with its anchor, and auditors of ours."""
        serve = ("coordinator", "serve", "--run-dir", str(self.run))
        process = self._start("coordinator", command(*serve))
        self.until_log(process, "Serving")
        for number in range(auditors):
            self.audit(f"auditor{number}")

    def audit(self, name: str, *fault: str) -> Process:
        """Start an auditor, honest unless faulty options are given."""
        audit = ("coordinator", "audit", "--run-dir", str(self.run))
        key = ("--key", str(self.folder / f"{name}.key"))
        options = ("--poll-s", "0.2", "--no-calibrate", "--json-logs")
        return self._start(name, command(*audit, *key, *options, faulty=fault))

    def work(self, name: str, *fault: str, reachable: bool = False) -> Process:
        """Start a worker, honest unless faulty options are given."""
        home = self.folder / name
        if not home.exists():
            make_home(home, self.link, name, reachable=reachable)
        run = ("worker", "run", "--home", str(home), "--json-logs")
        return self._start(name, command(*run, faulty=fault))

    def adversary(
        self, fault: Fault, name: str = "eve", *, reachable: bool = False, **options: object
    ) -> Process:
        """Start a worker with a fault; ``options`` are those of ``faulty_worker.py``."""
        given = [f"--{key}={value}" for key, value in options.items()]
        return self.work(name, "--fault", fault, *given, reachable=reachable)

    def peers(self) -> None:
        for name in PEERS:
            self.work(name)

    def hide(self, name: str) -> None:
        """Before its start: a peer that nobody can reach, and so no reducer."""
        path = self.folder / name / "worker.toml"
        WorkerConfig.load(path).with_options(client_mode=True).save(path)

    @cached_property
    def honest(self) -> tuple[str, ...]:
        """PeerIDs of the honest workers."""
        return tuple(self.peer_id(name) for name in PEERS)

    def peer_id(self, name: str) -> str:
        return Identity.load(self.folder / name / "worker.key").peer_id

    def _start(self, name: str, words: list[str]) -> Process:
        process = Process(self.folder / f"{name}.log", words)
        self.processes[name] = process
        return process

    # ---- facts

    def look(self) -> Facts:
        return self.observer.look()

    def until(self, holds: Callable[[Facts], object], timeout_s: float = 200.0) -> Facts:
        """Wait for a fact in the database.

        Raises:
            Timeout: it did not come true; or the coordinator has ended.
        """
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and self.processes["coordinator"].running:
            facts = self.look()
            if holds(facts):
                return facts
            time.sleep(_POLL_S)
        raise Timeout(f"did not come true within {timeout_s:.0f} s\n{self.tails()}")

    def until_log(self, process: Process, text: str, timeout_s: float = 200.0) -> None:
        """Wait for a line in a process's log."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            if text in process.text():
                return
            if not process.running:
                break
            time.sleep(_POLL_S)
        raise Timeout(f"{text!r} is not in the log of {process.name}\n{self.tails()}")

    def tails(self, lines: int = 12) -> str:
        parts = []
        for name, process in self.processes.items():
            last = process.text().splitlines()[-lines:]
            parts.append("\n".join([f"==== {name}", *(line[:300] for line in last)]))
        return "\n".join(parts)

    # ---- the end

    def verify_ledger(self) -> None:
        """The public record, replayed by the real command.

        Raises:
            AssertionError: it does not verify.
        """
        root = JoinLink.parse(self.link).root
        url = f"sqlite:///{self.run / 'coordinator.db'}"
        call("ledger", "verify", "--db", url, "--root", root)

    def pause(self) -> None:
        """No new work, as the organiser can ask for; audits go on."""
        call("coordinator", "pause", "--run-dir", str(self.run))

    def close(self) -> None:
        for process in reversed(self.processes.values()):
            process.end()
        self.observer.close()


def make_home(home: Path, link: str, name: str, *, reachable: bool) -> None:
    """What ``worker join`` leaves: a key and a configuration."""
    home.mkdir(parents=True)
    Identity.generate().save(home / "worker.key")
    listen = ("/ip4/127.0.0.1/tcp/0",)
    config = WorkerConfig(
        link=link,
        name=name,
        device="cpu",
        client_mode=not reachable,
        listen=listen,
        # Whole batches, as the auditors compute them: without bounds, only equal bits pass.
        micro_batch_sequences=WHOLE_BATCHES,
    )
    config.save(home / "worker.toml")
