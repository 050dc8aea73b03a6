"""Which device trains: what its owner names, what is here, and what others are told of it.

Invariants:

* A choice is ``auto``, ``cpu``, ``mps``, ``cuda`` or one GPU of several, ``cuda:1``. What goes over
  the network, and decides which bounds an audit has, is the class alone: ``cpu cuda mps``.
* GPUs have the numbers that ``nvidia-smi`` shows, within ``CUDA_VISIBLE_DEVICES`` where that is
  set: :data:`PCI_ORDER` is in every trainer's environment.
* A GPU that the owner named is waited for and then refused, never replaced by the processor: a
  driver may come up minutes after the daemon does. Who says ``auto`` takes what is here now.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, cast

from protocol.errors import UsageError

Device = str
"""``cpu``, ``mps``, ``cuda`` or ``cuda:1``: what torch calls it."""

DeviceClass = Literal["cpu", "cuda", "mps"]

PCI_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Without it CUDA counts the fastest GPU first, and nvidia-smi and NVML do not."""

DEVICES = "cpu, mps, cuda, or one GPU of several: cuda:0, cuda:1 ..."
CHOICES = f"auto, {DEVICES}"
MAX_MEMBERS = 16
"""Devices of one machine that work side by side."""

GPU_PATIENCE_S = 300.0
"""How long a GPU that the owner named may come late."""

_CHOICE = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9]\d?))?")
_AGAIN_S = 5.0
_PROBE_S = 120.0  # a busy machine at its start loads torch slowly


def is_device_choice(text: str) -> bool:
    return _CHOICE.fullmatch(text) is not None


def device_class(device: Device) -> DeviceClass:
    """What others are told: the device without its number."""
    return cast(DeviceClass, device.partition(":")[0])


def gpu_index(device: Device) -> int | None:
    """Which of the visible GPUs it is; None: it is none of CUDA's."""
    name, _, index = device.partition(":")
    return int(index or 0) if name == "cuda" else None


def found_here() -> list[Device]:
    """Devices, the best first; blocking (loads torch)."""
    import torch

    found = []
    if torch.cuda.is_available():
        found = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def pick_device(choice: str, found: list[Device] | None = None) -> Device:
    """``auto`` is the best device that there is; blocking (loads torch).

    Raises:
        UsageError: the one asked for is not there.
    """
    if choice == "cpu":
        return choice
    found = found_here() if found is None else found
    if choice == "auto":
        return found[0]
    if choice in found:
        return choice
    raise UsageError(f"device {choice!r} is not here; torch finds: {', '.join(found)}")


async def wait_for_device(
    choice: str,
    tell: Callable[[str], None],
    *,
    look: Callable[[], list[Device]] = found_here,
    patience_s: float = GPU_PATIENCE_S,
    again_s: float = _AGAIN_S,
) -> Device:
    """The device, once it is here: a GPU that the owner named has some minutes for that.

    Args:
        choice: the owner's.
        tell: takes the reason for the wait.
        look: a first look, in a thread.
        patience_s: how long to wait for a GPU.
        again_s: between two looks.

    Raises:
        UsageError: it is not here.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + patience_s
    found = await asyncio.to_thread(look) if choice != "cpu" else []
    while True:
        try:
            return pick_device(choice, found)
        except UsageError:
            left_s = until_s - loop.time()
            if gpu_index(choice) is None or left_s <= 0:
                raise
        tell(
            f"the GPU {choice} is not here yet: its driver may still be loading. Waits for it "
            f"{patience_s / 60:.0f} minutes in all; 'nvidia-smi' shows what the driver sees"
        )
        await asyncio.sleep(min(again_s, left_s))
        found = await look_afresh()


async def look_afresh() -> list[Device]:
    """Devices as a new process finds them: in one that looked too early CUDA stays unavailable."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "worker.devices"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_PROBE_S):
            output, _ = await process.communicate()
        found: list[Device] = json.loads(output)
    except (TimeoutError, ValueError):
        return ["cpu"]
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return found


if __name__ == "__main__":
    json.dump(found_here(), sys.stdout)
