"""Whether this machine runs on a battery of its own, and how full that is.

From ``/sys/class/power_supply`` on Linux (`ABI/testing/sysfs-class-power`_), by psutil elsewhere.

.. _ABI/testing/sysfs-class-power: https://www.kernel.org/doc/Documentation/ABI/testing/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SUPPLIES = Path("/sys/class/power_supply")


@dataclass(frozen=True)
class Battery:
    """Of the machine; one that has none is not discharging."""

    discharging: bool | None
    percent: float | None = None


def read_battery(supplies: Path = _SUPPLIES) -> Battery | None:
    """What is so now; None where the system does not tell."""
    if not supplies.is_dir():
        return _by_psutil()
    plugs: list[bool] = []
    states: list[str] = []
    charges: list[float] = []
    for kind, folder in _supplies(supplies):
        if kind in ("Battery", "UPS"):
            states.append(_text(folder / "status"))
            charges += _number(folder / "capacity")
        else:  # Mains, USB, Wireless ...
            plugs += [bool(value) for value in _number(folder / "online")]
    percent = sum(charges) / len(charges) if charges else None
    return Battery(_discharging(states, plugs), percent)


def _discharging(states: list[str], plugs: list[bool]) -> bool | None:
    if not states or any(plugs):
        return False
    if plugs or "Discharging" in states:
        return True
    # No plug is known: a battery that is charged, or left as it is, tells that there is one.
    told = any(state in ("Charging", "Full", "Not charging") for state in states)
    return False if told else None


def _supplies(supplies: Path) -> Iterator[tuple[str, Path]]:
    """Type and folder of each that feeds the machine, not a mouse or a headset."""
    for folder in sorted(supplies.iterdir()):
        if _text(folder / "scope") != "Device":
            yield _text(folder / "type"), folder


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # it may go while we look; a firmware may refuse to tell
        return ""


def _number(path: Path) -> list[float]:
    try:
        return [float(_text(path))]
    except ValueError:
        return []


def _by_psutil() -> Battery | None:
    import psutil

    found = psutil.sensors_battery()
    if found is None:
        return Battery(discharging=False)
    plugged = found.power_plugged
    return Battery(None if plugged is None else not plugged, found.percent)
