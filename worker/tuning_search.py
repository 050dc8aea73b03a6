"""Which ways of computing to try, in which order, and which one to take: pure.

Invariants:

* Sizes go up, so that what may not fit comes last; what plainly will not fit is not tried.
* Nothing is tried twice, nor is anything that takes more than what did not fit.
* Of ways that are as fast as each other, the largest is taken, unless it takes much more memory:
  a smaller one is as fast by chance, a larger one by its nature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from worker.choice import Choice

BUDGET_S = 20.0
"""No further size is tried after so much time."""

AS_FAST = 0.97
"""Nobody notices the rest, and another run of the same measurement may not find it again."""

_CHEAP_BYTES = 256 << 20
"""Memory that a larger size may take though it is no faster."""

MOST_TOKENS_PER_S = 1e12
"""A file that says more is damaged."""

COMPILE_S = 60.0
_HOPED_GAIN = 0.2
"""Compiling takes 20 to 60 s on two slow cores, and rarely gains more. Units too short to win that
much are not even tried with it."""


@dataclass(frozen=True)
class Tried:
    """One way of computing, and what came of it."""

    choice: Choice
    tokens_per_s: float = 0.0
    first_s: float = 0.0
    peak_bytes: int = 0
    failed: str = ""  # why it is no use

    def dump(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`dump`.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        numbers = {key: float(raw[key]) for key in ("tokens_per_s", "first_s")}
        if not all(0 <= number < MOST_TOKENS_PER_S for number in numbers.values()):
            raise ValueError("not a measurement")
        return cls(
            Choice.load(raw["choice"]),
            **numbers,
            peak_bytes=int(raw["peak_bytes"]),
            failed=str(raw["failed"]),
        )


def next_size(
    tried: Sequence[Tried], candidates: Sequence[Choice], *, spent_s: float, memory_bytes: int
) -> Choice | None:
    """The way to try next; None: enough is known.

    Args:
        tried: so far, in order.
        candidates: what may be tried, in order.
        spent_s: on trying.
        memory_bytes: that the trainer may have in all; 0: not known.
    """
    if not tried:
        return candidates[0]
    if any(one.failed for one in tried):
        nothing_works = all(one.failed for one in tried)
        return tried[-1].choice.lighter() if nothing_works else None
    if spent_s > BUDGET_S or _no_faster_twice(tried) or _would_not_fit(tried, memory_bytes):
        return None
    done = {one.choice for one in tried}
    return next((choice for choice in candidates if choice not in done), None)


def sizes(batch: int) -> list[Choice]:
    """Powers of two below a whole batch, and that."""
    powers = [1 << power for power in range((batch - 1).bit_length())]
    return [Choice(size) for size in (*powers, batch)]


def best(tried: Sequence[Tried]) -> Choice | None:
    """The one to take; None: none works."""
    working = [one for one in tried if not one.failed]
    if not working:
        return None
    enough = AS_FAST * max(one.tokens_per_s for one in working)
    good = [one for one in working if one.tokens_per_s >= enough]
    most_bytes = min(one.peak_bytes for one in good) + _CHEAP_BYTES
    best = good[0].choice
    for one in good[1:]:
        if one.peak_bytes <= most_bytes and best.takes_less_than(one.choice):
            best = one.choice
    return best


def worth_compiling(plain: Choice, tried: Sequence[Tried], *, unit_s: float) -> Choice | None:
    """The same, compiled, if that may pay; None if not, or if it is known already.

    Args:
        plain: what is best so far.
        tried: so far.
        unit_s: what a unit of the run may take.
    """
    if plain.checkpointing or any(one.failed for one in tried):
        return None  # memory is short, and the compiler takes some
    compiled = Choice(plain.micro_batch_sequences, compile=True)
    if any(one.choice == compiled for one in tried) or unit_s * _HOPED_GAIN < COMPILE_S:
        return None
    return compiled


def pays(compiled: Tried, plain: Tried, *, unit_s: float) -> bool:
    """Whether what a single unit gains is more than what making the code took."""
    if compiled.failed or compiled.tokens_per_s * AS_FAST < plain.tokens_per_s:
        return False
    saved_s = unit_s * (1 - plain.tokens_per_s / compiled.tokens_per_s)
    return saved_s > compiled.first_s


def _no_faster_twice(tried: Sequence[Tried]) -> bool:
    if len(tried) < 3:
        return False
    before = max(one.tokens_per_s for one in tried[:-2])
    return all(one.tokens_per_s * AS_FAST < before for one in tried[-2:])


def _would_not_fit(tried: Sequence[Tried], memory_bytes: int) -> bool:
    """From one size to the next twice as much is added as from the one before to this one."""
    if len(tried) < 2 or not memory_bytes:
        return False
    one, last = tried[-2], tried[-1]
    return last.peak_bytes + 2 * max(0, last.peak_bytes - one.peak_bytes) > memory_bytes
