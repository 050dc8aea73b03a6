"""What a backup is: a list of files with their digests, and where their bytes lie.

Two forms hold the same list: a *folder*, where each backup is ``backups/<time>.json`` and all share
``blobs/<SHA-256>``, so that a further one costs only what is new; and a single ``.tar`` file.

Invariants:

* A backup that can be seen is whole: its list is written last, and renamed when all else is safe.
* Nothing in a backup is believed: paths are of a fixed set, links and other special files are
  refused, every size is bounded by the list, every byte is hashed.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.errors import BadDigest, UsageError
from protocol.manifest import explain_validation

LIST_NAME = "backup.json"
BLOBS, BACKUPS = "blobs", "backups"
COPY_BYTES = 1 << 20
MAX_LIST_BYTES = 32 << 20
_MAX_FILES = 200_000
_HEX = "[0-9a-f]{64}"
_KEYS = (
    r"(?:(?:round|log|anchor|root|tls|campaign|treasurer|pool-[0-9A-Za-z]{12})\.key"
    r"|tls\.crt|delegations\.json|draw\.seed)"
)
_PATH = re.compile(
    r"run\.toml|manifest\.json|join-link\.txt|database\.(?:sqlite|pgdump)"
    rf"|keys/{_KEYS}"
    rf"|data/(?:dataset\.json|tokenizer\.json|shards/{_HEX}\.bin)"
    rf"|store/(?:(?:weights|momentum)-{_HEX}\.safetensors|means/{_HEX}\.mean"
    rf"|replays/[0-9a-f]{{1,64}}-{_HEX}\.update)"
)

Progress = Callable[[int, int], None]
"""``(done, in all)``"""


def _known_path(value: str) -> str:
    if not _PATH.fullmatch(value):
        raise ValueError(f"not the path of a file that a backup holds: {value[:80]!r}")
    return value


class FileEntry(BaseModel):
    """One file of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: Annotated[str, AfterValidator(_known_path)]
    sha256: Annotated[str, Field(pattern=f"^{_HEX}$")]
    bytes: Annotated[int, Field(ge=0, lt=1 << 50)]


class BackupList(BaseModel):
    """What a backup holds, and what is good to know before it is restored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["barnraise-backup/1"] = "barnraise-backup/1"
    made_at_s: Annotated[float, Field(ge=0, lt=1e11)]
    run_id: Annotated[str, Field(pattern=f"^{_HEX}$")]
    name: Annotated[str, Field(max_length=1000)]
    root: Annotated[str, Field(max_length=64)]
    round: Annotated[int, Field(ge=0, lt=1 << 40)]
    settled_rounds: Annotated[int, Field(ge=0, lt=1 << 40)]
    log_size: Annotated[int, Field(ge=0, lt=1 << 53)]
    lost: Annotated[tuple[str, ...], Field(max_length=_MAX_FILES)] = ()  # named, but not there
    files: Annotated[tuple[FileEntry, ...], Field(max_length=_MAX_FILES)]

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len({entry.path for entry in self.files}) != len(self.files):
            raise ValueError("a path is listed twice")
        return self

    @property
    def total_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)

    @property
    def has_root_key(self) -> bool:
        return any(entry.path == "keys/root.key" for entry in self.files)

    @property
    def has_data(self) -> bool:
        return any(entry.path.startswith("data/shards/") for entry in self.files)

    def dump(self) -> bytes:
        return self.model_dump_json(indent=1).encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> BackupList:
        """Read a list from untrusted bytes.

        Raises:
            UsageError: it is not one, or not of this version.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise UsageError(
                f"{explain_validation(where, error)}\nthis is not a whole backup of a run, or it "
                "was made by another version: use another one"
            ) from error


class Backup:
    """A backup that can be read."""

    def __init__(self, where: Path, files: BackupList, opener: Callable[[FileEntry], BinaryIO]):
        self.where = where
        self.list = files
        self._open = opener

    def copy(self, entry: FileEntry, target: BinaryIO | None) -> None:
        """Read one file to its end, and insist on its size and digest.

        Args:
            entry: of the list.
            target: where its bytes go; None only checks them.

        Raises:
            BadDigest: it is not the file that the list names.
        """
        digest, left = hashlib.sha256(), entry.bytes
        with self._open(entry) as file:
            while chunk := file.read(min(COPY_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                digest.update(chunk)
                if target is not None:
                    target.write(chunk)
        if left or digest.hexdigest() != entry.sha256:
            raise BadDigest(f"{self.where} is damaged: {entry.path} is not what was backed up")

    def verify(self, progress: Progress = lambda done, total: None) -> None:
        """Check every byte.

        Raises:
            BadDigest: naming the first file that is damaged.
        """
        done = 0
        for entry in self.list.files:
            self.copy(entry, None)
            done += entry.bytes
            progress(done, self.list.total_bytes)


@contextmanager
def open_backup(path: Path) -> Iterator[Backup]:
    """A backup, by a ``.tar`` file, a folder (its newest one), or one list of a folder.

    Raises:
        UsageError: there is none, or it is not whole.
    """
    with ExitStack() as stack:
        if path.is_dir():
            names = list_backups(path)
            if not names:
                raise UsageError(
                    f"{path} holds no backup: 'barnraise coordinator backup' makes one"
                )
            yield _of_folder(path, names[-1])
        elif path.suffix == ".json":
            yield _of_folder(path.parent.parent, path.name)
        else:
            yield _of_archive(path, stack)


def list_backups(folder: Path) -> list[str]:
    """Names of a folder's backups, the oldest first."""
    try:
        names = [path.name for path in (folder / BACKUPS).iterdir()]
    except OSError:
        return []
    return sorted(name for name in names if name.endswith(".json") and not name.startswith("."))


def read_list(path: Path) -> BackupList:
    """The list of a backup in a folder; raises UsageError when it cannot be used."""
    try:
        with open_plain(path) as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the backup {path}: {error.strerror}") from error
    if len(data) > MAX_LIST_BYTES:
        raise UsageError(f"{path} is too large to be the list of a backup")
    return BackupList.parse(data, str(path))


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file, and nothing else: no link, no pipe.

    Raises:
        OSError: it is not there, or something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a plain file")
    return os.fdopen(descriptor, "rb")


def _of_folder(folder: Path, name: str) -> Backup:
    def opener(entry: FileEntry) -> BinaryIO:
        try:
            return open_plain(folder / BLOBS / entry.sha256)
        except OSError as error:
            raise BadDigest(
                f"{folder} is damaged: {entry.path} cannot be read ({error.strerror})"
            ) from error

    return Backup(folder / BACKUPS / name, read_list(folder / BACKUPS / name), opener)


@dataclass(frozen=True)
class _Members:
    archive: tarfile.TarFile
    by_name: dict[str, tarfile.TarInfo]


def _of_archive(path: Path, stack: ExitStack) -> Backup:
    members = _read_archive(path, stack)
    head = members.by_name.get(LIST_NAME)
    if head is None:
        raise UsageError(f"{path} is no backup, or its end is missing: it has no {LIST_NAME}")
    if head.size > MAX_LIST_BYTES:
        raise UsageError(f"{path}: its {LIST_NAME} is too large")
    files = BackupList.parse(_member(members.archive, head).read(), f"{path}: {LIST_NAME}")
    strangers = members.by_name.keys() - {entry.path for entry in files.files} - {LIST_NAME}
    if strangers:
        raise UsageError(f"{path} holds {min(strangers)[:80]!r}, which its list does not name")

    def opener(entry: FileEntry) -> BinaryIO:
        member = members.by_name.get(entry.path)
        if member is None or member.size != entry.bytes:
            raise BadDigest(f"{path} is damaged: {entry.path} is missing or has another size")
        return _member(members.archive, member)

    return Backup(path, files, opener)


def _read_archive(path: Path, stack: ExitStack) -> _Members:
    try:
        file = stack.enter_context(open_plain(path))
        archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))  # noqa: SIM115
        by_name: dict[str, tarfile.TarInfo] = {}
        for member in archive:
            plain = member.isreg() and not member.issparse()
            if not plain or member.name in by_name or len(by_name) > _MAX_FILES:
                raise UsageError(
                    f"{path} is no backup of ours: {member.name[:80]!r} is a link, a special file "
                    "or there twice. Nothing was taken from it"
                )
            by_name[member.name] = member
    except OSError as error:
        raise UsageError(f"cannot read the backup {path}: {error.strerror or error}") from error
    except (tarfile.TarError, ValueError) as error:
        raise UsageError(f"{path} is no backup, or is damaged: {error}") from error
    return _Members(archive, by_name)


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    file = archive.extractfile(member)
    assert file is not None, "a plain file"
    return file  # type: ignore[return-value]
