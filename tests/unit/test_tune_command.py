"""``barnraise worker tune``: what it shows, and what makes it measure again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from barnraise import cli
from protocol.identity import Identity
from protocol.link import JoinLink
from worker.choice import Choice
from worker.config import Home, WorkerConfig
from worker.control import home_lock
from worker.tuning_record import TuningFile, TuningKey, TuningRecord
from worker.tuning_search import Tried

KEY = TuningKey("m", "cpu Abacus", 1, "2", 0, 0, False, 0)
RECORD = TuningRecord(
    tried=(Tried(Choice(1), 436.0), Tried(Choice(2), 639.0), Tried(Choice(4), failed="too large")),
    choice=Choice(2),
    decided=True,
    measured_at_s=1_700_000_000,
)


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="tune-") as folder:
        made = Home(Path(folder) / "home")
        made.prepare()
        Identity.generate().save(made.identity)
        link = JoinLink("host", 7443, b"r" * 32, Identity.generate().peer_id)
        WorkerConfig(link=str(link)).save(made.config)
        yield made


def tune(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["worker", "tune", *arguments, "--home", str(home.path)])


def test_it_shows_what_was_measured_and_marks_the_choice(home: Home) -> None:
    TuningFile(home.tuning).write(KEY, RECORD)
    lines = tune(home).stdout.splitlines()
    assert lines[0].startswith("cpu Abacus, measured on 2023-11-1")
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "1 sequence at a time 436 tokens/s",
        "* 2 sequences at a time 639 tokens/s",
        "4 sequences at a time too large",
    ]
    facts = json.loads(tune(home, "--json").stdout)
    assert (facts["device"], facts["tokens_per_s"]) == ("cpu Abacus", 639.0)
    assert Choice.load(facts["choice"]) == Choice(2) and len(facts["tried"]) == 3


@pytest.mark.parametrize("content", [None, "{", '{"format": "barnraise-tuning/1"}'])
def test_what_is_not_measured_is_said(home: Home, content: str | None) -> None:
    if content is not None:
        home.tuning.write_text(content)
    shown = tune(home)
    assert shown.exit_code != 0
    assert "nothing is measured yet" in str(shown.exception) + shown.output


def test_with_force_a_worker_that_runs_measures_again(home: Home) -> None:
    TuningFile(home.tuning).write(KEY, RECORD)
    with home_lock(home):
        shown = tune(home, "--force")
    assert shown.exit_code == 0 and "before its next unit" in shown.stdout
    assert not home.tuning.exists()


def test_with_force_before_the_first_run_there_is_nothing_to_measure(home: Home) -> None:
    TuningFile(home.tuning).write(KEY, RECORD)
    shown = tune(home, "--force")
    assert shown.exit_code != 0 and not home.tuning.exists()
    assert "nothing is measured yet" in str(shown.exception) + shown.output
