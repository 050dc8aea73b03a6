"""A unit that was cut short goes on from its snapshot, and comes to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from protocol import snapshot
from protocol.manifest import RunManifest
from protocol.model import initial_weights
from protocol.snapshot import Snapshot
from protocol.training import Execution, Unit, UnitResult, concluded, train
from worker import unit_snapshots
from worker.unit_snapshots import UnitSnapshots

STEPS = 5
UNIT = Unit(0, STEPS * 4, STEPS, seed=3, tokens_base=1000)


class Noise:
    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        return np.random.default_rng(start).integers(0, 256, (end - start, 32))


@pytest.fixture
def work(manifest: RunManifest) -> Callable[..., UnitResult]:
    weights = initial_weights(manifest)
    return partial(train, manifest, weights, UNIT, Noise())


def after(work: Callable[..., UnitResult], steps: int, **options: Any) -> Snapshot:
    taken: list[Snapshot] = []
    work(on_step=lambda done, _: done < steps, keep=lambda take: taken.append(take()), **options)
    return taken[-1]


def same(a: UnitResult, b: UnitResult) -> bool:
    return a.update.tobytes() == b.update.tobytes() and (a.steps, a.mean_loss, a.update_norm) == (
        b.steps,
        b.mean_loss,
        b.update_norm,
    )


@pytest.mark.parametrize("steps", range(1, STEPS + 1))
def test_it_comes_to_the_same_bits_wherever_it_was_cut(
    work: Callable[..., UnitResult], tmp_path: Path, steps: int
) -> None:
    whole = work()
    snapshot.write(tmp_path / "unit", after(work, steps), "this unit")
    torch.manual_seed(99)  # whatever the new process did before
    read = snapshot.read(tmp_path / "unit", "this unit")
    assert read is not None and read.steps == steps
    assert same(work(resume=read), whole)


def test_it_may_be_cut_again_and_again(work: Callable[..., UnitResult]) -> None:
    twice = after(work, 4, resume=after(work, 2))
    assert same(work(resume=twice), work())


def test_micro_batches_are_gone_on_with(work: Callable[..., UnitResult]) -> None:
    execution = Execution(micro_batch_sequences=3)
    begun = after(work, 3, execution=execution)
    assert same(work(execution=execution, resume=begun), work(execution=execution))


def test_what_is_done_is_a_unit_when_no_time_is_left(
    work: Callable[..., UnitResult], manifest: RunManifest
) -> None:
    random = torch.get_rng_state()
    short = concluded(manifest, initial_weights(manifest), after(work, 3))
    assert same(short, work(on_step=lambda done, _: done < 3))
    assert torch.equal(torch.get_rng_state(), random)


def test_only_a_whole_snapshot_of_this_unit_is_read(
    work: Callable[..., UnitResult], tmp_path: Path
) -> None:
    path = tmp_path / "unit"
    assert snapshot.read(path, "this unit") is None
    snapshot.write(path, after(work, 2), "this unit")
    assert snapshot.read(path, "another unit") is None
    stored = path.read_bytes()
    for damaged in (b"", stored[:20], stored[:-1], bytes(len(stored)), _flipped(stored)):
        path.write_bytes(damaged)
        assert snapshot.read(path, "this unit") is None


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


# ---- when they are taken


def job(folder: Path, **fields: Any) -> dict[str, Any]:
    for name in ("weights", "shard", "elsewhere"):
        if not (folder / name).exists():
            (folder / name).write_text(name)
    usual: dict[str, Any] = {
        "snapshot": str(folder / "unit.snapshot"),
        "keep_snapshots": True,
        "weights": str(folder / "weights"),
        "shards": {"00": str(folder / "shard")},
        "unit": {"steps": STEPS},
        "round": 1,
        "worker": "ada",
        "threads": 1,
        "device": "cpu",
        "micro_batch_sequences": 0,
        "autocast_bf16": False,
        "stop_after_s": 10.0,
    }
    return usual | fields


@pytest.mark.parametrize(
    "other",
    [
        {"unit": {"steps": 4}},
        {"round": 2},
        {"device": "cuda"},
        {"threads": 2},
        {"micro_batch_sequences": 1},
        {"autocast_bf16": True},
    ],
)
def test_another_way_to_compute_it_begins_anew(
    work: Callable[..., UnitResult], tmp_path: Path, other: dict[str, Any]
) -> None:
    begun = after(work, 2)
    kept = UnitSnapshots(job(tmp_path))
    kept._next_s = 0.0
    kept.keep(lambda: begun)
    assert UnitSnapshots(job(tmp_path, **other)).read() is None
    resumed = UnitSnapshots(job(tmp_path, stop_after_s=1.0)).read()
    assert resumed is not None and resumed.steps == 2


@pytest.mark.parametrize("name", ["weights", "shard"])
def test_what_was_trained_from_a_file_that_was_written_to_is_not_gone_on_with(
    work: Callable[..., UnitResult], tmp_path: Path, name: str
) -> None:
    begun = after(work, 2)
    kept = UnitSnapshots(job(tmp_path))
    kept._next_s = 0.0
    kept.keep(lambda: begun)
    with (tmp_path / name).open("r+") as file:
        file.write("x")
    assert UnitSnapshots(job(tmp_path)).read() is None


def test_little_is_written(
    work: Callable[..., UnitResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = after(work, 2)
    now_s, cpu_s, taking_cpu_s = 100, 7.0, 0.0
    monkeypatch.setattr(unit_snapshots.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(unit_snapshots.time, "process_time", lambda: cpu_s)
    taken: list[int] = []

    def take() -> Snapshot:
        nonlocal cpu_s
        taken.append(now_s)
        cpu_s += taking_cpu_s
        return begun

    kept = UnitSnapshots(job(tmp_path))
    for _ in range(60):
        now_s += 1
        kept.keep(take)
    size_bytes = (tmp_path / "unit.snapshot").stat().st_size
    assert taken == list(range(101, 161))

    monkeypatch.setattr(unit_snapshots, "BYTES_PER_S", size_bytes / 20)
    taken.clear()
    kept = UnitSnapshots(job(tmp_path))
    for _ in range(60):
        now_s += 1
        kept.keep(take)
    assert taken == [161, 181, 201]  # a large model: every twenty seconds

    monkeypatch.setattr(unit_snapshots, "BYTES_PER_S", size_bytes)
    taking_cpu_s = 0.125
    taken.clear()
    kept = UnitSnapshots(job(tmp_path))
    for _ in range(60):
        now_s, cpu_s = now_s + 1, cpu_s + 0.5  # other programs have the other half
        kept.keep(take)
    assert taken == [221, 246, 271]  # 12.5 s of the processor between them: a hundredth


def test_a_full_disk_costs_the_snapshot_only(
    work: Callable[..., UnitResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    begun = after(work, 2)
    kept = UnitSnapshots(job(tmp_path))
    kept._next_s = 0.0
    monkeypatch.setattr(unit_snapshots.snapshot, "write", full)
    kept.keep(lambda: begun)
    assert not list(tmp_path.glob("*.snapshot*"))
