"""What a GPU says of itself, by NVML.

Invariants:

* No driver, no such GPU, a value that this GPU does not tell: None, never an exception.
* NVML counts GPUs as ``nvidia-smi`` does; ``CUDA_VISIBLE_DEVICES`` is taken into account.
* Nothing here is computed on the GPU: reading costs it neither memory nor a context.
"""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from worker.devices import Device, gpu_index

Nvml = Any
"""The module ``pynvml``, or an object with the same functions."""

_SAMPLES_S = 2.0  # how old a sample of who uses the GPU may be

Value = TypeVar("Value")


@dataclass(frozen=True)
class GpuReading:
    """One moment of one GPU; None: it does not tell."""

    temperature_c: float | None = None
    power_w: float | None = None
    memory_used_bytes: int | None = None  # by everybody
    memory_total_bytes: int | None = None
    others_percent: float | None = None  # of its time, by programs that are not ours


@dataclass(frozen=True)
class Gpu:
    """One GPU of a machine whose driver answers; see :func:`open_gpu`."""

    nvml: Nvml
    handle: Any

    def ask(self, what: Callable[[], Value]) -> Value | None:
        """A value, or None where this GPU does not tell it."""
        try:
            return what()
        except self.nvml.NVMLError:
            return None

    @property
    def name(self) -> str:
        return str(self.ask(lambda: self.nvml.nvmlDeviceGetName(self.handle)) or "GPU")

    @property
    def uuid(self) -> str:
        """Names this very card; empty where it does not tell."""
        return str(self.ask(lambda: self.nvml.nvmlDeviceGetUUID(self.handle)) or "")

    def energy_j(self) -> float | None:
        """Since its driver was loaded."""
        used_mj = self.ask(lambda: self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        return None if used_mj is None else used_mj / 1000

    def read(self, ours: Collection[int] = ()) -> GpuReading:
        """All of it.

        Args:
            ours: process ids that are not "others".
        """
        nvml, handle = self.nvml, self.handle
        sensor = nvml.NVML_TEMPERATURE_GPU
        power_mw = self.ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        memory = self.ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        return GpuReading(
            temperature_c=self.ask(lambda: float(nvml.nvmlDeviceGetTemperature(handle, sensor))),
            power_w=None if power_mw is None else power_mw / 1000,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            others_percent=self._others_percent(ours),
        )

    def _others_percent(self, ours: Collection[int]) -> float | None:
        """Of the newest sample of each process."""
        try:
            since_us = int((time.time() - _SAMPLES_S) * 1e6)
            samples = self.nvml.nvmlDeviceGetProcessUtilization(self.handle, since_us)
        except self.nvml.NVMLError as error:
            none_ran = error.value == self.nvml.NVML_ERROR_NOT_FOUND
            return 0.0 if none_ran else None
        newest = {sample.pid: sample for sample in sorted(samples, key=lambda one: one.timeStamp)}
        return float(sum(one.smUtil for pid, one in newest.items() if pid not in ours))


@functools.cache
def load_nvml() -> Nvml | None:
    """The module; None where it is not installed."""
    with suppress(ImportError):
        return importlib.import_module("pynvml")
    return None


def open_gpu(
    device: Device, nvml: Nvml | None = None, environment: Mapping[str, str] = os.environ
) -> Gpu | None:
    """The GPU behind a device of torch's; None: it is none, or no driver of NVIDIA's answers."""
    index = gpu_index(device)
    nvml = nvml or load_nvml()
    if index is None or nvml is None:
        return None
    try:
        nvml.nvmlInit()  # counts its callers; again and again is right
        name = _visible(index, environment)
        if name is None:
            return None
        if name.isdecimal():
            return Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(int(name)))
        return Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(name))
    except nvml.NVMLError:
        return None


def read_gpu(
    device: Device,
    nvml: Nvml | None = None,
    *,
    ours: Collection[int] = (),
    environment: Mapping[str, str] = os.environ,
) -> GpuReading | None:
    """Read one GPU, now; blocking, for milliseconds.

    Args:
        device: as torch calls it.
        nvml: the module ``pynvml``, or what stands for it.
        ours: process ids that are not "others".
        environment: may narrow which GPUs are visible.
    """
    gpu = open_gpu(device, nvml, environment)
    return None if gpu is None else gpu.read(ours)


def gpu_temperature_c(choice: str, nvml: Nvml | None = None) -> float | None:
    """Of the GPU that the owner's choice of a device comes to; None: it is none, or tells nothing.

    ``auto`` is the first GPU where there is one: what else would train is not asked here, for that
    takes torch.
    """
    reading = read_gpu("cuda" if choice == "auto" else choice, nvml)
    return None if reading is None else reading.temperature_c


def _visible(index: int, environment: Mapping[str, str]) -> str | None:
    """NVML's number or UUID of a GPU that torch counts so; None: there is none of that number."""
    text = environment.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return str(index)
    names = [name.strip() for name in text.split(",")]
    return names[index] if index < len(names) and names[index] else None
