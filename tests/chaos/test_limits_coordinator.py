"""Floods against the real coordinator: it stays up, and who was let in is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from chaos_limits_rig import Honest, Server, flooding, honest, make_run, serve

from coordinator import overload

CROWD = 5000
MIB = 1 << 20
PATIENCE_S = 15.0
"""An honest call's longest wait on a machine that is flooded and five times slower than ours."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("flooded")
    run_dir = make_run(folder, "stalled_upload_s = 3.0\n")
    with serve(run_dir, folder / "coordinator.log") as running:
        yield running
        assert running.process.poll() is None, running.log.read_text()[-3000:]


@pytest.fixture
async def device(server: Server) -> AsyncIterator[Honest]:
    """An honest device, from the address that is flooded. It must be answered all the time."""
    before = len(server.log.read_bytes())
    async with honest(server.link) as beating:
        yield beating
    assert beating.percentile_s(1.0) < PATIENCE_S
    said = server.log.read_text(errors="replace")[before:]
    assert "Traceback" not in said and "call_failed" not in said


@pytest.mark.timeout(400)
async def test_five_thousand_clients_at_once(server: Server, device: Honest) -> None:
    files_before = server.open_files
    half = ("--count", CROWD // 2, "--seconds", 200)
    async with (
        flooding(server.link, "crowd", *half) as one_address,
        flooding(server.link, "crowd", *half, "--many") as many,
    ):
        first, second = await one_address.hear("standing"), await many.hear("standing")
        assert first["replied"] + second["replied"] == CROWD
        assert server.open_files >= CROWD
        assert server.rss_bytes < 1500 * MIB
        await device.beat()
        await one_address.end()
        await many.end()
    assert await asyncio.to_thread(server.until_left, files_before + 20) <= files_before + 20


@pytest.mark.timeout(200)
async def test_who_never_finishes_a_handshake_is_sent_away(server: Server, device: Honest) -> None:
    async with flooding(server.link, "loris", "--count", 300, "--seconds", 100) as flood:
        assert await flood.end() == {"closed": 300}


@pytest.mark.timeout(200)
async def test_slow_streams_have_few_places(server: Server, device: Honest) -> None:
    memory = server.rss_bytes
    async with (
        flooding(server.link, "readers", "--count", 80, "--seconds", 8) as reading,
        flooding(server.link, "uploads", "--count", 40, "--seconds", 60) as uploading,
    ):
        readers, uploads = await reading.end(), await uploading.end()
    assert 0 < readers["still open"] <= overload.DOWNLOADS.strangers.per_address
    assert readers["still open"] + readers["status 8"] == 80
    # What trickled was ended, the others were refused; none was held.
    assert uploads["status 14"] >= overload.UPLOADS.strangers.per_address
    assert uploads["status 14"] + uploads["status 8"] == 40
    assert server.rss_bytes < memory + 100 * MIB


@pytest.mark.timeout(200)
async def test_large_malformed_and_plain_requests(server: Server, device: Honest) -> None:
    memory, files = server.rss_bytes, server.open_files
    async with (
        flooding(server.link, "oversized", "--count", 64, "--seconds", 60) as large,
        flooding(server.link, "garbage", "--count", 150, "--seconds", 60) as noise,
    ):
        refused, closed = await large.end(), await noise.end()
    assert not {"still open", "status 0", "status 13", "TimeoutError"} & refused.keys()
    assert sum(closed.values()) == 150
    assert not {"still open", "TimeoutError"} & closed.keys()
    assert server.rss_bytes < memory + 150 * MIB
    assert await asyncio.to_thread(server.until_left, files + 5) <= files + 5


@pytest.mark.timeout(200)
async def test_frames_without_end(server: Server, device: Honest) -> None:
    """Rapid reset (CVE-2023-44487), pings, settings."""
    memory, files = server.rss_bytes, server.open_files
    async with flooding(server.link, "frames", "--count", 12, "--seconds", 4) as flood:
        heard = await flood.end()  # some were not even let in
        assert heard["done"] > 0
        assert heard.keys() <= {"done", "never"}
    await device.beat()
    assert server.rss_bytes < memory + 150 * MIB
    assert await asyncio.to_thread(server.until_left, files + 5) <= files + 5


@pytest.mark.timeout(200)
async def test_keys_without_end(server: Server, device: Honest) -> None:
    """Known keys as fast as they can, and strangers by the thousand, all from our own address."""
    async with (
        flooding(server.link, "keys", "--count", 8, "--seconds", 5) as known,
        flooding(server.link, "strangers", "--count", 8, "--seconds", 5) as strange,
    ):
        await known.hear("standing")
        by_known, by_strange = await known.end(), await strange.end()
    assert by_known["RESOURCE_EXHAUSTED"] > 0
    assert not [
        outcome
        for outcome in (*by_known, *by_strange)
        if "without a hint" in outcome or "INTERNAL" in outcome
    ]
