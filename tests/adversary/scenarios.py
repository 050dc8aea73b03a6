"""One adversary each, against honest peers: how it ends, and what must hold."""

from __future__ import annotations

from collections.abc import Iterable

from facts import Audit, Facts
from faults import Fault
from ground import GROUNDS, VERIFICATION
from outcome import (
    EVIL,
    Outcome,
    bound_for,
    conclude,
    dishonest_rounds,
    punished,
    settled_loss,
    start_all,
)
from rig import PEERS, Arena

from protocol.audit_policy import Verdict

# ---- cheats in the update


def caught(fault: Fault, arena: Arena, name: str, **options: object) -> Outcome:
    """It is merged, audited, convicted by replay and blocked."""
    evil = start_all(arena, fault, **options)
    verdict = convicted(arena, evil)
    arena.until(lambda facts: evil in facts.blocked)
    return conclude(
        arena, name, evil, by=_words(verdict), bound=1, seen=_units_until(arena, verdict)
    )


def convicted(
    arena: Arena, worker: str, subject: str = "training", timeout_s: float = 200
) -> Audit:
    """Wait for the first conviction, by round: an earlier round may be decided later."""

    def first(facts: Facts) -> Audit | None:
        of_it = [a for a in facts.audits if (a.worker, a.subject) == (worker, subject)]
        failed = next((a for a in of_it if a.verdict == Verdict.FAILED), None)
        waiting = [a for a in of_it if a.verdict is None and failed and a.round < failed.round]
        return None if waiting else failed

    found = first(arena.until(first, timeout_s))
    assert found is not None
    return found


def _units_until(arena: Arena, verdict: Audit) -> int:
    """Dishonest units that were merged, up to and with the one that convicts."""
    merged = set(arena.look().merged_rounds(verdict.worker))
    rounds = merged & set(dishonest_rounds(arena, EVIL))
    assert verdict.round in rounds, f"convicted of an honest unit: {verdict}, {rounds}"
    return len([number for number in rounds if number <= verdict.round])


def _words(verdict: Audit) -> str:
    return f"{verdict.subject} audit: {verdict.reason}"


# ---- what is refused before it is merged


def refused(fault: Fault, arena: Arena, name: str, *, by: str, **options: object) -> Outcome:
    """It tries in at least three rounds, and nothing of it is merged."""
    evil = start_all(arena, fault, **options)
    arena.until(lambda facts: facts.settled >= arena.horizon)
    arena.until(lambda _: len(dishonest_rounds(arena, EVIL)) >= 2)
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
    verdict = convicted(arena, evil, "reducing")
    rounds = [r for r in arena.look().reducing.get(evil, ()) if r <= verdict.round]
    return conclude(
        arena, name, evil, by=_words(verdict), bound=bound, seen=len(rounds), reducing=True
    )


def slanderer(fault: Fault, arena: Arena, name: str) -> Outcome:
    """It says that bob sent nothing, or sent rubbish: word against word. It is left out."""
    victim = arena.peer_id(PEERS[1])
    evil = start_all(arena, fault, reachable=True, victim=victim)
    arena.until(lambda facts: evil in facts.suspended and facts.settled >= arena.horizon)
    rounds = len(dishonest_rounds(arena, EVIL))
    outcome = conclude(
        arena, name, evil, by="left out of reducing", bound=3, seen=rounds, note="victim unharmed"
    )
    after = max(dishonest_rounds(arena, EVIL))
    later = arena.until(lambda facts: max(facts.merged_rounds(victim), default=-1) > after)
    assert victim not in later.blocked
    return outcome


# ---- gone without a word


def dropout(fault: Fault, arena: Arena, name: str) -> Outcome:
    """The run goes on without it, and nothing is held against it or anybody."""
    evil = start_all(arena, fault, reachable=fault is Fault.DROP_BROADCAST, after=1)
    process = arena.processes[EVIL]
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
    evil = arena.peer_id(EVIL)
    partner = (f"--victim={evil}", f"--folder={arena.folder / EVIL}")
    arena.audit("liar", "--fault", Fault.YES_AUDITOR, *partner)
    arena.until(lambda facts: evil in facts.enrolled and len(facts.auditors) == 3)
    arena.peers()
    verdict = convicted(arena, evil)
    outvoted = sum(arena.look().outvoted.values())
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
    evil, partner = arena.peer_id(EVIL), arena.peer_id("mallory")
    arena.until(lambda facts: {evil, partner} <= facts.enrolled)
    arena.peers()
    verdict = convicted(arena, evil)
    as_reducer = convicted(arena, partner, "reducing")
    return conclude(
        arena,
        name,
        evil,
        by=f"{_words(verdict)}; {_words(as_reducer)}",
        bound=bound_for(8 / 17),  # chunks that are opened, of all
        seen=_units_until(arena, verdict),
    )


def sybils(arena: Arena, name: str) -> Outcome:
    """Three new keys at once, which send noise from their first unit on."""
    names = (EVIL, "eva", "evo")
    arena.serve()
    for sybil in names:
        arena.adversary(Fault.RANDOM_UPDATE, sybil)
    ids = {arena.peer_id(sybil) for sybil in names}
    arena.until(lambda facts: ids <= facts.enrolled)
    arena.peers()
    facts = arena.until(lambda facts: ids <= set(facts.blocked))
    merged = sum(len(facts.merged_rounds(sybil)) for sybil in ids)
    assert merged == 0, "a unit of a key that did not pass its probation was merged"
    return conclude(arena, name, arena.peer_id(EVIL), by="probation", bound=0, seen=0)


def concert(arena: Arena, name: str) -> Outcome:
    """Three new keys that pass their probation, then send noise together: they are most of those
    who are audited, and it must not pass for the task's fault."""
    names = (EVIL, "eva", "evo")
    arena.serve()
    arena.peers()
    trusted = VERIFICATION["probation_passes"]
    arena.until(lambda facts: _all_passed(facts, arena.honest, trusted))
    for sybil in names:
        arena.adversary(Fault.RANDOM_UPDATE, sybil, after=1)
    ids = {arena.peer_id(sybil) for sybil in names}
    facts = arena.until(lambda facts: ids <= set(facts.blocked), 400)
    units = {sybil: len(facts.merged_rounds(sybil)) for sybil in ids}
    verdicts = [facts.verdicts(sybil, Verdict.FAILED)[0] for sybil in ids]
    return conclude(
        arena,
        name,
        arena.peer_id(EVIL),
        by=_words(verdicts[0]),
        bound=1,
        seen=max(len([r for r in facts.merged_rounds(v.worker) if r <= v.round]) for v in verdicts),
        note=f"{sum(units.values())} units of theirs were merged",
    )


def _all_passed(facts: Facts, workers: Iterable[str], least: int) -> bool:
    return all(len(facts.verdicts(worker, Verdict.PASSED)) >= least for worker in workers)


def sleeper(arena: Arena, name: str, *, after: int = 50, share: float = 0.1) -> Outcome:
    """Honest for long, then half the steps in one unit of ten."""
    evil = start_all(arena, Fault.HALF_STEPS, after=after, share=share)
    verdict = convicted(arena, evil, timeout_s=1200)
    facts = arena.look()
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
    return Outcome(name, "", 0, 0, 0, 0, facts.losses, punished(facts, arena.honest))
