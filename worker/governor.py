"""Whether this machine may work now, and the one reason why not: the owner's limits, applied.

A pure state machine: :meth:`Governor.decide` takes what the sensors read and says what is so.

Invariants:

* Who does not work has exactly one reason: the first that holds, in the order of
  :class:`Because`.
* The owner's own words (pause, resume, agreement, other limits) take effect at once. All else has
  hysteresis (:mod:`worker.hysteresis`): in ``k`` minutes there are at most ``k + 1`` changes
  between working and not, whatever the sensors and the wall clock say.
* Durations are on the clock that nobody sets. The wall clock tells only what people mean by it:
  the hours of a schedule and the end of a day.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from worker.hysteresis import Hold
from worker.limits import Limits
from worker.rules import moment_s, sensed_rules
from worker.schedule import Schedule, local_time, next_midnight_s
from worker.verdict import Because, Readings, Verdict

__all__ = ["Because", "Governor", "Readings", "Verdict"]


@dataclass
class _Pause:
    """The owner's; without an end until it is taken back."""

    until_s: float | None  # as it is told: Unix time
    ends_s: float | None = None  # on the steady clock, once that is known


class Governor:
    """See the module. ``decide`` is to be asked about once a second."""

    def __init__(
        self, limits: Limits, *, confirmed: bool = True, zone: tzinfo | None = None
    ) -> None:
        """Begin without a past.

        Args:
            limits: the owner's.
            confirmed: whether somebody agreed to work at all; may be set later.
            zone: where schedule and days are; None: where this machine is.
        """
        self.limits = limits
        self.confirmed = confirmed
        self.because: Because | None = None  # of the last verdict
        self._zone = zone
        self._schedule = Schedule.parse(limits.schedule)
        self._pause: _Pause | None = None
        self._quota, self._hours = Hold(off_after_s=0.0), Hold(off_after_s=0.0)
        self._closed_s: float | None = None  # at which time the next was looked up:
        self._opening_s: float | None = None
        self._rules = sensed_rules()

    # ---- the owner's words -------------------------------------------------------------

    def change(self, limits: Limits) -> None:
        """Other limits, from now on; what only the old ones forbade is allowed at once."""
        before, self.limits = self.limits, limits
        self._schedule, self._closed_s = Schedule.parse(limits.schedule), None
        changed = {name for name in vars(limits) if getattr(before, name) != getattr(limits, name)}
        for rule in self._rules:
            if changed.intersection(rule.limits):
                rule.changed()
        if "daily_mib" in changed:
            self._quota.rule_changed()
        if "schedule" in changed:
            self._hours.rule_changed()

    def pause(self, until_s: float | None = None) -> None:
        """Not until this Unix time, or until :meth:`resume`."""
        self._pause = _Pause(until_s)

    def resume(self) -> None:
        """Take a pause back."""
        self._pause = None

    @property
    def paused(self) -> bool:
        return self._pause is not None

    @property
    def paused_until_s(self) -> float | None:
        """When a pause ends by itself; None without one, or without an end."""
        return None if self._pause is None else self._pause.until_s

    # ---- verdicts ----------------------------------------------------------------------

    def decide(self, readings: Readings) -> Verdict:
        """What follows from these readings and from those before them."""
        verdict = self._verdict(readings)
        self.because = verdict.because
        return verdict

    def _verdict(self, readings: Readings) -> Verdict:
        self._end_pause(readings)
        over_quota = self._sees_quota(readings)
        outside = self._hours.see(
            not self._schedule.allows(local_time(readings.at_s, self._zone)), readings.steady_s
        )
        for rule in self._rules:  # each sees all, whichever is told
            rule.see(self.limits, readings)
        if self._pause is not None:
            return self._paused(self._pause)
        if not self.confirmed:
            reason = "nobody has agreed to these limits yet: 'barnraise worker resume' does"
            return Verdict(False, Because.UNCONFIRMED, reason, lasting=True)
        if over_quota:
            return self._over_quota(readings)
        if outside:
            return self._outside(readings)
        for rule in self._rules:
            if rule.hold.held:
                return Verdict(False, rule.because, rule.reason, rule.until_s, lasting=rule.lasting)
        return Verdict(works=True)

    def _end_pause(self, readings: Readings) -> None:
        pause = self._pause
        if pause is None or pause.until_s is None:
            return
        if pause.ends_s is None:
            pause.ends_s = readings.steady_s + pause.until_s - readings.at_s
        left_s = pause.ends_s - readings.steady_s
        pause.until_s = moment_s(readings.at_s, left_s, pause.until_s)  # the clock may be set
        if readings.steady_s >= pause.ends_s:
            self._pause = None

    def _paused(self, pause: _Pause) -> Verdict:
        reason = "paused by you: 'barnraise worker resume'"
        return Verdict(False, Because.OWNER, reason, pause.until_s, lasting=True)

    def _sees_quota(self, readings: Readings) -> bool:
        most_bytes = self.limits.daily_mib << 20
        used_up = 0 < most_bytes <= readings.traffic_today_bytes
        return self._quota.see(used_up, readings.steady_s)

    def _over_quota(self, readings: Readings) -> Verdict:
        limit = f"your limit is {self.limits.daily_mib} MiB a day"
        reason = f"too little of today's traffic is left ({limit})"
        until_s = next_midnight_s(readings.at_s, self._zone)
        return Verdict(False, Because.QUOTA, reason, until_s, lasting=True, offline=True)

    def _outside(self, readings: Readings) -> Verdict:
        reason = f"outside of your hours ({_some(self.limits.schedule)})"
        return Verdict(False, Because.SCHEDULE, reason, self._opens_s(readings), lasting=True)

    def _opens_s(self, readings: Readings) -> float | None:
        """When the schedule allows work again; looked up once for each such wait."""
        if self._schedule.allows(local_time(readings.at_s, self._zone)):  # the clock was set
            left_s = self._hours.left_s(readings.steady_s)
            self._closed_s = None
            self._opening_s = moment_s(readings.at_s, left_s, self._opening_s)
            return self._opening_s
        since_s, opening_s = self._closed_s, self._opening_s
        if since_s is None or opening_s is None or not since_s <= readings.at_s < opening_s:
            self._closed_s = readings.at_s
            self._opening_s = self._schedule.next_change_s(readings.at_s, self._zone)
        return self._opening_s

    # ---- a process that takes over -----------------------------------------------------

    def remember(self) -> dict[str, Any]:
        """What another process of this worker goes on from; as JSON."""
        pause = self._pause
        return {
            "because": self.because,
            "pause": None if pause is None else {"until_s": pause.until_s},
            "holds": {name: hold.remember() for name, hold in self._holds().items()},
            "told": {str(rule.because): rule.remember() for rule in self._rules},
            "opens": [self._closed_s, self._opening_s],
        }

    def recall(self, kept: dict[str, Any]) -> None:
        """Go on from what :meth:`remember` gave, so that a change of process changes nothing.

        What a program of another version remembered otherwise is left out.
        """
        because, pause = kept.get("because"), kept.get("pause")
        self.because = Because(because) if because in set(Because) else None
        self._pause = None if pause is None else _Pause(pause.get("until_s"))
        for name, hold in self._holds().items():
            with suppress(KeyError, TypeError, ValueError):
                hold.recall(kept["holds"][name])
        for rule in self._rules:
            with suppress(KeyError, TypeError, ValueError):
                rule.recall(kept["told"][str(rule.because)])
        with suppress(KeyError, TypeError, ValueError):
            closed_s, opening_s = kept["opens"]
            self._closed_s, self._opening_s = _seconds(closed_s), _seconds(opening_s)

    def _holds(self) -> dict[str, Hold]:
        sensed = {str(rule.because): rule.hold for rule in self._rules}
        return {str(Because.QUOTA): self._quota, str(Because.SCHEDULE): self._hours, **sensed}


def _seconds(kept: float | None) -> float | None:
    return None if kept is None else float(kept)


def _some(periods: tuple[str, ...]) -> str:
    """Enough of them to know them by."""
    return ", ".join(periods[:3]) + (" ..." if len(periods) > 3 else "")
