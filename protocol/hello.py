"""What a coordinator says first, checked: nothing of it is believed on its own word.

Steps (:func:`check_hello`), all of which must hold:

1. the coordinator speaks to this version of the program;
2. the manifest hashes to the run id in the link;
3. the delegations and revocations are signed by the link's root key.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import metadata

from protocol.errors import UpgradeNeeded, UsageError
from protocol.link import JoinLink
from protocol.manifest import RunManifest
from protocol.trust import TrustStore
from protocol.wire import service_pb2 as api

UPGRADE_COMMAND = "git pull && make .venv/.installed"

_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!-]{0,31}")


@cache
def client_version() -> str:
    """Version of the program that runs: what is installed later is not what was loaded."""
    return metadata.version("barnraise")


def upgrade_sentence(version: str, minimum: str) -> str:
    """What a person with too old a version has to do.

    Args:
        version: of the program, as anybody names it.
        minimum: that the run takes; shown only if it looks like a version.
    """
    shown = version if _VERSION.fullmatch(version) else "(unknown)"
    wanted = f"{minimum} or newer" if _VERSION.fullmatch(minimum) else "a newer one"
    return (
        f"barnraise {shown} is too old for this run, which needs {wanted}: upgrade with "
        f"'{UPGRADE_COMMAND}' in its checkout, then start the worker again"
    )


def check_hello(reply: api.HelloReply, link: JoinLink, trust: TrustStore) -> RunManifest:
    """The run's manifest, when all steps hold; its keys go into ``trust``.

    What the coordinator advises about versions is not repeated: a command that a person may copy
    into a shell comes from this program alone.

    Raises:
        UpgradeNeeded: the run needs a newer version of this program.
        UsageError: another run, or a manifest that is not understood.
        BadSignature: a delegation that is not the root's.
    """
    if not reply.client_supported:
        raise UpgradeNeeded(upgrade_sentence(client_version(), reply.min_client_version))
    if hashlib.sha256(reply.manifest).digest() != link.run_id:
        raise UsageError(
            "the coordinator showed another run than the one in your link: "
            "ask the organiser for the current link"
        )
    manifest = RunManifest.parse(reply.manifest)
    trust.add(reply.delegations, reply.revocations)
    return manifest
