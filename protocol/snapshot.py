"""A unit of work after some of its steps: all that the steps to come depend on.

Invariants:

* A unit that is gone on with from a snapshot gives the same update, bit for bit, as one that was
  never interrupted: parameters, what the optimizers hold, the losses so far and the random state
  are in it, and nothing else is needed.
* The file says what it is a snapshot of, and is whole or is none: a torn or damaged one, or one of
  anything else, is not read. It is plain tensors, never pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

_DIGEST_BYTES = 32
_TYPES = {torch.float32: "F32", torch.uint8: "U8"}
"""Of all there is in a snapshot: float32 training, and the random state."""

_PARAMETER, _OPTIMIZER, _RANDOM = "parameter", "optimizer", "random"


@dataclass(frozen=True)
class Snapshot:
    """``tensors``: by kind and name, on the CPU."""

    losses: tuple[float, ...]  # of the steps done
    tensors: dict[str, Tensor]

    @property
    def steps(self) -> int:
        return len(self.losses)


def take(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], losses: Sequence[float]
) -> Snapshot:
    """A copy of where training is, between two steps."""
    tensors: dict[str, Tensor] = {
        f"{_PARAMETER}/{name}": value for name, value in model.named_parameters()
    }
    for number, optimizer in enumerate(optimizers):
        for index, held in optimizer.state_dict()["state"].items():
            for name, value in held.items():
                tensors[f"{_OPTIMIZER}/{number}/{index}/{name}"] = value
    tensors[_RANDOM] = torch.get_rng_state()
    copies = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }
    return Snapshot(tuple(losses), copies)


def restore(
    snapshot: Snapshot, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Put model, optimizers and random state where they were."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(snapshot.tensors[f"{_PARAMETER}/{name}"])
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"{_OPTIMIZER}/{number}/"
        for key, tensor in snapshot.tensors.items():
            if key.startswith(prefix):
                index, name = key.removeprefix(prefix).split("/", 1)
                state.setdefault(int(index), {})[name] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(snapshot.tensors[_RANDOM])


def write(path: Path, snapshot: Snapshot, of: str) -> int:
    """Write atomically and durably.

    Args:
        path: replaced if it exists.
        snapshot: what to write.
        of: says which unit this is, and how it is computed.

    Returns:
        The file's bytes.

    Raises:
        OSError: the disk is full, or failed.
    """
    losses = json.dumps([loss.hex() for loss in snapshot.losses])
    temporary = path.with_name(path.name + ".new")
    digest = hashlib.sha256()
    with temporary.open("wb") as file:
        file.write(bytes(_DIGEST_BYTES))
        for part in _safetensors(snapshot.tensors, {"of": of, "losses": losses}):
            digest.update(part)
            file.write(part)
        size_bytes = file.tell()
        file.seek(0)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return size_bytes


def _safetensors(
    tensors: Mapping[str, Tensor], about: dict[str, str]
) -> Iterator[bytes | memoryview]:
    """A file of that format, piece by piece: the library makes two more copies of it all."""
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, value in tensors.items():
        start, end = end, end + value.nbytes
        kind, shape = _TYPES[value.dtype], list(value.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    yield len(encoded).to_bytes(8, "little")
    yield encoded
    for value in tensors.values():
        yield value.reshape(-1).view(torch.uint8).numpy().data


def read(path: Path, of: str) -> Snapshot | None:
    """What :func:`write` wrote; None if it is not there, not whole, or of something else."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, data = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        return None
    length = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + length])["__metadata__"]
    if about["of"] != of:
        return None
    losses = tuple(float.fromhex(loss) for loss in json.loads(about["losses"]))
    return Snapshot(losses, load(data))
