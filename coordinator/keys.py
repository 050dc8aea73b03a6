"""The organiser's keys: one offline root, and the keys it delegates for a while.

Invariants:

* The root key signs delegations and revocations and nothing else; serving needs only the keys
  that it delegated, so ``keys/root.key`` may be moved to another machine after ``init``.
* Private keys are files of mode 0600 in a directory of mode 0700, never overwritten.
* A ring that loads is one that workers will believe: each delegated key is checked against the
  root's delegations, for now, before the server starts.
* Keys of the campaign and of a treasurer are made when they are first needed. Serving needs
  neither, and a treasurer's may live on another machine.
* ``draw.seed`` is made once for a run and never replaced: the public record holds the tip of its
  chain, and no other seed leads there.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from coordinator.delegating import (
    CLOCK_SKEW_S,
    delegate_key,
    new_serial,
    opened,
    revoked_serials,
    window,
)
from coordinator.key_files import (
    CROWD_KEYS,
    TLS_CERTIFICATE,
    TLS_KEY,
    check_tls,
    crowd_key,
    envelope_to_json,
    locked,
    read_delegations,
    read_file,
    read_seed,
    refuse_strangers,
    write_private,
)
from protocol.certificate import (
    TlsCredentials,
    delegation_in,
    issue_certificate,
)
from protocol.draw import SEED_BYTES, DrawChain
from protocol.envelope import seal
from protocol.errors import BadSignature, UsageError
from protocol.identity import Identity, PeerId, PublicKey
from protocol.link import JoinLink
from protocol.trust import TrustStore
from protocol.wire import records_pb2 as wire

ROOT_KEY, ROUND_KEY, LOG_KEY, ANCHOR_KEY = "root.key", "round.key", "log.key", "anchor.key"
DELEGATIONS = "delegations.json"
DRAW_SEED = "draw.seed"
PRIVATE_FILES = (
    *(ROOT_KEY, ROUND_KEY, LOG_KEY, ANCHOR_KEY, TLS_KEY, TLS_CERTIFICATE),
    *(DELEGATIONS, DRAW_SEED),
    *CROWD_KEYS.values(),
)
"""Everything in the folder of keys."""


@dataclass(frozen=True)
class KeyRing:
    """Every key that serving a run needs, and the proof that the root delegated it."""

    run_id: bytes
    root_id: PeerId
    round: Identity
    log: Identity
    tls: TlsCredentials
    delegations: tuple[wire.Envelope, ...]
    draw_seed: bytes = field(repr=False)
    revocations: tuple[wire.Envelope, ...] = ()
    crowd: Mapping[wire.KeyPurpose, Identity] = field(default_factory=dict)  # of CROWD_KEYS
    anchor_id: PeerId | None = None  # the run's own anchor, made by ``init``
    root: Identity | None = None  # offline: absent unless it lies in the folder
    on_disk: tuple[wire.Envelope, ...] = ()  # what the root signed, as the folder had it last

    @cached_property
    def draws(self) -> DrawChain:
        """The chain whose tip the run's first leaf publishes; hashed once, in 0.2 s."""
        return DrawChain.of(self.draw_seed)

    @classmethod
    def create(
        cls, directory: Path, root: Identity, *, run_id: bytes, now_s: int, valid_s: int
    ) -> KeyRing:
        """Make and store the delegated keys of a new run.

        Args:
            directory: where the key files go; made with mode 0700.
            root: the run's root key; saved there too.
            run_id: 32 bytes.
            now_s: POSIX time.
            valid_s: how long the delegations hold.

        Raises:
            UsageError: there are keys in the directory already.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
        identities = {name: Identity.generate() for name in (ROUND_KEY, LOG_KEY, ANCHOR_KEY)}
        for name, identity in [(ROOT_KEY, root), *identities.items()]:
            identity.save(directory / name)
        seed = secrets.token_bytes(SEED_BYTES)
        write_private(directory, {DRAW_SEED: seed})
        ring = cls(
            run_id=run_id,
            root_id=root.peer_id,
            round=identities[ROUND_KEY],
            log=identities[LOG_KEY],
            tls=TlsCredentials(b"", b""),
            delegations=(),
            draw_seed=seed,
            anchor_id=identities[ANCHOR_KEY].peer_id,
            root=root,
        )
        return ring.renewed(directory, now_s=now_s, valid_s=valid_s)

    def renewed(self, directory: Path, *, now_s: int, valid_s: int) -> KeyRing:
        """Delegate the same keys again, and a new TLS key; store the result.

        Old delegations are kept as long as they hold: records under them stay valid.

        Raises:
            UsageError: the root key is not in the folder, or is another run's.
        """
        root = self._root_for("renewing", directory)
        valid = window(now_s, valid_s)
        self._refuse_revoked()
        tls = issue_certificate(root, run_id=self.run_id, serial=new_serial(), **valid)
        still = {p: key for p, key in self.crowd.items() if not self._is_revoked(key)}
        keys = {wire.KEY_PURPOSE_ROUND: self.round, wire.KEY_PURPOSE_LOG: self.log, **still}
        added = tuple(
            delegate_key(root, self.run_id, purpose, key.public, **valid)
            for purpose, key in keys.items()
        )
        kept = self._lasting(now_s)
        ring = replace(self, tls=tls, delegations=kept + added)
        return ring._store(directory)

    def rotated(
        self,
        directory: Path,
        purposes: Collection[wire.KeyPurpose],
        *,
        now_s: int,
        valid_s: int,
        since_s: int,
        why_revoked: str | None = None,
    ) -> KeyRing:
        """Make new keys for these purposes; store them with the root's delegations.

        Old keys sign nothing from the next start on. What they signed stays valid as long as their
        delegations hold, unless those are revoked.

        Args:
            directory: of the keys.
            purposes: of ROUND, LOG and TLS, and of those in ``crowd``.
            now_s: POSIX time.
            valid_s: how long the delegations hold.
            since_s: of the record's first leaf: a log key vouches for all leaves under its heads.
            why_revoked: revoke the old keys' delegations for this reason.

        Raises:
            UsageError: the root key is not in the folder, or is another run's.
        """
        root = self._root_for("rotating", directory)
        valid = window(now_s, valid_s)
        ring, added = self, list[wire.Envelope]()
        if wire.KEY_PURPOSE_ROUND in purposes:
            ring = replace(ring, round=Identity.generate())
            added.append(
                delegate_key(root, self.run_id, wire.KEY_PURPOSE_ROUND, ring.round.public, **valid)
            )
        if wire.KEY_PURPOSE_LOG in purposes:
            ring = replace(ring, log=Identity.generate())
            whole = {**valid, "not_before_s": min(valid["not_before_s"], since_s - CLOCK_SKEW_S)}
            added.append(
                delegate_key(root, self.run_id, wire.KEY_PURPOSE_LOG, ring.log.public, **whole)
            )
        if wire.KEY_PURPOSE_TLS in purposes:
            tls = issue_certificate(root, run_id=self.run_id, serial=new_serial(), **valid)
            ring = replace(ring, tls=tls)
        for purpose in self.crowd.keys() & set(purposes):
            fresh = Identity.generate()
            ring = replace(ring, crowd={**ring.crowd, purpose: fresh})
            added.append(delegate_key(root, self.run_id, purpose, fresh.public, **valid))
        kept = self._lasting(now_s)
        ring = replace(ring, delegations=kept + tuple(added))
        ring = ring._store(directory)
        if why_revoked is not None:
            # Last: a process that is killed before leaves keys that can still be used.
            serials = self._serials(purposes)
            revoked = (self._revocation(serial, why_revoked, root) for serial in serials)
            ring = replace(ring, revocations=(*ring.revocations, *revoked))
            ring = ring._store(directory)
        return ring

    def _serials(self, purposes: Collection[wire.KeyPurpose]) -> list[int]:
        """Of every delegation of the present keys for these purposes."""
        tls = delegation_in(self.tls.certificate_pem)
        records = [*opened(self.delegations), tls]
        present = {
            wire.KEY_PURPOSE_ROUND: self.round.public.raw,
            wire.KEY_PURPOSE_LOG: self.log.public.raw,
            wire.KEY_PURPOSE_TLS: tls.public_key,
            **{purpose: key.public.raw for purpose, key in self.crowd.items()},
        }
        return [
            record.serial
            for record in records
            if record.purpose in purposes and record.public_key == present.get(record.purpose)
        ]

    @classmethod
    def load(
        cls, directory: Path, *, run_id: bytes, root_id: PeerId, now_s: float, checked: bool = True
    ) -> KeyRing:
        """Read a run's keys and, unless they are to be renewed, check that workers believe them.

        Raises:
            UsageError: a file is missing or damaged, or a delegation has expired.
        """
        delegations, revocations = read_delegations(directory / DELEGATIONS)
        anchor, root = directory / ANCHOR_KEY, directory / ROOT_KEY
        ring = cls(
            run_id=run_id,
            root_id=root_id,
            round=Identity.load(directory / ROUND_KEY),
            log=Identity.load(directory / LOG_KEY),
            tls=TlsCredentials(
                read_file(directory / TLS_CERTIFICATE), read_file(directory / TLS_KEY)
            ),
            delegations=delegations,
            draw_seed=read_seed(directory / DRAW_SEED),
            revocations=revocations,
            crowd={p: key for p in CROWD_KEYS if (key := crowd_key(directory, p)) is not None},
            anchor_id=Identity.load(anchor).peer_id if anchor.exists() else None,
            root=Identity.load(root) if root.exists() else None,
            on_disk=(*delegations, *revocations),
        )
        if checked:
            ring.check(now_s)
        return ring

    def trust(self) -> TrustStore:
        """The store that a worker builds from the same records.

        Raises:
            BadSignature: a record was not signed by the run's root key.
        """
        store = TrustStore(self.run_id, self.root_id)
        store.add(self.delegations, self.revocations)
        return store

    def check(self, now_s: float) -> None:
        """Insist on what a worker will insist on.

        Raises:
            UsageError: a key is not, or no longer, delegated by the run's root.
        """
        try:
            store = self.trust()
            store.require_signer(wire.KEY_PURPOSE_ROUND, self.round.peer_id, now_s)
            store.require_signer(wire.KEY_PURPOSE_LOG, self.log.peer_id, now_s)
            check_tls(self.tls, JoinLink("localhost", 1, self.run_id, self.root_id), now_s)
        except BadSignature as error:
            raise UsageError(
                f"the run's keys cannot be used: {error}. Renew them with "
                "'barnraise coordinator renew-keys' while root.key is in the keys folder"
            ) from error
        self._check_root(Path("keys"))

    def _check_root(self, directory: Path) -> None:
        if self.root is not None and self.root.peer_id != self.root_id:
            raise UsageError(
                f"{directory / ROOT_KEY} is not the root key of this run: put the one there that "
                f"'init' made, with the fingerprint {self.root_id}"
            )

    def appointed(
        self,
        directory: Path,
        purpose: wire.KeyPurpose,
        key: Identity | PublicKey,
        *,
        now_s: int,
        valid_s: int,
    ) -> KeyRing:
        """Delegate a purpose of ``CROWD_KEYS`` to a key; one that is given whole is stored, too.

        Raises:
            UsageError: the root key is not in the folder, or is another run's; or the key was
                revoked.
        """
        root = self._root_for("appointing a key", directory)
        public = key.public if isinstance(key, Identity) else key
        if self._is_revoked(key):
            raise UsageError(
                f"{public.peer_id} was revoked: it is never trusted again, make another"
            )
        valid = window(now_s, valid_s)
        added = delegate_key(root, self.run_id, purpose, public, **valid)
        ring = replace(self, delegations=(*self.delegations, added))
        if isinstance(key, Identity):
            ring = replace(ring, crowd={**self.crowd, purpose: key})
        return ring._store(directory)

    def dismissed(self, directory: Path, key: PublicKey, reason: str) -> KeyRing:
        """Revoke every delegation of a key of ``CROWD_KEYS``.

        Raises:
            UsageError: the root key is not in the folder, or is another run's; or the key has no
                delegation.
        """
        revoked = revoked_serials(self.revocations)
        serials = [
            record.serial
            for record in opened(self.delegations)
            if record.public_key == key.raw
            and record.purpose in CROWD_KEYS
            and record.serial not in revoked
        ]
        if not serials:
            raise UsageError(f"{key.peer_id} was not appointed, or is dismissed already")
        root = self._root_for("dismissing a key", directory)
        added = (self._revocation(serial, reason, root) for serial in serials)
        ring = replace(self, revocations=(*self.revocations, *added))
        return ring._store(directory)

    def revoke(self, directory: Path, serial: int, reason: str) -> KeyRing:
        """Sign and store the revocation of one delegation.

        Raises:
            UsageError: the root key is not in the folder, or is another run's.
        """
        root = self._root_for("revoking", directory)
        revocation = self._revocation(serial, reason, root)
        ring = replace(self, revocations=(*self.revocations, revocation))
        return ring._store(directory)

    def told(
        self,
        directory: Path,
        delegations: Iterable[wire.Envelope],
        revocations: Iterable[wire.Envelope],
    ) -> KeyRing:
        """Keep what the root key signed besides, as others have it."""
        ring = replace(
            self,
            delegations=(*self.delegations, *(e for e in delegations if e not in self.delegations)),
            revocations=(*self.revocations, *(e for e in revocations if e not in self.revocations)),
        )
        return ring._store(directory)

    def _revocation(self, serial: int, reason: str, root: Identity) -> wire.Envelope:
        return seal(wire.Revocation(run_id=self.run_id, serial=serial, reason=reason), root)

    def _root_for(self, doing: str, directory: Path) -> Identity:
        if self.root is None:
            raise UsageError(
                f"{doing} needs the root key: put it at {directory / ROOT_KEY} for a moment"
            )
        self._check_root(directory)
        return self.root

    def _refuse_revoked(self) -> None:
        if self._is_revoked(self.round) or self._is_revoked(self.log):
            raise UsageError(
                "a key of this run was revoked: make new ones with "
                "'barnraise coordinator rotate-keys'"
            )

    def _is_revoked(self, key: Identity | PublicKey) -> bool:
        """A key that was revoked is never delegated again: somebody else may have it."""
        public = key.public if isinstance(key, Identity) else key
        revoked = revoked_serials(self.revocations)
        records = opened(self.delegations)
        return any(r.serial in revoked and r.public_key == public.raw for r in records)

    def _lasting(self, now_s: int) -> tuple[wire.Envelope, ...]:
        """Delegations that still hold: records under them stay valid. And those that were revoked:
        without them nobody would know which keys are not to be trusted again.
        """
        revoked = revoked_serials(self.revocations)
        records = zip(self.delegations, opened(self.delegations), strict=True)
        return tuple(e for e, r in records if r.not_after_s > now_s or r.serial in revoked)

    def _store(self, directory: Path) -> KeyRing:
        """Write the ring's files.

        Raises:
            UsageError: another command stored something since this ring was read.
        """
        document = {
            "delegations": [envelope_to_json(e) for e in self.delegations],
            "revocations": [envelope_to_json(e) for e in self.revocations],
        }
        with locked(directory):
            refuse_strangers(directory / DELEGATIONS, self.on_disk)
            # Delegations come first: they are of old keys and new ones, whichever are there at a
            # kill.
            write_private(
                directory,
                {
                    DELEGATIONS: json.dumps(document, indent=1).encode(),
                    ROUND_KEY: self.round.libp2p_bytes(),
                    LOG_KEY: self.log.libp2p_bytes(),
                    **{CROWD_KEYS[p]: key.libp2p_bytes() for p, key in self.crowd.items()},
                    TLS_KEY: self.tls.private_key_pem,
                    TLS_CERTIFICATE: self.tls.certificate_pem,
                },
            )
        return replace(self, on_disk=(*self.delegations, *self.revocations))
