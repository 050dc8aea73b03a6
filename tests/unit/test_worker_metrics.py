"""What Prometheus reads of a worker: true, bounded, and only on this machine."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import click
import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol.errors import UsageError
from worker.commands.running import run
from worker.metrics import metrics_server
from worker.status import Board, Phase
from worker.verdict import Because

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def board() -> Board:
    return Board("12D3KooWada", "00" * 8)


@pytest.fixture
async def port(board: Board) -> AsyncIterator[int]:
    number = free_port()
    async with metrics_server(number, board.snapshot):
        yield number


async def send(port: int, request: bytes, host: str = "127.0.0.1") -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def get(port: int, *, path: str = "/metrics", host: str | None = None, method: str = "GET") -> Any:
    name = f"127.0.0.1:{port}" if host is None else host
    return send(port, f"{method} {path} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())


async def read(port: int) -> Samples:
    head, _, body = (await get(port)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Type: text/plain; version=" in head
    families = list(text_string_to_metric_families(body.decode()))
    assert all(family.documentation for family in families)
    return {
        (sample.name.removeprefix("barnraise_worker_"), tuple(sorted(sample.labels.items()))): (
            sample.value
        )
        for family in families
        for sample in family.samples
    }


async def test_it_says_what_the_status_says(board: Board, port: int) -> None:
    board.at_work(Phase.TRAINING)
    board.steps, board.steps_done, board.loss, board.tokens_per_s = 20, 7, 2.5, 123.0
    board.units_committed, board.tokens_committed = 3, 4096
    board.receipts_held, board.receipts_pending = 5, 1
    board.started_at_s = time.time() - 100
    board.parts = {
        "cache": {"bytes": 10, "files": 2, "limit_bytes": 0, "free_bytes": 77, "shards_found": 4},
        "network": {"up_bytes_today": 11, "down_bytes_today": 12, "quota_left_bytes": None},
        "energy": {"watt_hours": 1.25, "source": "RAPL"},
        "credit": {"verified_microcredits": 2_500_000},
    }
    samples = await read(port)
    said = {name: value for (name, labels), value in samples.items() if not labels}
    expected = {
        **{"steps": 20, "steps_done": 7, "loss": 2.5, "tokens_per_second": 123},
        **{"units_total": 3, "tokens_total": 4096, "cache_bytes": 10, "disk_free_bytes": 77},
        **{"cache_files": 2, "cache_limit_bytes": 0, "cache_shards_found": 4},
        **{"network_sent_today_bytes": 11, "network_received_today_bytes": 12},
        **{"energy_watt_hours": 1.25, "credit_verified": 2.5, "paused": 0, "asleep": 0},
    }
    assert {name: said[name] for name in expected} == expected
    assert "network_quota_left_bytes" not in said  # nothing is made up
    assert 100 <= said["uptime_seconds"] < 1000
    assert said["resident_bytes"] > 1 << 20
    assert samples["receipts", (("state", "held"),)] == 5
    info = next(labels for name, labels in samples if name == "info")
    assert dict(info)["worker"] == "12D3KooWada"


@pytest.mark.parametrize("because", [*Because])
async def test_why_it_waits_is_one_of_a_few_words(
    board: Board, port: int, because: Because
) -> None:
    board.waiting("it is a long story", Phase.PAUSED)
    board.because = because
    samples = await read(port)
    waiting = {labels[0][1]: v for (name, labels), v in samples.items() if name == "waiting"}
    assert waiting == {**dict.fromkeys([*Because, "other"], 0.0), because: 1.0}
    phases = {labels[0][1]: v for (name, labels), v in samples.items() if name == "phase"}
    assert phases == {**dict.fromkeys(Phase, 0.0), "paused": 1.0}


async def test_no_text_of_others_gets_in_and_the_number_of_samples_stays(
    board: Board, port: int
) -> None:
    board.waiting("starting")
    before = set(await read(port))
    for number in range(50):
        board.waiting(f'the organiser says "{number}\n# evil 1"')
        board.round, board.assignment_id = number, str(number)
        board.bad_sources = [f"peer {number}"]
        assert set(await read(port)) == before


# ---- who may read it


async def test_it_listens_on_loopback_alone(port: int) -> None:
    here = socket.gethostbyname(socket.gethostname())
    addresses = {here, "127.0.0.2", "::1"} - {"127.0.0.1"}
    for address in addresses:
        with pytest.raises(OSError):
            await send(port, b"GET / HTTP/1.1\r\n\r\n", address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "localhost:{port}"])
async def test_who_calls_it_by_its_own_name_is_answered(port: int, host: str) -> None:
    assert (await get(port, host=host.format(port=port))).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:{port}",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
        ),
        *("localhost:1", "0.0.0.0:{port}", "", "127.0.0.1:{port}\r\nHost: evil.example"),
    ],
)
async def test_a_page_that_rebinds_its_name_to_this_machine_reads_nothing(
    port: int, host: str
) -> None:
    answer = await get(port, host=host.format(port=port))
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"12D3" not in answer


async def test_other_requests_are_refused(port: int) -> None:
    assert (await get(port, path="/")).startswith(b"HTTP/1.1 404 ")
    assert (await get(port, method="POST")).startswith(b"HTTP/1.1 405 ")
    assert (await send(port, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
    head = await get(port, method="HEAD")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert head.endswith(b"\r\n\r\n")
    await send(port, b"GET /metrics HTTP/1.1\r\nHost: " + b"x" * 100_000 + b"\r\n\r\n")
    assert (await get(port)).startswith(b"HTTP/1.1 200 ")


async def test_who_says_nothing_takes_no_more_than_his_place(port: int) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
    # Those beyond the few are hung up on: that is how it is known that the others have arrived.
    for reader, _ in silent[8:]:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    for _, writer in silent:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    answer = b""
    while not answer.startswith(b"HTTP/1.1 200 "):  # until their ends have been noticed
        answer = await get(port)


# ---- its port


async def test_a_port_in_use_is_a_clear_error(board: Board, port: int) -> None:
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port} .*in use.*another port"):
        async with metrics_server(port, board.snapshot):
            pass


async def test_it_is_off_unless_asked_for_and_gone_afterwards(board: Board) -> None:
    async with metrics_server(0, board.snapshot):
        pass
    number = free_port()
    for _ in range(2):  # the port is free at once, with a caller still connected
        async with metrics_server(number, board.snapshot):
            await read(number)
            _, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.close()
    with pytest.raises(ConnectionError):
        await send(number, b"")


def test_option_and_variable_name_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARNRAISE_METRICS", "9099")
    context = run.make_context("run", [])
    assert context.params["metrics_port"] == 9099
    assert run.make_context("run", ["--metrics", "9100"]).params["metrics_port"] == 9100
    monkeypatch.setenv("BARNRAISE_METRICS", "no")
    with pytest.raises(click.BadParameter, match="'no' is not a valid integer"):
        run.make_context("run", [])
    monkeypatch.delenv("BARNRAISE_METRICS")
    assert run.make_context("run", []).params["metrics_port"] is None
