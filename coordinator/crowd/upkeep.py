"""The end of a campaign by its own terms, said in the record by the campaign's key.

The fold knows by itself from when on nothing counts for a campaign (:mod:`ledger.campaigns`); the
leaf says so to people, with the outcome. It is written at the first look after the goal was reached
or the time was over, once: whether it is there is read from the record, in the transaction that
writes it.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.crowd.book import Book
from coordinator.turn import Turn
from ledger.acts import open_act
from ledger.campaigns import Campaign
from ledger.schema import LogLeaf
from protocol.envelope import seal
from protocol.errors import BadSignature, PeerFault, UsageError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire

_log = structlog.get_logger()

CampaignKey = Callable[[], Identity | None]
"""The campaign's key as it is now: it may be made, or renewed, while the server runs."""


def has_campaigns(session: Session) -> bool:
    """Whether the record has a campaign besides the manifest's own."""
    kinds = select(LogLeaf.leaf_index).where(LogLeaf.kind == "campaign").limit(1)
    return session.scalar(kinds) is not None


class CampaignUpkeep:
    """Ends campaigns whose terms say so."""

    def __init__(self, book: Book, run_id: bytes, key: CampaignKey) -> None:
        self._book = book
        self._run_id = run_id
        self._key = key
        self._complained = False

    def end_campaigns(self, turn: Turn) -> None:
        """Record the end of every campaign that is over by its terms and was not said to be."""
        self._book.follow(turn.session)
        for campaign in list(self._book.board.campaigns.campaigns.values()):
            outcome = due_outcome(campaign, int(turn.now_s))
            if outcome is not None:
                self._end(turn, campaign, outcome)

    def _end(self, turn: Turn, campaign: Campaign, outcome: str) -> None:
        key = self._key()
        record = wire.CampaignEnd(
            run_id=self._run_id,
            campaign=bytes.fromhex(campaign.campaign),
            outcome=outcome,
            at_s=int(turn.now_s),
        )
        try:
            if key is None:
                raise BadSignature("keys/campaign.key is not in the run's folder")
            recorded = self._book.record(turn.session, open_act(seal(record, key)), turn.now_s)
        except (PeerFault, UsageError) as error:
            if not self._complained:
                self._complained = True
                _log.warning(
                    "campaign_end_unsigned",
                    campaign=campaign.campaign,
                    problem=str(error),
                    advice="run 'barnraise coordinator renew-keys' with root.key in the folder",
                )
            return
        turn.then.leaves_added = True
        _log.info(
            "campaign_ended",
            campaign=campaign.campaign,
            outcome=outcome,
            leaf=recorded.leaf_index,
        )


def due_outcome(campaign: Campaign, now_s: int) -> str | None:
    """What is to be said of a campaign that is over by its terms; None: nothing, or not yet."""
    terms = campaign.leaf
    if terms is None or campaign.end is not None:
        return None
    if not campaign.is_over and not campaign.ends_by_terms(now_s):
        return None
    if campaign.is_reached:
        return "reached"
    # A reached goal may be taken back by a verdict: then it is missed once the time is over.
    return "missed" if terms.ends_s is not None and now_s > terms.ends_s else None
