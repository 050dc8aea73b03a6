"""What donors sign, over real TLS to a server that opens and checks it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from protocol.envelope import seal
from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker.config import Home, WorkerConfig
from worker.donor import acts
from worker.donor.amounts import end_of_day_s, in_credits, last_day, microcredits, parse_amount
from worker.donor.desk import Refused, open_desk, open_journal
from worker.donor.home import DonorHome
from worker.donor.joining import consent_line, join_accounts, read_consent
from worker.donor.journal import ActJournal, ActState
from worker.donor.pledges import find_pledge, own_pledges, read_shown, show_file
from worker.donor.profiles import founded_teams, newest_profile, team_now
from worker.donor.rotation import change_key, finished_but_untold, told

UNTIL_S = 2_000_000_000


@pytest.fixture
def home(tmp_path: Path) -> DonorHome:
    made = DonorHome(tmp_path / "donor")
    made.prepare()
    made.make_key(made.key)
    return made


@pytest.fixture
def worker(tmp_path: Path, office: Any) -> Home:
    made = Home(tmp_path / "worker")
    made.prepare()
    Identity.generate().save(made.identity)
    WorkerConfig(link=str(office.link), name="Ada").save(made.config)
    return made


def a_pledge(desk: Any, **changes: Any) -> acts.Draft:
    terms = {"microcredits": 200_000_000, "until_s": UNTIL_S, "visibility": "public", **changes}
    return acts.pledge(desk.run_id, desk.run_id[:16], desk.signer, **terms)


# ---- pledges ----


async def test_a_pledge_is_revised_and_withdrawn_under_its_own_name(
    office: Any, home: DonorHome, worker: Home
) -> None:
    async with open_desk(home, worker, None) as desk:
        made = await desk.perform(a_pledge(desk, visibility="private"))
        known = find_pledge(desk.journal, _first(desk).id[:6])
        await desk.perform(acts.revised(known.record, desk.signer, microcredits=5))
        await desk.perform(acts.revised(_first(desk).record, desk.signer, microcredits=0))
        standing = _first(desk)
    first, second, third = office.records(wire.Pledge)
    assert {first.pledge, second.pledge, third.pledge} == {first.pledge}
    assert [one.revision for one in (first, second, third)] == [0, 1, 2]
    assert [one.microcredits for one in (first, second, third)] == [200_000_000, 5, 0]
    assert {first.until_s, second.until_s, third.until_s} == {UNTIL_S}
    salts = {first.salt, second.salt, third.salt}
    assert {len(salt) for salt in salts} == {16}
    assert len(salts) == 3
    assert (standing.state, standing.row()["leaf"]) == ("withdrawn", 102)
    assert made.leaf == 100


def _first(desk: Any) -> Any:
    return own_pledges(desk.journal)[0]


async def test_a_lost_answer_is_asked_for_again_with_the_same_bytes(
    office: Any, home: DonorHome, worker: Home
) -> None:
    office.lose_answers = 1
    async with open_desk(home, worker, None) as desk:
        outcome = await desk.perform(a_pledge(desk))
    assert len(office.taken) == 1
    assert office.seen[0] == office.seen[1] == outcome.envelope.payload
    assert outcome.leaf == 100


async def test_while_the_coordinator_is_away_the_act_is_kept_and_made_once(
    office: Any, home: DonorHome, worker: Home
) -> None:
    office.away = True
    async with open_desk(home, worker, None) as desk:
        with pytest.raises(UsageError, match="barnraise donor send"):
            await desk.perform(a_pledge(desk))
    office.away = False
    # The same command again means the same pledge, although its id and salt are random.
    async with open_desk(home, worker, None) as desk:
        await desk.perform(a_pledge(desk))
        # And once that is recorded, another one.
        await desk.perform(a_pledge(desk))
    assert len(set(office.seen[:5])) == 1
    assert len(office.records(wire.Pledge)) == 2


async def test_another_command_hands_in_what_was_left_first(
    office: Any, home: DonorHome, worker: Home
) -> None:
    office.away = True
    async with open_desk(home, worker, None) as desk:
        with pytest.raises(UsageError):
            await desk.perform(a_pledge(desk))
    office.away = False
    async with open_desk(home, worker, None) as desk:
        outcome = await desk.perform(acts.founding(desk.run_id, desk.signer, "Owls"))
        assert [earlier.leaf for earlier in desk.earlier] == [100]
    assert outcome.leaf == 101
    with open_journal(home) as journal:
        assert journal.pending() == []


async def test_what_is_refused_is_told_and_not_sent_again(
    office: Any, home: DonorHome, worker: Home
) -> None:
    office.refuse = lambda _: "the campaign is over"
    async with open_desk(home, worker, None) as desk:
        with pytest.raises(Refused, match="refused the Pledge: the campaign is over"):
            await desk.perform(a_pledge(desk))
        assert _first(desk).state == "refused"
        with pytest.raises(UsageError, match="is refused"):
            find_pledge(desk.journal, _first(desk).id)
    office.refuse = lambda _: ""
    async with open_desk(home, worker, None) as desk:
        await desk.hand_in_pending()
    assert office.taken == []
    assert len(office.seen) == 1


async def test_nothing_is_signed_while_nobody_answers(home: DonorHome, tmp_path: Path) -> None:
    link = f"barnraise://127.0.0.1:9/{'0' * 64}#root={Identity.generate().peer_id}"
    with pytest.raises(UsageError, match="Nothing was signed"):
        async with open_desk(home, Home(tmp_path / "none"), link):
            pass
    with open_journal(home) as journal:
        assert journal.acts() == []


# ---- keys ----


async def test_without_a_donor_key_the_devices_key_signs(
    office: Any, worker: Home, tmp_path: Path
) -> None:
    bare = DonorHome(tmp_path / "bare")
    async with open_desk(bare, worker, None) as desk:
        await desk.perform(a_pledge(desk))
    assert office.taken[0].signer == Identity.load(worker.identity).peer_id
    with pytest.raises(UsageError, match="barnraise donor init"):
        async with open_desk(bare, worker, None, own_key=True):
            pass
    with pytest.raises(UsageError, match="no key to sign with"):
        async with open_desk(bare, Home(tmp_path / "none"), str(office.link)):
            pass


async def test_a_key_is_changed_with_both_signatures_and_pledges_go_with_it(
    office: Any, home: DonorHome, worker: Home
) -> None:
    old = Identity.load(home.key).peer_id
    async with open_desk(home, worker, None) as desk:
        await desk.perform(a_pledge(desk))
        assert finished_but_untold(desk) is None
        outcome = await change_key(desk)
        told(desk)
    change = office.records(wire.KeyChange)[0]
    assert (change.old, outcome.leaf) == (old, 101)
    assert Identity.load(home.key).peer_id == change.new != old
    async with open_desk(home, worker, None) as desk:
        assert finished_but_untold(desk) is None
        await desk.perform(acts.revised(_first(desk).record, desk.signer, microcredits=1))
    assert office.taken[-1].signer == office.records(wire.Pledge)[-1].donor == change.new


async def test_an_answer_to_a_key_change_that_never_came_is_fetched(
    office: Any, home: DonorHome, worker: Home
) -> None:
    old = Identity.load(home.key).peer_id
    office.away = True
    async with open_desk(home, worker, None) as desk:
        with pytest.raises(UsageError):
            await change_key(desk)
    assert Identity.load(home.key).peer_id == old  # nobody knows the new key yet
    office.away = False
    async with open_desk(home, worker, None) as desk:
        await desk.hand_in_pending()
    new = Identity.load(home.key).peer_id
    assert [change.new for change in office.records(wire.KeyChange)] == [new]
    async with open_desk(home, worker, None) as desk:
        told_of = finished_but_untold(desk)
    assert told_of is not None
    assert told_of.leaf == 100


async def test_a_refused_key_change_changes_nothing(
    office: Any, home: DonorHome, worker: Home
) -> None:
    old = Identity.load(home.key).peer_id
    office.refuse = lambda _: "not now"
    async with open_desk(home, worker, None) as desk:
        with pytest.raises(Refused):
            await change_key(desk)
    assert Identity.load(home.key).peer_id == old


async def test_two_accounts_are_joined_by_both_keys_alone(
    office: Any, home: DonorHome, worker: Home
) -> None:
    device = Identity.load(worker.identity)
    async with open_desk(home, worker, None, own_key=True) as desk:
        agreed = acts.consent(desk.run_id, device.peer_id, desk.signer)
        await desk.perform(acts.merge(desk.run_id, device, agreed))
        stranger = Identity.generate()
        for wrong, why in (
            (acts.consent(b"other", device.peer_id, desk.signer), "another run"),
            (acts.consent(desk.run_id, stranger.peer_id, desk.signer), "to take the account"),
            (acts.consent(desk.run_id, device.peer_id, device), "the same key"),
            (seal(wire.KeyConsent(run_id=desk.run_id, into=device.peer_id), stranger), "another"),
            (wire.Envelope(), "damaged"),
        ):
            with pytest.raises(UsageError, match=why):
                acts.merge(desk.run_id, device, wrong)
    assert [one.into for one in office.records(wire.AccountMerge)] == [
        Identity.load(home.key).peer_id
    ]


async def test_a_key_without_an_account_takes_the_devices_over(
    office: Any, home: DonorHome, worker: Home
) -> None:
    device, into = Identity.load(worker.identity), Identity.load(home.key)
    office.refuse = lambda act: "not enrolled" if isinstance(act, wire.AccountMerge) else ""
    async with open_desk(home, worker, None) as desk:
        line = consent_line(desk.run_id, device.peer_id, into)
        outcome = await join_accounts(desk, device, read_consent(f" {line}\n"))
    (change,) = office.records(wire.KeyChange)
    assert (change.old, change.new, outcome.leaf) == (device.peer_id, into.peer_id, 100)
    assert Identity.load(home.key).peer_id == into.peer_id
    for damaged in (line[:-5], "barnraise-consent:", f"{line}{'A' * 5000}", "barnraise-device:AA"):
        with pytest.raises(UsageError):
            acts.merge(office.link.run_id, device, read_consent(damaged))


async def test_accounts_that_may_not_be_joined_say_why(
    office: Any, home: DonorHome, worker: Home
) -> None:
    device = Identity.load(worker.identity)
    office.refuse = lambda act: f"no {type(act).__name__}"
    async with open_desk(home, worker, None) as desk:
        agreed = acts.consent(desk.run_id, device.peer_id, desk.signer)
        with pytest.raises(Refused, match="no AccountMerge"):
            await join_accounts(desk, device, agreed)


# ---- teams and profiles ----


async def test_a_membership_that_was_taken_is_not_dated_anew(
    office: Any, home: DonorHome, worker: Home
) -> None:
    async with open_desk(home, worker, None) as desk:
        office.lose_answers = 1
        await desk.perform(acts.membership(desk.run_id, desk.signer, b"t" * 16))
        office.stale = 1
        await desk.perform(acts.membership(desk.run_id, desk.signer, b""))
        assert team_now(desk.journal) is None
    joined, left = office.records(wire.TeamMembership)
    assert (joined.team, left.team) == (b"t" * 16, b"")
    assert office.seen[0] == office.seen[1]  # as it was signed
    assert office.seen[2] != office.seen[3]  # nobody had taken it: with a new date


async def test_a_profile_keeps_what_is_not_changed_and_is_forgotten_whole(
    office: Any, home: DonorHome, worker: Home
) -> None:
    async with open_desk(home, worker, None) as desk:
        first = wire.ProfileUpdate(display_name="Ada", about="Zebrafinch")
        await desk.perform(acts.profile(desk.run_id, desk.signer, first))
        changed = newest_profile(desk.journal, b"")
        changed.url = "https://ada.example.org"
        await desk.perform(acts.profile(desk.run_id, desk.signer, changed))
        assert newest_profile(desk.journal, b"").about == "Zebrafinch"
    shown = office.records(wire.ProfileUpdate)[-1]
    assert (shown.display_name, shown.url) == ("Ada", "https://ada.example.org")


async def test_erased_words_are_nowhere_on_this_machine(
    office: Any, home: DonorHome, worker: Home
) -> None:
    environment = {
        **os.environ,
        "BARNRAISE_DONOR_HOME": str(home.path),
        "BARNRAISE_HOME": str(worker.path),
    }

    async def donor(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "barnraise", "donor", *arguments),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        return out.decode()

    await donor("profile", "set", "--about", "Zebrafinch")
    assert office.records(wire.ProfileUpdate)[-1].display_name == "Ada"  # as the worker joined
    await donor("profile", "erase", "--yes")
    assert office.records(wire.ProfileUpdate)[-1].erase
    kept = b"".join(file.read_bytes() for file in home.path.rglob("*") if file.is_file())
    assert b"Zebrafinch" not in kept
    assert WorkerConfig.load(worker.config).name == ""
    assert '"name": ""' in await donor("profile", "show", "--json")


# ---- the folder and its run ----


async def test_a_folder_is_for_one_run_and_remembers_it(
    office: Any, home: DonorHome, worker: Home, tmp_path: Path
) -> None:
    nowhere = Home(tmp_path / "none")
    with pytest.raises(UsageError, match="no run was joined"):
        async with open_desk(home, nowhere, None):
            pass
    async with open_desk(home, worker, None):
        pass
    async with open_desk(home, nowhere, None) as desk:
        assert desk.link == office.link
    other = f"barnraise://127.0.0.1:9/{'0' * 64}#root={office.link.root}"
    with pytest.raises(UsageError, match="another --home"):
        async with open_desk(home, worker, other):
            pass
    impostor = str(office.link).replace(office.link.root, Identity.generate().peer_id)
    with pytest.raises(UsageError, match="another root key"):
        async with open_desk(home, worker, impostor):
            pass


def test_a_damaged_journal_is_not_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "acts.db"
    path.write_bytes(b"not a database, but the ids of private pledges were in it" * 100)
    with pytest.raises(UsageError, match="do not delete it"):
        ActJournal(path)
    path.unlink()
    ActJournal(path).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = '99' WHERE key = 'version'")
    database.close()
    with pytest.raises(UsageError, match="upgrade barnraise"):
        ActJournal(path)


# ---- showing a private pledge ----


def test_who_has_the_file_can_check_whose_pledge_it_is(tmp_path: Path) -> None:
    donor = Identity.generate()
    draft = acts.pledge(
        b"r" * 32, b"c" * 16, donor, microcredits=5, until_s=UNTIL_S, visibility="secret"
    )
    journal = ActJournal(tmp_path / "acts.db")
    act = journal.sign(draft.kind, draft.intent, donor.peer_id, seal(draft.record, donor))
    journal.recorded(act, 12, "")
    (pledge,) = own_pledges(journal)
    journal.close()
    shown = tmp_path / "pledge.json"
    shown.write_text(show_file(pledge))

    signed, leaf = read_shown(shown)
    assert (signed.signer, signed.record.microcredits, leaf) == (donor.peer_id, 5, 12)

    thief = Identity.generate()
    stolen = seal(draft.record, thief)  # says that it is the donor's, and is not
    for text in (
        shown.read_text().replace(act.envelope.signatures[0].keyid, thief.peer_id),
        show_file(pledge).replace("payload", "load"),
        "[]",
        "{" * 10_000,
    ):
        shown.write_text(text)
        with pytest.raises(UsageError):
            read_shown(shown)
    shown.write_text(show_file(type(pledge)(pledge.record, _with(act, stolen))))
    with pytest.raises(UsageError, match="did not sign"):
        read_shown(shown)
    assert act.state == ActState.SIGNED


def _with(act: Any, envelope: wire.Envelope) -> Any:
    return type(act)(**{**act.__dict__, "envelope": envelope})


async def test_a_founder_names_its_team(office: Any, home: DonorHome, worker: Home) -> None:
    async with open_desk(home, worker, None) as desk:
        done = await desk.perform(acts.founding(desk.run_id, desk.signer, "Owls"))
        team = wire.TeamFounding.FromString(done.envelope.payload).team
        named = wire.ProfileUpdate(team=team, display_name="Owls")
        await desk.perform(acts.profile(desk.run_id, desk.signer, named))
        assert founded_teams(desk.journal) == {team.hex(): "Owls"}
        assert newest_profile(desk.journal, b"").display_name == ""


# ---- amounts and dates ----


def test_amounts_are_exact_and_never_rounded_up() -> None:
    assert microcredits(parse_amount("200")) == 200_000_000
    assert microcredits(parse_amount("0.000001")) == 1
    assert microcredits(parse_amount("1.5"), 333_333) == 499_999
    assert in_credits(1_234_500_000) == "1,234.5 credits"
    assert in_credits(0) == "0 credits"
    for wrong in ("", "0", "-1", "1e3", "1,5", "0.0000001", "NaN", "1" * 20, "٣"):
        with pytest.raises(UsageError, match="amount"):
            microcredits(parse_amount(wrong))
    with pytest.raises(UsageError, match="too small or too large"):
        microcredits(parse_amount("9999999999999999"))


def test_a_day_is_promised_to_its_end() -> None:
    end_s = end_of_day_s("2027-03-01", 0)
    assert end_s == 1_803_945_600  # 2027-03-02T00:00:00Z
    assert last_day(end_s) == "2027-03-01"
    assert last_day(2**64 - 1) == "9999-12-31"  # what somebody showed may say anything
    for wrong in ("2027-02-30", "1.3.2027", "9999-12-31x", "9999-12-31"):
        with pytest.raises(UsageError):
            end_of_day_s(wrong, 0)
    with pytest.raises(UsageError, match="is past"):
        end_of_day_s("2027-03-01", end_s)
