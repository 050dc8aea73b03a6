"""``run --metrics PORT``: what the worker does, for Prometheus, on this machine alone.

Invariants:

* It listens on 127.0.0.1 and nowhere else, and answers only who calls it by that name or
  ``localhost``: no page in a browser can read it by a name of its own that leads here.
* Everything is read from the status at the moment of the question; nothing is counted twice.
* The number of samples is bounded: no label holds a text, a peer or a round.
* Requests are bounded in number, size and time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import psutil
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from protocol.errors import UsageError
from protocol.hello import client_version
from worker.status import Phase
from worker.verdict import Because

HOST = "127.0.0.1"
OTHER = "other"
"""Why nothing is done, when it is nothing that the owner's limits say."""

_NAMES = (HOST, "localhost")
_MOST_CALLERS = 8
_MOST_HEAD_BYTES = 8 << 10
_REQUEST_TIMEOUT_S = 5.0
_MICRO = 1e-6

Status = Mapping[str, Any]

_GAUGES = (
    ("round", "round", "The round under way."),
    ("settled_rounds", "settled_rounds", "Rounds of the run that are settled."),
    ("steps", "steps", "Steps of the unit under way."),
    ("steps_done", "steps_done", "Steps of it that are done."),
    ("loss", "loss", "Of the newest step."),
    ("tokens_per_second", "tokens_per_s", "Speed of the unit under way, or of the last one."),
    ("peers", "peers", "Members of the last reduce."),
    ("coordinator_connected", "connected", "Whether the coordinator answers."),
    ("paused", "paused", "Whether the owner has paused it."),
    ("asleep", "asleep", "Whether all that is large has been let go."),
)
_COUNTERS = (
    ("units", "units_committed", "Units committed by this process and those before it."),
    ("tokens", "tokens_committed", "Tokens in them."),
)
_PARTS = (
    ("network", "up_bytes_today", "network_sent_today_bytes", "Sent today.", 1.0),
    ("network", "down_bytes_today", "network_received_today_bytes", "Received today.", 1.0),
    ("network", "quota_left_bytes", "network_quota_left_bytes", "Left of today's quota.", 1.0),
    ("energy", "watt_hours", "energy_watt_hours", "Drawn by the devices that tell.", 1.0),
    ("cache", "bytes", "cache_bytes", "Disk that the worker takes.", 1.0),
    ("cache", "files", "cache_files", "Files in which it does.", 1.0),
    ("cache", "limit_bytes", "cache_limit_bytes", "Disk that it may take; 0: no limit.", 1.0),
    ("cache", "free_bytes", "disk_free_bytes", "Free disk, for everybody.", 1.0),
    ("cache", "shards_found", "cache_shards_found", "Shards that units found here.", 1.0),
    ("cache", "shards_fetched", "cache_shards_fetched", "Shards that units waited for.", 1.0),
    ("cache", "shards_ahead", "cache_shards_ahead", "Shards fetched ahead.", 1.0),
    ("credit", "verified_microcredits", "credit_verified", "Credit in verified receipts.", _MICRO),
)


class WorkerMetrics(Collector):
    """One status, as metrics."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """All of them; what a part does not tell is not among them."""
        status = self._status()
        about = {"version": client_version(), "worker": status["worker"], "run": status["run"]}
        yield InfoMetricFamily("barnraise_worker", "This worker.", value=about)
        yield _states("phase", "What it is doing.", list(Phase), status["phase"])
        why = status.get("because") or (OTHER if status["reason"] else "")
        yield _states("waiting", "Why it does nothing.", [*Because, OTHER], why)
        for name, key, says in _GAUGES:
            yield from _gauge(name, says, status.get(key))
        for name, key, says in _COUNTERS:
            yield CounterMetricFamily(f"barnraise_worker_{name}", says, value=status[key])
        yield _receipts(status)
        for part, key, name, says, scale in _PARTS:
            yield from _gauge(name, says, _number(_part(status, part).get(key)), scale)
        yield from _gauge(
            "uptime_seconds", "Since its start.", time.time() - status["started_at_s"]
        )
        resident = psutil.Process().memory_info().rss
        yield from _gauge("resident_bytes", "Memory of the daemon alone.", resident)


def _part(status: Status, name: str) -> Mapping[str, Any]:
    found = status.get(name) or status.get("parts", {}).get(name)
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _gauge(name: str, says: str, value: float | None, scale: float = 1.0) -> Iterator[Metric]:
    if value is not None:
        yield GaugeMetricFamily(f"barnraise_worker_{name}", says, value=value * scale)


def _states(name: str, says: str, known: list[str], now: str) -> Metric:
    """One sample for each state, 1 for the one that holds."""
    family = GaugeMetricFamily(f"barnraise_worker_{name}", says, labels=[name])
    for state in known:
        family.add_metric([str(state)], float(state == now))
    return family


def _receipts(status: Status) -> Metric:
    family = GaugeMetricFamily("barnraise_worker_receipts", "Receipts.", labels=["state"])
    family.add_metric(["held"], status["receipts_held"])
    family.add_metric(["awaited"], status["receipts_pending"])
    return family


# ---- the server


@asynccontextmanager
async def metrics_server(port: int, status: Callable[[], Status]) -> AsyncIterator[None]:
    """Serve ``/metrics`` until the block ends.

    Args:
        port: on 127.0.0.1; 0: nothing is served.
        status: the worker's snapshot; must not block.

    Raises:
        UsageError: another program has the port.
    """
    if not port:
        yield
        return
    registry = CollectorRegistry()
    registry.register(WorkerMetrics(status))
    server = _Server(port, registry)
    try:
        listening = await asyncio.start_server(
            server.answer, HOST, port, limit=_MOST_HEAD_BYTES, backlog=_MOST_CALLERS
        )
    except OSError as error:
        raise UsageError(
            f"metrics cannot be served on {HOST}:{port} ({os.strerror(error.errno or 0)}): give "
            "another port with --metrics, or BARNRAISE_METRICS"
        ) from error
    try:
        yield
    finally:
        listening.close()
        for writer in list(server.writers):
            writer.transport.abort()
        await listening.wait_closed()


class _Server:
    def __init__(self, port: int, registry: CollectorRegistry) -> None:
        self._port = port
        self._registry = registry
        self.writers: set[asyncio.StreamWriter] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.writers) >= _MOST_CALLERS:
            writer.transport.abort()
            return
        self.writers.add(writer)
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                writer.write(self._respond(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            return  # slow, or gone: its loss
        except asyncio.LimitOverrunError:
            writer.write(_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        finally:
            self.writers.discard(writer)
            writer.close()

    def _respond(self, head: bytes) -> bytes:
        request, *fields = head.decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        hosts = [value.strip().lower() for name, _, value in map(_split, fields) if name == "host"]
        if hosts not in [[name] for name in self._allowed()]:
            return _response(HTTPStatus.FORBIDDEN, f"ask for http://{HOST}:{self._port}/metrics\n")
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED)
        if path != "/metrics":
            return _response(HTTPStatus.NOT_FOUND, "see /metrics\n")
        body = generate_latest(self._registry)
        return _response(HTTPStatus.OK, body, CONTENT_TYPE_LATEST, with_body=method == "GET")

    def _allowed(self) -> list[str]:
        return [*_NAMES, *(f"{name}:{self._port}" for name in _NAMES)]


def _split(field: str) -> tuple[str, str, str]:
    name, colon, value = field.partition(":")
    return name.strip().lower(), colon, value


def _response(
    status: HTTPStatus,
    body: str | bytes = b"",
    kind: str = "text/plain; charset=utf-8",
    *,
    with_body: bool = True,
) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\nCache-Control: no-store\r\n\r\n"
    )
    return head.encode() + (data if with_body else b"")
