from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from coordinator.config import RunFolder
from coordinator.database import Database
from coordinator.keys import KeyRing
from coordinator.model_card import plain
from coordinator.provenance import PREDICATE_TYPE, STATEMENT_TYPE
from coordinator.release import release
from ledger.log import latest_head, read_leaves
from ledger.records import ReleaseLeaf, parse_leaf
from ledger.schema import LogHead
from protocol.errors import BadDigest, ProtocolError, UsageError
from protocol.identity import PublicKey
from protocol.manifest import RunManifest
from protocol.model import flatten, initial_weights


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def released(run_folder: Path, out: Path) -> Any:
    return release(RunFolder(run_folder), out)


def test_transformers_loads_it_and_it_writes(released: Any, run_folder: Path, out: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    manifest = RunManifest.parse((run_folder / "manifest.json").read_bytes())
    np.testing.assert_array_equal(flatten(model), initial_weights(manifest))
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 0
    assert tokenizer("w1 w2")["input_ids"] == [1, 2]
    inputs = tokenizer("w1 w2", return_tensors="pt")
    written = model.generate(input_ids=inputs["input_ids"], max_new_tokens=3, do_sample=False)
    assert written.shape[1] <= 5
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_provenance_verifies_elsewhere(released: Any, run_folder: Path, out: Path) -> None:
    """Checked by securesystemslib, which shares no code with ours."""
    manifest = RunManifest.parse((run_folder / "manifest.json").read_bytes())
    keys = KeyRing.load(
        run_folder / "keys", run_id=manifest.run_id, root_id=manifest.root, now_s=time.time()
    )
    sealed = json.loads((out / "provenance.intoto.json").read_text())
    key_id = sealed["signatures"][0]["keyid"]
    assert key_id == keys.round.peer_id
    raw = PublicKey.from_peer_id(key_id).raw
    key = SSlibKey(key_id, "ed25519", "ed25519", {"public": raw.hex()})
    envelope = Envelope.from_dict(sealed)
    assert list(envelope.verify([key], 1)) == [key_id]
    statement = json.loads(envelope.payload)
    assert (statement["_type"], statement["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
    for subject in statement["subject"]:
        data = (out / subject["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == subject["digest"]["sha256"]
    named = {s["name"] for s in statement["subject"]}
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert named == present - {"provenance.intoto.json"}
    definition = statement["predicate"]["buildDefinition"]
    digests = {d["name"]: d["digest"]["sha256"] for d in definition["resolvedDependencies"]}
    assert digests["run-manifest.json"] == manifest.run_id.hex()
    assert digests["dataset.json"] == manifest.dataset_sha256
    (head,) = statement["predicate"]["runDetails"]["byproducts"]
    assert base64.b64decode(head["content"]).decode().startswith(manifest.origin)


def test_the_record_says_so(released: Any, run_folder: Path, out: Path) -> None:
    folder = RunFolder(run_folder)
    database = Database(folder.database_url(folder.settings()))
    try:
        with database.session() as session:
            head = latest_head(session)
            assert head is not None and head.tree_size == released.leaf_index + 1
            leaf = parse_leaf(next(read_leaves(session, released.leaf_index, head.tree_size)))
            assert session.get(LogHead, head.tree_size) is not None
    finally:
        database.close()
    assert isinstance(leaf, ReleaseLeaf)
    assert (
        leaf.weights_sha256 == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    )
    provenance = (out / "provenance.intoto.json").read_bytes()
    assert leaf.provenance_sha256 == hashlib.sha256(provenance).hexdigest()


def test_the_card_escapes_what_strangers_wrote(released: Any, out: Path) -> None:
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "<b>" not in card and r"dice &lt;b&gt;\|&lt;/b&gt;" in card
    assert "Nobody has been credited yet." in card
    assert "CC0" in (out / "LICENSE").read_text()
    assert plain("a|b\n# c `d` <e>") == r"a\|b \# c \`d\` &lt;e&gt;"


@pytest.mark.parametrize("most_bytes", [1000, 8192])
def test_a_full_disk_leaves_nothing(
    run_folder: Path, out: Path, full_disk: Callable[[int], Any], most_bytes: int
) -> None:
    with full_disk(most_bytes), pytest.raises(ProtocolError, match=r"nothing was kept|disk"):
        release(RunFolder(run_folder), out)
    assert [path.name for path in out.parent.iterdir()] == ["run"]


def test_bad_requests(run_folder: Path, out: Path) -> None:
    with pytest.raises(UsageError, match="has not ended"):
        release(RunFolder(run_folder), out, round_=0)
    out.mkdir()
    with pytest.raises(UsageError, match="exists already"):
        release(RunFolder(run_folder), out)


def test_damaged_weights_are_not_released(run_folder: Path, out: Path) -> None:
    file = next((run_folder / "blobs").glob("weights-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadDigest, match="damaged"):
        release(RunFolder(run_folder), out)
    assert not out.exists()
    file.unlink()
    with pytest.raises(UsageError, match="kept no more"):
        release(RunFolder(run_folder), out)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, coordinator.cli as c\n"
        "c.cli.main(['release', '--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'grpc' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Examples" in done.stdout
