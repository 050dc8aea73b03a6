"""Pools of sponsored devices: a donor key that the organiser holds, and its word for each device.

A pool's key lies in the run's folder of keys. It signs nothing but that a device works for it, in
the form that ``barnraise worker delegation`` reads, and what a donor may sign.
"""

from __future__ import annotations

from pathlib import Path

from protocol.device_line import device_line
from protocol.envelope import seal
from protocol.errors import UsageError
from protocol.identity import Identity, PeerId, PublicKey
from protocol.wire import records_pb2 as wire

POOL_KEYS = "pool-*.key"
_NAME_CHARS = 12


def pool_key_file(keys: Path, pool: PeerId) -> Path:
    """Where the key of a pool lies."""
    return keys / f"pool-{pool[-_NAME_CHARS:]}.key"


def new_pool_key(keys: Path) -> Identity:
    """Make and store a pool's key."""
    key = Identity.generate()
    key.save(pool_key_file(keys, key.peer_id))
    return key


def load_pool_key(keys: Path, pool: PeerId) -> Identity:
    """The key of a pool that was made here.

    Raises:
        UsageError: it is not in the folder.
    """
    path = pool_key_file(keys, pool)
    if not path.exists():
        raise UsageError(
            f"{path} is missing: the key of the pool {pool[:64]} is not in this folder"
        )
    key = Identity.load(path)
    if key.peer_id != pool:
        raise UsageError(f"{path} is the key of {key.peer_id}, not of {pool[:64]}")
    return key


def vouch(pool: Identity, worker: PublicKey, not_after_s: int) -> str:
    """The line that makes a device work for a pool; it is good for that device alone."""
    record = wire.DeviceDelegation(
        donor=pool.peer_id, worker=worker.peer_id, not_after_s=not_after_s
    )
    return device_line(seal(record, pool))
