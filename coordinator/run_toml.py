"""Changing one setting in the text of a ``run.toml``, comments and all."""

from __future__ import annotations

import json
import re

from coordinator.config import RunFile
from protocol.errors import UsageError

_SECTION = re.compile(r"(?m)^[ \t]*\[server\][ \t]*(?:#.*)?$")
_ANY_SECTION = re.compile(r"(?m)^[ \t]*\[")


def set_server(text: str, name: str, value: str) -> str:
    """The text with ``[server] name = "value"``.

    Raises:
        UsageError: the file is written in a way that has to be edited by hand.
    """
    line = f"{name} = {json.dumps(value)}"
    head = _SECTION.search(text)
    if head is None:
        changed = f"{text.rstrip()}\n\n[server]\n{line}\n"
    else:
        following = _ANY_SECTION.search(text, head.end())
        end = following.start() if following else len(text)
        body = text[head.end() : end]
        setting = re.compile(rf"(?m)^[ \t]*{re.escape(name)}[ \t]*=.*$")
        if setting.search(body):
            body = setting.sub(lambda _: line, body, count=1)
        else:
            body = f"\n{line}{body}"
        changed = text[: head.end()] + body + text[end:]
    try:
        written = getattr(RunFile.parse(changed, "run.toml").server, name)
    except UsageError:
        written = None
    if written != value:
        raise UsageError(f"cannot write [server] {name} into this run.toml: set it there by hand")
    return changed
