"""What the pages of teams and of sponsored pools show."""

from __future__ import annotations

from bisect import bisect_left

from pydantic import BaseModel, Field

from ledger.leaderboard.held import Held, Paged, held
from ledger.leaderboard.names import About
from ledger.leaderboard.reader import Reading
from ledger.pools import Pool
from ledger.tally import Amounts, Tally
from ledger.teams import Team


class TeamRow(Held):
    """A team: credit of its members that came while they were of it."""

    rank: int
    team: str
    name: str | None
    founder: str = Field(description="key that its person is shown under")
    members: int
    tokens: int
    contributions: int
    founded_s: int


class Teams(Paged):
    """One page of the board of teams."""

    teams: list[TeamRow]


class MemberRow(Held):
    """Somebody who is or was of a team, and what came for the team meanwhile."""

    donor: str
    name: str | None
    is_member: bool
    tokens: int
    contributions: int


class TeamPage(Paged):
    """A team with a page of its members, present ones first, then by credit."""

    team: TeamRow
    url: str | None
    about: str
    members: list[MemberRow]


class PoolRow(Held):
    """A pool: money that pays devices, and their credit, which is divided among who gave it."""

    pool: str = Field(description="donor key of its devices")
    name: str | None
    campaign: str
    currency: str
    raised_minor: int
    donations: int = Field(description="that stand")
    devices: int
    divided_microcredits: int = Field(description="of pending and final credit, among who gave")
    rest_microcredits: int = Field(description="credited before any donation: the pool's own")
    void: str | None = Field(description="why it counts no more")


class Pools(BaseModel):
    """Every pool, in the order in which they came."""

    size: int
    pools: list[PoolRow]


def teams(reading: Reading, *, page: int, per_page: int) -> Teams:
    """One page of the board of teams, by credit; ties by id."""
    ranked = _ranked(reading)
    first = (page - 1) * per_page
    return Teams(
        size=reading.board.size,
        total=len(ranked),
        page=page,
        per_page=per_page,
        teams=[_team_row(reading, team, ranked) for team in ranked[first : first + per_page]],
    )


def team_page(reading: Reading, name: str, *, page: int, per_page: int) -> TeamPage | None:
    """A team, or None when there is none of that id."""
    team = reading.board.crowd.teams.teams.get(name)
    if team is None:
        return None
    members = _members(reading, team)
    first = (page - 1) * per_page
    about = reading.names.teams.get(name, About(""))
    return TeamPage(
        size=reading.board.size,
        total=len(members),
        page=page,
        per_page=per_page,
        team=_team_row(reading, team, _ranked(reading)),
        url=about.url,
        about=about.about,
        members=members[first : first + per_page],
    )


def _ranked(reading: Reading) -> list[Team]:
    found = reading.board.crowd.teams.teams.values()
    return sorted(found, key=lambda team: (-team.tally.total_microcredits, team.team))


def _team_row(reading: Reading, team: Team, ranked: list[Team]) -> TeamRow:
    mine = team.tally.total_microcredits
    return TeamRow(
        rank=1 + bisect_left(ranked, -mine, key=lambda other: -other.tally.total_microcredits),
        team=team.team,
        name=reading.names.team(team.team),
        founder=reading.board.people.owner_of(team.founder),
        members=len(team.members),
        **held(team.tally),
        tokens=team.tally.tokens,
        contributions=team.tally.contributions,
        founded_s=team.leaf.at_s,
    )


def _members(reading: Reading, team: Team) -> list[MemberRow]:
    owner_of = reading.board.people.owner_of
    tallies: dict[str, list[Tally]] = {owner: [] for owner in team.members}
    for key, tally in team.by_donor.items():
        tallies.setdefault(owner_of(key), []).append(tally)
    rows = [
        MemberRow(
            donor=owner,
            name=reading.names.donor(owner),
            is_member=owner in team.members,
            **held(sum(map(Amounts.of, mine), Amounts())),
            tokens=sum(tally.tokens for tally in mine),
            contributions=sum(tally.contributions for tally in mine),
        )
        for owner, mine in tallies.items()
    ]
    return sorted(rows, key=lambda row: (not row.is_member, -row.total_microcredits, row.donor))


def pools(reading: Reading) -> Pools:
    """Every pool."""
    found = reading.board.crowd.pools.pools.values()
    return Pools(size=reading.board.size, pools=[_pool_row(reading, pool) for pool in found])


def _pool_row(reading: Reading, pool: Pool) -> PoolRow:
    donor = reading.board.donors.get(pool.pool)
    all_of_it = Amounts.of(donor.tally) if donor else Amounts()
    divided = pool.given_away.total_microcredits
    return PoolRow(
        pool=pool.pool,
        name=reading.names.donor(pool.pool),
        campaign=pool.leaf.campaign,
        currency=pool.leaf.currency,
        raised_minor=pool.raised_minor,
        donations=sum(not given.voided for given in pool.donations),
        devices=len(donor.workers) if donor else 0,
        **held(all_of_it),
        divided_microcredits=divided,
        rest_microcredits=all_of_it.total_microcredits - divided,
        void=pool.voided[1].reason if pool.voided else None,
    )
