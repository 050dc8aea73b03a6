"""What every kind of leaf is made of.

Invariants:

* A leaf holds key ids, digests, stable words and integers: never a name, an address, free text or
  a float of ours, so a profile can be erased and the log still verifies.
* Its bytes are canonical JSON (RFC 8785).

Fields that hold digests and ids are hex text; constructors accept ``bytes`` for them too.
"""

from __future__ import annotations

import functools
import itertools
import json
from typing import Annotated, Literal

import rfc8785
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from protocol.audit_policy import PPM, Verdict, check_execution
from protocol.errors import BadRecord
from protocol.identity import PublicKey

MAX_SAFE_INTEGER = (1 << 53) - 1
"""The largest integer that every JSON reader keeps exactly (RFC 8785 section 3.2.2.3)."""

MAX_CREDITS_IN_LEAF = 2048
"""Leaf indexes that one leaf may list: of 16 digits each, they fit a leaf (MAX_LEAF_BYTES)."""


_encode = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False
).encode
"""RFC 8785 for what leaves are made of: ASCII, whole numbers, no nesting but lists of numbers.
Other JSON may sort, escape or round differently."""


def _hex(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _plain(value: object) -> object:
    return str(value) if isinstance(value, str) else value  # members of a StrEnum are welcome


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # JSON has no tuples


@functools.lru_cache(maxsize=8192)  # a log names the same keys again and again
def _key_id(value: str) -> str:
    try:
        PublicKey.from_peer_id(value)
    except BadRecord as error:
        raise ValueError(str(error)) from error
    return value


@functools.lru_cache(maxsize=16)
def _execution(value: str) -> str:
    try:
        return check_execution(value)
    except BadRecord as error:
        raise ValueError(str(error)) from error


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(later <= earlier for earlier, later in itertools.pairwise(values)):
        raise ValueError("leaf indexes are listed once each, ascending")
    return values


Digest = Annotated[str, BeforeValidator(_hex), Field(pattern=r"^[0-9a-f]{64}$")]
AssignmentId = Annotated[str, BeforeValidator(_hex), Field(pattern=r"^[0-9a-f]{32}$")]
KeyId = Annotated[str, AfterValidator(_key_id), Field(max_length=64)]
Count = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER)]
Positive = Annotated[int, Field(ge=1, le=MAX_SAFE_INTEGER)]
Ppm = Annotated[int, Field(ge=1, le=PPM)]
Word = Annotated[str, BeforeValidator(_plain), Field(pattern=r"^[a-z0-9_]{1,64}$")]
Execution = Annotated[str, AfterValidator(_execution), Field(max_length=16)]
LeafIndexes = Annotated[
    tuple[Count, ...],
    BeforeValidator(_listed),
    AfterValidator(_ascending),
    Field(min_length=1, max_length=MAX_CREDITS_IN_LEAF),
]
VerdictWord = Annotated[
    str, BeforeValidator(_plain), Field(pattern=f"^({'|'.join(word.value for word in Verdict)})$")
]


class BaseLeaf(BaseModel):
    """What every leaf says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    v: Literal[1] = 1
    run_id: Digest
    at_s: Count  # Unix seconds, on the coordinator's clock

    def canonical(self) -> bytes:
        """RFC 8785 bytes: what is hashed, stored and served."""
        text = _encode(self.__dict__)
        if text.isascii():
            return text.encode()
        return rfc8785.dumps(self.model_dump(mode="json"))
