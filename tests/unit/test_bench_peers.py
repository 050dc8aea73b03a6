"""What benchmarks share: peers' processes and cost, the coordinator's signed records, ratios."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bench.peer_process import PeerProcess
from bench.played_coordinator import PlayedCoordinator, trust_in
from bench.process_cost import cpu_s, memory_bytes, own_cpu_s, pss_bytes
from bench.report import ratio_columns
from bench.wan_state import State
from protocol.envelope import open_envelope
from protocol.errors import PeerFault
from protocol.identity import Identity
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire

LAYOUT = ChunkLayout(1000, 256)


def test_members_trust_the_records_of_their_own_run_alone() -> None:
    coordinator, names = PlayedCoordinator(), [Identity.generate().peer_id for _ in range(2)]
    reducers = [wire.ReducerRange(reducer=names[0], first_chunk=0, end_chunk=LAYOUT.count)]
    roots = dict.fromkeys(names, bytes(32))
    envelope = coordinator.roster(1, roots, reducers, LAYOUT, "int4", patience_s=1.0)
    roster = open_envelope(envelope, wire.Roster)
    inclusion = open_envelope(coordinator.inclusion(envelope), wire.InclusionSet)
    assert [member.worker for member in roster.record.members] == names
    assert list(inclusion.record.members) == names
    assert inclusion.record.group_id == roster.digest[:20]
    assert roster.record.run_id.hex() == coordinator.told()["run_id"]
    trust = trust_in(coordinator.told())
    for signed in (roster, inclusion):
        trust.require_signer(wire.KEY_PURPOSE_ROUND, signed.signer, time.time())
    with pytest.raises(PeerFault):
        stranger = trust_in(PlayedCoordinator().told())
        stranger.require_signer(wire.KEY_PURPOSE_ROUND, roster.signer, time.time())


def test_who_steps_alike_comes_to_the_same_state() -> None:
    mean = np.arange(LAYOUT.elements, dtype=np.float32)
    member, coordinator = State(LAYOUT), State(LAYOUT)
    first, again = member.step(1, mean), member.step(2, mean)
    assert [coordinator.step(1, mean), coordinator.step(2, mean)] == [first, again]
    assert first != again != State(LAYOUT).step(2, -mean)


class Here:
    """A member that is no link's: commands run as they are."""

    @staticmethod
    def command(*command: str) -> list[str]:
        return [*command]


def test_a_peer_is_told_and_heard_and_its_end_is_an_error(tmp_path: Path) -> None:
    place: Any = Here()
    file = tmp_path / "told.json"
    file.write_text(json.dumps({"a": 1}))
    peer = PeerProcess(place, "json.tool", "--compact", str(file))
    assert peer.hear("") == {"a": 1}
    with pytest.raises(RuntimeError, match=r"run python -m json\.tool"):
        peer.hear("")
    peer.wait()
    echo = PeerProcess(place, "json.tool", "--compact", "--json-lines")
    echo.tell({"do": "go"})
    echo.wait()


def test_a_process_tree_costs_what_its_processes_do() -> None:
    this = psutil.Process()
    before_s = own_cpu_s(this)
    assert cpu_s(this.pid) >= before_s > 0
    assert own_cpu_s() == 0
    assert own_cpu_s(this, this) >= 2 * before_s
    assert memory_bytes(this.pid) >= pss_bytes() == 0


def test_ratios_are_told_with_their_spread() -> None:
    assert ratio_columns([1.26, 0.7412, 0.993]) == {
        "ratio": 0.993,
        "ratio_min": 0.741,
        "ratio_max": 1.26,
    }
    assert ratio_columns([1.999], digits=2)["ratio"] == 2.0
