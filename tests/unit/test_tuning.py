"""The tuner over a real trainer: what it measures, keeps, and does when a try ends the process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from protocol.link import JoinLink
from protocol.manifest import RunManifest
from protocol.model import parameter_spec
from worker import tuning
from worker.choice import Choice
from worker.config import Home, WorkerConfig
from worker.limits import Limits
from worker.trainer import Trainer, TrainerDied
from worker.trainer_memory import LEAST_MIB, OutOfMemory
from worker.tuning import Tuner, has_compiler
from worker.tuning_record import KILLED, TuningRecord
from worker.tuning_search import Tried

pytestmark = pytest.mark.timeout(300)

BATCH = 4
TINY = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}


@pytest.fixture
async def trainer() -> AsyncIterator[Trainer]:
    async with Trainer(1) as process:
        yield process


@pytest.fixture
def tuner(tmp_path: Path, manifest: RunManifest, trainer: Trainer) -> Callable[..., Tuner]:
    """``tuner()``: as a worker that was just started; ``tuner(say=...)``: told what it does."""
    home = Home(tmp_path / "home")
    home.prepare()
    link = JoinLink("example.org", 7443, manifest.run_id, manifest.root)
    config = WorkerConfig(str(link), device="cpu", limits=Limits(threads=1))

    def make(
        say: Callable[[str], None] = lambda _: None,
        *,
        manifest: RunManifest = manifest,
        memory_mib: int = 0,
        micro_batch_sequences: int = 0,
    ) -> Tuner:
        home.manifest.write_bytes(manifest.canonical())
        own = replace(
            config,
            limits=replace(config.limits, memory_mib=memory_mib),
            micro_batch_sequences=micro_batch_sequences,
        )
        return Tuner(home, own, manifest, "cpu", trainer, say)

    return make


async def test_the_first_start_measures_and_later_ones_read(
    tuner: Callable[..., Tuner], trainer: Trainer, manifest: RunManifest
) -> None:
    said: list[str] = []
    first = tuner(said.append)
    assert first.speed_hint() == 0.0
    assert await first.settle() == parameter_spec(manifest.model_config_json)
    sizes = [one.choice.micro_batch_sequences for one in first.record.tried]
    assert sizes in ([1, 2, 4], [1, 2])  # the last one is left out if two were no faster
    assert said == [f"measuring this machine: {Choice(size).words}" for size in sizes]
    speeds = {one.choice: one.tokens_per_s for one in first.record.tried}
    assert speeds[first.choice] >= 0.97 * max(speeds.values()) > 0
    assert first.speed_hint() == speeds[first.choice]
    assert all(one.peak_bytes > 100 << 20 for one in first.record.tried)

    # 1. The same process: nothing is loaded, nothing is measured.
    said.clear()
    assert await first.settle() is None
    # 2. Another process: loaded, but not measured.
    await trainer.close()
    second = tuner(said.append)
    assert await second.settle() is not None
    assert (second.record, said) == (first.record, [])
    # 3. What a unit told is better than what noise did.
    await second.unit_begins()
    await second.unit_ends(1234.5)
    assert second.speed_hint() == 1234.5
    # 4. The owner has it measured again.
    second._file.forget()
    assert await second.settle() is None
    assert said != [] and second.speed_hint() != 1234.5
    # 5. The owner knows better; another setting is another measurement.
    said.clear()
    third = tuner(said.append, micro_batch_sequences=3)
    await third.settle()
    assert third.choice == Choice(3) and said == ["measuring this machine: 3 sequences at a time"]


async def test_a_try_that_is_killed_is_not_repeated(
    tuner: Callable[..., Tuner], trainer: Trainer
) -> None:
    def kill_at_two(what: str) -> None:
        if what.endswith("2 sequences at a time"):
            assert trainer.pid is not None
            os.kill(trainer.pid, signal.SIGKILL)

    one = tuner(kill_at_two)
    await one.settle()
    assert [tried.failed for tried in one.record.tried] == ["", KILLED]
    assert one.choice == Choice(1)


async def test_nor_is_one_that_took_the_worker_along(
    tuner: Callable[..., Tuner], tmp_path: Path
) -> None:
    notes: list[str] = []
    path = tmp_path / "home" / "tuning.json"
    dying = tuner(lambda _: notes.append(path.read_text()))
    await dying.settle()
    # As a kill -9 at that moment leaves it.
    assert json.loads(notes[1])["trying"]["micro_batch_sequences"] == 2
    path.write_text(notes[1])
    said: list[str] = []
    risen = tuner(said.append)
    await risen.settle()
    assert said == [] and risen.choice == Choice(1)
    assert risen.record.tried[-1] == Tried(Choice(2), failed=KILLED)


async def test_an_end_while_measuring_leaves_nothing_that_counts_as_failed(
    tuner: Callable[..., Tuner], trainer: Trainer, tmp_path: Path
) -> None:
    begun = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        settling = tasks.create_task(tuner(lambda _: begun.set()).settle())
        await begun.wait()
        settling.cancel()
    assert settling.cancelled()
    raw = json.loads((tmp_path / "home" / "tuning.json").read_text())
    assert (raw["trying"], raw["tried"], raw["decided"]) == (None, [], False)


async def test_when_nothing_fits_it_is_one_reason_and_nothing_is_loaded_for_it_again(
    tuner: Callable[..., Tuner], trainer: Trainer, make_manifest: Callable[..., RunManifest]
) -> None:
    wide = {**TINY, "vocab_size": 65536, "hidden_size": 512}
    poor = {"manifest": make_manifest(model_config_json=wide), "memory_mib": LEAST_MIB}
    trainer.memory_mib = LEAST_MIB
    said: list[str] = []
    hopeless = tuner(said.append, **poor)
    with pytest.raises(OutOfMemory, match=r"even one sequence at a time.*tune --force"):
        await hopeless.settle()
    assert [one.choice for one in hopeless.record.tried] == [Choice(1), Choice(1, True)]
    assert len(said) == 2 and trainer.pid is None
    with pytest.raises(OutOfMemory, match="even one sequence"):
        await hopeless.settle()
    assert trainer.pid is None

    # A restart does not try it either, until the owner asks.
    with pytest.raises(OutOfMemory, match="even one sequence"):
        await tuner(said.append, **poor).settle()
    assert len(said) == 2


async def test_a_limit_below_what_loading_takes_starts_nothing(
    tuner: Callable[..., Tuner], trainer: Trainer
) -> None:
    poor = tuner(memory_mib=100)
    with pytest.raises(OutOfMemory, match=r"limits\.memory_mib is 100"):
        await poor.settle()
    assert trainer.pid is None


async def test_units_that_run_out_of_memory_leave_a_lighter_choice(
    tuner: Callable[..., Tuner], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = 0
    monkeypatch.setattr(tuning, "oom_kills", lambda: kills)
    one = tuner(micro_batch_sequences=4)
    await one.settle()

    # 1. Killed by a person: nothing to do with memory.
    await one.unit_begins()
    assert not await one.unit_failed(TrainerDied("killed"))
    assert one.choice == Choice(4)
    # 2. By the kernel, which has counted it.
    kills = 1
    assert await one.unit_failed(TrainerDied("killed"))
    assert one.choice == Choice(2)
    await one.unit_ends(100.0)
    # 3. It went on with less by itself, within the unit.
    await one.unit_begins()
    trainer.progress.lighter = Choice(1)
    await one.unit_ends(90.0)
    assert (one.choice, one.speed_hint()) == (Choice(1), 90.0)
    # 4. A restart remembers; the worker was killed together with its trainer in the next unit.
    await one.unit_begins()
    kills = 2
    trainer.progress.lighter = None
    two = tuner(micro_batch_sequences=4)
    await two.settle()
    assert two.choice == Choice(1, checkpointing=True)
    # 5. There is nothing lighter.
    await two.unit_begins()
    with pytest.raises(OutOfMemory):
        await two.unit_failed(OutOfMemory("not enough memory for a batch"))
    with pytest.raises(OutOfMemory):
        await two.settle()


async def test_compiled_code_rounds_as_plain_code_does_or_is_not_used(
    tmp_path: Path,
    make_manifest: Callable[..., RunManifest],
    trainer: Trainer,
    trainer_rig: ModuleType,
) -> None:
    job = trainer_rig.write_job(tmp_path, make_manifest(model_config_json=TINY), steps=2)
    compiled = tmp_path / "compiled"
    what = trainer_rig.how(job, compile=True, micro_batch_sequences=BATCH, compiled=str(compiled))
    if not has_compiler("cpu"):  # then it is said, and the trainer lives
        with pytest.raises(Exception, match="cannot be compiled here"):
            await trainer.measure(what)
        assert trainer.pid is not None
        return
    found = await trainer.measure(what)
    assert found.trusted and found.tokens_per_s > 0
    assert any(compiled.rglob("*.so"))  # kept in the home, nowhere else


def test_records_of_no_measurement_know_no_speed() -> None:
    assert TuningRecord().tokens_per_s == 0.0
    assert TuningRecord(choice=Choice(2), decided=True).tokens_per_s == 0.0
