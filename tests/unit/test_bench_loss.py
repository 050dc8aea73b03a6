"""The benchmark of losses: what it compares is comparable, and what it reckons is right."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import loss, loss_figure, loss_plan
from bench.line_chart import Line, Panel, draw
from bench.loss_arm import SEQUENCE_LENGTH, SEQUENCES_PER_BATCH, Arm
from bench.loss_link import Link, rounds_within, sent_bytes, wall_s
from bench.loss_page import BEGIN, END, write_table
from bench.loss_record import Record
from bench.loss_run import Outcome, run_arm
from bench.loss_text import VOCABULARY, make_text
from protocol.codec import encoded_bytes

ROUND = Arm("ours", 2, 1, "int4", learning_rate=0.004, member_steps=2)
LINE = Link(bandwidth_bit_s=8e6, round_trip_s=0.5)


def loss_of(arm: Arm) -> float:
    return run_arm(arm, held_out=8).loss


def test_nobody_trains_on_what_is_held_out() -> None:
    text = make_text(SEQUENCE_LENGTH, 1024, seed=0)
    trained = {row.tobytes() for row in text.train}
    shared = sum(row.tobytes() in trained for row in text.validation)
    assert shared == 0
    assert 0 <= text.train.min() <= text.train.max() < VOCABULARY


def test_a_seed_is_an_order_of_the_same_text() -> None:
    one, again, other = (make_text(SEQUENCE_LENGTH, 8, seed) for seed in (0, 0, 1))
    assert np.array_equal(one.train, again.train)
    assert not np.array_equal(one.train, other.train)
    assert sorted(row.tobytes() for row in one.train) == sorted(
        row.tobytes() for row in other.train
    )
    assert np.array_equal(one.validation, other.validation)


def test_no_sequence_is_asked_for_beyond_the_text() -> None:
    text = make_text(SEQUENCE_LENGTH, 8, seed=0)
    with pytest.raises(ValueError, match="where the text has"):
        text.batch(len(text.train), len(text.train) + 1)


def test_everybody_trains_with_the_same_tokens() -> None:
    for arm in loss_plan.full():
        manifest = arm.manifest()
        together = arm.workers if arm.synchronous else 1
        assert manifest.inner.sequences_per_batch == together * SEQUENCES_PER_BATCH
        assert arm.rounds * arm.workers * arm.steps == arm.member_steps
        assert manifest.inner.learning_rate.total_tokens == arm.tokens


def test_the_same_run_twice_is_the_same_loss() -> None:
    assert loss_of(ROUND) == loss_of(ROUND)
    assert loss_of(ROUND) != loss_of(ROUND.seeded(1))


def test_a_lag_changes_nothing_where_there_is_no_next_round() -> None:
    assert loss_of(replace(ROUND, overlap="lag1")) == loss_of(ROUND)
    two = replace(ROUND, member_steps=4)
    assert loss_of(replace(two, overlap="lag1")) != loss_of(two)


def test_what_a_member_sends() -> None:
    assert sent_bytes(replace(ROUND, workers=4), 1000) == 1.5 * encoded_bytes("int4", 1000)
    synchronous = replace(ROUND, method="sync-muon", workers=4)
    assert sent_bytes(synchronous, 1000) == 1.5 * 2000


def test_wall_time_is_steps_and_exchanges() -> None:
    arm = replace(ROUND, codec="fp32", steps=10, member_steps=40)  # two rounds
    # 1 MB at 1 MB/s and two round trips.
    assert wall_s(arm, 250_000, step_s=0.1, link=LINE) == pytest.approx(2 * (10 * 0.1 + 1.0 + 1.0))
    assert rounds_within(arm, 250_000, 0.1, LINE, budget_s=8.9) == 2
    assert rounds_within(arm, 250_000, 0.1, LINE, budget_s=9.1) == 3


def test_the_same_time_is_fewer_tokens_for_who_waits_more() -> None:
    slow = replace(ROUND, method="sync-muon", member_steps=3200, workers=4)
    ours = replace(ROUND, steps=50, member_steps=3200, workers=4)
    within = loss.in_the_same_time(slow, ours, step_s=0.015)
    assert within is not None
    assert within.seeded(0) == replace(slow, member_steps=within.member_steps)
    assert 0 < within.member_steps < slow.member_steps
    assert within.member_steps % within.workers == 0


def test_training_ends_after_half_an_hour_unless_told_otherwise() -> None:
    assert loss.allowed_minutes({}) == 30
    assert loss.allowed_minutes({"LOSS_MINUTES": "0.5"}) == 0.5
    assert loss.allowed_minutes({"LOSS_MINUTES": "inf"}) == float("inf")
    for wrong in ("an hour", "-1", "nan"):
        with pytest.raises(SystemExit, match="give minutes"):
            loss.allowed_minutes({"LOSS_MINUTES": wrong})


def test_finished_runs_are_kept_and_those_on_another_text_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    outcome = Outcome(loss=2.5, curve=[(256, 3.0), (512, 2.5)], step_s=0.01)
    Record(path).add(ROUND, outcome)
    foreign = json.loads(path.read_text()) | {"text_sha256": "0" * 64, "loss": 1.0}
    with path.open("a") as file:
        file.write(json.dumps(foreign) + "\n")
    record = Record(path)
    assert record.get(ROUND) == outcome
    assert record.get(ROUND.seeded(1)) is None
    record.add(ROUND.seeded(1), outcome)
    assert len(path.read_text().splitlines()) == 3


def test_the_figure_shows_what_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "loss.svg"
    monkeypatch.setattr(loss_figure, "FIGURE", path)
    record = Record(tmp_path / "runs.jsonl")
    plan = loss_plan.full()
    record.add(plan[0], Outcome(2.0, [(256, 3.0), (512, 2.5), (768, 2.0)], 0.01))
    loss_figure.write_figure(plan, record)
    assert path.read_text().count("<polyline") == 1
    more = replace(plan[0], workers=8)
    record.add(more, Outcome(2.1, [(256, 3.1), (512, 2.1)], 0.01))
    loss_figure.write_figure(plan, record)
    assert path.read_text().count("<polyline") == 2  # on the way, and by workers


def test_a_table_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    page = tmp_path / "loss.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    write_table([{"training": "ours", "sent_MB": 1.5}], page)
    write_table([{"training": "ours", "sent_MB": 2.5, "tokens": 1000}], page)
    assert page.read_text().splitlines() == [
        "before",
        BEGIN,
        "| training | sent MB | tokens |",
        "| --- | --- | --- |",
        "| ours | 2.5 | 1,000 |",
        END,
        "after",
    ]


def test_a_figure_is_whole_and_within_its_frame() -> None:
    lines = [
        Line("ours & others", [(1.0, 2.0), (10.0, 1.5)]),
        Line("flat", [(1.0, 2.0)], dashed=True),
    ]
    panels = [Panel("one", "x", "y", lines), Panel("two", "x", "y", lines, log_x=True)]
    figure = ElementTree.fromstring(draw(panels))
    width, height = (float(figure.attrib[name]) for name in ("width", "height"))
    marks = figure.findall(".//{*}circle")
    assert len(marks) == 6
    assert all(0 < float(mark.attrib["cx"]) < width for mark in marks)
    assert all(0 < float(mark.attrib["cy"]) < height for mark in marks)
    assert "ours & others" in {text.text for text in figure.findall(".//{*}text")}
