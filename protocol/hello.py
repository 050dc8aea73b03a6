"""What a coordinator says first, checked: nothing of it is believed on its own word.

Steps (:func:`check_hello`), all of which must hold:

1. the coordinator speaks to this version of the program;
2. the manifest hashes to the run id in the link;
3. the delegations and revocations are signed by the link's root key.
"""

from __future__ import annotations

import hashlib
from importlib import metadata

from protocol.errors import UsageError
from protocol.link import JoinLink
from protocol.manifest import RunManifest
from protocol.trust import TrustStore
from protocol.wire import service_pb2 as api


def client_version() -> str:
    """Version of the installed program."""
    return metadata.version("barnraise")


def check_hello(reply: api.HelloReply, link: JoinLink, trust: TrustStore) -> RunManifest:
    """The run's manifest, when all steps hold; its keys go into ``trust``.

    Raises:
        UsageError: unsupported version, another run, or a manifest that is not understood.
        BadSignature: a delegation that is not the root's.
    """
    if not reply.client_supported:
        raise UsageError(
            f"this is barnraise {client_version()}, the run needs at least "
            f"{reply.min_client_version}: {reply.advice or 'upgrade barnraise'}"
        )
    if hashlib.sha256(reply.manifest).digest() != link.run_id:
        raise UsageError(
            "the coordinator showed another run than the one in your link: "
            "ask the organiser for the current link"
        )
    manifest = RunManifest.parse(reply.manifest)
    trust.add(reply.delegations, reply.revocations)
    return manifest
