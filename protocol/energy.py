"""Energy that a device tells of itself: bounds on what nobody can verify."""

from __future__ import annotations

from protocol.errors import BadRecord

MAX_ENERGY_MWH = 10**12
"""A gigawatt-hour, in thousandths of a watt-hour."""

MAX_ENERGY_TOKENS = (1 << 53) - 1
"""What every JSON reader keeps exactly."""

_MAX_MWH_PER_TOKEN = 1000
"""A watt-hour for one token: a hundred times what a slow processor needs for a large model."""


def check_energy(milliwatt_hours: int, tokens: int) -> None:
    """Insist on energy and the tokens that it was for, or on neither.

    Raises:
        BadRecord: one without the other, or more than any device can need.
    """
    if bool(milliwatt_hours) != bool(tokens):
        raise BadRecord("energy is told together with the tokens that it was for")
    if tokens > MAX_ENERGY_TOKENS or milliwatt_hours > MAX_ENERGY_MWH:
        raise BadRecord("no device has used so much energy")
    if milliwatt_hours > tokens * _MAX_MWH_PER_TOKEN:
        raise BadRecord("no device needs so much energy for a token")
