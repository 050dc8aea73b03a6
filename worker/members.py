"""Several devices of one machine: a home folder, a key and a daemon for each.

Invariants:

* The owner's settings are those of the folder that was joined; what stands in a member's folder is
  made of them anew at each start and each change, and is nobody's to edit. Its key, its delegation
  and its journal stay.
* Limits that are of the whole machine are divided: together the members hold them. One that is
  set never becomes 0, which would be no limit. Those of a GPU, and those that say when to work,
  hold for each member as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from protocol.errors import UsageError
from protocol.identity import Identity, PeerId
from worker import delegation
from worker.config import Home, WorkerConfig
from worker.devices import MAX_MEMBERS, Device, found_here, gpu_index, is_device_choice
from worker.limits import Limits

ALL = "all"
FOLDER = "devices"
"""In the home folder: that of each member."""

_SHARED = ("memory_mib", "disk_mib", "upload_kbit_s", "download_kbit_s", "daily_mib")
_PORT = re.compile(r"(/(?:tcp|udp)/)\d+")


@dataclass(frozen=True)
class Member:
    """One device with the folder of its daemon."""

    name: str
    device: Device
    home: Home


def parse_devices(text: str) -> tuple[Device, ...]:
    """The devices of ``--devices``: named with commas between, or all GPUs; blocking for those.

    Raises:
        UsageError: one is none, or there is no GPU.
    """
    if text.strip() != ALL:
        return checked_devices([part.strip() for part in text.split(",")])
    gpus = [device for device in found_here() if ":" in device]
    if not gpus:
        raise UsageError("torch finds no GPU here: name the devices, such as --devices cpu")
    return checked_devices(gpus)


def checked_devices(devices: Sequence[str]) -> tuple[Device, ...]:
    """Devices that may work side by side.

    Raises:
        UsageError: one is none of torch's, is not named exactly, or is there twice.
    """
    if not 1 <= len(devices) <= MAX_MEMBERS:
        raise UsageError(f"devices: between 1 and {MAX_MEMBERS} of them")
    for device in devices:
        if not is_device_choice(device) or device == "auto":
            raise UsageError(f"devices: {device!r} is none; name them as cuda:0,cuda:1 or cpu")
    gpus = [(device.partition(":")[0], gpu_index(device)) for device in devices if device != "cpu"]
    if len(set(gpus)) < len(gpus):
        raise UsageError("devices: each GPU can be named once")
    return tuple(devices)


def members_of(home: Home, devices: Sequence[Device]) -> list[Member]:
    """Who works where. ``cpu,cpu`` are ``cpu-0`` and ``cpu-1``."""
    members: list[Member] = []
    for device in devices:
        name = device.replace(":", "-")
        if devices.count(device) > 1:
            name += f"-{sum(member.device == device for member in members)}"
        members.append(Member(name, device, Home(home.path / FOLDER / name)))
    return members


def divide(limits: Limits, count: int) -> list[Limits]:
    """What each of so many members may take.

    Raises:
        UsageError: there is less than one thread for each.
    """
    if limits.threads and limits.threads < count:
        raise UsageError(
            f"limits: {limits.threads} thread(s) are too few for {count} devices, which need one "
            "each: allow more threads, or name fewer devices"
        )
    shared = {name: max(1, value // count) for name in _SHARED if (value := getattr(limits, name))}
    threads = max(limits.cpu_threads, count)
    return [
        replace(limits, threads=threads // count + (index < threads % count), **shared)
        for index in range(count)
    ]


def member_folders(home: Home) -> list[Home]:
    """Of every device that ever worked here, whatever the settings say now."""
    return [Home(path) for path in sorted((home.path / FOLDER).glob("*")) if path.is_dir()]


def write_members(home: Home, config: WorkerConfig) -> list[Member]:
    """Make each member's folder and key, and its settings out of the owner's; blocking.

    Raises:
        UsageError: a folder cannot be made, or the limits cannot be divided.
    """
    members = members_of(home, config.devices)
    for index, limits in enumerate(divide(config.limits, len(members))):
        member = members[index]
        member.home.prepare()
        if not member.home.identity.exists():
            Identity.generate().save(member.home.identity)
        own = replace(
            config,
            device=member.device,
            devices=(),
            members=len(members),
            member=index,
            name="",  # a donor has one, and says it itself
            evidence_mib=config.evidence_mib // len(members),
            listen=config.listen if index == 0 else tuple(map(_any_port, config.listen)),
            announce=config.announce if index == 0 else (),
            limits=limits,
        )
        own.save(member.home.config)
    return members


def vouch_for_members(
    members: Sequence[Member], environment: Mapping[str, str]
) -> dict[str, PeerId]:
    """Let this machine's donor key, made if there is none, vouch for each; blocking.

    A member that works for a donor already goes on so.

    Returns:
        The key of each member, by its name.

    Raises:
        UsageError: the donor's folder cannot be read or written.
    """
    from worker.donor.devices import vouch_for_neighbour

    keys = {}
    for member in members:
        worker = Identity.load(member.home.identity).peer_id
        if delegation.load(member.home) is None:
            delegation.keep(member.home, vouch_for_neighbour(worker, environment), worker)
        keys[member.name] = worker
    return keys


def our_root_pid(members: int) -> int:
    """The process whose descendants are this worker's own: its fleet, where it has one."""
    return os.getppid() if members > 1 else os.getpid()


def _any_port(address: str) -> str:
    return _PORT.sub(r"\g<1>0", address)
