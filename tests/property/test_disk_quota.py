"""The cache on a real folder does what a naive model of it does, whatever the order of events."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.config import Home
from worker.disk import DiskQuota, NoRoom
from worker.last_uses import LastUses
from worker.limits import Limits
from worker.shards import BlobStore

MIB = 1 << 20
UNIT = MIB // 8
"""Sizes are whole units; what the list of uses takes is less than one."""

NAMES = st.integers(0, 9)
SIZES = st.integers(1, 9)


def data(name: int, units: int) -> bytes:
    return bytes([name]) * (units * UNIT - 4096)


class Cache(RuleBasedStateMachine):
    """``model``: name -> units, the least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Home(Path(tempfile.mkdtemp()))
        self.home.prepare()
        self.mib = 2
        self.model: dict[int, int] = {}
        self.digests: dict[int, bytes] = {}
        self.pinned: set[int] = set()
        self.recent: set[int] = set()
        self.open()

    def open(self) -> None:
        limits = Limits(disk_mib=self.mib, free_disk_mib=0)
        self.quota = DiskQuota(self.home.path, limits)
        uses = LastUses(self.home.last_uses)
        self.store = BlobStore(self.home.blobs, self.home.scratch, self.quota, uses)

    def teardown(self) -> None:
        shutil.rmtree(self.home.path)

    @property
    def units(self) -> int:
        return self.mib * 8

    def make_room(self, units: int, *, guess: bool) -> bool:
        """The model's: whether there is room now."""
        spare = [
            name
            for name in self.model
            if name not in self.pinned and not (guess and name in self.recent)
        ]
        over = sum(self.model.values()) + units - self.units
        if over > sum(self.model[name] for name in spare):
            return False
        for name in spare:
            if over <= 0:
                break
            over -= self.model.pop(name)
            self.recent.discard(name)
        return True

    def used(self, name: int, units: int) -> None:
        self.model.pop(name, None)
        self.model[name] = units
        self.recent.add(name)

    @rule(name=NAMES, units=SIZES)
    def put(self, name: int, units: int) -> None:
        if name in self.model:
            return
        fits = self.make_room(units, guess=False)
        self.digests[name] = hashlib.sha256(data(name, units)).digest()
        try:
            self.store.put(data(name, units))
        except NoRoom:
            assert not fits
            return
        assert fits
        self.used(name, units)

    @rule(name=NAMES, units=SIZES)
    def guess(self, name: int, units: int) -> None:
        if name in self.model:
            return
        fits = self.make_room(units, guess=True)
        self.digests[name] = hashlib.sha256(data(name, units)).digest()
        temporary = self.home.scratch / "guess.new"
        size = len(data(name, units))
        try:
            self.store.reserve(temporary, size, "a guess", guess=True)
        except NoRoom:
            assert not fits
            return
        assert fits
        temporary.write_bytes(data(name, units))
        self.store.install(temporary, self.digests[name])
        self.used(name, units)

    @rule(name=NAMES)
    def find(self, name: int) -> None:
        found = self.store.find(self.digests[name]) if name in self.digests else None
        assert (found is not None) == (name in self.model)
        if found is not None:
            self.used(name, self.model[name])

    @rule(name=NAMES)
    def serve(self, name: int) -> None:
        """A peer reads; that is no use of ours."""
        if name in self.digests and self.store.known(self.digests[name]) is not None:
            assert name in self.model

    @rule(names=st.sets(NAMES, max_size=3))
    def begin(self, names: set[int]) -> None:
        self.pinned = {name for name in names if name in self.model}
        self.store.pin("unit", [self.digests[name] for name in self.pinned])
        self.store.spare_recent()
        self.recent = set()
        self.tidy()  # as the worker does every few seconds: what was over the limit for its use

    @rule(name=NAMES)
    def drop(self, name: int) -> None:
        if name in self.digests:
            self.store.drop([self.digests[name]])
            self.model.pop(name, None)
            self.pinned.discard(name)
            self.recent.discard(name)

    @rule(mib=st.integers(1, 3))
    def change(self, mib: int) -> None:
        self.mib = mib
        self.quota.change(Limits(disk_mib=mib, free_disk_mib=0))
        self.tidy()

    def tidy(self) -> None:
        self.quota.tidy()
        spare = [name for name in self.model if name not in self.pinned]
        while spare and sum(self.model.values()) > self.units:
            del self.model[spare[0]]
            self.recent.discard(spare.pop(0))

    @precondition(lambda self: not self.pinned)
    @rule()
    def restart(self) -> None:
        self.open()
        self.store.spare_recent()
        self.recent = set()

    @invariant()
    def files_are_those_of_the_model(self) -> None:
        found = {path.stem for path in self.home.blobs.iterdir()}
        assert found == {self.digests[name].hex() for name in self.model}

    @invariant()
    def the_limit_holds_but_for_what_is_pinned(self) -> None:
        pinned = sum(self.model[name] for name in self.pinned)
        taken = sum(path.stat().st_size for path in self.home.path.rglob("*") if path.is_file())
        assert taken <= max(self.units, pinned) * UNIT


Cache.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCache = Cache.TestCase
