"""Battery, memory and disk of this machine, and of machines made of files."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import structlog

from worker.limits import Limits
from worker.sensors.battery import Battery, read_battery
from worker.sensors.disk import free_disk_mib
from worker.sensors.idle import IdleTime
from worker.sensors.machine import Sensors
from worker.sensors.memory import free_memory_mib


def supply(root: Path, name: str, **files: str) -> None:
    folder = root / name
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text + "\n")


MAINS_ON = {"type": "Mains", "online": "1"}
MAINS_OFF = {"type": "Mains", "online": "0"}
FULL = {"type": "Battery", "status": "Full", "capacity": "100", "scope": "System"}
DRAINING = {"type": "Battery", "status": "Discharging", "capacity": "61"}
MOUSE = {"type": "Battery", "status": "Discharging", "capacity": "5", "scope": "Device"}


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({}, Battery(False)),  # a desktop
        ({"hidpp_battery_0": MOUSE}, Battery(False)),
        ({"AC": MAINS_OFF, "hidpp_battery_0": MOUSE}, Battery(False)),
        ({"AC": MAINS_ON, "BAT0": FULL}, Battery(False, 100.0)),
        ({"AC": MAINS_OFF, "BAT0": DRAINING}, Battery(True, 61.0)),
        ({"AC": MAINS_OFF, "BAT0": FULL}, Battery(True, 100.0)),  # unplugged this very moment
        ({"AC": MAINS_ON, "BAT0": DRAINING}, Battery(False, 61.0)),  # a charger that is too weak
        (
            {"usb0": {"type": "USB", "online": "0"}, "usb1": {"type": "USB", "online": "1"}}
            | {"BAT0": DRAINING},
            Battery(False, 61.0),
        ),
        ({"BAT0": DRAINING, "BAT1": FULL}, Battery(True, 80.5)),
        ({"BAT0": FULL}, Battery(False, 100.0)),
        ({"BAT0": {**DRAINING, "status": "Not charging"}}, Battery(False, 61.0)),
        ({"BAT0": {**DRAINING, "status": "Unknown"}}, Battery(None, 61.0)),
        ({"BAT0": {"type": "Battery"}}, Battery(None)),  # a firmware that tells nothing
        ({"BAT0": {**DRAINING, "capacity": "many"}}, Battery(True)),
        ({"ups": {"type": "UPS", "status": "Discharging", "capacity": "40"}}, Battery(True, 40.0)),
    ],
)
def test_supplies(tmp_path: Path, supplies: dict[str, dict[str, str]], expected: Battery) -> None:
    for name, files in supplies.items():
        supply(tmp_path, name, **files)
    assert read_battery(tmp_path) == expected


def test_without_a_folder_of_supplies_the_system_is_asked(tmp_path: Path) -> None:
    found, told = psutil.sensors_battery(), read_battery(tmp_path / "none")
    assert told is not None
    assert told.percent == (None if found is None else found.percent)


def test_this_machine_tells_of_its_supplies() -> None:
    told = read_battery()
    assert told is not None
    assert told.discharging in (True, False, None)


# ---- memory and disk -------------------------------------------------------------------


def memory(root: Path, available_kib: int) -> Path:
    (root / "meminfo").write_text(f"MemTotal: 999 kB\nMemAvailable:  {available_kib} kB\n")
    return root


def cgroup(root: Path, most: str, used: int, inactive: int) -> Path:
    folder = root / "cgroup"
    folder.mkdir()
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nfile 6\n")
    return folder


def test_free_memory_is_what_can_be_had(tmp_path: Path) -> None:
    proc = memory(tmp_path, 2048 << 10)
    assert free_memory_mib(proc, tmp_path / "none") == 2048


@pytest.mark.parametrize(
    ("most", "used_mib", "inactive_mib", "expected"),
    [
        ("max", 900, 0, 2048),
        (str(1024 << 20), 900, 100, 224),
        (str(1024 << 20), 1100, 0, 0),
        (str(8192 << 20), 900, 0, 2048),
    ],
)
def test_in_a_container_its_own_limit_counts(
    tmp_path: Path, most: str, used_mib: int, inactive_mib: int, expected: int
) -> None:
    proc = memory(tmp_path, 2048 << 10)
    limited = cgroup(tmp_path, most, used_mib << 20, inactive_mib << 20)
    assert free_memory_mib(proc, limited) == expected


def test_memory_of_this_machine() -> None:
    free_mib = free_memory_mib()
    assert free_mib is not None
    assert 0 < free_mib <= psutil.virtual_memory().total >> 20


def test_where_there_is_no_proc_psutil_tells_of_memory(tmp_path: Path) -> None:
    free_mib = free_memory_mib(tmp_path, tmp_path)
    assert free_mib is not None
    assert 0 < free_mib <= psutil.virtual_memory().total >> 20


def test_disk_of_this_machine(tmp_path: Path) -> None:
    assert 0 < free_disk_mib(tmp_path) <= psutil.disk_usage(str(tmp_path)).total >> 20


# ---- all together ----------------------------------------------------------------------


def test_everything_of_this_machine_at_once(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path, gpu_temperature_c=lambda: 51.0)
    first = sensors.read()
    sensors.close()
    assert first.foreign_cpu_percent is None
    assert first.gpu_temperature_c == 51.0
    assert first.free_disk_mib is not None
    assert first.free_memory_mib is not None


def test_limits_that_nothing_here_tells_the_measure_of_are_named(tmp_path: Path) -> None:
    blind = IdleTime(dev=tmp_path, runtime=tmp_path, displays=tmp_path)
    limits = Limits(idle_minutes=5, busy_cpu_percent=25, gpu_temperature_c=80)
    sensors = Sensors(tmp_path, gpu_temperature_c=lambda: 51.0, idle=blind)
    assert sensors.without_effect(limits) == [
        "idle_minutes has no effect: this machine does not tell when somebody used it last"
    ]
    sensors.close()


def test_a_sensor_that_fails_costs_its_own_reading_and_one_line(tmp_path: Path) -> None:
    def broken() -> float | None:
        raise RuntimeError("the driver went away")

    sensors = Sensors(tmp_path / "gone", gpu_temperature_c=broken)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            readings = sensors.read()
    sensors.close()
    assert readings.gpu_temperature_c is None
    assert readings.free_disk_mib is None  # the folder is not there
    assert readings.free_memory_mib is not None
    assert [line["sensor"] for line in lines] == ["GPU", "disk"]
    assert "the driver went away" in lines[0]["problem"]
