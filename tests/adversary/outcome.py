"""How an adversary fared, and what must hold for all of them.

What must never happen (an honest worker punished, a dishonest unit paid for good, a record that
does not verify) is checked in :func:`play`, whatever the scenario.

Bounds on units are the policy's: a device with fewer than ``probation_passes`` passes is audited
every time; after that the chance is at least ``p_min``, and the bound is the number of dishonest
units by which it is caught with 99 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from facts import Facts, cheats
from faults import Fault
from ground import Ground
from rig import Arena

from coordinator.audit.schema import FORFEITED, UNPAID
from protocol.audit_policy import Verdict

HORIZON = 10
"""Settled rounds after which losses are compared."""

EVIL = "eve"
_SURE = 0.99


@dataclass(frozen=True)
class Outcome:
    """How one adversary fared."""

    adversary: str
    beaten_by: str  # the layer, or verdict and reason
    bound_units: int  # dishonest units merged before the one that convicts is drawn; 0: none
    seen_units: int
    merged_units: int  # dishonest and merged until it was out, with those in flight
    dishonest_rounds: int  # settled, with a dishonest unit or a dishonest mean
    losses: dict[int, float]  # by settled rounds, nats per token
    honest_punished: int
    note: str = ""

    @property
    def settled(self) -> int:
        """Rounds whose loss is known."""
        return max(self.losses)


@dataclass(frozen=True)
class Scenario:
    """An adversary, and the settings that it needs."""

    name: str
    play: Callable[[Arena, str], Outcome]
    ground: str = "plain"  # of :data:`GROUNDS`


# ---- what all have in common


def play(scenario: Scenario, ground: Ground, *, horizon: int = HORIZON) -> Outcome:
    """Play a scenario in a fresh copy of its run, and check the record that it leaves."""
    with ground.arena() as arena:
        arena.horizon = horizon
        outcome = scenario.play(arena, scenario.name)
        arena.pause()
        # Not the adversary's: what it alone could show is waited for until patience is over.
        facts = arena.until(
            lambda facts: not any(audit.worker in arena.honest for audit in facts.open_audits)
        )
        _nobody_is_paid_for_nothing(facts)
        outcome = replace(outcome, honest_punished=punished(facts, arena.honest))
        arena.close()
        arena.verify_ledger()
    return outcome


def punished(facts: Facts, honest: Iterable[str]) -> int:
    """Honest workers that were convicted, blocked or not paid."""
    unpaid = {unit.worker for unit in facts.units if unit.credit in (FORFEITED, UNPAID)}
    convicted = {audit.worker for audit in facts.audits if audit.verdict == Verdict.FAILED}
    return len(set(honest) & (set(facts.blocked) | unpaid | convicted))


def _nobody_is_paid_for_nothing(facts: Facts) -> None:
    """No unit that an audit proved false keeps its credit."""
    for audit in facts.audits:
        if audit.subject == "training" and audit.verdict == Verdict.FAILED:
            credits = [
                u.credit for u in facts.units if (u.round, u.worker) == (audit.round, audit.worker)
            ]
            assert all(credit == FORFEITED for credit in credits), (audit, credits)


def settled_loss(arena: Arena, least: int) -> Facts:
    """Wait until so many rounds have settled and their loss is known."""
    return arena.until(lambda facts: least in facts.losses)


def dishonest_rounds(arena: Arena, name: str) -> list[int]:
    """Rounds in which a process says that it cheated."""
    return sorted({line["round"] for line in cheats(arena.processes[name].text())})


def bound_for(chance: float) -> int:
    """Units by which a cheat is caught with 99 %, when each is audited with this chance."""
    return 1 if chance >= 1 else math.ceil(math.log(1 - _SURE) / math.log(1 - chance))


def start_all(arena: Arena, fault: Fault, *, reachable: bool = False, **options: object) -> str:
    """Coordinator, auditor, adversary and peers; the adversary first, to be in from round 0.

    Returns:
        The adversary's PeerID.
    """
    arena.serve()
    arena.adversary(fault, reachable=reachable, **options)
    evil = arena.peer_id(EVIL)
    arena.until(lambda facts: evil in facts.enrolled)
    arena.peers()
    return evil


def conclude(
    arena: Arena,
    name: str,
    evil: str,
    *,
    by: str,
    bound: int,
    seen: int,
    note: str = "",
    reducing: bool = False,
) -> Outcome:
    """Let the run go on to the horizon, then take stock."""
    facts = settled_loss(arena, max(arena.horizon, arena.look().settled))
    merged = set(facts.merged_rounds(evil)) & set(dishonest_rounds(arena, EVIL))
    return Outcome(
        adversary=name,
        beaten_by=by,
        bound_units=bound,
        seen_units=seen,
        merged_units=len(merged),
        dishonest_rounds=len(merged) or (seen if reducing else 0),
        losses=facts.losses,
        honest_punished=punished(facts, arena.honest),
        note=note,
    )
