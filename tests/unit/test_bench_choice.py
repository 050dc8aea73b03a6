"""``python -m bench`` says before it starts what takes long, and leaves out what cannot run."""

from __future__ import annotations

import pytest

from bench.__main__ import BENCHES, LONG_MINUTES, NEEDS, choose, describe, told_time


def test_what_is_told_of_is_there() -> None:
    assert {*LONG_MINUTES, *NEEDS} <= {*BENCHES}


def test_long_ones_and_their_needs_are_told() -> None:
    assert describe(["train", "ledger"]) == "ledger (needs a PostgreSQL's programs)"
    assert describe(["wan"]) == "wan (60 minutes, needs root)"
    assert told_time(["train", "wan"]) == "60 minutes"
    assert told_time(BENCHES) == "5 hours"


def test_without_root_all_are_those_that_need_none(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = choose([], BENCHES, is_root=False)
    assert [name for name in BENCHES if name not in chosen] == [
        *("allreduce", "wan", "links", "network_cap")
    ]
    assert "only root" in capsys.readouterr().out
    assert choose([], BENCHES, is_root=True) == [*BENCHES]


def test_one_that_needs_root_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match="as root"):
        choose(["train", "wan"], BENCHES, is_root=False)
    assert choose(["wan"], BENCHES, is_root=True) == ["wan"]
