"""How a unit is computed on this machine: what tuning chooses, and what is lighter on memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

MAX_BATCH = 1 << 20


@dataclass(frozen=True)
class Choice:
    """Changes speed, memory and rounding, never what is computed."""

    micro_batch_sequences: int
    checkpointing: bool = False  # activations are computed twice instead of kept
    compile: bool = False

    def lighter(self) -> Choice | None:
        """What to do when there was not enough memory for this one; None: nothing helps."""
        if self.compile:
            return replace(self, compile=False)
        if self.micro_batch_sequences > 1:
            half = (self.micro_batch_sequences + 1) // 2
            return replace(self, micro_batch_sequences=1 << (half.bit_length() - 1))
        return None if self.checkpointing else replace(self, checkpointing=True)

    def takes_less_than(self, other: Choice) -> bool:
        """Whether it may still fit where ``other`` did not."""
        if self.checkpointing != other.checkpointing:
            return self.checkpointing
        if self.micro_batch_sequences != other.micro_batch_sequences:
            return self.micro_batch_sequences < other.micro_batch_sequences
        return other.compile and not self.compile

    @property
    def words(self) -> str:
        """For a person."""
        count = self.micro_batch_sequences
        extras = [
            *(["activations computed twice"] if self.checkpointing else []),
            *(["compiled"] if self.compile else []),
        ]
        return ", ".join([f"{count} sequence{'s' if count > 1 else ''} at a time", *extras])

    def dump(self) -> dict[str, Any]:
        """Also the fields of a trainer's job."""
        return asdict(self)

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`dump`.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        count, checkpointing = raw["micro_batch_sequences"], raw["checkpointing"]
        if type(count) is not int or not 0 < count <= MAX_BATCH:
            raise ValueError("not a number of sequences")
        if type(checkpointing) is not bool or type(raw["compile"]) is not bool:
            raise ValueError("not a yes or no")
        return cls(count, checkpointing, raw["compile"])
