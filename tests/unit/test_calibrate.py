"""Calibration: bounds between honest work and the nearest cheat, or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from coordinator.audit.calibrate import LEAST_GAP, LEAST_HONEST, calibrate_run, make_entry
from coordinator.audit.measure import (
    HALF,
    LAZY,
    LAZY_SCALED,
    OTHER_DATA,
    Bench,
    Subject,
    classes_here,
    variants_of,
)
from coordinator.audit.tolerances import (
    is_outgrown,
    load_table,
    newest_state,
    store_table,
    usual_steps,
)
from coordinator.cli import cli
from coordinator.config import RunFolder
from coordinator.database import Database
from protocol.errors import UsageError
from protocol.manifest import RunManifest
from protocol.model import initial_weights
from protocol.tolerance import Entry, Measured, ToleranceTable

STEPS = 3


class Counting:
    """Arithmetic progressions: something that a tiny model can learn."""

    def batch(self, start: int, end: int) -> NDArray[np.int64]:
        rows = np.arange(start, end)[:, None]
        return (rows * 7 + (1 + rows % 5) * np.arange(32)) % 256


@pytest.fixture(scope="module")
def subject(make_manifest: Callable[..., RunManifest]) -> Subject:
    manifest = make_manifest(inner={"max_steps": STEPS})
    return Subject(manifest, initial_weights(manifest), 2, 1000, Counting(), 64)


@pytest.fixture(scope="module")
def table(subject: Subject) -> ToleranceTable:
    return calibrate_run(subject, samples=1, thorough=False)


def measured(honest: float, chunk: float = 0.0, **cheats: float) -> Measured:
    return Measured(comparisons=1, honest_pooled=honest, honest_chunk=chunk, cheats=cheats)


# ---- the rule ----


def test_bounds_cut_the_gap_in_three() -> None:
    entry = make_entry("cpu", "cuda", 20, measured(0.02, nine_tenths=0.16, half=0.5))
    assert entry.bounds is not None
    assert entry.bounds.pooled_pass == pytest.approx(0.04)
    assert entry.bounds.pooled_fail == pytest.approx(0.08)
    assert entry.catches == ("half", "nine_tenths")


def test_machines_that_agree_to_the_bit_are_granted_what_others_may_need() -> None:
    entry = make_entry("cpu", "cpu", 20, measured(0.0, nine_tenths=0.15))
    assert entry.bounds is not None
    assert entry.bounds.pooled_pass > 2 * LEAST_HONEST
    assert entry.bounds.chunk_pass >= entry.bounds.pooled_pass
    assert entry.bounds.projection > LEAST_HONEST


def test_a_chunk_is_a_hard_bound_of_its_own() -> None:
    entry = make_entry("cpu", "cpu", 20, measured(0.02, chunk=0.1, nine_tenths=0.15))
    assert entry.bounds is not None
    assert (entry.bounds.chunk_pass, entry.bounds.chunk_fail) == pytest.approx((0.15, 0.3))


@pytest.mark.parametrize(
    ("cheats", "catches"),
    [
        ({LAZY_SCALED: 0.2, LAZY: 0.25, HALF: 0.5}, {LAZY_SCALED, LAZY, HALF}),
        ({LAZY_SCALED: 0.12, LAZY: 0.25, HALF: 0.5}, {LAZY, HALF}),
        ({LAZY_SCALED: 0.12, LAZY: 0.15, HALF: 0.5}, {HALF}),
        ({LAZY_SCALED: 0.12, LAZY: 0.15, HALF: 0.17}, set()),
        ({OTHER_DATA: 0.7}, {OTHER_DATA}),
        ({}, set()),
    ],
)
def test_bounds_keep_to_the_nearest_cheat_that_leaves_room(
    cheats: dict[str, float], catches: set[str]
) -> None:
    entry = make_entry("cpu", "cpu-bf16", 20, measured(0.1, **cheats))
    assert set(entry.catches) == catches
    assert (entry.bounds is None) == (not catches)
    if entry.bounds is not None:
        nearest = min(cheats[name] for name in catches)
        margin = LEAST_GAP ** (1 / 3)
        assert 0.1 * margin <= entry.bounds.pooled_pass < entry.bounds.pooled_fail
        assert entry.bounds.pooled_fail <= nearest / margin * 1.000001


# ---- measuring ----


def test_every_pair_and_length_has_an_entry(table: ToleranceTable, subject: Subject) -> None:
    found = [(entry.first, entry.second, entry.steps) for entry in table.entries]
    pairs = [("cpu", "cpu"), ("cpu", "cpu-bf16"), ("cpu-bf16", "cpu-bf16")]
    assert set(found) >= {(*pair, steps) for pair in pairs for steps in (1, 2, STEPS)}
    assert found == sorted(found)
    assert (table.run_id, table.settled_rounds) == (subject.manifest.run_id.hex(), 2)
    assert (table.steps, table.samples) == (STEPS, 1)
    assert ToleranceTable.parse(table.to_json()) == table


def test_honest_work_lies_nearer_than_cheats(table: ToleranceTable) -> None:
    for entry in table.of_pair("cpu", "cpu"):
        assert entry.bounds is not None
        assert entry.measured.comparisons >= 1
        assert entry.measured.honest_pooled < entry.bounds.pooled_pass
        nearest = min(entry.measured.cheats[name] for name in entry.catches)
        assert entry.bounds.pooled_fail < nearest
    longest = table.of_pair("cpu", "cpu")[-1]
    assert set(longest.measured.cheats) == {LAZY, LAZY_SCALED, HALF}
    assert set(table.of_pair("cpu", "cpu")[0].measured.cheats) == {OTHER_DATA}


def test_one_class_alone_can_be_measured(subject: Subject) -> None:
    told: list[tuple[int, int, str]] = []
    made = calibrate_run(
        subject, samples=1, steps=1, classes=["cpu"], on_progress=lambda *step: told.append(step)
    )
    assert [(entry.first, entry.second) for entry in made.entries] == [("cpu", "cpu")]
    assert made.bounds("cpu", "cuda") is None
    assert told == [(0, 1, "cpu"), (1, 1, "done")]


def test_threads_are_put_back(subject: Subject) -> None:
    before = torch.get_num_threads()
    variant = variants_of("cpu", cores=2, thorough=True)[-1]
    assert variant.threads == 2
    Bench(subject, 0, 1, 0).honest(variant)
    assert torch.get_num_threads() == before


def test_variants_of_a_class() -> None:
    assert {"cpu", "cpu-bf16"} <= set(classes_here())
    for name in ("cpu", "cpu-bf16", "cuda", "mps-bf16"):
        variants = variants_of(name, cores=1, thorough=True)
        assert {variant.execution_class for variant in variants} == {name}
        assert len(variants) == len(set(variants)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"classes": ["abacus"]}, "has no abacus"), ({"samples": 0}, "takes a sample")],
)
def test_what_cannot_be_measured(subject: Subject, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        calibrate_run(subject, **arguments)


def test_too_little_data(subject: Subject) -> None:
    bare = Subject(subject.manifest, subject.weights, 0, 0, subject.sequences, 3)
    with pytest.raises(UsageError, match="one inner step"):
        calibrate_run(bare)


# ---- keeping ----


@pytest.fixture
def session(run_folder: Path) -> Any:
    folder = RunFolder(run_folder)
    database = Database(folder.database_url(folder.settings()))
    with database.session() as opened:
        yield opened
    database.close()


def entry_of(first: str, second: str, steps: int, honest: float = 0.02) -> Entry:
    return make_entry(first, second, steps, measured(honest, nine_tenths=0.2))


def made_table(*entries: Entry, run_id: str = "ab" * 32) -> ToleranceTable:
    return ToleranceTable(
        run_id=run_id, settled_rounds=3, steps=20, samples=1, made_at_s=5, entries=entries
    )


def test_a_new_table_replaces_its_own_pairs_only(session: Session) -> None:
    """So a machine with a GPU adds to what one without has measured."""
    assert load_table(session) is None
    old = [entry_of("cpu", "cpu", 5), entry_of("cpu", "cpu", 20), entry_of("cpu", "cuda", 20)]
    store_table(session, made_table(*old), 1.0)
    new = entry_of("cpu", "cpu", 10, honest=0.03)
    store_table(session, made_table(new), 2.0)
    stored = load_table(session)
    assert stored is not None
    assert stored.of_pair("cpu", "cpu") == [new]
    assert stored.of_pair("cpu", "cuda") == [old[2]]


def test_a_table_of_another_run_or_version_is_not_kept(session: Session) -> None:
    store_table(session, made_table(entry_of("cpu", "cuda", 20), run_id="cd" * 32), 1.0)
    made = made_table(entry_of("cpu", "cpu", 20))
    store_table(session, made, 2.0)
    assert load_table(session) == made


def test_when_to_measure_again() -> None:
    made = made_table()
    assert not is_outgrown(made, settled_rounds=7, steps=25)
    assert is_outgrown(made, settled_rounds=8, steps=20)
    assert is_outgrown(made, settled_rounds=3, steps=26)


def test_a_new_run_is_measured_at_its_longest_unit(session: Session, run_folder: Path) -> None:
    manifest = RunFolder(run_folder).read_manifest()
    assert usual_steps(session, manifest) == manifest.inner.max_steps
    assert newest_state(session).settled_rounds == 0


# ---- the command ----


def test_the_command_writes_the_table(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "tolerance.json"
    arguments = ["calibrate", "--run-dir", str(run_folder), "--samples", "1", "--steps", "2"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    made = ToleranceTable.parse(out.read_text().strip())
    assert json.loads(result.stdout)["steps"] == made.steps == 2
    folder = RunFolder(run_folder)
    database = Database(folder.database_url(folder.settings()))
    with database.session() as opened:
        assert load_table(opened) == made
    database.close()


def test_the_command_shows_what_was_found(run_folder: Path) -> None:
    arguments = ["calibrate", "--run-dir", str(run_folder), "--samples", "1", "--steps", "1"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    for words in ("honest", "nearest cheat", "cpu / cpu", "other data", "agrees", "differs"):
        assert words in result.stdout
