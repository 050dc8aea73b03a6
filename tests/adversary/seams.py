"""Where a faulty process replaces a part of the real one, in its own memory only.

Invariants:

* Each fault replaces one method; all the rest, the protocol's checks included, is the real program.
* Every cheat is logged with its round at the moment when it happens: the suite counts from there.
"""

from __future__ import annotations

from collections.abc import Callable

import auditing_seams as auditing
import reducing_seams as reducing
import sending_seams as sending
import training_seams as training
from faults import Fault
from plan import Plan

_SEAMS: dict[Fault, Callable[[Plan], None]] = {
    Fault.LOSS_NOT_FINITE: sending.forge_contributions,
    Fault.FORGED_TOKENS: sending.forge_contributions,
    Fault.FORGED_STEPS: sending.forge_contributions,
    Fault.IMPOSTOR: sending.impersonate,
    Fault.REPLAYED_RECORD: sending.replay_records,
    Fault.OTHER_BYTES: sending.send_other_bytes,
    Fault.SOME_REDUCERS: sending.serve_some_reducers,
    Fault.DROP_TRAINED: sending.drop_before_the_commit,
    Fault.DROP_COMMITTED: sending.drop_before_the_reduce,
    Fault.DROP_GATHER: sending.drop_in_the_gather,
    Fault.DROP_BROADCAST: sending.drop_in_the_broadcast,
    Fault.WRONG_MEAN: reducing.combine_wrongly,
    Fault.EQUIVOCATION: reducing.equivocate,
    Fault.CENSOR: reducing.slander,
    Fault.FRAME: reducing.slander,
    Fault.FALSE_PROJECTION: auditing.project_falsely,
    Fault.PARTNER_REDUCES: auditing.project_for_a_partner,
    Fault.DROP_AUDIT: auditing.say_nothing,
    Fault.YES_AUDITOR: auditing.say_yes,
}
"""Faults that are not in the update itself; those are all in the trainer's call."""


def install(plan: Plan) -> None:
    """Replace the seams that this fault needs."""
    training.install(plan)  # also counts the units, which says when the others cheat
    seam = _SEAMS.get(plan.fault)
    if seam is not None:
        seam(plan)
