"""One audit as a pure function: what is known in, the next step out. No clock, no database.

Invariants (docs/verification.md, layer 4):

* FAILED takes two replays that agree with each other and both differ from opened, proven bytes.
* Two replays by one auditor are one word said twice: where another auditor has replayed the same
  work, they neither convict nor acquit nor outvote it.
* What cannot be had convicts nobody, and hides nothing else: the rest is still compared, as long
  as it is at least half. If that does not convict, the case ends UNAVAILABLE. Else a worker that
  reduces would only have to keep its own range to itself.
* An organiser without auditors, or with auditors that do not agree, pays: INCONCLUSIVE.
* Every case ends: each phase has its patience, and replays are counted.
* Nothing depends on the order in which answers and replays arrive.

    waiting    all projections that can be had are in, and one replay  -> open chunks
    either     less than half of it can be had               -> UNAVAILABLE
    opening    all opened chunks are proven, replays compared:
               two replays agree with them                   -> PASSED
               one does, and nobody wants a second           -> PASSED
               two differ, and agree with each other         -> FAILED
               (two auditors', unless only one ever replayed)
               else, while there are fewer than allowed      -> another replay
               else                                          -> INCONCLUSIVE
               anything but FAILED, though a part was missing -> UNAVAILABLE
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

from coordinator.audit.schema import ASKED, OPENING, REFUSED
from protocol.audit_policy import Verdict
from protocol.tolerance import Outcome

UNASKED: Final = "unasked"

CHUNKS_UNAVAILABLE: Final = "chunks_unavailable"

NOT_REPLAYED: Final = "not_replayed"
"""No auditor had the time: says nothing of the worker."""

LOST_REASONS: Final = ("weights_lost", "data_lost")
"""Why a replay was impossible because the organiser lost what it takes."""


@dataclass(frozen=True)
class Source:
    """Somebody who may have what is needed."""

    who: str  # PeerID
    status: str = UNASKED
    asked_at_s: float = 0.0


@dataclass(frozen=True)
class Need:
    """Bytes that any one of its sources can show; they are asked one after the other."""

    name: str
    sources: tuple[Source, ...]  # best first
    met: bool = False
    chunks: int = 1  # how many it is about

    @property
    def hopeless(self) -> bool:
        """Whether everybody who could show it said no, for good."""
        return not self.met and all(source.status == REFUSED for source in self.sources)


@dataclass(frozen=True)
class Replay:
    """A finished replay."""

    ordinal: int
    auditor: str
    execution: str
    outcome: Outcome | None = None  # against the opened chunks; None: not compared yet
    failed: str = ""  # why it could not be done: says nothing of the worker


@dataclass(frozen=True)
class Facts:
    """Everything that is known of an audit."""

    now_s: float
    phase: str
    since_s: float  # when the phase began
    projections: tuple[Need, ...]
    replays: tuple[Replay, ...] = ()
    unfinished: int = 0  # replays that are queued or under way
    second: bool = False  # a second auditor was drawn
    openings: tuple[Need, ...] = ()  # in phase OPENING
    unprojected: bool = False  # in phase OPENING: a range was never projected
    agreeing: frozenset[tuple[int, int]] = frozenset()  # ordinals of replays that agree, ascending
    answer_s: float = 60.0
    patience_s: float = 24 * 3600.0
    most_replays: int = 3

    @property
    def usable(self) -> tuple[Replay, ...]:
        """Replays that were really done, in order."""
        return tuple(sorted((r for r in self.replays if not r.failed), key=lambda r: r.ordinal))

    @property
    def out_of_patience(self) -> bool:
        return self.now_s >= self.since_s + self.patience_s

    @property
    def partial(self) -> bool:
        """Whether something that was asked for was never shown."""
        return self.unprojected or not all(need.met for need in self.openings)


@dataclass(frozen=True)
class Ask:
    """Ask ``(need, who)``; who is ``silent`` has had its time."""

    ask: tuple[tuple[str, str], ...]
    silent: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class OpenChunks:
    """Nothing can be adapted to it any more: tell which chunks are to be opened."""


@dataclass(frozen=True)
class Compare:
    """These replays have not been compared yet."""

    ordinals: tuple[int, ...]


@dataclass(frozen=True)
class QueueJob:
    """Have it replayed once more."""

    ordinal: int
    avoid_auditors: tuple[str, ...]
    avoid_executions: tuple[str, ...]


@dataclass(frozen=True)
class Decide:
    """The case is over."""

    verdict: Verdict
    reason: str  # stable word
    by: tuple[int, ...] = ()  # ordinals of the replays that decided
    outvoted: tuple[str, ...] = ()  # auditors against whom two others agreed


@dataclass(frozen=True)
class Wait:
    """Nothing is to be done yet."""


Decision = Ask | OpenChunks | Compare | QueueJob | Decide | Wait


def decide(facts: Facts) -> Decision:
    """The next step of an audit; see the module's table."""
    lost = [replay for replay in facts.replays if replay.failed in LOST_REASONS]
    if lost:
        return Decide(Verdict.LOST, lost[0].failed)
    if facts.phase == OPENING:
        return _collect(facts, facts.openings, CHUNKS_UNAVAILABLE) or _judge(facts)
    return _collect(facts, facts.projections, "projections_unavailable") or _await_replay(facts)


def pursue(
    needs: Iterable[Need],
    *,
    now_s: float,
    answer_s: float,
    out_of_patience: bool,
    reason: str,
    half_will_do: bool = False,
) -> Ask | Decide | Wait | None:
    """The next step towards everything that is needed; None once nothing more is to come.

    Args:
        needs: what is wanted.
        now_s: the coordinator's clock.
        answer_s: so long one source has before the next one is asked.
        out_of_patience: whether what is not there by now cannot be had.
        reason: stable word for that.
        half_will_do: whether at least half of the chunks are enough, once the others are given up.
    """
    needs = tuple(needs)
    unmet = [need for need in needs if not need.met]
    wanted = [need for need in unmet if not (out_of_patience or need.hopeless)]
    if len(wanted) < len(unmet):
        within_reach = sum(need.chunks for need in needs if need.met or need in wanted)
        if not half_will_do or 2 * within_reach < sum(need.chunks for need in needs):
            return Decide(Verdict.UNAVAILABLE, reason)
    return _ask_for(wanted, now_s, answer_s) if wanted else None


def _ask_for(wanted: Iterable[Need], now_s: float, answer_s: float) -> Ask | Wait:
    ask: list[tuple[str, str]] = []
    silent: list[tuple[str, str]] = []
    for need in wanted:
        asked = [source for source in need.sources if source.status == ASKED]
        overdue = [source for source in asked if now_s >= source.asked_at_s + answer_s]
        silent += [(need.name, source.who) for source in overdue]
        fresh = [source for source in need.sources if source.status == UNASKED]
        if fresh and len(overdue) == len(asked):
            ask.append((need.name, fresh[0].who))
    return Ask(tuple(ask), tuple(silent)) if ask or silent else Wait()


def _collect(facts: Facts, needs: tuple[Need, ...], reason: str) -> Decision | None:
    return pursue(
        needs,
        now_s=facts.now_s,
        answer_s=facts.answer_s,
        out_of_patience=facts.out_of_patience,
        reason=reason,
        half_will_do=True,
    )


def _await_replay(facts: Facts) -> Decision:
    """Projections are in: the chunks to open are told once a replay is, too."""
    if facts.usable:
        return OpenChunks()
    return _another_replay(facts, NOT_REPLAYED)


def _judge(facts: Facts) -> Decision:
    """Everything that can be opened is proven."""
    decision = _weigh(facts)
    if not isinstance(decision, Decide) or decision.verdict is Verdict.FAILED:
        return decision
    if facts.partial:
        return Decide(Verdict.UNAVAILABLE, CHUNKS_UNAVAILABLE, decision.by, decision.outvoted)
    return decision


def _weigh(facts: Facts) -> Decision:
    """What the replays say of what was opened."""
    usable = facts.usable
    uncompared = tuple(replay.ordinal for replay in usable if replay.outcome is None)
    if uncompared:
        return Compare(uncompared)
    agree = [replay for replay in usable if replay.outcome is Outcome.AGREES]
    differ = [replay for replay in usable if replay.outcome is Outcome.DIFFERS]
    if len(agree) >= 2 and _outweigh(agree, usable):
        by, outvoted = _ordinals(agree), _auditors(differ)
        return Decide(Verdict.PASSED, "replay_agrees", by, outvoted)
    if agree and len(usable) == 1 and not facts.second:
        return Decide(Verdict.PASSED, "replay_agrees", _ordinals(agree))
    for pair in combinations(differ, 2):
        if _ordinals(pair) in facts.agreeing and _outweigh(pair, usable):
            outvoted = _auditors(agree)
            return Decide(Verdict.FAILED, "replay_differs", _ordinals(pair), outvoted)
    return _another_replay(facts, "replays_disagree" if agree or differ else "between_bounds")


def _another_replay(facts: Facts, reason: str) -> Decision:
    """One more, unless one is under way; if there can be none, the organiser bears it."""
    made = len(facts.replays) + facts.unfinished
    if facts.out_of_patience or (not facts.unfinished and made >= facts.most_replays):
        return Decide(Verdict.INCONCLUSIVE, reason, _ordinals(facts.usable))
    if facts.unfinished:
        return Wait()
    doubtful = [replay for replay in facts.usable if replay.outcome is not Outcome.AGREES]
    executions = tuple(sorted({replay.execution for replay in doubtful}))
    return QueueJob(made + 1, tuple(sorted(_auditors(facts.replays))), executions)


def _outweigh(some: Iterable[Replay], usable: Iterable[Replay]) -> bool:
    """Whether these are more than one auditor's word against another's."""
    return len(_auditors(some)) > 1 or len(_auditors(usable)) == 1


def _ordinals(replays: Iterable[Replay]) -> tuple[int, ...]:
    return tuple(sorted(replay.ordinal for replay in replays))


def _auditors(replays: Iterable[Replay]) -> tuple[str, ...]:
    return tuple(sorted({replay.auditor for replay in replays}))


@dataclass(frozen=True)
class Task:
    """The donors whose contributions were audited in one round: one may have many devices."""

    donors: int
    guilty: int  # one of its contributions is convicted, or about to be
    undecided: int  # of the others: one could still turn out so


def judge_task(task: Task) -> Literal["sound", "suspect", "open"]:
    """Whether so many fail that the task itself must be at fault, not those who did it.

    Fewer than three donors tell nothing of the task.
    """
    if task.donors < 3:
        return "sound"
    if 2 * task.guilty > task.donors:
        return "suspect"
    return "open" if 2 * (task.guilty + task.undecided) > task.donors else "sound"
