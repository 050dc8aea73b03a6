"""What a key that was never seen before must pass, beyond what every enrolment must.

Steps, cheapest first; the organiser's own anchors pass without them:

1. the auditors are not behind: each newcomer costs a replay, so that whoever floods the run with
   keys waits behind them and nobody else does;
2. quotas: devices of a donor, devices behind an address, new ones behind it within a day;
3. access: everybody (``open``), whoever holds an invitation (``invite``), or whom the organiser
   approved (``approval``; an invitation serves there too).

Addresses are kept as keyed hashes: enough to count by, and no list of where people live. Devices
that were not heard of for a month do not count.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator import invites
from coordinator.audit.jobs import backlog
from coordinator.requests import address_of
from coordinator.schema import WorkerRow
from protocol.errors import RateLimited, UsageError
from protocol.wire import records_pb2 as wire

EnrolmentMode = Literal["open", "invite", "approval"]

_DAY_S = 24 * 3600
_COUNTED_S = 30 * _DAY_S


@dataclass(frozen=True)
class Quotas:
    """An address may be a school behind one router; a donor is one person or group."""

    devices_per_donor: int = 64
    devices_per_address: int = 128
    new_devices_per_address_per_day: int = 64


@dataclass(frozen=True)
class NewcomerPolicy:
    """Who may come in, and how many at once."""

    enrolment: EnrolmentMode = "open"
    quotas: Quotas = Quotas()
    backlog_jobs: int = 200  # replays that wait, above which newcomers do too


def address_key(run_id: bytes, peer: str) -> str:
    """What is kept of the address of ``ServicerContext.peer()``."""
    return hashlib.blake2b(address_of(peer).encode(), key=run_id, digest_size=16).hexdigest()


def require_room(
    session: Session,
    policy: NewcomerPolicy,
    enrolment: wire.Enrolment,
    address: str,
    now_s: float,
) -> None:
    """Steps 1 and 2.

    Raises:
        RateLimited: the auditors are behind, or too many came from this address today.
        UsageError: the donor or the address has as many devices as it may.
    """
    waiting = backlog(session, retained=False)
    if waiting >= policy.backlog_jobs:
        raise RateLimited(
            f"the auditors have {waiting} replays to do before newcomers are let in: this worker "
            "tries again by itself",
            retry_after_s=60.0,
        )
    quotas, since_s = policy.quotas, now_s - _COUNTED_S
    devices = select(func.count()).where(WorkerRow.anchor.is_(False))
    here = devices.where(WorkerRow.enrolled_from == address)
    of_donor = devices.where(WorkerRow.donor == enrolment.donor, WorkerRow.last_seen_s >= since_s)
    if (session.scalar(of_donor) or 0) >= quotas.devices_per_donor:
        raise UsageError(
            f"this donor has {quotas.devices_per_donor} devices in the run already, which is all "
            "that it may have: ask the organiser for more"
        )
    if (session.scalar(here.where(WorkerRow.last_seen_s >= since_s)) or 0) >= (
        quotas.devices_per_address
    ):
        raise UsageError(
            f"{quotas.devices_per_address} devices take part from this address already, which is "
            "all that may: ask the organiser for more"
        )
    today = here.where(WorkerRow.enrolled_at_s > now_s - _DAY_S)
    if (session.scalar(today) or 0) >= quotas.new_devices_per_address_per_day:
        raise RateLimited(
            f"{quotas.new_devices_per_address_per_day} new devices came from this address within "
            "a day, which is all that may: this worker tries again by itself",
            retry_after_s=3600.0,
        )


def is_let_in(
    session: Session, policy: NewcomerPolicy, enrolment: wire.Enrolment, now_s: float
) -> bool:
    """Step 3; spends the invitation or approval that it takes.

    Returns:
        False: the organiser has to decide.

    Raises:
        UsageError: it takes an invitation, and this one, or none, does not do.
    """
    if policy.enrolment == "open":
        return True
    if enrolment.invite:
        invites.redeem(session, enrolment.invite, now_s)
        return True
    if policy.enrolment == "invite":
        raise UsageError(
            "this run is by invitation: ask the organiser for one and give it with "
            "'barnraise worker join LINK --invite TOKEN'"
        )
    return invites.redeem_approval(session, enrolment.worker, now_s)
