"""The pledges of a donor, as this machine's journal knows them, and showing one to somebody.

Of a private or secret pledge the record has numbers and a salted digest. Whoever signed it can show
the signed act: its SHA-256 is that digest, and the salt in it keeps others from guessing.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.envelope import Signed, open_envelope
from protocol.errors import PeerFault, UsageError
from protocol.identity import PeerId
from protocol.wire import records_pb2 as wire
from worker.donor.acts import visibility_of
from worker.donor.amounts import in_credits, last_day
from worker.donor.journal import ActJournal, ActState, StoredAct

PLEDGE = wire.Pledge.DESCRIPTOR.name
MAX_FILE_BYTES = 16 << 10


@dataclass(frozen=True)
class OwnPledge:
    """One pledge: the newest revision that the record has, or else that was signed."""

    record: wire.Pledge
    act: StoredAct

    @property
    def id(self) -> str:
        return self.record.pledge.hex()

    @property
    def state(self) -> str:
        if self.act.state != ActState.RECORDED:
            return "not sent yet" if self.act.state == ActState.SIGNED else "refused"
        return "standing" if self.record.microcredits else "withdrawn"

    def row(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "pledge": self.id,
            "state": self.state,
            "microcredits": self.record.microcredits,
            "until_s": self.record.until_s,
            "campaign": self.record.campaign.hex(),
            "visibility": visibility_of(self.record),
            "revision": self.record.revision,
            "donor": self.record.donor,
            "leaf": self.act.leaf,
        }

    def text(self) -> str:
        """One line for a person."""
        leaf = "" if self.act.leaf is None else f", leaf {self.act.leaf}"
        return (
            f"{self.id}  {in_credits(self.record.microcredits)} by "
            f"{last_day(self.record.until_s)}  {visibility_of(self.record)}, {self.state}{leaf}"
        )


def own_pledges(journal: ActJournal) -> list[OwnPledge]:
    """All pledges that were signed here, the oldest first."""
    newest: dict[bytes, OwnPledge] = {}
    for act in journal.acts(PLEDGE):
        record = wire.Pledge.FromString(act.envelope.payload)
        known = newest.get(record.pledge)
        if known is None or act.state == ActState.RECORDED or known.act.state == ActState.REFUSED:
            newest[record.pledge] = OwnPledge(record, act)
    return list(newest.values())


def find_pledge(journal: ActJournal, text: str) -> OwnPledge:
    """A pledge in the record, by its id or the beginning of it.

    Raises:
        UsageError: none, or several, or one that is not in the record.
    """
    found = [p for p in own_pledges(journal) if text and p.id.startswith(text.lower())]
    if len(found) != 1:
        many = "several pledges begin" if found else "no pledge that was made here begins"
        raise UsageError(f"{many} with {text[:40]!r}: see 'barnraise donor pledges'")
    if found[0].act.state != ActState.RECORDED:
        raise UsageError(f"the pledge {found[0].id} is {found[0].state}: it is not in the record")
    return found[0]


def current_key(journal: ActJournal, key: PeerId) -> PeerId:
    """The key that took a key's account, and that key's, and so on; by what was done here."""
    for act in journal.acts(wire.KeyChange.DESCRIPTOR.name, wire.AccountMerge.DESCRIPTOR.name):
        if act.state == ActState.RECORDED:
            old, new = _ends(act)
            key = new if key == old else key
    return key


def _ends(act: StoredAct) -> tuple[PeerId, PeerId]:
    if act.kind == wire.KeyChange.DESCRIPTOR.name:
        change = wire.KeyChange.FromString(act.envelope.payload)
        return change.old, change.new
    merge = wire.AccountMerge.FromString(act.envelope.payload)
    return merge.donor, merge.into


def show_file(pledge: OwnPledge) -> str:
    """A file that proves whose pledge a leaf is: the signed act, in DSSE's JSON."""
    envelope = pledge.act.envelope
    return json.dumps(
        {
            "payloadType": envelope.payload_type,
            "payload": base64.b64encode(envelope.payload).decode(),
            "signatures": [
                {"keyid": s.keyid, "sig": base64.b64encode(s.sig).decode()}
                for s in envelope.signatures
            ],
            "leaf": pledge.act.leaf,
        },
        indent=2,
    )


def read_shown(path: Path) -> tuple[Signed[wire.Pledge], int | None]:
    """Check a file that somebody showed: the pledge, and the leaf that it should be.

    Raises:
        UsageError: it is no such file, or its signature does not verify.
    """
    try:
        with path.open("rb") as file:
            raw = json.loads(file.read(MAX_FILE_BYTES))
        envelope = wire.Envelope(
            payload=base64.b64decode(raw["payload"], validate=True),
            payload_type=raw["payloadType"],
            signatures=[
                wire.Signature(keyid=s["keyid"], sig=base64.b64decode(s["sig"], validate=True))
                for s in raw["signatures"][:2]
            ],
        )
        leaf = raw.get("leaf")
        signed = open_envelope(envelope, wire.Pledge)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise UsageError(f"{path} is not a pledge as 'donor reveal' writes it") from error
    except PeerFault as error:
        raise UsageError(f"{path} proves nothing: {error}") from error
    if signed.record.donor != signed.signer:
        raise UsageError(f"{path} proves nothing: its donor did not sign it")
    return signed, leaf if type(leaf) is int else None
