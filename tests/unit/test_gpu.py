"""Devices and GPUs: the owner's choice, what NVML tells, caps on memory and power."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.errors import UsageError
from protocol.tolerance import ToleranceTable
from worker import devices
from worker.config import WorkerConfig
from worker.devices import device_class, gpu_index, pick_device, wait_for_device
from worker.gpu_caps import GpuPowerCap
from worker.gpu_pace import PowerPace
from worker.sensors.gpu import GpuReading, open_gpu, read_gpu
from worker.trainer import _environment

LINK = (
    "barnraise://127.0.0.1:7443/"
    + "ab" * 32
    + "#root=12D3KooWBMaEf8ZVKXhgBdLoDm5Q9cTCDAG4zoHWHPDt8mVHvK7F"
)
TWO_GPUS = ["cuda", "cuda:0", "cuda:1", "cpu"]


class NvmlRefusal(Exception):
    """As pynvml's NVMLError."""

    def __init__(self, value: int) -> None:
        super().__init__({4: "Insufficient Permissions", 3: "Not Supported"}.get(value, "Failed"))
        self.value = value


@dataclass
class Card:
    uuid: str
    temperature_c: int = 61
    power_mw: int = 150_000
    limit_mw: int = 350_000
    energy_mj: int | None = 0
    samples: list[Any] = field(default_factory=list)


class FakeNvml:
    """The functions of the module ``pynvml`` that are used here, of a machine with some cards."""

    NVMLError = NvmlRefusal
    NVML_TEMPERATURE_GPU = 0
    NVML_ERROR_NOT_FOUND = 6

    def __init__(self, *cards: Card, root: bool = True, driver: bool = True) -> None:
        self.cards, self.root, self.driver = list(cards), root, driver
        self.refusals = 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NvmlRefusal(9)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        if index >= len(self.cards):
            raise NvmlRefusal(2)
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        for card in self.cards:
            if card.uuid == uuid:
                return card
        raise NvmlRefusal(6)

    def nvmlDeviceGetName(self, card: Card) -> str:
        return "Test GPU"

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return card.temperature_c

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:
        return card.power_mw

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        return SimpleNamespace(used=3 << 30, total=24 << 30)

    def nvmlDeviceGetProcessUtilization(self, card: Card, since_us: int) -> list[Any]:
        assert since_us > 1_500_000_000_000_000, "microseconds of the Unix clock"
        if not card.samples:
            raise NvmlRefusal(self.NVML_ERROR_NOT_FOUND)
        return card.samples

    def nvmlDeviceGetTotalEnergyConsumption(self, card: Card) -> int:
        if card.energy_mj is None:
            raise NvmlRefusal(3)
        return card.energy_mj

    def nvmlDeviceGetPowerManagementLimitConstraints(self, card: Card) -> tuple[int, int]:
        return 100_000, 350_000

    def nvmlDeviceGetPowerManagementLimit(self, card: Card) -> int:
        return card.limit_mw

    def nvmlDeviceSetPowerManagementLimit(self, card: Card, limit_mw: int) -> None:
        if not self.root:
            self.refusals += 1
            raise NvmlRefusal(4)
        assert 100_000 <= limit_mw <= 350_000, "NVML takes nothing else"
        card.limit_mw = limit_mw


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml(Card("GPU-a"), Card("GPU-b", temperature_c=80))


# ---- the choice ------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:7", "cuda:15"])
def test_what_an_owner_may_name(choice: str) -> None:
    assert WorkerConfig(link=LINK, device=choice).device == choice


@pytest.mark.parametrize(
    "choice",
    ["", "gpu", "cuda:", "cuda:-1", "cuda:01", "cuda:100", "cuda:1 ", "cpu:0", "CUDA", "cuda:1\n"],
)
def test_what_no_device_is_called(choice: str) -> None:
    with pytest.raises(UsageError, match="cuda:0, cuda:1"):
        WorkerConfig(link=LINK, device=choice)


def test_others_are_told_the_class_alone() -> None:
    assert [device_class(name) for name in ("cpu", "cuda", "cuda:1", "mps")] == [
        "cpu",
        "cuda",
        "cuda",
        "mps",
    ]


def test_the_best_device_that_is_here_is_auto() -> None:
    assert pick_device("auto", TWO_GPUS) == "cuda"
    assert pick_device("auto", ["cpu"]) == "cpu"
    assert pick_device("cuda:1", TWO_GPUS) == "cuda:1"


def test_a_gpu_that_is_not_here_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"'cuda:2' is not here; torch finds: cuda, cuda:0"):
        pick_device("cuda:2", TWO_GPUS)


def test_this_machine_has_a_processor() -> None:
    assert devices.found_here()[-1] == "cpu"


async def test_a_new_process_finds_the_same_devices() -> None:
    assert await devices.look_afresh() == devices.found_here()


async def test_a_named_gpu_may_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([["cpu"], ["cpu"], TWO_GPUS])

    async def afresh() -> list[str]:
        return next(looks)

    monkeypatch.setattr(devices, "look_afresh", afresh)
    told: list[str] = []
    device = await wait_for_device("cuda:1", told.append, look=lambda: ["cpu"], again_s=0.001)
    assert device == "cuda:1"
    assert len(told) == 3
    assert "cuda:1 is not here yet" in told[0]


async def test_a_gpu_that_never_comes_is_refused_and_not_replaced() -> None:
    told: list[str] = []
    with pytest.raises(UsageError, match="'cuda' is not here"):
        await wait_for_device("cuda", told.append, look=lambda: ["cpu"], patience_s=0.0)
    assert told == []


async def test_nobody_waits_for_what_no_driver_brings() -> None:
    with pytest.raises(UsageError, match="'mps' is not here"):
        await wait_for_device("mps", lambda _: None, look=lambda: ["cpu"])
    assert await wait_for_device("auto", lambda _: None, look=lambda: ["cpu"]) == "cpu"


async def test_whoever_stops_waiting_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started = asyncio.Event()
    real, processes = asyncio.create_subprocess_exec, []

    async def noted(*arguments: Any, **options: Any) -> Any:
        processes.append(await real(*arguments, **options))
        started.set()
        return processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    waiting = asyncio.create_task(
        wait_for_device("cuda:9", lambda _: None, look=lambda: ["cpu"], again_s=0.001)
    )
    await started.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert processes[0].returncode is not None


def test_the_trainer_counts_gpus_as_nvidia_smi_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert _environment(1, 0)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert _environment(1, 0)["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_bounds_are_of_classes_not_of_cards() -> None:
    pattern = json.dumps(ToleranceTable.model_json_schema())
    assert "cuda:" not in pattern
    assert gpu_index("cuda") == 0
    assert gpu_index("mps") is None


# ---- readings --------------------------------------------------------------------------


def test_a_reading(nvml: FakeNvml) -> None:
    assert read_gpu("cuda:1", nvml, environment={}) == GpuReading(
        temperature_c=80.0,
        power_w=150.0,
        memory_used_bytes=3 << 30,
        memory_total_bytes=24 << 30,
        others_percent=0.0,
    )


def test_others_are_all_processes_but_ours(nvml: FakeNvml) -> None:
    nvml.cards[0].samples = [
        SimpleNamespace(pid=10, timeStamp=1, smUtil=90),
        SimpleNamespace(pid=10, timeStamp=2, smUtil=30),
        SimpleNamespace(pid=11, timeStamp=2, smUtil=60),
    ]
    reading = read_gpu("cuda", nvml, ours={11}, environment={})
    assert reading is not None
    assert reading.others_percent == 30.0


@pytest.mark.parametrize(
    ("device", "environment"),
    [
        ("cpu", {}),
        ("mps", {}),
        ("cuda:2", {}),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "0"}),
        ("cuda", {"CUDA_VISIBLE_DEVICES": ""}),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-of-another-machine"}),
    ],
)
def test_what_is_no_gpu_of_ours_tells_nothing(
    nvml: FakeNvml, device: str, environment: dict[str, str]
) -> None:
    assert read_gpu(device, nvml, environment=environment) is None


@pytest.mark.parametrize(
    ("visible", "uuid"), [("1,0", "GPU-b"), ("GPU-b", "GPU-b"), (" 0 , 1", "GPU-a")]
)
def test_visible_devices_are_counted_as_torch_counts_them(
    nvml: FakeNvml, visible: str, uuid: str
) -> None:
    gpu = open_gpu("cuda:0", nvml, {"CUDA_VISIBLE_DEVICES": visible})
    assert gpu is not None
    assert gpu.uuid == uuid


def test_without_a_driver_nothing_is_told() -> None:
    assert read_gpu("cuda", FakeNvml(Card("GPU-a"), driver=False), environment={}) is None


def test_the_real_library_tells_nothing_of_a_gpu_that_no_machine_has() -> None:
    assert read_gpu("cuda:99", environment={}) is None


# ---- the power limit -------------------------------------------------------------------


def cap_of(folder: Path, nvml: FakeNvml) -> Callable[[int], str]:
    """``cap(watts)`` of a worker that begins in this home folder."""
    cap = GpuPowerCap(folder, nvml)
    return lambda most_w: cap.apply(open_gpu("cuda", nvml, {}), most_w)


def test_the_limit_is_set_changed_and_given_back(nvml: FakeNvml, tmp_path: Path) -> None:
    cap, card = cap_of(tmp_path, nvml), nvml.cards[0]
    assert cap(200) == ""
    assert card.limit_mw == 200_000
    assert cap(250) == ""
    assert card.limit_mw == 250_000
    assert cap(0) == ""
    assert card.limit_mw == 350_000
    assert list(tmp_path.iterdir()) == []


def test_after_a_kill_the_next_start_gives_back_what_was(nvml: FakeNvml, tmp_path: Path) -> None:
    cap_of(tmp_path, nvml)(200)
    cap_of(tmp_path, nvml)(150)  # killed, and started again with another limit
    assert nvml.cards[0].limit_mw == 150_000
    GpuPowerCap(tmp_path, nvml).restore()
    assert nvml.cards[0].limit_mw == 350_000


def test_a_worker_that_trains_elsewhere_now_gives_back_too(nvml: FakeNvml, tmp_path: Path) -> None:
    cap_of(tmp_path, nvml)(200)
    other = open_gpu("cuda:1", nvml, {})
    assert GpuPowerCap(tmp_path, nvml).apply(other, 120) == ""
    assert [card.limit_mw for card in nvml.cards] == [350_000, 120_000]
    assert "no effect" in GpuPowerCap(tmp_path, nvml).apply(None, 120)
    assert nvml.cards[1].limit_mw == 350_000


def test_a_limit_is_never_raised(nvml: FakeNvml, tmp_path: Path) -> None:
    nvml.cards[0].limit_mw = 180_000
    assert cap_of(tmp_path, nvml)(300) == ""
    assert nvml.cards[0].limit_mw == 180_000
    assert list(tmp_path.iterdir()) == []


def test_what_somebody_else_has_set_since_is_left_alone(nvml: FakeNvml, tmp_path: Path) -> None:
    cap = GpuPowerCap(tmp_path, nvml)
    cap.apply(open_gpu("cuda", nvml, {}), 200)
    nvml.cards[0].limit_mw = 170_000
    cap.restore()
    assert nvml.cards[0].limit_mw == 170_000
    assert list(tmp_path.iterdir()) == []


def test_less_than_the_card_takes_is_told(nvml: FakeNvml, tmp_path: Path) -> None:
    assert "below 100 W: pauses between steps" in cap_of(tmp_path, nvml)(60)
    assert nvml.cards[0].limit_mw == 100_000


def test_who_is_not_root_is_told_what_happens_instead(tmp_path: Path) -> None:
    nvml = FakeNvml(Card("GPU-a"), root=False)
    problem = cap_of(tmp_path, nvml)(200)
    assert "Insufficient Permissions" in problem
    assert "200 W on average" in problem
    assert list(tmp_path.iterdir()) == []


def test_without_root_any_more_what_is_to_be_given_back_is_kept(
    nvml: FakeNvml, tmp_path: Path
) -> None:
    cap = cap_of(tmp_path, nvml)
    cap(200)
    nvml.root = False
    assert "takes root" in cap(150)
    cap(0)
    nvml.root = True
    GpuPowerCap(tmp_path, nvml).restore()
    assert nvml.cards[0].limit_mw == 350_000


def test_a_damaged_note_is_no_note(nvml: FakeNvml, tmp_path: Path) -> None:
    (tmp_path / "gpu-power-limit.json").write_text('{"uuid": "GPU-a", "old')
    assert cap_of(tmp_path, nvml)(200) == ""
    assert nvml.cards[0].limit_mw == 200_000


# ---- pauses between steps --------------------------------------------------------------


@dataclass
class Bench:
    """A card that draws so much while it works, and so much while it waits."""

    card: Card
    busy_w: float = 300.0
    idle_w: float = 50.0
    now_s: float = 0.0
    ends: bool = False

    def step(self, seconds: float) -> None:
        self._pass(seconds, self.busy_w)

    def wait(self, seconds: float) -> bool:
        self._pass(seconds, self.idle_w)
        return self.ends

    def _pass(self, seconds: float, watts: float) -> None:
        self.now_s += seconds
        self.card.power_mw = int(watts * 1000)
        if self.card.energy_mj is not None:
            self.card.energy_mj += int(watts * seconds * 1000)


def pace_of(bench: Bench, most_w: float) -> PowerPace:
    gpu = open_gpu("cuda", FakeNvml(bench.card), {})
    assert gpu is not None
    pace = PowerPace(gpu, most_w, clock=lambda: bench.now_s)
    pace.begin()
    return pace


@pytest.mark.parametrize("step_s", [0.02, 0.7, 5.0])
def test_pauses_hold_the_power_on_average(step_s: float) -> None:
    bench = Bench(Card("GPU-a"))
    pace = pace_of(bench, 150)
    for _ in range(int(200 / step_s)):
        bench.step(step_s)
        pace.after_step(bench.wait)
    assert bench.card.energy_mj is not None
    assert bench.card.energy_mj / 1000 / bench.now_s == pytest.approx(150, rel=0.06)
    assert bench.now_s == pytest.approx(200 * (300 - 50) / (150 - 50), rel=0.06)


def test_who_draws_little_never_pauses() -> None:
    bench = Bench(Card("GPU-a"), busy_w=140)
    pace = pace_of(bench, 150)
    for _ in range(100):
        bench.step(0.5)
        pace.after_step(bench.wait)
    assert bench.now_s == pytest.approx(50)


def test_a_card_that_does_not_count_is_judged_by_its_power() -> None:
    bench = Bench(Card("GPU-a", energy_mj=None))
    pace = pace_of(bench, 150)
    for _ in range(100):
        bench.step(1.0)
        pace.after_step(bench.wait)
    assert bench.now_s == pytest.approx(200, rel=0.1)


def test_an_impossible_limit_leaves_a_tenth_of_the_time_for_work() -> None:
    bench = Bench(Card("GPU-a"), idle_w=80)
    pace = pace_of(bench, 60)
    for _ in range(100):
        bench.step(1.0)
        pace.after_step(bench.wait)
    assert bench.now_s == pytest.approx(1000, rel=0.05)


def test_a_pause_ends_when_the_unit_is_to_end() -> None:
    bench = Bench(Card("GPU-a"), ends=True)
    pace = pace_of(bench, 100)
    bench.step(10.0)
    pace.after_step(bench.wait)
    assert bench.now_s == pytest.approx(10.1)
