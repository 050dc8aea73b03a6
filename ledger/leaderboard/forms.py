"""The receipt form: reads what was posted, bounded, and checks it."""

from __future__ import annotations

import email.policy
from dataclasses import dataclass
from email.parser import BytesParser
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request

from ledger.leaderboard.reader import Reading
from ledger.log import read_leaves
from ledger.receipts import VerifiedReceipt, verify_receipt
from ledger.tally import Credit
from protocol.errors import BadRecord, ProtocolError
from protocol.tlog import MAX_PROOF_BYTES

_MAX_BODY_BYTES = 4 * MAX_PROOF_BYTES
_FIELDS = ("leaf", "proof")


@dataclass(frozen=True)
class CheckedReceipt:
    """What to tell who asked."""

    genuine: bool
    sentence: str
    verified: VerifiedReceipt | None = None
    credit: Credit | None = None  # what became of it since, where the leaf is credit


async def read_form(request: Request) -> dict[str, str]:
    """Fields of a posted form, urlencoded or multipart; an uploaded file wins over pasted text.

    Raises:
        HTTPException: too large, or neither kind of form.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise HTTPException(413, f"A receipt is at most {MAX_PROOF_BYTES:,} bytes.")
    kind = request.headers.get("content-type", "")
    if kind.startswith("application/x-www-form-urlencoded"):
        pasted = parse_qs(body.decode(errors="replace"), max_num_fields=8)
        return {name: values[0] for name, values in pasted.items() if name in _FIELDS}
    if kind.startswith("multipart/form-data"):
        return _multipart(kind, bytes(body))
    raise HTTPException(415, "Post the form of this page.")


def _multipart(kind: str, body: bytes) -> dict[str, str]:
    """A form with files is a MIME message, which the standard library reads."""
    head = f"Content-Type: {kind}\r\n\r\n".encode("latin-1", "replace")
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    pasted: dict[str, str] = {}
    uploaded: dict[str, str] = {}
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if not isinstance(content, bytes) or not isinstance(name, str):
            continue
        target = uploaded if name.endswith("_file") else pasted
        target[name.removesuffix("_file")] = content.decode(errors="replace")
    pasted |= {name: value for name, value in uploaded.items() if value}
    return {name: value for name, value in pasted.items() if name in _FIELDS}


def checked_receipt(reading: Reading, leaf: str, proof: str) -> CheckedReceipt:
    """Check a receipt against this run's root key, and against this log."""
    assert reading.board.manifest is not None
    data = leaf.strip().encode()
    text = proof.replace("\r\n", "\n").strip() + "\n"  # what browsers do to pasted text
    try:
        verified = verify_receipt(data, text, root=reading.board.manifest.root)
        if verified.leaf.run_id != reading.board.run_id:
            raise BadRecord("it is of another run")
    except ProtocolError as error:
        return CheckedReceipt(False, str(error))
    if verified.index >= reading.head.size:
        return CheckedReceipt(
            False, "its head is newer than this record: history was cut here, keep the receipt"
        )
    if next(read_leaves(reading.session, verified.index, verified.index + 1)) != data:
        return CheckedReceipt(
            False,
            "this record holds another leaf in its place: history was rewritten here, "
            "keep the receipt as evidence",
        )
    credit = reading.board.accounts.credits.get(verified.index)
    return CheckedReceipt(True, "Its head is signed and holds this leaf.", verified, credit)
