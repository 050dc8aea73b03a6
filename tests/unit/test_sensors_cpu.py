"""Whose load counts: that of others who need the processors, and never our own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from worker.clock import steady_s
from worker.governor import Because, Governor, Readings
from worker.limits import Limits
from worker.sensors import cpu
from worker.sensors.cpu import ForeignCpu, Taken, foreign_percent

BURN = "while True: pass"
BURN_NOW_AND_THEN = """
import time
while True:
    end = time.monotonic() + 0.5
    while time.monotonic() < end: pass
    time.sleep(0.5)
"""
SLEEP = "import time; time.sleep(600)"


@contextmanager
def running(code: str, nice: int = 0) -> Iterator[int]:
    process = subprocess.Popen(["nice", "-n", str(nice), sys.executable, "-c", code])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


class FakeProc:
    """A folder that looks like ``/proc``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.machine()

    def machine(self, user: int = 0, nice: int = 0, system: int = 0, idle: int = 1000) -> None:
        """Counters of all processors; what else a kernel tells stays as it is."""
        iowait, irq, softirq, steal = 70, 3, 4, 5
        (self.root / "stat").write_text(
            f"cpu  {user} {nice} {system} {idle} {iowait} {irq} {softirq} {steal} 9 9\ncpu0 1 1 1\n"
        )

    def process(
        self,
        pid: int,
        user: int = 0,
        system: int = 0,
        nice: int = 0,
        threads: dict[int, list[int]] | None = None,
    ) -> None:
        """One process: by thread, which children it has."""
        fields = ["S", "1"] + ["0"] * 9 + [str(user), str(system), "0", "0", "20", str(nice)]
        fields += ["1", "0", "77"] + ["0"] * 30
        folder = self.root / str(pid)
        for thread, children in (threads or {pid: []}).items():
            (folder / "task" / str(thread)).mkdir(parents=True, exist_ok=True)
            listed = "".join(f"{child} " for child in children)
            (folder / "task" / str(thread) / "children").write_text(listed)
        (folder / "stat").write_text(f"{pid} (a) b (c) {' '.join(fields)}\n")


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    made = FakeProc(tmp_path)
    made.process(10, threads={10: [20], 11: [30]})
    made.process(20)
    made.process(30, nice=10)
    return made


def taken(proc: FakeProc) -> Taken:
    return ForeignCpu(proc.root, root_pid=10)._taken()


def test_of_all_that_ran_ours_and_what_is_nice_is_taken_away(proc: FakeProc) -> None:
    before = taken(proc)
    proc.machine(user=300, nice=400, system=100, idle=1200)  # 1000 ticks in all
    proc.process(10, user=40, system=10, threads={10: [20], 11: [30]})
    proc.process(20, user=100, system=20)  # a child
    proc.process(30, user=390, system=30, nice=10)  # the trainer, of another thread
    assert foreign_percent(before, taken(proc)) == pytest.approx(20.0)


def test_waiting_for_a_disk_is_no_load_nor_are_interrupts(proc: FakeProc) -> None:
    before = taken(proc)
    (proc.root / "stat").write_text("cpu  0 0 0 1000 5000 300 400 500 9 9\n")
    assert foreign_percent(before, taken(proc)) == 0.0


def test_a_child_that_began_or_ended_in_between(proc: FakeProc) -> None:
    before = taken(proc)
    proc.machine(user=200, idle=1800)
    proc.process(20, user=0, threads={20: [40]})
    proc.process(40, user=100)
    (proc.root / "30" / "stat").unlink()  # gone while we look
    middle = taken(proc)
    assert foreign_percent(before, middle) == pytest.approx(10.0)
    proc.machine(user=300, idle=2700)
    proc.process(20)
    assert foreign_percent(middle, taken(proc)) == pytest.approx(10.0)


def test_a_process_with_the_number_of_one_that_ended_is_another(proc: FakeProc) -> None:
    before = Taken(1000.0, 500.0, {(20, 77.0): 400.0})
    now = Taken(2000.0, 800.0, {(20, 99.0): 100.0})
    assert foreign_percent(before, now) == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("now", "percent"),
    [
        (Taken(1000.0, 500.0, {}), None),  # no time passed
        (Taken(900.0, 400.0, {}), None),  # a processor was taken out
        (Taken(1100.0, 520.0, {(1, 1.0): 90.0}), 0.0),  # counters differ by a tick or two
        (Taken(1100.0, 700.0, {}), 100.0),
    ],
)
def test_counters_that_do_not_add_up(now: Taken, percent: float | None) -> None:
    assert foreign_percent(Taken(1000.0, 500.0, {}), now) == percent


def test_the_first_look_tells_nothing_and_the_next_ones_not_too_soon(proc: FakeProc) -> None:
    sensor = ForeignCpu(proc.root, root_pid=10)
    assert sensor.percent() is None
    proc.machine(user=1000, idle=1000)
    assert sensor.percent() is None  # within the same half second
    sensor._before_s -= 1
    assert sensor.percent() == pytest.approx(100.0)
    proc.machine(user=1000, idle=9000)
    assert sensor.percent() == pytest.approx(100.0)


def test_a_kernel_that_does_not_list_children_is_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(SLEEP) as pid:
        assert pid in cpu._family(tmp_path, os.getpid())
        assert pid in cpu._family(Path("/proc"), os.getpid())


# ---- the real machine ------------------------------------------------------------------


def ours_after(seconds: float, look: ForeignCpu, pid: int) -> float:
    """Ticks of one process that count as ours, over so long."""
    before = look._taken()
    time.sleep(seconds)
    now = look._taken()
    (key,) = (key for key in now.ours if key[0] == pid)
    return now.ours[key] - before.ours.get(key, 0.0)


def test_a_child_that_computes_is_ours() -> None:
    look = ForeignCpu()
    with running(BURN) as pid:
        deadline_s = steady_s() + 60
        while ours_after(0.3, look, pid) < 3:
            assert steady_s() < deadline_s


def test_user_time_of_a_nice_child_is_not_counted_at_all() -> None:
    look = ForeignCpu()
    with running(BURN, nice=10) as pid:
        deadline_s = steady_s() + 60
        while cpu_ticks(pid) < 20:
            time.sleep(0.1)
            assert steady_s() < deadline_s
        assert ours_after(0.5, look, pid) <= 5  # hardly any system time


def cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_where_there_is_no_proc_psutil_tells() -> None:
    taken_before = cpu._by_psutil(os.getpid())
    with running(BURN) as pid:
        deadline_s = steady_s() + 60
        taken_now = taken_before
        while not any(key[0] == pid and took > 0.05 for key, took in taken_now.ours.items()):
            time.sleep(0.1)
            taken_now = cpu._by_psutil(os.getpid())
            assert steady_s() < deadline_s
    assert taken_now.total > taken_before.total
    percent = foreign_percent(taken_before, taken_now)
    assert percent is not None
    assert 0 <= percent <= 100


def test_a_load_that_starts_is_seen_in_time() -> None:
    """Five looks, one a second, are enough to yield to a real program."""
    processors = len(os.sched_getaffinity(0))
    governor = Governor(Limits(busy_cpu_percent=25, free_disk_mib=0, on_battery=True))
    with running(SLEEP) as stranger, ExitStack() as load:
        look = ForeignCpu(root_pid=stranger)  # whose descendants we and our children are not
        look.percent()
        for _ in range(processors):
            load.enter_context(running(BURN))
        for _ in range(5):
            time.sleep(1)
            percent = look.percent()
            verdict = governor.decide(Readings(time.time(), steady_s(), percent))
        assert verdict.because == Because.BUSY
        assert percent is not None
        assert percent > 25


def test_a_program_that_comes_and_goes_does_not_make_it_flap() -> None:
    processors = len(os.sched_getaffinity(0))
    seen = []
    with running(SLEEP) as stranger, ExitStack() as load:
        look = ForeignCpu(root_pid=stranger)
        look.percent()
        for _ in range(processors):
            load.enter_context(running(BURN_NOW_AND_THEN))
        for _ in range(8):
            time.sleep(0.6)  # out of step with it
            seen.append(look.percent())
    governor = Governor(Limits(busy_cpu_percent=25, free_disk_mib=0, on_battery=True))
    switches, works = 0, True
    for second in range(1800):  # what was really seen, over and over again
        percent = seen[second % len(seen)]
        now = governor.decide(Readings(1e9 + second, float(second), percent)).works
        switches += now != works
        works = now
    assert not works
    assert 1 <= switches <= 30


def test_looking_costs_hardly_anything() -> None:
    look = ForeignCpu()
    began_s = time.process_time()
    for _ in range(100):
        look._taken()
    assert time.process_time() - began_s < 100 * 0.01  # 1 % once a second on the slowest machine
