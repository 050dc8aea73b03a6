"""The one place where our errors become gRPC statuses.

Every handler raises; nothing else in the coordinator knows a status code. An error travels as a
status, a stable reason (``google.rpc.ErrorInfo`` with domain ``barnraise``), the sentence that
tells a person what to do and, where waiting helps, for how long (``google.rpc.RetryInfo``). Bytes
that are no message are a peer's fault like any other: the library would answer UNKNOWN and log a
traceback for each. Anything that is not one of ours is a bug: it is logged with its traceback here
and answered as INTERNAL without its text, which might tell a stranger too much.

A unary call has a deadline, and an upload ends when it brings no message for ``stall_s``. A reader
that takes nothing cannot be sent away: the library would send the news behind what is not read. It
keeps its place, of which there are few, until its connection has the age that
:mod:`coordinator.server` allows.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from coordinator.bounds import check_bounds
from coordinator.overload import OPEN, Places, Visitor
from protocol.errors import (
    BadDigest,
    BadRecord,
    BadSignature,
    Conflict,
    NotEnrolled,
    NotFound,
    ProtocolError,
    RateLimited,
    Stale,
    TooLate,
    TransientError,
    UnknownRun,
    UpgradeNeeded,
    UsageError,
)
from protocol.wire import service_pb2

DOMAIN = "barnraise"

CALL_DEADLINE_S = 30.0
"""A unary call that takes longer has met a fault; its client is told to try again."""

UPLOAD_DEADLINE_S = 600.0

_MAX_SENTENCE_CHARS = 1000
"""Statuses travel in HTTP/2 trailers, which clients bound at 8 KiB."""

_CODES: dict[type[ProtocolError], int] = {
    RateLimited: code_pb2.RESOURCE_EXHAUSTED,
    Stale: code_pb2.FAILED_PRECONDITION,  # the same request would never do better
    TransientError: code_pb2.UNAVAILABLE,
    UnknownRun: code_pb2.NOT_FOUND,
    NotFound: code_pb2.NOT_FOUND,
    NotEnrolled: code_pb2.PERMISSION_DENIED,
    UpgradeNeeded: code_pb2.FAILED_PRECONDITION,
    TooLate: code_pb2.FAILED_PRECONDITION,
    UsageError: code_pb2.FAILED_PRECONDITION,
    BadSignature: code_pb2.UNAUTHENTICATED,
    BadRecord: code_pb2.INVALID_ARGUMENT,
    BadDigest: code_pb2.INVALID_ARGUMENT,
    Conflict: code_pb2.ALREADY_EXISTS,
    ProtocolError: code_pb2.INVALID_ARGUMENT,
}

_TAKE_ENVELOPES = frozenset(
    method.name
    for method in service_pb2.DESCRIPTOR.services_by_name["Coordinator"].methods
    if method.input_type.name == "Envelope"
)

_log = structlog.get_logger()


def status_of(error: ProtocolError) -> grpc.Status:
    """The gRPC status of an error: code by the nearest class, reason, sentence."""
    code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    said: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if isinstance(error, TransientError) and error.retry_after_s is not None:
        said.append(_retry_info(error.retry_after_s))
    details = [any_pb2.Any() for _ in said]
    for detail, one in zip(details, said, strict=True):
        detail.Pack(one)
    message = str(error)[:_MAX_SENTENCE_CHARS]
    return rpc_status.to_status(status_pb2.Status(code=code, message=message, details=details))


def _retry_info(retry_after_s: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(max(1, round(retry_after_s * 1000)))
    return info


@dataclass(frozen=True)
class _Rules:
    """What holds for every call."""

    stall_s: float
    visitor: Callable[[str], Visitor] | None
    places: Places

    def begin(self, context: grpc.aio.ServicerContext) -> None:
        """Take a place among the calls that are not over; it is given back when this one is.

        Raises:
            RateLimited: there is none.
        """
        if self.visitor is None:
            return
        with ExitStack() as held:
            held.enter_context(self.places.one(self.visitor(context.peer())))
            later = held.pop_all()
        _this_task().add_done_callback(lambda _: later.close())


def _this_task() -> asyncio.Task[Any]:
    """The library's task of the running call: it ends when the status is sent."""
    task = asyncio.current_task()
    assert task is not None
    return task


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Turns what handlers raise into statuses, and bounds the calls under way."""

    def __init__(
        self, stall_s: float = 60.0, visitor: Callable[[str], Visitor] | None = None
    ) -> None:
        """Make one for a server.

        Args:
            stall_s: so long may an upload stand still.
            visitor: who calls, by the transport's name; None bounds no calls.
        """
        self._rules = _Rules(stall_s, visitor, Places("calls", OPEN))
        self._guarded: dict[str, grpc.RpcMethodHandler] = {}  # of the calls that there are

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        name = handler_call_details.method
        if name in self._guarded:
            return self._guarded[name]
        handler = await continuation(handler_call_details)
        if handler is None or not name.startswith("/barnraise."):
            return handler
        self._guarded[name] = self._guard(name.rsplit("/", 1)[-1], handler)
        return self._guarded[name]

    def _guard(self, method: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        make, behaviour = _parts(handler)
        rules = self._rules
        if handler.request_streaming:
            behaviour = _parsed_stream(behaviour, rules.stall_s)
        else:
            behaviour = _parsed(behaviour)
        if handler.response_streaming:
            wrapped = _stream(method, behaviour, rules)
        else:
            deadline_s = UPLOAD_DEADLINE_S if handler.request_streaming else CALL_DEADLINE_S
            wrapped = _unary(method, behaviour, deadline_s, rules)
        return make(
            wrapped,
            request_deserializer=_lenient(method, handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


def _parts(handler: grpc.RpcMethodHandler) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler, handler.stream_stream
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


@dataclass(frozen=True)
class _NoMessage:
    """Stands for a request that is refused unread, until somebody can answer that."""

    problem: BadRecord


def _lenient(method: str, parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    envelope = method in _TAKE_ENVELOPES

    def parse_or_mark(data: bytes) -> Any:
        try:
            check_bounds(method, data, envelope=envelope)
            return parse(data)
        except BadRecord as error:
            return _NoMessage(error)
        except DecodeError:
            return _NoMessage(BadRecord("the request is not a message of this call"))

    return parse_or_mark


def _insist(request: Any) -> Any:
    if isinstance(request, _NoMessage):
        raise request.problem
    return request


def _parsed(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(behaviour):

        async def replies(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async with aclosing(behaviour(_insist(request), context)) as inner:
                async for reply in inner:
                    yield reply

        return replies

    async def reply(request: Any, context: grpc.aio.ServicerContext) -> Any:
        return await behaviour(_insist(request), context)

    return reply


def _parsed_stream(behaviour: Callable[..., Any], stall_s: float) -> Callable[..., Any]:
    async def parsed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        while True:
            try:
                async with asyncio.timeout(stall_s):
                    request = await anext(requests, None)
            except TimeoutError as error:
                raise TransientError(
                    f"nothing came for {stall_s:.0f} s: send it again, from where it stopped"
                ) from error
            if request is None:
                return
            yield _insist(request)

    async def reply(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
        async with aclosing(parsed(requests)) as messages:  # type: ignore[type-var]
            return await behaviour(messages, context)

    return reply


def _unary(
    method: str, behaviour: Callable[..., Awaitable[Any]], deadline_s: float, rules: _Rules
) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            rules.begin(context)
            async with asyncio.timeout(deadline_s):
                return await behaviour(request, context)
        except TimeoutError:
            _log.warning("call_too_slow", method=method, deadline_s=deadline_s)
            await _refuse(context, TransientError("the coordinator is too busy: try again"))
        except ProtocolError as error:
            await _refuse(context, error)
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception:  # the documented boundary: our bug must not end the server
            await _confess(context, method)

    return call


def _stream(
    method: str, behaviour: Callable[..., AsyncGenerator[Any]], rules: _Rules
) -> Callable[..., Any]:
    assert inspect.isasyncgenfunction(behaviour), f"{method} must be an async generator"

    async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            rules.begin(context)
            # Closed here and now, so that what the handler holds is let go when the client goes.
            async with aclosing(behaviour(request, context)) as replies:
                async for reply in replies:
                    yield reply
        except ProtocolError as error:
            await _refuse(context, error)
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception:  # the documented boundary: our bug must not end the server
            await _confess(context, method)

    return call


async def _refuse(context: grpc.aio.ServicerContext, error: ProtocolError) -> None:
    await context.abort_with_status(status_of(error))


async def _confess(context: grpc.aio.ServicerContext, method: str) -> None:
    _log.exception("call_failed", method=method)
    await context.abort(
        grpc.StatusCode.INTERNAL,
        "the coordinator failed on this call; the organiser's log says why",
    )
