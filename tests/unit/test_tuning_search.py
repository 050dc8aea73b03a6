"""Which ways of computing are tried, which one is taken, and what is kept of it: pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.manifest import RunManifest
from worker import tuning_search as search
from worker.choice import Choice
from worker.oom_kills import oom_kills
from worker.tuning_record import KILLED, TuningFile, TuningKey, TuningRecord, model_digest
from worker.tuning_search import Tried

GIB = 1 << 30
KEY = TuningKey("m", "cpu x", 1, "2", 0, 0, False, 0)


def walk(batch: int, measure: Callable[[Choice], Tried], *, memory_bytes: int = 0) -> list[Tried]:
    tried: list[Tried] = []
    while True:
        choice = search.next_size(
            tried, search.sizes(batch), spent_s=0.0, memory_bytes=memory_bytes
        )
        if choice is None:
            return tried
        tried.append(measure(choice))


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])],
)
def test_sizes_are_powers_of_two_and_the_batch(batch: int, sizes: list[int]) -> None:
    assert search.sizes(batch) == [Choice(size) for size in sizes]


def test_lighter_is_a_half_down_to_one_then_computed_twice_then_nothing() -> None:
    seen, choice = [], Choice(13, compile=True)
    while choice is not None:
        seen.append(choice)
        smaller = choice.lighter()
        assert smaller is None or smaller.takes_less_than(choice)
        assert smaller is None or not choice.takes_less_than(smaller)
        choice = smaller  # type: ignore[assignment]
    assert seen == [
        Choice(13, compile=True),
        *(Choice(size) for size in (13, 4, 2, 1)),
        Choice(1, checkpointing=True),
    ]


@pytest.mark.parametrize(
    ("speeds", "bytes_each", "size"),
    [
        ((100.0, 197.0, 200.0, 199.0), 0, 8),  # equals: the whole batch
        ((100.0, 197.0, 200.0, 195.0), 0, 8),  # what 4 was faster by is noise
        ((100.0, 180.0, 200.0, 190.0), 0, 4),  # and this is not
        ((100.0, 197.0, 200.0, 199.0), 64 << 20, 4),  # 8 takes 384 MiB more than 2, for nothing
        ((100.0, 197.0, 200.0, 199.0), GIB, 2),
        ((100.0, 180.0, 200.0, 300.0), GIB, 8),  # for something
    ],
)
def test_the_fastest_is_taken_and_of_equals_the_largest_that_is_cheap(
    speeds: tuple[float, ...], bytes_each: int, size: int
) -> None:
    def measure(choice: Choice) -> Tried:
        count = choice.micro_batch_sequences
        speed = speeds[count.bit_length() - 1]
        return Tried(choice, speed, peak_bytes=count * bytes_each)

    tried = walk(8, measure)
    assert len(tried) == 4
    assert search.best(tried) == Choice(size)


def test_nothing_larger_is_tried_when_two_sizes_were_no_faster() -> None:
    tried = walk(64, lambda choice: Tried(choice, 100.0 / choice.micro_batch_sequences))
    assert [one.choice.micro_batch_sequences for one in tried] == [1, 2, 4]
    assert search.best(tried) == Choice(1)


def test_nothing_larger_is_tried_than_what_did_not_fit() -> None:
    def measure(choice: Choice) -> Tried:
        size = choice.micro_batch_sequences
        return Tried(choice, failed="out of memory") if size > 2 else Tried(choice, 10.0 * size)

    tried = walk(64, measure)
    assert [one.choice.micro_batch_sequences for one in tried] == [1, 2, 4]
    assert search.best(tried) == Choice(2)


def test_activations_are_computed_twice_only_when_one_sequence_does_not_fit() -> None:
    def measure(choice: Choice) -> Tried:
        return Tried(choice, 5.0) if choice.checkpointing else Tried(choice, failed="no")

    tried = walk(8, measure)
    assert [one.choice for one in tried] == [Choice(1), Choice(1, checkpointing=True)]
    assert search.best(tried) == Choice(1, checkpointing=True)
    nothing = walk(8, lambda choice: Tried(choice, failed="no"))
    assert len(nothing) == 2 and search.best(nothing) is None


def test_what_would_plainly_not_fit_is_not_tried() -> None:
    def measure(choice: Choice) -> Tried:
        size = choice.micro_batch_sequences
        return Tried(choice, 10.0 * size, peak_bytes=GIB + size * GIB)

    tried = walk(64, measure, memory_bytes=10 * GIB)
    assert [one.choice.micro_batch_sequences for one in tried] == [1, 2, 4, 8]


def test_time_ends_the_search_but_never_before_one_is_known() -> None:
    late = {"spent_s": 1e6, "memory_bytes": 0}
    assert search.next_size([], search.sizes(8), **late) == Choice(1)  # type: ignore[arg-type]
    known = [Tried(Choice(1), 1.0)]
    assert search.next_size(known, search.sizes(8), **late) is None  # type: ignore[arg-type]
    # Memory is another matter: what does not fit is no answer, however late it is.
    failed = [Tried(Choice(1), failed="no")]
    assert search.next_size(failed, search.sizes(8), **late) == Choice(1, True)  # type: ignore[arg-type]


def test_compiling_is_tried_for_long_units_with_memory_to_spare() -> None:
    plain, tried = Choice(4), [Tried(Choice(4), 100.0)]
    compiled = Choice(4, compile=True)
    assert search.worth_compiling(plain, tried, unit_s=60.0) is None
    assert search.worth_compiling(plain, tried, unit_s=3600.0) == compiled
    short = [*tried, Tried(Choice(8), failed="out of memory")]
    assert search.worth_compiling(plain, short, unit_s=3600.0) is None
    known = [*tried, Tried(compiled, failed="rounds")]
    assert search.worth_compiling(plain, known, unit_s=3600.0) is None


def test_compiled_code_pays_when_one_unit_wins_more_than_it_took() -> None:
    plain = Tried(Choice(4), 100.0)
    fast = Tried(Choice(4, compile=True), 125.0, first_s=30.0)
    assert search.pays(fast, plain, unit_s=300.0)  # a fifth of it: 60 s
    assert not search.pays(fast, plain, unit_s=100.0)
    assert not search.pays(replace(fast, tokens_per_s=101.0), plain, unit_s=1e6)
    assert not search.pays(replace(fast, failed="rounds"), plain, unit_s=1e6)


# ---- the file --------------------------------------------------------------------------


def test_the_file_gives_back_what_was_written_for_its_key_alone(tmp_path: Path) -> None:
    file = TuningFile(tmp_path / "tuning.json")
    record = TuningRecord(
        tried=(Tried(Choice(1), 10.0, 1.0, GIB), Tried(Choice(2), failed="out of memory")),
        choice=Choice(1),
        decided=True,
        unit_since_kills=3,
        unit_tokens_per_s=9.5,
        measured_at_s=1_700_000_000,
    )
    assert file.read(KEY) == TuningRecord()
    file.write(KEY, record)
    assert file.read(KEY) == record
    assert record.tokens_per_s == 9.5 and replace(record, unit_tokens_per_s=0.0).tokens_per_s == 10
    for field, other in (
        *(("model", "n"), ("device", "cuda y"), ("threads", 2), ("torch", "3")),
        *(("memory_mib", 1024), ("autocast_bf16", True), ("micro_batch_sequences", 4)),
    ):
        assert file.read(replace(KEY, **{field: other})) == TuningRecord(), field  # type: ignore[arg-type]
    file.forget()
    file.forget()
    assert file.read(KEY) == TuningRecord()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        "[" * 50_000,
        json.dumps({"format": "barnraise-tuning/1", "key": {}, "tried": 3}),
        json.dumps({"format": "barnraise-tuning/2"}),
    ],
)
def test_a_damaged_file_is_no_file(tmp_path: Path, text: str) -> None:
    file = TuningFile(tmp_path / "tuning.json")
    file.path.write_text(text)
    assert file.read(KEY) == TuningRecord()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("choice", {"micro_batch_sequences": 0, "checkpointing": False, "compile": False}),
        ("choice", {"micro_batch_sequences": True, "checkpointing": False, "compile": False}),
        ("choice", {"micro_batch_sequences": 1 << 40, "checkpointing": False, "compile": False}),
        ("choice", {"micro_batch_sequences": 1, "checkpointing": 1, "compile": False}),
        ("choice", "1"),
        ("tried", [None]),
        ("tried", [{}] * 100),
        ("unit_tokens_per_s", -1.0),
        ("unit_tokens_per_s", float("nan")),
        ("unit_tokens_per_s", 1e300),
        ("decided", "yes"),
        ("unit_since_kills", "many"),
    ],
)
def test_a_file_with_an_impossible_value_is_no_file(
    tmp_path: Path, field: str, value: object
) -> None:
    file = TuningFile(tmp_path / "tuning.json")
    file.write(KEY, TuningRecord(choice=Choice(2), decided=True))
    raw = json.loads(file.path.read_text())
    file.path.write_text(json.dumps({**raw, field: value}))
    assert file.read(KEY) == TuningRecord()


def test_a_disk_that_takes_nothing_costs_nothing_but_the_file(tmp_path: Path) -> None:
    file = TuningFile(tmp_path / "no such folder" / "tuning.json")
    file.write(KEY, TuningRecord(decided=True))
    assert file.read(KEY) == TuningRecord()


def test_a_try_that_ended_the_process_has_failed() -> None:
    record = TuningRecord(tried=(Tried(Choice(1), 10.0),), trying=Choice(2))
    known = record.after_a_kill()
    assert known.tried[-1] == Tried(Choice(2), failed=KILLED) and known.trying is None
    assert search.next_size(known.tried, search.sizes(8), spent_s=0, memory_bytes=0) is None
    assert known.after_a_kill() is known


def test_the_digest_is_of_what_a_step_does(make_manifest: Callable[..., RunManifest]) -> None:
    known = model_digest(make_manifest())
    assert model_digest(make_manifest(name="renamed")) == known
    assert model_digest(make_manifest(inner={"sequences_per_batch": 8})) != known
    assert model_digest(make_manifest(sequence_length=16)) != known


# ---- what the kernel counts ------------------------------------------------------------


def test_kills_for_want_of_memory_are_counted_here_and_in_the_container(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    assert oom_kills(proc, groups) == 0
    (proc / "self").mkdir(parents=True)
    (proc / "vmstat").write_text("nr_free_pages 3\noom_kill 2\n")
    (proc / "self" / "cgroup").write_text("1:cpu:/x\n0::/user.slice/app\n")
    assert oom_kills(proc, groups) == 2
    group = groups / "user.slice" / "app"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\noom 9\noom_kill 5\n")
    assert oom_kills(proc, groups) == 7
    (proc / "vmstat").write_text("oom_kill many\n")
    assert oom_kills(proc, groups) == 5
