"""What several daemons of one machine say, as one status: sums, and each member's own.

Pure: it takes what the members' control sockets answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_AT_WORK = ("training", "reducing", "committing", "fetching")
_SUMS = ("tokens_per_s", "units_committed", "tokens_committed", "receipts_pending", "receipts_held")
_PART_SUMS = {
    "energy": ("watt_hours",),
    "network": (
        *("up_bytes_today", "down_bytes_today", "up_kbit_s", "down_kbit_s", "quota_left_bytes"),
    ),
    "cache": (
        *("bytes", "files", "limit_bytes"),
        *("shards_found", "shards_fetched", "shards_ahead"),
    ),
    "credit": ("verified_microcredits", "rejected_units"),
}


def merge_status(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One status for the machine.

    The machine does what the first member at work does. If none works it does nothing for the
    reason that the first member has; each member's own stands beside it.
    """
    lead = min(members, key=_rank)
    merged = {
        **lead,
        **{name: sum(member.get(name, 0) for member in members) for name in _SUMS},
        "connected": all(member.get("connected", False) for member in members),
        "finishing": any(member.get("finishing", False) for member in members),
        "paused": all(member.get("paused", False) for member in members),
        "members": list(members),
    }
    merged["parts"] = {**lead.get("parts", {}), **_part_sums(members)}
    return merged


def _part_sums(members: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What parts tell that can be added up; of each, what every member has alike is kept."""
    found: dict[str, dict[str, Any]] = {}
    for part, names in _PART_SUMS.items():
        told = [member["parts"][part] for member in members if part in member.get("parts", {})]
        if told:
            sums = {name: _sum(one.get(name) for one in told) for name in names}
            found[part] = {**told[0], **sums}
    if "energy" in found:
        # A mean of the members' would be of nothing that anybody measured.
        found["energy"].pop("watt_hours_per_million_verified_tokens", None)
    return found


def _rank(member: Mapping[str, Any]) -> int:
    phase = member.get("phase", "waiting")
    return _AT_WORK.index(phase) if phase in _AT_WORK else len(_AT_WORK)


def _sum(values: Any) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
