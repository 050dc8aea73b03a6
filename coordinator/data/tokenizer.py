"""The tokenizer of a dataset: trained on its text, or given.

Invariants:

* Training is deterministic: the same text and size give the same file.
* Text never becomes the end-of-document token by spelling it: special tokens in documents are
  encoded as ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from coordinator.data.inputs import InputFile
from coordinator.data.options import BuildOptions
from coordinator.data.readers import read_fragments
from protocol.dataset import Dtype, dtype_for
from protocol.errors import UsageError

EOS_TOKEN = "<|eos|>"  # noqa: S105 - not a password
USUAL_EOS = (EOS_TOKEN, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
MIN_TRAINED_VOCAB = 257
"""256 bytes and the end of document."""
MAX_TOKENIZER_BYTES = 64 << 20

_TRAINING_PIECE_CHARS = 16 << 10  # the library holds 256 pieces at a time


@dataclass(frozen=True)
class TokenizerFacts:
    """What the build needs to know of a tokenizer."""

    vocab_size: int
    eos_token: str
    eos_token_id: int

    @property
    def dtype(self) -> Dtype:
        return dtype_for(self.vocab_size)


def requested_vocab(tokenizer_option: str) -> int | None:
    """N of ``train:N``; None when the option is the path of a tokenizer.

    Raises:
        UsageError: ``train:`` with anything but a sensible number.
    """
    if not tokenizer_option.startswith("train:"):
        return None
    match = re.fullmatch(r"train:(\d{1,7})", tokenizer_option)
    if not match or int(match[1]) < MIN_TRAINED_VOCAB:
        raise UsageError(
            f"--tokenizer {tokenizer_option}: write train:N with N at least {MIN_TRAINED_VOCAB} "
            "(256 bytes and an end-of-document token), for example train:8192"
        )
    return int(match[1])


def train(options: BuildOptions, files: list[InputFile]) -> bytes:
    """Train a byte-level BPE on (a sample of) the corpus; returns the tokenizer.json.

    Raises:
        UsageError: the corpus does not support that many tokens, or cannot be read.
    """
    size = requested_vocab(options.tokenizer)
    assert size is not None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[options.eos or EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(sample_texts(options, files), trainer)
    found = tokenizer.get_vocab_size()
    if found < size:
        raise UsageError(
            f"the corpus has text for a vocabulary of {found} only: use --tokenizer train:{found} "
            "or less, or add text"
        )
    return tokenizer.to_str(pretty=True).encode()


def sample_texts(options: BuildOptions, files: list[InputFile]) -> Iterator[str]:
    """Text to train on: all of it, or fragments spread evenly, about the sample's size."""
    total = sum(file.bytes for file in files)
    share = min(1.0, options.tokenizer_sample_bytes / max(1, total))
    owed = 0.0
    for file in files:
        for fragment in read_fragments(file, options):
            owed += len(fragment.text) * share
            if owed >= len(fragment.text) / 2:
                owed -= len(fragment.text)
                yield from _pieces(fragment.text)


def _pieces(text: str) -> Iterable[str]:
    start = 0
    while start < len(text):
        end = start + _TRAINING_PIECE_CHARS
        if end < len(text):
            line = text.rfind("\n", start, end)
            end = line + 1 if line > start else end
        yield text[start:end]
        start = end


def read_given(path: Path) -> bytes:
    """The bytes of a tokenizer.json that was given.

    Raises:
        UsageError: missing, too large, or not a tokenizer.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_TOKENIZER_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"--tokenizer {path}: {error.strerror}: give train:N or the path of a tokenizer.json"
        ) from error
    if len(data) > MAX_TOKENIZER_BYTES:
        raise UsageError(f"--tokenizer {path}: more than {MAX_TOKENIZER_BYTES} bytes")
    try:
        load(data)
    except UsageError as error:
        raise UsageError(f"--tokenizer {path}: {error}") from error
    return data


def load(data: bytes) -> Tokenizer:
    """A tokenizer that neither truncates, nor pads, nor obeys special tokens in text.

    Raises:
        UsageError: not a tokenizer.json.
    """
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:
        # The library raises bare Exception for every malformed file: a documented boundary.
        raise UsageError(
            f"not a tokenizer.json of tokenizers {tokenizers.__version__}: {error}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def inspect(tokenizer: Tokenizer, eos: str | None) -> TokenizerFacts:
    """Vocabulary and end-of-document token.

    Raises:
        UsageError: the token is not in the vocabulary.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    candidates = (eos,) if eos else USUAL_EOS
    token = next((name for name in candidates if name in vocabulary), None)
    if token is None:
        special = [
            added.content
            for added in tokenizer.get_added_tokens_decoder().values()
            if added.special
        ]
        raise UsageError(
            f"the tokenizer has none of the end-of-document tokens {', '.join(candidates)}: "
            f"name one with --eos (its special tokens: {', '.join(special[:20]) or 'none'})"
        )
    # Ids may have gaps: what matters is the largest.
    return TokenizerFacts(max(vocabulary.values()) + 1, token, vocabulary[token])
