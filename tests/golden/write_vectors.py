"""Write ``docs/vectors/*.json``: the protocol's bytes, for implementations in other languages.

Everything is computed by this project's own code from fixed inputs; ``tests/unit/test_vectors.py``
computes it again, and parts of it a second time from the documents' text alone.

    python tests/golden/write_vectors.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from ledger.acts import leaf_of, open_act
from ledger.credit import (
    flops_per_token,
    reducing_microcredits,
    training_microcredits,
    working_parameters,
)
from ledger.pools import largest_remainder
from ledger.records import CreditLeaf
from protocol import draw, merkle
from protocol.codec import decode_chunk, encode_chunk, noise_key
from protocol.combine import combine_chunk
from protocol.envelope import payload_type, pre_authentication_encoding, seal
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.manifest import Codec, OuterSpec, RunManifest
from protocol.model import initial_weights, parameter_spec, slices
from protocol.notes import Checkpoint, NoteKey, sign_checkpoint
from protocol.outer import outer_step
from protocol.projection import pack_projections, project_chunk
from protocol.state import describe
from protocol.update import ChunkLayout, encode_update
from protocol.wire import records_pb2 as wire

FOLDER = Path(__file__).parents[2] / "docs" / "vectors"

RUN_ID = bytes(range(32))
WORKER = Identity.from_seed(bytes([1]) * 32)
REDUCER = Identity.from_seed(bytes([2]) * 32)
ROOT = Identity.from_seed(bytes([3]) * 32)
LOG = Identity.from_seed(bytes([4]) * 32)
ASSIGNMENT_ID = bytes(range(16))
ROUND = 7

LLAMA = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}


def numbers(count: int, salt: int) -> NDArray[np.float32]:
    """Small numbers that JSON and float32 both hold exactly: k / 4096, |k| <= 2048."""
    index = np.arange(count, dtype=np.int64)
    return ((index * 1103 + salt * 7919) % 4097 - 2048).astype(np.float32) / np.float32(4096)


def identity() -> dict[str, Any]:
    """Keys, their files and names, and a join link."""
    link = JoinLink("coordinator.example.org", 7443, RUN_ID, ROOT.peer_id)
    return {
        "keys": [
            {
                "seed": key.seed.hex(),
                "public_key": key.public.raw.hex(),
                "key_file": key.libp2p_bytes().hex(),
                "peer_id": key.peer_id,
            }
            for key in (WORKER, REDUCER, ROOT)
        ],
        "link": {
            "text": str(link),
            "host": link.host,
            "port": link.port,
            "run_id": link.run_id.hex(),
            "root": link.root,
        },
    }


def envelope() -> dict[str, Any]:
    """A signed record: what is signed, and the envelope's own bytes."""
    record = wire.ResultChunk(
        group_id=bytes(20), attempt=1, chunk=2, sha256=bytes(range(32)), reducer=REDUCER.peer_id
    )
    sealed = seal(record, REDUCER)
    kind = payload_type(wire.ResultChunk)
    return {
        "signer": REDUCER.peer_id,
        "payload_type": kind,
        "payload": sealed.payload.hex(),
        "signed_bytes": pre_authentication_encoding(kind, sealed.payload).hex(),
        "signature": sealed.signatures[0].sig.hex(),
        "envelope": sealed.SerializeToString(deterministic=True).hex(),
    }


def initial() -> dict[str, Any]:
    """The first weights of a run's round 0."""
    seed = 5
    manifest = RunManifest.from_mapping(
        {
            "name": "vector",
            "origin": "example.org/vector",
            "root": ROOT.peer_id,
            "licence": "Apache-2.0",
            "model_config_json": {
                **LLAMA,
                "initializer_range": 0.02,
                "max_position_embeddings": 32,
                "num_hidden_layers": 1,
                "bos_token_id": 0,
                "eos_token_id": 0,
            },
            "init": {"kind": "seed", "seed": seed},
            "tokenizer_sha256": "0" * 64,
            "dataset_sha256": "0" * 64,
            "sequence_length": 32,
            "inner": {
                "max_steps": 1,
                "sequences_per_batch": 1,
                "learning_rate": {"peak": 0.01, "total_tokens": 1},
            },
            "round": {"duration_s": 1},
            "campaign": {"title": "Vector", "goal_microcredits": 1},
        }
    )
    flat, spec = initial_weights(manifest), parameter_spec(manifest.model_config_json)
    parts = {name: flat[where] for name, _, where in slices(spec)}
    names = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")
    return {
        "seed": seed,
        "initializer_range": 0.02,
        "parameters": {name: parts[name][:6].tolist() for name in names},
        "norm": parts["model.norm.weight"][:4].tolist(),
    }


def codecs() -> dict[str, Any]:
    """Noise key, and 300 numbers (a whole block and a short one) through each codec."""
    values = numbers(300, salt=1)
    values[7] = 0.0
    key = noise_key(RUN_ID, ROUND, 3, WORKER.peer_id)
    names: tuple[Codec, ...] = ("fp32", "int8", "int4")
    encoded = {codec: encode_chunk(codec, values, key) for codec in names}
    return {
        "noise_key": {
            "run_id": RUN_ID.hex(),
            "round": ROUND,
            "chunk": 3,
            "source": WORKER.peer_id,
            "key": key.hex(),
            "key_of_mean": noise_key(RUN_ID, ROUND, 3, "mean").hex(),
        },
        "values": values.tolist(),
        "codecs": {
            codec: {
                "encoded": data.hex(),
                "decoded": decode_chunk(codec, data, len(values)).tolist(),
            }
            for codec, data in encoded.items()
        },
    }


def commitment() -> dict[str, Any]:
    """Five chunks, the last one short; the proof opens chunk 3."""
    layout = ChunkLayout(elements=4 * 256 + 50, chunk_elements=256)
    values = numbers(layout.elements, salt=2)
    update = encode_update(
        values, layout, "int8", run_id=RUN_ID, round_=ROUND, worker=WORKER.peer_id
    )
    subtree = merkle.subtree_roots(update.leaf_hashes)
    proof = merkle.inclusion_proof(3, layout.count, subtree)
    return {
        "codec": "int8",
        "chunk_elements": layout.chunk_elements,
        "values": values.tolist(),
        "chunks": [chunk.hex() for chunk in update.chunks],
        "leaf_hashes": [leaf.hex() for leaf in update.leaf_hashes],
        "root": update.root.hex(),
        "proof": {"chunk": 3, "path": [step.hex() for step in proof]},
    }


def combine() -> dict[str, Any]:
    """Three members; the third is ten times as long as the others."""
    inputs = [numbers(10, salt) for salt in (3, 4, 5)]
    inputs[2] = inputs[2] * np.float32(10)
    weights = [4096, 2048, 4096]
    return {
        "inputs": [values.tolist() for values in inputs],
        "weights": weights,
        "mean": combine_chunk("mean", inputs, weights).tolist(),
        "clipped_mean": combine_chunk("clipped_mean", inputs, weights).tolist(),
    }


def outer() -> dict[str, Any]:
    """Two outer steps, and the digest of the state after the second."""
    spec = OuterSpec(learning_rate=0.7, momentum=0.9)
    weights, momentum = numbers(300, salt=6), np.zeros(300, np.float32)
    steps = []
    start = weights.tolist()
    for salt in (7, 8):
        update = numbers(300, salt)
        weights, momentum = outer_step(weights, momentum, update, spec)
        steps.append(
            {
                "mean_update": update.tolist(),
                "weights": weights.tolist(),
                "momentum": momentum.tolist(),
            }
        )
    state = describe(weights, momentum, round_=2, merged_tokens=123_456, chunk_elements=256)
    return {
        "learning_rate": spec.learning_rate,
        "momentum": spec.momentum,
        "weights": start,
        "steps": steps,
        "state": {
            "chunk_elements": 256,
            "settled_rounds": state.round,
            "merged_tokens": state.merged_tokens,
            "weights_root": state.weights_root.hex(),
            "momentum_root": state.momentum_root.hex(),
            "digest": state.digest.hex(),
        },
    }


def roster() -> dict[str, Any]:
    """A roster of one member and one reducer, and its group id."""
    record = wire.Roster(
        run_id=RUN_ID,
        round=ROUND,
        attempt=1,
        state_digest=bytes([9]) * 32,
        members=[
            wire.RosterMember(
                worker=WORKER.peer_id,
                assignment_id=ASSIGNMENT_ID,
                weight=4096,
                commitment_root=bytes([8]) * 32,
                client_mode=True,
            )
        ],
        reducers=[
            wire.ReducerRange(
                reducer=REDUCER.peer_id,
                first_chunk=0,
                end_chunk=5,
                multiaddrs=["/ip4/192.0.2.1/tcp/4001"],
            )
        ],
        codec="int8",
        combine="mean",
        vector_elements=1074,
        chunk_elements=256,
        chunk_count=5,
        gather_deadline_ms=1_800_000_060_000,
        broadcast_deadline_ms=1_800_000_120_000,
    )
    payload = record.SerializeToString(deterministic=True)
    return {
        "payload": payload.hex(),
        "digest": hashlib.sha256(payload).hexdigest(),
        "group_id": hashlib.sha256(payload).digest()[:20].hex(),
    }


def ledger() -> dict[str, Any]:
    """Credit by the formula, a leaf's bytes, and the signed head of a log of that leaf alone."""
    tokens, length = 20_480, 512
    leaf = CreditLeaf(
        run_id=RUN_ID.hex(),
        at_s=1_800_000_000,
        work="training",
        round=ROUND,
        assignment_id=ASSIGNMENT_ID.hex(),
        worker=WORKER.peer_id,
        donor=WORKER.peer_id,
        tokens=tokens,
        microcredits=training_microcredits(tokens, LLAMA, length),
        contribution_digest="ab" * 32,
        execution="cpu",
        audit_ppm=50_000,
    )
    data, origin = leaf.canonical(), "example.org/barn"
    root = merkle.root([merkle.leaf_hash(data)])
    return {
        "credit": {
            "model_config_json": LLAMA,
            "sequence_length": length,
            "working_parameters": working_parameters(LLAMA),
            "flops_per_token": flops_per_token(LLAMA, length),
            "tokens": tokens,
            "training_microcredits": training_microcredits(tokens, LLAMA, length),
            "chunks": 3,
            "chunk_elements": 131_072,
            "reducing_microcredits": reducing_microcredits(3, 131_072),
        },
        "leaf": data.decode(),
        "leaf_hash": merkle.leaf_hash(data).hex(),
        "log_seed": LOG.seed.hex(),
        "vkey": NoteKey(origin, LOG.public).vkey,
        "checkpoint": sign_checkpoint(Checkpoint(origin, 1, root), LOG),
    }


CAMPAIGN = bytes(range(16, 32))


def _acts() -> list[tuple[Message, Identity]]:
    """One act of each kind that leaves a leaf, and who signs it."""
    run, salt = {"run_id": RUN_ID}, bytes(range(32, 48))
    of = {"campaign": CAMPAIGN, **run}
    consent = seal(wire.KeyConsent(of=WORKER.peer_id, into=REDUCER.peer_id, **run), REDUCER)
    window = {"not_before_s": 1_800_000_000, "not_after_s": 1_900_000_000}
    return [
        (
            wire.Delegation(
                purpose=wire.KEY_PURPOSE_TREASURER,
                public_key=LOG.public.raw,
                serial=4,
                **run,
                **window,
            ),
            ROOT,
        ),
        (wire.Revocation(serial=4, reason="left", **run), ROOT),
        (
            wire.CampaignTerms(
                revision=0,
                title="A barn for all",
                purpose="A small model that anybody may use.",
                goal_microcredits=5_000_000,
                goal_minor=250_000,
                currency="EUR",
                starts_s=1_800_000_000,
                ends_s=1_810_000_000,
                when_reached="continue",
                when_missed="close",
                **of,
            ),
            LOG,
        ),
        (wire.CampaignEnd(outcome="closed", at_s=1_805_000_000, **of), LOG),
        (wire.CampaignNews(news=salt, title="Half way", text="Thank you.", **of), LOG),
        (
            wire.Pledge(
                pledge=ASSIGNMENT_ID,
                revision=1,
                donor=WORKER.peer_id,
                microcredits=1_000_000,
                until_s=1_806_000_000,
                visibility=wire.VISIBILITY_PUBLIC,
                salt=salt,
                **of,
            ),
            WORKER,
        ),
        (wire.Pool(pool=REDUCER.peer_id, currency="EUR", at_s=1_800_000_000, **of), LOG),
        (
            wire.Donation(
                donation=ASSIGNMENT_ID,
                donor=WORKER.peer_id,
                pool=REDUCER.peer_id,
                amount_minor=2_500,
                currency="EUR",
                received_s=1_799_999_000,
                reference="opencollective:12345",
                visibility=wire.VISIBILITY_SECRET,
                salt=salt,
                **of,
            ),
            LOG,
        ),
        (wire.Voiding(leaf=17, reason="refunded", salt=salt, **run), LOG),
        (wire.TeamFounding(team=ASSIGNMENT_ID, founder=WORKER.peer_id, **run), WORKER),
        (wire.TeamMembership(donor=WORKER.peer_id, team=ASSIGNMENT_ID, **run), WORKER),
        (
            wire.KeyChange(old=WORKER.peer_id, new=REDUCER.peer_id, consent=consent, **run),
            WORKER,
        ),
        (
            wire.AccountMerge(donor=WORKER.peer_id, into=REDUCER.peer_id, consent=consent, **run),
            WORKER,
        ),
    ]


def crowd() -> dict[str, Any]:
    """Acts with their leaves, and shares of a pool's credit by largest remainder."""
    at_s = 1_800_000_123
    acts = [open_act(seal(record, key)) for record, key in _acts()]
    shares = [(100, [2500, 5000, 1000]), (10, [1, 1, 1]), (0, [7, 1]), (2**53 - 1, [1, 2, 3])]
    return {
        "run_id": RUN_ID.hex(),
        "at_s": at_s,
        "acts": [
            {
                "envelope": act.envelope.SerializeToString(deterministic=True).hex(),
                "payload_type": act.envelope.payload_type,
                "signer": act.signer,
                "leaf": leaf_of(act, run_id=RUN_ID, at_s=at_s).canonical().decode(),
            }
            for act in acts
        ],
        "shares": [
            {"amount": amount, "weights": weights, "shares": largest_remainder(amount, weights)}
            for amount, weights in shares
        ],
    }


def draws() -> dict[str, Any]:
    """A short chain, the draw of one of its rounds, and what follows for an assignment."""
    chain = draw.DrawChain.of(bytes([7]) * 32, rounds=20)
    inclusion_digest = hashlib.sha256(b"an inclusion set").digest()
    preimage = chain.preimage(ROUND)
    drawn = draw.draw(preimage, inclusion_digest)
    chances = (50_000, 250_000, 500_000, 1_000_000)
    return {
        "seed": (bytes([7]) * 32).hex(),
        "rounds": chain.rounds,
        "tip": chain.tip.hex(),
        "round": ROUND,
        "preimage": preimage.hex(),
        "inclusion_digest": inclusion_digest.hex(),
        "draw": drawn.hex(),
        "assignment_id": ASSIGNMENT_ID.hex(),
        "selected_at_ppm": {
            str(ppm): draw.is_selected(drawn, ASSIGNMENT_ID, ppm) for ppm in chances
        },
        "second_at_ppm": {
            str(ppm): draw.wants_second_auditor(drawn, ASSIGNMENT_ID, ppm) for ppm in chances
        },
        "projection_seed": draw.projection_seed(drawn, ASSIGNMENT_ID).hex(),
        "chunks": 40,
        "opened_chunks": draw.opened_chunks(drawn, ASSIGNMENT_ID, 40, 8),
        "audited_results": draw.audited_results(drawn, 40, 2),
    }


def projection() -> dict[str, Any]:
    """A chunk of 300 numbers onto its 64 sums."""
    values, seed, chunk = numbers(300, salt=9), bytes(range(32, 64)), 3
    projected = project_chunk(values, seed, chunk)
    return {
        "values": values.tolist(),
        "seed": seed.hex(),
        "chunk": chunk,
        "projection": projected.tolist(),
        "packed": pack_projections([projected]).hex(),
    }


VECTORS = {
    "identity": identity,
    "envelope": envelope,
    "initial": initial,
    "codecs": codecs,
    "commitment": commitment,
    "combine": combine,
    "outer": outer,
    "roster": roster,
    "ledger": ledger,
    "crowd": crowd,
    "draw": draws,
    "projection": projection,
}


def text(name: str) -> str:
    """The file of a vector."""
    return json.dumps(VECTORS[name](), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in VECTORS:
        (FOLDER / f"{name}.json").write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
