"""The audits as the record shows them: draws, verdicts, and the trust that follows from them.

Invariants:

* A draw is the one that the run's first leaf fixed; who it selects is recomputed, not believed.
* Trust is what the verdicts give: a pass of training or probation adds one for that device in
  that execution class, unless it was audited because of a failure; a failure sets all of the
  device's classes to zero; nothing else changes it. No contribution was given a smaller chance
  of an audit than its device's trust allows.
* A merged contribution is judged once, if the draw chose it or its donor was convicted of
  something else; what failed can be judged again on appeal, and be overturned.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from ledger.audit_records import BlockLeaf, DrawLeaf, VerdictLeaf
from ledger.records import CreditLeaf, RunLeaf
from ledger.tally import Accounts, Credit, Judgement
from protocol.audit_policy import Verdict, Why, chance_ppm
from protocol.draw import draw, is_selected
from protocol.errors import BadRecord
from protocol.identity import PeerId
from protocol.manifest import VerificationSpec

NOT_DRAWN = (Why.RETAINED, Why.CONTROL, Why.APPEAL)
"""Why a contribution may be judged that the draw of its round did not choose."""


@dataclass
class DrawChain:
    """The preimages that were published, each proven by the one before it."""

    newest: bytes  # the tip, before the first
    rounds: int
    newest_round: int = -1

    def take(self, round_: int, preimage: bytes) -> None:
        """Accept the preimage of a round. They come in order, for each gives away all before it.

        Raises:
            BadRecord: it does not lead to the tip, or the round has one.
        """
        if round_ <= self.newest_round:
            raise BadRecord(f"draws for round {round_} after round {self.newest_round}")
        if round_ >= self.rounds:
            raise BadRecord(f"the run's chain has no draw for round {round_}")
        value = preimage
        for _ in range(round_ - self.newest_round):
            value = hashlib.sha256(value).digest()
        if value != self.newest:
            raise BadRecord(f"the preimage of round {round_} does not lead to the run's tip")
        self.newest, self.newest_round = preimage, round_


@dataclass
class Audits:
    """Draws, verdicts and trust so far."""

    accounts: Accounts
    policy: VerificationSpec
    chain: DrawChain
    draws: dict[int, int] = field(default_factory=dict)  # round -> leaf index
    judgements: dict[int, Judgement] = field(default_factory=dict)  # by leaf index
    blocked: dict[PeerId, BlockLeaf] = field(default_factory=dict)
    selected: int = 0  # contributions, by the published draws
    unaudited: int = 0  # of these, without a verdict yet
    audited_tokens: int = 0  # of merged contributions that have a verdict
    verdicts: Counter[str] = field(default_factory=Counter)
    _judged: dict[str, Judgement] = field(default_factory=dict)  # standing, by assignment
    _failed: dict[str, list[Judgement]] = field(default_factory=dict)  # and on failed appeals
    _records: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, leaf: RunLeaf, policy: VerificationSpec, accounts: Accounts) -> Audits:
        """Of a run that begins."""
        return cls(accounts, policy, DrawChain(bytes.fromhex(leaf.draw_tip), leaf.draw_rounds))

    def check_credit(self, leaf: CreditLeaf) -> Judgement | None:
        """Insist that training has its chance of an audit, and that probation passed one.

        Returns:
            What the audit said, of probation.

        Raises:
            BadRecord: it has not, or did not.
        """
        if leaf.work == "training":
            self._check_chance(leaf)
        if leaf.work != "probation":
            return None
        judged = self._judged.get(leaf.assignment_id or "")
        if judged is None or judged.leaf.verdict != Verdict.PASSED:
            raise BadRecord("pays for probation that did not pass an audit")
        said = (judged.leaf.subject, judged.leaf.worker, judged.leaf.round, judged.leaf.execution)
        if said != (leaf.work, leaf.worker, leaf.round, leaf.execution):
            raise BadRecord("pays for other probation than what passed the audit")
        return judged

    def _check_chance(self, leaf: CreditLeaf) -> None:
        if leaf.round in self.draws:
            raise BadRecord(f"pays for round {leaf.round} after its draw was published")
        passes = self.accounts.workers[leaf.worker].passes[leaf.execution or ""]
        least = chance_ppm(self.policy, passes)
        if (leaf.audit_ppm or 0) < least:
            raise BadRecord(
                f"gives it {leaf.audit_ppm} in a million to be audited; after {passes} "
                f"audited passes the policy asks for {least}"
            )

    def take_draw(self, index: int, leaf: DrawLeaf) -> None:
        """Publish who the draw of a round selects.

        Raises:
            BadRecord: it is not the draw that the run fixed, or somebody was audited without it.
        """
        contributions = self.accounts.training_of(leaf.round)
        if not contributions:
            raise BadRecord(f"draws for round {leaf.round}, which credited nobody so far")
        preimage = bytes.fromhex(leaf.preimage)
        self.chain.take(leaf.round, preimage)
        self.draws[leaf.round] = index
        value = draw(preimage, bytes.fromhex(leaf.inclusion_digest))
        for credit in contributions:
            assignment = bytes.fromhex(credit.leaf.assignment_id or "")
            credit.selected = is_selected(value, assignment, credit.leaf.audit_ppm or 0)
            self.selected += credit.selected
            self.unaudited += credit.selected and credit.verdict is None
            if credit.verdict is not None:
                _check_drawn(credit, credit.verdict.leaf)

    def take_verdict(self, index: int, leaf: VerdictLeaf) -> None:
        """Count a verdict.

        Raises:
            BadRecord: of unknown work, given twice, or not the draw's to ask for.
        """
        if leaf.record_digest in self._records:
            raise BadRecord("the same signed verdict was recorded before")
        if leaf.worker not in self.accounts.workers:
            raise BadRecord("judges a device that was not enrolled")
        credit = self._judged_credit(leaf)
        donor = credit.leaf.donor if credit else self.accounts.workers[leaf.worker].donor
        judgement = Judgement(index, leaf, donor)
        if leaf.assignment_id is not None:
            self._stand(leaf.assignment_id, judgement, credit)
        elif leaf.verdict == Verdict.OVERTURNED:
            raise BadRecord("overturns what no appeal can be about")
        self._records.add(leaf.record_digest)
        self.judgements[index] = judgement
        self.verdicts[leaf.verdict] += 1
        self.accounts.workers[leaf.worker].verdicts.append(judgement)
        self._change_trust(judgement)

    def give_up_lost(self, index: int, log_size: int) -> set[int]:
        """Nobody can audit any more what was credited after a backup: it is final, as it stands.

        Args:
            index: leaf of the restore.
            log_size: leaves of the backup.

        Returns:
            Rounds that were paid after the backup.
        """
        lost = [credit for credit in self.accounts.credits.values() if credit.index >= log_size]
        stands = [credit for credit in lost if self._nothing_speaks_against(credit)]
        self.accounts.move(stands, "final", index)
        self.unaudited -= sum(c.selected is True and c.verdict is None for c in lost)
        for name in {credit.leaf.donor for credit in lost}:
            last_s = self.accounts.last_contribution_s(name, log_size)
            self.accounts.donors[name].last_contribution_s = last_s
        return {credit.leaf.round for credit in lost if credit.leaf.work == "training"}

    def _nothing_speaks_against(self, credit: Credit) -> bool:
        convictions = self.accounts.donors[credit.leaf.donor].convictions
        convicted = bool(convictions) and credit.index < convictions[-1].leaf_index
        against = (Verdict.FAILED, Verdict.UNAVAILABLE)
        refused = credit.verdict is not None and credit.verdict.leaf.verdict in against
        return credit.status == "pending" and not convicted and not refused

    def take_block(self, leaf: BlockLeaf) -> None:
        """A key is blocked, or is not any more."""
        if leaf.blocked:
            self.blocked[leaf.key] = leaf
        else:
            self.blocked.pop(leaf.key, None)

    def _judged_credit(self, leaf: VerdictLeaf) -> Credit | None:
        """The credit of the work that is judged; probation may have none."""
        if leaf.subject == "reducing":
            done = self.accounts.by_round.get(leaf.round, ())
            mine = (c for c in done if c.leaf.work == "reducing" and c.leaf.worker == leaf.worker)
            return next(mine, None)
        credit = self.accounts.by_assignment.get(leaf.assignment_id or "")
        if credit is None:
            if leaf.subject == "training":
                raise BadRecord("judges work that was never credited")
            return None
        said = (leaf.subject, leaf.worker, leaf.round, leaf.execution)
        paid = (credit.leaf.work, credit.leaf.worker, credit.leaf.round, credit.leaf.execution)
        if said != paid:
            raise BadRecord("judges other work than its assignment was credited for")
        if credit.selected is not None:
            _check_drawn(credit, leaf)
        return credit

    def _stand(self, assignment: str, new: Judgement, credit: Credit | None) -> None:
        """Let a verdict stand for its work, unless an earlier one does."""
        old = self._judged.get(assignment)
        stands = old is None
        if new.leaf.verdict == Verdict.OVERTURNED:
            if old is None or not old.convicts or old.leaf.worker != new.leaf.worker:
                raise BadRecord("overturns a verdict that does not stand")
            self._overturn(self._failed.pop(assignment), new)
            stands = True
        elif old is not None:
            repeats = new.leaf.why == Why.APPEAL and new.leaf.verdict != Verdict.PASSED
            if not repeats or not old.convicts or old.leaf.worker != new.leaf.worker:
                raise BadRecord("judges the same work twice")
        elif credit is not None and credit.leaf.work == "training":
            self.audited_tokens += credit.leaf.tokens
            self.unaudited -= credit.selected is True
        if new.leaf.verdict == Verdict.FAILED:
            self._failed.setdefault(assignment, []).append(new)
        if stands:  # an appeal that does not succeed changes nothing
            self._judged[assignment] = new
            if credit is not None:
                credit.verdict = new

    def _overturn(self, failed: list[Judgement], new: Judgement) -> None:
        new.overturns = frozenset(old.leaf_index for old in failed)
        for old in failed:
            old.overturned = True
            self.accounts.donors[old.donor].convictions.remove(old)

    def _change_trust(self, judgement: Judgement) -> None:
        leaf = judgement.leaf
        worker = self.accounts.workers[leaf.worker]
        if leaf.verdict == Verdict.PASSED and leaf.execution is not None:
            # What was done before a conviction restores no trust.
            worker.passes[leaf.execution] += leaf.why != Why.RETAINED
        elif leaf.verdict == Verdict.FAILED:
            worker.passes.clear()
            self.accounts.donors[judgement.donor].convictions.append(judgement)


def _check_drawn(credit: Credit, leaf: VerdictLeaf) -> None:
    if not credit.selected and leaf.why not in NOT_DRAWN:
        raise BadRecord(
            f"leaf {credit.index} was audited as {leaf.why}, but the draw of round "
            f"{leaf.round} did not choose it"
        )
