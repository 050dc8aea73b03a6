"""The way to the coordinator: TLS pinned by the join link, retries, errors in our own words.

Invariants:

* The channel trusts exactly one certificate: the one that the link's root key vouched for. The
  handshake that fetches it proves nothing and is used for nothing else.
* Every call has a deadline; only UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED (by a server that sheds
  load) and answers that say when to come back are retried, with full jitter, so that a swarm does
  not return as one wave.
* What leaves here is of the protocol's error family, mapped by ``ErrorInfo.reason``.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from protocol.certificate import TLS_NAME, check_certificate
from protocol.errors import BadRecord, BadSignature, ProtocolError, TransientError, UsageError
from protocol.limits import MAX_GRPC_MESSAGE_BYTES
from protocol.link import JoinLink

Reply = TypeVar("Reply")

CALL_TIMEOUT_S = 20.0
CHANNEL_LEFT = "the connection to the coordinator was given up for another one"
_HANDSHAKE_TIMEOUT_S = 10.0
_RETRIED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
_PASSING = (
    *_RETRIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)

LONGEST_WAIT_S = 15.0
"""Told to come back later than this, a call fails: its caller knows what to do meanwhile."""


def error_family(kind: type[ProtocolError] = ProtocolError) -> dict[str, type[ProtocolError]]:
    """Every class of the protocol's errors by its reason."""
    family = {kind.reason: kind}
    for child in kind.__subclasses__():
        family = error_family(child) | family  # a kind without a reason of its own is its parent
    return family


_BY_REASON = error_family()


async def fetch_certificate(link: JoinLink) -> bytes:
    """Ask the server for its certificate, believing nothing yet.

    Returns:
        The certificate as DER.

    Raises:
        TransientError: nothing answers there, or it does not speak TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(
                link.host, link.port, ssl=context, server_hostname=TLS_NAME
            )
    except (OSError, TimeoutError) as error:
        raise TransientError(
            f"the coordinator at {link.address} does not answer ({error or 'timeout'}): "
            "check the network and the address in the link; it may also be restarting"
        ) from error
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    if not certificate:
        raise TransientError(f"the server at {link.address} showed no certificate")
    return bytes(certificate)


async def trusted_certificate(link: JoinLink) -> bytes:
    """The server's certificate, vouched for by the link's root key.

    Returns:
        The certificate as PEM.

    Raises:
        UsageError: the server is not vouched for by the link's root key.
        TransientError: it does not answer.
    """
    der = await fetch_certificate(link)
    try:
        return check_certificate(der, link, time.time())
    except BadSignature as error:
        raise UsageError(str(error)) from error


def open_channel(link: JoinLink, pem: bytes, through: str = "") -> grpc.aio.Channel:
    """A channel that trusts this certificate and no other.

    Args:
        through: connect to this gRPC target, which leads to the link's address.
    """
    return grpc.aio.secure_channel(
        through or link.address,
        grpc.ssl_channel_credentials(root_certificates=pem),
        options=[
            ("grpc.ssl_target_name_override", TLS_NAME),
            ("grpc.default_authority", TLS_NAME),
            ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # In step again within seconds of a coordinator's return: a round may be waiting.
            ("grpc.initial_reconnect_backoff_ms", 250),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ],
    )


def translate(error: grpc.aio.AioRpcError) -> ProtocolError:
    """Our own error for a gRPC failure, by ``ErrorInfo.reason``, else by status code."""
    message = error.details() or error.code().name
    reason, retry_after_s = _details(error)
    kind = _BY_REASON.get(reason or "")
    if kind is not None:
        problem = kind(message)
        if isinstance(problem, TransientError):
            problem.retry_after_s = retry_after_s
        return problem
    if error.code() in _PASSING:
        return TransientError(f"the coordinator cannot be reached now: {message}")
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        return UsageError(f"the coordinator does not know this call ({message}): upgrade barnraise")
    return BadRecord(f"the coordinator refused ({error.code().name}): {message}")


def _details(error: grpc.aio.AioRpcError) -> tuple[str | None, float | None]:
    """The stable reason, and after how many seconds to come back, where the server said so."""
    reason, retry_after_s = None, None
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if detail.Unpack(info):
                    reason = str(info.reason)
                elif detail.Unpack(retry):
                    retry_after_s = max(0.0, retry.retry_delay.ToMilliseconds() / 1000)
        except DecodeError:
            return None, None
    return reason, retry_after_s


def channel_was_left() -> bool:
    """Whether a CancelledError comes from a channel that was closed under a call, and not from
    somebody who wants this task to end."""
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


async def call(
    attempt: Callable[[float], Awaitable[Reply]],
    *,
    attempts: int = 4,
    timeout_s: float = CALL_TIMEOUT_S,
    base_delay_s: float = 0.25,
) -> Reply:
    """Make one unary call, again while it is only the way that fails.

    Args:
        attempt: makes the call with the deadline (seconds) that it is given.

    Raises:
        ProtocolError: see :func:`translate`.
    """
    for number in range(attempts):
        try:
            return await attempt(timeout_s)
        except grpc.aio.AioRpcError as error:
            problem = translate(error)
            hint_s = hinted_s(problem)
            retried = error.code() in _RETRIED or hint_s is not None
            if not retried or number + 1 == attempts:
                raise problem from error
        except asyncio.CancelledError as error:
            if not channel_was_left():
                raise
            if number + 1 == attempts:
                raise TransientError(CHANNEL_LEFT) from error
            hint_s = None
        await asyncio.sleep((hint_s or 0.0) + backoff_s(number, base_s=base_delay_s))
    raise AssertionError("unreachable: the last attempt returns or raises")


async def received(begin: Callable[[], grpc.aio.UnaryStreamCall]) -> AsyncGenerator[Any]:
    """What a stream brings until it ends or breaks; it is closed with this generator."""
    stream = begin()
    try:
        async for message in stream:
            yield message
    except grpc.aio.AioRpcError as error:
        raise translate(error) from error
    except asyncio.CancelledError as error:
        if not channel_was_left():
            raise
        raise TransientError(CHANNEL_LEFT) from error
    finally:
        stream.cancel()


def hinted_s(problem: ProtocolError) -> float | None:
    """How long the server asks us to wait, if it does and the wait is short."""
    after_s = problem.retry_after_s if isinstance(problem, TransientError) else None
    return after_s if after_s is not None and after_s <= LONGEST_WAIT_S else None


def backoff_s(failures: int, *, base_s: float = 0.25, limit_s: float = 15.0) -> float:
    """Exponential back-off with full jitter (never zero), seconds."""
    ceiling = min(limit_s, base_s * 2.0 ** min(failures, 16))
    return random.uniform(ceiling / 4, ceiling)
