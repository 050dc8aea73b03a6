"""Which shards an anchor holds for a round."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from protocol.dataset import DatasetManifest, ShardInfo, Source
from worker import seeding
from worker.seeding import shards_from

LENGTH = 8


def dataset(*sizes: int) -> DatasetManifest:
    def shard(number: int, sequences: int) -> ShardInfo:
        sha256 = hashlib.sha256(str(number).encode()).hexdigest()
        return ShardInfo(sha256=sha256, sequences=sequences, bytes=sequences * LENGTH * 2)

    return DatasetManifest(
        dtype="uint16",
        sequence_length=LENGTH,
        vocab_size=64,
        eos_token_id=0,
        tokenizer_sha256="0" * 64,
        shuffle_seed=0,
        shards=tuple(shard(number, size) for number, size in enumerate(sizes)),
        validation=shard(-1, 1),
        sources=(
            Source(name="dice", licence="CC0", files=1, documents=1, bytes=1, sha256="0" * 64),
        ),
        licence="CC0",
        tokens=sum(sizes) * LENGTH,
    )


@pytest.mark.parametrize(
    ("start", "count", "due"),
    [
        (0, 1, [0, 1]),
        (9, 1, [0, 1]),
        (9, 2, [0, 1, 2]),
        (10, 1, [1, 2]),
        (35, 1, [3, 0]),  # an epoch ends, the next begins
        (40, 1, [0, 1]),
        (1_000_003, 25, [0, 1, 2, 3]),
        (0, 10**9, [0, 1, 2, 3]),
    ],
)
def test_the_shards_of_what_comes_next_and_one_more(start: int, count: int, due: list[int]) -> None:
    made = dataset(10, 10, 10, 10)
    found = shards_from(made, start, count)
    assert [made.shards.index(shard) for shard in found] == due


def test_no_more_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "MAX_SEEDED_BYTES", 25 * LENGTH * 2)
    made: Any = dataset(10, 10, 10, 10)
    assert len(shards_from(made, 0, 40)) == 2
    monkeypatch.setattr(seeding, "MAX_SEEDED_BYTES", 5)
    assert shards_from(made, 0, 40) == []
