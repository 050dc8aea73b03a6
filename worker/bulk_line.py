"""The connection that carries what is large, and that the coordinator knows for this device's.

What comes unsigned on a connection counts as the device's that has signed a request on it, and else
as a stranger's, who has few places (docs/adr/0024). So a heartbeat goes over it before something
large does, where none did for a while: gRPC does not tell when it connects anew.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import grpc

from protocol.channel import channel_was_left
from protocol.wire import records_pb2 as wire
from protocol.wire.service_pb2_grpc import CoordinatorStub
from worker.clock import steady_s

_PROOF_S = 30.0
_TIMEOUT_S = 10.0


@dataclass
class BulkLine:
    """One channel; ``sign`` seals a heartbeat that is dated now."""

    stub: CoordinatorStub
    sign: Callable[[wire.Heartbeat], wire.Envelope]
    _proven_s: float = -math.inf

    async def proven(self, beat: wire.Heartbeat | None) -> CoordinatorStub:
        """The stub, once the coordinator was shown whose connection it is, if it could be.

        Args:
            beat: the last one that was sent; None: there was none, and nobody knows this device.
        """
        if beat is not None and steady_s() - self._proven_s > _PROOF_S:
            with suppress(grpc.aio.AioRpcError):  # then it is a stranger's, for this time
                await self._show(beat)
        return self.stub

    async def _show(self, beat: wire.Heartbeat) -> None:
        try:
            await self.stub.Heartbeat(self.sign(beat), timeout=_TIMEOUT_S)
        except asyncio.CancelledError:
            if not channel_was_left():
                raise
        else:
            self._proven_s = steady_s()
