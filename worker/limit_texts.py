"""Limits as text: what a person types for one, and what a set of them means in words.

Invariant: :func:`limit_from_text` of :func:`limit_text` is the same value, for every limit.
"""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from protocol.errors import UsageError
from worker.limits import Limits, default_threads

LIMITS = {one.name: one for one in fields(Limits)}
"""Every limit by its name, as a dataclass field with ``says``, ``least`` and ``most``."""

_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")
_NONE = ("", "none", "always", "0")
_MIB_PER_GIB = 1024


def limit_name(text: str) -> str:
    """The limit that a person means; dashes do for underscores.

    Raises:
        UsageError: there is none of that name.
    """
    name = text.strip().lower().replace("-", "_")
    if name not in LIMITS:
        raise UsageError(f"no limit is called {text!r}; there are: {', '.join(LIMITS)}")
    return name


def limit_from_text(name: str, text: str, source: str = "") -> Any:
    """The value of a limit.

    Args:
        name: of the limit, as in ``worker.toml``.
        text: as typed: a number, yes or no, or periods between commas.
        source: where it was typed, for the error; the name itself if empty.

    Raises:
        UsageError: not a value of that limit; says what would be.
    """
    limit, said = LIMITS[name], text.strip()
    if limit.type == "bool":
        return yes_or_no(source or name, said)
    if isinstance(limit.default, tuple):
        value: Any = () if said.lower() in _NONE else _periods(said)
    else:
        least, most = limit.metadata["least"], limit.metadata["most"]
        # int() would take "1_0", and digits of other scripts.
        if not (said.isascii() and said.isdecimal()):
            raise UsageError(
                f"{source or name}: {text!r} is not a whole number between {least} and {most}"
            )
        value = int(said)
    try:
        Limits(**{name: value})
    except UsageError as error:
        raise UsageError(f"{source}: {error}" if source else str(error)) from error
    return value


def _periods(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace(";", ",").split(",") if part.strip())


def yes_or_no(source: str, text: str) -> bool:
    """Read a yes or a no.

    Raises:
        UsageError: it is neither.
    """
    if text.strip().lower() in _YES:
        return True
    if text.strip().lower() in _NO:
        return False
    raise UsageError(f"{source}: {text!r} is neither yes nor no")


def limit_text(value: Any) -> str:
    """A limit's value as a person would type it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) or "none") if isinstance(value, tuple) else str(value)


def in_words(limits: Limits) -> list[tuple[str, str]]:
    """What a worker may use under these limits, as (subject, sentence)."""
    return [
        ("processor", _processor(limits)),
        ("memory", _memory(limits)),
        ("disk", _disk(limits)),
        *([("GPU", _gpu(limits))] if _gpu(limits) else []),
        ("network", _network(limits)),
        ("works", _when(limits)),
    ]


def _processor(limits: Limits) -> str:
    total = default_threads() + 1 if (os.cpu_count() or 1) > 1 else 1
    return f"{limits.cpu_threads} of {total} thread(s), priority lowered by {limits.nice}"


def _memory(limits: Limits) -> str:
    said = [f"at most {_mib(limits.memory_mib)}"] if limits.memory_mib else []
    if limits.free_memory_mib:
        said.append(f"leaves {_mib(limits.free_memory_mib)} free")
    return "; ".join(said) or "no limit"


def _disk(limits: Limits) -> str:
    most = f"at most {_mib(limits.disk_mib)}; " if limits.disk_mib else ""
    return f"{most}leaves {_mib(limits.free_disk_mib)} free"


def _gpu(limits: Limits) -> str:
    said = []
    if limits.gpu_memory_percent:
        said.append(f"at most {limits.gpu_memory_percent} % of its memory")
    if limits.gpu_power_w:
        said.append(f"at most {limits.gpu_power_w} W")
    if limits.gpu_temperature_c:
        said.append(f"at most {limits.gpu_temperature_c} °C")
    return ", ".join(said)


def _network(limits: Limits) -> str:
    said = []
    if limits.upload_kbit_s:
        said.append(f"{limits.upload_kbit_s} kbit/s up")
    if limits.download_kbit_s:
        said.append(f"{limits.download_kbit_s} kbit/s down")
    if limits.daily_mib:
        said.append(f"{_mib(limits.daily_mib)} a day")
    return "at most " + ", ".join(said) if said else "no limit"


def _when(limits: Limits) -> str:
    said = [", ".join(limits.schedule) if limits.schedule else "at any time"]
    if not limits.on_battery:
        said.append("not on battery")
    elif limits.battery_percent:
        said.append(f"on battery with at least {limits.battery_percent} %")
    if limits.idle_minutes:
        said.append(f"after {limits.idle_minutes} min without anybody at the machine")
    if limits.busy_cpu_percent:
        said.append(f"not while other programs use over {limits.busy_cpu_percent} % of the CPU")
    return ", ".join(said)


def _mib(mib: int) -> str:
    return f"{mib} MiB" if mib < _MIB_PER_GIB else f"{mib / _MIB_PER_GIB:.1f} GiB"
