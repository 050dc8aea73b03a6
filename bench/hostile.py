"""Three of ten members are hostile: what is left of the training?

Real units of work, encodings, combination, outer steps, draws and audits by replay, in one process,
on Shakespeare's plays as bytes. The hostile send -10 times their update. An audit's verdict takes
effect after the next round, so that everyone hostile gets at least one more in. Members, data and
seeds are the same in every line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from bench.report import Row, write_report
from bench.train import make_config, make_manifest
from coordinator.audit.screening import Measured, stand_out
from coordinator.data.embedded import shakespeare_documents
from protocol import draw
from protocol.audit_policy import PPM, chance_ppm
from protocol.combine import combine_chunk, l2_norm
from protocol.identity import Identity
from protocol.manifest import CombineRule, LearningRate, RunManifest
from protocol.model import initial_weights
from protocol.outer import outer_step
from protocol.tolerance import Bounds, Outcome, compare_chunks
from protocol.training import Execution, Unit, evaluate, train
from protocol.update import (
    MEAN_SOURCE,
    ChunkLayout,
    EncodedUpdate,
    decode_chunk,
    decode_update,
    encode_chunk,
    encode_update,
    noise_key,
)

MEMBERS, HOSTILE, FACTOR = 10, 3, np.float32(-10)
LAG_ROUNDS = 2
"""From the round that is audited to the first one without its author."""

_RUN_ID = bytes(32)
_CHUNK_ELEMENTS = 1 << 12
_VALIDATION = 64  # sequences
_TRUSTED_PASSES = 20
_PEAK_RATE = 4e-3

# Replays here differ from the work by their micro-batches only: rounding. Cheats are above 0.1.
_BOUNDS = Bounds(
    pooled_pass=0.03, pooled_fail=0.06, chunk_pass=0.06, chunk_fail=0.12, projection=0.1
)

NOTE = (
    f"{HOSTILE} of {MEMBERS} members send {FACTOR:g} times their update; loss: validation, nats a "
    "byte; excess: against the first line; punished: honest members that were convicted"
)


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    combine: CombineRule
    hostile: int
    audits: bool
    sleepers: bool = False  # everybody is trusted, and the hostile begin after a third


CASES = (
    Case("nobody is hostile", "clipped_mean", 0, audits=True),
    Case("new keys, hostile from the start", "clipped_mean", HOSTILE, audits=True),
    Case("trusted, hostile after a third", "clipped_mean", HOSTILE, audits=True, sleepers=True),
    Case("from the start, plain mean, no audits", "mean", HOSTILE, audits=False),
)


class Plays:
    """Sequences of bytes; the last ones are for validation."""

    def __init__(self, length: int) -> None:
        text = "".join(islice(shakespeare_documents(), 8)).encode()
        tokens = np.frombuffer(text[: len(text) // length * length], np.uint8).astype(np.int64)
        rows = np.random.default_rng(1).permutation(tokens.reshape(-1, length))
        self.validation, self._rows = rows[-_VALIDATION:], rows[:-_VALIDATION]

    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        return self._rows[np.arange(start, end) % len(self._rows)]


@dataclass
class Member:
    identity: Identity
    hostile: bool
    passes: int
    blocked_from: int | None = None  # round

    def present(self, round_: int) -> bool:
        return self.blocked_from is None or round_ < self.blocked_from


@dataclass
class Simulation:
    """One run of a case."""

    case: Case
    manifest: RunManifest
    plays: Plays
    members: list[Member]
    hostile_from: int  # round
    weights: NDArray[np.float32]
    momentum: NDArray[np.float32] = field(init=False)
    layout: ChunkLayout = field(init=False)
    audited: int = 0
    trained: int = 0

    def __post_init__(self) -> None:
        self.momentum = np.zeros_like(self.weights)
        self.layout = ChunkLayout(len(self.weights), _CHUNK_ELEMENTS)

    def round(self, number: int) -> None:
        """Train, audit, combine, step."""
        present = [m for m in self.members if m.present(number)]
        updates = [self._contribute(m, number) for m in present]
        if self.case.audits:
            odd = self._screened(updates)
            for member, update, outlying in zip(present, updates, odd, strict=True):
                self._maybe_audit(member, number, update, outlying)
        mean = decode_update(
            tuple(self._combined(updates, number)), self.layout, self.manifest.update.codec
        )
        with np.errstate(over="ignore", invalid="ignore"):
            self.weights, self.momentum = outer_step(
                self.weights, self.momentum, mean, self.manifest.outer
            )

    def loss(self) -> float:
        if not np.isfinite(self.weights).all():
            return float("inf")
        return evaluate(self.manifest, self.weights, self.plays.validation)

    def _unit(self, member: Member, number: int) -> Unit:
        steps = self.manifest.inner.max_steps
        sequences = steps * self.manifest.inner.sequences_per_batch
        start = (number * MEMBERS + self.members.index(member)) * sequences
        tokens = number * MEMBERS * steps * self.manifest.tokens_per_step
        return Unit(start, start + sequences, steps, seed=start, tokens_base=tokens)

    def _train(self, member: Member, number: int, execution: Execution) -> NDArray[np.float32]:
        unit = self._unit(member, number)
        return train(self.manifest, self.weights, unit, self.plays, execution).update

    def _contribute(self, member: Member, number: int) -> EncodedUpdate:
        self.trained += 1
        vector = self._train(member, number, Execution())
        hostile = member.hostile and number >= self.hostile_from
        return self._encode(vector * FACTOR if hostile else vector, member, number)

    def _encode(self, vector: NDArray[np.float32], member: Member, number: int) -> EncodedUpdate:
        return encode_update(
            vector,
            self.layout,
            self.manifest.update.codec,
            run_id=_RUN_ID,
            round_=number,
            worker=member.identity.peer_id,
        )

    def _screened(self, updates: list[EncodedUpdate]) -> list[bool]:
        """Who stands out by norm or direction, as reducers would have measured it."""
        norms, cosines = [], []
        for chunk in range(self.layout.count):
            inputs = self._inputs(updates, chunk)
            mean = combine_chunk(self.case.combine, inputs, [1] * len(inputs))
            lengths = [l2_norm(values) for values in inputs]
            along = [float(np.dot(values, mean)) for values in inputs]
            whole = l2_norm(mean)
            norms.append(lengths)
            cosines.append([a / (n * whole) for a, n in zip(along, lengths, strict=True)])
        measured = Measured(np.array(norms, np.float32), np.array(cosines, np.float32))
        return [bool(odd) for odd in stand_out([measured])]

    def _inputs(self, updates: list[EncodedUpdate], chunk: int) -> list[NDArray[np.float32]]:
        codec, size = self.manifest.update.codec, self.layout.chunk_size(chunk)
        return [decode_chunk(codec, update.chunks[chunk], size) for update in updates]

    def _maybe_audit(
        self, member: Member, number: int, update: EncodedUpdate, outlying: bool
    ) -> None:
        policy = self.manifest.verification
        drawn = hashlib.sha256(b"draw %d" % number).digest()
        subject = member.identity.public.raw[:16]
        chance = PPM if outlying else chance_ppm(policy, member.passes)
        if not draw.is_selected(drawn, subject, chance):
            return
        self.audited += 1
        replay = self._train(member, number, Execution(micro_batch_sequences=2))
        replayed = self._encode(replay, member, number).chunks
        opened = draw.opened_chunks(drawn, subject, self.layout.count, policy.opened_chunks)
        comparison = compare_chunks(
            self.manifest.update.codec,
            self.layout,
            {chunk: update.chunks[chunk] for chunk in opened},
            dict(enumerate(replayed)),
            _BOUNDS,
        )
        if comparison.outcome is Outcome.AGREES:
            member.passes += 1
        elif comparison.outcome is Outcome.DIFFERS and member.blocked_from is None:
            member.blocked_from = number + LAG_ROUNDS

    def _combined(self, updates: list[EncodedUpdate], number: int) -> Iterator[bytes]:
        codec = self.manifest.update.codec
        for chunk in range(self.layout.count):
            inputs = self._inputs(updates, chunk)
            mean = combine_chunk(self.case.combine, inputs, [1] * len(inputs))
            yield encode_chunk(codec, mean, noise_key(_RUN_ID, number, chunk, MEAN_SOURCE))


def run(quick: bool) -> list[Row]:
    """Every case with the same rounds; ``quick`` only proves that it runs."""
    torch.set_num_threads(1)
    rounds, steps = (3, 2) if quick else (30, 5)
    manifest = _manifest(rounds, steps)
    plays, rows = Plays(manifest.sequence_length), list[Row]()
    for case in CASES:
        simulation = Simulation(
            case,
            manifest,
            plays,
            _members(case),
            rounds // 3 if case.sleepers else 0,
            initial_weights(manifest),
        )
        for number in track(range(rounds), description=case.name):
            simulation.round(number)
        loss = simulation.loss()
        clean = rows[0]["loss"] if rows else loss
        assert isinstance(clean, float)
        rows.append(
            {
                "case": case.name,
                "rounds": rounds,
                "loss": round(loss, 4),
                "excess_percent": round(100 * (loss / clean - 1), 2),
                "hostile_caught": sum(
                    m.hostile and m.blocked_from is not None for m in simulation.members
                ),
                "honest_punished": sum(
                    not m.hostile and m.blocked_from is not None for m in simulation.members
                ),
                "replays_per_unit": round(simulation.audited / simulation.trained, 3),
            }
        )
    write_report("hostile-quick" if quick else "hostile", rows, note=NOTE)
    return rows


def _manifest(rounds: int, steps: int) -> RunManifest:
    manifest = make_manifest(make_config(48, 2), steps)
    tokens = rounds * MEMBERS * steps * manifest.tokens_per_step
    rate = LearningRate(peak=_PEAK_RATE, total_tokens=tokens)
    inner = manifest.inner.model_copy(update={"learning_rate": rate})
    return manifest.model_copy(update={"inner": inner})


def _members(case: Case) -> list[Member]:
    return [
        Member(
            Identity.from_seed(bytes([number]) * 32),
            hostile=number < case.hostile,
            passes=_TRUSTED_PASSES if case.sleepers else 0,
        )
        for number in range(MEMBERS)
    ]
