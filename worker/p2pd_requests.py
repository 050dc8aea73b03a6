"""What we ask the peer-to-peer daemon ourselves, and what its failures are to us."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from protocol.errors import TransientError


@contextmanager
def passing_failures() -> Iterator[None]:
    """The daemon's own failures as what they are to us: passing ones."""
    try:
        yield
    except (P2PDaemonError, OSError, asyncio.IncompleteReadError) as error:
        raise TransientError(f"the peer-to-peer daemon does not answer: {error!r}") from error


def host_of(address: Multiaddr) -> str:
    """``/ip4/10.0.0.1/tcp/4001`` -> ``10.0.0.1``; empty for a name."""
    _, kind, host, *_ = str(address).split("/")
    return host if kind in ("ip4", "ip6") else ""


def connect_request(peer_id: str, addresses: Sequence[Multiaddr]) -> p2pd_pb2.Request:
    connect = p2pd_pb2.ConnectRequest(
        peer=PeerID.from_base58(peer_id).to_bytes(), addrs=[a.to_bytes() for a in addresses]
    )
    return p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=connect)


def disconnect_request(peer: PeerID) -> p2pd_pb2.Request:
    leaving = p2pd_pb2.DisconnectRequest(peer=peer.to_bytes())
    return p2pd_pb2.Request(type=p2pd_pb2.Request.DISCONNECT, disconnect=leaving)


def stream_request(peer: PeerID, handle: str) -> p2pd_pb2.Request:
    opening = p2pd_pb2.StreamOpenRequest(peer=peer.to_bytes(), proto=[handle])
    return p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=opening)
