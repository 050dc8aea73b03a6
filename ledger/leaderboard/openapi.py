"""The description of ``/api/v1``: what every operation answers beside its model.

Invariant: what is said here of every operation is done in one place for every answer
(:mod:`ledger.leaderboard.middleware` and the handlers of :mod:`ledger.leaderboard.app`), so that
no operation can forget it.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

API = "/api/v1"
_DESCRIPTION = """\
The public record of a volunteer training run, as its pages show it.

* Every answer is made from the newest signed head of the record; where it has a `size`, that is
  the number of leaves under that head. Amounts are integers: 1 credit is 1,000,000 microcredits,
  and 1 microcredit is 1 GFLOP of verified training. Times are Unix seconds.
* Every answer carries an `ETag`; ask again with `If-None-Match`, and a 304 without a body says
  that nothing changed. Scripts of any site may read it (CORS); there are no cookies and no keys.
* `HEAD` is answered wherever `GET` is. An error is `{"detail": "a sentence"}`.
* Believe nothing: `barnraise ledger verify --url` recomputes every number here from the record.
"""
_PROBLEM = {
    "type": "object",
    "title": "Problem",
    "required": ["detail"],
    "properties": {"detail": {"type": "string", "description": "a sentence for a person"}},
    "additionalProperties": False,
}
_EXAMPLES: dict[str, Any] = {
    "donor": "12D3KooWGjCmCMMWm5WWyMnJhPUkDQFzBNTNhKoLmrwsBqLsrMEr",
    "team": "6f1ed002ab5595859014ebf0951522d9",
    "number": 0,
    "index": 0,
    "page": 1,
    "per_page": 100,
    "q": "ada",
}
_HEADERS = {
    "ETag": {
        "description": "of the body; give it back as If-None-Match",
        "schema": {"type": "string", "pattern": '^W/"[0-9a-f]{32}"$'},
    },
    "Cache-Control": {"schema": {"type": "string"}},
    "Access-Control-Allow-Origin": {"schema": {"type": "string", "enum": ["*"]}},
}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "ETags of the answers that you have",
    "schema": {"type": "string"},
}


def describe(app: FastAPI) -> None:
    """Let the app describe itself as it is."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary="The record of a volunteer training run, as JSON.",
                description=_DESCRIPTION,
                routes=app.routes,
                license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
                servers=[{"url": "/"}],
                tags=[{"name": "v1", "description": "Stable: fields are added, never changed."}],
            )
            app.openapi_schema = _completed(schema)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(schema: dict[str, Any]) -> dict[str, Any]:
    schemas = schema["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = _PROBLEM
    for operations in schema["paths"].values():
        for operation in operations.values():
            _complete(operation)
    return schema


def _complete(operation: dict[str, Any]) -> None:
    parameters = operation.setdefault("parameters", [])
    for parameter in parameters:
        if parameter["name"] in _EXAMPLES:
            parameter["example"] = _EXAMPLES[parameter["name"]]
    answers = operation["responses"]
    answers["200"]["headers"] = _HEADERS
    answers["304"] = {"description": "You have it already", "headers": _HEADERS}
    if any(parameter["in"] == "path" for parameter in parameters):
        answers["404"] = _problem("The record knows no such thing")
    if parameters:
        answers["422"] = _problem("A parameter is out of its bounds")
    answers["500"] = _problem("The record is damaged: no number is shown that cannot be trusted")
    answers["503"] = _problem("The record has not begun, or cannot be read just now")
    parameters.append(_IF_NONE_MATCH)


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        "description": description,
        "headers": {"Access-Control-Allow-Origin": _HEADERS["Access-Control-Allow-Origin"]},
        "content": {"application/json": {"schema": schema}},
    }
