"""The leaderboard: a web site that is a pure view of the log.

Invariants:

* Every number is a value of the fold of the log under the newest signed head; only names and the
  join link come from elsewhere, and names are escaped wherever they appear.
* It reads only, works without JavaScript, and its policy lets a browser load nothing but its
  own files: no inline script, no inline style, nothing from another host.
* The same head gives the same bytes, so every answer carries an ETag.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ledger.leaderboard import (
    api,
    campaign_pages,
    crowd_api,
    donor_pages,
    explorer,
    receipt_page,
    record,
    team_pages,
    views,
)
from ledger.leaderboard.cache import PageCache
from ledger.leaderboard.middleware import ETags, SecurityHeaders
from ledger.leaderboard.pages import error_page
from ledger.leaderboard.reader import Reader
from protocol.errors import ProtocolError, TransientError

_STATIC = Path(__file__).with_name("static")


def create_app(database_url: str) -> FastAPI:
    """Build the site.

    Args:
        database_url: SQLAlchemy URL of the database that holds the log; it is only read.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.reader.close()

    app = FastAPI(
        title="Barnraise public record",
        version="1",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # it would load scripts from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.reader = Reader(database_url)
    app.include_router(crowd_api.router)
    app.include_router(api.router)
    app.include_router(record.router)
    app.include_router(campaign_pages.router)
    app.include_router(donor_pages.router)
    app.include_router(team_pages.router)
    app.include_router(views.router)
    app.include_router(explorer.router)
    app.include_router(explorer.api_router)
    app.include_router(receipt_page.router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ProtocolError, _protocol_error)
    app.add_middleware(ETags)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(PageCache, serial=app.state.reader.serial)  # last: outermost
    return app


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, error.status_code, error.detail)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    where = ".".join(str(step) for step in problem["loc"][1:])
    return _answer(request, 422, f"{where}: {problem['msg']}")


def _protocol_error(request: Request, error: Exception) -> Response:
    """A damaged record must be seen: no page pretends that all is well."""
    status = 503 if isinstance(error, TransientError) else 500
    return _answer(request, status, f"The record is damaged: {error}")


def _answer(request: Request, status: int, detail: str) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": detail}, status_code=status)
    return error_page(request, status, detail)
