"""The exceptions of the protocol.

    ProtocolError
    ├── PeerFault            the other side sent something wrong: may cost it credit
    │   ├── BadSignature     an envelope does not verify
    │   ├── BadRecord        well signed, but malformed, oversized or out of place
    │   ├── BadDigest        bytes do not hash to what was promised
    │   └── Conflict         two different records under one natural key (equivocation)
    ├── Diverged             our own arithmetic left the finite numbers: give the unit up
    ├── TransientError       a passing failure: retry, never penalise
    │   ├── RateLimited      too many requests: slow down
    │   └── Stale            dated by a clock that is off: say Hello, sign anew
    └── UsageError           a person gave bad input: say what to do, exit code 2
        ├── UnknownRun       the coordinator serves another run
        ├── NotFound         no such state, blob or receipt (any more)
        ├── NotEnrolled      enrol first
        ├── TooLate          its round has closed: drop the record, nobody is at fault
        └── UpgradeNeeded    this version of the program is too old for the run

Anything else that escapes is a bug of ours and costs nobody anything.
"""


class ProtocolError(Exception):
    """Root of every error that this project raises on purpose."""

    #: Stable word for machines; travels as ``google.rpc.ErrorInfo.reason``.
    reason = "PROTOCOL_ERROR"


class PeerFault(ProtocolError):
    """The other side broke the protocol."""

    reason = "PEER_FAULT"


class BadSignature(PeerFault):
    """An envelope's signature does not verify, or was made by the wrong key."""

    reason = "BAD_SIGNATURE"


class BadRecord(PeerFault):
    """A record is well signed but malformed, oversized or out of place."""

    reason = "BAD_RECORD"


class BadDigest(PeerFault):
    """Bytes do not hash to the digest under which they were asked for."""

    reason = "BAD_DIGEST"


class Conflict(PeerFault):
    """Same natural key, other bytes: both records are kept as evidence."""

    reason = "CONFLICT"


class TransientError(ProtocolError):
    """A passing failure (network, timeout, restart): retry, never penalise."""

    reason = "UNAVAILABLE"

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        """Say what failed and, where it is known, when to come back."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(TransientError):
    """More requests than the coordinator takes from one key or address: slow down."""

    reason = "RATE_LIMITED"


class Stale(TransientError):
    """A request is dated too far from the coordinator's clock: learn that clock, sign anew."""

    reason = "STALE"


class Diverged(ProtocolError):
    """Our own loss or update is not finite or cannot be encoded: nobody's fault, no retry."""

    reason = "DIVERGED"


class UsageError(ProtocolError):
    """Bad input from a person; the message says what to do about it."""

    reason = "USAGE"

    #: Of a command that ends so.
    exit_code = 2


class UnknownRun(UsageError):
    """The coordinator serves another run than the one named."""

    reason = "UNKNOWN_RUN"


class NotFound(UsageError):
    """No such state, blob or receipt, or not any more."""

    reason = "NOT_FOUND"


class NotEnrolled(UsageError):
    """The device must enrol before it may ask for this."""

    reason = "NOT_ENROLLED"


class TooLate(UsageError):
    """A record came after its round had closed: drop it, nobody is at fault."""

    reason = "TOO_LATE"


class UpgradeNeeded(UsageError):
    """This version of the program is too old for the run."""

    reason = "UPGRADE_NEEDED"
