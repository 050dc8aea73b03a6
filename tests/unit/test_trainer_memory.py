"""Memory that runs out for real: the trainer's limit, halves of a batch, and clear sentences."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
import torch

from protocol.errors import TransientError, UsageError
from protocol.manifest import RunManifest
from protocol.memory import ran_out
from worker.choice import Choice
from worker.trainer import Progress, Trainer
from worker.trainer_memory import CODE_MIB, LEAST_MIB, MemoryLimit, OutOfMemory

MIB = 1 << 20
WIDE = {
    "model_type": "llama",
    "vocab_size": 32768,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
"""Its logits take 4 MiB a sequence, several times over, and it hardly anything else."""

BATCH = 32
LIMIT_MIB = 640


@pytest.fixture
def wide(make_manifest: Callable[..., RunManifest]) -> RunManifest:
    return make_manifest(
        model_config_json=WIDE, inner={"sequences_per_batch": BATCH}, update={"codec": "fp32"}
    )


@pytest.mark.timeout(300)
async def test_a_batch_that_runs_out_of_memory_is_halved_and_the_unit_is_the_same(
    tmp_path: Path, wide: RunManifest, trainer_rig: ModuleType
) -> None:
    job = trainer_rig.write_job(tmp_path, wide, steps=3)
    lighter: list[Choice | None] = []
    most_own = 0

    def on_progress(now: Progress) -> None:
        nonlocal most_own
        lighter.append(now.lighter)
        assert limited.pid is not None
        status = Path(f"/proc/{limited.pid}/status").read_text()
        own = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        most_own = max(most_own, int(own.split()[1]) << 10)

    async with Trainer(1, memory_mib=LIMIT_MIB) as limited:
        trained = await limited.train(job, on_progress)
    small = lighter[-1]
    assert small is not None and 1 <= small.micro_batch_sequences < BATCH
    assert trained.steps == 3
    # The kernel held it to what its owner gave.
    assert 0 < most_own <= (LIMIT_MIB - CODE_MIB) * MIB

    # The same update comes out as of a unit that was begun with as small parts. It is not equal to
    # the bit, as in test_training_lighter: torch's libraries may do with less memory their own way.
    update = np.fromfile(job.output, np.float32)
    async with Trainer(1) as free:
        again = replace(job, snapshot=f"{job.snapshot}2", **small.dump())
        whole = await free.train(again)
        assert free.progress.lighter is None
    other = np.fromfile(job.output, np.float32)
    assert np.linalg.norm(update - other) < 1e-3 * np.linalg.norm(other)
    assert trained.mean_loss == pytest.approx(whole.mean_loss, rel=1e-6)


@pytest.mark.timeout(300)
async def test_what_fits_in_no_way_is_a_sentence_and_the_process_ends_with_its_owner(
    tmp_path: Path, make_manifest: Callable[..., RunManifest], trainer_rig: ModuleType
) -> None:
    huge = make_manifest(model_config_json={**WIDE, "vocab_size": 65536, "hidden_size": 512})
    job = trainer_rig.write_job(tmp_path, huge, steps=1)
    async with Trainer(1, memory_mib=LEAST_MIB) as trainer:
        with pytest.raises(OutOfMemory, match="not enough memory"):
            await trainer.train(job)
        pid = trainer.pid
    assert pid is None or not psutil.pid_exists(pid)


async def test_a_limit_that_nothing_can_be_loaded_into_says_so_at_once(
    tmp_path: Path, manifest: RunManifest, trainer_rig: ModuleType
) -> None:
    job = trainer_rig.write_job(tmp_path, manifest, steps=1)
    async with Trainer(1, memory_mib=LEAST_MIB - 1) as trainer:
        async with asyncio.timeout(100):
            with pytest.raises(OutOfMemory, match=r"limits\.memory_mib is 447"):
                await trainer.train(job)


def test_the_least_that_can_be_given() -> None:
    assert MemoryLimit(0).problem == "" and MemoryLimit(LEAST_MIB).problem == ""
    assert "448" in MemoryLimit(1).problem
    assert issubclass(OutOfMemory, UsageError) and OutOfMemory.reason == "MEMORY"


def test_only_allocations_that_failed_are_want_of_memory() -> None:
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 50)
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(1 << 50)
    assert ran_out(numpys.value) and ran_out(torchs.value)
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert ran_out(RuntimeError("could not create a primitive"))
    assert not ran_out(
        RuntimeError("could not create a primitive descriptor for the matmul primitive")
    )
    assert ran_out(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not ran_out(OSError(errno.ENOSPC, "No space left on device"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ran_out(ValueError("out of memory"))
    assert not ran_out(TransientError("out of memory"))
