"""The blob cache, the configuration and the control socket."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from pathlib import Path

import pytest

from protocol.errors import UsageError
from protocol.identity import Identity
from worker.config import Home, WorkerConfig, resolve_home
from worker.control import ask, control_server, home_lock
from worker.limits import Limits
from worker.running import clear_folder
from worker.shards import BlobStore

LINK = f"barnraise://localhost:7443/{'0' * 64}#root={Identity.from_seed(bytes(32)).peer_id}"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    place = Home(tmp_path)
    place.prepare()
    return place


@pytest.fixture
def store(home: Home) -> BlobStore:
    return BlobStore(home.blobs, home.scratch)


def put(store: BlobStore, data: bytes) -> bytes:
    return store.put(data)


# ---- blobs


def test_a_blob_is_named_by_its_digest(store: BlobStore) -> None:
    sha256 = put(store, b"tokens")
    assert sha256 == hashlib.sha256(b"tokens").digest()
    path = store.find(sha256)
    assert path is not None and path.read_bytes() == b"tokens"
    assert store.known(sha256) == path


def test_a_blob_that_changed_on_disk_is_dropped(store: BlobStore) -> None:
    sha256 = put(store, b"tokens")
    path = store.path(sha256)
    path.write_bytes(b"Tokens")
    os.utime(path, ns=(1, 1))
    assert store.find(sha256) is None
    assert not path.exists()


def test_a_blob_of_an_earlier_process_is_hashed_before_it_is_served(home: Home) -> None:
    earlier = BlobStore(home.blobs, home.scratch)
    good, bad = put(earlier, b"good"), put(earlier, b"bad")
    earlier.path(bad).write_bytes(b"BAD")
    store = BlobStore(home.blobs, home.scratch)
    assert store.known(good) is None
    assert store.find(good) is not None and store.known(good) is not None
    assert store.find(bad) is None


def test_rot_that_leaves_size_and_time_alone_is_found_when_asked_to_hash(store: BlobStore) -> None:
    sha256 = put(store, b"tokens")
    path = store.path(sha256)
    status = path.stat()
    path.write_bytes(b"Tokens")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.find(sha256) == path  # nothing tells
    assert store.find(sha256, anew=True) is None
    assert not path.exists() and store.known(sha256) is None


def test_a_file_that_somebody_touched_is_served_to_nobody_until_it_was_hashed(
    store: BlobStore,
) -> None:
    sha256 = put(store, b"tokens")
    os.utime(store.path(sha256), ns=(1, 1))
    assert store.known(sha256) is None
    assert store.find(sha256) is not None
    assert store.known(sha256) is not None


def test_what_a_killed_process_left_half_made_goes_but_downloads_stay(home: Home) -> None:
    (home.scratch / "abc.part").write_bytes(b"half")
    (home.scratch / "abc.encoding").write_bytes(b"half")
    (home.answers / "def.part").write_bytes(b"half")
    (home.answers / "def").write_bytes(b"given")
    clear_folder(home)
    assert [path.name for path in home.answers.iterdir()] == ["def"]
    assert [path.name for path in home.scratch.iterdir()] == ["abc.part"]


# ---- configuration


def test_a_download_of_long_ago_goes_too(home: Home) -> None:
    for name in ("new.part", "old.part"):
        (home.scratch / name).write_bytes(b"half")
    os.utime(home.scratch / "old.part", (time.time() - 25 * 3600,) * 2)
    clear_folder(home)
    assert [path.name for path in home.scratch.iterdir()] == ["new.part"]


def test_configuration_round_trips(home: Home) -> None:
    config = WorkerConfig(
        LINK,
        name='Ada "the \\ first" é',
        limits=Limits(threads=3, schedule=("mon-fri 22:00-07:00",)),
        client_mode=True,
    )
    config.save(home.config)
    assert WorkerConfig.load(home.config) == config
    assert home.config.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("threads = -1", "threads is between 0 and 1024"),
        ("[limits]\nnice = 20", "nice is between 0 and 19"),
        ('[limits]\nschedule = ["at night"]', "is not a period such as"),
        ("[limits]\nheat = 3", "unknown limit 'heat'"),
        ('threads = "two"', "threads = 'two' has the wrong type"),
        ("thread = 2", "unknown setting 'thread'"),
        ('device = "tpu"', "device is auto"),
        ('listen = ["localhost:80"]', "multiaddresses"),
        ("threads = ", "is damaged"),
    ],
)
def test_a_wrong_setting_is_named(home: Home, line: str, message: str) -> None:
    home.config.write_text(f'link = "{LINK}"\n{line}\n')
    with pytest.raises(UsageError, match=re.escape(message)):
        WorkerConfig.load(home.config)


def test_a_folder_that_joined_nothing_says_what_to_do(home: Home) -> None:
    with pytest.raises(UsageError, match="worker join LINK"):
        WorkerConfig.load(home.config)


def test_the_option_wins_over_the_environment(tmp_path: Path) -> None:
    environment = {"BARNRAISE_HOME": str(tmp_path / "environment")}
    assert resolve_home(tmp_path / "option", environment).path == tmp_path / "option"
    assert resolve_home(None, environment).path == tmp_path / "environment"
    assert resolve_home(None, {}).path.name == "worker"


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too long"):
        Home(tmp_path / ("x" * 120)).prepare()


# ---- control


async def test_the_socket_is_its_owners_alone_and_gone_afterwards(home: Home) -> None:
    async with control_server(home, lambda command, arguments: {"echo": command, **arguments}):
        assert home.socket.stat().st_mode & 0o777 == 0o600
        assert (await asyncio.to_thread(ask, home, "pause"))["echo"] == "pause"
        with pytest.raises(UsageError, match="unknown command"):
            await asyncio.to_thread(ask, home, "explode")
    assert not home.socket.exists()
    with pytest.raises(UsageError, match="no worker runs"):
        ask(home, "status")


async def test_a_request_that_is_not_one_ends_that_connection_only(home: Home) -> None:
    async with control_server(home, lambda command, arguments: {"echo": command, **arguments}):
        reader, writer = await asyncio.open_unix_connection(str(home.socket))
        writer.write(b"[1, 2\n")
        assert b"not a request" in await reader.readline()
        writer.close()
        await writer.wait_closed()
        assert (await asyncio.to_thread(ask, home, "status"))["ok"]


def test_a_home_is_held_once(home: Home) -> None:
    with home_lock(home):
        refused = pytest.raises(UsageError, match=f"process {os.getpid()}")
        with refused, home_lock(home):
            raise AssertionError("held twice")
    with home_lock(home):
        assert home.lock.read_text() == str(os.getpid())
