"""When credit becomes final, and when it is taken back.

The rule, from the run's ``verification`` section: credit is final once ``pending_s`` have passed
and either ``pending_contributions`` later contributions of its donor were credited, or
``last_pending_s`` have passed since its last one. What the draw chose waits for its verdict, and
a conviction of the donor takes whatever was pending at that moment.

Invariants:

* Only pending credit becomes final, and only of work that no audit spoke against. Credit of
  training waits for the draw of its round: a draw that is never published frees nobody.
* Credit is taken back because of one verdict, once, to the unit; what is final is taken back only
  if that very work was false. It is given back only when that verdict is overturned.

Times are those of the leaves: whole seconds, rounded down, so that a fraction is given away.
"""

from __future__ import annotations

import math

from ledger.audit_records import FinalLeaf, ReversalLeaf
from ledger.audits import Audits
from ledger.tally import Accounts, Credit, Judgement
from protocol.audit_policy import Verdict
from protocol.errors import BadRecord
from protocol.manifest import VerificationSpec


def take_final(accounts: Accounts, audits: Audits, index: int, leaf: FinalLeaf) -> None:
    """Make the listed credit final.

    Raises:
        BadRecord: some of it may not be, or not yet.
    """
    credits = _credits_of(accounts, leaf)
    for credit in credits:
        try:
            _check_settled(accounts, credit)
            _check_age(audits.policy, accounts, credit, leaf.at_s)
        except BadRecord as error:
            raise BadRecord(f"makes the credit of leaf {credit.index} final: {error}") from error
    accounts.move(credits, "final", index)


def take_reversal(accounts: Accounts, audits: Audits, index: int, leaf: ReversalLeaf) -> None:
    """Take the listed credit back, or give it back.

    Raises:
        BadRecord: the verdict does not explain it, it was done before, or the sum is wrong.
    """
    credits = _credits_of(accounts, leaf)
    judgement = audits.judgements.get(leaf.verdict_leaf)
    if judgement is None:
        raise BadRecord(f"leaf {leaf.verdict_leaf}, which should explain it, is no verdict")
    microcredits = sum(credit.leaf.microcredits for credit in credits)
    if leaf.microcredits != microcredits:
        raise BadRecord(f"counts {leaf.microcredits} microcredits; its credits are {microcredits}")
    if leaf.restored:
        _check_overturned(credits, judgement)
        for credit in credits:
            credit.reversed_by = None
        accounts.move(credits, "pending", index)
        return
    for credit in credits:
        _check_reversal(credit, judgement)
    for credit in credits:
        credit.reversed_by = judgement.leaf_index
    failed = judgement.leaf.verdict == Verdict.FAILED
    accounts.move(credits, "forfeited" if failed else "unpaid", index)


def _credits_of(accounts: Accounts, leaf: FinalLeaf | ReversalLeaf) -> list[Credit]:
    credits = []
    for index in leaf.credits:
        credit = accounts.credits.get(index)
        if credit is None:
            raise BadRecord(f"speaks of leaf {index}, which is no credit")
        if credit.leaf.donor != leaf.donor:
            raise BadRecord(f"speaks of the credit of leaf {index}, which is another donor's")
        credits.append(credit)
    return credits


def _check_settled(accounts: Accounts, credit: Credit) -> None:
    """Insist that nothing speaks against a credit."""
    if credit.status != "pending":
        raise BadRecord(f"it is {credit.status}")
    convictions = accounts.donors[credit.leaf.donor].convictions
    if convictions and credit.index < convictions[-1].leaf_index:
        raise BadRecord(f"leaf {convictions[-1].leaf_index} convicts its donor: it is forfeited")
    if credit.leaf.work != "training":
        return
    if credit.selected is None:
        raise BadRecord(f"the draw of round {credit.leaf.round} is not published")
    if credit.verdict is None:
        if credit.selected:
            raise BadRecord("the draw chose it for an audit, and there is no verdict")
    elif credit.verdict.leaf.verdict in (Verdict.FAILED, Verdict.UNAVAILABLE):
        raise BadRecord(f"its audit said {credit.verdict.leaf.verdict}")


def _check_age(policy: VerificationSpec, accounts: Accounts, credit: Credit, at_s: int) -> None:
    """Insist that the rule's time has passed."""
    if at_s - credit.leaf.at_s < math.floor(policy.pending_s):
        raise BadRecord(f"it is not {policy.pending_s:g} s old")
    donor = accounts.donors[credit.leaf.donor]
    later = donor.tally.contributions - credit.place
    last_s = donor.last_contribution_s
    quiet_s = at_s - (credit.leaf.at_s if last_s is None else last_s)
    if later < policy.pending_contributions and quiet_s < math.floor(policy.last_pending_s):
        raise BadRecord(
            f"only {later} later contributions of its donor were credited, the last one "
            f"{quiet_s} s ago"
        )


def _check_reversal(credit: Credit, judgement: Judgement) -> None:
    """Insist that a verdict takes a credit back."""
    leaf = judgement.leaf
    same_work = _is_about(judgement, credit)
    if leaf.verdict == Verdict.FAILED and not judgement.overturned:
        if judgement.donor != credit.leaf.donor:
            raise BadRecord(f"leaf {judgement.leaf_index} does not convict this donor")
        allowed = ("pending", "final") if same_work else ("pending",)
    elif leaf.verdict == Verdict.UNAVAILABLE and leaf.subject != "reducing":
        if not same_work:
            raise BadRecord(f"what was unavailable is not the work of leaf {credit.index}")
        allowed = ("pending",)
    else:
        raise BadRecord(f"the verdict of leaf {judgement.leaf_index} takes nothing back")
    if credit.status not in allowed:
        raise BadRecord(f"takes back the credit of leaf {credit.index}, which is {credit.status}")


def _is_about(judgement: Judgement, credit: Credit) -> bool:
    """Whether a verdict is about the very work that was credited."""
    leaf, paid = judgement.leaf, credit.leaf
    if leaf.subject == "reducing":
        return (paid.work, paid.worker, paid.round) == ("reducing", leaf.worker, leaf.round)
    return paid.assignment_id == leaf.assignment_id


def _check_overturned(credits: list[Credit], judgement: Judgement) -> None:
    """Insist that what is given back was taken by a verdict that this one overturns."""
    for credit in credits:
        if credit.reversed_by is None or credit.reversed_by not in judgement.overturns:
            raise BadRecord(
                f"gives back the credit of leaf {credit.index}, which no verdict took that leaf "
                f"{judgement.leaf_index} overturns"
            )
