"""How this machine trains best: measured before its first lease, kept, and corrected by units.

Invariants:

* Measuring is bounded in time, is none of a unit's time, and ends when its caller is cancelled.
* A way of computing that ran out of memory, or whose process was killed while it was tried, is not
  taken again until the model, the device or a setting changes, or the owner asks for it.
* When nothing fits, that is one clear reason, found once: nothing is loaded and tried for ever.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import psutil
import structlog

from protocol.errors import ProtocolError
from protocol.manifest import RunManifest
from worker import tuning_search as search
from worker.choice import Choice
from worker.config import Home, WorkerConfig
from worker.devices import Device, device_class
from worker.oom_kills import oom_kills
from worker.trainer import Trainer, TrainerDied, WarmUp
from worker.trainer_memory import LEAST_MIB, OutOfMemory, too_little
from worker.tuning_record import KILLED, TuningFile, TuningKey, TuningRecord, model_digest
from worker.tuning_search import Tried

if TYPE_CHECKING:
    from protocol.model import ParameterSpec

log = structlog.get_logger()

_COMPILE_TIMEOUT_S = 180.0
_RAN_OUT, _TOO_LONG, _ROUNDS = "out of memory", "took too long", "rounds unlike plain code"


@dataclass
class Tuner:
    """Of one model on one device."""

    home: Home
    config: WorkerConfig
    manifest: RunManifest
    device: Device
    trainer: Trainer
    say: Callable[[str], None]  # why no unit is trained meanwhile
    record: TuningRecord = field(default_factory=TuningRecord)
    _key: TuningKey | None = None

    def __post_init__(self) -> None:
        self._file = TuningFile(self.home.tuning)

    @property
    def choice(self) -> Choice:
        """How to compute; before it is decided, as configured."""
        return self.record.choice or Choice(self._configured or self._batch)

    @property
    def _batch(self) -> int:
        return self.manifest.inner.sequences_per_batch

    @property
    def _configured(self) -> int:
        return min(self.config.micro_batch_sequences, self._batch)

    def speed_hint(self) -> float:
        """Tokens per second of the last unit, or as measured; 0 when nothing is known."""
        return self.record.tokens_per_s

    def facts(self) -> dict[str, Any]:
        """For the status."""
        return {
            **self.choice.dump(),
            "trains": self.choice.words,
            "tokens_per_s": round(self.speed_hint()),
            "measured_at_s": self.record.measured_at_s,
        }

    # ---- before a lease ----------------------------------------------------------------

    async def settle(self) -> ParameterSpec | None:
        """Load what a unit needs, and decide how to compute it unless that is decided.

        Returns:
            The model's names and shapes, if they were loaded by this call.

        Raises:
            OutOfMemory: nothing fits; says what to do.
            TransientError, UsageError: nothing can be trained here now; says why.
        """
        memory_mib = self.config.limits.memory_mib
        if 0 < memory_mib < LEAST_MIB:
            raise OutOfMemory(too_little(memory_mib))
        if self._key is not None:
            self._refuse_if_nothing_fits(await self._read())
        warm = await self.trainer.warm_up(self._what(self.choice))
        self._key = self._key_of(self.trainer.device_name)
        record = await self._read()
        if not record.decided:
            record = await self._measure(record)
        elif warm is not None and record.choice is not None and record.choice.compile:
            record = await self._compile_again(record, record.choice)
        self.record = record
        if record.choice is None:
            await self.trainer.close()
        self._refuse_if_nothing_fits(record)
        return None if warm is None else warm.spec

    def _refuse_if_nothing_fits(self, record: TuningRecord) -> None:
        if record.decided and record.choice is None:
            limit = self.config.limits.memory_mib
            given = f"limits.memory_mib is {limit}" if limit else "this machine has too little"
            raise OutOfMemory(
                f"not enough memory to train this model, even one sequence at a time ({given}): "
                "give it more, or end other programs, then 'barnraise worker tune --force'"
            )

    async def _read(self) -> TuningRecord:
        """As it is in the file, with what became of it meanwhile."""
        assert self._key is not None
        record = await asyncio.to_thread(self._file.read, self._key)
        known = record.after_a_kill()
        if known.unit_since_kills is not None and oom_kills() > known.unit_since_kills:
            known = replace(known, unit_since_kills=None).out_of_memory(
                known.choice and known.choice.lighter(), KILLED
            )
        if known != record:
            await self._write(known)
        return known

    async def _write(self, record: TuningRecord) -> None:
        assert self._key is not None
        await asyncio.to_thread(self._file.write, self._key, record)

    def _key_of(self, device_name: str) -> TuningKey:
        return TuningKey(
            model=model_digest(self.manifest),
            device=f"{self.device} {device_name}",
            threads=self.config.limits.cpu_threads,
            torch=version("torch"),
            gpu_memory_percent=self.config.limits.gpu_memory_percent,
            memory_mib=self.config.limits.memory_mib,
            autocast_bf16=self.config.autocast_bf16,
            micro_batch_sequences=self._configured,
        )

    def _what(self, choice: Choice) -> WarmUp:
        return WarmUp(
            manifest=str(self.home.manifest),
            threads=self.config.limits.cpu_threads,
            device=self.device,
            autocast_bf16=self.config.autocast_bf16,
            compiled=str(self.home.compiled),
            gpu_memory_percent=self.config.limits.gpu_memory_percent,
            measure=False,
            **choice.dump(),
        )

    # ---- measuring ---------------------------------------------------------------------

    async def _measure(self, record: TuningRecord) -> TuningRecord:
        started_s = time.monotonic()
        candidates = [Choice(self._configured)] if self._configured else search.sizes(self._batch)
        memory_bytes = await asyncio.to_thread(self._memory_bytes)
        while True:
            spent_s = time.monotonic() - started_s
            choice = search.next_size(
                record.tried, candidates, spent_s=spent_s, memory_bytes=memory_bytes
            )
            if choice is None:
                break
            record = await self._note(record, choice)
        record = await self._with_compiler(record, search.best(record.tried))
        record = replace(record, decided=True, measured_at_s=int(time.time()))
        await self._write(record)
        if record.choice is not None:
            log.info(
                "this machine was measured",
                trains=record.choice.words,
                tokens_per_s=round(record.tokens_per_s),
                took_s=round(time.monotonic() - started_s, 1),
            )
        return record

    async def _with_compiler(self, record: TuningRecord, plain: Choice | None) -> TuningRecord:
        """Choose plain code, or compiled code if there is a compiler and it pays."""
        record = replace(record, choice=plain)
        unit_s = self.manifest.round.duration_s
        compiled = plain and search.worth_compiling(plain, record.tried, unit_s=unit_s)
        if compiled is None:
            return record
        if not has_compiler(self.device):
            log.debug("not compiled: there is no compiler here")
            return record
        record = await self._note(record, compiled)
        last = record.tried[-1]
        plainly = next(one for one in record.tried if one.choice == plain)
        if last.choice == compiled and search.pays(last, plainly, unit_s=unit_s):
            return replace(record, choice=compiled)
        await self.trainer.close()  # the compiler's memory goes with it
        return record

    async def _compile_again(self, record: TuningRecord, compiled: Choice) -> TuningRecord:
        """In a new process, from what an earlier one has compiled."""
        self.say("loading compiled code")
        tried = await self._try(compiled)
        if tried.failed:
            record = record.out_of_memory(compiled.lighter(), tried.failed)
            await self._write(record)
        return record

    async def _note(self, record: TuningRecord, choice: Choice) -> TuningRecord:
        """Try one way, and write down that it is tried, and what came of it."""
        await self._write(replace(record, trying=choice))
        self.say(f"measuring this machine: {choice.words}")
        try:
            tried = await self._try(choice)
        except BaseException:  # ended by us, or for a reason that is not its own
            await self._write(record)
            raise
        record = replace(record, tried=(*record.tried, tried))
        await self._write(record)
        log.debug("measured", **choice.dump(), tokens_per_s=tried.tokens_per_s, why=tried.failed)
        return record

    async def _try(self, choice: Choice) -> Tried:
        try:
            async with asyncio.timeout(_COMPILE_TIMEOUT_S if choice.compile else None):
                found = await self.trainer.measure(self._what(choice))
        except OutOfMemory:
            await self.trainer.close()  # the next one begins with all the memory there is
            return Tried(choice, failed=_RAN_OUT)
        except TrainerDied:
            return Tried(choice, failed=KILLED)
        except TimeoutError:
            return Tried(choice, failed=_TOO_LONG)
        except ProtocolError as error:
            if not choice.compile:
                raise
            return Tried(choice, failed=str(error))
        failed = "" if found.trusted else _ROUNDS
        return Tried(choice, found.tokens_per_s, found.first_s, found.peak_bytes, failed)

    def _memory_bytes(self) -> int:
        """That the trainer may have in all; 0: not known."""
        if self.device != "cpu":
            return 0
        if self.config.limits.memory_mib:
            return self.config.limits.memory_mib << 20
        try:
            own = psutil.Process(self.trainer.pid).memory_info().rss if self.trainer.pid else 0
        except psutil.Error:
            own = 0
        return int(psutil.virtual_memory().available) + own

    # ---- units -------------------------------------------------------------------------

    async def unit_begins(self) -> None:
        """Note how many processes the kernel had ended by now."""
        await self._learn(replace(self.record, unit_since_kills=oom_kills()))

    async def unit_ends(self, tokens_per_s: float = 0.0) -> None:
        """However it ended; with its speed if it is known."""
        record = replace(self.record, unit_since_kills=None)
        if tokens_per_s > 0:
            record = replace(record, unit_tokens_per_s=tokens_per_s)
        await self._learn(record)

    async def unit_failed(self, error: TrainerDied | OutOfMemory) -> bool:
        """Take a lighter choice if it was memory that was wanting.

        Returns:
            Whether it was.

        Raises:
            OutOfMemory: there is no lighter one.
        """
        await self._learn(self.record)
        kills = self.record.unit_since_kills
        killed = isinstance(error, TrainerDied) and kills is not None and oom_kills() > kills
        if not killed and not isinstance(error, OutOfMemory):
            return False
        await self.trainer.close()
        lighter = self.choice.lighter()
        await self._learn(self.record.out_of_memory(lighter, KILLED if killed else _RAN_OUT))
        self._refuse_if_nothing_fits(self.record)
        log.warning("out of memory", goes_on_with=self.choice.words)
        return True

    async def _learn(self, record: TuningRecord) -> None:
        """Keep a record, and what the trainer has found out itself within the unit."""
        lighter = self.trainer.progress.lighter
        if lighter is not None and lighter.takes_less_than(self.choice):
            speed = record.unit_tokens_per_s
            record = replace(record.out_of_memory(lighter, _RAN_OUT), unit_tokens_per_s=speed)
        self.record = record
        await self._write(record)


def has_compiler(device: Device) -> bool:
    """Whether torch.compile has what it needs."""
    if device_class(device) == "cuda":
        has_c = any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
        return find_spec("triton") is not None and has_c
    return device == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is not None
