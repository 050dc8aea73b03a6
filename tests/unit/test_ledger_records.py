"""Leaves, notes and names: strict in what they accept."""

from __future__ import annotations

import json
from typing import Any

import pytest
import rfc8785
from pydantic import ValidationError

from ledger.donors import clean_name, short_key
from ledger.records import (
    MAX_CREDITS_IN_LEAF,
    MAX_SAFE_INTEGER,
    BlockLeaf,
    CreditLeaf,
    DrawLeaf,
    EnrolLeaf,
    FinalLeaf,
    ReversalLeaf,
    RoundLeaf,
    RunLeaf,
    VerdictLeaf,
    parse_leaf,
)
from protocol.audit_policy import Verdict, Why
from protocol.errors import BadRecord, BadSignature
from protocol.identity import Identity
from protocol.limits import MAX_LEAF_BYTES
from protocol.notes import (
    Checkpoint,
    NoteKey,
    open_checkpoint,
    open_note,
    sign_checkpoint,
    sign_note,
    split_note,
)

KEY = Identity.from_seed(b"w" * 32)
CREDIT = {
    "v": 1,
    "kind": "credit",
    "run_id": "0" * 64,
    "at_s": 1,
    "work": "training",
    "round": 0,
    "assignment_id": "1" * 32,
    "worker": KEY.peer_id,
    "donor": KEY.peer_id,
    "tokens": 128,
    "chunks": 0,
    "microcredits": 5,
    "status": "pending",
    "contribution_digest": "2" * 64,
    "execution": "cpu-bf16",
    "audit_ppm": 50_000,
}
VERDICT = {
    "v": 1,
    "kind": "verdict",
    "run_id": "0" * 64,
    "at_s": 1,
    "round": 0,
    "subject": "training",
    "worker": KEY.peer_id,
    "execution": "cpu",
    "assignment_id": "1" * 32,
    "chunk": None,
    "verdict": "passed",
    "reason": "agrees",
    "why": "newcomer",
    "record_digest": "2" * 64,
}
REVERSAL = {
    "v": 1,
    "kind": "reversal",
    "run_id": "0" * 64,
    "at_s": 1,
    "donor": KEY.peer_id,
    "credits": [3, 5],
    "reason": "differs",
    "verdict_leaf": 7,
    "restored": False,
    "microcredits": 10,
}


def _parse(**changes: Any) -> Any:
    return parse_leaf(rfc8785.dumps({**CREDIT, **changes}))


def test_leaves_round_trip() -> None:
    leaf = _parse()
    assert isinstance(leaf, CreditLeaf)
    assert parse_leaf(leaf.canonical()) == leaf
    assert CreditLeaf(**{**CREDIT, "run_id": bytes(32), "assignment_id": b"\x11" * 16}) == leaf


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Ada"},
        {"kind": "gift"},
        {"v": 2},
        {"tokens": 1.5},
        {"tokens": "128"},
        {"tokens": True},
        {"tokens": -1},
        {"tokens": 1 << 53},
        {"tokens": 0},
        {"chunks": 1},
        {"assignment_id": None},
        {"contribution_digest": None},
        {"work": "reducing"},
        {"status": "final"},
        {"audit_ppm": None},
        {"audit_ppm": 0},
        {"audit_ppm": 1_000_001},
        {"execution": None},
        {"execution": "tpu"},
        {"work": "seeding"},
        {"worker": "Ada"},
        {"worker": KEY.peer_id[:-1]},
        {"run_id": "0" * 63},
        {"run_id": "G" * 64},
        {"assignment_id": "11"},
    ],
)
def test_leaves_reject_what_they_do_not_understand(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRecord):
        raw = {**CREDIT, **changes}
        try:
            data = rfc8785.dumps(raw)
        except rfc8785.IntegerDomainError:
            data = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()
        parse_leaf(data)


@pytest.mark.parametrize(
    ("leaf", "changes"),
    [
        (VERDICT, {"verdict": "guilty"}),
        (VERDICT, {"verdict": None}),
        (VERDICT, {"reason": "He cheated!"}),
        (VERDICT, {"reason": ""}),
        (VERDICT, {"why": "x" * 65}),
        (VERDICT, {"subject": "reducing"}),
        (VERDICT, {"chunk": 3}),
        (VERDICT, {"assignment_id": None}),
        (VERDICT, {"execution": None}),
        (VERDICT, {"execution": "cpu\n"}),
        (VERDICT, {"worker": "Ada"}),
        (VERDICT, {"record_digest": "2" * 63}),
        (REVERSAL, {"credits": []}),
        (REVERSAL, {"credits": [5, 3]}),
        (REVERSAL, {"credits": [3, 3]}),
        (REVERSAL, {"credits": [3, True]}),
        (REVERSAL, {"credits": "35"}),
        (REVERSAL, {"credits": [-1, 3]}),
        (REVERSAL, {"credits": list(range(MAX_CREDITS_IN_LEAF + 1))}),
        (REVERSAL, {"verdict_leaf": None}),
        (REVERSAL, {"restored": 1}),
        (REVERSAL, {"microcredits": 1.5}),
    ],
)
def test_leaves_of_audits_are_as_strict(leaf: dict[str, Any], changes: dict[str, Any]) -> None:
    parse_leaf(rfc8785.dumps(leaf))
    with pytest.raises(BadRecord):
        parse_leaf(rfc8785.dumps({**leaf, **changes}))


def test_verdicts_take_the_policys_words_and_longest_lists_fit() -> None:
    made = VerdictLeaf(**{**VERDICT, "verdict": Verdict.LOST, "why": Why.SAMPLED})
    assert (made.verdict, made.why) == ("unaudited-lost", "sampled")
    assert parse_leaf(made.canonical()) == made
    many = range(MAX_SAFE_INTEGER - MAX_CREDITS_IN_LEAF + 1, MAX_SAFE_INTEGER + 1)
    longest = ReversalLeaf(**{**REVERSAL, "credits": tuple(many)})
    assert parse_leaf(longest.canonical()) == longest
    assert len(longest.canonical()) < MAX_LEAF_BYTES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 60_000,
        b"{" + b" " * 70_000 + b"}",
        b"\xff",
        json.dumps(CREDIT).encode(),  # not canonical
        rfc8785.dumps(CREDIT).replace(b'"v":1', b'"v":1,"v":1'),
    ],
)
def test_other_bytes_are_not_leaves(data: bytes) -> None:
    with pytest.raises(BadRecord):
        parse_leaf(data)


def test_the_run_leaf_is_bound_to_its_manifest(manifest: Any) -> None:
    leaf = RunLeaf.of(manifest, at_s=5, draw_tip=bytes(32))
    assert leaf.run_manifest() == manifest
    with pytest.raises(ValidationError, match="digest of the manifest"):
        RunLeaf(run_id=bytes(32), at_s=5, manifest=leaf.manifest, draw_tip=bytes(32))


def test_leaves_hold_no_names_and_no_floats() -> None:
    for leaf in (
        *(EnrolLeaf, RoundLeaf, CreditLeaf),
        *(DrawLeaf, VerdictLeaf, FinalLeaf, ReversalLeaf, BlockLeaf),
    ):
        fields = leaf.model_fields
        assert not {"name", "display_name", "address", "device_name"} & set(fields)
        assert all("float" not in str(field.annotation) for field in fields.values())


# ---- signed notes (c2sp.org/signed-note, its test vector) ----

VECTOR_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
VECTOR_TEXT = "This is an example message.\n"
VECTOR_SIGNATURE = (
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
)
VECTOR = f"{VECTOR_TEXT}\n— example.com/foo {VECTOR_SIGNATURE}\n"


def test_the_c2sp_vector_verifies() -> None:
    key = NoteKey.parse(VECTOR_KEY)
    assert key.vkey == VECTOR_KEY
    assert open_note(VECTOR, [key]).text == VECTOR_TEXT
    with pytest.raises(BadSignature):
        open_note(VECTOR.replace("example message", "exemple message"), [key])


def test_unknown_signatures_are_ignored_and_bad_known_ones_refuse() -> None:
    vector_key = NoteKey.parse(VECTOR_KEY)
    mine = NoteKey("example.org/log", KEY.public)
    signed = sign_note(VECTOR_TEXT, mine.name, KEY)
    line = VECTOR.rpartition("\n\n")[2]
    assert open_note(signed + line, [mine, vector_key]).signers == (mine, vector_key)
    assert open_note(signed + line, [mine]).signers == (mine,)
    with pytest.raises(BadSignature, match="no signature"):
        open_note(signed, [vector_key])
    broken = line.replace("IneyaQM=", "IneyaQA=")
    with pytest.raises(BadSignature):
        open_note(signed + broken, [mine, vector_key])
    assert open_note(signed + broken, [mine]).text == VECTOR_TEXT


def test_a_text_may_hold_empty_lines() -> None:
    signed = sign_note("one\n\ntwo\n", "example.org/log", KEY)
    assert split_note(signed)[0] == "one\n\ntwo\n"
    with pytest.raises(ValueError, match="newline"):
        sign_note("no end", "example.org/log", KEY)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "text\n",
        "text\n\n",
        "text\n\n— name\n",
        "text\n\n- name AAAAAAAA\n",
        "a\tb\n" + VECTOR,
        "x\n\n" + "— n AAAAAAAA\n" * 65,
        "x" * (1 << 17) + "\n" + VECTOR,
        VECTOR[:-1],
    ],
)
def test_what_is_not_a_note_is_refused(note: str) -> None:
    with pytest.raises(BadRecord):
        split_note(note)


@pytest.mark.parametrize(
    "vkey",
    ["", "name", VECTOR_KEY.replace("530d", "530e"), VECTOR_KEY[:-4], "n+00000000+" + "A" * 44],
)
def test_odd_verifier_keys_are_refused(vkey: str) -> None:
    with pytest.raises(BadRecord):
        NoteKey.parse(vkey)


def test_checkpoints() -> None:
    key = NoteKey("example.org/log", KEY.public)
    checkpoint = Checkpoint("example.org/log", 42, bytes(32))
    assert open_checkpoint(sign_checkpoint(checkpoint, KEY), [key]) == checkpoint
    extended = sign_note(checkpoint.text() + "extension\n", key.name, KEY)
    assert open_checkpoint(extended, [key]) == checkpoint
    other = NoteKey("example.org/witness", KEY.public)
    with pytest.raises(BadSignature, match="log"):
        open_checkpoint(sign_note(checkpoint.text(), other.name, KEY), [other])


@pytest.mark.parametrize(
    "text",
    ["", "o\n1\n", "o\n01\nAAAA\n", "o\n-1\nAAAA\n", "o\n1\nAAAA\n", "\n1\nAAAA\n", "o\n1\n!\n"],
)
def test_malformed_checkpoints_are_refused(text: str) -> None:
    with pytest.raises(BadRecord):
        Checkpoint.parse(text)


def test_names_are_cleaned_but_not_censored() -> None:
    assert clean_name("  Ada\n Lovelace\u202e\x00 ") == "Ada Lovelace"
    assert clean_name("<b>Żółw 李雷</b>") == "<b>Żółw 李雷</b>"
    assert clean_name("\u3164\u2800\u200b\uffa0") == ""
    assert clean_name("A" + "\u0335" * 50 + "B") == "A" + "\u0335" * 3 + "B"
    assert clean_name("नमस्ते") == "नमस्ते"
    assert len(clean_name("x" * 10_000)) == 64
    assert clean_name("\u200b\n") == ""
    assert short_key(KEY.peer_id) == "…" + KEY.peer_id[-8:]
