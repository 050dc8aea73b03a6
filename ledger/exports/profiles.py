"""What people chose to show, as exports need it: names beside the log, and who was forgotten.

Invariant: whoever is among the erased, and did not choose a name again, has none here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ledger import published


@dataclass(frozen=True, slots=True)
class Shown:
    """What somebody, or a team, chose to show; hostile until it is escaped."""

    name: str
    url: str = ""
    about: str = ""
    show_devices: bool = False


@dataclass(frozen=True)
class Profiles:
    """Everything that is shown and is not in the log."""

    donors: dict[str, Shown] = field(default_factory=dict)
    teams: dict[str, Shown] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)  # Unix seconds, by key or team

    def is_erased(self, shown_as: str, subjects: Iterable[str]) -> bool:
        """Whether somebody was forgotten, and did not choose a name again."""
        return shown_as not in self.donors and not self.erased.keys().isdisjoint(subjects)


def shown_profiles(profiles: published.Profiles) -> Profiles:
    """By key and team, from the database or a mirror."""
    return Profiles(
        {
            row.donor: Shown(row.display_name, row.url, row.about, row.show_devices)
            for row in profiles.profiles
        },
        {row.team: Shown(row.display_name, row.url, row.about) for row in profiles.teams},
        {row.subject: row.erased_at_s for row in profiles.erased},
    )
