"""The signed statement of where a released model comes from.

An in-toto Statement v1 with the SLSA provenance v1 predicate, in a DSSE envelope in its standard
JSON form, signed by the run's round key. Sources: in-toto attestation framework, "Statement v1";
slsa.dev/spec/v1.0/provenance; secure-systems-lab/dsse, envelope.md.

It names what went in (run manifest, dataset, tokenizer), the head of the public record that says
who did the work, and what came out (every file of the release, by SHA-256).
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocol.envelope import pre_authentication_encoding
from protocol.identity import Identity
from protocol.manifest import RunManifest

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
BUILD_TYPE: Final = "tag:barnraise,2025:training-run/1"
FILE_NAME: Final = "provenance.intoto.json"


@dataclass(frozen=True)
class Origin:
    """What the statement says about the run."""

    manifest: RunManifest
    ledger_head: str  # C2SP checkpoint, signed
    state_digest: bytes
    settled_rounds: int
    merged_tokens: int
    started_s: int
    finished_s: int
    version: str  # of barnraise


def statement(subjects: Mapping[str, str], origin: Origin) -> dict[str, Any]:
    """The in-toto Statement.

    Args:
        subjects: SHA-256 (hex) of each released file by its name.
        origin: the run.
    """
    manifest = origin.manifest
    run_id = manifest.run_id.hex()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": digest}}
            for name, digest in sorted(subjects.items())
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "run": manifest.name,
                    "root": manifest.root,
                    "settled_rounds": origin.settled_rounds,
                    "merged_tokens": origin.merged_tokens,
                    "state_digest": origin.state_digest.hex(),
                },
                "internalParameters": {},
                "resolvedDependencies": [
                    _resource("run-manifest.json", run_id),
                    _resource("dataset.json", manifest.dataset_sha256),
                    _resource("tokenizer.json", manifest.tokenizer_sha256),
                ],
            },
            "runDetails": {
                "builder": {
                    "id": f"tag:barnraise,2025:run:{run_id}",
                    "version": {"barnraise": origin.version},
                },
                "metadata": {
                    "invocationId": run_id,
                    "startedOn": _time(origin.started_s),
                    "finishedOn": _time(origin.finished_s),
                },
                "byproducts": [
                    {
                        "name": "ledger-head",
                        "mediaType": "text/plain",
                        "content": base64.b64encode(origin.ledger_head.encode()).decode(),
                    }
                ],
            },
        },
    }


def sign_statement(document: Mapping[str, Any], signer: Identity) -> bytes:
    """Seal a statement; the bytes of :data:`FILE_NAME`."""
    payload = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    signature = signer.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": signer.peer_id, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope, indent=1).encode() + b"\n"


def _resource(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _time(seconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
