"""One adversary each, against honest peers: how it ends, and what must hold.

Every scenario returns an :class:`Outcome`; the table prints them, the tests assert on them. What
must never happen (an honest worker punished, a dishonest unit paid for good, a record that does
not verify) is checked for all of them in :func:`play`.

Bounds on units are the policy's: a device with fewer than ``probation_passes`` passes is audited
every time; after that the chance is at least ``p_min``, and the bound is the number of dishonest
units by which it is caught with 99 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from facts import Audit, Facts, cheats
from faults import Fault
from rig import PEERS, Arena, Ground

from coordinator.audit.schema import FORFEITED, UNPAID
from protocol.audit_policy import Verdict

HORIZON = 10
"""Settled rounds after which losses are compared."""

_EVIL = "eve"
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
        arena.until(lambda facts: not facts.open_audits)
        facts = arena.look()
        _nobody_is_paid_for_nothing(arena, facts)
        arena.close()
        arena.verify_ledger()
    return outcome


def punished(arena: Arena, facts: Facts, honest: Iterable[str]) -> int:
    """Honest workers that were convicted, blocked or not paid."""
    unpaid = {unit.worker for unit in facts.units if unit.credit in (FORFEITED, UNPAID)}
    convicted = {audit.worker for audit in facts.audits if audit.verdict == Verdict.FAILED}
    return len(set(honest) & (set(facts.blocked) | unpaid | convicted))


def _nobody_is_paid_for_nothing(arena: Arena, facts: Facts) -> None:
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
    evil = arena.peer_id(_EVIL)
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
    merged = set(facts.merged_rounds(evil)) & set(dishonest_rounds(arena, _EVIL))
    return Outcome(
        adversary=name,
        beaten_by=by,
        bound_units=bound,
        seen_units=seen,
        merged_units=len(merged),
        dishonest_rounds=len(merged) or (seen if reducing else 0),
        losses=facts.losses,
        honest_punished=punished(arena, facts, arena.honest),
        note=note,
    )


# ---- cheats in the update


def caught(fault: Fault, arena: Arena, name: str, **options: object) -> Outcome:
    """It is merged, audited, convicted by replay and blocked."""
    evil = start_all(arena, fault, **options)
    facts = arena.until(lambda facts: facts.verdicts(evil, Verdict.FAILED))
    verdict = facts.verdicts(evil, Verdict.FAILED)[0]
    arena.until(lambda facts: evil in facts.blocked)
    return conclude(
        arena, name, evil, by=_words(verdict), bound=1, seen=_units_until(arena, verdict)
    )


def _units_until(arena: Arena, verdict: Audit) -> int:
    """Dishonest units that were merged, up to and with the one that convicts."""
    merged = set(arena.look().merged_rounds(verdict.worker))
    rounds = merged & set(dishonest_rounds(arena, _EVIL))
    assert verdict.round in rounds, f"convicted of an honest unit: {verdict}, {rounds}"
    return len([number for number in rounds if number <= verdict.round])


def _words(verdict: Audit) -> str:
    return f"{verdict.subject} audit: {verdict.reason}"


# ---- what is refused before it is merged


def refused(fault: Fault, arena: Arena, name: str, *, by: str, **options: object) -> Outcome:
    """It tries in at least three rounds, and nothing of it is merged."""
    evil = start_all(arena, fault, **options)
    arena.until(lambda facts: facts.settled >= arena.horizon)
    arena.until(lambda _: len(dishonest_rounds(arena, _EVIL)) >= 2)
    outcome = conclude(arena, name, evil, by=by, bound=0, seen=0)
    assert outcome.merged_units == 0, "a dishonest unit was merged"
    return outcome


def impostor(arena: Arena, name: str) -> Outcome:
    """It signs in ada's name: ada's own work goes on, and ada is not to blame."""
    victim = arena.peer_id(PEERS[0])
    outcome = refused(Fault.IMPOSTOR, arena, name, by="layer 1: signature", victim=victim)
    assert arena.look().merged_rounds(victim), "the victim was kept from working"
    return outcome


def copycat(fault: Fault, arena: Arena, name: str) -> Outcome:
    """It has broken into bob's folder and commits to what it finds there."""
    folder = arena.folder / PEERS[1]
    return refused(fault, arena, name, by="layer 1: commitment is known", folder=folder)


# ---- reducers


def reducer_convicted(fault: Fault, arena: Arena, name: str, *, bound: int) -> Outcome:
    """Its signature and what it signed convict it as a reducer."""
    evil = start_all(arena, fault, reachable=True)
    facts = arena.until(lambda facts: _as_reducer(facts, evil))
    verdict = _as_reducer(facts, evil)[0]
    rounds = [r for r in facts.reducing.get(evil, ()) if r <= verdict.round]
    return conclude(
        arena, name, evil, by=_words(verdict), bound=bound, seen=len(rounds), reducing=True
    )


def _as_reducer(facts: Facts, worker: str) -> list[Audit]:
    failed = facts.verdicts(worker, Verdict.FAILED)
    return [audit for audit in failed if audit.subject == "reducing"]


def slanderer(fault: Fault, arena: Arena, name: str) -> Outcome:
    """It says that bob sent nothing, or sent rubbish: word against word. It is left out."""
    victim = arena.peer_id(PEERS[1])
    evil = start_all(arena, fault, reachable=True, victim=victim)
    arena.until(lambda facts: evil in facts.suspended and facts.settled >= arena.horizon)
    rounds = len(dishonest_rounds(arena, _EVIL))
    outcome = conclude(
        arena, name, evil, by="left out of reducing", bound=3, seen=rounds, note="victim unharmed"
    )
    after = max(dishonest_rounds(arena, _EVIL))
    later = arena.until(lambda facts: max(facts.merged_rounds(victim), default=-1) > after)
    assert victim not in later.blocked
    return outcome


# ---- gone without a word


def dropout(fault: Fault, arena: Arena, name: str) -> Outcome:
    """The run goes on without it, and nothing is held against it or anybody."""
    evil = start_all(arena, fault, reachable=fault is Fault.DROP_BROADCAST, after=1)
    process = arena.processes[_EVIL]
    arena.until(lambda _: not process.running)
    gone = arena.look().rounds
    facts = arena.until(lambda facts: facts.settled >= arena.horizon and facts.rounds > gone + 1)
    assert not facts.verdicts(evil, Verdict.FAILED), "unavailable is not guilty"
    assert evil not in facts.blocked
    return conclude(arena, name, evil, by="deadlines", bound=0, seen=0)


def silent(arena: Arena, name: str) -> Outcome:
    """It never shows anything: its reducers do, and where they cannot, its units stay unpaid."""
    evil = start_all(arena, Fault.DROP_AUDIT)
    facts = arena.until(lambda facts: facts.settled >= arena.horizon)
    assert not facts.verdicts(evil, Verdict.FAILED), "unavailable is not guilty"
    return conclude(arena, name, evil, by="reducers show its chunks", bound=0, seen=0)


# ---- together


def yes_man(arena: Arena, name: str) -> Outcome:
    """One of three auditors passes its partner's update off as a replay."""
    arena.serve(auditors=2)
    arena.adversary(Fault.SIGN_FLIP)
    evil = arena.peer_id(_EVIL)
    partner = (f"--victim={evil}", f"--folder={arena.folder / _EVIL}")
    arena.audit("liar", "--fault", Fault.YES_AUDITOR, *partner)
    arena.until(lambda facts: evil in facts.enrolled and len(facts.auditors) == 3)
    arena.peers()
    facts = arena.until(lambda facts: facts.verdicts(evil, Verdict.FAILED))
    verdict = facts.verdicts(evil, Verdict.FAILED)[0]
    outvoted = sum(facts.outvoted.values())
    return conclude(
        arena,
        name,
        evil,
        by=_words(verdict),
        bound=bound_for(GROUNDS["two auditors"]["p_second_auditor"]),
        seen=_units_until(arena, verdict),
        note=f"the liar was outvoted {outvoted} times",
    )


def pair(arena: Arena, name: str) -> Outcome:
    """Eve falsifies a chunk that mallory reduces; mallory projects what it should have been."""
    shared = arena.folder / "pair"
    shared.mkdir()
    arena.hide(PEERS[0])  # so that mallory reduces the last chunks
    arena.serve()
    arena.adversary(Fault.PARTNER_SENDS, folder=shared)
    arena.adversary(Fault.PARTNER_REDUCES, "mallory", reachable=True, folder=shared)
    evil, partner = arena.peer_id(_EVIL), arena.peer_id("mallory")
    arena.until(lambda facts: {evil, partner} <= facts.enrolled)
    arena.peers()
    facts = arena.until(lambda facts: facts.verdicts(evil, Verdict.FAILED))
    verdict = facts.verdicts(evil, Verdict.FAILED)[0]
    facts = arena.until(lambda facts: _as_reducer(facts, partner))
    return conclude(
        arena,
        name,
        evil,
        by=f"{_words(verdict)}; {_words(_as_reducer(facts, partner)[0])}",
        bound=bound_for(8 / 17),  # chunks that are opened, of all
        seen=_units_until(arena, verdict),
    )


def sybils(arena: Arena, name: str) -> Outcome:
    """Three new keys at once, which send noise from their first unit on."""
    names = (_EVIL, "eva", "evo")
    arena.serve()
    for sybil in names:
        arena.adversary(Fault.RANDOM_UPDATE, sybil)
    ids = {arena.peer_id(sybil) for sybil in names}
    arena.until(lambda facts: ids <= facts.enrolled)
    arena.peers()
    facts = arena.until(lambda facts: ids <= set(facts.blocked))
    merged = sum(len(facts.merged_rounds(sybil)) for sybil in ids)
    assert merged == 0, "a unit of a key that did not pass its probation was merged"
    return conclude(arena, name, arena.peer_id(_EVIL), by="probation", bound=0, seen=0)


def sleeper(arena: Arena, name: str, *, after: int = 50, share: float = 0.1) -> Outcome:
    """Honest for long, then half the steps in one unit of ten."""
    evil = start_all(arena, Fault.HALF_STEPS, after=after, share=share)
    facts = arena.until(lambda facts: facts.verdicts(evil, Verdict.FAILED), 1200)
    verdict = facts.verdicts(evil, Verdict.FAILED)[0]
    honest_units = len([r for r in facts.merged_rounds(evil) if r < verdict.round])
    return conclude(
        arena,
        name,
        evil,
        by=_words(verdict),
        bound=bound_for(GROUNDS["trust"]["p_min"]),
        seen=_units_until(arena, verdict),
        note=f"after {honest_units} merged units, {verdict.why}",
    )


def nobody(arena: Arena, name: str) -> Outcome:
    """The measure: the same run without an adversary."""
    arena.serve()
    arena.peers()
    facts = settled_loss(arena, arena.horizon)
    return Outcome(name, "", 0, 0, 0, 0, facts.losses, punished(arena, facts, arena.honest))


GROUNDS: dict[str, dict[str, object]] = {
    "plain": {},
    "newcomers": {"probation_steps": 2},
    "two auditors": {"p_second_auditor": 0.5},
    "trust": {"probation_passes": 10, "p_min": 0.25},
}
"""What differs from :data:`rig.VERIFICATION`."""

_REDUCED = bound_for(1 - math.comb(13, 4) / math.comb(17, 4))
"""Rounds: four of 17 result chunks are recomputed, a member reduces four of them."""

ALL: tuple[Scenario, ...] = (
    *(
        Scenario(fault, partial(caught, fault))
        for fault in (
            Fault.RANDOM_UPDATE,
            Fault.ZERO_UPDATE,
            Fault.SIGN_FLIP,
            Fault.SCALED,
            Fault.HALF_STEPS,
            Fault.MOST_STEPS,
            Fault.HIDDEN_STEPS,
            Fault.OTHER_DATA,
            Fault.STALE_BASE,
            Fault.FALSIFIED_CHUNK,
        )
    ),
    Scenario(Fault.COPIED_UPDATE, partial(copycat, Fault.COPIED_UPDATE)),
    Scenario(Fault.COPIED_ROOT, partial(copycat, Fault.COPIED_ROOT)),
    *(
        Scenario(fault, partial(refused, fault, by=by))
        for fault, by in (
            (Fault.REPLAYED_UPDATE, "layer 1: commitment is known"),
            (Fault.REPLAYED_RECORD, "layer 1: round is over"),
            (Fault.NOT_FINITE, "layer 2: finite"),
            (Fault.LOSS_NOT_FINITE, "layer 1: loss"),
            (Fault.FORGED_TOKENS, "layer 1: tokens = steps"),
            (Fault.FORGED_STEPS, "layer 1: lease"),
            (Fault.OTHER_BYTES, "layer 2: hash = commitment"),
            (Fault.SOME_REDUCERS, "layer 2: complete everywhere"),
        )
    ),
    Scenario(Fault.IMPOSTOR, impostor),
    Scenario(Fault.WRONG_MEAN, partial(reducer_convicted, Fault.WRONG_MEAN, bound=_REDUCED)),
    Scenario(Fault.EQUIVOCATION, partial(reducer_convicted, Fault.EQUIVOCATION, bound=1)),
    Scenario(Fault.FALSE_PROJECTION, partial(reducer_convicted, Fault.FALSE_PROJECTION, bound=2)),
    Scenario(Fault.CENSOR, partial(slanderer, Fault.CENSOR)),
    Scenario(Fault.FRAME, partial(slanderer, Fault.FRAME)),
    *(
        Scenario(fault, partial(dropout, fault))
        for fault in (
            Fault.DROP_TRAINING,
            Fault.DROP_TRAINED,
            Fault.DROP_COMMITTED,
            Fault.DROP_GATHER,
            Fault.DROP_BROADCAST,
        )
    ),
    Scenario(Fault.DROP_AUDIT, silent),
    Scenario(Fault.YES_AUDITOR, yes_man, "two auditors"),
    Scenario("colluding-pair", pair),
    Scenario("sybils", sybils, "newcomers"),
    Scenario("sleeper", sleeper, "trust"),
)

BASELINE = Scenario("nobody", nobody)
