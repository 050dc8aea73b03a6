"""A worker's line to the coordinator: what it has awake and asleep.

Invariant: nothing here, nor what it imports, loads torch or hivemind.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker.config import Home, WorkerConfig
from worker.disk import DiskQuota
from worker.evidence import Evidence
from worker.journal import Journal
from worker.retained import Retained
from worker.session import Session
from worker.watch import Watch

ELEMENTS = "elements"
"""The journal's note of how many elements the run's model has."""


@dataclass
class Contact:
    """Enough to be heard of, to answer audits and to collect receipts. Takes no part in a swarm."""

    home: Home
    config: WorkerConfig
    identity: Identity
    session: Session
    watch: Watch
    journal: Journal
    retained: Retained
    evidence: Evidence
    admission: wire.Envelope | None

    @property
    def direct(self) -> bool:
        """Whether others can connect to this machine."""
        return False

    @property
    def bad_sources(self) -> list[str]:
        """PeerIDs that served other bytes than they should have."""
        return []

    async def addresses(self) -> list[str]:
        """Multiaddrs to tell others."""
        return []

    async def enrol(self) -> None:
        """Nothing can be said of a device that is not looked at: it enrols when it wakes."""


def open_retained(home: Home, config: WorkerConfig, disk: DiskQuota | None = None) -> Retained:
    """What is kept for audits; blocking."""
    return Retained(home.updates, home.inputs, config.evidence_mib << 20, disk)
