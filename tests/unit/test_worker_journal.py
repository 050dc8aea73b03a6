"""The journal survives kill -9 at every write point."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from protocol.errors import TransientError, UsageError
from protocol.wire import records_pb2 as wire
from worker.journal import CachedState, Journal, LeaseState, contribution_key

LEASE = bytes(16)
FIRST, SECOND = wire.Envelope(payload=b"first"), wire.Envelope(payload=b"second")

# Runs a unit's writes in the order of worker.round_runner, and dies after the N-th.
UNIT = """
import os, signal, sys
from pathlib import Path
from protocol.wire import records_pb2 as wire
from worker.journal import Journal
folder, survive = Path(sys.argv[1]), int(sys.argv[2])
journal = Journal(folder / "journal.db")
update = folder / "unit.update"
steps = [
    lambda: journal.begin(bytes(16), 3, wire.Envelope(payload=b"assignment")),
    lambda: update.write_bytes(b"chunks"),
    lambda: journal.trained(bytes(16), wire.Envelope(payload=b"first"), update),
    lambda: journal.delivered("contribution/" + bytes(16).hex()),
    lambda: journal.expect_receipt(bytes(16), 3, 128, patience_s=1000),
    lambda: journal.end(bytes(16)),
]
for step in steps[:survive]:
    step()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.db")


@pytest.mark.parametrize("survived", range(7))
def test_kill_at_any_write_loses_nothing_that_was_promised(tmp_path: Path, survived: int) -> None:
    done = subprocess.run([sys.executable, "-c", UNIT, str(tmp_path), str(survived)], check=False)
    assert done.returncode == -signal.SIGKILL
    journal = Journal(tmp_path / "journal.db")
    lease = journal.lease(LEASE)
    pending = [entry.envelope.payload for entry in journal.undelivered()]
    if survived == 0:
        assert lease is None
    elif survived < 3:
        # Not trained as far as the journal knows: nothing was signed, nothing may be sent.
        assert lease is not None and lease.state == LeaseState.LEASED and pending == []
    else:
        # Signed: the bytes are there, and go out exactly until they were answered.
        assert lease is not None and lease.contribution == FIRST
        assert lease.update_path is not None and lease.update_path.read_bytes() == b"chunks"
        assert pending == ([b"first"] if survived == 3 else [])
    assert journal.awaited_receipts() == ([LEASE] if survived >= 5 else [])
    assert len(journal.open_leases()) == (0 if survived in (0, 6) else 1)
    journal.close()


def test_a_second_contribution_never_replaces_the_first(journal: Journal, tmp_path: Path) -> None:
    journal.begin(LEASE, 3, wire.Envelope(payload=b"assignment"))
    journal.trained(LEASE, FIRST, tmp_path / "a")
    journal.trained(LEASE, SECOND, tmp_path / "b")
    lease = journal.lease(LEASE)
    assert lease is not None
    assert (lease.contribution, lease.update_path) == (FIRST, tmp_path / "a")
    assert journal.post(contribution_key(LEASE), "contribution", 3, SECOND) == FIRST
    journal.close()


def test_a_known_lease_keeps_its_state_when_it_is_granted_again(
    journal: Journal, tmp_path: Path
) -> None:
    journal.begin(LEASE, 3, FIRST)
    journal.trained(LEASE, FIRST, tmp_path / "a")
    journal.begin(LEASE, 3, FIRST)
    lease = journal.lease(LEASE)
    assert lease is not None and lease.state == LeaseState.TRAINED
    journal.close()


def test_posting_again_sends_again(journal: Journal) -> None:
    journal.post("report/1/1/me", "report", 1, FIRST)
    journal.delivered("report/1/1/me")
    assert journal.undelivered() == []
    journal.post("report/1/1/me", "report", 1, FIRST)
    assert [entry.envelope for entry in journal.undelivered()] == [FIRST]
    journal.close()


def test_rounds_that_are_over_are_forgotten_with_their_files(
    journal: Journal, tmp_path: Path
) -> None:
    journal.begin(LEASE, 3, FIRST)
    journal.trained(LEASE, FIRST, tmp_path / "a")
    journal.expect_receipt(LEASE, 3, 128, patience_s=1000)
    assert journal.forget_rounds_before(3) == []
    assert journal.forget_rounds_before(4) == [tmp_path / "a"]
    assert journal.open_leases() == [] and journal.undelivered() == []
    assert journal.awaited_receipts() == [LEASE]
    journal.keep_receipt(LEASE, b"leaf", "proof")
    assert journal.awaited_receipts() == []
    assert [receipt.proof for receipt in journal.receipts()] == ["proof"]
    journal.close()


def test_an_unanswered_report_outlives_its_round(journal: Journal) -> None:
    journal.post("contribution/1", "contribution", 1, FIRST)
    journal.post("report/1/1/me", "report", 1, FIRST)
    journal.forget_rounds_before(2)
    assert [entry.key for entry in journal.undelivered()] == ["report/1/1/me"]
    journal.delivered("report/1/1/me")
    journal.post("report/2/1/me", "report", 2, FIRST)
    journal.forget_rounds_before(3)
    assert [entry.key for entry in journal.undelivered()] == ["report/2/1/me"]
    journal.close()


def test_states_newest_first_and_momentum_is_not_lost(journal: Journal) -> None:
    journal.keep_state(CachedState(b"a", 1, b"w1", b"m1"))
    journal.keep_state(CachedState(b"b", 2, b"w2", None))
    journal.keep_state(CachedState(b"a", 1, b"w1", None))
    assert [state.digest for state in journal.states()] == [b"b", b"a"]
    held = journal.state(b"a")
    assert held is not None and held.momentum_sha256 == b"m1"
    journal.close()


def test_a_journal_belongs_to_one_run_and_key(journal: Journal) -> None:
    journal.bind(b"\x01" * 32, "me")
    journal.bind(b"\x01" * 32, "me")
    with pytest.raises(UsageError, match="another run_id"):
        journal.bind(b"\x02" * 32, "me")
    with pytest.raises(UsageError, match="another worker"):
        journal.bind(b"\x01" * 32, "you")
    journal.close()


def test_a_damaged_journal_says_so(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"this is not a database, and long enough to be looked at" * 100)
    with pytest.raises(UsageError, match="damaged"):
        Journal(path)


def test_a_trained_lease_without_its_record_cannot_be_written(journal: Journal) -> None:
    journal.begin(LEASE, 3, FIRST)
    with pytest.raises(sqlite3.IntegrityError):
        journal._run("UPDATE lease SET state = 'trained'")
    journal.close()


def test_a_full_disk_undoes_a_write_and_lets_it_be_made_later(
    journal: Journal,
    full_disk: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    journal.begin(LEASE, 3, wire.Envelope(payload=b"assignment"))
    update = tmp_path / "unit.update"
    with full_disk(1):
        with pytest.raises(TransientError, match="free some disk"):
            journal.trained(LEASE, FIRST, update)
        with pytest.raises(TransientError, match="free some disk"):
            journal.put("paused", "yes")
        with pytest.raises(UsageError, match="cannot write"):
            Journal(tmp_path / "another.db")
        lease = journal.lease(LEASE)
        assert lease is not None and lease.state == LeaseState.LEASED
    assert journal.undelivered() == []
    journal.trained(LEASE, FIRST, update)
    assert [entry.envelope for entry in journal.undelivered()] == [FIRST]
    assert journal.get("paused") is None
