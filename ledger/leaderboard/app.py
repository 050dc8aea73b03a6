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
    certificates,
    crowd_api,
    donor_pages,
    embeds,
    explorer,
    exports,
    metrics,
    openapi,
    receipt_page,
    record,
    team_pages,
    views,
)
from ledger.leaderboard.cache import PageCache
from ledger.leaderboard.middleware import ETags, Heads, Packing, SecurityHeaders
from ledger.leaderboard.pages import error_page
from ledger.leaderboard.pictures import routes as pictures
from ledger.leaderboard.pictures.gallery import Gallery
from ledger.leaderboard.reader import Reader
from ledger.leaderboard.workshop import Workshop
from protocol.errors import ProtocolError, TransientError

_STATIC = Path(__file__).with_name("static")
_WORTH_PACKING_BYTES = 1024


def create_app(database_url: str, *, dumps: Path | None = None) -> FastAPI:
    """Build the site.

    Args:
        database_url: SQLAlchemy URL of the database that holds the log; it is only read.
        dumps: where ``ledger dump`` keeps its dumps.
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
    app.state.dumps = dumps
    app.state.gallery = Gallery()
    app.state.workshop = Workshop()
    app.include_router(crowd_api.router)
    app.include_router(api.router)
    app.include_router(record.router)
    app.include_router(metrics.router)
    app.include_router(exports.router)
    app.include_router(embeds.router)
    app.include_router(certificates.router)
    app.include_router(campaign_pages.router)
    app.include_router(donor_pages.router)
    app.include_router(team_pages.router)
    app.include_router(pictures.router)
    app.include_router(views.router)
    app.include_router(explorer.router)
    app.include_router(explorer.api_router)
    app.include_router(receipt_page.router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ProtocolError, _protocol_error)
    app.add_middleware(ETags)
    app.add_middleware(Heads)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(PageCache, serial=app.state.reader.serial)
    app.add_middleware(Packing, minimum_size=_WORTH_PACKING_BYTES, compresslevel=5)
    metrics.measure(app)  # last is outermost
    openapi.describe(app)
    return app


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if "Allow" in headers:  # what Heads and CORS add to GET
        headers["Allow"] += ", HEAD, OPTIONS"
    return _answer(request, error.status_code, error.detail, headers)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    where = ".".join(str(step) for step in problem["loc"][1:])
    return _answer(request, 422, f"{where}: {problem['msg']}")


def _protocol_error(request: Request, error: Exception) -> Response:
    """A damaged record must be seen: no page pretends that all is well."""
    status = 503 if isinstance(error, TransientError) else 500
    return _answer(request, status, f"The record is damaged: {error}")


def _answer(
    request: Request, status: int, detail: str, headers: dict[str, str] | None = None
) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": detail}, status_code=status, headers=headers)
    answer = error_page(request, status, detail)
    answer.headers.update(headers or {})
    return answer
