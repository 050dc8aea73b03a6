"""Badges and cards: pictures of a donor, a team or the campaign, for other sites to show."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from ledger.donors import short_key
from ledger.exports.badge import badge
from ledger.exports.card import Figure, Segment, alt_text, card
from ledger.leaderboard import campaigns
from ledger.leaderboard import format as text
from ledger.leaderboard.campaign_pages import goal_bar
from ledger.leaderboard.pictures.png import to_png
from ledger.leaderboard.record import reader_of
from ledger.leaderboard.workshop import workshop_of

router = APIRouter(include_in_schema=False)

CAMPAIGN = "campaign"
_TEAM = re.compile(r"[0-9a-f]{32}")
_FRESH = "public, max-age=300"


@dataclass(frozen=True)
class Subject:
    """Whom a picture is of."""

    eyebrow: str
    name: str
    total_microcredits: int
    figures: tuple[Figure, ...]
    bar: tuple[Segment, ...] = ()

    @property
    def alt(self) -> str:
        return alt_text(self.name, self.figures)


@router.get("/badge/{name}.svg")
def badge_file(request: Request, name: str) -> Response:
    """A donor's or a team's credit, in a line."""
    subject = _subject(request, name)
    drawn = badge(subject.name, f"{text.credit(subject.total_microcredits)} credits")
    return _picture(drawn.encode(), "image/svg+xml")


@router.get("/card/{name}.{form}")
def card_file(request: Request, name: str, form: Literal["svg", "png"]) -> Response:
    """What other sites show of the page of a donor, a team or the campaign."""
    subject = _subject(request, name)
    drawn = card(subject.eyebrow, subject.name, subject.figures, subject.bar)
    if form == "svg":
        return _picture(drawn.encode(), "image/svg+xml")
    key = "card", hashlib.sha256(drawn.encode()).digest()
    return _picture(workshop_of(request).get(key, lambda: to_png(drawn, zoom=1)), "image/png")


def _picture(body: bytes, kind: str) -> Response:
    return Response(body, media_type=kind, headers={"Cache-Control": _FRESH})


def _subject(request: Request, name: str) -> Subject:
    """Raises HTTPException: 404, there is no such donor or team."""
    if name == CAMPAIGN:
        return _campaign(request)
    if _TEAM.fullmatch(name):
        return _team(request, name)
    snapshot = reader_of(request).snapshot()
    owner = snapshot.owner(name)
    if owner is None:
        raise HTTPException(404, "The record knows no such donor.")
    person = snapshot.people[owner]
    figures = (
        Figure(text.credit(person.total_microcredits), "credits"),
        Figure(text.compact(person.tokens), "tokens trained"),
        Figure(f"#{snapshot.rank('all', person)}", "of all donors"),
    )
    shown = snapshot.names.donor(owner) or short_key(owner)
    return Subject("Donor to a public training run", shown, person.total_microcredits, figures)


def _team(request: Request, name: str) -> Subject:
    with reader_of(request).read() as reading:
        team = reading.board.crowd.teams.teams.get(name)
        if team is None:
            raise HTTPException(404, "The record knows no such team.")
        total = team.tally.total_microcredits
        figures = (
            Figure(text.credit(total), "credits"),
            Figure(text.compact(team.tally.tokens), "tokens trained"),
            Figure(f"{len(team.members):,}", "members"),
        )
        shown = reading.names.team(name) or f"team {name[:8]}"
    return Subject("Team in a public training run", shown, total, figures)


def _campaign(request: Request) -> Subject:
    with reader_of(request).read() as reading:
        run = campaigns.run(reading)
    figures = (
        Figure(text.credit(run.final_microcredits), "verified credits"),
        Figure(text.credit(run.goal_microcredits), "credits are the goal"),
        Figure(f"{run.donors:,}", "donors"),
    )
    bar = tuple(Segment(*segment) for segment in goal_bar(run))
    return Subject(run.run_name, run.title, run.total_microcredits, figures, bar)
