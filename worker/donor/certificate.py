"""A person's certificate: fetched from the public site, and checked with nothing but the file.

The format is ``barnraise-certificate/1``: leaves, one proof of all of them
(:mod:`protocol.multiproof`), and the signed head that it leads to.

What is checked here needs no knowledge of the record's rules: that these leaves are in the log that
the run's root key vouches for, that leaves join the keys, and what the credits sum to. ``barnraise
ledger certificate check`` recomputes each amount by the run's formula besides.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import rfc8785

from protocol import merkle
from protocol.envelope import parse_envelope
from protocol.errors import BadRecord, BadSignature, UsageError
from protocol.identity import PeerId, PublicKey
from protocol.manifest import RunManifest
from protocol.multiproof import verify_many
from protocol.notes import Checkpoint, NoteKey, decode_base64, open_checkpoint, read_checkpoint
from protocol.trust import TrustStore
from protocol.wire import records_pb2 as wire
from worker.donor.site import fetch

FORMAT = "barnraise-certificate/1"
MAX_BYTES = 16 << 20
_MAX_LEAVES = 10_000
_MAX_DELEGATIONS = 1000
_MOST_PARTS = 1000


@dataclass(frozen=True)
class Proven:
    """What one file proves."""

    subject: PeerId
    keys: frozenset[PeerId]
    run: str
    head: Checkpoint
    part: int
    parts: int
    credits: dict[int, tuple[int, str]]  # by leaf: (microcredits, pending | final | taken back)

    def total(self, *states: str) -> int:
        """Microcredits of credits in these states."""
        return sum(amount for amount, state in self.credits.values() if state in states)


def fetch_certificate(site: str, donor: PeerId, root: PeerId) -> list[bytes]:
    """All parts of a person's certificate, checked; blocking.

    Raises:
        NotFound: the record knows no such donor.
        BadRecord, BadSignature, BadDigest: the site gave one that proves nothing.
    """
    files: list[bytes] = []
    parts = 1
    while len(files) < parts:
        path = f"certificate/{donor}.json?part={len(files) + 1}"
        data = fetch(site, path, most_bytes=MAX_BYTES)
        proven = check(data, root)
        if donor not in proven.keys or not 1 <= proven.parts <= _MOST_PARTS:
            raise BadRecord("the site gave somebody else's certificate")
        if proven.part != len(files) + 1:
            raise BadRecord("the site gave another part of the certificate than it was asked for")
        files.append(data)
        parts = proven.parts
    return files


def check(data: bytes, root: PeerId) -> Proven:
    """Verify a certificate offline, with the fingerprint of the run's root key.

    Steps, all of which must hold:

    1. the first leaf is the run, whose root key is ``root``, and every leaf is of that run;
    2. a log key that ``root`` delegated, at the time of the newest leaf, signed the head;
    3. the proof leads from the leaves to the head's root;
    4. every key is joined to the subject by a leaf.

    Raises:
        BadRecord, BadSignature, BadDigest: what is wrong with it.
    """
    raw = _parse(data)
    leaves = _leaves(raw)
    manifest = _manifest(leaves)
    if manifest.root != root:
        raise BadSignature(f"this run's root key is {manifest.root}, not the one that was given")
    run_id = manifest.run_id.hex()
    if any(leaf.get("run_id") != run_id for leaf in leaves.values()):
        raise BadRecord("the certificate mixes leaves of several runs")
    head = _head(raw, manifest, max(_number(leaf, "at_s") for leaf in leaves.values()))
    if max(leaves) != head.size - 1:
        raise BadRecord("the certificate lacks the newest leaf, whose time dates the log key")
    verify_many(
        {index: merkle.leaf_hash(_canonical(leaf)) for index, leaf in leaves.items()},
        head.size,
        [decode_base64(step) for step in _strings(raw, "proof")],
        head.root,
    )
    subject, keys = str(raw.get("subject")), _strings(raw, "keys")
    PublicKey.from_peer_id(subject)
    _check_joined(subject, keys, leaves)
    credits = _credits(leaves, frozenset(keys))
    part, parts = _number(raw, "part"), _number(raw, "parts")
    return Proven(subject, frozenset(keys), manifest.name, head, part, parts, credits)


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise BadRecord(f"a certificate is at most {MAX_BYTES} bytes")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord("not a certificate: it is not JSON") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise BadRecord(f"not a certificate: its format is not {FORMAT!r}")
    return raw


def _leaves(raw: dict[str, Any]) -> dict[int, dict[str, Any]]:
    entries = raw.get("leaves")
    if not isinstance(entries, list) or not 0 < len(entries) <= _MAX_LEAVES:
        raise BadRecord("the certificate has no leaves, or too many")
    leaves: dict[int, dict[str, Any]] = {}
    for entry in entries:
        leaf = entry.get("leaf") if isinstance(entry, dict) else None
        if not isinstance(leaf, dict) or (index := _number(entry, "index")) in leaves:
            raise BadRecord("the certificate's leaves are malformed, or one is there twice")
        leaves[index] = leaf
    return leaves


def _manifest(leaves: dict[int, dict[str, Any]]) -> RunManifest:
    run = leaves.get(0, {})
    if run.get("kind") != "run" or not isinstance(run.get("manifest"), dict):
        raise BadRecord("the certificate lacks the log's first leaf, which names the run")
    try:
        return RunManifest.from_mapping(run["manifest"])
    except UsageError as error:
        raise BadRecord(str(error)) from error


def _head(raw: dict[str, Any], manifest: RunManifest, at_s: int) -> Checkpoint:
    note, records = raw.get("checkpoint"), raw.get("delegations")
    if not isinstance(note, str) or not isinstance(records, dict):
        raise BadSignature("the certificate lacks its head, or the log key's delegations")
    if read_checkpoint(note).origin != manifest.origin:
        raise BadRecord("the head is of another log than the run's")
    trust = TrustStore(manifest.run_id, manifest.root)
    trust.add(_envelopes(records, "delegations"), _envelopes(records, "revocations"))
    keys = []
    for key in trust.delegated(wire.KEY_PURPOSE_LOG):
        with suppress(BadSignature):
            trust.require(wire.KEY_PURPOSE_LOG, key, at_s)
            keys.append(NoteKey(manifest.origin, PublicKey(key)))
    return open_checkpoint(note, keys)


def _envelopes(records: dict[str, Any], name: str) -> list[wire.Envelope]:
    texts = _strings(records, name)
    if len(texts) > _MAX_DELEGATIONS:
        raise BadRecord(f"the certificate has more than {_MAX_DELEGATIONS} {name}")
    return [parse_envelope(decode_base64(text)) for text in texts]


def _check_joined(subject: PeerId, keys: list[str], leaves: dict[int, dict[str, Any]]) -> None:
    becomes = {
        leaf.get("donor"): leaf.get("new" if leaf["kind"] == "key_rotation" else "into")
        for _, leaf in sorted(leaves.items())
        if leaf.get("kind") in ("key_rotation", "merge")
    }
    for key in keys:
        at: Any = key
        for _ in range(len(becomes) + 1):
            if at == subject:
                break
            at = becomes.get(at)
        if at != subject:
            raise BadRecord(f"no leaf joins the key {key[:80]} to {subject[:80]}")


def _credits(
    leaves: dict[int, dict[str, Any]], keys: frozenset[PeerId]
) -> dict[int, tuple[int, str]]:
    credits: dict[int, tuple[int, str]] = {}
    for index, leaf in sorted(leaves.items()):
        kind = leaf.get("kind")
        if kind == "credit":
            if leaf.get("donor") not in keys:
                raise BadRecord(f"leaf {index} credits somebody else")
            credits[index] = _number(leaf, "microcredits"), "pending"
        elif kind in ("final", "reversal"):
            back = "pending" if leaf.get("restored") else "taken back"
            state = "final" if kind == "final" else back
            listed = leaf.get("credits")
            for named in listed if isinstance(listed, list) else ():
                if isinstance(named, int) and named in credits:
                    credits[named] = credits[named][0], state
    return credits


def _canonical(leaf: dict[str, Any]) -> bytes:
    try:
        return rfc8785.dumps(leaf)
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise BadRecord("a leaf of the certificate has no canonical form") from error


def _number(mapping: dict[str, Any], key: str) -> int:
    value = mapping.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRecord(f"the certificate's {key} is not a number")
    return value


def _strings(mapping: dict[str, Any], key: str) -> list[str]:
    value = mapping.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRecord(f"the certificate's {key} is not a list of texts")
    return value
