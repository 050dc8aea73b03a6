"""The donor's folder: its key, keys that it had, and what it signed. One folder serves one run.

Invariants:

* A key is whole or not there, and none is ever deleted or written over: a key that was changed for
  another one lies in ``retired/``, because devices may still work under its name.
* At every moment ``donor.key`` is a key by which the run knows the donor, or will on being told.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import UsageError
from protocol.identity import Identity, PeerId

HOME_VARIABLE = "BARNRAISE_DONOR_HOME"


@dataclass(frozen=True)
class DonorHome:
    """The folder of one donor, mode 0700."""

    path: Path

    @property
    def key(self) -> Path:
        return self.path / "donor.key"

    @property
    def next_key(self) -> Path:
        """The key that a rotation under way changes to."""
        return self.path / "donor-next.key"

    @property
    def retired(self) -> Path:
        return self.path / "retired"

    @property
    def journal(self) -> Path:
        return self.path / "acts.db"

    @property
    def lock(self) -> Path:
        return self.path / "donor.lock"

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            UsageError: it cannot be made.
        """
        try:
            for folder in (self.path, self.retired):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make the folder {error.filename}: {error.strerror}; give another with "
                "--home"
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and hold it: at most one command signs there at a time.

        Raises:
            UsageError: another one does.
        """
        self.prepare()
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"another 'barnraise donor' command is at work in {self.path}: try again when "
                    "it has ended"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def load_key(self) -> Identity | None:
        """The donor's key; None where none was made.

        Raises:
            UsageError: the file is damaged.
        """
        return Identity.load(self.key) if self.key.exists() else None

    def make_key(self, path: Path) -> Identity:
        """The key in ``path``, made if there is none; a kill leaves the whole key or nothing."""
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            unfinished.unlink(missing_ok=True)
            Identity.generate().save(unfinished)
            unfinished.replace(path)
            _sync_folder(path.parent)
        return Identity.load(path)

    def key_of(self, key_id: PeerId) -> Identity | None:
        """The key of this folder that has this name, changed ones included."""
        for path in (self.key, self.next_key, self.retired / f"{key_id}.key"):
            if path.exists() and (identity := Identity.load(path)).peer_id == key_id:
                return identity
        return None

    def use_next_key(self) -> None:
        """The last step of a rotation: the next key is the key, the old one is kept.

        A kill between any two of these steps leaves both keys, and the step can be made again.
        """
        old = Identity.load(self.key)
        kept = self.retired / f"{old.peer_id}.key"
        if not kept.exists():
            kept.hardlink_to(self.key)
            _sync_folder(self.retired)
        self.next_key.replace(self.key)
        _sync_folder(self.path)


def resolve_donor_home(option: Path | None, environment: Mapping[str, str]) -> DonorHome:
    """``--home``, else ``BARNRAISE_DONOR_HOME``, else the platform's folder for user data."""
    if option is not None:
        return DonorHome(option.absolute())
    if environment.get(HOME_VARIABLE):
        return DonorHome(Path(environment[HOME_VARIABLE]).absolute())
    import platformdirs

    return DonorHome(Path(platformdirs.user_data_dir("barnraise")) / "donor")


def _sync_folder(folder: Path) -> None:
    """See that a name in a folder outlasts a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
