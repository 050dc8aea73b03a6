"""An auditor, in this process and in one of its own, on units of real training."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.audit import jobs, workplace
from coordinator.audit.auditor import Auditor, Settings
from coordinator.audit.schema import DONE, QUEUED, RUNNING, AuditorRow, ToleranceRow
from coordinator.audit.workplace import Workplace, auditor_key
from protocol.errors import BadDigest, UsageError
from protocol.identity import Identity
from protocol.projection import project_update
from protocol.training import Execution

ADA, BOB = (Identity.from_seed(bytes([n]) * 32) for n in (201, 202))
COMMAND = (sys.executable, "-m", "barnraise", "coordinator", "audit", "--device", "cpu")


def settings(**changes: Any) -> Settings:
    usual = {"execution": Execution(), "poll_s": 0.05, "once": True, "calibrate": False}
    return Settings(**(usual | changes))


@pytest.fixture
def work(audit_queue: Any) -> Iterator[Callable[..., int]]:
    """``work(ADA, once=True)``: an auditor works in this process."""
    place = Workplace.open(audit_queue.folder)

    def run(who: Identity = ADA, stop: threading.Event | None = None, **changes: Any) -> int:
        return Auditor(place, who, settings(**changes), stop or threading.Event()).run()

    yield run
    place.database.close()


def test_an_honest_unit_replays_to_the_same_bytes(
    audit_queue: Any, work: Callable[..., int]
) -> None:
    ids = [audit_queue.add(steps=steps) for steps in (1, 3)]
    assert work() == 2
    codec = audit_queue.manifest.update.codec
    for job_id, steps in zip(ids, (1, 3), strict=True):
        result, honest = audit_queue.result(job_id), audit_queue.honest(job_id)
        assert (result.failed, result.steps, result.execution) == ("", steps, "cpu")
        assert result.root == honest.root
        assert result.update_bytes == sum(map(len, honest.chunks))
        assert result.projections == project_update(
            honest.chunks, codec, audit_queue.layout, bytes(32)
        )
        replays = Workplace.open(audit_queue.folder).replays
        found = replays.read(job_id, audit_queue.layout, codec, [1], root=result.root)
        assert found == {1: honest.chunks[1]}


def test_projections_that_no_record_holds_are_not_signed(
    audit_queue: Any, work: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workplace, "MAX_SIGNED_CHUNKS", audit_queue.layout.count - 1)
    job_id = audit_queue.add(steps=1)
    assert work() == 1
    result = audit_queue.result(job_id)
    assert (result.failed, result.projections) == ("", b"")
    assert result.root == audit_queue.honest(job_id).root


def test_other_data_replay_to_other_bytes(audit_queue: Any, work: Callable[..., int]) -> None:
    job_id = audit_queue.add(start_sequence=8)
    work()
    audit_queue.tasks[job_id] = replace(audit_queue.tasks[job_id], start_sequence=0)
    assert audit_queue.result(job_id).root != audit_queue.honest(job_id).root


def test_bf16_replays_are_said_to_be_of_their_class(
    audit_queue: Any, work: Callable[..., int]
) -> None:
    job_id = audit_queue.add()
    work(execution=Execution("cpu", 1, True))
    result = audit_queue.result(job_id)
    assert (result.execution, result.failed) == ("cpu-bf16", "")
    assert result.root != audit_queue.honest(job_id).root


def test_lost_weights_are_the_organisers_and_said_in_the_result(
    audit_queue: Any, work: Callable[..., int]
) -> None:
    unknown = audit_queue.add(state_digest=b"x" * 32)
    for file in Path(audit_queue.url).glob("weights-*"):
        file.unlink()
    lost = audit_queue.add()
    assert work() == 2
    assert audit_queue.result(unknown).failed == jobs.WEIGHTS_LOST
    assert audit_queue.result(lost).failed == jobs.WEIGHTS_LOST
    assert audit_queue.result(lost).root == b""


def test_damaged_data_end_this_auditor_and_count_as_lost_in_the_end(
    audit_queue: Any, work: Callable[..., int], tmp_path: Path
) -> None:
    job_id = audit_queue.add()
    data = tmp_path / "data"
    subprocess.run(["cp", "-rL", str(audit_queue.folder.data), str(data)], check=True)
    audit_queue.folder.data.unlink()
    data.rename(audit_queue.folder.data)
    for file in audit_queue.folder.data.glob("shards/*"):
        file.write_bytes(bytes(file.stat().st_size))
    for attempt in (1, 2):
        with pytest.raises(BadDigest, match="damaged"):
            work()
        assert audit_queue.job(job_id)["attempts"] == attempt
        assert audit_queue.job(job_id)["status"] == QUEUED
    assert work() == 1
    assert audit_queue.result(job_id).failed == jobs.DATA_LOST


def test_a_unit_outside_the_dataset_is_no_unit(audit_queue: Any, work: Callable[..., int]) -> None:
    job_id = audit_queue.add(start_sequence=10**6)
    work()
    assert audit_queue.result(job_id).failed == jobs.NO_UNIT


def test_a_job_that_ended_many_auditors_is_given_up(
    audit_queue: Any, work: Callable[..., int]
) -> None:
    job_id = audit_queue.add(attempts=5)
    work()
    assert audit_queue.result(job_id).failed == jobs.GAVE_UP


def test_an_auditor_that_is_stopped_in_the_middle_gives_its_job_back(audit_queue: Any) -> None:
    job_id = audit_queue.add(steps=5)
    stop = threading.Event()
    place = Workplace.open(audit_queue.folder)

    class Stopping:
        """The real data; the signal comes while the second batch is read."""

        def batch(self, start: int, end: int) -> Any:
            if start > 0:
                stop.set()
            return place.reader.batch(start, end)

    at_work = replace(place, reader=Stopping())  # type: ignore[arg-type]
    assert Auditor(at_work, ADA, settings(), stop).run() == 0
    held = audit_queue.job(job_id)
    assert (held["status"], held["auditor"], held["attempts"]) == (QUEUED, None, 0)
    place.database.close()


def test_a_job_that_went_to_another_auditor_is_dropped(audit_queue: Any) -> None:
    job_id = audit_queue.add(steps=5)
    place = Workplace.open(audit_queue.folder)

    class Overtaken:
        """The real data; meanwhile the job is given to somebody else."""

        def batch(self, start: int, end: int) -> Any:
            with audit_queue.database.session() as session:
                jobs.give_back(session, ADA.peer_id, counted=True)
                jobs.claim(session, BOB.peer_id, "cpu", time.time(), 60.0)
            return place.reader.batch(start, end)

    at_work = replace(place, reader=Overtaken())  # type: ignore[arg-type]
    assert Auditor(at_work, ADA, settings(), threading.Event()).run() == 0
    held = audit_queue.job(job_id)
    assert (held["status"], held["auditor"]) == (RUNNING, BOB.peer_id)
    place.database.close()


def test_an_auditor_without_bounds_measures_them_first(
    audit_queue: Any, work: Callable[..., int]
) -> None:
    assert work(calibrate=True) == 0
    with audit_queue.database.session() as session:
        assert session.get(ToleranceRow, 1) is None  # nothing to compare yet
    audit_queue.add()
    assert work(calibrate=True) == 1
    with audit_queue.database.session() as session:
        made_at_s = session.get_one(ToleranceRow, 1).made_at_s
    audit_queue.add()
    assert work(calibrate=True) == 1
    with audit_queue.database.session() as session:
        assert session.get_one(ToleranceRow, 1).made_at_s == made_at_s


def test_each_auditor_on_a_machine_has_a_key_of_its_own(tmp_path: Path) -> None:
    with auditor_key(tmp_path) as first, auditor_key(tmp_path) as second:
        assert first.peer_id != second.peer_id
        with (
            pytest.raises(UsageError, match="another auditor works with"),
            auditor_key(tmp_path, tmp_path / "auditor-1.key"),
        ):
            raise AssertionError("two processes hold one key")
    with auditor_key(tmp_path) as again:
        assert again.peer_id == first.peer_id
    assert stat.S_IMODE((tmp_path / "auditor-1.key").stat().st_mode) == 0o600


# ---- as a process ----


def start(queue: Any, *arguments: str) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "--run-dir", str(queue.path), "--no-calibrate", *arguments]
    return subprocess.Popen(
        [*command, "--poll-s", "0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_until(holds: Callable[[], bool], timeout_s: float = 100.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_sigterm_and_sigkill_lose_nothing(audit_queue: Any, work: Callable[..., int]) -> None:
    ids = [audit_queue.add(steps=5) for _ in range(4)]
    keys = [audit_queue.path / name for name in ("one.key", "two.key")]
    ended, killed = (start(audit_queue, "--key", str(key)) for key in keys)
    wait_until(lambda: all(auditors_at_work(audit_queue, key) for key in keys))
    ended.send_signal(signal.SIGTERM)
    killed.kill()
    assert ended.wait(30) == 0
    killed.wait()
    of_ended = Identity.load(keys[0]).peer_id
    assert all(
        audit_queue.job(job_id)["status"] != RUNNING
        or audit_queue.job(job_id)["auditor"] != of_ended
        for job_id in ids
    )
    work(Identity.load(keys[1]))  # the same key: what the killed one left is taken up at once
    assert [audit_queue.job(job_id)["status"] for job_id in ids] == [DONE] * 4
    for job_id in ids:
        assert audit_queue.result(job_id).root == audit_queue.honest(job_id).root


def auditors_at_work(queue: Any, key: Path) -> bool:
    """Whether the auditor with this key has said that it lives."""
    if not key.exists() or not key.stat().st_size:
        return False
    with queue.database.session() as session:
        return session.get(AuditorRow, Identity.load(key).peer_id) is not None
