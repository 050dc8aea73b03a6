"""A worker's life at its seams: what is said or spoilt between two of its programs is not lost."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import UsageError
from protocol.identity import Identity
from worker.config import Home, WorkerConfig
from worker.limits import Limits
from worker.running import Life, settled

ROOT = Identity.from_seed(bytes(32)).peer_id
LINK = f"barnraise://127.0.0.1:1/{'0' * 64}#root={ROOT}"
CONFIG = WorkerConfig(link=LINK, limits=Limits(threads=1, schedule=("mon-fri 22:00-07:00",)))
BEFORE = "BARNRAISE_BEFORE"


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A life holds them back at its end, for the next program: here there is none."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, held)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "w")
    found.prepare()
    Identity.generate().save(found.identity)
    CONFIG.save(found.config)
    return found


def life(home: Home, **options: object) -> Life:
    return Life(home, lambda: WorkerConfig.load(home.config), CONFIG, **options)  # type: ignore[arg-type]


async def test_a_stop_that_comes_as_it_falls_asleep_is_one(home: Home) -> None:
    class Sleepy(Life):
        async def _turns(self) -> bool:
            self.handle("stop", {})  # its answer is given; now the next program would begin
            return True

    assert not await Sleepy(home, lambda: CONFIG, CONFIG).run()


def test_a_pause_holds_also_where_it_cannot_be_written_down(home: Home) -> None:
    one = life(home)
    home.journal.mkdir()  # the disk refuses
    status = one.handle("pause", {"for_s": 60.0})["status"]
    assert status["paused"] and status["paused_until_s"] is not None
    assert one.governor.paused
    one.handle("resume", {})
    assert not one.governor.paused


def test_what_is_so_still_is_told_by_the_next_program(home: Home) -> None:
    one = life(home)
    one.board.given_up, one.board.receipts_held, one.board.donor = "aa", 7, "a donor"
    one.board.parts |= {"energy": {"watt_hours": 1.5}, "gpu": {"power_w": 300.0}}
    told = life(home, before=json.loads(json.dumps(one.remember()))).board.snapshot()
    assert (told["given_up"], told["receipts_held"], told["donor"]) == ("aa", 7, "a donor")
    assert told["parts"] == {"energy": {"watt_hours": 1.5}}  # what was measured then is over


def test_settings_that_were_spoilt_meanwhile_do_not_end_it(home: Home) -> None:
    one = life(home)
    environment = {BEFORE: json.dumps(one.remember())}
    home.config.write_text("limits = 7")
    assert settled(one.load, environment) == CONFIG
    with pytest.raises(UsageError, match="limits"):  # where nothing was known before
        settled(one.load, {})
    home.config.unlink()
    assert settled(one.load, environment) == CONFIG
