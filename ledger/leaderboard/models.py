"""What pages and the API show, computed from a :class:`~ledger.leaderboard.reader.Reading`.

Amounts are integers in the units of their names; ``name`` is the only field that does not come
from the log. The HTML pages and ``/api/v1`` are made from the same objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from ledger import campaigns
from ledger.credit import flops_per_token, working_parameters
from ledger.donors import all_names, names_of
from ledger.leaderboard.reader import Reading
from ledger.tally import Tally
from protocol.identity import PeerId

Sort = Literal["credit", "tokens", "contributions", "since", "last", "name"]


class Held(BaseModel):
    """What became of credit. What somebody has is pending and final together."""

    pending_microcredits: int = Field(description="not yet final; forfeited if cheating is proven")
    final_microcredits: int = Field(description="verified: audits and time have passed")
    forfeited_microcredits: int = Field(description="taken back: an audit proved cheating")
    unpaid_microcredits: int = Field(description="taken back: what an audit needed was not there")

    @property
    def total_microcredits(self) -> int:
        return self.pending_microcredits + self.final_microcredits


class Campaign(Held):
    """The campaign and the run, as of ``size`` leaves."""

    size: int = Field(description="leaves under the signed head that these numbers are folded from")
    title: str
    purpose: str
    run_id: str
    run_name: str
    origin: str
    root: str = Field(description="fingerprint of the run's root key")
    description: str
    licence: str
    model_type: str
    working_parameters: int
    flops_per_token: int
    goal_microcredits: int
    pledged_microcredits: int
    rate_microcredits_per_day: int | None
    remaining_s: int | None = Field(description="at that rate, until enough is trained")
    tokens: int = Field(description="merged into the model")
    donors: int
    devices: int
    settled_rounds: int
    skipped_rounds: int
    members_last_round: int
    validation_loss_micronats: int | None
    opened_s: int
    newest_s: int
    released: bool


class DonorRow(Held):
    """One donor on the board."""

    rank: int
    donor: str
    name: str | None
    training_microcredits: int = Field(description="credited, whatever became of it")
    reducing_microcredits: int
    probation_microcredits: int
    tokens: int
    contributions: int
    devices: int
    enrolled_s: int
    last_credit_s: int | None


class Donors(BaseModel):
    """One page of the board."""

    size: int
    total: int = Field(description="donors that match")
    page: int
    per_page: int
    donors: list[DonorRow]

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // self.per_page))


class Device(Held):
    """One device of a donor."""

    worker: str
    device_class: str
    passes: dict[str, int] = Field(description="consecutive audited passes, by execution class")
    blocked: str | None = Field(description="why it takes no part any more")
    tokens: int
    enrolled_s: int
    last_round: int | None


class DonorPage(BaseModel):
    """A donor with its devices."""

    size: int
    donor: DonorRow
    blocked: str | None = Field(description="why the donor takes no part any more")
    devices: list[Device]


def campaign(reading: Reading) -> Campaign:
    """The campaign page's numbers."""
    board, manifest = reading.board, reading.board.manifest
    state = campaigns.progress(board)
    assert manifest is not None
    assert state is not None
    settled = [entry.leaf for entry in board.rounds.values() if entry.leaf.outcome == "settled"]
    losses = [leaf.validation_loss_micronats for leaf in settled]
    known = [loss for loss in losses if loss is not None]
    return Campaign(
        size=board.size,
        title=state.title,
        purpose=state.purpose,
        run_id=board.run_id,
        run_name=manifest.name,
        origin=manifest.origin,
        root=manifest.root,
        description=manifest.description,
        licence=manifest.licence,
        model_type=str(manifest.model_config_json["model_type"]),
        working_parameters=working_parameters(manifest.model_config_json),
        flops_per_token=flops_per_token(manifest.model_config_json, manifest.sequence_length),
        goal_microcredits=state.goal_microcredits,
        pledged_microcredits=state.pledged_microcredits,
        **held(board.total),
        rate_microcredits_per_day=state.rate_microcredits_per_day,
        remaining_s=state.remaining_s,
        tokens=board.merged_tokens,
        donors=len(board.donors),
        devices=len(board.workers),
        settled_rounds=len(settled),
        skipped_rounds=len(board.rounds) - len(settled),
        members_last_round=board.last_round.leaf.members if board.last_round else 0,
        validation_loss_micronats=known[-1] if known else None,
        opened_s=board.opened_s,
        newest_s=board.newest_s,
        released=bool(board.releases),
    )


def donor_rows(reading: Reading, keys: Sequence[PeerId]) -> list[DonorRow]:
    """Board rows of these donors, in this order, with one query for their names."""
    names = names_of(reading.session, keys)
    return [_donor_row(reading, key, names.get(key)) for key in keys]


def recent_donors(reading: Reading, count: int) -> list[DonorRow]:
    """Those credited last, newest first; ties by key."""
    donors = reading.board.donors
    credited = [key for key, donor in donors.items() if donor.last_credit_s is not None]
    credited.sort(key=lambda key: (-(donors[key].last_credit_s or 0), key))
    return donor_rows(reading, credited[:count])


def donors(reading: Reading, *, sort: Sort, search: str, page: int, per_page: int) -> Donors:
    """One page of the board. Ties are broken by rank, then key: the same on every page."""
    keys = list(reading.ranking)
    if search or sort == "name":
        names = all_names(reading.session)
        wanted = search.casefold()
        keys = [
            key
            for key in keys
            if wanted in key.casefold() or wanted in names.get(key, "").casefold()
        ]
        if sort == "name":  # those without a name last
            keys.sort(key=lambda key: (key not in names, names.get(key, "").casefold()))
    known = reading.board.donors
    if sort == "tokens":
        keys.sort(key=lambda key: -known[key].tally.tokens)
    elif sort == "contributions":
        keys.sort(key=lambda key: -known[key].tally.contributions)
    elif sort == "since":
        keys.sort(key=lambda key: known[key].enrolled_s)
    elif sort == "last":
        keys.sort(key=lambda key: -(known[key].last_credit_s or 0))
    first = (page - 1) * per_page
    return Donors(
        size=reading.board.size,
        total=len(keys),
        page=page,
        per_page=per_page,
        donors=donor_rows(reading, keys[first : first + per_page]),
    )


def donor_page(reading: Reading, key: PeerId) -> DonorPage | None:
    """A donor, or None when the log knows no such key."""
    donor = reading.board.donors.get(key)
    if donor is None:
        return None
    workers = [reading.board.workers[worker] for worker in donor.workers]
    return DonorPage(
        size=reading.board.size,
        donor=donor_rows(reading, [key])[0],
        blocked=_blocked(reading, key),
        devices=[
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
            for worker in workers
        ],
    )


def held(tally: Tally) -> dict[str, int]:
    """The fields of :class:`Held`."""
    return {name: getattr(tally, name) for name in Held.model_fields}


def _blocked(reading: Reading, key: PeerId) -> str | None:
    leaf = reading.board.audits.blocked.get(key)
    return None if leaf is None else leaf.reason


def _donor_row(reading: Reading, key: PeerId, name: str | None) -> DonorRow:
    donor = reading.board.donors[key]
    return DonorRow(
        rank=reading.ranks[key],
        donor=key,
        name=name,
        **held(donor.tally),
        training_microcredits=donor.tally.training_microcredits,
        reducing_microcredits=donor.tally.reducing_microcredits,
        probation_microcredits=donor.tally.probation_microcredits,
        tokens=donor.tally.tokens,
        contributions=donor.tally.contributions,
        devices=len(donor.workers),
        enrolled_s=donor.enrolled_s,
        last_credit_s=donor.last_credit_s,
    )
