"""Text to token ids on all cores, in order, with bounded memory.

Invariants:

* What a fragment becomes depends on nothing but its text and the tokenizer, so neither the
  number of processes nor where a build was interrupted shows in the result.
* At most ``2 * workers + 1`` units are in memory.
* A tokenising process dies with its parent, even when the parent is killed.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coordinator.data.inputs import InputFile
from coordinator.data.options import BuildOptions
from coordinator.data.readers import Fragment, read_fragments
from coordinator.data.word_encoder import WordEncoder, can_be_cut
from protocol.digest import file_sha256
from protocol.errors import TransientError, UsageError

UNIT_CHARS = 256 << 10
UNIT_FRAGMENTS = 512

_encoder: Encoder | None = None  # of this tokenising process, set once by its initialiser


@dataclass(frozen=True)
class Cursor:
    """A place in the corpus: the next fragment to read."""

    file: int = 0
    fragment: int = 0


@dataclass(frozen=True)
class FileRecord:
    """A file that was read to its end."""

    source: int
    name: str
    bytes: int
    documents: int
    sha256: str


@dataclass
class Unit:
    """Fragments that are tokenised together, and the corpus position after them."""

    fragments: list[Fragment] = field(default_factory=list)
    closed: list[FileRecord] = field(default_factory=list)  # files that end within this unit
    end: Cursor = Cursor()
    chars: int = 0

    def add(self, fragment: Fragment) -> None:
        self.fragments.append(fragment)
        self.chars += len(fragment.text)

    @property
    def is_full(self) -> bool:
        return self.chars >= UNIT_CHARS or len(self.fragments) >= UNIT_FRAGMENTS


def read_units(options: BuildOptions, files: list[InputFile], start: Cursor) -> Iterator[Unit]:
    """The corpus from ``start`` on, in units; fragments before it are read but left out.

    Raises:
        UsageError: a file cannot be read or changed while it was read.
    """
    unit = Unit(end=start)
    for index in range(start.file, len(files)):
        file = files[index]
        skip = start.fragment if index == start.file else 0
        documents = 0
        for number, fragment in enumerate(read_fragments(file, options)):
            documents += fragment.ends_document
            if number < skip:
                continue
            unit.add(fragment)
            unit.end = Cursor(index, number + 1)
            if unit.is_full:
                yield unit
                unit = Unit(end=unit.end)
        unit.closed.append(_close(file, documents))
        unit.end = Cursor(index + 1)
    if unit.fragments or unit.closed:
        yield unit


def _close(file: InputFile, documents: int) -> FileRecord:
    size = file.path.stat().st_size
    if size != file.bytes:
        raise UsageError(f"{file.path} changed while it was read: run again with --restart")
    return FileRecord(file.source, file.name, size, documents, file_sha256(file.path))


class Encoder:
    """Fragments to little-endian token ids, an end-of-document id after each document."""

    def __init__(self, tokenizer_json: bytes, eos_token_id: int, dtype: str) -> None:
        from coordinator.data.tokenizer import load

        self._tokenizer = load(tokenizer_json)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._eos = np.array(eos_token_id, self._dtype).tobytes()
        self._words = (
            WordEncoder(self._tokenizer, self._dtype) if can_be_cut(self._tokenizer) else None
        )

    def encode(self, fragments: list[Fragment]) -> bytes:
        parts = []
        for fragment, tokens in zip(fragments, self._tokens(fragments), strict=True):
            parts.append(tokens)
            if fragment.ends_document:
                parts.append(self._eos)
        return b"".join(parts)

    def _tokens(self, fragments: list[Fragment]) -> list[bytes]:
        texts = [fragment.text for fragment in fragments]
        if self._words is not None:
            return [self._words.encode(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self._dtype).tobytes() for encoding in encodings]


def encode_units(
    units: Iterable[Unit], workers: int, tokenizer_json: bytes, eos_token_id: int, dtype: str
) -> Generator[tuple[Unit, bytes]]:
    """Each unit with its token bytes, in the order of the corpus.

    Raises:
        TransientError: a tokenising process was killed (most likely out of memory).
    """
    arguments = (tokenizer_json, eos_token_id, dtype)
    if workers == 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        encoder = Encoder(*arguments)
        for unit in units:
            yield unit, encoder.encode(unit.fragments)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_encoder, arguments
    )
    try:
        yield from _in_order(pool, units, window=2 * workers)
    except BrokenProcessPool as error:
        raise TransientError(_KILLED) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_own_process(function: Any, *arguments: Any, threads: int) -> Any:
    """Run a function in a process of its own, so that its memory goes back afterwards.

    Raises:
        TransientError: the process was killed.
    """
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), _start_process, (threads,)
    ) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise TransientError(_KILLED) from error


_KILLED = (
    "a tokenising process was killed (out of memory?): run the same command again, with fewer "
    "--workers if it happens again"
)


def _in_order(
    pool: ProcessPoolExecutor, units: Iterable[Unit], window: int
) -> Iterator[tuple[Unit, bytes]]:
    waiting: deque[tuple[Unit, Future[bytes]]] = deque()
    for unit in units:
        waiting.append((unit, pool.submit(_encode, unit.fragments)))
        if len(waiting) > window:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _start_process(threads: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    # Ctrl-C reaches the whole group: end at once and without a word; the parent says it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, name="die-with-parent", daemon=True).start()


def _start_encoder(tokenizer_json: bytes, eos_token_id: int, dtype: str) -> None:
    global _encoder
    _start_process(1)
    _encoder = Encoder(tokenizer_json, eos_token_id, dtype)


def _encode(fragments: list[Fragment]) -> bytes:
    assert _encoder is not None
    return _encoder.encode(fragments)


def _die_with_parent() -> None:
    # The pool's own queues keep each other open: without this, a killed build leaves its
    # processes behind for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
