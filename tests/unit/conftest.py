from __future__ import annotations

import importlib.util
import resource
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from protocol.identity import Identity


def _load(name: str) -> ModuleType:
    """A module of the folder above, which is not on the path."""
    path = Path(__file__).parent.with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def boot(
    engine_rig: ModuleType, make_manifest: Callable[..., Any], tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """``await boot(round={"min_members": 2})``: a started engine on a new run."""
    rigs = []

    async def start(*, rig: dict[str, Any] | None = None, **manifest: Any) -> Any:
        settings = {"verification": engine_rig.QUIET, **manifest}
        made = engine_rig.Rig(tmp_path, make_manifest(**settings), **(rig or {}))
        await made.boot()
        rigs.append(made)
        return made

    yield start
    for made in rigs:
        made.database.close()


@pytest.fixture
async def start_audits(
    case_rig: ModuleType, make_manifest: Callable[..., Any], tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """``await start_audits(workers=3)``: a run with an anchor, workers that train, and auditors."""
    rigs = []

    async def begin(
        *,
        workers: int = 2,
        auditors: int = 3,
        verification: dict[str, Any] | None = None,
        **manifest: Any,
    ) -> Any:
        settings = {
            "round": {"min_members": workers},
            "inner": {"max_steps": 4},
            "verification": {**case_rig.VERIFICATION, **(verification or {})},
            **manifest,
        }
        rig = case_rig.AuditRig(tmp_path, make_manifest(**settings), options=case_rig.OPTIONS)
        await rig.boot()
        rigs.append(rig)
        rig.anchor = rig.enrol(1, anchor=True)
        rig.workers = [rig.enrol(2 + number) for number in range(workers)]
        for number in range(auditors):
            rig.hire(number)
        return rig

    yield begin
    for rig in rigs:
        rig.database.close()


@pytest.fixture(scope="session")
def tiny_data(run_rig: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder; read-only."""
    folder = tmp_path_factory.mktemp("dataset") / "data"
    run_rig.make_dataset(folder)
    return folder


@pytest.fixture(scope="session")
def made_run(
    run_rig: ModuleType, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A fresh run folder; read-only: take :func:`run_folder` to change it."""
    folder: Path = tmp_path_factory.mktemp("made") / "run"
    run_rig.make_run(tiny_data, folder)
    return folder


@pytest.fixture
def run_folder(made_run: Path, tmp_path: Path) -> Path:
    """A run folder of the test's own."""
    return Path(shutil.copytree(made_run, tmp_path / "run", symlinks=True))


@pytest.fixture
def audit_queue(run_folder: Path) -> Iterator[Any]:
    """Audit tables of a run folder, and units to replay in them (``tests/audit_rig.py``)."""
    queue = _load("audit_rig").Queue(run_folder)
    yield queue
    queue.database.close()


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """``with full_disk(4096):`` no file grows beyond so many bytes: writes fail half-way."""

    @contextmanager
    def limit(most_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
async def served(run_rig: ModuleType, run_folder: Path) -> AsyncIterator[Any]:
    """A real server over a run folder, on loopback."""
    async with run_rig.serving(run_folder) as made:
        yield made


@pytest.fixture
async def office(
    run_rig: ModuleType, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    """That server, with a desk for donors that can fail (``tests/donor_office.py``)."""
    async with _load("donor_office").open_office(run_rig, run_folder, monkeypatch) as made:
        yield made


@pytest.fixture
async def session(served: Any) -> AsyncIterator[Any]:
    """A worker's session with that server."""
    from worker.session import Session

    opened = await Session.connect(served.link, Identity.generate())
    yield opened
    await opened.close()
