"""Staying in touch with the run's anchors, which come and go.

An anchor that is started again has another address, another DHT node and perhaps another name. Who
lost all of them asks the coordinator for their addresses, dials, and takes them into the DHT. A
round that is under way does not wait for any of this: its reducers are in the roster.
"""

from __future__ import annotations

import asyncio
import random

import structlog

from protocol.errors import PeerFault, TransientError, UsageError
from worker.membership import peer_of
from worker.node import Node

log = structlog.get_logger()

CHECK_S = 8.0
"""Between two looks, which ask nobody but the daemon on this machine."""


async def stay_in_touch(node: Node) -> None:
    """See that this node knows an anchor that lives, for ever. Run it as a task."""
    membership, lost = node.swarm.membership, False
    while True:
        # Not all at the same moment: an anchor that comes back has a whole swarm to greet.
        await asyncio.sleep(random.uniform(0.5, 1.0) * CHECK_S)
        if membership.problem:
            continue
        found = await membership.in_touch()
        if not found:
            if membership.anchors and not lost:
                log.warning("lost the run's anchors: looking for them")
            lost = True
            await _ask(node)
            await membership.enter_again()
            found = await membership.in_touch()
        if found and lost:
            log.info("in touch with an anchor again", anchors=found)
            lost = False


async def _ask(node: Node) -> None:
    """Learn where the anchors are now; without the coordinator the old addresses must do."""
    try:
        greeting = await node.session.hello()
    except (TransientError, PeerFault, UsageError) as error:
        log.debug("anchors_not_told", why=str(error))
        return
    others = tuple(a for a in greeting.anchors if peer_of(a) != node.identity.peer_id)
    if others:
        node.swarm.membership.anchors = others
        node.sources.anchor_ids = tuple(dict.fromkeys(peer_of(a) for a in others))
