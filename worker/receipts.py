"""Receipts: fetched until they are there, verified, kept for good."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from protocol.envelope import parse_envelope
from protocol.errors import BadRecord, BadSignature, NotFound, PeerFault, TransientError, UsageError
from protocol.identity import PublicKey
from protocol.manifest import RunManifest
from protocol.notes import NoteKey
from protocol.tlog import Proof
from protocol.trust import TrustStore
from protocol.wire import records_pb2 as wire
from protocol.wire.service_pb2 import HelloReply
from worker.config import Home
from worker.journal import Journal, StoredReceipt
from worker.status import Board

if TYPE_CHECKING:  # it loads torch and hivemind, which listing receipts has no use for
    from worker.contact import Contact

log = structlog.get_logger()

_ASK_AGAIN_S = 15.0
_LAST_CHANCES, _LAST_CHANCE_S = 5, 0.5


@dataclass(frozen=True)
class VerifiedReceipt:
    """A credit leaf that is in the public record."""

    round: int
    tokens: int
    microcredits: int
    index: int
    tree_size: int


def verify(receipt: StoredReceipt, manifest: RunManifest, trust: TrustStore) -> VerifiedReceipt:
    """Check a receipt offline.

    Steps, all of which must hold:

    1. the checkpoint's origin is the run's, its signature by a log key that the run's root key had
       delegated at the leaf's time, and the leaf in its tree;
    2. the leaf is a credit leaf of this run and for this assignment.

    Raises:
        PeerFault: one does not.
    """
    leaf = _leaf(receipt.leaf)
    proof = Proof.parse(receipt.proof)
    keys = _log_keys(trust, manifest.origin, _number(leaf, "at_s"))
    head = proof.verify(receipt.leaf, keys)
    if leaf.get("kind") != "credit" or leaf.get("run_id") != manifest.run_id.hex():
        raise BadRecord("the receipt is not for credit of this run")
    if leaf.get("assignment_id") != receipt.assignment_id.hex():
        raise BadRecord("the receipt is for another assignment")
    return VerifiedReceipt(
        round=_number(leaf, "round"),
        tokens=_number(leaf, "tokens"),
        microcredits=_number(leaf, "microcredits"),
        index=proof.index,
        tree_size=head.size,
    )


def _log_keys(trust: TrustStore, origin: str, at_s: float) -> list[NoteKey]:
    keys = []
    for raw in trust.delegated(wire.KEY_PURPOSE_LOG):
        with suppress(BadSignature):
            trust.require(wire.KEY_PURPOSE_LOG, raw, at_s)
            keys.append(NoteKey(origin, PublicKey(raw)))
    return keys


def _leaf(data: bytes) -> dict[str, object]:
    try:
        leaf = json.loads(data)
    except ValueError as error:
        raise BadRecord("the receipt's leaf is not JSON") from error
    if not isinstance(leaf, dict):
        raise BadRecord("the receipt's leaf is not an object")
    return leaf


def _number(leaf: dict[str, object], key: str) -> int:
    value = leaf.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRecord(f"the receipt's {key} is not a number")
    return value


async def collect_receipts(node: Contact, board: Board) -> None:
    """Ask for each expected receipt until it is there and verifies. Run it as a task."""
    revocations = 0
    while True:
        if len(node.session.greeting.reply.revocations) != revocations:
            revocations = len(node.session.greeting.reply.revocations)
            await _replace_refused(node)
        awaited = await asyncio.to_thread(node.journal.awaited_receipts)
        for assignment_id in awaited:
            await _ask(node, assignment_id)
        await asyncio.to_thread(_show_credit, node.journal, board)
        await node.watch.change(_ASK_AGAIN_S)


def _show_credit(journal: Journal, board: Board) -> None:
    """Count what was given, was credited, and is asked for no longer."""
    stored, pending = journal.receipts(), len(journal.awaited_receipts())
    held = [receipt for receipt in stored if receipt.leaf]  # each was verified when it came
    board.receipts_held, board.receipts_pending = len(held), pending
    board.parts["credit"] = {
        "verified_microcredits": sum(_number(_leaf(one.leaf), "microcredits") for one in held),
        "rejected_units": len(stored) - len(held) - pending,
    }


async def _replace_refused(node: Contact) -> None:
    """A key was revoked: get receipts under it again, under the log's head of now."""
    manifest, trust = node.session.greeting.manifest, node.session.trust

    def refused() -> list[bytes]:
        found = []
        for receipt in node.journal.receipts():
            try:
                if receipt.leaf:
                    verify(receipt, manifest, trust)
            except PeerFault:
                found.append(receipt.assignment_id)
        return found

    for assignment_id in await asyncio.to_thread(refused):
        await _ask(node, assignment_id)


async def last_receipts(node: Contact) -> None:
    """Before the end, a moment's patience for the receipts of the round that was just settled."""
    for _ in range(_LAST_CHANCES):
        awaited = await asyncio.to_thread(node.journal.awaited_receipts)
        if not awaited:
            return
        for assignment_id in awaited:
            await _ask(node, assignment_id)
        await node.watch.change(_LAST_CHANCE_S)


async def _ask(node: Contact, assignment_id: bytes) -> None:
    try:
        reply = await node.session.receipt(assignment_id)
        if not reply.leaf:
            return
        candidate = StoredReceipt(assignment_id, 0, 0, reply.leaf, reply.proof)
        verified = verify(candidate, node.session.greeting.manifest, node.session.trust)
        await asyncio.to_thread(node.journal.keep_receipt, assignment_id, reply.leaf, reply.proof)
        await asyncio.to_thread(store_trust, node.journal, node.session.greeting.reply)
    except NotFound:
        return  # not settled yet
    except (TransientError, UsageError) as error:
        log.debug("no receipt yet", problem=str(error))
        return
    except PeerFault as error:
        log.error("the coordinator gave a receipt that does not verify", problem=str(error))
        return
    log.info("receipt", round=verified.round, microcredits=verified.microcredits)


def list_receipts(home: Home) -> list[dict[str, Any]]:
    """All receipts of a home folder, verified with what is stored there; blocking.

    Raises:
        UsageError: the worker never ran here.
    """
    if not home.journal.exists() or not home.manifest.exists():
        raise UsageError("no receipts yet: the worker has never run here")
    manifest = RunManifest.parse(home.manifest.read_bytes())
    journal = Journal(home.journal)
    try:
        trust = TrustStore(manifest.run_id, manifest.root)
        trust.add(_stored(journal, "delegations"), _stored(journal, "revocations"))
        return [_row(receipt, manifest, trust) for receipt in journal.receipts()]
    finally:
        journal.close()


def save_receipts(home: Home, folder: Path) -> None:
    """Write each receipt that is held as ``<assignment>.tlog-proof`` and ``.json``; blocking.

    Raises:
        UsageError: the worker never ran here, or the folder cannot be written.
    """
    if not home.journal.exists():
        raise UsageError("no receipts yet: the worker has never run here")
    journal = Journal(home.journal)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for receipt in journal.receipts():
            if receipt.leaf:
                name = folder / receipt.assignment_id.hex()
                name.with_suffix(".json").write_bytes(receipt.leaf)
                name.with_suffix(".tlog-proof").write_text(receipt.proof, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
    finally:
        journal.close()


def store_trust(journal: Journal, reply: HelloReply) -> None:
    """Keep what the root key signed, so that receipts can be verified offline; blocking.

    What it signed earlier stays: older receipts are under the heads of older log keys.
    """
    for key in ("delegations", "revocations"):
        envelopes: list[str] = json.loads(journal.get(key) or "[]")
        news = [item.SerializeToString().hex() for item in getattr(reply, key)]
        if not set(news) <= set(envelopes):
            journal.put(key, json.dumps(list(dict.fromkeys(envelopes + news))))


def _stored(journal: Journal, key: str) -> list[wire.Envelope]:
    return [parse_envelope(bytes.fromhex(item)) for item in json.loads(journal.get(key) or "[]")]


def _row(receipt: StoredReceipt, manifest: RunManifest, trust: TrustStore) -> dict[str, Any]:
    row: dict[str, Any] = {
        "assignment_id": receipt.assignment_id.hex(),
        "round": receipt.round,
        "tokens": receipt.tokens,
        "microcredits": 0,
        "state": "awaited",
    }
    if not receipt.leaf:
        return row
    try:
        verified = verify(receipt, manifest, trust)
    except PeerFault as error:
        return {**row, "state": f"refused: {error}"}
    return {
        **row,
        "round": verified.round,
        "tokens": verified.tokens,
        "microcredits": verified.microcredits,
        "state": "verified",
    }
