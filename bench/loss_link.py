"""How long training takes over a link: what a step takes, and what has to pass between steps.

Reckoned, not measured: the same line for each member, both directions at once, the bound of a
butterfly (each byte of the vector leaves a member ``2 * (workers - 1) / workers`` times), and two
round trips for an exchange. Nothing is hidden behind the next steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.loss_arm import Arm
from protocol.codec import encoded_bytes

_ROUND_TRIPS = 2  # scatter, then gather
_FP16_BYTES = 2  # of a gradient: what synchronous training usually sends


@dataclass(frozen=True)
class Link:
    bandwidth_bit_s: float
    round_trip_s: float

    def exchange_s(self, sent_bytes: float) -> float:
        return sent_bytes * 8 / self.bandwidth_bit_s + _ROUND_TRIPS * self.round_trip_s


HOME = Link(bandwidth_bit_s=20e6, round_trip_s=0.04)


def sent_bytes(arm: Arm, elements: int) -> float:
    """What a member sends, and receives, in one exchange."""
    vector = _FP16_BYTES * elements if arm.synchronous else encoded_bytes(arm.codec, elements)
    return 2 * (arm.workers - 1) / arm.workers * vector


def wall_s(arm: Arm, elements: int, step_s: float, link: Link) -> float:
    """The whole training; ``step_s`` is what a member's own batch takes."""
    exchange_s = link.exchange_s(sent_bytes(arm, elements))
    return arm.rounds * (arm.steps * step_s + exchange_s)


def rounds_within(arm: Arm, elements: int, step_s: float, link: Link, budget_s: float) -> int:
    """Whole rounds, or synchronous steps, that fit in a time."""
    return int(budget_s // (wall_s(arm, elements, step_s, link) / arm.rounds))
