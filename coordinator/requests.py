"""From an envelope off the wire to a record that may be acted on. Fails closed.

Steps, in order of rising cost, all of which must hold:

1. the sender's address has not asked too often (before any cryptography);
2. the envelope is of the expected type and bounded, and its signature verifies;
3. the record names this run, and its signer is who it says;
4. the signer has not asked too often;
5. where the record has no natural key: it is younger than two minutes on our clock, and its
   nonce has not been seen in that time (protocol section 2).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TypeVar
from urllib.parse import unquote

from google.protobuf.message import Message

from protocol.envelope import Signed, open_envelope
from protocol.errors import (
    BadRecord,
    BadSignature,
    RateLimited,
    Stale,
    TransientError,
    UnknownRun,
)
from protocol.identity import PeerId
from protocol.limits import REQUEST_FRESHNESS_MS
from protocol.wire import records_pb2 as wire

Record = TypeVar("Record", bound=Message)
Clock = Callable[[], float]
"""POSIX time in seconds."""

_NONCE_BYTES = 16
_MAX_NONCES = 1 << 18
"""About 50 MB when full; a key that sends faster meets its rate limit long before."""
_MAX_BUCKETS = 1 << 16


@dataclass(frozen=True)
class Rate:
    """A token bucket: ``burst`` requests at once, then ``per_s``."""

    per_s: float
    burst: int


class Buckets:
    """Token buckets by name, the least recently used forgotten first."""

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens, at_s)

    def take(self, name: str) -> None:
        """Spend one token.

        Raises:
            RateLimited: none is left; says when to come back.
        """
        now = self._clock()
        tokens, at_s = self._levels.pop(name, (float(self._rate.burst), now))
        tokens = min(self._rate.burst, tokens + max(0.0, now - at_s) * self._rate.per_s)
        allowed = tokens >= 1
        self._levels[name] = (tokens - 1 if allowed else tokens, now)
        if len(self._levels) > _MAX_BUCKETS:
            self._levels.popitem(last=False)
        if not allowed:
            wait_s = (1 - tokens) / self._rate.per_s
            raise RateLimited(f"too many requests from {name}: try again in {wait_s:.1f} s")


class NonceCache:
    """Remembers (signer, nonce) for as long as a request with it could still be fresh."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: set[tuple[PeerId, bytes]] = set()
        self._expiry: deque[tuple[float, tuple[PeerId, bytes]]] = deque()

    def check(self, signer: PeerId, freshness: wire.Freshness) -> None:
        """Insist that the request is new.

        Raises:
            Stale: it is dated too far from our clock, either way. A machine that slept does
                that; it is nobody's fault.
            BadRecord: it was seen before, or has no proper nonce.
            TransientError: more requests in two minutes than we can remember.
        """
        now = self._clock()
        age_ms = now * 1000 - freshness.sent_at_ms
        if abs(age_ms) > REQUEST_FRESHNESS_MS:
            raise Stale(
                f"the request is {age_ms / 1000:.0f} s old on the coordinator's clock, allowed are "
                f"{REQUEST_FRESHNESS_MS // 1000}: check this machine's clock and say Hello again"
            )
        if len(freshness.nonce) != _NONCE_BYTES:
            raise BadRecord(f"a nonce is {_NONCE_BYTES} random bytes")
        self._forget(now)
        key = (signer, freshness.nonce)
        if key in self._seen:
            raise BadRecord("this request was answered before: sign a new one to ask again")
        if len(self._seen) >= _MAX_NONCES:
            raise TransientError("the coordinator is too busy: try again in a minute")
        self._seen.add(key)
        # A request may be dated up to two minutes ahead and stays fresh for two more.
        self._expiry.append((now + 2 * REQUEST_FRESHNESS_MS / 1000, key))

    def _forget(self, now: float) -> None:
        while self._expiry and self._expiry[0][0] < now:
            self._seen.discard(self._expiry.popleft()[1])


class RequestGuard:
    """Everything a request must pass before it is acted on."""

    def __init__(self, run_id: bytes, clock: Clock, *, per_key: Rate, per_address: Rate) -> None:
        self._run_id = run_id
        self._keys = Buckets(per_key, clock)
        self._addresses = Buckets(per_address, clock)
        self._nonces = NonceCache(clock)

    def open(
        self, envelope: wire.Envelope, record_class: type[Record], *, peer: str
    ) -> Signed[Record]:
        """Verify a signed request (steps 1 to 5 of the module).

        Args:
            envelope: as received.
            record_class: what this call takes.
            peer: the transport's name of the other side (``ServicerContext.peer()``).

        Raises:
            RateLimited, BadSignature, BadRecord, UnknownRun, Stale, TransientError: see the
                steps.
        """
        self.allow(peer)
        signed = open_envelope(envelope, record_class)
        record = signed.record
        self.check_run(record.run_id)  # type: ignore[attr-defined]
        names = record.DESCRIPTOR.fields_by_name
        author = record.worker if "worker" in names else record.reducer  # type: ignore[attr-defined]
        if author != signed.signer:
            raise BadSignature(f"a record of {author[:64]} must be signed by its key")
        self._keys.take(signed.signer)
        if "freshness" in names:
            self._nonces.check(signed.signer, record.freshness)  # type: ignore[attr-defined]
        return signed

    def allow(self, peer: str) -> None:
        """Step 1 alone, for calls that carry no signature.

        Raises:
            RateLimited: too many calls from this address.
        """
        self._addresses.take(address_of(peer))

    def check_run(self, run_id: bytes) -> None:
        """Insist that a request is for the run that is served.

        Raises:
            UnknownRun: it is for another.
        """
        if run_id != self._run_id:
            raise UnknownRun(
                f"this coordinator serves run {self._run_id.hex()[:16]}..., not "
                f"{run_id[:32].hex()[:16] or '(none)'}...: ask the organiser for the current link"
            )


def address_of(peer: str) -> str:
    """``ipv4:10.0.0.1:5000`` -> ``10.0.0.1``; an IPv6 address counts as its /64 network."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer[:100]
    host = rest.rpartition(":")[0].strip("[]")
    try:
        address = ip_address(host)
    except ValueError:
        return peer[:100]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        # A household owns a whole /64 and can use any address in it.
        return str(IPv6Address(int(address) >> 64 << 64)) + "/64"
    return str(address)
