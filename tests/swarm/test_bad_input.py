"""What people do wrong, by the real commands: a sentence that helps, an exit code, nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Generous: a dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

LATER_SETTLED = r'"round": [1-9][0-9]*, [^\n]*"event": "round_settled"'
COMMITTED = '"event": "committed"'
SETTLED = '"event": "round_settled"'
# gRPC's own deadlines must stay on the real clock, as they would on a machine with a wrong one.
SKEWED_CLOCK = """\
import sys, time
real = time.time
def skewed():
    asker = sys._getframe(1).f_globals["__name__"]
    return real() + (0 if asker.startswith("grpc") else {skew_s})
time.time = skewed
"""


@pytest.fixture(scope="module")
def made(worker_rig: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A run that nobody serves."""
    with worker_rig.open_rig(tmp_path_factory.mktemp("made")) as rig:
        rig.init()
        yield rig


@pytest.fixture
def folder(made: Any, tmp_path: Path) -> Path:
    """A copy of that run, to be broken."""
    copy = tmp_path / "run"
    shutil.copytree(made.run, copy, symlinks=True)
    return copy


@pytest.fixture
def refused(worker_rig: ModuleType) -> Callable[..., str]:
    """Runs a command that must end in a sentence; returns what it said."""

    def run(*arguments: str) -> str:
        done = worker_rig.barnraise(*arguments, check=False)
        assert done.returncode not in (0, 130), done.stdout
        assert "Traceback" not in done.stderr
        assert re.search(r"^(barnraise|Error): ", done.stderr, re.MULTILINE)
        return str(done.stderr)

    return run


def contents(folder: Path) -> dict[str, str]:
    """Every file's digest; locks and SQLite's side files are of no lasting value."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith((".lock", "-wal", "-shm"))
    }


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def damage(path: Path, at: int = 40) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"damage" * 4)


def _own_data(run: Path) -> Path:
    """Replace the link to the dataset, which other tests share, by a copy."""
    data = (run / "data").resolve()
    (run / "data").unlink()
    shutil.copytree(data, run / "data")
    return run / "data"


def _lose_data(run: Path) -> None:
    (run / "data").unlink()
    (run / "data").symlink_to(run.parent / "moved-away")


def _cut_shard(run: Path) -> None:
    shard = max((_own_data(run) / "shards").iterdir(), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-2])


def _lose_states(run: Path) -> None:
    for path in (run / "blobs").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "advice"),
    [
        (lambda run: edit(run / "manifest.json", '"max_steps":20', '"max_steps":21'), "restore it"),
        (lambda run: damage(run / "coordinator.db", 0), "restore the file from a backup"),
        (lambda run: (run / "coordinator.db").unlink(), "restore it from a backup"),
        (lambda run: edit(run / "run.toml", "listen =", "lissen ="), "check its spelling"),
    ],
)
def test_a_broken_run_folder_is_not_read(
    folder: Path, refused: Callable[..., str], harm: Callable[[Path], None], advice: str
) -> None:
    harm(folder)
    before = contents(folder)
    assert advice in refused("coordinator", "status", "--run-dir", str(folder))
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("harm", "advice"),
    [
        (lambda run: (run / "keys" / "round.key").write_bytes(b"short"), "restore it from"),
        (lambda run: (run / "keys" / "tls.key").write_text("nonsense"), "renew-keys"),
        (_lose_data, "Put back the one"),
        (_cut_shard, "restore it from a copy"),
        (_lose_states, "restore the blobs"),
    ],
)
def test_a_broken_run_folder_is_not_served(
    folder: Path, refused: Callable[..., str], harm: Callable[[Path], None], advice: str
) -> None:
    harm(folder)
    before = contents(folder)
    assert advice in refused("coordinator", "serve", "--run-dir", str(folder), "--no-anchor")
    assert contents(folder) == before


def test_another_root_key_renews_nothing(folder: Path, refused: Callable[..., str]) -> None:
    shutil.copyfile(folder / "keys" / "log.key", folder / "keys" / "root.key")
    before = contents(folder)
    assert "is not the root key of this run" in refused(
        "coordinator", "renew-keys", "--run-dir", str(folder)
    )
    assert contents(folder) == before


def test_renewing_on_a_full_disk_leaves_the_old_keys(folder: Path) -> None:
    before = contents(folder)
    done = run_on_full_disk(1 << 10, "coordinator", "renew-keys", "--run-dir", str(folder))
    assert done.returncode == 2
    assert "free space" in done.stderr and "Traceback" not in done.stderr
    assert contents(folder) == before


def run_on_full_disk(limit_bytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """No file may grow beyond the limit, which programs meet as they meet a full disk."""
    return subprocess.run(
        [sys.executable, "-m", "barnraise", *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_init_on_a_full_disk_leaves_nothing(made: Any, tmp_path: Path) -> None:
    given = ("--config", str(made.folder / "run.toml"), "--data", str(made.folder / "data"))
    run = ("--run-dir", str(tmp_path / "run"))
    full = run_on_full_disk(64 << 10, "coordinator", "init", *given, *run)
    assert full.returncode == 2
    assert "disk" in full.stderr and "Traceback" not in full.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda link: link.partition("#")[0], "quote it in the shell"),
        (lambda link: link[:-1], "fingerprint is damaged"),
        (lambda link: link.replace("barnraise:", "https:"), "expected barnraise://"),
    ],
)
def test_a_mangled_link_is_refused_before_anything_is_made(
    made: Any,
    tmp_path: Path,
    refused: Callable[..., str],
    change: Callable[[str], str],
    advice: str,
) -> None:
    home = tmp_path / "home"
    said = refused("worker", "join", change(made.link), "--home", str(home), "--yes")
    assert advice in said
    assert not home.exists()


def test_a_home_that_joined_nothing_says_how_to_join(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    home = ("--home", str(tmp_path / "home"))
    assert "barnraise worker join" in refused("worker", "run", *home)
    assert "barnraise worker run" in refused("worker", "status", *home)
    assert not (tmp_path / "home").exists()


def test_a_worker_meets_everything_that_can_go_wrong(
    worker_rig: ModuleType, tmp_path: Path, refused: Callable[..., str]
) -> None:
    barnraise: Callable[..., Any] = worker_rig.barnraise
    with worker_rig.open_rig(tmp_path) as rig:
        rig.init(max_rounds=1000, duration_s=4.0, grace_s=3.0)
        serve = ("coordinator", "serve", "--run-dir", str(rig.run))
        coordinator = rig.start("first", *serve)
        coordinator.wait_for("Serving")
        rig.join("ada")
        home = rig.home("ada")
        _refuse_damaged_homes(rig, home, refused)
        end(coordinator, signal.SIGINT)

        # The coordinator is down: the worker waits, and says why. Its clock is ten minutes slow.
        worker = _work_with_slow_clock(rig, tmp_path / "clock")
        worker.wait_for("does not answer")
        coordinator = rig.start("second", *serve)
        coordinator.wait_for(SETTLED)

        # kill -9, then new keys: a connected worker goes on under the new certificate.
        end(coordinator, signal.SIGKILL)
        barnraise("coordinator", "renew-keys", "--run-dir", str(rig.run), "--days", "9")
        coordinator = rig.start("third", *serve)
        coordinator.wait_for(LATER_SETTLED)
        assert worker.popen.poll() is None
        end(worker, signal.SIGTERM)

        # Damaged caches here are fetched again; a damaged shard there, or at the anchor, is sent to
        # nobody.
        good = {path: path.read_bytes() for path in (rig.folder / "data" / "shards").iterdir()}
        copies = [rig.run / "anchor" / "blobs" / path.name for path in good]
        for path in (*(home / "blobs").iterdir(), *good, *filter(Path.exists, copies)):
            damage(path)
        worker = rig.work("ada")
        worker.wait_for("the organiser must restore the dataset folder")
        assert "cached file damaged, dropped" in worker.text()
        assert "dataset_file_damaged" in coordinator.text()
        for path, data in good.items():
            path.write_bytes(data)
        worker.wait_for(COMMITTED, count=1 + worker.text().count(COMMITTED))
        coordinator.wait_for(SETTLED, count=1 + coordinator.text().count(SETTLED))
        end(worker, signal.SIGTERM)
        end(coordinator, signal.SIGTERM)
        assert "Traceback" not in worker.text() + coordinator.text()

        # Nothing is lost: the record verifies, and the receipts that the worker holds too.
        database = f"sqlite:///{rig.run / 'coordinator.db'}"
        verified = barnraise("ledger", "verify", "--db", database, "--json")
        rounds = barnraise("coordinator", "rounds", "--run-dir", str(rig.run), "--json")
        settled = [row for row in json.loads(rounds.stdout) if row["phase"] == "SETTLED"]
        assert len(settled) >= 3 and verified.returncode == 0
        held = barnraise("worker", "receipts", "--home", str(home), "--json")
        assert {row["state"] for row in json.loads(held.stdout)} <= {"verified", "awaited"}


def end(process: Any, number: signal.Signals) -> None:
    process.popen.send_signal(number)
    process.wait(60)


def _refuse_damaged_homes(rig: Any, home: Path, refused: Callable[..., str]) -> None:
    """Each with the running coordinator, so that nothing else can be the reason."""
    run = ("worker", "run", "--home")
    broken = rig.home("broken")
    for name, text, advice in [
        ("worker.toml", b"= nonsense", "delete it and join the run again"),
        ("worker.key", b"short", "restore it from a backup"),
    ]:
        shutil.copytree(home, broken)
        (broken / name).write_bytes(text)
        assert advice in refused(*run, str(broken))
        shutil.rmtree(broken)
    shutil.copytree(home, broken)
    edit(broken / "worker.toml", "/tcp/0", f"/tcp/{rig.port}")
    assert "the port is in use" in refused(*run, str(broken))


def _work_with_slow_clock(rig: Any, folder: Path) -> Any:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SKEWED_CLOCK.format(skew_s=-600))
    before = os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[type(rig).__module__]
        path = str(folder) if before is None else f"{folder}{os.pathsep}{before}"
        patch.setattr(module, "ENVIRONMENT", {**module.ENVIRONMENT, "PYTHONPATH": path})
        return rig.work("ada")
