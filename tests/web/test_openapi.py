"""The API is as it describes itself: asked at random by its schema, at its edges by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import schemathesis
from crowd_rig import TEAM
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, from_schema
from schemathesis.engine.events import (
    NonFatalError,
    ScenarioFinished,
)
from starlette.testclient import TestClient

from ledger.leaderboard.app import create_app

CONFIG = {
    "seed": 7,
    "phases": {"stateful": {"enabled": False}},
    "generation": {
        "mode": "all",
        "max-examples": 8,
        "deterministic": True,
        "database": "none",
        "no-shrink": True,
    },
}


def test_every_operation_is_as_described(crowded: Any) -> None:
    """All checks, on true and on false data: status, headers, body, content type, methods."""
    app = create_app(crowded.url)
    schema = schemathesis.openapi.from_asgi(
        "/api/v1/openapi.json", app, config=SchemathesisConfig.from_dict(CONFIG)
    )
    failures: list[str] = []
    asked: Counter[str] = Counter()
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError):
            failures.append(f"{event.label}: {event.info.format()}")
        if isinstance(event, ScenarioFinished):
            asked[event.label or ""] += len(event.recorder.cases)
            for checks in event.recorder.checks.values():
                for check in checks:
                    if check.status == Status.FAILURE and check.failure_info is not None:
                        failures.append(
                            f"{event.label}: {check.name}: {check.failure_info.failure}\n"
                            f"{check.failure_info.code_sample}"
                        )
    app.state.reader.close()
    assert not failures, f"{len(failures)} failures\n" + "\n\n".join(failures[:20])
    assert len(asked) >= 14
    assert min(asked.values()) >= 10


def test_the_description_is_whole(client: TestClient) -> None:
    schema = client.get("/api/v1/openapi.json").json()
    assert schema["info"]["license"]["identifier"] == "Apache-2.0"
    assert "contact" not in schema["info"]
    for path, operations in schema["paths"].items():
        assert set(operations) == {"get"}, path
        operation = operations["get"]
        assert operation["summary"], path
        answers = operation["responses"]
        assert {"200", "304", "500", "503"} <= set(answers), path
        assert ("404" in answers) == ("{" in path), path
        assert ("422" in answers) == (len(operation["parameters"]) > 1), path
        assert "ETag" in answers["200"]["headers"], path
        for parameter in operation["parameters"]:
            bounds = {"maxLength", "maximum", "exclusiveMaximum", "enum", "const"}
            known = parameter["schema"]
            assert parameter["name"] == "If-None-Match" or bounds & set(known) or "$ref" in known


def _paths(client: TestClient, donor: str) -> list[str]:
    """Every path of the description, with its parameters filled in."""
    values = {"donor": donor, "number": "0", "index": "0", "name": "loss", "team": TEAM}
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    campaign = client.get("/api/v1/campaign").json()["campaign"]
    return [path.format(**values, campaign=campaign) for path in paths]


def test_every_answer_is_conditional_open_and_has_its_head(
    crowded: Any, client: TestClient
) -> None:
    donor = crowded.workers[3][1]
    for path in [*_paths(client, donor), "/api/v1/openapi.json"]:
        answer = client.get(path)
        assert answer.status_code == 200, path
        tag = answer.headers["etag"]
        assert answer.headers["cache-control"], path
        assert answer.headers["access-control-allow-origin"] == "*", path
        for known in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
            again = client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b""), (path, known)
            assert again.headers["etag"] == tag
        for other in ('"x"', "", tag[:-2] + '"', "W/"):
            assert client.get(path, headers={"If-None-Match": other}).status_code == 200
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["etag"] == tag


def test_browsers_may_ask_before_they_read(client: TestClient) -> None:
    headers = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "if-none-match",
    }
    for path in ("/api/v1/donors", "/checkpoint", "/api/v1/none", "/badge/x.svg"):
        answer = client.options(path, headers=headers)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "GET" in answer.headers["access-control-allow-methods"]
        assert "If-None-Match" in answer.headers["access-control-allow-headers"]
    assert "etag" in client.get("/checkpoint").headers["access-control-expose-headers"].lower()
    assert client.options("/donors").status_code == 405  # pages are for people


def test_other_methods_are_refused_and_told_what_goes(client: TestClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"):
        for path in ("/api/v1/donors", "/donors", "/checkpoint"):
            answer = client.request(method, path)
            assert answer.status_code == 405
            assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


ODD = (
    ("/api/v1/donors/%00", 404),
    ("/api/v1/donors/%ff%fe", 404),
    ("/api/v1/donors/%F0%9F%8C%BE", 404),
    ("/api/v1/donors/" + "x" * 65, 422),
    ("/api/v1/donors?q=%00%ff", 200),
    ("/api/v1/donors?page=" + "9" * 5000, 422),
    ("/api/v1/donors?page=1e3", 422),
    ("/api/v1/donors?page=-1", 422),
    ("/api/v1/donors?sort=%27%3B--", 422),
    ("/api/v1/donors?board=no", 422),
    ("/api/v1/rounds/" + "9" * 30, 422),
    ("/api/v1/rounds/" + "9" * 5000, 422),
    ("/api/v1/log/leaves/9007199254740991", 404),
    ("/api/v1/log/leaves/-1", 422),
    ("/api/v1/teams/..%2f..", 404),
    ("/api/v1/", 404),
    ("/api/v1", 404),
)


def test_odd_requests_are_answered_in_kind(client: TestClient) -> None:
    accepts = ("application/json", "text/html", "image/png;q=0", "", "?/?")
    for (path, status), accept in itertools.product(ODD, accepts):
        answer = client.get(path, headers={"Accept": accept})
        assert answer.status_code == status, answer.text
        if path.startswith("/api/v1/"):
            assert answer.headers["content-type"] == "application/json"
        if status != 200 and path.startswith("/api/v1/"):
            assert list(answer.json()) == ["detail"]
