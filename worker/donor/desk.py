"""Where a donor's acts are signed, noted and handed in.

Steps of :meth:`Desk.perform`; a kill after any of them loses nothing and does nothing twice:

1. the coordinator is greeted: until it answers, nothing is signed;
2. acts that an interrupted command left unanswered are handed in first, as they were signed;
3. the act is signed and noted on disk, unless one of step 2 meant the same;
4. it is handed in, and the answer is noted.

A key that is about to be changed is changed here only after the record says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from protocol.envelope import open_envelope, seal
from protocol.errors import PeerFault, Stale, TransientError, UsageError
from protocol.identity import Identity, PeerId
from protocol.link import JoinLink
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.config import Home, WorkerConfig
from worker.donor.acts import DATED, Draft
from worker.donor.home import DonorHome
from worker.donor.journal import ActJournal, ActState, StoredAct
from worker.session import Greeting, Session

_RUN, _ROOT, _LINK = "run_id", "root", "link"


@dataclass(frozen=True)
class Outcome:
    """What became of an act."""

    kind: str
    leaf: int | None  # None: not a matter of the public record
    url: str  # of the leaf; empty where there is no site
    said: str
    envelope: wire.Envelope


class Refused(UsageError):
    """The coordinator does not take an act; it is noted and not sent again."""


class Desk:
    """The folder of a donor, held by this command. Open it with :func:`open_desk`."""

    def __init__(
        self, home: DonorHome, worker: Home, journal: ActJournal, link: JoinLink, session: Session
    ) -> None:
        self.home = home
        self.worker = worker
        self.journal = journal
        self.link = link
        self.signer = session.identity
        self._session = session
        self.earlier: list[Outcome | Refused] = []

    @property
    def run_id(self) -> bytes:
        return self.link.run_id

    @property
    def greeting(self) -> Greeting:
        return self._session.greeting

    def now_s(self) -> float:
        """Now, on the coordinator's clock."""
        return self._session.now_s()

    def leaf_url(self, leaf: int | None) -> str:
        site = self.greeting.public_url.rstrip("/")
        return f"{site}/log/{leaf}" if site and leaf is not None else ""

    def identity(self, key_id: PeerId) -> Identity:
        """A key that lies on this machine.

        Raises:
            UsageError: it does not.
        """
        found = self.home.key_of(key_id)
        if found is None and self.worker.identity.exists():
            device = Identity.load(self.worker.identity)
            found = device if device.peer_id == key_id else None
        if found is None:
            raise UsageError(f"the key {key_id}, which signed it first, is not on this machine")
        return found

    async def perform(self, draft: Draft) -> Outcome:
        """Sign, note and hand in; see the module's steps 2 to 4.

        Raises:
            Refused: with the coordinator's reason.
            UsageError: it did not answer in time; the act is kept and can be sent again.
        """
        same = self.journal.unanswered(draft.kind, draft.intent)
        await self.hand_in_pending(apart_from=same)
        if same is None:
            if draft.kind in DATED:
                draft.record.freshness.CopyFrom(self._session.freshness())  # type: ignore[attr-defined]
            envelope = seal(draft.record, draft.signer)
            same = self.journal.sign(draft.kind, draft.intent, draft.signer.peer_id, envelope)
        return await self.hand_in(same)

    async def hand_in_pending(self, *, apart_from: StoredAct | None = None) -> None:
        """What an interrupted command left; the answers go to ``self.earlier``.

        Raises:
            UsageError: the coordinator does not answer.
        """
        for act in self.journal.pending():
            if apart_from is not None and act.id == apart_from.id:
                continue
            try:
                self.earlier.append(await self.hand_in(act))
            except Refused as error:
                self.earlier.append(error)

    async def hand_in(self, act: StoredAct) -> Outcome:
        """Send one signed act and note the answer.

        Raises:
            Refused: with the coordinator's reason.
            UsageError: no answer.
        """
        try:
            reply = await self._send(act)
        except TransientError as error:
            raise UsageError(
                f"{error}. Your {act.kind} is signed and kept on this machine: 'barnraise donor "
                "send' hands it in again"
            ) from error
        except (UsageError, PeerFault) as error:
            self.journal.refused(act, str(error))
            raise Refused(f"the coordinator refused the {act.kind}: {error}") from error
        leaf = reply.leaf_index if reply.recorded else None
        self.journal.recorded(act, leaf, reply.message)
        if act.kind == wire.KeyChange.DESCRIPTOR.name:
            finish_rotation(self.home, self.journal)
        return Outcome(act.kind, leaf, self.leaf_url(leaf), reply.message, act.envelope)

    async def _send(self, act: StoredAct) -> api.ActReply:
        """The bytes as they were signed: what the record has already is answered as then."""
        if act.kind == wire.ProfileUpdate.DESCRIPTOR.name:
            # Not in the record, and the same profile twice is one: dated anew at every attempt.
            update = open_envelope(act.envelope, wire.ProfileUpdate).record
            self._check_signer(act)
            return await self._session.act_dated(update)
        try:
            return await self._session.act(act.envelope)
        except Stale:
            self._check_signer(act)
            await self._session.hello()
        # It was never recorded, and its date is past.
        record = open_envelope(act.envelope, wire.TeamMembership).record
        record.freshness.CopyFrom(self._session.freshness())
        envelope = seal(record, self.signer)
        self.journal.signed_anew(act, envelope)
        return await self._session.act(envelope)

    def _check_signer(self, act: StoredAct) -> None:
        if act.signer != self.signer.peer_id:
            raise UsageError("its key was changed since: give the command again")


@asynccontextmanager
async def open_desk(
    home: DonorHome, worker: Home, link: str | None, *, own_key: bool = False
) -> AsyncIterator[Desk]:
    """Hold the folder and greet the run's coordinator.

    Args:
        home: the donor's folder.
        worker: says the run, and has the key to sign with where there is no donor's.
        link: the run's join link, where it is given.
        own_key: insist on a donor's key.

    Raises:
        UsageError: no run, no key, or the coordinator does not answer: nothing was signed.
    """
    with open_journal(home) as journal:
        signer = signing_key(home, worker, own_key=own_key)
        where = find_run(journal, worker, link)
        try:
            session = await Session.connect(where, signer)
        except TransientError as error:
            raise UsageError(f"{error}. Nothing was signed") from error
        try:
            bind(journal, where)
            yield Desk(home, worker, journal, where, session)
        finally:
            await session.close()


@contextmanager
def open_journal(home: DonorHome) -> Iterator[ActJournal]:
    """Hold the folder, with its journal; a rotation that the record knows of is finished.

    Raises:
        UsageError: another command holds it, or the journal cannot be used.
    """
    with home.held():
        journal = ActJournal(home.journal)
        try:
            finish_rotation(home, journal)
            yield journal
        finally:
            journal.close()


def signing_key(home: DonorHome, worker: Home, *, own_key: bool = False) -> Identity:
    """The donor's key, else the device's.

    Raises:
        UsageError: there is neither.
    """
    identity = home.load_key()
    if identity is not None:
        return identity
    if own_key:
        raise UsageError(
            f"there is no donor key in {home.path}: make one with 'barnraise donor init', or give "
            "its folder with --home"
        )
    if worker.identity.exists():
        return Identity.load(worker.identity)
    raise UsageError(
        f"there is no key to sign with: make a donor key with 'barnraise donor init', or give the "
        f"folders with --home and --worker-home (looked in {home.path} and {worker.path})"
    )


def find_run(journal: ActJournal, worker: Home, link: str | None) -> JoinLink:
    """The run's link: as given, else the worker's, else the one that was used last.

    Raises:
        UsageError: none is known, or this folder belongs to another run.
    """
    known = journal.get(_RUN)
    if link is not None:
        found = JoinLink.parse(link)
    else:
        joined = WorkerConfig.load(worker.config).join_link if worker.config.exists() else None
        last = journal.get(_LINK)
        if joined is not None and known in (None, joined.run_id.hex()):
            found = joined
        elif last is not None:
            found = JoinLink.parse(last)
        else:
            raise UsageError(
                "no run was joined here: run 'barnraise worker join LINK' first, or name the run "
                "with --link LINK"
            )
    if known is not None and known != found.run_id.hex():
        raise UsageError(
            f"the folder {journal.folder} is for run {known[:16]}: use another --home for "
            "another run"
        )
    if journal.get(_ROOT) not in (None, found.root):
        raise UsageError(
            "the link names another root key than before: it is not from the same organiser. Do "
            "not use it, and tell the organiser"
        )
    return found


def bind(journal: ActJournal, link: JoinLink) -> None:
    """Remember the run: its coordinator answered under this link."""
    for key, value in ((_RUN, link.run_id.hex()), (_ROOT, link.root), (_LINK, str(link))):
        if journal.get(key) != value:
            journal.put(key, value)


def finish_rotation(home: DonorHome, journal: ActJournal) -> None:
    """Take the next key into use once the record knows it; does nothing otherwise."""
    if not home.next_key.exists():
        return
    new = Identity.load(home.next_key).peer_id
    for act in journal.acts(wire.KeyChange.DESCRIPTOR.name):
        record = wire.KeyChange.FromString(act.envelope.payload)
        if act.state == ActState.RECORDED and record.new == new:
            home.use_next_key()
            return
