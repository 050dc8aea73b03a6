"""From an envelope off the wire to a record that may be acted on. Fails closed.

Steps, in order of rising cost, all of which must hold:

1. the sender has not asked too often (before any cryptography): by its address, or, when a known
   device's key is named or its connection has proven to be one's, by its connection;
2. the envelope is of the expected type and bounded, and its signature verifies;
3. the record names this run, and its signer is who it says;
4. the signer has not asked too often;
5. where the record has no natural key: it is younger than two minutes on our clock, and its
   nonce has not been seen in that time (protocol section 2).

So a flood from one address locks no known device out that sits behind the same router: what it asks
for is counted by its connection and its key. Strangers share their address's allowance; the first
greetings on each new connection are let through besides, because a connection costs more.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TypeVar
from urllib.parse import unquote

from google.protobuf.message import Message

from coordinator.overload import Visitor, retry
from ledger.acts import Act, open_act
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
_MAX_NONCES = 1 << 19
"""About 100 MB when full: what 200 keys of known devices sign at the highest rate they may."""

_MAX_STRANGERS_NONCES = 1 << 16
"""Of them: so that devices without an admission cannot use up the known ones' memory."""

_MAX_BUCKETS = 1 << 16
_MAX_CONNECTIONS = 1 << 16


@dataclass(frozen=True)
class Rate:
    """A token bucket: ``burst`` requests at once, then ``per_s``."""

    per_s: float
    burst: int


GREETINGS_PER_CONNECTION = Rate(per_s=0.1, burst=4)


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
            raise retry(f"too many requests from {name}", (1 - tokens) / self._rate.per_s)


class NonceCache:
    """Remembers (signer, nonce) for as long as a request with it could still be fresh."""

    def __init__(self, clock: Clock, most_of_strangers: int = _MAX_STRANGERS_NONCES) -> None:
        self._clock = clock
        self._most_of_strangers = most_of_strangers
        self._of_strangers = 0
        self._seen: set[tuple[PeerId, bytes]] = set()
        self._expiry: deque[tuple[float, bool, tuple[PeerId, bytes]]] = deque()

    def check(
        self,
        signer: PeerId,
        freshness: wire.Freshness,
        *,
        known: bool = True,
        once: bool = True,
    ) -> None:
        """Insist that the request is new.

        Args:
            signer: whose key signed it.
            freshness: from the request.
            known: of a device that was let in: strangers have but a share of the memory.
            once: False: its age alone matters, for something else sees that it is done but once.

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
        if not once:
            return
        self._forget(now)
        key = (signer, freshness.nonce)
        if key in self._seen:
            raise BadRecord("this request was answered before: sign a new one to ask again")
        full = not known and self._of_strangers >= self._most_of_strangers
        if full or len(self._seen) >= _MAX_NONCES:
            raise TransientError(
                "the coordinator is too busy: try again in a minute", retry_after_s=60.0
            )
        self._seen.add(key)
        # A request may be dated up to two minutes ahead and stays fresh for two more.
        self._expiry.append((now + 2 * REQUEST_FRESHNESS_MS / 1000, known, key))
        self._of_strangers += not known

    def _forget(self, now: float) -> None:
        while self._expiry and self._expiry[0][0] < now:
            _, known, key = self._expiry.popleft()
            self._seen.discard(key)
            self._of_strangers -= not known


class Acquaintances:
    """The devices that were let in, and the connections that have proven to be theirs."""

    def __init__(self, keys: Iterable[PeerId] = ()) -> None:
        self._keys = set(keys)
        self._connections: OrderedDict[str, PeerId] = OrderedDict()

    def __contains__(self, key: PeerId) -> bool:
        return key in self._keys

    def add(self, key: PeerId) -> None:
        """A device was let in."""
        self._keys.add(key)

    def proven(self, connection: str, key: PeerId) -> None:
        """A known device signed a request that came on this connection."""
        self._connections[connection] = key
        self._connections.move_to_end(connection)
        if len(self._connections) > _MAX_CONNECTIONS:
            self._connections.popitem(last=False)

    def on(self, connection: str) -> PeerId | None:
        """Whose connection it has proven to be."""
        return self._connections.get(connection)


class RequestGuard:
    """Everything a request must pass before it is acted on."""

    def __init__(
        self,
        run_id: bytes,
        clock: Clock,
        *,
        per_key: Rate,
        per_address: Rate,
        known: Acquaintances | None = None,
    ) -> None:
        self._run_id = run_id
        self.known = known or Acquaintances()
        self._keys = Buckets(per_key, clock)
        self._addresses = Buckets(per_address, clock)
        self._connections = Buckets(per_address, clock)  # of known devices, or of who names one
        self._greetings = Buckets(GREETINGS_PER_CONNECTION, clock)
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
        self._let_ask(envelope, peer)
        signed = open_envelope(envelope, record_class)
        record = signed.record
        self.check_run(record.run_id)  # type: ignore[attr-defined]
        names = record.DESCRIPTOR.fields_by_name
        author = record.worker if "worker" in names else record.reducer  # type: ignore[attr-defined]
        if author != signed.signer:
            raise BadSignature(f"a record of {author[:64]} must be signed by its key")
        self._keys.take(signed.signer)
        if "freshness" in names:
            self.check_fresh(signed.signer, record.freshness)  # type: ignore[attr-defined]
        if signed.signer in self.known:
            self.known.proven(connection_of(peer), signed.signer)
        return signed

    def open_act(self, envelope: wire.Envelope, *, peer: str) -> Act:
        """Verify a signed act (steps 1 to 4); step 5 is for whoever knows whether it is a new one.

        Raises:
            RateLimited, BadSignature, BadRecord, UnknownRun: see the steps.
        """
        self._let_ask(envelope, peer)
        act = open_act(envelope)
        self.check_run(act.record.run_id)
        self._keys.take(act.signer)
        return act

    def check_fresh(self, signer: PeerId, freshness: wire.Freshness, *, once: bool = True) -> None:
        """Step 5; see :meth:`NonceCache.check`.

        Raises:
            Stale, BadRecord, TransientError: see the steps.
        """
        self._nonces.check(signer, freshness, known=signer in self.known, once=once)

    def _let_ask(self, envelope: wire.Envelope, peer: str) -> None:
        """Step 1."""
        if len(envelope.signatures) == 1 and envelope.signatures[0].keyid in self.known:
            self._connections.take(connection_of(peer))
        else:
            self._addresses.take(address_of(peer))

    def visitor(self, peer: str, signer: PeerId | None = None) -> Visitor:
        """Who calls, as far as it is known; ``signer`` only of a record that was verified."""
        key = self.known.on(connection_of(peer)) if signer is None else signer
        is_known = key is not None and key in self.known
        return Visitor(address_of(peer), key if is_known else None)

    def allow(self, peer: str) -> None:
        """Step 1 alone, for calls that carry no signature.

        Raises:
            RateLimited: too many calls from this address.
        """
        connection = connection_of(peer)
        if self.known.on(connection) is not None:
            self._connections.take(connection)
        else:
            self._addresses.take(address_of(peer))

    def allow_greeting(self, peer: str) -> None:
        """Step 1 for a Hello, whose answer costs little more than a refusal.

        Raises:
            RateLimited: too many from this address, and on this connection.
        """
        try:
            self.allow(peer)
        except RateLimited:
            self._greetings.take(connection_of(peer))

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


def connection_of(peer: str) -> str:
    """The transport's name of the other side, with its port, bounded."""
    return peer[:100]


@lru_cache(maxsize=_MAX_CONNECTIONS)
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
