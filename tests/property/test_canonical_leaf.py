"""Leaves are written by a fast path: it must give the bytes of RFC 8785, and read nothing else."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.crowd_records import CrowdLeaf
from ledger.leaf import MAX_SAFE_INTEGER, BaseLeaf, _encode
from ledger.records import CreditLeaf, Leaf, parse_leaf
from protocol.errors import BadRecord
from protocol.identity import Identity

KINDS: tuple[type[BaseLeaf], ...] = (*get_args(Leaf), *get_args(CrowdLeaf))
PEER = Identity.from_seed(b"c" * 32).peer_id

ASCII = st.text(st.characters(max_codepoint=127))
NUMBERS = st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
VALUES = st.one_of(ASCII, NUMBERS, st.booleans(), st.none(), st.lists(NUMBERS).map(tuple))


@given(st.dictionaries(ASCII, VALUES))
def test_the_fast_path_is_rfc_8785(fields: dict[str, Any]) -> None:
    assert _encode(fields).encode() == rfc8785.dumps(fields)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_kind_has_what_the_fast_path_cannot_write(kind: type[BaseLeaf]) -> None:
    schema = kind.model_json_schema()
    assert "$defs" not in schema, "a leaf nests nothing"
    for name, field in schema["properties"].items():
        for told in field.get("anyOf", [field]):
            if kind.__name__ == "RunLeaf" and name == "manifest":
                continue  # it has a canonical() of its own
            words = {json.dumps(type(word).__name__) for word in told.get("enum", [])}
            assert told.get("type") in ("string", "integer", "boolean", "null", "array"), name
            assert told.get("type") != "array" or told["items"]["type"] == "integer"
            assert words <= {'"str"', '"int"'}


def _credit(**fields: Any) -> CreditLeaf:
    said = {
        "run_id": bytes(32),
        "at_s": 1,
        "work": "training",
        "round": 0,
        "assignment_id": bytes(16),
        "worker": PEER,
        "donor": PEER,
        "tokens": 1,
        "microcredits": 0,
        "contribution_digest": bytes(32),
        "execution": "cpu",
        "audit_ppm": 1,
    }
    return CreditLeaf(**{**said, **fields})


@given(
    at_s=st.integers(0, MAX_SAFE_INTEGER),
    tokens=st.integers(1, MAX_SAFE_INTEGER),
    digest=st.binary(min_size=32, max_size=32),
    work=st.sampled_from(["training", "probation"]),
)
def test_a_leaf_is_its_rfc_8785_bytes(at_s: int, tokens: int, digest: bytes, work: str) -> None:
    leaf = _credit(at_s=at_s, tokens=tokens, contribution_digest=digest, work=work)
    assert leaf.canonical() == rfc8785.dumps(leaf.model_dump(mode="json"))
    assert parse_leaf(leaf.canonical()) == leaf


@settings(max_examples=300)
@given(st.data())
def test_no_other_bytes_are_the_leaf(data: st.DataObject) -> None:
    """One character more, less or other: refused, or another leaf."""
    honest = _credit().canonical()
    at = data.draw(st.integers(0, len(honest) - 1))
    put = data.draw(st.binary(max_size=2))
    bent = honest[:at] + put + honest[at + data.draw(st.integers(0, 1)) :]
    try:
        leaf = parse_leaf(bent)
    except BadRecord:
        return
    assert leaf.canonical() == rfc8785.dumps(leaf.model_dump(mode="json")) == bent


@pytest.mark.parametrize(
    "bent",
    [
        b'{"v":1,"kind":"credit"',
        b"[" * 5000,
        b'{"kind":"credit","kind":"credit"}',
        b'\xef\xbb\xbf{"kind":"credit"}',
        '{"kind":"credit"}'.encode("utf-16"),
        b'{"kind":"\\ud800"}',
        b'{"at_s":NaN,"kind":"credit"}',
        b"1" * 60_000,
        b"",
    ],
    ids=lambda bent: repr(bent[:12]),
)
def test_what_is_no_json_is_refused(bent: bytes) -> None:
    with pytest.raises(BadRecord, match="leaf refused"):
        parse_leaf(bent)
