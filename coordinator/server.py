"""The running server: everything put together, started and ended in order.

Start: keys checked, database upgraded, port bound, then children; a person sees the join link
only when workers can connect.

Shutdown on SIGTERM or SIGINT, each step whatever became of the one before:

1. health says NOT_SERVING and watchers are sent away (they reconnect when we are back);
2. children get SIGTERM and at most ``supervise.STOP_GRACE_S`` to end;
3. calls under way get ``CALL_GRACE_S``; then the port is closed;
4. the engine stops between two transactions; the evaluation and the database are closed.

Nothing needs this order to be safe: after kill -9 the next start finds the same state.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator.config import LimitsSection, split_address
from coordinator.engine import Engine
from coordinator.grpc_status import ErrorInterceptor
from coordinator.overload import allow_many_connections
from coordinator.ports import join_address, require_free
from coordinator.service import CoordinatorService
from coordinator.supervise import Child
from protocol.certificate import TlsCredentials
from protocol.errors import UsageError
from protocol.limits import MAX_GRPC_MESSAGE_BYTES
from protocol.wire import service_pb2
from protocol.wire.service_pb2_grpc import add_CoordinatorServicer_to_server

SERVICE_NAME = service_pb2.DESCRIPTOR.services_by_name["Coordinator"].full_name
CALL_GRACE_S = 3.0
_MAX_CONCURRENT_CALLS = 28_672
"""Of all clients, event streams included; the library refuses the next."""

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
    # Two servers on one port would each get some of the calls: refuse instead.
    ("grpc.so_reuseport", 0),
    # A client behind a dead router is noticed within 80 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Workers ping every 30 s. The default floor of 300 s would answer with GOAWAY
    # too_many_pings; the similar "min_recv_ping_interval..." key is ignored by gRPC core.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Fresh connections now and then spread workers over replicas; Watch reconnects, downloads
    # resume; and whoever reads nothing of what was asked for is sent away at last.
    ("grpc.max_connection_age_ms", 3600 * 1000),
    ("grpc.max_connection_age_grace_ms", 300 * 1000),
    # What has not shaken hands by then, or has nothing under way for so long, is closed.
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.http2.settings_timeout", 20_000),
    # One connection cannot fill the library's queue of calls that nobody has looked at yet. What
    # is over that queue's limit (1,000 to 3,000) is CANCELLED, which our clients try again.
    ("grpc.max_concurrent_streams", 100),
    # Headers: we read none of them, and gRPC's own are short.
    ("grpc.max_metadata_size", 8192),
    ("grpc.absolute_max_metadata_size", 16_384),
]

_log = structlog.get_logger()


@dataclass
class BoundServer:
    """A gRPC server that listens."""

    server: grpc.aio.Server
    health: health.aio.HealthServicer
    service: CoordinatorService
    host: str
    port: int

    async def stop(self) -> None:
        """Steps 1 and 3 of the module's shutdown order."""
        await self.health.enter_graceful_shutdown()
        self.service.end_streams()
        await self.server.stop(CALL_GRACE_S)


async def start_server(
    service: CoordinatorService,
    tls: TlsCredentials,
    listen: str,
    limits: LimitsSection | None = None,
) -> BoundServer:
    """Bind and serve.

    Args:
        service: what answers.
        tls: certificate and key.
        listen: ``host:port``; port 0 takes a free one.
        limits: the organiser's; default: the usual ones.

    Raises:
        UsageError: the address cannot be used.
    """
    host, port = split_address(listen)
    require_free(host, port)
    limits = limits or LimitsSection()
    allowed = allow_many_connections()
    connections = min(allowed, limits.connections or allowed)
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor(limits.stalled_upload_s, service.visitor)],
        options=[*_OPTIONS, ("grpc.max_allowed_incoming_connections", connections)],
        maximum_concurrent_rpcs=_MAX_CONCURRENT_CALLS,
    )
    add_CoordinatorServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    credentials = grpc.ssl_server_credentials([(tls.private_key_pem, tls.certificate_pem)])
    try:
        bound = server.add_secure_port(join_address(host, port), credentials)
    except RuntimeError as error:
        raise UsageError(f"cannot listen on {listen}: {error}") from error
    await server.start()
    for name in ("", SERVICE_NAME):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return BoundServer(server, health_servicer, service, host, bound)


async def run_until_stopped(
    bound: BoundServer, engine: Engine, children: Sequence[Child], stop: asyncio.Event
) -> None:
    """Serve until ``stop`` is set, then end in order (see the module)."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(engine.run())
        supervised = [group.create_task(child.run()) for child in children]
        try:
            await stop.wait()
            _log.info("stopping")
            await bound.health.enter_graceful_shutdown()
            bound.service.end_streams()
        finally:
            for task in supervised:
                task.cancel()
            if supervised:
                await asyncio.wait(supervised)
            await bound.stop()
            running.cancel()
    _log.info("stopped")


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
