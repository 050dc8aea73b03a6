"""What became of credit: the part of every model that shows amounts.

Amounts are integers in the units of their names. The pages and ``/api/v1`` are made from the same
models; names and what people say of themselves are the only fields that do not come from the log.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Held(BaseModel):
    """What became of credit. What somebody has is pending and final together."""

    pending_microcredits: int = Field(description="not yet final; forfeited if cheating is proven")
    final_microcredits: int = Field(description="verified: audits and time have passed")
    forfeited_microcredits: int = Field(description="taken back: an audit proved cheating")
    unpaid_microcredits: int = Field(description="taken back: what an audit needed was not there")

    @property
    def total_microcredits(self) -> int:
        return self.pending_microcredits + self.final_microcredits


class Paged(BaseModel):
    """One page of a list."""

    size: int = Field(description="leaves under the signed head that this is folded from")
    total: int = Field(description="that there are on all pages")
    page: int
    per_page: int

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // self.per_page))


def held(tally: Any) -> dict[str, int]:
    """The fields of :class:`Held`, of anything that has them."""
    return {name: getattr(tally, name) for name in Held.model_fields}
