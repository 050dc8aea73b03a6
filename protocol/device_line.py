"""A signed DeviceDelegation as one line of text, which a person carries from key to device."""

from __future__ import annotations

import base64

from protocol.wire import records_pb2 as wire

DEVICE_LINE_PREFIX = "barnraise-device:"


def device_line(delegation: wire.Envelope) -> str:
    """The prefix, and the envelope in base64url (RFC 4648 section 5)."""
    data = delegation.SerializeToString(deterministic=True)
    return DEVICE_LINE_PREFIX + base64.urlsafe_b64encode(data).decode()


def parse_device_line(line: str) -> bytes:
    """The serialised envelope of a line; nothing in it is believed yet.

    Raises:
        ValueError: it does not begin with the prefix, or is not base64url.
    """
    if not line.startswith(DEVICE_LINE_PREFIX):
        raise ValueError(f"it does not begin with {DEVICE_LINE_PREFIX!r}")
    return base64.urlsafe_b64decode(line.removeprefix(DEVICE_LINE_PREFIX).encode())
