"""The numbers of a picture. Integers in the unit that they name, as everywhere in the API."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Name = Literal["loss", "compute", "members", "goal", "audits"]
"""Of the run as a whole."""

Unit = Literal[
    "tokens", "unix_seconds", "round", "micronats", "microcredits", "members", "permille"
]
Kind = Literal["line", "stack", "bars", "progress"]

MAX_POINTS = 240
MAX_TABLE_ROWS = 24


class Line(BaseModel):
    """One quantity over the x axis."""

    label: str = Field(description="may be a donor's name: hostile until escaped")
    tone: str = Field(description="a stable word for its colour")
    values: list[int]


class Mark(BaseModel):
    """Something that happened at one place of the x axis."""

    x: int
    label: str


class Series(BaseModel):
    """A picture in numbers, as of ``size`` leaves."""

    name: Name | Literal["history"] = Field(description="history: of one donor")
    size: int = Field(description="leaves under the signed head that these numbers are folded from")
    title: str
    summary: str = Field(description="in words, for who cannot see the picture")
    kind: Kind = Field(description="in a stack, values are to be added up in order")
    x_label: str
    x_unit: Unit
    y_label: str
    y_unit: Unit
    x: list[int] = Field(description="ascending; of a goal bar, the goal")
    lines: list[Line]
    marks: list[Mark] = []

    @property
    def empty(self) -> bool:
        return not self.x or not self.lines


def thinned(count: int, most: int = MAX_POINTS) -> list[int]:
    """Indexes of at most ``most`` of ``count`` points, evenly spaced, the first and last always."""
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]
