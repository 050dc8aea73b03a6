"""The boards of many donors over HTTP: how long a page takes at a steady rate, on one core."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from bench.leaderboard_record import write_record
from bench.report import Row, write_report

NOTE = (
    "barnraise ledger serve, a process on one core; requests come at a steady rate from another "
    "core, whether or not earlier ones were answered, and a latency counts from when its request "
    "was due. Boards, sorts, pages, searches, jumps and conditional requests are drawn at random; "
    "in the second row, a round's credit is recorded every two seconds meanwhile."
)
_RATE_PER_S = 100
_CONNECTIONS = 64
_MOST_WAIT_S = 600.0
_BOARDS = ("all", "month", "day", "average")
_SORTS = ("credit", "tokens", "contributions", "sponsored", "since", "last", "name")
_ROOT = Path(__file__).parent.parent


@dataclass
class Client:
    """Asks for pages at a steady rate."""

    port: int
    donors: int
    names: list[str]
    keys: list[str]
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    tags: dict[str, str] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)
    bytes_read: int = 0

    async def run(self, seconds: float) -> None:
        """Ask for so long; every request is answered when this returns."""
        idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        for _ in range(_CONNECTIONS):
            idle.put_nowait(await asyncio.open_connection("127.0.0.1", self.port))
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds * _RATE_PER_S)):
                due = start + number / _RATE_PER_S
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._ask(idle, self._pick(), due))
        while not idle.empty():
            _, writer = idle.get_nowait()
            writer.close()
            await writer.wait_closed()

    def _pick(self) -> str:
        """A page that somebody may want."""
        board, sort = self.rng.choice(_BOARDS), self.rng.choice(_SORTS)
        page = 1 + int(self.rng.random() ** 3 * self.donors / 50)  # most look at the first ones
        kind = self.rng.random()
        if kind < 0.45:
            return "/donors?" + urlencode({"board": board, "sort": sort, "page": page})
        if kind < 0.6:
            query = {"board": board, "sort": sort, "page": page, "per_page": 50}
            return "/api/v1/donors?" + urlencode(query)
        if kind < 0.7:
            return "/donors?" + urlencode({"q": self.rng.choice(self.names)[:6], "sort": sort})
        if kind < 0.8:
            return "/donors?" + urlencode({"me": self.rng.choice(self.keys), "board": "all"})
        if kind < 0.95 and self.tags:
            return self.rng.choice(list(self.tags)[-200:])
        return "/donors"

    async def _ask(
        self,
        idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
        path: str,
        due: float,
    ) -> None:
        connection = await idle.get()
        reader, writer = connection
        tag = self.tags.get(path)
        condition = f"If-None-Match: {tag}\r\n" if tag else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n{condition}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        status = int(head.split(" ", 2)[1])
        body = await reader.readexactly(int(length[1]) if length and status != 304 else 0)
        self.latencies_s.append(time.perf_counter() - due)
        idle.put_nowait(connection)
        self.answers[status] = self.answers.get(status, 0) + 1
        self.bytes_read += len(body)
        found = re.search(r"etag: (\S+)", head, re.IGNORECASE)
        if found:
            self.tags[path] = found[1]


def run(quick: bool) -> list[Row]:
    """Rows of the report: what was asked meanwhile, and how long it took."""
    donors, seconds = (300, 2.0) if quick else (100_000, 40.0)
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="barnraise-bench-") as folder:
        record = write_record(Path(folder) / "record.db", donors)
        with _served(record.url, cores[0]) as (port, first_s):
            os.sched_setaffinity(0, {cores[-1]})
            try:
                rows = [
                    _row("at rest", _measure(port, donors, record.names, record.keys, seconds)),
                ]
                with record.growing(every_s=2.0, credits=min(200, donors)):
                    grown = _measure(port, donors, record.names, record.keys, seconds)
                rows.append(_row("while it grows", grown))
            finally:
                os.sched_setaffinity(0, cores)
    for row in rows:
        row |= {"donors": donors, "first_page_s": round(first_s, 2)}
    write_report("leaderboard-quick" if quick else "leaderboard", rows, note=NOTE)
    return rows


def _measure(port: int, donors: int, names: list[str], keys: list[str], seconds: float) -> Client:
    client = Client(port, donors, names, keys)
    asyncio.run(client.run(seconds))
    return client


def _row(what: str, client: Client) -> Row:
    ordered = sorted(client.latencies_s)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    bad = sum(count for status, count in client.answers.items() if status >= 400)
    return {
        "record": what,
        "requests_per_s": _RATE_PER_S,
        "requests": len(ordered),
        "not_modified": client.answers.get(304, 0),
        "errors": bad,
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "max_ms": at(1.0),
    }


@contextmanager
def _served(url: str, core: int) -> Iterator[tuple[int, float]]:
    """The site on one core: its port, and how long it took to the first page."""
    pin = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); "
    pin += "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    command = ["-m", "barnraise", "ledger", "serve", "--db", url, "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(
        [sys.executable, "-c", pin, str(core), *command],
        cwd=_ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        if found is None:
            raise RuntimeError(f"the site did not start: {line}{server.stderr.read()}")
        started = time.perf_counter()
        asyncio.run(_first_page(int(found[1])))
        yield int(found[1]), time.perf_counter() - started
    finally:
        server.terminate()
        server.communicate()


async def _first_page(port: int) -> None:
    """Wait until the record is folded."""
    end = time.monotonic() + _MOST_WAIT_S
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /donors HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        if b" 200 " in answer[:20]:
            return
    raise RuntimeError("the site did not read its record")
