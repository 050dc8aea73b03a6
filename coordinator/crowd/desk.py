"""Acts of donors, as they come by the network.

Steps, all of which must hold, beyond the signature that every request needs:

1. it is an act that donors sign; what organisers sign, they record themselves;
2. the same act was not recorded before: else it is answered as then;
3. where the act is dated: it is fresh; and was not seen before, where the record does not tell;
4. its signer has an account in the run and is not blocked, with any of its keys;
5. the record takes it (:mod:`coordinator.crowd.book`);
6. the person has not acted too often today: the record is for ever, and everybody keeps all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from coordinator.blocks import reason_for
from coordinator.context import RunContext
from coordinator.crowd.book import Book, Recorded
from coordinator.crowd.profiles import check_profile, join_profiles, update_profile
from coordinator.crowd.upkeep import CampaignKey, CampaignUpkeep, has_campaigns
from coordinator.database import Database
from coordinator.requests import Buckets, Rate
from coordinator.turn import Turn
from ledger.acts import Act
from ledger.crowd_records import KeyRotationLeaf, MergeLeaf
from ledger.people import ends_of
from protocol.errors import BadRecord, BadSignature, NotFound, RateLimited, UsageError
from protocol.identity import PeerId
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

T = TypeVar("T")

_OF_DONORS = (
    wire.Pledge,
    wire.Voiding,
    wire.TeamFounding,
    wire.TeamMembership,
    wire.KeyChange,
    wire.AccountMerge,
    wire.ProfileUpdate,
)
_DAY_S = 24 * 3600
_LEAVES_PER_TURN = 500
"""So many are folded while everybody else waits for the database."""


class CheckFresh(Protocol):
    """Insists that a dated act is fresh, and with ``once`` that it was not seen before."""

    def __call__(self, signer: PeerId, freshness: wire.Freshness, *, once: bool = True) -> None: ...


class ActDesk:
    """Takes acts of donors for one run."""

    def __init__(
        self,
        context: RunContext,
        database: Database,
        turn: Callable[[Callable[[Turn], Any]], Awaitable[Any]],
        clock: Callable[[], float],
        campaign_key: CampaignKey,
    ) -> None:
        """Take acts.

        Args:
            context: of the run.
            database: of the run.
            turn: runs work in a transaction of the engine.
            clock: POSIX time.
            campaign_key: signs the end of campaigns.
        """
        self.book = Book(context.log, context.manifest)
        self._upkeep = CampaignUpkeep(self.book, context.run_id, campaign_key)
        self._database = database
        self._turn = turn
        self._per_day = context.options.acts_per_day
        self._today = Buckets(Rate(self._per_day / _DAY_S, self._per_day), clock)
        self._following = asyncio.Lock()

    async def accept(self, act: Act, check_fresh: CheckFresh) -> service_pb2.ActReply:
        """Record an act that was verified.

        Args:
            act: opened.
            check_fresh: insists that a dated act is fresh.

        Raises:
            BadRecord, BadSignature, NotEnrolled, Conflict, UsageError, RateLimited, Stale: see
                the module's steps.
        """
        record = act.record
        if not isinstance(record, _OF_DONORS):
            raise BadRecord(f"a {record.DESCRIPTOR.name} is recorded by the organisers only")
        if isinstance(record, wire.ProfileUpdate):
            check_profile(record)
            check_fresh(act.signer, record.freshness)
        if isinstance(record, wire.TeamMembership):
            earlier = await self._database.run(lambda session: self.book.find(session, act))
            if earlier is not None:
                return _reply(earlier)
            # The record takes it but once. Were its nonce spent, it could not come again after
            # what fails in passing.
            check_fresh(act.signer, record.freshness, once=False)
        await self.follow()
        reply: service_pb2.ActReply = await self._turn(lambda turn: self._take(turn, act))
        return reply

    async def follow(self) -> None:
        """Fold what the record has; others use the database in between."""
        async with self._following:
            while not await self._database.run(
                lambda session: self.book.follow(session, _LEAVES_PER_TURN)
            ):
                pass

    async def keep_campaigns(self) -> None:
        """Say of campaigns that are over by their terms that they are."""
        if await self._database.run(has_campaigns):
            await self.follow()
            await self._turn(self._upkeep.end_campaigns)

    def _take(self, turn: Turn, act: Act) -> service_pb2.ActReply:
        session = turn.session
        self.book.follow(session)
        earlier = self.book.find(session, act)
        if earlier is not None:
            return _reply(earlier)
        keys = self.book.keys_of(act.signer)
        for key in keys:
            reason = reason_for(session, key, key)
            if reason is not None:
                raise UsageError(f"this donor is blocked: {reason}")
        if isinstance(act.record, wire.ProfileUpdate):
            return self._show(turn, act.record, keys)
        if isinstance(act.record, wire.Voiding):
            self._check_void(act.record)
        leaf = self.book.check(session, act, turn.now_s)
        self._count(keys)
        recorded = self.book.append(session, act, leaf)
        if isinstance(leaf, KeyRotationLeaf | MergeLeaf):
            join_profiles(session, *ends_of(leaf))
        turn.then.leaves_added = True
        return _reply(recorded)

    def _show(
        self, turn: Turn, record: wire.ProfileUpdate, keys: tuple[PeerId, ...]
    ) -> service_pb2.ActReply:
        if record.team:
            team = self.book.board.crowd.teams.teams.get(record.team.hex())
            if team is None:
                raise NotFound("there is no such team: found it first")
            if team.founder not in keys:
                raise BadSignature("a team is shown as its founder says")
        self._count(keys)
        if not update_profile(turn.session, record, keys, turn.now_s):
            return service_pb2.ActReply(message="a newer profile is kept: this one changes nothing")
        if record.erase:
            return service_pb2.ActReply(message="erased here; copies of the record are told")
        return service_pb2.ActReply(message="shown from now on")

    def _check_void(self, record: wire.Voiding) -> None:
        """Donors make pledges void; whose it is, the book checks."""
        if record.leaf not in self.book.board.crowd.voidable:
            return
        undone = self.book.board.crowd.voidable[record.leaf]
        if undone.leaf.kind != "pledge":
            raise BadSignature("a donation or a pool is made void by its treasurer")

    def _count(self, keys: tuple[PeerId, ...]) -> None:
        """One more act of a person, whose oldest key stays the same when others join."""
        try:
            self._today.take(keys[-1])
        except RateLimited as error:
            raise RateLimited(
                f"this run takes {self._per_day} acts of a person in a day: try again later",
                retry_after_s=error.retry_after_s,
            ) from error


def _reply(recorded: Recorded) -> service_pb2.ActReply:
    where = f"leaf {recorded.leaf_index} of the public record"
    return service_pb2.ActReply(
        recorded=True,
        leaf_index=recorded.leaf_index,
        message=f"recorded as {where}" if recorded.is_new else f"it stands already, as {where}",
    )
