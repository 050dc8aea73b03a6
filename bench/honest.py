"""Honest machines of many kinds, and cheats, before calibrated audits.

A tiny Llama is trained on Shakespeare's bytes half-way; from there, units are computed with one and
two threads, in whole and in micro-batches, in fp32 and under bf16 autocast, and compared in every
codec by the protocol's own functions: projections, opened chunks, tolerance, decision. The bounds
were calibrated on other units, as ``barnraise coordinator calibrate`` does it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from bench.report import Row, write_report
from bench.train import make_config, make_manifest
from coordinator.audit.calibrate import calibrate_run
from coordinator.audit.case import Decide, Facts, Replay, decide
from coordinator.audit.measure import Subject, Variant
from coordinator.audit.schema import OPENING
from coordinator.data.embedded import shakespeare_documents
from protocol.audit_policy import Verdict
from protocol.draw import opened_chunks, projection_seed
from protocol.manifest import Codec, RunManifest
from protocol.model import initial_weights
from protocol.projection import project_update, unpack_projections
from protocol.tolerance import (
    Bounds,
    Comparison,
    Outcome,
    ToleranceTable,
    compare_chunks,
    differing_chunks,
)
from protocol.training import Execution, Unit, train
from protocol.update import ChunkLayout, encode_update

LENGTH, BATCH, STEPS = 64, 8, 20
CHUNK_ELEMENTS = 1 << 14
FIRST_UNIT = 12_000  # sequences: behind what was pre-trained on
CODECS: tuple[Codec, ...] = get_args(Codec)
NOTE = (
    "first: what the first replay found; then the verdict; relative L1 distance to the first replay"
)

VARIANTS = (
    Variant(Execution()),
    Variant(Execution(), threads=2),
    Variant(Execution(micro_batch_sequences=1)),
    Variant(Execution(micro_batch_sequences=2)),
    Variant(Execution(autocast_bf16=True)),
    Variant(Execution(autocast_bf16=True), threads=2),
    Variant(Execution(micro_batch_sequences=2, autocast_bf16=True)),
)
_MOST_REPLAYS = 3

FloatVector = NDArray[np.float32]
Encoded = dict[int, bytes]


def run(quick: bool) -> list[Row]:
    """Audit 200 honest contributions and every cheat; ``quick`` only proves that it runs."""
    torch.set_num_threads(1)
    units, contributions = (1, 12) if quick else (12, 200)
    swarm = Swarm.pretrained(30 if quick else 300)
    tables = {
        codec: calibrate_run(swarm.subject(codec), samples=1 if quick else 2, thorough=False)
        for codec in CODECS
    }
    honest, cheats = Tally(), Tally()
    for number in range(units):
        made = {variant: swarm.update(number, variant) for variant in VARIANTS}
        for index in range(number, contributions, units):
            audit = _honest_audit(swarm, tables, made, index, CODECS[index // units % len(CODECS)])
            pair = "/".join(sorted(v.execution_class for v in (audit.worker, audit.auditors[0])))
            honest.add(f"honest, {pair}, {audit.codec}", audit)
            honest.add("honest, all", audit)
        for name, update in swarm.cheats(number, made[VARIANTS[0]]):
            for index, codec in enumerate(CODECS):
                first = VARIANTS[4 * ((number + index) % 2)]
                auditors = (first, VARIANTS[2], VARIANTS[6])
                cheats.add(
                    name, Audit(swarm, tables, number, codec, update, VARIANTS[0], auditors, made)
                )
    rows = [*honest.rows(ordered=True), *cheats.rows()]
    write_report("honest-quick" if quick else "honest", rows, note=NOTE)
    return rows


class Text:
    """Shakespeare's bytes, shuffled once."""

    def __init__(self) -> None:
        text = "\n".join(shakespeare_documents()).encode()
        rows = np.frombuffer(text, np.uint8)[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH)
        self.rows = np.random.default_rng(0).permutation(rows).astype(np.int64)

    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        return self.rows[start:end]


@dataclass(frozen=True)
class Swarm:
    """A run half-way, and one state before that."""

    manifests: Mapping[Codec, RunManifest]
    text: Text
    weights: FloatVector
    stale: FloatVector
    layout: ChunkLayout

    @classmethod
    def pretrained(cls, steps: int) -> Swarm:
        """Train for ``steps``; the state a unit earlier is the stale one."""
        manifests = {codec: _manifest(codec, max(steps, STEPS)) for codec in CODECS}
        manifest, text = manifests["fp32"], Text()
        weights = initial_weights(manifest)
        early = train(manifest, weights, _unit(0, steps - STEPS or steps), text)
        stale = weights - early.update
        late = train(manifest, stale, _unit(BATCH * steps, STEPS), text)
        layout = ChunkLayout(len(weights), CHUNK_ELEMENTS)
        return cls(manifests, text, stale - late.update, stale, layout)

    def subject(self, codec: Codec) -> Subject:
        """For calibration: units of the first part of the data, at this bench's length."""
        manifest = self.manifests[codec]
        short = {"max_steps": STEPS}
        document = manifest.model_dump(mode="json")
        limited = RunManifest.from_mapping(document | {"inner": document["inner"] | short})
        return Subject(limited, self.weights, 1, 0, self.text, FIRST_UNIT)

    def update(self, number: int, variant: Variant, **changes: int) -> FloatVector:
        """A unit, computed in one way; ``steps`` or ``shift`` make it less or other work."""
        steps, shift = changes.get("steps", STEPS), changes.get("shift", 0)
        base = self.stale if changes.get("stale") else self.weights
        unit = _unit(FIRST_UNIT + (number + shift) * STEPS * BATCH, steps)
        torch.set_num_threads(variant.threads)
        result = train(self.manifests["fp32"], base, unit, self.text, variant.execution)
        torch.set_num_threads(1)
        return result.update

    def cheats(self, number: int, honest: FloatVector) -> Iterator[tuple[str, FloatVector]]:
        """What an adversary could hand in instead."""
        plain, generator = VARIANTS[0], np.random.default_rng(number)
        lazy = self.update(number, plain, steps=STEPS * 9 // 10)
        noise = generator.standard_normal(len(honest)).astype(np.float32)
        size = np.float32(np.sqrt(np.mean(np.square(honest))))
        yield "90 % of the steps", lazy
        yield "90 %, scaled to 100 %", lazy / np.float32(0.9)
        yield "half of the steps", self.update(number, plain, steps=STEPS // 2)
        yield "10 % noise", honest + noise * size / 10
        yield "one falsified chunk", self._falsified(honest, noise * size, generator)
        yield "other data", self.update(number, plain, shift=100)
        yield "stale base", self.update(number, plain, stale=1)
        yield "random update", noise * size
        yield "zero update", np.zeros_like(honest)
        yield "sign flip", -honest
        yield "times ten", honest * np.float32(10)

    def _falsified(
        self, honest: FloatVector, noise: FloatVector, generator: np.random.Generator
    ) -> FloatVector:
        where = slice(*self.layout.bounds(int(generator.integers(self.layout.count))))
        update = honest.copy()
        update[where] = noise[where]
        return update

    def encode(self, codec: Codec, update: FloatVector, number: int) -> Encoded:
        """With the noise of one worker, as both sides do."""
        encoded = encode_update(
            update, self.layout, codec, run_id=bytes(32), round_=number, worker="worker"
        )
        return dict(enumerate(encoded.chunks))


@dataclass
class Audit:
    """One contribution, audited by as many replays as it takes."""

    swarm: Swarm
    tables: Mapping[Codec, ToleranceTable]
    number: int
    codec: Codec
    update: FloatVector
    worker: Variant
    auditors: Sequence[Variant]
    made: Mapping[Variant, FloatVector]
    first: Comparison = field(init=False)
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        theirs = self.swarm.encode(self.codec, self.update, self.number)
        replays = [self.swarm.encode(self.codec, self.made[v], self.number) for v in self.auditors]
        chosen = {chunk: theirs[chunk] for chunk in self._chosen(theirs, replays[0])}
        compared = [
            self._compare(chosen, replay, self.worker, auditor)
            for replay, auditor in zip(replays, self.auditors, strict=True)
        ]
        agreeing = frozenset(
            (one + 1, other + 1)
            for one in range(len(replays))
            for other in range(one + 1, len(replays))
            if self._compare(
                {chunk: replays[one][chunk] for chunk in chosen},
                replays[other],
                self.auditors[one],
                self.auditors[other],
            ).outcome
            is Outcome.AGREES
        )
        self.first = compared[0]
        self.verdict = self._verdict([found.outcome for found in compared], agreeing)

    def _verdict(
        self, outcomes: Sequence[Outcome], agreeing: frozenset[tuple[int, int]]
    ) -> Verdict:
        replays: tuple[Replay, ...] = ()
        for ordinal, (outcome, auditor) in enumerate(zip(outcomes, self.auditors, strict=True), 1):
            replays += (Replay(ordinal, f"auditor {ordinal}", auditor.execution_class, outcome),)
            facts = Facts(0, OPENING, 0, (), replays, agreeing=agreeing, most_replays=_MOST_REPLAYS)
            decision = decide(facts)
            if isinstance(decision, Decide):
                return decision.verdict
        raise AssertionError("an audit ends after its last replay")

    def _chosen(self, theirs: Encoded, replayed: Encoded) -> list[int]:
        """The drawn chunks, and those whose projections differ most."""
        layout, most = (
            self.swarm.layout,
            self.swarm.manifests[self.codec].verification.opened_chunks,
        )
        seed = projection_seed(self._draw, bytes(16))
        packed = (
            project_update(list(chunks.values()), self.codec, layout, seed)
            for chunks in (theirs, replayed)
        )
        ours, replay = (unpack_projections(data, layout.count) for data in packed)
        bounds = self._bounds(self.worker, self.auditors[0])
        return sorted({*self._drawn, *differing_chunks(ours, replay, bounds, most)})

    @property
    def _draw(self) -> bytes:
        return hashlib.sha256(f"{self.number} {self.codec}".encode()).digest()

    @property
    def _drawn(self) -> list[int]:
        """Chunks that are opened whatever their projections say: the pooled ones."""
        most = self.swarm.manifests[self.codec].verification.opened_chunks
        return opened_chunks(self._draw, bytes(16), self.swarm.layout.count, most)

    def _compare(
        self, theirs: Encoded, replay: Encoded, one: Variant, other: Variant
    ) -> Comparison:
        bounds = self._bounds(one, other)
        layout = self.swarm.layout
        return compare_chunks(self.codec, layout, theirs, replay, bounds, self._drawn)

    def _bounds(self, one: Variant, other: Variant) -> Bounds | None:
        table = self.tables[self.codec]
        return table.bounds(one.execution_class, other.execution_class, STEPS)


@dataclass
class Tally:
    """Counts by name, in the order of first appearance."""

    audits: dict[str, list[Audit]] = field(default_factory=dict)

    def add(self, name: str, audit: Audit) -> None:
        self.audits.setdefault(name, []).append(audit)

    def rows(self, *, ordered: bool = False) -> list[Row]:
        names = sorted(self.audits) if ordered else self.audits
        return [_row(name, self.audits[name]) for name in names]


def _row(name: str, audits: Sequence[Audit]) -> Row:
    first = Counter(audit.first.outcome for audit in audits)
    verdicts = Counter(audit.verdict for audit in audits)
    distances = [audit.first.pooled for audit in audits]
    return {
        "contribution": name,
        "audits": len(audits),
        "first_agrees": first[Outcome.AGREES],
        "first_between": first[Outcome.BETWEEN],
        "first_differs": first[Outcome.DIFFERS],
        "passed": verdicts[Verdict.PASSED],
        "inconclusive": verdicts[Verdict.INCONCLUSIVE],
        "failed": verdicts[Verdict.FAILED],
        "distance_min": round(min(distances), 4),
        "distance_max": round(max(distances), 4),
    }


def _honest_audit(
    swarm: Swarm,
    tables: Mapping[Codec, ToleranceTable],
    made: Mapping[Variant, FloatVector],
    index: int,
    codec: Codec,
) -> Audit:
    """Worker and auditors drawn at random; a second auditor is of another class, as jobs insist."""
    generator = np.random.default_rng(index)
    order = [VARIANTS[int(i)] for i in generator.permutation(len(VARIANTS))]
    worker, first, *rest = order
    rest.sort(key=lambda variant: variant.execution_class == first.execution_class)
    auditors = (first, *rest[: _MOST_REPLAYS - 1])
    return Audit(swarm, tables, index, codec, made[worker], worker, auditors, made)


def _unit(start: int, steps: int) -> Unit:
    return Unit(start, start + steps * BATCH, steps, seed=0, tokens_base=0)


def _manifest(codec: Codec, most_steps: int) -> RunManifest:
    document = make_manifest(make_config(64, 3), most_steps).model_dump(mode="json")
    document["sequence_length"] = LENGTH
    document["inner"]["learning_rate"]["peak"] = 2e-3
    document["update"] |= {"codec": codec, "chunk_elements": CHUNK_ELEMENTS}
    return RunManifest.from_mapping(document)
