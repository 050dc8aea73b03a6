"""Teams: who is of which, and what was credited to its members while they were.

Invariants:

* A person is of one team or of none. Credit counts for the team that its donor's person is of
  when the credit's leaf comes, and stays with it when the person leaves.
* A person keeps its team when its key changes; in a merge, the team of the key that takes stands.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ledger.crowd_records import MembershipLeaf, MergeLeaf, TeamLeaf
from ledger.people import Join, People
from ledger.tally import Tally
from protocol.errors import BadRecord
from protocol.identity import PeerId


@dataclass
class Team:
    """A team so far."""

    team: str
    leaf_index: int
    leaf: TeamLeaf
    founder: PeerId  # the key that signed; people.owner_of says how its person is shown
    members: set[PeerId] = field(default_factory=set)  # persons, by the key they are shown under
    tally: Tally = field(default_factory=Tally)
    by_donor: dict[PeerId, Tally] = field(default_factory=dict)  # by key, former members too


@dataclass
class Teams:
    """Every team, by its id."""

    people: People
    teams: dict[str, Team] = field(default_factory=dict)
    _team_of: dict[PeerId, Team] = field(default_factory=dict)

    def team_of(self, owner: PeerId) -> Team | None:
        """The team that a person is of now."""
        return self._team_of.get(owner)

    def check_team(self, leaf: TeamLeaf) -> None:
        if leaf.team in self.teams:
            raise BadRecord(f"team {leaf.team} was founded before")
        self.people.check_acts(leaf.donor)

    def take_team(self, index: int, leaf: TeamLeaf) -> None:
        self.teams[leaf.team] = Team(leaf.team, index, leaf, leaf.donor)

    def check_membership(self, leaf: MembershipLeaf) -> None:
        self.people.check_acts(leaf.donor)
        if leaf.team is not None and leaf.team not in self.teams:
            raise BadRecord(f"there is no team {leaf.team}")
        now = self._team_of.get(leaf.donor)
        if (now.team if now else None) == leaf.team:
            raise BadRecord(f"donor {leaf.donor} is of {'that' if now else 'no'} team already")

    def take_membership(self, leaf: MembershipLeaf) -> None:
        self._leave(leaf.donor)
        if leaf.team is not None:
            self._enter(leaf.donor, self.teams[leaf.team])

    def take_join(self, join: Join) -> None:
        """Keep the team of a person whose key changed."""
        left = self._leave(join.old)
        if left is not None and not isinstance(join.leaf, MergeLeaf):
            self._enter(join.new, left)

    def tallies_of(self, owner: PeerId, donor: PeerId) -> tuple[Tally, ...]:
        """What credit of a person's key counts in."""
        team = self._team_of.get(owner)
        if team is None:
            return ()
        mine = team.by_donor.get(donor)
        if mine is None:
            mine = team.by_donor[donor] = Tally()
        return team.tally, mine

    def _enter(self, owner: PeerId, team: Team) -> None:
        team.members.add(owner)
        self._team_of[owner] = team
        self.people.accounts.touched.add(owner)

    def _leave(self, owner: PeerId) -> Team | None:
        team = self._team_of.pop(owner, None)
        if team is not None:
            team.members.discard(owner)
            self.people.accounts.touched.add(owner)
        return team
