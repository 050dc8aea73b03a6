"""What a donor's page shows: all keys of one person together."""

from __future__ import annotations

from pydantic import BaseModel, Field

from ledger.leaderboard.campaigns import DonationRow, PledgeRow, donation_rows, pledge_rows
from ledger.leaderboard.donors import DonorRow, donor_row
from ledger.leaderboard.held import Held, held
from ledger.leaderboard.names import About
from ledger.leaderboard.reader import Reading
from ledger.tally import Credit
from protocol.identity import PeerId


class Device(Held):
    """One device of a donor, who chose to show them."""

    worker: str
    device_class: str
    passes: dict[str, int] = Field(description="consecutive audited passes, by execution class")
    blocked: str | None = Field(description="why it takes no part any more")
    tokens: int
    enrolled_s: int
    last_round: int | None


class TakenBack(BaseModel):
    """Why credit was taken back."""

    verdict_leaf: int
    reason: str = Field(description="a stable word")
    status: str = Field(description="forfeited or unpaid")
    microcredits: int


class Energy(BaseModel):
    """As the devices tell it themselves; nobody verifies it."""

    milliwatt_hours: int = Field(description="for the tokens below; by the devices' own meters")
    tokens: int = Field(description="of the devices that tell it, as they say: verified units")
    devices: int = Field(description="that tell it")


class DonorPage(BaseModel):
    """A person, and what it chose to show."""

    size: int
    donor: DonorRow
    keys: list[str] = Field(description="of the person, the one that it is shown under first")
    url: str | None
    about: str
    blocked: str | None = Field(description="why the donor takes no part any more")
    devices: list[Device] | None = Field(description="null: the donor does not show them")
    energy: Energy | None = Field(description="null: no device of this donor tells it")
    taken_back: list[TakenBack]
    pledges: list[PledgeRow]
    donations: list[DonationRow]


def donor_page(reading: Reading, key: PeerId) -> DonorPage | None:
    """A person by any of its keys, or None when the log knows no such key."""
    owner = reading.snapshot.owner(key)
    if owner is None:
        return None
    board = reading.board
    keys = board.people.keys_of(owner)
    about = reading.names.donors.get(owner, About(""))
    return DonorPage(
        size=board.size,
        donor=donor_row(reading.snapshot, reading.snapshot.people[owner]),
        keys=list(keys),
        url=about.url,
        about=about.about,
        blocked=next(filter(None, (_blocked(reading, one) for one in keys)), None),
        devices=_devices(reading, keys) if about.show_devices else None,
        energy=_energy(reading, keys),
        taken_back=_taken_back(reading, keys),
        pledges=pledge_rows(reading, board.crowd.pledges.of(owner)[::-1]),
        donations=donation_rows(reading, list(board.crowd.pools.donations_of(owner))[::-1]),
    )


def _devices(reading: Reading, keys: tuple[PeerId, ...]) -> list[Device]:
    board = reading.board
    donors = [board.donors[key] for key in keys if key in board.donors]
    names = dict.fromkeys(worker for donor in donors for worker in donor.workers)
    return [
        Device(
            worker=worker.worker,
            device_class=worker.device_class,
            passes={name: count for name, count in worker.passes.items() if count},
            blocked=_blocked(reading, worker.worker),
            **held(worker.tally),
            tokens=worker.tally.tokens,
            enrolled_s=worker.enrolled_s,
            last_round=worker.last_round,
        )
        for worker in (board.workers[name] for name in names)
    ]


def _energy(reading: Reading, keys: tuple[PeerId, ...]) -> Energy | None:
    """Of the devices that the record knows as this person's, together."""
    donors = reading.board.donors
    owned = {worker: key for key in keys if key in donors for worker in donors[key].workers}
    said = [(key, reading.names.energy.get(worker)) for worker, key in owned.items()]
    told = [one for key, one in said if one is not None and one.donor == key]
    if not told:
        return None
    return Energy(
        milliwatt_hours=sum(one.milliwatt_hours for one in told),
        tokens=sum(one.tokens for one in told),
        devices=len(told),
    )


def _taken_back(reading: Reading, keys: tuple[PeerId, ...]) -> list[TakenBack]:
    """Credit that is forfeited or unpaid now, by the verdict that explains it."""
    sums: dict[tuple[int, str], int] = {}
    for credit in _lost(reading, keys):
        at = (credit.reversed_by or 0, credit.status)
        sums[at] = sums.get(at, 0) + credit.leaf.microcredits
    judgements = reading.board.audits.judgements
    return [
        TakenBack(
            verdict_leaf=leaf,
            reason=judgements[leaf].leaf.reason,
            status=status,
            microcredits=microcredits,
        )
        for (leaf, status), microcredits in sorted(sums.items(), reverse=True)
    ]


def _lost(reading: Reading, keys: tuple[PeerId, ...]) -> list[Credit]:
    board = reading.board
    if not any(key in board.donors and _has_lost(reading, key) for key in keys):
        return []  # most: no walk over all credit for them
    return [
        credit
        for credit in board.accounts.credits.values()
        if credit.leaf.donor in keys and credit.reversed_by is not None
    ]


def _has_lost(reading: Reading, key: PeerId) -> bool:
    tally = reading.board.donors[key].tally
    return bool(tally.forfeited_microcredits or tally.unpaid_microcredits)


def _blocked(reading: Reading, key: PeerId) -> str | None:
    leaf = reading.board.audits.blocked.get(key)
    return None if leaf is None else leaf.reason
