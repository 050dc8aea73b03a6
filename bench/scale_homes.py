"""Who takes part in a simulated run: links of homes, and the organiser's machines.

Classes of links are assumptions and parameters, not measurements: the kinds of access that the
FCC's reports "Measuring Broadband America" tell apart (DSL, cable, fibre), with rates and delays of
the order that such links are sold with, and a quarter on the slowest kind, so that no result rests
on everybody having fibre. Rates of one class vary by a log-normal factor. Latency is to the middle
of the network: two homes are 30 to 100 ms apart, there and back.

About a third of the homes can be dialled, by an open port or their router's UPnP (docs/nat.md): an
assumption, too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.scale_network import Node, Processors, Server

MBIT = 1e6 / 8  # bytes/s


@dataclass(frozen=True)
class Link:
    """A class of access links."""

    name: str
    share: float
    up_mbit_s: float
    down_mbit_s: float
    latency_s: float  # one way, to the middle
    reachable: float  # share of them that can be dialled


HOMES = (
    Link("DSL or radio", 0.25, 8, 40, 0.025, 0.1),
    Link("cable", 0.35, 20, 200, 0.015, 0.3),
    Link("fibre", 0.35, 200, 300, 0.008, 0.4),
    Link("campus", 0.05, 1000, 1000, 0.005, 0.8),
)
ANCHOR = Link("anchor", 0.0, 1000, 1000, 0.005, 1.0)

SPREAD = 0.3
"""Standard deviation of the logarithm of a rate within its class."""

EFFICIENCY = 0.9
"""Of a link's rate: what is left after headers (4 to 6 %), loss and slow start."""

CORES = 2
"""Processors that a member spares for its reduce; an anchor has four times as many."""


@dataclass(frozen=True)
class Member:
    """A drawn member, before a simulation gives it a node."""

    up_bytes_s: float
    down_bytes_s: float
    latency_s: float
    cores: int
    reachable: bool
    anchor: bool = False

    @property
    def slower_bytes_s(self) -> float:
        """What a reducer can take in and give out alike."""
        return min(self.up_bytes_s, self.down_bytes_s)

    def node(self) -> Node:
        """A fresh one, with nothing on its links."""
        return Node(
            up=Server(self.up_bytes_s),
            down=Server(self.down_bytes_s),
            cpu=Processors(self.cores),
            latency_s=self.latency_s,
        )


def draw_members(
    count: int,
    anchors: int,
    dice: random.Random,
    homes: tuple[Link, ...] = HOMES,
    anchor: Link = ANCHOR,
) -> list[Member]:
    """Anchors first, then ``count`` homes; the same seed, the same run."""
    drawn = dice.choices(homes, [link.share for link in homes], k=count)
    return [
        *(_member(anchor, 1.0, 4 * CORES, dice, is_anchor=True) for _ in range(anchors)),
        *(_member(link, dice.lognormvariate(0, SPREAD), CORES, dice) for link in drawn),
    ]


def _member(
    link: Link, factor: float, cores: int, dice: random.Random, *, is_anchor: bool = False
) -> Member:
    rate = factor * EFFICIENCY * MBIT
    return Member(
        up_bytes_s=link.up_mbit_s * rate,
        down_bytes_s=link.down_mbit_s * rate,
        latency_s=link.latency_s,
        cores=cores,
        reachable=dice.random() < link.reachable,
        anchor=is_anchor,
    )
