"""A donor's word that a device works for it, as a line of text that a person can carry over.

The line (:mod:`protocol.device_line`) is no secret: it is good for that device alone. A device
gives for one donor: who has trained under its own key joins that key's account to the donor's
instead (``barnraise donor merge``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from protocol.device_line import DEVICE_LINE_PREFIX, device_line, parse_device_line
from protocol.envelope import open_envelope, parse_envelope
from protocol.errors import PeerFault, UsageError
from protocol.identity import PeerId
from protocol.wire import records_pb2 as wire
from worker.config import Home
from worker.journal import Journal

ENROLLED_FOR = "enrolled_for"
"""The journal's note of the donor for whom the coordinator knows this device."""

RENEW_BEFORE_S = 14 * 86_400
"""How long before its end a delegation is complained of."""

_MAX_LINE_BYTES = 4096


@dataclass(frozen=True)
class Vouched:
    """A delegation whose signature verifies."""

    donor: PeerId
    worker: PeerId
    not_after_s: int
    envelope: wire.Envelope

    @property
    def line(self) -> str:
        return device_line(self.envelope)


def day(time_s: int) -> str:
    """A date for a person, UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(time_s))


def trouble(worker: PeerId, not_after_s: int, now_s: float) -> str:
    """What to do about a delegation's end; empty while that is far."""
    left_s = not_after_s - now_s
    if left_s > RENEW_BEFORE_S:
        return ""
    state = "has ended" if left_s < 0 else "ends soon"
    return (
        f"the donor's delegation {state} ({day(not_after_s)}): where the donor's key is, run "
        f"'barnraise donor add-device {worker}', then here 'barnraise worker delegation LINE' "
        "with the line that it prints, and start the worker again"
    )


def read_line(text: str) -> Vouched:
    """Read what ``donor add-device`` printed.

    Raises:
        UsageError: it is damaged, or nobody signed it.
    """
    line = text.strip()
    if len(line) > _MAX_LINE_BYTES or not line.startswith(DEVICE_LINE_PREFIX):
        raise UsageError(
            f"not a delegation: it is one line that begins with {DEVICE_LINE_PREFIX!r}, as "
            "'barnraise donor add-device' prints it"
        )
    try:
        envelope = parse_envelope(parse_device_line(line))
        signed = open_envelope(envelope, wire.DeviceDelegation)
    except (ValueError, PeerFault) as error:
        raise UsageError(f"the delegation is damaged ({error}): copy the whole line") from error
    record = signed.record
    if record.donor != signed.signer:
        raise UsageError("the delegation was signed by another key than the donor that it names")
    return Vouched(record.donor, record.worker, record.not_after_s, signed.envelope)


def find(line_or_file: str) -> Vouched:
    """A delegation given as its line or as a file that holds it.

    Raises:
        UsageError: neither.
    """
    if line_or_file.strip().startswith(DEVICE_LINE_PREFIX):
        return read_line(line_or_file)
    return _read_file(Path(line_or_file))


def load(home: Home) -> Vouched | None:
    """What this worker was given; None where it works for its own key.

    Raises:
        UsageError: the file is damaged.
    """
    return _read_file(home.delegation) if home.delegation.exists() else None


def require(home: Home, worker: PeerId, now_s: float) -> Vouched | None:
    """:func:`load`, for use at an enrolment.

    Raises:
        UsageError: it is of another device, or has ended.
    """
    vouched = load(home)
    if vouched is None:
        return None
    check_worker(vouched, worker)
    if vouched.not_after_s < now_s:
        raise UsageError(trouble(worker, vouched.not_after_s, now_s))
    return vouched


def keep(home: Home, vouched: Vouched, worker: PeerId) -> None:
    """Use a delegation from the next start on; blocking.

    Raises:
        UsageError: it is of another device, has ended, or this device works for another key.
    """
    check_worker(vouched, worker)
    if vouched.not_after_s < (now_s := time.time()):
        raise UsageError(trouble(worker, vouched.not_after_s, now_s))
    known = _enrolled_for(home)
    if known is not None and known != vouched.donor:
        whose = "its own key" if known == worker else known
        raise UsageError(
            f"the run knows this device as working for {whose}, and a device does not change: "
            "join the two accounts with 'barnraise donor merge', which counts all its credit for "
            "the donor"
        )
    temporary = home.delegation.with_suffix(".new")
    temporary.write_text(vouched.line + "\n", encoding="utf-8")
    temporary.chmod(0o600)
    temporary.replace(home.delegation)


def remove(home: Home, worker: PeerId) -> None:
    """Work for this device's own key; blocking.

    Raises:
        UsageError: the run knows it as working for a donor already.
    """
    known = _enrolled_for(home)
    if known not in (None, worker):
        raise UsageError(
            f"the run knows this device as working for {known}, and a device does not change: to "
            "give under another key join with another --home"
        )
    home.delegation.unlink(missing_ok=True)


def _enrolled_for(home: Home) -> PeerId | None:
    if not home.journal.exists():
        return None
    journal = Journal(home.journal)
    try:
        return journal.get(ENROLLED_FOR)
    finally:
        journal.close()


def check_worker(vouched: Vouched, worker: PeerId) -> None:
    """Insist that a delegation is for this device.

    Raises:
        UsageError: it is for another one.
    """
    if vouched.worker != worker:
        raise UsageError(
            f"the delegation is for the device {vouched.worker}, and this one is {worker}: on the "
            f"donor's machine run 'barnraise donor add-device {worker}'"
        )


def _read_file(path: Path) -> Vouched:
    try:
        with path.open(encoding="utf-8") as file:
            return read_line(file.read(_MAX_LINE_BYTES + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read a delegation from {path}: {error}") from error
