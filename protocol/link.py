"""The join link: ``barnraise://host:port/RUN_ID#root=FINGERPRINT``.

RUN_ID is the manifest's SHA-256 in hex. FINGERPRINT is the PeerID of the run's root key,
which names that key, so the link alone is enough to check every delegation. A move to
another host or certificate needs a new address at most, never a new root of trust.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from protocol.errors import ProtocolError, UsageError
from protocol.identity import PeerId, PublicKey

SCHEME = "barnraise"
_HOST = re.compile(r"[\w.:%-]+")  # nothing that a shell would take for more than a word
_EXAMPLE = "barnraise://host:7443/RUN_ID#root=FINGERPRINT"


@dataclass(frozen=True)
class JoinLink:
    """Where a run's coordinator is, and which key to believe."""

    host: str
    port: int
    run_id: bytes
    root: PeerId

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{SCHEME}://{self.address}/{self.run_id.hex()}#root={self.root}"

    @classmethod
    def parse(cls, text: str) -> JoinLink:
        """Read a link.

        Raises:
            UsageError: what is wrong with it, and what it should look like.
        """
        try:
            parts = urlsplit(text.strip())
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"not a join link: {error}; expected {_EXAMPLE}") from error
        if parts.scheme != SCHEME or not host or not _HOST.fullmatch(host) or not port:
            raise UsageError(f"not a join link: {text!r}; expected {_EXAMPLE}")
        run_id = parts.path.strip("/")
        if not re.fullmatch(r"[0-9a-f]{64}", run_id):
            raise UsageError(f"the run id in the link must be 64 hex digits, not {run_id[:80]!r}")
        roots = parse_qs(parts.fragment).get("root", [])
        if len(roots) != 1:
            raise UsageError(
                "the link lacks '#root=FINGERPRINT'; quote it in the shell so that '#' survives"
            )
        try:
            PublicKey.from_peer_id(roots[0])
        except ProtocolError as error:
            raise UsageError(f"the link's root fingerprint is damaged: {error}") from error
        return cls(host, port, bytes.fromhex(run_id), roots[0])
