"""``/metrics``: true, and of bounded size whatever strangers ask for."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from ledger.leaderboard.app import create_app

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _read(client: TestClient) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def _requests(samples: Samples, **labels: str) -> float:
    return samples.get(("barnraise_http_requests_total", tuple(sorted(labels.items()))), 0)


def test_requests_are_counted_by_route_and_status(client: TestClient, history: Any) -> None:
    donor = history.workers[0][1]
    for _ in range(3):
        client.get(f"/api/v1/donors/{donor}")
    client.get("/api/v1/donors/nobody")
    client.head("/")
    client.get("/static/site.css")
    samples = _read(client)
    route = "/api/v1/donors/{donor}"
    assert _requests(samples, route=route, method="GET", status="200") == 3
    assert _requests(samples, route=route, method="GET", status="404") == 1
    assert _requests(samples, route="/", method="HEAD", status="200") == 1
    assert _requests(samples, route="/static", method="GET", status="200") == 1
    assert samples["barnraise_http_request_duration_seconds_count", (("route", route),)] == 4


def test_the_record_is_measured(client: TestClient, history: Any) -> None:
    samples = _read(client)
    size = history.size()
    for name in ("log_leaves", "head_leaves", "folded_leaves"):
        assert samples[f"barnraise_{name}", ()] == size
    assert samples["barnraise_fold_lag_leaves", ()] == 0
    assert samples["barnraise_record_readable", ()] == 1
    age_s = samples["barnraise_head_age_seconds", ()]
    assert abs(time.time() - history.now_s - age_s) < 60
    assert samples["process_resident_memory_bytes", ()] > 1 << 20


def test_strangers_cannot_make_it_grow(client: TestClient, history: Any) -> None:
    def ask(number: int) -> None:
        client.get(f"/no/{number}")
        client.get(f"/static/{number}.css")
        client.get(f"/api/v1/donors/{number}")
        client.request(f"X{number}", "/")

    ask(0)
    _read(client)
    before = set(_read(client))
    for number in range(1, 50):
        ask(number)
    assert set(_read(client)) == before


def test_a_record_that_has_not_begun_is_told(
    ledger_history: ModuleType, manifest: Any, tmp_path: Path
) -> None:
    empty = ledger_history.History(manifest, f"sqlite:///{tmp_path}/empty.db")
    with TestClient(create_app(empty.url)) as client:
        assert _read(client)["barnraise_record_readable", ()] == 0
        empty.open()
        assert _read(client)["barnraise_record_readable", ()] == 1
    empty.close()
