"""What a run's root key vouches for: delegated keys, with expiry and revocation.

Steps to believe a key (``TrustStore.require``), all of which must hold:

1. a Delegation for that run and purpose is signed by the root key of the join link;
2. now lies within its window;
3. no Revocation signed by the root key names its serial.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import BadSignature
from protocol.identity import Identity, PeerId, PublicKey
from protocol.wire import records_pb2 as wire


def delegate(
    root: Identity,
    *,
    run_id: bytes,
    purpose: wire.KeyPurpose,
    public_key: bytes,
    serial: int,
    not_before_s: int,
    not_after_s: int,
) -> wire.Envelope:
    """Sign a Delegation with the root key."""
    return seal(
        wire.Delegation(
            run_id=run_id,
            purpose=purpose,
            public_key=public_key,
            serial=serial,
            not_before_s=not_before_s,
            not_after_s=not_after_s,
        ),
        root,
    )


@dataclass
class TrustStore:
    """The delegations of one run that were signed by its root key."""

    run_id: bytes
    root: PeerId
    _delegations: dict[int, Signed[wire.Delegation]] = field(default_factory=dict)
    _revoked: set[int] = field(default_factory=set)

    def add(
        self, delegations: Iterable[wire.Envelope], revocations: Iterable[wire.Envelope] = ()
    ) -> None:
        """Verify and keep records; one that is not the root's raises and nothing is kept of it.

        Raises:
            BadSignature: signed by another key, or for another run.
        """
        for envelope in delegations:
            signed = open_envelope(envelope, wire.Delegation, signer=self.root)
            self._check_run(signed.record.run_id)
            self._delegations[signed.record.serial] = signed
        for envelope in revocations:
            revoked = open_envelope(envelope, wire.Revocation, signer=self.root)
            self._check_run(revoked.record.run_id)
            self._revoked.add(revoked.record.serial)

    def require(self, purpose: wire.KeyPurpose, public_key: bytes, now_s: float) -> None:
        """Insist that the root key delegated ``purpose`` to this key, now.

        Raises:
            BadSignature: it did not, or no longer does.
        """
        problem = "the run's root key never delegated this to it"
        for serial, signed in self._delegations.items():
            record = signed.record
            if record.purpose != purpose or record.public_key != public_key:
                continue
            if serial in self._revoked:
                problem = "the delegation was revoked"
            elif now_s < record.not_before_s:
                problem = "the delegation is not valid yet: check this machine's clock"
            elif now_s > record.not_after_s:
                problem = "the delegation has expired: if this clock is right, tell the organiser"
            else:
                return
        name = wire.KeyPurpose.Name(purpose).removeprefix("KEY_PURPOSE_").lower()
        raise BadSignature(f"not a {name} key of this run: {problem}")

    def is_revoked(self, serial: int) -> bool:
        """Whether the root key took a delegation back."""
        return serial in self._revoked

    def require_signer(self, purpose: wire.KeyPurpose, signer: PeerId, now_s: float) -> None:
        """:meth:`require` for an Ed25519 key given by its PeerID."""
        self.require(purpose, PublicKey.from_peer_id(signer).raw, now_s)

    def delegated(self, purpose: wire.KeyPurpose) -> list[bytes]:
        """Public keys ever delegated a purpose; :meth:`require` says whether one still holds."""
        records = [signed.record for signed in self._delegations.values()]
        return [record.public_key for record in records if record.purpose == purpose]

    def _check_run(self, run_id: bytes) -> None:
        if run_id != self.run_id:
            raise BadSignature("a delegation for another run")
