"""The one place where our errors become gRPC statuses.

Every handler raises; nothing else in the coordinator knows a status code. An error travels as a
status, a stable reason (``google.rpc.ErrorInfo`` with domain ``barnraise``), the sentence that
tells a person what to do and, where waiting helps, for how long (``google.rpc.RetryInfo``). Bytes
that are no message are a peer's fault like any other: the library would answer UNKNOWN and log a
traceback for each. Anything that is not one of ours is a bug: it is logged with its traceback here
and answered as INTERNAL without its text, which might tell a stranger too much.

Nobody holds a call for as long as they like: a unary call has a deadline, and a stream ends when
its other side neither takes nor sends a message (at most 1 MiB) for ``stall_s``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from protocol.errors import (
    BadDigest,
    BadRecord,
    BadSignature,
    Conflict,
    NotEnrolled,
    NotFound,
    ProtocolError,
    RateLimited,
    TooLate,
    TransientError,
    UnknownRun,
    UpgradeNeeded,
    UsageError,
)

DOMAIN = "barnraise"

CALL_DEADLINE_S = 30.0
"""A unary call that takes longer has met a fault; its client is told to try again."""

UPLOAD_DEADLINE_S = 600.0

_MAX_SENTENCE_CHARS = 1000
"""Statuses travel in HTTP/2 trailers, which clients bound at 8 KiB."""

_CODES: dict[type[ProtocolError], int] = {
    RateLimited: code_pb2.RESOURCE_EXHAUSTED,
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


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Turns what handlers raise into statuses, and ends streams that stand still."""

    def __init__(self, stall_s: float = 60.0) -> None:
        self._stall_s = stall_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/barnraise."):
            return handler
        method = handler_call_details.method.rsplit("/", 1)[-1]
        make, behaviour = _parts(handler)
        if handler.request_streaming:
            behaviour = _parsed_stream(behaviour, self._stall_s)
        else:
            behaviour = _parsed(behaviour)
        if handler.response_streaming:
            wrapped = _stream(method, behaviour, self._stall_s)
        else:
            wrapped = _unary(
                method,
                behaviour,
                UPLOAD_DEADLINE_S if handler.request_streaming else CALL_DEADLINE_S,
            )
        return make(
            wrapped,
            request_deserializer=_lenient(handler.request_deserializer),
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


class _NoMessage:
    """Stands for a request whose bytes do not parse, until somebody can answer that."""


def _lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_mark(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _NoMessage()

    return parse_or_mark


def _insist(request: Any) -> Any:
    if isinstance(request, _NoMessage):
        raise BadRecord("the request is not a message of this call")
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
    method: str, behaviour: Callable[..., Awaitable[Any]], deadline_s: float
) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
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
    method: str, behaviour: Callable[..., AsyncGenerator[Any]], stall_s: float
) -> Callable[..., Any]:
    assert inspect.isasyncgenfunction(behaviour), f"{method} must be an async generator"

    async def call(request: Any, context: grpc.aio.ServicerContext) -> None:
        try:
            # Closed here and now, so that what the handler holds is let go when the client goes.
            async with aclosing(behaviour(request, context)) as replies:
                async for reply in replies:
                    await _write(context, reply, stall_s)
        except _TooSlow:
            _log.info("reader_too_slow", method=method, stall_s=stall_s)
            # Not a status: it would wait behind what is not read. Left without one, the call's
            # stream is reset.
            raise asyncio.CancelledError from None
        except ProtocolError as error:
            await _refuse(context, error)
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception:  # the documented boundary: our bug must not end the server
            await _confess(context, method)

    return call


class _TooSlow(Exception):
    """The reader did not take what it asked for."""


async def _write(context: grpc.aio.ServicerContext, reply: Any, stall_s: float) -> None:
    try:
        async with asyncio.timeout(stall_s):
            await context.write(reply)
    except TimeoutError as error:
        raise _TooSlow from error


async def _refuse(context: grpc.aio.ServicerContext, error: ProtocolError) -> None:
    await context.abort_with_status(status_of(error))


async def _confess(context: grpc.aio.ServicerContext, method: str) -> None:
    _log.exception("call_failed", method=method)
    await context.abort(
        grpc.StatusCode.INTERNAL,
        "the coordinator failed on this call; the organiser's log says why",
    )
