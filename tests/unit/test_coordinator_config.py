from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from coordinator.config import RunFile, RunFolder, split_address
from coordinator.plan import PRESETS, build_manifest, example
from protocol.dataset import DatasetManifest, read_manifest
from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.manifest import RunManifest
from protocol.model import element_count, parameter_spec

MINIMAL = '[run]\nname = "x"\n\n[model]\npreset = "tiny"\n'
ROOT = Identity.from_seed(bytes(32)).peer_id


@pytest.fixture(scope="session")
def dataset(tiny_data: Path) -> DatasetManifest:
    return read_manifest(tiny_data)


@pytest.fixture
def plan(dataset: DatasetManifest, tmp_path: Path) -> Callable[[str], RunManifest]:
    def make(text: str) -> RunManifest:
        return build_manifest(RunFile.parse(text, "run.toml"), dataset, ROOT, base=tmp_path)

    return make


def test_a_name_and_a_model_are_enough(
    plan: Callable[[str], RunManifest], dataset: DatasetManifest
) -> None:
    manifest = plan(MINIMAL)
    assert manifest.model_config_json["vocab_size"] == dataset.vocab_size
    assert manifest.model_config_json["eos_token_id"] == dataset.eos_token_id
    assert manifest.sequence_length == dataset.sequence_length
    assert manifest.inner.learning_rate.total_tokens == dataset.tokens
    assert manifest.campaign.title == "x"
    assert RunManifest.parse(manifest.canonical()).run_id == manifest.run_id


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_example_makes_a_run(plan: Callable[[str], RunManifest], preset: str) -> None:
    manifest = plan(example(preset))
    assert element_count(parameter_spec(manifest.model_config_json)) > 0


def test_the_example_shows_the_defaults(plan: Callable[[str], RunManifest]) -> None:
    shown = []
    for line in example("tiny").splitlines():
        commented = line.startswith("# ") and " = " in line and "= ..." not in line
        shown.append(line.removeprefix("# ") if commented else line)
    left_out = ("weights =", "config =", "num_hidden_layers", "public_", "leaderboard", "anchor_ar")
    text = "\n".join(line for line in shown if not line.startswith(left_out))
    assert 'origin = "barnraise.local/my-first-run"' in text
    assert plan(text).canonical() == plan(example("tiny")).canonical()
    assert RunFile.parse(text, "").server == RunFile.parse(example("tiny"), "").server


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not toml", "not TOML"),
        ('[model]\npreset = "tiny"', r"run: Field required"),
        (MINIMAL + "[runn]\n", r"runn: unknown field"),
        (MINIMAL + "[training]\nlr = 1\n", r"training\.lr: unknown field"),
        (MINIMAL + "[server]\nlisten = 7443\n", r"server\.listen"),
        (MINIMAL + '[server]\nlisten = "here"\n', "not host:port"),
        (MINIMAL + '[server]\nanchors = ["me"]\n', r"server\.anchors"),
        (MINIMAL + '[round]\nduration_s = "5"\n', r"round\.duration_s"),
        (MINIMAL + "[round]\nmin_members = 0\n", r"round\.min_members"),
        (MINIMAL + '[update]\ncodec = "zip"\n', r"update\.codec"),
    ],
)
def test_errors_name_the_field(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RunFile.parse(text, "run.toml")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ('preset = "huge"', "is not one of: tiny"),
        ('preset = "tiny"\nconfig = "c.json"', "keep one"),
        ('config = "missing.json"', "cannot read"),
        ('model_type = "bert"', "model_type 'bert' is not one of"),
        ('preset = "tiny"\nhiden_size = 64', "hiden_size"),
        ('preset = "tiny"\nvocab_size = 32', "tokenizer has 64 tokens"),
        ('preset = "tiny"\nmax_position_embeddings = 8', "at least sequence_length"),
        ('preset = "tiny"\nattention_dropout = 0.1', "attention_dropout must be 0"),
    ],
)
def test_models_that_are_refused(
    plan: Callable[[str], RunManifest], model: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        plan(f'[run]\nname = "x"\n[model]\n{model}\n')


def test_a_contradiction_of_the_dataset_gives_both_numbers(
    plan: Callable[[str], RunManifest],
) -> None:
    with pytest.raises(UsageError, match=r"sequence_length is 32.*built with 16"):
        plan(MINIMAL + "[training]\nsequence_length = 32\n")
    with pytest.raises(UsageError, match="fewer than one batch"):
        plan(MINIMAL + "[training]\nsequences_per_batch = 1000\n")


def test_an_overlap_is_refused_with_outer_numbers_that_would_diverge(
    plan: Callable[[str], RunManifest],
) -> None:
    assert plan(MINIMAL).overlap == "none"
    overlapped = MINIMAL + '[training]\noverlap = "lag1"\n'
    with pytest.raises(UsageError, match="one round late"):
        plan(overlapped)
    manifest = plan(overlapped + "[outer]\nlearning_rate = 0.4\nmomentum = 0.0\n")
    assert manifest.lag_rounds == 1


def test_a_bad_name_is_refused_by_the_manifest(plan: Callable[[str], RunManifest]) -> None:
    with pytest.raises(UsageError, match="name"):
        plan(MINIMAL.replace('"x"', '"A run"'))


def test_a_configuration_file_is_read(plan: Callable[[str], RunManifest], tmp_path: Path) -> None:
    config = PRESETS["tiny"] | {"architectures": ["LlamaForCausalLM"], "transformers_version": "4"}
    (tmp_path / "c.json").write_text(json.dumps(config))
    text = '[run]\nname = "x"\n[model]\nconfig = "c.json"\n'
    assert plan(text).model_config_json == plan(MINIMAL).model_config_json
    (tmp_path / "c.json").write_text(json.dumps(config | {"auto_map": {}}))
    with pytest.raises(UsageError, match="load code from the network"):
        plan(text)


def test_gpt2_gets_no_dropout(plan: Callable[[str], RunManifest]) -> None:
    text = '[run]\nname = "x"\n[model]\nmodel_type = "gpt2"\nn_embd = 16\nn_layer = 1\nn_head = 2\n'
    config = plan(text).model_config_json
    assert config["resid_pdrop"] == config["attn_pdrop"] == config["embd_pdrop"] == 0
    assert config["n_positions"] == 16


@pytest.mark.parametrize(
    ("address", "parts"), [("a.b:1", ("a.b", 1)), ("[::]:65535", ("::", 65535))]
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", ":1", "a", "a:", "a:b", "a:70000"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="host:port"):
        split_address(address)


def test_one_server_holds_a_folder(run_rig: ModuleType, run_folder: Path) -> None:
    folder = RunFolder(run_folder)
    assert not folder.serving
    with folder.hold():
        assert folder.serving
        with pytest.raises(UsageError, match="serves"), folder.hold():
            pass
    assert not folder.serving


def test_relative_places_lie_in_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    server = RunFile.parse(MINIMAL, "").server
    assert folder.database_url(server) == f"sqlite:///{tmp_path}/coordinator.db"
    assert folder.blobs_url(server) == str(tmp_path / "blobs")
    elsewhere = server.model_copy(update={"blobs": "s3://b/x", "database": "postgresql://h/d"})
    assert folder.blobs_url(elsewhere) == "s3://b/x"
    assert folder.database_url(elsewhere) == "postgresql://h/d"


def test_another_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        RunFolder(tmp_path).settings()
