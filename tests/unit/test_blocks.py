"""Blocking keys with the organiser's commands, and appealing over the wire."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from barnraise import main
from coordinator.cli import cli
from coordinator.config import RunFolder
from coordinator.database import Database
from ledger.fold import fold
from ledger.log import latest_head, read_leaves
from protocol.errors import NotFound, UsageError
from protocol.identity import Identity
from worker.appeal import appeal
from worker.config import Home, WorkerConfig
from worker.journal import Journal

ADA = Identity.from_seed(b"a" * 32).peer_id


def run(folder: Path, *arguments: str) -> Result:
    done = CliRunner().invoke(cli, [*arguments, "--run-dir", str(folder)])
    assert done.exit_code == 0, done.output
    return done


def blocked_by_the_record(folder: Path) -> dict[str, str]:
    """Blocked keys with their stable word, by the newest signed head."""
    run_folder = RunFolder(folder)
    database = Database(run_folder.database_url(run_folder.settings()))
    with database.session() as session:
        head = latest_head(session)
        assert head is not None
        board = fold(read_leaves(session, 0, head.tree_size))
    database.close()
    return {key: leaf.reason for key, leaf in board.audits.blocked.items()}


def test_the_commands_write_rows_and_leaves(run_folder: Path) -> None:
    assert "nobody is blocked" in run(run_folder, "blocks").output
    assert "is blocked" in run(run_folder, "block", ADA, "--reason", "sends spam").output
    assert "the reason is new" in run(run_folder, "block", ADA, "--reason", "still spams").output
    listed = run(run_folder, "blocks").output
    assert ADA in listed
    assert "still spams" in listed
    assert blocked_by_the_record(run_folder) == {ADA: "organiser"}  # and none of the words
    (entry,) = json.loads(run(run_folder, "blocks", "--json").output)
    assert (entry["key"], entry["source"]) == (ADA, "organiser")
    assert "welcome again" in run(run_folder, "unblock", ADA).output
    assert blocked_by_the_record(run_folder) == {}
    assert json.loads(run(run_folder, "blocks", "--json").output) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("block", "nobody", "--reason", "no key"),
        ("block", ADA, "--reason", ""),
        ("block", ADA, "--reason", "two\nlines"),
        ("block", ADA, "--reason", "x" * 301),
        ("unblock", ADA),
    ],
)
def test_bad_input_is_a_sentence(
    run_folder: Path,
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["barnraise", "coordinator", *arguments, "--run-dir", str(run_folder)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert len(capsys.readouterr().err) > 20
    assert blocked_by_the_record(run_folder) == {}


async def test_a_block_counts_at_once_while_the_server_runs(
    served: Any, run_folder: Path, run_rig: Any
) -> None:
    donor = Identity.generate()
    async with served.client(donor) as client:
        await client.enrol()
        assert (await client.stub.RequestWork(client.work_request())).HasField("assignment")
        run(run_folder, "block", donor.peer_id, "--reason", "sends spam")
        with pytest.raises(grpc.aio.AioRpcError, match="blocked: sends spam"):
            await client.stub.RequestWork(client.work_request())
        with pytest.raises(grpc.aio.AioRpcError, match="blocked: sends spam"):
            await client.enrol()
        run(run_folder, "unblock", donor.peer_id)
        assert (await client.stub.RequestWork(client.work_request())).HasField("assignment")
        await client.enrol()
    async with served.client() as other:
        await other.enrol()  # the server goes on after the leaves of another program
    assert blocked_by_the_record(run_folder) == {}


async def test_an_appeal_reaches_the_coordinator(served: Any, tmp_path: Path) -> None:
    home = Home(tmp_path / "worker")
    home.prepare()
    Identity.generate().save(home.identity)
    config = WorkerConfig(link=str(served.link))
    journal = Journal(home.journal)
    journal.expect_receipt(bytes(16), 7, 100, patience_s=60)
    journal.close()
    with pytest.raises(UsageError, match="no work for round 8"):
        await appeal(home, config, 8)
    with pytest.raises(NotFound, match="never audited"):
        await appeal(home, config, 7)
