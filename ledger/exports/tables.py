"""The tables of a dump: one row a person, team, round, credit, pledge, donation, tombstone.

Invariant: a row has the fields of its table's :data:`COLUMNS`, all of them, in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ledger.exports.profiles import Profiles, Shown
from ledger.fold import Board
from ledger.standing import Standing, standings

Value = str | int | bool | None | list[str]
Row = Mapping[str, Value]
Table = Callable[[Board, Profiles], Iterator[Row]]


def _amounts(of: object) -> dict[str, Value]:
    return {name: getattr(of, name) for name in _AMOUNTS}


_AMOUNTS = (
    "pending_microcredits",
    "final_microcredits",
    "forfeited_microcredits",
    "unpaid_microcredits",
)


def _shown(shown: Shown | None) -> dict[str, Value]:
    if shown is None:
        return {"name": None, "url": None, "about": None}
    return {"name": shown.name or None, "url": shown.url or None, "about": shown.about or None}


def _donors(board: Board, profiles: Profiles) -> Iterator[Row]:
    """Persons, by the key that they are shown under."""
    for person in standings(board):
        yield _donor(person, profiles)


def _donor(person: Standing, profiles: Profiles) -> Row:
    erased = profiles.is_erased(person.owner, person.keys)
    times = [profiles.erased[key] for key in person.keys if key in profiles.erased]
    return {
        "donor": person.owner,
        "keys": list(person.keys),
        **_shown(profiles.donors.get(person.owner)),
        "erased_at_s": max(times) if erased else None,
        "team": person.team,
        "is_pool": person.is_pool,
        **_amounts(person),
        "sponsored_microcredits": person.sponsored.total_microcredits,
        "given_away_microcredits": person.given_away.total_microcredits,
        "training_microcredits": person.own.training_microcredits,
        "reducing_microcredits": person.own.reducing_microcredits,
        "probation_microcredits": person.own.probation_microcredits,
        "tokens": person.own.tokens,
        "contributions": person.own.contributions,
        "devices": len(person.workers),
        "enrolled_s": person.enrolled_s,
        "last_credit_s": person.last_credit_s,
    }


def _teams(board: Board, profiles: Profiles) -> Iterator[Row]:
    for team in board.crowd.teams.teams.values():
        yield {
            "team": team.team,
            **_shown(profiles.teams.get(team.team)),
            "erased_at_s": (
                profiles.erased.get(team.team) if team.team not in profiles.teams else None
            ),
            "founder": board.people.owner_of(team.founder),
            "members": len(team.members),
            **_amounts(team.tally),
            "tokens": team.tally.tokens,
            "founded_s": team.leaf.at_s,
            "leaf_index": team.leaf_index,
        }


def _rounds(board: Board, _profiles: Profiles) -> Iterator[Row]:
    for entry in board.rounds.values():
        leaf = entry.leaf
        yield {
            "round": leaf.round,
            "outcome": leaf.outcome,
            "members": leaf.members,
            "tokens": entry.tokens,
            "merged_tokens": leaf.merged_tokens,
            "validation_loss_micronats": leaf.validation_loss_micronats,
            "started_at_s": leaf.started_at_s,
            "ended_at_s": leaf.ended_at_s,
            "state_digest": leaf.state_digest,
            "roster_digest": leaf.roster_digest,
            "result_digest": leaf.result_digest,
            "leaf_index": entry.leaf_index,
        }


def _credits(board: Board, _profiles: Profiles) -> Iterator[Row]:
    for credit in board.accounts.credits.values():
        paid = credit.leaf
        yield {
            "leaf_index": credit.index,
            "at_s": paid.at_s,
            "work": paid.work,
            "round": paid.round,
            "assignment_id": paid.assignment_id,
            "worker": paid.worker,
            "donor": paid.donor,
            "tokens": paid.tokens,
            "chunks": paid.chunks,
            "microcredits": paid.microcredits,
            "status": credit.status,
            "status_leaf": credit.index if credit.changed_by is None else credit.changed_by,
        }


def _pledges(board: Board, _profiles: Profiles) -> Iterator[Row]:
    for pledge in board.crowd.pledges.pledges.values():
        leaf = pledge.leaf
        if leaf.visibility != "secret":
            yield {
                "pledge": pledge.pledge,
                "campaign": leaf.campaign,
                "donor": board.people.owner_of(leaf.donor) if leaf.donor else None,
                "visibility": leaf.visibility,
                "revision": leaf.revision,
                "microcredits": leaf.microcredits,
                "delivered_microcredits": pledge.delivered_microcredits,
                "state": pledge.state(board.newest_s),
                "until_s": leaf.until_s,
                "at_s": leaf.at_s,
                "leaf_index": pledge.leaf_index,
            }


def _donations(board: Board, _profiles: Profiles) -> Iterator[Row]:
    board.crowd.pools.refresh()
    for donation in board.crowd.pools.donations.values():
        leaf = donation.leaf
        if leaf.visibility != "secret":
            yield {
                "donation": leaf.donation,
                "campaign": leaf.campaign,
                "donor": board.people.owner_of(leaf.donor) if leaf.donor else None,
                "visibility": leaf.visibility,
                "pool": leaf.pool,
                "amount_minor": leaf.amount_minor,
                "currency": leaf.currency,
                "received_s": leaf.received_s,
                "sponsored_microcredits": donation.sponsored.total_microcredits,
                "voided": donation.voided is not None,
                "treasurer": leaf.treasurer,
                "at_s": leaf.at_s,
                "leaf_index": donation.leaf_index,
            }


def _erased(_board: Board, profiles: Profiles) -> Iterator[Row]:
    for subject, erased_at_s in sorted(profiles.erased.items()):
        yield {"subject": subject, "erased_at_s": erased_at_s}


TABLES: dict[str, Table] = {
    "donors": _donors,
    "teams": _teams,
    "rounds": _rounds,
    "credits": _credits,
    "pledges": _pledges,
    "donations": _donations,
    "erased": _erased,
}

_NAMED = ("name", "url", "about", "erased_at_s")
COLUMNS: dict[str, tuple[str, ...]] = {
    "donors": (
        *("donor", "keys", *_NAMED, "team", "is_pool", *_AMOUNTS),
        *("sponsored_microcredits", "given_away_microcredits", "training_microcredits"),
        *("reducing_microcredits", "probation_microcredits", "tokens", "contributions"),
        *("devices", "enrolled_s", "last_credit_s"),
    ),
    "teams": (
        *("team", *_NAMED, "founder", "members", *_AMOUNTS, "tokens", "founded_s", "leaf_index"),
    ),
    "rounds": (
        *("round", "outcome", "members", "tokens", "merged_tokens", "validation_loss_micronats"),
        *("started_at_s", "ended_at_s", "state_digest", "roster_digest", "result_digest"),
        "leaf_index",
    ),
    "credits": (
        *("leaf_index", "at_s", "work", "round", "assignment_id", "worker", "donor", "tokens"),
        *("chunks", "microcredits", "status", "status_leaf"),
    ),
    "pledges": (
        *("pledge", "campaign", "donor", "visibility", "revision", "microcredits"),
        *("delivered_microcredits", "state", "until_s", "at_s", "leaf_index"),
    ),
    "donations": (
        *("donation", "campaign", "donor", "visibility", "pool", "amount_minor", "currency"),
        *("received_s", "sponsored_microcredits", "voided", "treasurer", "at_s", "leaf_index"),
    ),
    "erased": ("subject", "erased_at_s"),
}
