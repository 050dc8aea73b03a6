"""How a page is made: a template, filled, in the site's dress."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from ledger.donors import short_key
from ledger.leaderboard import format as text
from ledger.money import format_amount

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,  # names are hostile until escaped
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {
    "compact": text.compact,
    "credit": text.credit,
    "flops": text.flops,
    "percent": text.percent,
    "chance": text.chance,
    "words": text.words,
    "nats": text.nats,
    "moment": text.moment,
    "day": text.day,
    "iso": text.iso,
    "duration": text.duration,
    "money": format_amount,
    "short_key": short_key,
    "shell": shlex.quote,
}


def page(template: str, request: Request, status: int = 200, **values: Any) -> Response:
    """Fill a template; every page knows its path and the site's address."""
    body = _templates.get_template(template).render(
        path=request.url.path,
        base_url=str(request.base_url).rstrip("/"),
        has_dumps=request.app.state.dumps is not None,
        **values,
    )
    return HTMLResponse(body, status_code=status)


def error_page(request: Request, status: int, detail: str) -> Response:
    """Any error, as a page in the site's dress."""
    return page("error.html", request, status, code=status, detail=detail)
