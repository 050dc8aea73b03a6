"""Where pictures are served: the page of all of them, each as a file, and its numbers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.exceptions import HTTPException

from ledger.leaderboard.pages import page
from ledger.leaderboard.pictures.draw import Shape
from ledger.leaderboard.pictures.gallery import Form, gallery_of
from ledger.leaderboard.pictures.paper import Theme
from ledger.leaderboard.pictures.series import Name, Series
from ledger.leaderboard.pictures.table import table_of
from ledger.leaderboard.record import reader_of

router = APIRouter()

_MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png"}
_ALL: tuple[Name, ...] = ("goal", "loss", "compute", "members", "audits")

Key = Annotated[str, Path(max_length=64)]
InTheme = Annotated[Theme, Query()]
InShape = Annotated[Shape, Query()]
Wanted = Annotated[Name, Path(description="which picture")]


@router.get("/charts", include_in_schema=False)
def charts_page(request: Request) -> Response:
    """All pictures, each with its numbers."""
    gallery = gallery_of(request)
    with reader_of(request).read() as reading:
        shown = [gallery.series(reading, name) for name in _ALL]
    return page("charts.html", request, shown=[(one, table_of(one)) for one in shown])


@router.get("/api/v1/series/{name}", tags=["v1"])
def series(request: Request, name: Wanted) -> Series:
    """A picture in numbers."""
    with reader_of(request).read() as reading:
        return gallery_of(request).series(reading, name)


@router.get("/api/v1/donors/{donor}/series/history", tags=["v1"])
def donor_series(request: Request, donor: Key) -> Series:
    """What one donor's devices were credited over time, in numbers."""
    return _history(request, donor)


@router.get("/pictures/{name}.{form}", include_in_schema=False)
def picture(
    request: Request, name: Wanted, form: Form, theme: InTheme = "light", shape: InShape = "wide"
) -> Response:
    """A picture as a file."""
    gallery = gallery_of(request)
    with reader_of(request).read() as reading:
        numbers = gallery.series(reading, name)
    return _file(gallery.picture(numbers, form, theme, shape), name, form)


@router.get("/pictures/donors/{donor}.{form}", include_in_schema=False)
def donor_picture(
    request: Request, donor: Key, form: Form, theme: InTheme = "light", shape: InShape = "wide"
) -> Response:
    """One donor's picture as a file."""
    numbers = _history(request, donor)
    return _file(gallery_of(request).picture(numbers, form, theme, shape), "history", form)


def _history(request: Request, donor: str) -> Series:
    with reader_of(request).read() as reading:
        numbers = gallery_of(request).history(reading, donor)
    if numbers is None:
        raise HTTPException(404, "The record knows no such donor.")
    return numbers


def _file(body: bytes, name: str, form: Form) -> Response:
    headers = {"Content-Disposition": f'inline; filename="{name}.{form}"'}
    return Response(body, media_type=_MEDIA_TYPES[form], headers=headers)
