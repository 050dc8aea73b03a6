"""Energy as devices tell it: kept beside the record, for the donor's page.

Invariants:

* Nobody verifies it, so it is in no leaf. It is shown as what a device says of itself.
* The newest enrolment counts: a device that tells nothing has nothing kept of it.
* It goes when its donor is erased, and comes back by the person's own word only.
"""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.orm import Session

from ledger.schema import DeviceEnergy, ErasedProfile
from protocol.wire import records_pb2 as wire


def take_energy(session: Session, enrolment: wire.Enrolment, now_s: float) -> None:
    """Keep what an enrolment tells; its bounds were checked (:mod:`protocol.energy`)."""
    device = enrolment.device
    if not device.energy_tokens or session.get(ErasedProfile, enrolment.donor) is not None:
        session.execute(delete(DeviceEnergy).where(DeviceEnergy.worker == enrolment.worker))
        return
    session.merge(
        DeviceEnergy(
            worker=enrolment.worker,
            donor=enrolment.donor,
            milliwatt_hours=device.energy_mwh,
            tokens=device.energy_tokens,
            told_at_s=int(now_s),
        )
    )
