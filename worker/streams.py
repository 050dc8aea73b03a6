"""hivemind's ``P2P`` with bounded, owned streams.

Invariants:

* No frame is read whose announced length is over its limit (:mod:`worker.messages`); hivemind's
  own stream reader takes the other side's word for it, and its queue can strand a handler whose
  caller went away.
* Every task that serves a stream belongs to a TaskGroup, and :meth:`BoundedP2P.shutdown` ends
  them all, reaps the daemon and removes its sockets, whatever state it is in and whoever stops
  waiting for that.
* The daemon is in a process group of its own, so that Ctrl-C, which a terminal sends to the whole
  group, does not reach it: only the worker decides what it means.
* The daemon's sockets live in a directory that only this user can enter; its name follows
  from the identity, so that a start after ``kill -9`` removes what was left.

The bytes on the wire are hivemind's (see :mod:`worker.frames`).
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from google.protobuf.message import Message
from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import (
    P2PDaemonError,
    raise_if_failed,
    read_pbmsg_safe,
    write_pbmsg,
)
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from protocol.errors import TransientError, UsageError
from protocol.leash import leashed
from protocol.uncancelled import to_the_end
from worker.answering import answer_stream
from worker.callers import Callers
from worker.messages import Stream
from worker.meter import FREE, NetworkBudget, Toll
from worker.p2pd_requests import (
    connect_request,
    disconnect_request,
    host_of,
    passing_failures,
    stream_request,
)
from worker.pacing import Rank

log = structlog.get_logger()

STARTUP_TIMEOUT_S = 30.0
DIAL_TIMEOUT_S = 15.0
OPENING_BYTES = 300
"""What it takes to open a stream, each way, besides what :func:`worker.meter.on_the_wire` adds."""

_ANSWER_TIMEOUT_S = 10.0  # of the daemon itself, on this machine
_KILL_AFTER_S = 3.0

Reply = TypeVar("Reply", bound=Message)


def socket_directory(peer_id: str) -> Path:
    """The private directory of one identity's daemon sockets, emptied of what a crash left."""
    # A short path: a UNIX socket's may have 107 bytes.
    path = Path(tempfile.gettempdir()) / f"barnraise-{peer_id[-20:]}"
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        path = Path(tempfile.mkdtemp(prefix="barnraise-"))  # somebody else sits on that name
    return path


@dataclass(frozen=True)
class Served(P2PContext):  # type: ignore[misc]
    """What a handler knows of the stream that it answers."""

    toll: Toll = FREE


class BoundedP2P(P2P):  # type: ignore[misc]
    """A libp2p daemon and its streams; start with :meth:`start`, end with :meth:`shutdown`."""

    def __init__(self) -> None:
        super().__init__()
        self._serving: set[asyncio.Task[Any]] = set()
        self.callers = Callers()
        self.budget = NetworkBudget()
        self._sockets: Path | None = None

    @classmethod
    async def start(
        cls,
        *,
        identity_path: Path,
        peer_id: str,
        initial_peers: Sequence[str],
        client_mode: bool,
        listen: Sequence[str],
        announce: Sequence[str] = (),
        nat_port_map: bool = False,
    ) -> BoundedP2P:
        """Start p2pd with this identity and wait until it answers.

        Raises:
            TransientError: it did not start; the message says what to look at.
            UsageError: it cannot listen there.
        """
        sockets = socket_directory(peer_id)
        made: list[BoundedP2P] = []

        class Here(cls):  # type: ignore[misc, valid-type]
            # create() makes the instance itself: catch it, to reap its child if it fails.
            _UNIX_SOCKET_PREFIX = f"/unix{sockets}/"

            def __init__(self) -> None:
                super().__init__()
                self._sockets = sockets
                made.append(self)

            @staticmethod
            def _make_process_args(*args: Any, **options: Any) -> list[str]:
                # p2pd itself would notice a daemon killed with -9 only after half a minute.
                return leashed(P2P._make_process_args(*args, **options), own_group=True)

        started: BoundedP2P | None = None
        try:
            started = await Here.create(
                initial_peers=list(initial_peers) or None,
                identity_path=str(identity_path),
                check_if_identity_free=False,
                host_maddrs=None if client_mode else list(listen),
                announce_maddrs=list(announce) or None,
                no_listen=client_mode,
                dht_mode="client" if client_mode else "server",
                use_relay=False,  # what relays do for a home: docs/adr/0023
                use_auto_relay=False,
                auto_nat=False,
                nat_port_map=nat_port_map,
                startup_timeout=STARTUP_TIMEOUT_S,
            )
        except (P2PDaemonError, OSError, asyncio.IncompleteReadError) as error:
            if "failed to listen" in str(error):
                raise UsageError(
                    f"cannot listen on {', '.join(listen)}: the port is in use, or the address is"
                    " not this machine's. Choose another with --listen, or end the other program"
                ) from error
            problem = re.sub(r"[\d/]{10} [\d:]{8} ", "", str(error))  # the time is in our own log
            advice = "Check that the anchors of the run can be reached" if initial_peers else ""
            raise TransientError(
                f"the peer-to-peer daemon did not start: {problem}. {advice}".rstrip()
            ) from error
        finally:
            if started is None and made:
                await made[0].shutdown()
        assert started is not None
        return started

    async def shutdown(self) -> None:
        """End all streams, the daemon and its sockets. Safe to call twice."""
        await to_the_end(self._shutdown())

    async def _shutdown(self) -> None:
        for task in self._serving:
            task.cancel()
        control = None if self._client is None else self._client.control
        background = [self._listen_task, self._reader_task, *self._serving]
        if control is not None:  # of a daemon that died they have ended in an error
            background += [control._read_task, control._write_task]
        self._terminate()
        if self._child is not None:
            await self._reap(self._child)
        await asyncio.gather(*(t for t in background if t), return_exceptions=True)
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)

    async def _reap(self, child: asyncio.subprocess.Process) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILL_AFTER_S):
                await child.wait()
        if child.returncode is None:  # stopped, or stuck: it has nothing to lose
            child.kill()
            await child.wait()

    async def ended(self) -> str:
        """Wait until the daemon has ended, by itself or by somebody's hand.

        Returns:
            How, for a person.
        """
        assert self._child is not None
        code = await self._child.wait()
        return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    async def addresses(self) -> list[str]:
        """Addresses by which others reach us, each with /p2p/PeerID; empty in client mode.

        Raises:
            TransientError: the daemon does not answer.
        """
        with passing_failures():
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                try:
                    return [str(a) for a in await self.get_visible_maddrs(latest=True)]
                except ValueError:  # hivemind's word for "none"
                    return []

    async def connected(self) -> set[str]:
        """PeerIDs of those with whom a connection is open.

        Raises:
            TransientError: the daemon does not answer.
        """
        with passing_failures():
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                return {str(peer.peer_id) for peer in await self._client.list_peers()}

    async def connect(self, peer_id: str, multiaddrs: Sequence[str]) -> None:
        """Dial a peer at addresses that we were told; an address that does not parse is skipped.

        Raises:
            TransientError: none of them answered.
        """
        addresses = []
        for text in multiaddrs:
            with suppress(ValueError, LookupError):
                # p2pd knows whom it dials, and refuses the CID form in which hivemind would name
                # an Ed25519 peer here.
                addresses.append(Multiaddr(text.removesuffix(f"/p2p/{peer_id}")))
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await self._leave_stale(peer_id, addresses)
                _, writer = await self._ask(connect_request(peer_id, addresses))
                writer.close()
        except (P2PDaemonError, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            raise TransientError(f"cannot connect to {peer_id}: {error}") from error

    async def drop_connections(self) -> None:
        """Hang up on every peer; whoever is needed is dialled again."""
        try:
            for peer in await self.list_peers():
                await self._hang_up(peer.peer_id)
        except (P2PDaemonError, OSError, asyncio.IncompleteReadError) as error:
            log.warning("cannot hang up on peers", problem=str(error))

    async def _leave_stale(self, peer_id: str, addresses: Sequence[Multiaddr]) -> None:
        """Hang up on a peer that has moved: it is told of elsewhere, and the daemon would use the
        old connection, where nobody is, for most of a minute."""
        told = {host_of(address) for address in addresses}
        if not told or "" in told:
            return
        for peer in await self.list_peers():
            hosts = {host_of(address) for address in peer.addrs} - {"127.0.0.1", "::1"}
            if str(peer.peer_id) == peer_id and not hosts <= told:
                await self._hang_up(peer.peer_id)

    async def _hang_up(self, peer: PeerID) -> None:
        _, writer = await self._ask(disconnect_request(peer))
        writer.close()

    @asynccontextmanager
    async def stream(
        self, peer_id: str, handle: str, reply: type[Reply]
    ) -> AsyncIterator[Stream[Reply]]:
        """Open a stream to a peer's handler; closed at the end of the block.

        Raises:
            TransientError: the peer cannot be reached, or the stream broke.
        """
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                opening = stream_request(PeerID.from_base58(peer_id), handle)
                reader, writer = await self._ask(opening)
        except (P2PDaemonError, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            raise TransientError(f"cannot open a stream to {peer_id}: {error}") from error
        try:
            self.budget.passed(sent_bytes=OPENING_BYTES, received_bytes=OPENING_BYTES)
            yield Stream(reader, writer, reply, self.budget.toll(_rank(handle)))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise TransientError(f"the stream to {peer_id} broke: {error!r}") from error
        finally:
            writer.close()

    async def _ask(
        self, request: p2pd_pb2.Request
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask the daemon on a connection of its own, which becomes the stream if it opens one.

        hivemind's own calls leak this connection when the daemon says no or they are cancelled.
        """
        reader, writer = await self._client.control.daemon_connector.open_connection()
        try:
            await write_pbmsg(writer, request)
            response = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, response)
            raise_if_failed(response)
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _add_protobuf_stream_handler(
        self,
        name: str,
        handler: Callable[[Any, P2PContext], AsyncIterator[Message]],
        input_protobuf_type: type[Message],
        max_prefetch: int = 0,
        balanced: bool = False,
    ) -> None:
        """Serve a handler of ServicerBase; ``max_prefetch`` is not needed: reads are on demand."""

        async def serve(
            info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            remote = info.peer_id
            caller = remote.to_base58()
            task = asyncio.current_task()
            assert task is not None
            try:
                if self.callers.is_busy(caller):
                    return
                self._serving.add(task)
                toll = self.budget.toll(_rank(name))
                context = Served(name, self.peer_id, remote, toll)
                self.budget.passed(sent_bytes=OPENING_BYTES, received_bytes=OPENING_BYTES)
                with self.callers.serving(caller) as within_s, suppress(TimeoutError):
                    async with asyncio.timeout(within_s):
                        await answer_stream(
                            reader, writer, handler, input_protobuf_type, context, toll
                        )
            finally:
                writer.close()
                self._serving.discard(task)

        await self.add_binary_stream_handler(name, serve, balanced=balanced)

    # ---- what hivemind's DHT says and hears: one message each way, on one connection to p2pd

    async def _call_unary_protobuf_handler(
        self, peer_id: PeerID, handle_name: str, input: Message, output_protobuf_type: type[Reply]
    ) -> Reply:
        await self.budget.send(input.ByteSize() + OPENING_BYTES, Rank.SMALL)
        reply: Reply = await super()._call_unary_protobuf_handler(
            peer_id, handle_name, input, output_protobuf_type
        )
        self.budget.passed(received_bytes=reply.ByteSize() + OPENING_BYTES)
        return reply

    async def _add_protobuf_unary_handler(
        self,
        handle_name: str,
        handler: Callable[[Any, P2PContext], Awaitable[Message]],
        input_protobuf_type: type[Message],
        balanced: bool = False,
    ) -> None:
        async def answer(request: Message, context: P2PContext) -> Message:
            self.budget.passed(received_bytes=request.ByteSize() + OPENING_BYTES)
            reply = await handler(request, context)
            await self.budget.send(reply.ByteSize() + OPENING_BYTES, Rank.BLOBS)
            return reply

        await super()._add_protobuf_unary_handler(
            handle_name, answer, input_protobuf_type, balanced
        )


def _rank(handle: str) -> Rank:
    return Rank.BLOBS if "BlobService" in handle else Rank.REDUCE
