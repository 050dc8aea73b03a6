"""Who is audited, what an audit can say, and when credit is final: the published policy.

Everybody can recompute these from the public record, so they live beside the protocol and not in
the coordinator. Source: ``barnraise-audit/1`` (docs/verification.md); the rule of trust is
BOINC's adaptive replication.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Final

from protocol.errors import BadRecord
from protocol.manifest import VerificationSpec

PPM: Final = 1_000_000
"""Chances are whole millionths: leaves of the public record hold no floats."""

_EXECUTION = re.compile(r"(cpu|cuda|mps)(-bf16)?")


class Verdict(StrEnum):
    """What an audit says. Only FAILED costs anybody anything but the unit itself."""

    PASSED = "passed"
    FAILED = "failed"  # signed, contradicting bytes
    INCONCLUSIVE = "inconclusive"  # between the bounds, uncalibrated, or the task is suspect
    UNAVAILABLE = "unavailable"  # the bytes cannot be had: the unit stays unpaid
    UNPROVEN = "unproven"  # somebody's word against another's
    LOST = "unaudited-lost"  # the organiser lost what it takes to audit: final all the same
    OVERTURNED = "overturned"  # an appeal undoes an earlier FAILED


class Why(StrEnum):
    """Why something was audited."""

    NEWCOMER = "newcomer"
    SAMPLED = "sampled"
    SCREENING = "screening"
    DEVICE_CHANGED = "device_changed"
    UNAVAILABLE_BEFORE = "unavailable_before"
    INCONCLUSIVE_BEFORE = "inconclusive_before"
    RETAINED = "retained"  # its donor was convicted of something else
    CONTROL = "control"  # somebody else's in its round would fail: is it the task?
    PROBATION = "probation"
    APPEAL = "appeal"


def chance_ppm(policy: VerificationSpec, passes: int) -> int:
    """Least chance that a merged contribution is audited.

    Args:
        policy: the run's.
        passes: consecutive audited passes of this device in this execution class.

    Returns:
        Millionths; all of them below ``probation_passes``, then ``max(p_min, 1/passes)``.
    """
    if passes < max(1, policy.probation_passes):
        return PPM
    return max(math.ceil(policy.p_min * PPM), -(-PPM // passes))


def check_execution(value: str) -> str:
    """An execution class: device, with ``-bf16`` under autocast.

    Raises:
        BadRecord: it is none.
    """
    if not _EXECUTION.fullmatch(value):
        raise BadRecord("execution is cpu, cuda or mps, with -bf16 under autocast")
    return value
