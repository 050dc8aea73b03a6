"""Who is behind the keys: a person is a set of donors' keys, shown under one of them.

Invariants:

* Every key belongs to exactly one person. A key that joined another is *given up*: it never
  stands for a person again, and gets no new device, pledge, gift or team. So there is no cycle.
* Joining moves no credit. Accounts, audits and convictions stay with the key that they are of; a
  person has what its keys have together.
* A key that is blocked or stands convicted joins none and takes none: what was proven against a
  key is not hidden behind another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ledger.audits import Audits
from ledger.crowd_records import KeyRotationLeaf, MergeLeaf
from ledger.tally import Accounts
from protocol.errors import BadRecord
from protocol.identity import PeerId


@dataclass(frozen=True)
class Join:
    """One key's account went to another key."""

    leaf_index: int
    leaf: KeyRotationLeaf | MergeLeaf
    old: PeerId
    new: PeerId


@dataclass
class People:
    """Which keys are whose, so far."""

    accounts: Accounts
    joins: list[Join] = field(default_factory=list)  # as they came
    _owner: dict[PeerId, PeerId] = field(default_factory=dict)  # of keys that were given up
    _keys: dict[PeerId, tuple[PeerId, ...]] = field(default_factory=dict)  # of who has several

    def owner_of(self, key: PeerId) -> PeerId:
        """The key under which the person of ``key`` is shown; itself where nothing joined it."""
        return self._owner.get(key, key)

    def keys_of(self, owner: PeerId) -> tuple[PeerId, ...]:
        """All keys of the person shown as ``owner``, that one first; of a given-up key: none."""
        if owner in self._owner:
            return ()
        return self._keys.get(owner, (owner,))

    def is_given_up(self, key: PeerId) -> bool:
        return key in self._owner

    def is_known(self, key: PeerId) -> bool:
        """Whether the record knows this donor: it has, or had, an account."""
        return key in self.accounts.donors or key in self._keys or key in self._owner

    def owners(self) -> Iterator[PeerId]:
        """Everybody, once each, in the order in which their keys came."""
        for key in self.accounts.donors:
            if key not in self._owner:
                yield key
        for key in self._keys:
            if key not in self.accounts.donors:
                yield key  # a new key that has no device of its own yet

    def check_acts(self, key: PeerId) -> None:
        """Insist that somebody stands behind a key.

        Raises:
            BadRecord: it was never enrolled, or was given up.
        """
        if key in self._owner:
            raise BadRecord(f"donor {key} was given up for {self._owner[key]}")
        if not self.is_known(key):
            raise BadRecord(f"donor {key} is not enrolled")

    def check_join(self, leaf: KeyRotationLeaf | MergeLeaf, audits: Audits) -> None:
        """Insist that one key's account may go to another.

        Raises:
            BadRecord: it may not.
        """
        old, new = ends_of(leaf)
        if old == new:
            raise BadRecord("joins a key to itself")
        self.check_acts(old)
        if isinstance(leaf, KeyRotationLeaf):
            if self.is_known(new):
                raise BadRecord(f"donor {new} has an account: merge them instead")
        else:
            self.check_acts(new)
        for key in (*self.keys_of(old), *self.keys_of(new)):
            donor = self.accounts.donors.get(key)
            if key in audits.blocked or (donor is not None and donor.convictions):
                raise BadRecord(f"donor {key} is blocked or stands convicted: its keys stay apart")

    def take_join(self, index: int, leaf: KeyRotationLeaf | MergeLeaf) -> Join:
        """Count two keys as one person's; :meth:`check_join` has found it right."""
        old, new = ends_of(leaf)
        moved = self.keys_of(old)
        self._keys[new] = self.keys_of(new) + moved
        self._keys.pop(old, None)
        for key in moved:
            self._owner[key] = new
        join = Join(index, leaf, old, new)
        self.joins.append(join)
        self.accounts.touched.update((old, new))
        return join


def ends_of(leaf: KeyRotationLeaf | MergeLeaf) -> tuple[PeerId, PeerId]:
    """The key that is given up, and the one that takes its account."""
    return leaf.donor, leaf.new if isinstance(leaf, KeyRotationLeaf) else leaf.into
