"""A program that floods a coordinator: ``chaos_flood.py LINK ATTACK [--count N] ...``.

One attack each, bounded in number and time. It prints ``{"event": "standing", ...}`` when
everything stands or has been tried once, holds it until stdin ends or the time is over, and prints
``{"event": "done", ...}`` with what became of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
from chaos_http2 import (
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    Connection,
    call_headers,
    connect,
    frame,
    message,
    tls_context,
)

from protocol.channel import open_channel, trusted_certificate
from protocol.envelope import payload_type, seal
from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from protocol.wire.service_pb2_grpc import CoordinatorStub

BATCH = 250  # connections in the making at once: the kernel's queue holds 4,096


@dataclass(frozen=True)
class Flood:
    """What is flooded, and how much."""

    link: JoinLink
    count: int
    seconds: float
    many: bool  # from many addresses of loopback, else from one

    def source(self, number: int) -> str | None:
        return f"127.{1 + number % 200}.{number // 200 % 250}.9" if self.many else None

    async def open(self, number: int) -> Connection:
        link = self.link
        return await Connection.open(
            link.host, link.port, tls_context(), source=self.source(number)
        )

    async def each(self, work: Callable[[int], Awaitable[str]]) -> Counter[str]:
        """Do ``work`` for every number, a batch at a time; counts what it says."""
        turn = asyncio.Semaphore(BATCH)
        seen: Counter[str] = Counter()

        async def one(number: int) -> None:
            async with turn:
                try:
                    seen[await work(number)] += 1
                except OSError as error:
                    seen[type(error).__name__] += 1

        async with asyncio.TaskGroup() as tasks:
            for number in range(self.count):
                tasks.create_task(one(number))
        return seen


def say(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


async def hold(seconds: float) -> None:
    """Until stdin ends, but no longer than this."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    try:
        async with asyncio.timeout(seconds):
            await reader.read()
    except TimeoutError:
        return


# ---- many connections --------------------------------------------------------------------


async def crowd(flood: Flood) -> Counter[str]:
    """Everybody connects, says Hello and stays."""
    hello = api.HelloRequest(client_version="0.1.0", run_id=flood.link.run_id).SerializeToString()
    open_now: list[Connection] = []

    async def visit(number: int) -> str:
        connection = await flood.open(number)
        open_now.append(connection)
        answer = await connection.ask("Hello", hello)
        return "replied" if answer.replied else f"status {answer.status}"

    began_s = time.monotonic()
    seen = await flood.each(visit)
    say("standing", seconds=time.monotonic() - began_s, open=len(open_now), **seen)
    await hold(flood.seconds)
    for connection in open_now:
        connection.close()
    return seen


async def loris(flood: Flood) -> Counter[str]:
    """Half of them never begin the handshake, half stop in the middle of it."""
    seen: Counter[str] = Counter()
    standing = asyncio.Semaphore(0)

    async def stand(number: int) -> None:
        sock = await connect(flood.link.host, flood.link.port, source=flood.source(number))
        loop = asyncio.get_running_loop()
        try:
            if number % 2:
                await loop.sock_sendall(sock, b"\x16\x03\x01\x02\x00\x01")  # a ClientHello's head
            standing.release()
            async with asyncio.timeout(flood.seconds):
                while await loop.sock_recv(sock, 4096):
                    pass
            seen["closed"] += 1
        except TimeoutError:
            seen["still open"] += 1
        except OSError:
            seen["closed"] += 1
        finally:
            sock.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(flood.count):
            tasks.create_task(stand(number))
        for _ in range(flood.count):
            await standing.acquire()
        say("standing", open=flood.count)
    return seen


# ---- slow streams ------------------------------------------------------------------------


async def readers(flood: Flood) -> Counter[str]:
    """Ask for the weights again and again, and read nothing."""
    head = await _head(flood)
    request = api.GetStateRequest(
        run_id=flood.link.run_id, state_digest=head.state_digest, part=api.STATE_PART_WEIGHTS
    ).SerializeToString()
    # No window for any stream: not a byte of an answer may be sent.
    closed_window = frame(SETTINGS, 0, 0, b"\x00\x04" + bytes(4))

    async def stand(connection: Connection) -> str:
        await connection.send(closed_window)
        stream = await connection.start("GetState")
        await connection.send(frame(DATA, 1, stream, message(request)))
        return await _end_of(connection, stream, flood.seconds)

    return await _stand_all(flood, stand)


async def uploads(flood: Flood) -> Counter[str]:
    """Begin to deliver results, and go on forever with a byte now and then."""

    async def stand(connection: Connection) -> str:
        stream = await connection.start("SubmitResults")
        await connection.send(frame(DATA, 0, stream, b"\0\x00\x10\x00\x00"))  # 1 MiB is to come
        async with asyncio.TaskGroup() as tasks:
            trickling = tasks.create_task(_trickle(connection, stream))
            ended = await _end_of(connection, stream, flood.seconds)
            trickling.cancel()
        return ended

    return await _stand_all(flood, stand)


async def _trickle(connection: Connection, stream: int) -> None:
    while True:
        await asyncio.sleep(0.5)
        try:
            await connection.send(frame(DATA, 0, stream, b"\x0a"))
        except OSError:
            return


async def _stand_all(flood: Flood, stand: Callable[[Connection], Awaitable[str]]) -> Counter[str]:
    seen: Counter[str] = Counter()
    connections = [await flood.open(number) for number in range(flood.count)]

    async def one(connection: Connection) -> None:
        try:
            seen[await stand(connection)] += 1
        except OSError as error:
            seen[type(error).__name__] += 1
        finally:
            connection.close()

    async with asyncio.TaskGroup() as tasks:
        for connection in connections:
            tasks.create_task(one(connection))
        say("standing", open=len(connections))
    return seen


async def _end_of(connection: Connection, stream: int, within_s: float) -> str:
    try:
        async with asyncio.timeout(within_s):
            answer = await connection.answer(stream)
    except TimeoutError:
        return "still open"
    except OSError:
        return "closed"
    return f"status {answer.status}" if answer.status is not None else "reset"


async def _head(flood: Flood) -> wire.RunHead:
    async with open_channel(flood.link, await trusted_certificate(flood.link)) as channel:
        reply = await CoordinatorStub(channel).Hello(
            api.HelloRequest(client_version="0.1.0", run_id=flood.link.run_id), timeout=60
        )
    return wire.RunHead.FromString(reply.run_head.payload)


# ---- volume ------------------------------------------------------------------------------


async def oversized(flood: Flood) -> Counter[str]:
    """Messages over the limit, nested and repeated beyond measure; headers, too."""
    nested = b""
    for _ in range(2000):
        nested = b"\x0a" + _varint(len(nested)) + nested
    bodies = (
        bytes(5 << 20),
        b"\x1a\x00" * (1 << 20),  # a million empty signatures
        nested,
        secrets.token_bytes(1 << 20),
    )
    methods = ("Commit", "Heartbeat", "Enrol", "ReducerReport", "GetState", "AnswerChallenge")

    async def shout(number: int) -> str:
        connection = await flood.open(number)
        try:
            if number % 8 == 7:
                stream = await connection.start("Hello", ("x-noise", "a" * (1 << 15)))
                return await _end_of(connection, stream, flood.seconds)
            stream = await connection.start(methods[number % len(methods)])
            body = message(bodies[number % len(bodies)])
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(_send_slices(connection, stream, body))
                ended = await _end_of(connection, stream, flood.seconds)
                sending.cancel()
            return ended
        finally:
            connection.close()

    seen = await flood.each(shout)
    say("standing")
    return seen


async def _send_slices(connection: Connection, stream: int, body: bytes) -> None:
    """Without regard to any window: who enforces one will hang up."""
    step = 1 << 14
    try:
        for at in range(0, len(body), step):
            last = at + step >= len(body)
            await connection.send(frame(DATA, int(last), stream, body[at : at + step]))
    except OSError:
        return


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes((*out, value))


async def garbage(flood: Flood) -> Counter[str]:
    """Plain text and noise on the TLS port, and noise inside of TLS."""

    async def babble(number: int) -> str:
        loop = asyncio.get_running_loop()
        if number % 3 == 2:
            connection = await flood.open(number)
            try:
                await connection.send(secrets.token_bytes(1 << 14))
                return await _end_of(connection, 1, flood.seconds)
            finally:
                connection.close()
        noise = b"GET / HTTP/1.1\r\n\r\n" if number % 3 else secrets.token_bytes(4096)
        sock = await connect(flood.link.host, flood.link.port, source=flood.source(number))
        try:
            await loop.sock_sendall(sock, noise)
            async with asyncio.timeout(flood.seconds):
                while await loop.sock_recv(sock, 4096):
                    pass
            return "closed"
        finally:
            sock.close()

    seen = await flood.each(babble)
    say("standing")
    return seen


async def frames(flood: Flood) -> Counter[str]:
    """Streams opened and reset at once, pings and settings, as fast as they go (CVE-2023-44487)."""
    block = call_headers("Hello")
    until_s = time.monotonic() + flood.seconds

    def burst(number: int, first: int) -> bytes:
        if number % 3 == 1:
            return frame(PING, 0, 0, bytes(8)) * 200
        if number % 3 == 2:
            return frame(SETTINGS, 0, 0, b"\x00\x03\x00\x00\x00\x64") * 200
        pairs = (
            frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
            for stream in range(first, first + 200, 2)
        )
        return b"".join(pairs)

    async def drown(number: int) -> str:
        sent, connection = 0, None
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    if connection is None:
                        connection, first = await flood.open(number), 1
                    await connection.send(burst(number, first))
                    first, sent = first + 200, sent + 1
            except OSError:  # sent away: comes back; or the time is over
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()
        return "done" if sent else "never"

    say("standing")
    return await flood.each(drown)


# ---- keys --------------------------------------------------------------------------------


async def keys(flood: Flood) -> Counter[str]:
    """Devices that were let in beat, ask and commit as fast as they can, until one is refused.

    How fast that is depends on the machine; a slow one comes to the limit of a key later.
    """
    pem = await trusted_certificate(flood.link)
    until_s = time.monotonic() + flood.seconds
    seen: Counter[str] = Counter()

    async def one(number: int) -> None:
        identity = Identity.generate()
        async with open_channel(flood.link, pem) as channel:
            stub = CoordinatorStub(channel)
            while True:
                enrolled = await _answered(stub.Enrol(enrolment(flood.link, identity)))
                seen[f"enrol {enrolled}"] += 1
                if enrolled == "ok" or time.monotonic() > until_s:
                    break
                await asyncio.sleep(0.2)
            standing.release()
            async with asyncio.TaskGroup() as lanes:
                for _ in range(4):
                    lanes.create_task(flooding(stub, identity))

    async def flooding(stub: CoordinatorStub, identity: Identity) -> None:
        while time.monotonic() < until_s or not seen[_REFUSED]:
            beat = wire.Heartbeat(
                run_id=flood.link.run_id, worker=identity.peer_id, freshness=freshness()
            )
            unit = wire.Contribution(
                run_id=flood.link.run_id, worker=identity.peer_id, round=secrets.randbelow(9)
            )
            seen[await _answered(stub.Heartbeat(seal(beat, identity)))] += 1
            seen[await _answered(stub.Commit(seal(unit, identity)))] += 1

    standing = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as tasks:
        for number in range(flood.count):
            tasks.create_task(one(number))
        for _ in range(flood.count):
            await standing.acquire()
        say("standing")
    return seen


async def strangers(flood: Flood) -> Counter[str]:
    """New keys enrol without end, watch, and sign rubbish; a few with signatures that are wrong."""
    pem = await trusted_certificate(flood.link)
    until_s = time.monotonic() + flood.seconds
    seen: Counter[str] = Counter()

    async def one() -> None:
        async with open_channel(flood.link, pem) as channel:
            stub = CoordinatorStub(channel)
            while time.monotonic() < until_s:
                identity = Identity.generate()
                seen[await _answered(stub.Enrol(enrolment(flood.link, identity)))] += 1
                watch = wire.WatchRequest(
                    run_id=flood.link.run_id, worker=identity.peer_id, freshness=freshness()
                )
                stream = stub.Watch(seal(watch, identity), timeout=20)
                seen["watch " + await _answered(stream.read())] += 1
                rubbish = wire.Envelope(
                    payload=secrets.token_bytes(1000), payload_type=payload_type(wire.Contribution)
                )
                rubbish.signatures.add(keyid=identity.peer_id, sig=secrets.token_bytes(64))
                seen[await _answered(stub.Commit(rubbish))] += 1

    say("standing")
    async with asyncio.TaskGroup() as tasks:
        for _ in range(flood.count):
            tasks.create_task(one())
    return seen


_REFUSED = "RESOURCE_EXHAUSTED"


async def _answered(call: Awaitable[object]) -> str:
    """``ok``, or the name of the status; RESOURCE_EXHAUSTED without a hint is told apart."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        rude = error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and b"RetryInfo" not in details
        return error.code().name + (" without a hint" if rude else "")
    return "ok"


def freshness() -> wire.Freshness:
    return wire.Freshness(sent_at_ms=int(time.time() * 1000), nonce=secrets.token_bytes(16))


def enrolment(link: JoinLink, identity: Identity) -> wire.Envelope:
    record = wire.Enrolment(
        run_id=link.run_id,
        worker=identity.peer_id,
        donor=identity.peer_id,
        client_version="0.1.0",
        device=wire.Device(device_class="cpu", name="a flood", threads=1),
        client_mode=True,
        freshness=freshness(),
    )
    return seal(record, identity)


ATTACKS = {
    attack.__name__: attack
    for attack in (crowd, loris, readers, uploads, oversized, garbage, frames, keys, strangers)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("link", type=JoinLink.parse)
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--many", action="store_true", help="from many addresses")
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    flood = Flood(given.link, given.count, given.seconds, given.many)
    try:
        seen = asyncio.run(ATTACKS[given.attack](flood))
    except UsageError as error:
        sys.exit(str(error))
    say("done", **dict(seen))


if __name__ == "__main__":
    main()
