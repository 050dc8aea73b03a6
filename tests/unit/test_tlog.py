"""Proofs of the log: read, verified, and refused when anything was changed."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.orm import Session

from ledger.receipts import make_receipt
from protocol.errors import BadDigest, BadRecord, BadSignature
from protocol.identity import Identity
from protocol.notes import NoteKey, read_checkpoint
from protocol.tlog import Proof


@pytest.fixture
def receipt(history: Any, ledger_history: ModuleType) -> tuple[bytes, str, str, Identity]:
    with Session(history.engine) as session:
        made = make_receipt(session, history.manifest.origin, 3)
    return made.leaf, made.proof, history.manifest.origin, ledger_history.LOG_KEY


def test_a_receipt_of_the_log_verifies(receipt: tuple[bytes, str, str, Identity]) -> None:
    leaf, text, origin, key = receipt
    mine, other = NoteKey(origin, key.public), NoteKey(origin, Identity.generate().public)
    proof = Proof.parse(text)
    assert proof.text() == text
    assert proof.verify(leaf, [other, mine]).origin == origin
    with pytest.raises(BadSignature):
        proof.verify(leaf, [other])
    with pytest.raises(BadSignature):
        proof.verify(leaf, [NoteKey("another.example", key.public)])
    with pytest.raises(BadDigest):
        proof.verify(leaf + b" ", [mine])


def test_a_changed_head_does_not_verify(receipt: tuple[bytes, str, str, Identity]) -> None:
    leaf, text, origin, key = receipt
    size = read_checkpoint(Proof.parse(text).checkpoint).size
    changed = text.replace(f"\n{size}\n", f"\n{size + 1}\n")
    assert changed != text
    with pytest.raises(BadSignature):
        Proof.parse(changed).verify(leaf, [NoteKey(origin, key.public)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "c2sp.org/tlog-proof@v2\nindex 0\n\no\n1\nAA==\n\n- o AAAAAAAA\n",
        "c2sp.org/tlog-proof@v1\nindex 01\n\no\n1\nAA==\n",
        "c2sp.org/tlog-proof@v1\nindex 0\nnot base64!\n\no\n1\nAA==\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n" + "AA==\n" * 65 + "\no\n1\nAA==\n",
        "x" * ((1 << 18) + 1),
    ],
)
def test_what_is_not_a_receipt_is_refused(text: str) -> None:
    with pytest.raises(BadRecord):
        Proof.parse(text).verify(b"leaf", [])
