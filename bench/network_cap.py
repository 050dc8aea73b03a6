"""How well the owner's network limits hold, as an interface's byte counters see it.

In network namespaces (needs root). Peer to peer: three members reduce, each a reducer, one of them
limited both ways, long enough for a minute's window. gRPC: a client fetches a shard from a real
coordinator again and again, another one sends it answers as large as an audit's; both say Hello
once a second meanwhile. The counters include Ethernet headers and whatever else goes through.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from bench.report import Row, write_report
from protocol.update import ChunkLayout

_TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(_TESTS / "chaos"), str(_TESTS / "swarm"), str(_TESTS)]

from chaos_net import Internet, open_internet  # noqa: E402
from chaos_net_cap import DOWN, UP, CappedClient, Wire, capped_reduce  # noqa: E402

NOTE = (
    "bytes of the interface in a window of a minute, as a share of the cap: in the busiest one,"
    " and on average from the first to the last hundredth; three members reduce, all of them"
    " reducers; the slowest Hello went out beside the blobs"
)
CHUNK_ELEMENTS = 1 << 17
MEMBERS = 3
_WINDOW_S = 60.0


def run(quick: bool) -> list[Row]:
    """Measure caps of 2 and 8 Mbit/s for over a minute; ``quick``: one cap, some seconds."""
    caps, for_s = ((4000,), 8.0) if quick else ((2000, 8000), 75.0)
    rows = [row for kbit_s in caps for row in _measure(kbit_s, for_s)]
    write_report("network_cap-quick" if quick else "network_cap", rows, note=NOTE)
    return rows


def _measure(kbit_s: int, for_s: float) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, open_internet() as internet:
        served = CappedClient(Path(folder), internet)
        with served.serving():
            return asyncio.run(_all(internet, Path(folder), served, kbit_s, for_s))


async def _all(
    internet: Internet, folder: Path, served: CappedClient, kbit_s: int, for_s: float
) -> list[Row]:
    """Everything at the same time: each has a line of its own."""
    async with asyncio.TaskGroup() as tasks:
        peers = tasks.create_task(_reduce(internet, folder, kbit_s, for_s))
        up = tasks.create_task(served.work("sender", UP, for_s, upload_kbit_s=kbit_s))
        down = tasks.create_task(served.work("fetcher", DOWN, for_s, download_kbit_s=kbit_s))
    rows = [_row(peers.result(), way, "P2P", kbit_s, None) for way in (UP, DOWN)]
    for way, (seen, told) in ((UP, up.result()), (DOWN, down.result())):
        rows.append(_row(seen, way, "gRPC", kbit_s, max(told["hellos_s"])))
    return rows


async def _reduce(internet: Internet, folder: Path, kbit_s: int, for_s: float) -> Wire:
    # A member sends two thirds of its update, and what it has reduced to two others.
    bytes_a_way = kbit_s * 125 * for_s
    elements = int(bytes_a_way * MEMBERS / (MEMBERS - 1) / 2)
    limits = {"upload_kbit_s": kbit_s, "download_kbit_s": kbit_s}
    layout = ChunkLayout(elements, CHUNK_ELEMENTS)
    async with (
        capped_reduce(folder, internet, layout, limits, others=MEMBERS - 1) as made,
        made.watching() as seen,
    ):
        await made.reduce()
    return seen


def _row(seen: Wire, way: str, kind: str, kbit_s: int, hello_s: float | None) -> Row:
    rate = kbit_s * 125
    moving_s = seen.moving_s(way)
    window_s = min(_WINDOW_S, moving_s)
    busiest = seen.most_in(way, window_s)
    return {
        "cap_kbit_s": kbit_s,
        "direction": way,
        "kind": kind,
        "window_s": window_s,
        "busiest_window_MB": busiest / 1e6,
        "ratio_busiest": busiest / (rate * window_s),
        "ratio_mean": 0.98 * seen.passed(way) / (rate * moving_s),
        "over_in_any_window_s": seen.excess_bytes(way, rate) / rate,
        "slowest_hello_s": "" if hello_s is None else hello_s,
    }
