"""How large a request of each call may be, looked at before it is parsed.

A parser makes an object of every two bytes of a hostile message: without these bounds 2 MB become
200 MB, several times over. The transport has refused what is over
``protocol.limits.MAX_GRPC_MESSAGE_BYTES`` already.
"""

from __future__ import annotations

from protocol.errors import BadRecord
from protocol.limits import MAX_GRPC_MESSAGE_BYTES, MAX_PIECE_BYTES, MAX_RECORD_BYTES

_ENVELOPE_BYTES = 4096  # around a record
_SMALL_BYTES = 64 << 10
_MAX_FIELDS = 1024
_MAX_FIELDS_OF_AN_ENVELOPE = 16
"""An envelope has three, and we tolerate a few that we do not know."""

_MAX_BYTES = {
    **dict.fromkeys(("Hello", "GetReceipt", "GetAudit", "GetState", "GetShard"), 4096),
    **dict.fromkeys(("Enrol", "RequestWork", "Commit", "Report", "Heartbeat"), _SMALL_BYTES),
    **dict.fromkeys(("Watch", "Appeal", "Act"), _SMALL_BYTES),
    **dict.fromkeys(("ReducerReport", "SubmitScreening"), MAX_RECORD_BYTES + _ENVELOPE_BYTES),
    "SubmitResults": MAX_PIECE_BYTES + _SMALL_BYTES,
    "AnswerChallenge": MAX_GRPC_MESSAGE_BYTES,
}


def check_bounds(method: str, data: bytes, *, envelope: bool) -> None:
    """Insist on a size that an honest request could have.

    Args:
        method: name of the call.
        data: one message of it, as it came.
        envelope: whether it should be an Envelope.

    Raises:
        BadRecord: too many bytes, or too many fields.
    """
    most = _MAX_BYTES.get(method, _SMALL_BYTES)
    if len(data) > most:
        raise BadRecord(f"a request of {method} has {len(data)} bytes, allowed are {most}")
    most_fields = _MAX_FIELDS_OF_AN_ENVELOPE if envelope else _MAX_FIELDS
    if len(data) > most_fields and not _has_few_fields(data, most_fields):
        raise BadRecord(f"a request of {method} has more than {most_fields} fields")


def _has_few_fields(data: bytes, most: int) -> bool:
    """Count the outermost fields; what is no protobuf is left for the parser to refuse."""
    at = 0
    for _ in range(most):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                length, at = _varint(data, at)
                at += length
            case 5:
                at += 4
            case _:
                return True
        if at >= len(data):
            return True
    return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, at
