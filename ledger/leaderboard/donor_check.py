"""What a donor's page tells the script that recomputes its totals (static/proof/donor.js)."""

from __future__ import annotations

from ledger.leaderboard.reader import Reading
from ledger.standing import standing
from protocol.identity import PeerId


def donor_check(reading: Reading, owner: PeerId) -> dict[str, str | int]:
    """Data of the panel: credit of the person's own keys, and what money moved, in microcredits.

    Args:
        reading: the view that the page shows.
        owner: the key that the person is shown under.
    """
    found, manifest = standing(reading.board, owner), reading.board.manifest
    assert manifest is not None
    return {
        "check": "donor",
        "root": manifest.root,
        "size": reading.board.size,
        "keys": " ".join(found.keys),
        "pending": found.own.pending_microcredits,
        "final": found.own.final_microcredits,
        "forfeited": found.own.forfeited_microcredits,
        "unpaid": found.own.unpaid_microcredits,
        "sponsored": found.sponsored.total_microcredits,
        "given": found.given_away.total_microcredits,
    }
