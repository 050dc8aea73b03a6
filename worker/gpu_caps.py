"""The power limit of a GPU, set by its driver and given back.

Invariants:

* What the limit was is on the disk before it is changed, and stays there until it is given back:
  after a kill -9 the next start gives it back, or keeps it if the owner still wants it.
* It is never raised above what it was.
* A limit that somebody else has changed since is left alone.
* To set it takes root. Who refuses says so once; then pauses between steps hold the number on
  average (:mod:`worker.gpu_pace`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker.sensors.gpu import Gpu, Nvml
from worker.small_file import replace_text

_NOTE = "gpu-power-limit.json"


@dataclass(frozen=True)
class Note:
    """What is being changed."""

    uuid: str
    old_mw: int  # before all changes: to be given back
    now_mw: int  # before this one: still so after a kill at the wrong moment, or a refusal
    set_mw: int


class GpuPowerCap:
    """The power limit of one worker's GPU; methods block for milliseconds."""

    def __init__(self, folder: Path, nvml: Nvml | None) -> None:
        """Args:
        folder: the worker's home, for the note.
        nvml: the module, or None without a driver.
        """
        self._path = folder / _NOTE
        self._nvml = nvml

    def apply(self, gpu: Gpu | None, most_w: int) -> str:
        """Let the GPU draw at most so much; 0 gives back what was.

        Returns:
            What a person should know; empty if all is as it was asked for.
        """
        note = self._read()
        if note is not None and (not most_w or gpu is None or note.uuid != gpu.uuid):
            self.restore()
            note = None
        if not most_w:
            return ""
        if gpu is None:
            return "no driver tells the GPU's power here: gpu_power_w has no effect"
        return self._set(gpu, most_w * 1000, note)

    def restore(self) -> None:
        """Give back what was; nothing to do if nothing was changed."""
        note = self._read()
        if note is None:
            return
        nvml = self._nvml
        if nvml is None:
            return  # some other time: the note stays
        try:
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByUUID(note.uuid)
            if nvml.nvmlDeviceGetPowerManagementLimit(handle) in (note.now_mw, note.set_mw):
                nvml.nvmlDeviceSetPowerManagementLimit(handle, note.old_mw)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NOT_FOUND:  # that card is gone
                return
        self._path.unlink(missing_ok=True)

    def _set(self, gpu: Gpu, wanted_mw: int, note: Note | None) -> str:
        nvml = gpu.nvml
        try:
            least_mw, _ = nvml.nvmlDeviceGetPowerManagementLimitConstraints(gpu.handle)
            now_mw = int(nvml.nvmlDeviceGetPowerManagementLimit(gpu.handle))
            old_mw = now_mw if note is None else note.old_mw
            set_mw = min(max(wanted_mw, int(least_mw)), old_mw)
            if set_mw != now_mw:
                self._write(Note(gpu.uuid, old_mw, now_mw, set_mw))
                nvml.nvmlDeviceSetPowerManagementLimit(gpu.handle, set_mw)
        except nvml.NVMLError as error:
            if note is None:
                self._path.unlink(missing_ok=True)
            return (
                f"the power limit of the {gpu.name} cannot be set ({error}; it takes root): pauses "
                f"between steps keep it at {wanted_mw // 1000} W on average"
            )
        except OSError as error:
            return f"the power limit is left as it is: cannot note it down ({error})"
        if set_mw == old_mw:
            self._path.unlink(missing_ok=True)  # nothing is to be given back
        if wanted_mw < set_mw:
            return (
                f"the {gpu.name} takes no power limit below {set_mw // 1000} W: pauses between "
                f"steps keep it at {wanted_mw // 1000} W on average"
            )
        return ""

    def _read(self) -> Note | None:
        try:
            raw: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            return Note(str(raw.pop("uuid")), **{key: int(value) for key, value in raw.items()})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # damaged: nothing can be told from it

    def _write(self, note: Note) -> None:
        replace_text(self._path, json.dumps(asdict(note)), durable=True)
