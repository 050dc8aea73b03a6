"""What verification costs when every device is trusted: compute and traffic.

Compute: processor time of real units, replays, projections, comparisons, screening and recomputed
results, measured one by one, times how often the real draw asks for each. Traffic: bytes of the
real messages, for a vector of the named size. Audits are paid for by the organiser and the
reducers; the ratio is to what all members spend on training, or send and receive in a reduce.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bench.report import Row, write_report
from bench.train import SEQUENCES_PER_BATCH, Random, make_config, make_manifest
from protocol import draw, merkle
from protocol.audit_policy import PPM, chance_ppm
from protocol.codec import decode_chunk
from protocol.combine import combine_chunk, l2_norm
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.manifest import Codec, RunManifest, VerificationSpec
from protocol.model import initial_weights
from protocol.projection import project_update
from protocol.tolerance import Bounds, compare_chunks
from protocol.training import Unit, train
from protocol.update import ChunkLayout, EncodedUpdate, encode_update
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

TRUST = 100
"""Audited passes of every device: the chance is p_min."""

MEMBERS = 16
_CONTRIBUTIONS = 20_000
_WORKER = Identity.from_seed(bytes(32))
_BOUNDS = Bounds(pooled_pass=0.05, pooled_fail=0.1, chunk_pass=0.1, chunk_fail=0.2, projection=0.2)
_FEW_STEPS, _STEPS = 3, 60
_CHUNKS_IN_ANSWER = 2048

NOTE = (
    f"every device has {TRUST} audited passes; {MEMBERS} members a round; audited and seconds: "
    "shares of contributions that the real draw selects, and that a second auditor replays; "
    "compute: audits, screening and recomputed results / training; traffic: challenges and "
    "answers / the reduce's bytes, both directions; processor time, one thread, medians"
)


@dataclass(frozen=True)
class Frequency:
    """How often the real draw asks, per contribution."""

    audited: float
    seconds: float


def run(quick: bool) -> list[Row]:
    """Compute for a small model (the worst case: its units are short), traffic for three sizes."""
    torch.set_num_threads(1)
    policy = VerificationSpec()
    often = count_draws(policy, 2_000 if quick else _CONTRIBUTIONS)
    steps = _FEW_STEPS if quick else _STEPS
    manifest = make_manifest(make_config(128, 4), steps)
    compute = compute_ratio(manifest, often, turns=2 if quick else 3)
    rows: list[Row] = []
    for name, elements in (("0.9M", 900_000), ("124M", 124_000_000), ("1B", 1_000_000_000)):
        for codec in ("int4", "int8"):
            layout = ChunkLayout(elements, 1 << 17)
            rows.append(
                {
                    "vector": name,
                    "codec": codec,
                    "chunks": layout.count,
                    "audited": often.audited,
                    "seconds": often.seconds,
                    f"compute_percent_0.9M_{steps}_steps": round(100 * compute, 2),
                    "traffic_percent": round(100 * traffic_ratio(layout, codec, policy, often), 3),
                }
            )
    write_report("audit-quick" if quick else "audit", rows, note=NOTE)
    return rows


def count_draws(policy: VerificationSpec, contributions: int) -> Frequency:
    """Draw for so many contributions of trusted devices."""
    chance = chance_ppm(policy, TRUST)
    chain = draw.DrawChain.of(bytes(32), rounds=contributions // MEMBERS + 1)
    audited = seconds = 0
    for number in range(contributions):
        round_, member = divmod(number, MEMBERS)
        drawn = draw.draw(chain.preimage(round_), hashlib.sha256(b"set %d" % round_).digest())
        subject = hashlib.sha256(b"%d" % member).digest()[:16]
        if draw.is_selected(drawn, subject, chance):
            audited += 1
            second = round(policy.p_second_auditor * PPM)
            seconds += draw.wants_second_auditor(drawn, subject, second)
    return Frequency(audited / contributions, seconds / contributions)


def compute_ratio(manifest: RunManifest, often: Frequency, turns: int) -> float:
    """Processor time of verification over that of training."""
    weights, source = initial_weights(manifest), Random(256)
    steps = manifest.inner.max_steps
    unit = Unit(0, steps * SEQUENCES_PER_BATCH, steps, seed=0, tokens_base=0)
    layout, codec = ChunkLayout(len(weights), 1 << 17), manifest.update.codec
    seed = bytes(32)

    def work() -> EncodedUpdate:
        update = train(manifest, weights, unit, source).update
        return encode_update(
            update, layout, codec, run_id=bytes(32), round_=0, worker=_WORKER.peer_id
        )

    encoded = work()
    opened = dict(enumerate(encoded.chunks[: manifest.verification.opened_chunks]))
    size = layout.chunk_size(0)
    inputs = [decode_chunk(codec, encoded.chunks[0], size) for _ in range(MEMBERS)]
    unit_s = _median_s(work, turns)
    project_s = _median_s(lambda: project_update(encoded.chunks, codec, layout, seed), turns)
    compare_s = _median_s(
        lambda: compare_chunks(codec, layout, opened, _other(opened), _BOUNDS), turns
    )
    result_s = _median_s(lambda: combine_chunk("mean", inputs, [1] * MEMBERS), turns)
    screen_s = layout.count * _median_s(lambda: _screen(inputs[0], inputs[1]), turns)
    replay_s = unit_s + project_s
    audits_s = often.audited * (replay_s + project_s + compare_s)
    audits_s += often.seconds * (replay_s + compare_s)
    results_s = manifest.verification.audited_results * result_s / MEMBERS
    return (audits_s + results_s + screen_s) / unit_s


def _other(opened: dict[int, bytes]) -> dict[int, bytes]:
    """Not the same bytes: equal ones are compared at once."""
    return {chunk: data[:-1] + bytes([data[-1] ^ 1]) for chunk, data in opened.items()}


def _screen(values: np.ndarray, mean: np.ndarray) -> float:
    wide, other = values.astype(np.float64), mean.astype(np.float64)
    return float(np.dot(wide, other)) / (l2_norm(values) or 1.0)


def _median_s(work: Callable[[], object], turns: int) -> float:
    seconds = []
    for _ in range(turns):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def traffic_ratio(
    layout: ChunkLayout, codec: Codec, policy: VerificationSpec, often: Frequency
) -> float:
    """Bytes of challenges and answers for a contribution, over its share of the reduce.

    Auditors read weights and data from the coordinator's store, which is no traffic of the swarm.
    """
    chunk_bytes = layout.encoded_bytes(codec, 0)
    opened = min(policy.opened_chunks, layout.count)
    parts = -(-layout.count // _CHUNKS_IN_ANSWER)
    projected = wire.ChallengeAnswer(projections=bytes(256 * layout.count // parts))
    projections = parts * _message_bytes(projected, [])
    openings = _message_bytes(wire.ChallengeAnswer(), [_opened(layout, chunk_bytes)] * opened)
    inputs = policy.audited_results * _message_bytes(
        wire.ChallengeAnswer(), [_opened(layout, chunk_bytes)]
    )
    screening = 8 * layout.count
    reduce_bytes = 2 * sum(
        layout.encoded_bytes(codec, chunk) for chunk in (0, layout.count - 1)
    ) + 2 * chunk_bytes * (layout.count - 2)
    audits = often.audited * (projections + openings) + inputs + screening
    return audits / reduce_bytes


def _opened(layout: ChunkLayout, chunk_bytes: int) -> wire.OpenedChunk:
    depth = max(1, (layout.count - 1).bit_length())
    return wire.OpenedChunk(
        chunk=layout.count - 1,
        encoded=bytes(chunk_bytes),
        proof=[bytes(merkle.HASH_BYTES)] * depth,
        member=_WORKER.peer_id,
    )


def _message_bytes(answer: wire.ChallengeAnswer, chunks: list[wire.OpenedChunk]) -> int:
    answer.MergeFrom(
        wire.ChallengeAnswer(
            run_id=bytes(32),
            challenge_id=bytes(16),
            worker=_WORKER.peer_id,
            chunk_sha256=[bytes(32)] * len(chunks),
        )
    )
    request = service_pb2.AnswerChallengeRequest(answer=seal(answer, _WORKER), chunks=chunks)
    return request.ByteSize()
