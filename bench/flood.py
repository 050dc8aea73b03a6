"""What floods cost: an honest device's waiting time, the coordinator's memory and open files.

A real ``coordinator serve``, each flood in a program of its own, and one honest device at the
flooded address that beats ten times a second all the while. Everything is on loopback and shares
this machine's cores, so the waiting times are those of a machine that floods itself.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.report import Row, write_report

sys.path.append(str(Path(__file__).parents[1] / "tests" / "chaos"))

from chaos_limits_rig import Server, flooding, honest, make_run, serve

NOTE = "one honest device beats throughout; flood, server and device share this machine"
MIB = 1 << 20


def run(quick: bool) -> list[Row]:
    """Measure every flood; ``quick`` only proves that it runs."""
    crowd, seconds = (200, 3) if quick else (5000, 10)
    floods: dict[str, tuple[str, tuple[Any, ...]]] = {
        "none": ("", ()),
        f"{crowd} clients, one address": ("crowd", ("--count", crowd)),
        f"{crowd} clients, many addresses": ("crowd", ("--count", crowd, "--many")),
        "unfinished handshakes": ("loris", ("--count", 100 if quick else 1000)),
        "readers that read nothing": ("readers", ("--count", 50)),
        "uploads that trickle": ("uploads", ("--count", 50)),
        "oversized and malformed": ("oversized", ("--count", 64)),
        "resets, pings, settings": ("frames", ("--count", 24)),
        "known keys at full speed": ("keys", ("--count", 8)),
        "strangers at full speed": ("strangers", ("--count", 8)),
    }
    if quick:
        floods = dict(list(floods.items())[:2])
    with tempfile.TemporaryDirectory() as folder:
        run_dir = make_run(Path(folder), "stalled_upload_s = 5.0\n")
        with serve(run_dir, Path(folder) / "coordinator.log") as server:
            rows = [
                asyncio.run(_measure(server, name, attack, options, seconds))
                for name, (attack, options) in floods.items()
            ]
    write_report("flood-quick" if quick else "flood", rows, note=NOTE)
    return rows


async def _measure(
    server: Server, name: str, attack: str, options: tuple[Any, ...], seconds: int
) -> Row:
    served_s, outcome = 0.0, ""
    files = server.open_files
    async with honest(server.link) as device:
        if attack:
            # A crowd stands until it is let go; the others end by themselves.
            limit_s = 300 if attack == "crowd" else seconds
            async with flooding(server.link, attack, *options, "--seconds", limit_s) as flood:
                standing = await flood.hear("standing")
                served_s = float(standing.get("seconds", 0.0))
                outcome = _words(await flood.end())
        else:
            await asyncio.sleep(seconds)
        peak = server.peak_rss_bytes
    left = await asyncio.to_thread(server.until_left, files + 2)
    return {
        "flood": name,
        "all_served_s": round(served_s, 1),
        "outcome": outcome,
        "honest_p50_ms": round(device.percentile_s(0.5) * 1000),
        "honest_p99_ms": round(device.percentile_s(0.99) * 1000),
        "honest_calls": len(device.seconds),
        "peak_rss_MiB": peak // MIB,
        "files_left": left - files,
    }


def _words(seen: dict[str, Any]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(seen.items()))
