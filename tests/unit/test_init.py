from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from coordinator.checkpoints import CheckpointStore
from coordinator.config import RunFolder
from coordinator.database import Database
from coordinator.opening import newest_state, running_round
from coordinator.serve import Run
from coordinator.settle import saved_state
from ledger.authority import load_delegations
from ledger.log import latest_head
from ledger.receipts import make_receipt, verify_receipt
from ledger.records import RunLeaf
from ledger.schema import RunPage
from protocol.errors import BadDigest, UsageError
from protocol.link import JoinLink
from protocol.model import initial_weights, parameter_spec
from protocol.state import write_vector


def test_the_folder_holds_a_run_that_serves(made_run: Path) -> None:
    run = Run.open(RunFolder(made_run), time.time())
    link = JoinLink.parse((made_run / "join-link.txt").read_text())
    assert (link.run_id, link.root) == (run.manifest.run_id, run.manifest.root)
    assert link.address == "127.0.0.1:7443"
    assert (made_run / "data").is_symlink()
    database = Database(run.folder.database_url(run.settings))
    store = CheckpointStore(run.folder.blobs_url(run.settings), run.manifest)
    try:
        with database.session() as session:
            state = newest_state(session)
            weights, momentum = store.load(saved_state(state))
            np.testing.assert_array_equal(weights, initial_weights(run.manifest))
            assert not momentum.any()
            assert running_round(session).number == 0
            receipt = make_receipt(session, run.manifest.origin, 0)
            page = session.get_one(RunPage, run.manifest.run_id.hex())
            assert page.join_link == str(link)
            assert load_delegations(session) is not None
            assert latest_head(session) is not None
    finally:
        database.close()
    # A stranger needs the link's root alone to believe the run's leaf.
    verified = verify_receipt(receipt.leaf, receipt.proof, root=link.root)
    assert isinstance(verified.leaf, RunLeaf)
    assert verified.leaf.run_manifest().run_id == link.run_id


def test_an_existing_folder_is_never_touched(
    run_rig: ModuleType, run_folder: Path, tiny_data: Path
) -> None:
    before = sorted(path.name for path in run_folder.iterdir())
    with pytest.raises(UsageError, match="never overwritten"):
        run_rig.make_run(tiny_data, run_folder)
    assert sorted(path.name for path in run_folder.iterdir()) == before


def test_a_run_can_start_from_weights(
    run_rig: ModuleType, made_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    manifest = Run.open(RunFolder(made_run), time.time()).manifest
    spec = parameter_spec(manifest.model_config_json)
    given = initial_weights(manifest) * np.float32(0.5)
    write_vector(tmp_path / "start.safetensors", given, spec)
    text = run_rig.RUN_TOML + '\n[init]\nweights = "start.safetensors"\n'
    result = run_rig.make_run(tiny_data, tmp_path / "run", text, copy_data=True)
    assert result.manifest.init.kind == "weights"
    assert not (tmp_path / "run" / "data").is_symlink()
    store = CheckpointStore(str(tmp_path / "run" / "blobs"), result.manifest)
    sha256 = bytes.fromhex(result.manifest.init.weights_sha256)
    np.testing.assert_array_equal(store.load_weights(sha256), given)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ('[init]\nweights = "missing"\n', "cannot read"),
        ('[init]\nweights = "other"\n', "do not fit"),
    ],
)
def test_weights_that_do_not_fit(
    run_rig: ModuleType, tiny_data: Path, tmp_path: Path, extra: str, words: str
) -> None:
    (tmp_path / "other").write_bytes(b"not safetensors")
    with pytest.raises(UsageError, match=words):
        run_rig.make_run(tiny_data, tmp_path / "run", run_rig.RUN_TOML + extra)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def _damage_shard(data: Path) -> None:
    shard = next((data / "shards").iterdir())
    shard.write_bytes(bytes(shard.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (_damage_shard, BadDigest, "is damaged"),
        (lambda data: (data / "tokenizer.json").unlink(), BadDigest, "tokenizer"),
        (lambda data: (data / "tokenizer.json").write_text("{}"), BadDigest, "tokenizer"),
        (lambda data: (data / "dataset.json").unlink(), UsageError, "data build"),
    ],
)
def test_a_damaged_dataset_is_refused(
    run_rig: ModuleType,
    tiny_data: Path,
    tmp_path: Path,
    damage: Callable[[Path], Any],
    error: type[Exception],
    words: str,
) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    damage(data)
    with pytest.raises(error, match=words):
        run_rig.make_run(data, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("most_bytes", [0, 6000, 60_000])
def test_a_full_disk_leaves_nothing(
    run_rig: ModuleType,
    tiny_data: Path,
    tmp_path: Path,
    full_disk: Callable[[int], Any],
    most_bytes: int,
) -> None:
    with full_disk(most_bytes), pytest.raises(UsageError, match=r"cannot|nothing was kept"):
        run_rig.make_run(tiny_data, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_that_was_exchanged_is_noticed_at_the_start(
    run_rig: ModuleType, run_folder: Path, tmp_path: Path
) -> None:
    run_rig.make_dataset(tmp_path / "other", train=32)
    (run_folder / "data").unlink()
    (run_folder / "data").symlink_to(tmp_path / "other")
    with pytest.raises(UsageError, match="another dataset"):
        Run.open(RunFolder(run_folder), time.time())


def test_a_manifest_that_was_edited_is_noticed_at_the_start(run_folder: Path) -> None:
    manifest = run_folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"name":"tiny"', '"name":"mine"'))
    with pytest.raises(UsageError, match="was changed"):
        Run.open(RunFolder(run_folder), time.time())
    manifest.write_text(text.replace('{"campaign"', '{"bonus":1,"campaign"'))
    with pytest.raises(UsageError, match=r"bonus: unknown field"):
        Run.open(RunFolder(run_folder), time.time())
