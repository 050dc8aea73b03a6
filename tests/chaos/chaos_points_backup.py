"""Points in ``coordinator backup`` and ``restore``: right before what cannot be undone."""

from __future__ import annotations

from chaos_injector import Install, after, before

from coordinator import backup, backup_target, restore

POINTS: dict[str, Install] = {
    "backup.folder.file": after(backup_target._FolderTarget, "add"),
    "backup.folder.list": before(backup_target._FolderTarget, "finish"),
    "backup.folder.forget": before(backup_target._FolderTarget, "_forget"),
    "backup.archive.file": after(backup_target._ArchiveTarget, "add"),
    "backup.archive.list": after(backup_target._ArchiveTarget, "finish"),
    "backup.picture": after(backup, "_look"),
    "restore.placed": before(restore, "_go_on"),
    "restore.went_on": after(restore, "_go_on"),
}
