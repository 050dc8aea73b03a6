"""Messages between members and coordinator of the benchmark: a JSON line, then bytes if it says so.

The coordinator's exchange goes through the shaped link like everything else; only gRPC's own few
bytes and round trips (its connection stands already) are not there.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

LINE_BYTES = 1 << 24


class Channel:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, address: str, port: int) -> Channel:
        return cls(*await asyncio.open_connection(address, port, limit=LINE_BYTES))

    async def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        line = json.dumps({**message, "bytes": len(payload)}).encode() + b"\n"
        self._writer.write(line)
        self._writer.write(payload)
        await self._writer.drain()

    async def receive(self) -> tuple[dict[str, Any], bytes] | None:
        """The next message, or None at the end."""
        line = await self._reader.readline()
        if not line:
            return None
        message: dict[str, Any] = json.loads(line)
        return message, await self._reader.readexactly(message["bytes"])

    def close(self) -> None:
        self._writer.close()
