"""Joules: read from counters that wrap, sleep and vanish; counted for verified units alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from worker.config import Home
from worker.energy import EnergyMeter, RaplCounter, find_counter
from worker.energy_book import MOST_OPEN, EnergyBook
from worker.journal import Journal, StoredReceipt
from worker.limits import Limits
from worker.power import Power
from worker.status import Board, Phase

RANGE_J = 262_143.0


class Powercap:
    """The kernel's tree, in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.domain("intel-rapl:0", "package-0")
        self.domain("intel-rapl:0:0", "core")
        self.domain("intel-rapl:1", "psys")
        self.domain("intel-rapl-mmio:0", "package-0")
        (root / "intel-rapl").mkdir()

    def domain(self, name: str, kind: str) -> None:
        folder = self.root / name
        folder.mkdir()
        (folder / "name").write_text(kind + "\n")
        (folder / "max_energy_range_uj").write_text(f"{int(RANGE_J * 1e6)}\n")
        self.set(0.0, name)

    def set(self, joules: float, name: str = "intel-rapl:0") -> None:
        (self.root / name / "energy_uj").write_text(f"{round(joules * 1e6)}\n")


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    root = tmp_path / "powercap"
    root.mkdir()
    return Powercap(root)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(powercap: Powercap, clock: Clock) -> EnergyMeter:
    meter = EnergyMeter(RaplCounter(powercap.root), clock)
    assert meter.tick(True) == 0.0
    clock.now_s += 1
    assert meter.tick(True) == 0.0
    return meter


def second_later(clock: Clock, seconds: float = 1.0) -> bool:
    clock.now_s += seconds
    return True


# ---- counters --------------------------------------------------------------------------


def test_only_packages_are_counted_once(powercap: Powercap) -> None:
    for name in ("intel-rapl:0:0", "intel-rapl:1", "intel-rapl-mmio:0"):
        powercap.set(77.0, name)
    powercap.set(5.0)
    powercap.domain("intel-rapl:2", "package-1")
    powercap.set(7.0, "intel-rapl:2")
    read = RaplCounter(powercap.root).read()
    assert read is not None
    assert sorted(read.values()) == [5.0, 7.0]


@pytest.mark.parametrize("damage", ["gone", "no number", "no package"])
def test_a_machine_without_a_readable_counter_tells_nothing(
    powercap: Powercap, damage: str
) -> None:
    folder = powercap.root / "intel-rapl:0"
    if damage == "gone":  # as for who is not root
        (folder / "energy_uj").unlink()
    elif damage == "no number":
        (folder / "energy_uj").write_text("?\n")
    else:
        (folder / "name").write_text("dram\n")
    assert find_counter(None, powercap.root) is None


def test_no_powercap_at_all(tmp_path: Path) -> None:
    assert find_counter(None, tmp_path / "none") is None


def test_the_processor_does_not_tell_for_a_gpu(powercap: Powercap) -> None:
    assert find_counter(None, powercap.root) is not None
    assert find_counter(None, powercap.root, on_gpu=True) is None


# ---- intervals -------------------------------------------------------------------------


def test_joules_count_while_the_trainer_trains(
    meter: EnergyMeter, powercap: Powercap, clock: Clock
) -> None:
    def after(joules: float, trains: bool) -> float:
        clock.now_s += 1
        powercap.set(joules)
        return meter.tick(trains)

    assert after(100, True) == pytest.approx(100)
    assert after(200, False) == pytest.approx(50), "it ended somewhere in that second"
    assert after(300, False) == 0.0
    assert after(400, True) == pytest.approx(50)
    assert after(500, True) == pytest.approx(100)


def test_a_counter_wraps_around(meter: EnergyMeter, powercap: Powercap, clock: Clock) -> None:
    powercap.set(RANGE_J - 40)
    clock.now_s += 1
    assert meter.tick(True) == 0.0, "no machine draws so much"
    powercap.set(60)
    clock.now_s += 1
    assert meter.tick(True) == pytest.approx(100)


def test_a_machine_that_slept_counts_nothing_for_it(
    meter: EnergyMeter, powercap: Powercap, clock: Clock
) -> None:
    powercap.set(500)
    clock.now_s += 3600
    assert meter.tick(True) == 0.0
    powercap.set(600)
    clock.now_s += 1
    assert meter.tick(True) == pytest.approx(100)


def test_a_counter_that_began_anew_counts_nothing(
    meter: EnergyMeter, powercap: Powercap, clock: Clock
) -> None:
    powercap.set(1000)
    clock.now_s += 1
    assert meter.tick(True) == pytest.approx(1000)
    powercap.set(3)  # nearly a whole turn, if it had wrapped around
    clock.now_s += 1
    assert meter.tick(True) == 0.0


def test_a_counter_that_vanishes_and_returns(
    meter: EnergyMeter, powercap: Powercap, clock: Clock
) -> None:
    file = powercap.root / "intel-rapl:0" / "energy_uj"
    file.rename(file.with_name("hidden"))
    clock.now_s += 1
    assert meter.tick(True) == 0.0
    powercap.set(5000)
    clock.now_s += 1
    assert meter.tick(True) == 0.0
    powercap.set(5100)
    clock.now_s += 1
    assert meter.tick(True) == pytest.approx(100)


def test_members_of_one_machine_share_its_processor(powercap: Powercap, clock: Clock) -> None:
    meters = [EnergyMeter(RaplCounter(powercap.root, members=2), clock) for _ in range(2)]
    for meter in meters:
        meter.tick(True)
    powercap.set(100)
    clock.now_s += 1
    assert sum(meter.tick(True) for meter in meters) == pytest.approx(100)


# ---- units -----------------------------------------------------------------------------


def receipt(unit: str, tokens: int, *, held: bool = True) -> StoredReceipt:
    leaf = json.dumps({"tokens": tokens}).encode() if held else b""
    return StoredReceipt(bytes.fromhex(unit), 0, 0, leaf, "")


def test_energy_per_token_is_of_verified_units_alone(tmp_path: Path) -> None:
    book = EnergyBook()
    book.add("aa", 3600.0)
    book.add("bb", 7200.0)
    assert book.watt_hours == pytest.approx(3)
    assert book.watt_hours_per_million_verified_tokens is None
    before_it_was_measured = receipt("cc", 10**9)
    book.verify([receipt("aa", 500_000), receipt("bb", 1, held=False), before_it_was_measured])
    assert book.watt_hours_per_million_verified_tokens == pytest.approx(2)
    book.verify([receipt("aa", 500_000)])
    assert book.verified_tokens == 500_000, "a receipt counts once"
    book.save(tmp_path / "energy.json")
    assert EnergyBook.load(tmp_path / "energy.json") == book


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"total_j": 1}',
        '{"total_j": NaN}',
        '{"open_j": [], "total_j": "x"}',
        '{"total_j": -1, "verified_j": 0, "verified_tokens": 0, "open_j": {}}',
        '{"total_j": 1, "verified_j": 0, "verified_tokens": 0, "open_j": {"aa": Infinity}}',
    ],
)
def test_a_damaged_book_begins_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "energy.json").write_text(text)
    assert EnergyBook.load(tmp_path / "energy.json") == EnergyBook()


def test_units_that_nobody_pays_do_not_pile_up() -> None:
    book = EnergyBook()
    for number in range(MOST_OPEN + 10):
        book.add(f"{number:032x}", 1.0)
    assert len(book.open_j) == MOST_OPEN
    assert f"{MOST_OPEN + 9:032x}" in book.open_j
    assert book.total_j == MOST_OPEN + 10


# ---- beside the work -------------------------------------------------------------------


class Office:
    """A worker's home with what :class:`Power` reads."""

    def __init__(self, folder: Path, powercap: Powercap) -> None:
        self.home = Home(folder / "home")
        self.home.prepare()
        self.journal = Journal(self.home.journal)
        self.board = Board("device", "run")
        self.powercap = powercap
        self.frozen = False
        self.now_s = 0.0

    def clock(self) -> float:
        """A second later each time it is asked."""
        self.now_s += 1
        return self.now_s

    def power(self) -> Power:
        power = Power(
            home=self.home,
            journal=self.journal,
            board=self.board,
            device="cpu",
            limits=Limits,
            frozen=lambda: self.frozen,
            nvml=None,
            powercap=self.powercap.root,
            clock=self.clock,
        )
        power.begin()
        return power

    def trains(self, unit: str) -> None:
        self.board.at_work(Phase.TRAINING)
        self.board.assignment_id = unit


class Parts(dict[str, Any]):
    """Tells when something was told."""

    def __init__(self, loop: asyncio.AbstractEventLoop, told: asyncio.Event) -> None:
        super().__init__()
        self._loop, self._told = loop, told

    def __setitem__(self, name: str, part: Any) -> None:
        super().__setitem__(name, part)
        self._loop.call_soon_threadsafe(self._told.set)


@pytest.fixture
def office(tmp_path: Path, powercap: Powercap) -> Any:
    office = Office(tmp_path, powercap)
    yield office
    office.journal.close()


def test_a_unit_is_counted_over_a_restart_and_verified_by_its_receipt(
    office: Any, powercap: Powercap
) -> None:
    unit = "ab" * 16
    office.trains(unit)
    power = office.power()
    for joules in (0, 10, 30):
        powercap.set(joules)
        power.look()
    power.end()
    power = office.power()  # as after a restart
    for joules in (1000, 1006):
        powercap.set(joules)
        power.look()
    powercap.set(1008)
    office.board.waiting("waiting for the round to close")
    power.look()
    assert power.book.total_j == pytest.approx(30 + 6 + 1)
    assert list(power.book.open_j) == [unit]
    journal = office.journal
    journal.expect_receipt(bytes.fromhex(unit), 1, 0, patience_s=60)
    journal.keep_receipt(bytes.fromhex(unit), b'{"tokens":2560}', "proof")
    office.trains("cd" * 16)
    power.look()
    office.board.waiting("paused")
    power.look()
    power.end()
    assert office.board.snapshot()["parts"]["energy"] == {
        "watt_hours": pytest.approx(37 / 3600, abs=1e-3),
        "watt_hours_per_million_verified_tokens": pytest.approx(37 / 3600 / 2560e-6, abs=1e-3),
        "source": "rapl",
    }


def test_nothing_is_counted_while_the_trainer_is_frozen(office: Any, powercap: Powercap) -> None:
    office.trains("ab" * 16)
    office.frozen = True
    power = office.power()
    for joules in (0, 10, 30):
        powercap.set(joules)
        power.look()
    assert power.book.total_j == 0.0


def test_a_machine_that_tells_nothing_shows_nothing(office: Any, powercap: Powercap) -> None:
    (powercap.root / "intel-rapl:0" / "energy_uj").unlink()
    power = office.power()
    power.look()
    power.end()
    assert "energy" not in office.board.snapshot()["parts"]
    assert not office.home.energy.exists()


async def test_the_task_saves_what_it_counted_when_it_is_cancelled(
    office: Any, powercap: Powercap
) -> None:
    office.trains("ab" * 16)
    power = office.power()
    told = asyncio.Event()
    office.board.parts = Parts(asyncio.get_running_loop(), told)
    task = asyncio.create_task(power.run())
    await told.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert office.home.energy.exists()
    saved = office.home.energy.read_bytes()
    powercap.set(999)
    power.look()  # a thread that came late
    power.look()
    assert power.book.total_j == 0.0
    assert office.home.energy.read_bytes() == saved
