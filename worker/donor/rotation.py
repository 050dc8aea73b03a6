"""Changing the donor's key for a new one.

Steps; a kill after any of them loses neither key, and the same command goes on from there:

1. the new key is on disk, beside the old one;
2. the KeyChange, signed by the old key and within by the new one, is in the journal;
3. the record has it;
4. the old key is kept in ``retired/``, and the new one is the key (:func:`finish_rotation`);
5. the person was told: only then does the command mean another rotation.
"""

from __future__ import annotations

from protocol.wire import records_pb2 as wire
from worker.donor import acts
from worker.donor.desk import Desk, Outcome
from worker.donor.journal import ActState

_TOLD = "rotation_told"


async def change_key(desk: Desk) -> Outcome:
    """Steps 1 to 4.

    Raises:
        UsageError: refused, or no answer; nothing has changed then.
    """
    new = desk.home.make_key(desk.home.next_key)
    return await desk.perform(acts.key_change(desk.run_id, desk.signer, new))


def finished_but_untold(desk: Desk) -> Outcome | None:
    """A rotation to the key of now that an interrupted command made; None where there is none."""
    for act in desk.journal.acts(wire.KeyChange.DESCRIPTOR.name):
        record = wire.KeyChange.FromString(act.envelope.payload)
        rotated = (desk.home.retired / f"{record.old}.key").exists()
        if act.state != ActState.RECORDED or not rotated or record.new != desk.signer.peer_id:
            continue
        if desk.journal.get(_TOLD) != record.new:
            return Outcome(act.kind, act.leaf, desk.leaf_url(act.leaf), act.said, act.envelope)
    return None


def told(desk: Desk) -> None:
    """Step 5."""
    key = desk.home.load_key()
    assert key is not None, "it was just changed"
    desk.journal.put(_TOLD, key.peer_id)
