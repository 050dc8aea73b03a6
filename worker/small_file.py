"""Small files of the worker's own, replaced as a whole: whoever reads finds the old or the new."""

from __future__ import annotations

import os
from pathlib import Path

_WRITTEN_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def replace_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write ``text`` beside ``path``, readable by this user only, and rename it over it.

    Args:
        durable: it has to outlast a power cut; blocks until the disk has it.

    Raises:
        OSError: the disk is full or refuses; ``path`` is as it was.
    """
    temporary = path.with_suffix(".new")
    try:
        with os.fdopen(os.open(temporary, _WRITTEN_ANEW, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
