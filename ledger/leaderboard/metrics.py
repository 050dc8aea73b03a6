"""``/metrics``: how the site does, for Prometheus.

Invariants:

* Labels are of bounded number: a request counts under the pattern of its route, never under its
  path, and under one of a few methods.
* Nothing of who asked is kept.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.leaderboard.record import reader_of
from ledger.log import latest_head
from ledger.tree import tree_size
from protocol.errors import ProtocolError

disable_created_metrics()  # when a series began is of no use here, and doubles the page

router = APIRouter(include_in_schema=False)

_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_OTHER = "other"
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class SiteMetrics:
    """One site's counters; each app has its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "barnraise_http_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.latency = Histogram(
            "barnraise_http_request_duration_seconds",
            "From the request to the last byte of its answer.",
            ("route",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "barnraise_http_requests_in_flight", "Requests being answered.", registry=self.registry
        )
        self.log_leaves = self._gauge("log_leaves", "Leaves in the log.")
        self.head_leaves = self._gauge("head_leaves", "Leaves under the newest signed head.")
        self.head_age_s = self._gauge("head_age_seconds", "Since the newest head was signed.")
        self.folded_leaves = self._gauge("folded_leaves", "Leaves that the pages are made from.")
        self.fold_lag = self._gauge(
            "fold_lag_leaves", "Leaves under the newest head that the pages do not show yet."
        )
        self.up = self._gauge("record_readable", "1 if the record is there and undamaged.")

    def _gauge(self, name: str, help_: str) -> Gauge:
        return Gauge(f"barnraise_{name}", help_, registry=self.registry)


class Measured:
    """Counts and times every request."""

    def __init__(self, app: ASGIApp, metrics: SiteMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        status = 500  # what a server says for a handler that died

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started_s = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, note_status)
            finally:
                route = _route(scope)
                self._metrics.requests.labels(route, method, str(status)).inc()
                self._metrics.latency.labels(route).observe(time.perf_counter() - started_s)


def measure(app: FastAPI) -> None:
    """Measure an app; call it last, so that nothing runs outside."""
    app.state.metrics = SiteMetrics()
    app.add_middleware(Measured, metrics=app.state.metrics)


@router.get("/metrics")
async def metrics_page(request: Request) -> Response:
    """Everything, in the text format of Prometheus."""
    metrics: SiteMetrics = request.app.state.metrics
    await run_in_threadpool(_look_at_record, metrics, request)
    body = generate_latest(metrics.registry)
    return Response(
        body, headers={"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"}
    )


def _look_at_record(metrics: SiteMetrics, request: Request) -> None:
    reader = reader_of(request)
    try:
        with reader.session() as (session, _):
            head = latest_head(session)
            metrics.log_leaves.set(tree_size(session))
        if head is not None:
            metrics.head_leaves.set(head.tree_size)
            metrics.head_age_s.set(max(0.0, time.time() - head.signed_at_s))
        with reader.read() as reading:
            metrics.folded_leaves.set(reading.head.size)
            metrics.fold_lag.set(max(0, (head.tree_size if head else 0) - reading.head.size))
        metrics.up.set(1)
    except (HTTPException, ProtocolError):
        metrics.up.set(0)


def _route(scope: Scope) -> str:
    """The pattern that the router found, or a word for what has none."""
    route: Any = scope.get("route")
    pattern = getattr(route, "path", None)
    if isinstance(route, Mount) or pattern is None:
        return "/static" if scope["path"].startswith("/static/") else _OTHER
    return str(pattern)
