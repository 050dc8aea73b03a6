"""Cheats in what is trained and committed to: around the trainer's one call."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from faults import Fault, Unit, changed_update, falsify, split
from plan import Plan

from protocol.dataset import DatasetManifest
from protocol.manifest import RunManifest
from protocol.update import ChunkLayout, EncodedUpdate
from worker.trainer import Job, Progress, Trained, Trainer

_VICTIM_PATIENCE_S = 4.0
_POLL_S = 0.02


def install(plan: Plan) -> None:
    """Every unit goes through the plan; see :func:`_dishonest`."""
    honest = Trainer.train

    async def train(
        self: Trainer, job: Job, on_progress: Callable[[Progress], None] | None = None
    ) -> Trained:
        plan.begin_unit(Path(job.output).stem.encode())
        if not plan.cheats:
            return await honest(self, job, on_progress)
        if plan.fault is Fault.DROP_TRAINING:
            return await honest(self, job, lambda _: plan.die(job.round))
        began_s = time.time()
        manifest = await asyncio.to_thread(_manifest, job)
        other = await asyncio.to_thread(_another_job, plan, job, manifest)
        trained = await honest(self, other, on_progress)
        if other != job:
            plan.note(job.round)
            trained = _as_leased(trained, job, manifest)
        return await asyncio.to_thread(_dishonest, plan, job, manifest, trained, began_s)

    Trainer.train = train  # type: ignore[method-assign]


def _manifest(job: Job) -> RunManifest:
    return RunManifest.parse(Path(job.manifest).read_bytes())


# ---- another job: what comes out is passed off as the one that was leased


def _another_job(plan: Plan, job: Job, manifest: RunManifest) -> Job:
    if plan.fault is Fault.HALF_STEPS:
        return _fewer_steps(job, manifest, job.unit["steps"] // 2)
    if plan.fault in (Fault.MOST_STEPS, Fault.HIDDEN_STEPS):
        return _fewer_steps(job, manifest, job.unit["steps"] * 9 // 10)
    if plan.fault is Fault.OTHER_DATA:
        return _other_data(job)
    if plan.fault is Fault.STALE_BASE:
        return _stale_base(job)
    return job


def _fewer_steps(job: Job, manifest: RunManifest, steps: int) -> Job:
    steps = max(1, steps)
    end = job.unit["start_sequence"] + steps * manifest.inner.sequences_per_batch
    return replace(job, unit=job.unit | {"steps": steps, "end_sequence": end})


def _other_data(job: Job) -> Job:
    """The same number of sequences from half a shard further on."""
    start, end = job.unit["start_sequence"], job.unit["end_sequence"]
    first = 0
    for shard in DatasetManifest.parse(Path(job.dataset).read_bytes()).shards:
        if start < first + shard.sequences:
            room = shard.sequences - (end - start)
            other = first + (start - first + shard.sequences // 2) % room
            where = {"start_sequence": other, "end_sequence": other + end - start}
            return replace(job, unit=job.unit | where)
        first += shard.sequences
    raise AssertionError("a unit beyond the data")


def _stale_base(job: Job) -> Job:
    """The first weights that it ever had, round after round."""
    kept = Path(job.output).with_name("stale.safetensors.part")  # a start clears other names
    if not kept.exists():
        shutil.copyfile(job.weights, kept)
        return job
    return replace(job, weights=str(kept))


def _as_leased(trained: Trained, job: Job, manifest: RunManifest) -> Trained:
    steps = job.unit["steps"]
    return replace(trained, steps=steps, tokens=steps * manifest.tokens_per_step)


# ---- another update


def _dishonest(
    plan: Plan, job: Job, manifest: RunManifest, trained: Trained, began_s: float
) -> Trained:
    """Replace the trainer's output file, and the root that will be committed to; blocking."""
    output = Path(job.output)
    layout = ChunkLayout(trained.elements, manifest.update.chunk_elements)
    unit = Unit(manifest.run_id, job.round, job.worker, manifest.update.codec, layout)
    chunks = split(output.read_bytes(), layout, unit.codec)
    if plan.fault in (Fault.COPIED_UPDATE, Fault.COPIED_ROOT):
        other = _of_the_victim(plan, unit, began_s)
    elif plan.fault is Fault.REPLAYED_UPDATE:
        other = _own_first(output, chunks, unit)
    elif plan.fault is Fault.PARTNER_SENDS:
        other = _with_a_partner(plan, job, chunks, unit)
    else:
        other = changed_update(plan.fault, chunks, unit)
    if other is None:
        return trained
    plan.note(job.round)
    if plan.fault is not Fault.COPIED_ROOT:
        output.write_bytes(b"".join(other.chunks))
    return replace(trained, root=other.root)


def _of_the_victim(plan: Plan, unit: Unit, began_s: float) -> EncodedUpdate | None:
    """What another worker has just written down; its folder was broken into."""
    assert plan.folder is not None
    end_s = time.monotonic() + _VICTIM_PATIENCE_S
    while time.monotonic() < end_s:
        for path in (plan.folder / "updates").glob("*.update"):
            if path.stat().st_mtime >= began_s:
                return EncodedUpdate.of(split(path.read_bytes(), unit.layout, unit.codec))
        time.sleep(_POLL_S)
    return None


def _own_first(output: Path, chunks: tuple[bytes, ...], unit: Unit) -> EncodedUpdate | None:
    """The update of an earlier round once more."""
    kept = output.with_name("first.encoding.part")
    if not kept.exists():
        kept.write_bytes(b"".join(chunks))
        return None
    return EncodedUpdate.of(split(kept.read_bytes(), unit.layout, unit.codec))


def _with_a_partner(plan: Plan, job: Job, chunks: tuple[bytes, ...], unit: Unit) -> EncodedUpdate:
    """Falsify a chunk that the partner reduces; the partner learns what it should have been."""
    assert plan.folder is not None
    last = unit.layout.count - 1
    part = plan.folder / "honest.part"
    part.write_bytes(b"".join(chunks))
    part.rename(honest_file(plan.folder, bytes.fromhex(Path(job.output).stem)))
    return falsify(chunks, [last], unit)


def honest_file(folder: Path, assignment_id: bytes) -> Path:
    """Where the pair keeps what an update should have been."""
    return folder / f"{assignment_id.hex()}.honest"
