"""A donor's key and its devices: nothing here needs a run."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from barnraise import cli as barnraise
from protocol.device_line import DEVICE_LINE_PREFIX
from protocol.envelope import open_envelope, seal
from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker import delegation
from worker.config import Home
from worker.delegation import Vouched, find, keep, read_line, require
from worker.doctor import _donor as donor_checks
from worker.donor.desk import finish_rotation, open_journal
from worker.donor.devices import vouch_for, vouch_for_neighbour
from worker.donor.home import DonorHome
from worker.donor.journal import ActJournal
from worker.journal import Journal
from worker.status import Board
from worker.view import status_lines

DAY_S = 86_400
NOW_S = 1_800_000_000


@pytest.fixture
def home(tmp_path: Path) -> DonorHome:
    made = DonorHome(tmp_path / "donor")
    made.prepare()
    made.make_key(made.key)
    return made


@pytest.fixture
def worker(tmp_path: Path) -> Home:
    made = Home(tmp_path / "worker")
    made.prepare()
    Identity.generate().save(made.identity)
    return made


def device_of(home: Home) -> str:
    return Identity.load(home.identity).peer_id


def vouched(donor: Identity, device: str, not_after_s: int = NOW_S) -> Vouched:
    record = wire.DeviceDelegation(donor=donor.peer_id, worker=device, not_after_s=not_after_s)
    return Vouched(donor.peer_id, device, not_after_s, seal(record, donor))


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "donor"
    made = CliRunner().invoke(barnraise, ["donor", "init", "--home", str(home), "--json"])
    again = CliRunner().invoke(barnraise, ["donor", "init", "--home", str(home), "--json"])
    first, second = json.loads(made.output), json.loads(again.output)
    assert (first["made"], second["made"]) == (True, False)
    assert first["donor"] == second["donor"] == Identity.load(home / "donor.key").peer_id
    assert stat.S_IMODE((home / "donor.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_half_a_key_of_a_killed_command_is_in_nobodys_way(tmp_path: Path) -> None:
    home = DonorHome(tmp_path)
    home.prepare()
    (tmp_path / "donor.unfinished").write_bytes(b"\x08\x01\x12")  # killed while it was written
    assert home.make_key(home.key).peer_id == Identity.load(home.key).peer_id
    assert not (tmp_path / "donor.unfinished").exists()


def test_a_folder_is_held_by_one_command(home: DonorHome) -> None:
    with home.held(), pytest.raises(UsageError, match="another 'barnraise donor' command"):
        vouch_for(home, Identity.generate().peer_id, 1, NOW_S)


def test_a_device_takes_the_line_that_the_donor_printed(
    home: DonorHome, worker: Home, tmp_path: Path
) -> None:
    line = tmp_path / "device.txt"
    arguments = ["donor", "add-device", device_of(worker), "--home", str(home.path)]
    made = CliRunner().invoke(barnraise, [*arguments, "--for", "30", "--out", str(line)])
    assert made.exit_code == 0, made.output

    given = ["worker", "delegation", str(line), "--home", str(worker.path)]
    taken = CliRunner().invoke(barnraise, given)
    assert taken.exit_code == 0, taken.output
    donor = Identity.load(home.key).peer_id
    assert donor in taken.output

    used = require(worker, device_of(worker), time.time())
    assert used is not None
    record = open_envelope(used.envelope, wire.DeviceDelegation, signer=donor).record
    assert (record.donor, record.worker) == (donor, device_of(worker))
    assert abs(record.not_after_s - (time.time() + 30 * DAY_S)) < 60

    CliRunner().invoke(barnraise, ["worker", "delegation", "--remove", "--home", str(worker.path)])
    assert require(worker, device_of(worker), time.time()) is None


def test_a_line_holds_no_more_than_a_line(home: DonorHome, worker: Home) -> None:
    good = vouch_for(home, device_of(worker), 1, NOW_S).line
    assert read_line(f"  {good}\n").worker == device_of(worker)
    for damaged in (
        good[:-9],
        good[: len(DEVICE_LINE_PREFIX)],
        DEVICE_LINE_PREFIX + "!" * 40,
        DEVICE_LINE_PREFIX + "A" * 5000,
        good.removeprefix(DEVICE_LINE_PREFIX),
        good.replace(DEVICE_LINE_PREFIX, "barnraise-consent:"),
    ):
        with pytest.raises(UsageError):
            read_line(damaged)
    with pytest.raises(UsageError, match="cannot read"):
        find("no-such-file")


def test_nobody_delegates_in_anothers_name(worker: Home) -> None:
    thief, victim = Identity.generate(), Identity.generate()
    record = wire.DeviceDelegation(
        donor=victim.peer_id, worker=device_of(worker), not_after_s=NOW_S
    )
    forged = Vouched(victim.peer_id, device_of(worker), NOW_S, seal(record, thief))
    with pytest.raises(UsageError, match="another key"):
        read_line(forged.line)


def test_a_delegation_is_for_one_device_and_for_a_time(worker: Home) -> None:
    donor, other = Identity.generate(), Identity.generate()
    with pytest.raises(UsageError, match=f"is for the device {other.peer_id}"):
        keep(worker, vouched(donor, other.peer_id, int(time.time()) + DAY_S), device_of(worker))
    with pytest.raises(UsageError, match=f"barnraise donor add-device {device_of(worker)}"):
        keep(worker, vouched(donor, device_of(worker), 1), device_of(worker))
    assert not worker.delegation.exists()

    keep(worker, vouched(donor, device_of(worker), NOW_S + 10**9), device_of(worker))
    with pytest.raises(UsageError, match="has ended"):
        require(worker, device_of(worker), NOW_S + 10**9 + 1)


def test_a_device_that_gave_under_its_own_key_is_told_to_merge(worker: Home) -> None:
    journal = Journal(worker.journal)
    journal.put(delegation.ENROLLED_FOR, device_of(worker))
    journal.close()
    later_s = int(time.time()) + DAY_S
    with pytest.raises(UsageError, match="barnraise donor merge"):
        keep(worker, vouched(Identity.generate(), device_of(worker), later_s), device_of(worker))


@pytest.mark.parametrize(
    ("left_s", "ok", "said"),
    [(30 * DAY_S, True, ""), (3 * DAY_S, True, "ends soon"), (-DAY_S, False, "has ended")],
)
def test_the_end_is_shown_in_time_with_what_to_do(
    worker: Home, left_s: int, ok: bool, said: str
) -> None:
    donor, device = Identity.generate(), device_of(worker)
    until_s = int(time.time()) + left_s
    worker.delegation.write_text(vouched(donor, device, until_s).line)

    (check,) = donor_checks(worker)
    advice = check.hint if check.ok else check.fix
    assert (check.ok, donor.peer_id in check.detail) == (ok, True)
    assert said in advice
    assert bool(said) == (f"barnraise donor add-device {device}" in advice)

    board = Board(worker=device, run="r", donor=donor.peer_id, delegated_until_s=until_s)
    shown = " ".join(status_lines(board.snapshot()))
    assert donor.peer_id in shown
    assert bool(said) == ("barnraise donor add-device" in shown)
    assert said in shown


def test_doctor_says_how_to_mend_a_damaged_delegation(worker: Home) -> None:
    assert donor_checks(worker) == []
    worker.delegation.write_text("barnraise-device:AAAA")
    (check,) = donor_checks(worker)
    assert not check.ok
    assert "barnraise worker delegation LINE" in check.fix


def test_a_device_that_worked_for_a_donor_does_not_leave_it(worker: Home) -> None:
    donor = Identity.generate()
    keep(worker, vouched(donor, device_of(worker), int(time.time()) + DAY_S), device_of(worker))
    journal = Journal(worker.journal)
    journal.put(delegation.ENROLLED_FOR, donor.peer_id)
    journal.close()
    with pytest.raises(UsageError, match="another --home"):
        delegation.remove(worker, device_of(worker))
    assert worker.delegation.exists()


def test_a_neighbour_needs_no_key_before(tmp_path: Path, worker: Home) -> None:
    environment = {**os.environ, "BARNRAISE_DONOR_HOME": str(tmp_path / "new")}
    first = vouch_for_neighbour(device_of(worker), environment)
    again = vouch_for_neighbour(Identity.generate().peer_id, environment)
    assert first.donor == again.donor == Identity.load(tmp_path / "new" / "donor.key").peer_id


@pytest.mark.parametrize("wrong", ["", "12D3KooW", "x" * 400])
def test_only_a_device_is_vouched_for(home: DonorHome, wrong: str) -> None:
    with pytest.raises(UsageError, match="give the device's key"):
        vouch_for(home, wrong, 1, NOW_S)
    own = Identity.load(home.key).peer_id
    with pytest.raises(UsageError, match="the donor's own key"):
        vouch_for(home, own, 1, NOW_S)


# ---- rotation on disk ----


def record_rotation(home: DonorHome) -> tuple[str, str]:
    """As if the coordinator had just answered a KeyChange."""
    old, new = Identity.load(home.key), home.make_key(home.next_key)
    record = wire.KeyChange(old=old.peer_id, new=new.peer_id)
    journal = ActJournal(home.journal)
    act = journal.sign("KeyChange", {}, old.peer_id, seal(record, old))
    journal.recorded(act, 7, "")
    journal.close()
    return old.peer_id, new.peer_id


def test_the_next_key_is_used_only_once_the_record_knows_it(home: DonorHome) -> None:
    old = Identity.load(home.key).peer_id
    new = home.make_key(home.next_key).peer_id
    with open_journal(home) as journal:
        signed = journal.sign("KeyChange", {}, old, seal(wire.KeyChange(new=new), home.load_key()))
        finish_rotation(home, journal)
        assert home.load_key().peer_id == old
        journal.refused(signed, "no")
    with open_journal(home):
        assert home.load_key().peer_id == old
    assert home.make_key(home.next_key).peer_id == new  # ready for the next attempt


def test_both_keys_outlast_a_rotation_and_devices_go_on(home: DonorHome) -> None:
    device, late = Identity.generate().peer_id, Identity.generate().peer_id
    before = vouch_for(home, device, 1, NOW_S)
    old, new = record_rotation(home)

    renewed, fresh = vouch_for(home, device, 2, NOW_S), vouch_for(home, late, 2, NOW_S)

    assert home.load_key().peer_id == new
    assert home.key_of(old) is not None
    assert (before.donor, renewed.donor, fresh.donor) == (old, old, new)
    assert vouch_for(home, device, 2, NOW_S, current_key=True).donor == new


@pytest.mark.parametrize("done", ["nothing", "kept"])
def test_the_last_step_can_be_made_again(home: DonorHome, done: str) -> None:
    old, new = record_rotation(home)
    if done == "kept":
        (home.retired / f"{old}.key").hardlink_to(home.key)
    with open_journal(home):
        pass
    assert home.load_key().peer_id == new
    assert Identity.load(home.retired / f"{old}.key").peer_id == old
    assert not home.next_key.exists()
