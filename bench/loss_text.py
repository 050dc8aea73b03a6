"""Real text for the benchmark of losses: Shakespeare's plays as bytes, shuffled like a dataset.

Every fifth play is held out, so no sequence of the validation set is in the training set.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from coordinator.data.embedded import shakespeare_documents

VOCABULARY = 256
_HELD_OUT_EVERY = 5
_VALIDATION_KEY = 0  # the same validation sequences for every seed

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """``[count, sequence_length]`` each."""

    train: Tokens
    validation: Tokens

    def batch(self, start: int, end: int) -> Tokens:
        """Training sequences: what :class:`protocol.training.SequenceSource` asks for."""
        if end > len(self.train):
            raise ValueError(f"sequence {end} where the text has {len(self.train)}")
        return self.train[start:end]


@cache
def plays() -> tuple[bytes, bytes]:
    """``(training, held out)`` text."""
    documents = [document.encode() for document in shakespeare_documents()]
    held_out = documents[::_HELD_OUT_EVERY]
    rest = [text for n, text in enumerate(documents) if n % _HELD_OUT_EVERY]
    return b"\n".join(rest), b"\n".join(held_out)


def text_sha256() -> str:
    """Names the text: runs on another one are not compared."""
    return hashlib.sha256(b"\x00".join(plays())).hexdigest()


def make_text(sequence_length: int, validation_sequences: int, seed: int) -> Text:
    """Cut both texts in sequences and shuffle them, the training set by the seed."""
    training, held_out = plays()
    validation = _shuffled(_cut(held_out, sequence_length), _VALIDATION_KEY)
    return Text(
        train=_shuffled(_cut(training, sequence_length), seed + 1),
        validation=validation[:validation_sequences],
    )


def _cut(text: bytes, length: int) -> Tokens:
    count = len(text) // length
    return np.frombuffer(text, np.uint8)[: count * length].reshape(count, length).astype(np.int64)


def _shuffled(sequences: Tokens, key: int) -> Tokens:
    generator = np.random.Generator(np.random.Philox(key=key))
    return sequences[generator.permutation(len(sequences))]
