"""Fixtures that more than one kind of test needs. Nothing here imports torch."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Before anything imports torch or numpy: the tests share their cores with other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import structlog

from protocol.identity import Identity
from protocol.manifest import RunManifest

TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": True,
}


def manifest_mapping() -> dict[str, Any]:
    """A valid run manifest of a model of 33,000 parameters, as decoded JSON."""
    return {
        "format": "barnraise-run/1",
        "name": "tiny",
        "origin": "example.org/tiny",
        "root": Identity.from_seed(bytes(32)).peer_id,
        "licence": "Apache-2.0",
        "model_config_json": dict(TINY_LLAMA),
        "init": {"kind": "seed", "seed": 1},
        "tokenizer_sha256": "0" * 64,
        "dataset_sha256": "1" * 64,
        "sequence_length": 32,
        "inner": {
            "max_steps": 10,
            "warmup_steps": 2,
            "sequences_per_batch": 4,
            "learning_rate": {"peak": 0.003, "total_tokens": 1_000_000},
        },
        "round": {"duration_s": 10.0},
        "update": {"codec": "int8", "chunk_elements": 4096},
        "campaign": {"title": "A tiny run", "goal_microcredits": 1},
    }


def _load(name: str) -> ModuleType:
    """A module that lies beside this one: the folder is not on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command that runs inside the test process configures logging for that test alone."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., RunManifest]:
    """``make_manifest(inner={"max_steps": 3})``: the tiny manifest, fields merged or replaced."""

    def make(**overrides: Any) -> RunManifest:
        raw = manifest_mapping()
        for name, value in overrides.items():
            merge = name in ("inner", "outer", "round", "update", "campaign") and name in raw
            raw[name] = {**raw[name], **value} if merge else value
        return RunManifest.from_mapping(raw)

    return make


@pytest.fixture(scope="session")
def manifest(make_manifest: Callable[..., RunManifest]) -> RunManifest:
    return make_manifest()


@pytest.fixture(scope="session")
def engine_rig() -> ModuleType:
    """``tests/engine_rig.py``: an engine without a network, and real members."""
    return _load("engine_rig")


@pytest.fixture(scope="session")
def trainer_rig() -> ModuleType:
    """``tests/trainer_rig.py``: a unit of work in files, of whatever size."""
    return _load("trainer_rig")


@pytest.fixture(scope="session")
def case_rig(engine_rig: ModuleType) -> ModuleType:
    """``tests/case_rig.py``: members that really train and answer, auditors that really replay."""
    return _load("case_rig")


@pytest.fixture(scope="session")
def ledger_history() -> ModuleType:
    """``tests/ledger_history.py``: writes a run's public record step by step."""
    return _load("ledger_history")


@pytest.fixture(scope="session")
def run_rig() -> ModuleType:
    """``tests/run_rig.py``: a tiny run folder, a real server over it, and a client."""
    return _load("run_rig")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run over SQLite and over PostgreSQL what a module asks for.

    It says ``BOTH_DATABASES = True``, or the names of the tests that are worth it.
    """
    both = getattr(metafunc.module, "BOTH_DATABASES", ())
    wanted = both is True or metafunc.function.__name__ in (both or ())
    for name in ("ledger_url", "database_url"):
        if wanted and name in metafunc.fixturenames:
            metafunc.parametrize(name, ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="session")
def postgres_rig() -> ModuleType:
    """``tests/postgres_rig.py``: a real PostgreSQL of the tests' own."""
    return _load("postgres_rig")


@pytest.fixture(scope="session")
def crowd_history() -> ModuleType:
    """``tests/crowd_history.py``: signs and records acts in a record of ``ledger_history``."""
    return _load("crowd_history")


@pytest.fixture(scope="session")
def postgres_server(postgres_rig: ModuleType) -> Iterator[Any]:
    """A server for all tests of this process; what it holds does not survive a crash."""
    with postgres_rig.postgres(durable=False) as running:
        yield running


@pytest.fixture(scope="session")
def ledger_template(postgres_server: Any) -> str:
    """A PostgreSQL database with the record's tables, to be copied."""
    return str(postgres_server.make_template())


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database of the test's own, without any tables."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path}/coordinator.db"
        return
    with request.getfixturevalue("postgres_server").database() as url:
        yield url


@pytest.fixture
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database of the test's own: a SQLite file, unless PostgreSQL is asked for."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    server = request.getfixturevalue("postgres_server")
    with server.database(request.getfixturevalue("ledger_template")) as url:
        yield url


@pytest.fixture
def crowd(history: Any, crowd_history: ModuleType) -> Any:
    """Acts in the record of ``history``: its donors are ``ada`` and ``bob``."""
    return crowd_history.CrowdHistory(history)


@pytest.fixture
def history(
    ledger_history: ModuleType, make_manifest: Callable[..., RunManifest], ledger_url: str
) -> Iterator[Any]:
    """A record in a database: the run, three devices of two donors, two rounds and a skip."""
    manifest = make_manifest(
        # Only counted, never built: large enough that a step earns credit.
        model_config_json={
            **TINY_LLAMA,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 8,
        },
        campaign={"goal_microcredits": 5000},
    )
    written = ledger_history.History(manifest, ledger_url)
    written.open()
    for name, donor in (("ada", "ada"), ("bob", "bob"), ("bob-laptop", "bob")):
        written.enrol(name, donor=donor, display_name=donor.title())
    written.settle({0: 10, 1: 5}, loss_nats=5.2)
    written.skip()
    written.settle({0: 10, 1: 5, 2: 2}, loss_nats=4.8)
    yield written
    written.close()
