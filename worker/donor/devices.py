"""The devices that work for a donor: one signed line for each."""

from __future__ import annotations

import time
from collections.abc import Mapping

from protocol.envelope import seal
from protocol.errors import BadRecord, UsageError
from protocol.identity import Identity, PeerId, PublicKey
from protocol.wire import records_pb2 as wire
from worker.delegation import Vouched
from worker.donor.desk import open_journal
from worker.donor.home import DonorHome, resolve_donor_home
from worker.donor.journal import ActJournal, StoredDevice

DEFAULT_DAYS, MAX_DAYS = 365, 3650
_DAY_S = 86_400


def vouch_for(
    home: DonorHome, device: PeerId, days: int, now_s: float, *, current_key: bool = False
) -> Vouched:
    """Sign that a device works for this donor, from now on for some days; blocking.

    A device that was vouched for by a key which was changed since goes on under that key: the run
    knows it so, and counts the former key's account for this donor.

    Raises:
        UsageError: there is no donor key, or ``device`` is not a device's key.
    """
    try:
        PublicKey.from_peer_id(device)
    except BadRecord as error:
        raise UsageError(
            f"{error}: give the device's key, which 'barnraise worker join' shows as 'known as'"
        ) from error
    with open_journal(home) as journal:
        signer = _signer(home, journal, device, current_key=current_key)
        if signer.peer_id == device:
            raise UsageError("that is the donor's own key: give the key of the device")
        record = wire.DeviceDelegation(
            donor=signer.peer_id, worker=device, not_after_s=int(now_s) + days * _DAY_S
        )
        vouched = Vouched(signer.peer_id, device, record.not_after_s, seal(record, signer))
        row = StoredDevice(device, vouched.donor, vouched.line, vouched.not_after_s)
        journal.keep_device(row)
    return vouched


def vouch_for_neighbour(device: PeerId, environment: Mapping[str, str]) -> Vouched:
    """Vouch for the worker of this machine with this machine's donor key, made if there is none."""
    home = resolve_donor_home(None, environment)
    with home.held():
        home.make_key(home.key)
    return vouch_for(home, device, DEFAULT_DAYS, time.time())


def _signer(home: DonorHome, journal: ActJournal, device: PeerId, *, current_key: bool) -> Identity:
    identity = home.load_key()
    if identity is None:
        raise UsageError(
            f"there is no donor key in {home.path}: make one with 'barnraise donor init', or give "
            "its folder with --home"
        )
    if current_key:
        return identity
    known = {row.worker: row.donor for row in journal.devices()}
    return home.key_of(known.get(device, identity.peer_id)) or identity
