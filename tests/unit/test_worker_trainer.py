"""The trainer process: whole units, partial ones, and its end."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from protocol.dataset import DatasetManifest, ShardInfo, Source
from protocol.errors import BadRecord, TransientError
from protocol.manifest import RunManifest
from protocol.model import initial_weights, parameter_spec
from protocol.state import write_vector
from protocol.update import ChunkLayout, EncodedUpdate
from worker.trainer import Job, Progress, Trainer, TrainerDied, WarmUp
from worker.unit_snapshots import LEAST_S

STEPS = 200


@pytest.fixture
def job(tmp_path: Path, make_manifest: Callable[..., RunManifest]) -> Job:
    manifest = make_manifest(inner={"max_steps": STEPS})
    batch = manifest.inner.sequences_per_batch
    tokens = np.random.default_rng(1).integers(0, 256, (STEPS * batch, 32)).astype("<u2")
    data = tokens.tobytes()
    shard = ShardInfo(
        sha256=hashlib.sha256(data).hexdigest(), sequences=len(tokens), bytes=len(data)
    )
    (tmp_path / "shard").write_bytes(data)
    source = Source(name="x", licence="x", files=1, documents=1, bytes=1, sha256="0" * 64)
    dataset = DatasetManifest(
        dtype="uint16",
        sequence_length=32,
        vocab_size=256,
        eos_token_id=0,
        tokenizer_sha256="0" * 64,
        shuffle_seed=1,
        shards=(shard,),
        validation=shard,
        sources=(source,),
        licence="x",
        tokens=tokens.size,
    )
    (tmp_path / "dataset").write_bytes(dataset.canonical())
    (tmp_path / "manifest").write_bytes(manifest.canonical())
    spec = parameter_spec(manifest.model_config_json)
    write_vector(tmp_path / "weights", initial_weights(manifest), spec)
    return Job(
        manifest=str(tmp_path / "manifest"),
        dataset=str(tmp_path / "dataset"),
        shards={shard.sha256: str(tmp_path / "shard")},
        weights=str(tmp_path / "weights"),
        unit={
            "start_sequence": 0,
            "end_sequence": STEPS * batch,
            "steps": STEPS,
            "seed": 1,
            "tokens_base": 0,
        },
        round=0,
        worker="worker",
        output=str(tmp_path / "output"),
        snapshot=str(tmp_path / "unit.snapshot"),
        threads=1,
        device="cpu",
        stop_after_s=1000.0,
    )


def _warm_up(job: Job, *, measure: bool) -> WarmUp:
    return WarmUp(job.manifest, job.threads, job.device, measure=measure)


@pytest.fixture
async def trainer(job: Job) -> AsyncIterator[Trainer]:
    async with Trainer(1) as started:
        await started.warm_up(_warm_up(job, measure=False))
        yield started


def changed(job: Job, **fields: object) -> Job:
    return Job(**{**job.__dict__, **fields})  # type: ignore[arg-type]


async def test_units_stop_at_a_step_boundary_and_the_process_is_reaped(
    job: Job, trainer: Trainer
) -> None:
    seen: list[int] = []
    started = asyncio.Event()

    def on_progress(progress: Progress) -> None:
        seen.append(progress.steps_done)
        started.set()

    # 1. Stopped: the steps done so far are a unit, and its file is what its root says.
    async with asyncio.TaskGroup() as tasks:
        training = tasks.create_task(trainer.train(job, on_progress))
        await started.wait()
        await trainer.stop()
    partial = training.result()
    assert 1 <= partial.steps < STEPS
    assert partial.steps == seen[-1] and seen == list(range(1, partial.steps + 1))
    assert partial.tokens == partial.steps * 4 * 32
    assert read_root(job, partial.elements) == partial.root

    # 2. The same process goes on with the next; out of time, it does one step and ends.
    pid = trainer.pid
    short = await trainer.train(changed(job, stop_after_s=0.0, snapshot=job.snapshot + "2"))
    assert (short.steps, trainer.pid) == (1, pid)

    # 3. The first h steps are the same unit whether or not the rest is done.
    unit = {**job.unit, "steps": 1, "end_sequence": 4}
    whole = await trainer.train(changed(job, unit=unit))
    assert whole.root == short.root

    # 4. Damaged weights (here: another file) are refused in our words, and the process lives.
    damaged = changed(job, weights=job.dataset)
    with pytest.raises(BadRecord):
        await trainer.train(damaged)
    assert trainer.pid == pid and pid is not None

    # 5. Nothing is left.
    await trainer.close()
    assert not psutil.pid_exists(pid)


async def test_an_abandoned_or_killed_trainer_leaves_no_process(job: Job, trainer: Trainer) -> None:
    first = trainer.pid
    assert first is not None
    begun = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        training = tasks.create_task(trainer.train(job, lambda _: begun.set()))
        await begun.wait()
        training.cancel()
    assert training.cancelled()
    assert not psutil.pid_exists(first)

    begun = asyncio.Event()

    async def kill() -> None:
        await begun.wait()
        assert trainer.pid is not None
        psutil.Process(trainer.pid).kill()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kill())
        with pytest.raises(TransientError, match="died"):
            await trainer.train(job, lambda _: begun.set())
    assert trainer.pid is None


def read_root(job: Job, elements: int) -> bytes:
    manifest = RunManifest.parse(Path(job.manifest).read_bytes())
    layout = ChunkLayout(elements, manifest.update.chunk_elements)
    data, chunks, start = Path(job.output).read_bytes(), [], 0
    for chunk in range(layout.count):
        size = layout.encoded_bytes(manifest.update.codec, chunk)
        chunks.append(data[start : start + size])
        start += size
    return EncodedUpdate.of(tuple(chunks)).root


async def test_the_first_warm_up_measures_and_a_second_one_costs_nothing(
    trainer: Trainer, job: Job, manifest: RunManifest
) -> None:
    assert await trainer.warm_up(_warm_up(job, measure=True)) is None  # warm already
    pid = trainer.pid
    await trainer.close()
    warm = await trainer.warm_up(_warm_up(job, measure=True))
    assert trainer.pid != pid
    trained = await trainer.train(job)
    assert warm is not None
    # Rough is good enough, for the machine may be busy with other things.
    assert 0 < warm.tokens_per_s < 100 * trained.tokens_per_s
    assert warm.spec == parameter_spec(manifest.model_config_json)


async def test_a_unit_goes_on_in_the_next_process(job: Job, trainer: Trainer) -> None:
    kept = Path(job.snapshot)

    def kill_when_kept(now: Progress) -> None:
        assert trainer.pid is not None
        process = psutil.Process(trainer.pid)
        if now.steps_done == 1:  # however fast it is: a snapshot is due at its next step
            process.suspend()
            time.sleep(LEAST_S)
            process.resume()
        if kept.exists():
            process.kill()

    with pytest.raises(TrainerDied):
        await trainer.train(job, kill_when_kept)

    # 1. No time is left: what the snapshot has is the unit.
    told: list[int] = []
    short = await trainer.train(
        changed(job, stop_after_s=0.0), lambda now: told.append(now.steps_done)
    )
    assert told == [short.steps] and 1 <= short.steps < STEPS

    # 2. There is: it goes on, and ends where it would have without the kill.
    told.clear()
    resumed = await trainer.train(job, lambda now: told.append(now.steps_done))
    assert told == list(range(short.steps, STEPS + 1))
    whole = await trainer.train(changed(job, snapshot=job.snapshot + "2"))
    assert (resumed.root, resumed.mean_loss, resumed.update_norm) == (
        whole.root,
        whole.mean_loss,
        whole.update_norm,
    )
