"""What becomes of a round when members vanish in the middle of its reduce.

A member vanishes with the same chance at every moment, so that a share ``vanishing`` of them is
gone by the end of an undisturbed reduce. That is far more than a run sees (a reduce takes minutes,
volunteers' machines stay for hours): it is a power cut in a town, or a release that crashes.

The rules are those of :mod:`coordinator.round`: a sender that vanishes costs its own unit; a
reducer costs the attempt, which begins anew without it once it is missed; the last of three
attempts is by anchors alone, which never vanish here. Of two levels each group has attempts of its
own, without anchors, and is left out when they are used up; so has the exchange across, by
whatever holders are left.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTEMPTS = 3
"""``max_attempts`` of the manifest."""

MISSED_S = 10.0
"""Until the coordinator takes a silent machine for gone."""


@dataclass(frozen=True)
class Loss:
    """Shares of rounds, units, and the time that attempts add."""

    rounds_lost: float
    first_attempts_lost: float
    units_lost: float  # of members that did not vanish themselves
    more_s: float  # of a round, on the average


@dataclass(frozen=True)
class Phase:
    """A part of a reduce that is begun anew when one of its reducers vanishes."""

    took_s: float
    reducers: int  # those that can vanish

    def survives(self, vanishing: float, whole_s: float) -> float:
        """The chance that no reducer vanishes during one attempt."""
        return float((1 - vanishing) ** (self.reducers * self.took_s / whole_s))

    def lost_s(self, vanishing: float, whole_s: float) -> float:
        """The average time that a lost attempt took, with the time to miss its reducer."""
        return MISSED_S + self.took_s / 2 if self.survives(vanishing, whole_s) < 1 else 0.0


def flat_loss(reduce: Phase, anchors_s: float, allowed_s: float, vanishing: float) -> Loss:
    """A reduce of one level.

    Args:
        anchors_s: what the last attempt takes, by the anchors alone.
        allowed_s: the deadlines of an attempt: a longer one is lost, an undisturbed one too, and
            took so long.
    """
    overruns = reduce.took_s > allowed_s  # whoever vanishes or not
    fails = 1.0 if overruns else 1 - reduce.survives(vanishing, reduce.took_s)
    failed_s = allowed_s if overruns else reduce.lost_s(vanishing, reduce.took_s)
    with_members = ATTEMPTS - 1
    reaches_last = fails**with_members
    lost = reaches_last if anchors_s > allowed_s else 0.0
    waited_s = failed_s * sum(fails**attempt for attempt in range(1, with_members + 1))
    last_s = min(anchors_s, allowed_s) - min(reduce.took_s, allowed_s)
    return Loss(lost, fails, lost, waited_s + reaches_last * last_s)


def grid_loss(
    inside: Phase, across: Phase, whole_s: float, groups: int, allowed_s: float, vanishing: float
) -> Loss:
    """A reduce of two levels.

    Args:
        inside: of one group, until its part is with the top reducers; its holders.
        across: of the top reducers, until theirs are signed. A holder that vanishes afterwards is
            no loss: the same results are with those of the other groups.
        whole_s: the whole reduce.
        groups: of members.
        allowed_s: the deadlines of an attempt, as in :func:`flat_loss`.
    """
    if whole_s > allowed_s:
        return Loss(1.0, 1.0, 1.0, (ATTEMPTS - 1) * allowed_s)
    group_fails = 1 - inside.survives(vanishing, whole_s)
    top_fails = 1 - across.survives(vanishing, whole_s)
    group_lost, round_lost = group_fails**ATTEMPTS, top_fails**ATTEMPTS
    any_group_fails = 1 - (1 - group_fails) ** groups
    # All wait for the last group: as many attempts more as the unluckiest of them needs.
    attempts = sum(1 - (1 - group_fails**n) ** groups for n in range(1, ATTEMPTS))
    more_s = attempts * inside.lost_s(vanishing, whole_s)
    more_s += across.lost_s(vanishing, whole_s) * sum(top_fails**n for n in range(1, ATTEMPTS))
    lost_units = 1 - (1 - group_lost) * (1 - round_lost)
    return Loss(round_lost, 1 - (1 - any_group_fails) * (1 - top_fails), lost_units, more_s)
