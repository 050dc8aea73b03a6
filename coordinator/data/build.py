"""Text to dataset, in five phases that each survive kill -9.

``tokenizer`` (train or copy) -> ``tokenise`` (text to one spool of tokens) -> ``shuffle``
(scatter sequences into buckets) -> ``shards`` (sort buckets, write shards) -> ``publish``.

Invariants:

* Same inputs, same options, same seed: the same dataset digest, whatever the number of
  processes, the buffer, and however often the build was interrupted.
* Memory is bounded by the buffer, a few units per process, and the list of input files.
* Nothing of the dataset is visible before it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from coordinator.data import tokenizer as tokenizers_of_ours
from coordinator.data.inputs import InputFile, find_files, fingerprint
from coordinator.data.journal import Journal, WorkFolder, locked, write_atomically
from coordinator.data.options import BuildOptions, Phase, Progress, ProgressCallback
from coordinator.data.pack import ShardWriter, Spool
from coordinator.data.publish import publish
from coordinator.data.shuffle import Shuffler
from coordinator.data.sources import SOURCES_NAME, joint_licence, record_line, write_sources
from coordinator.data.tokenise import Cursor, Unit, encode_units, in_own_process, read_units
from coordinator.data.tokenizer import TokenizerFacts
from protocol.dataset import MANIFEST_NAME, MAX_SHARDS, DatasetManifest
from protocol.digest import file_sha256
from protocol.errors import UsageError

log = structlog.get_logger()

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def build_dataset(
    options: BuildOptions, on_progress: ProgressCallback = lambda progress: None
) -> DatasetManifest:
    """Build a dataset folder, or continue the interrupted build of the same one.

    Args:
        options: what to build, from what, where.
        on_progress: called in this process, many times in each phase.

    Returns:
        The manifest of the finished dataset.

    Raises:
        UsageError: input, options or disk need a person's attention; nothing is lost.
        TransientError: a process of the build was killed; run it again.
    """
    tokenizers_of_ours.requested_vocab(options.tokenizer)
    files = find_files(options)
    with _storage_errors(options.out), locked(options.out):
        work = WorkFolder(options.out)
        _refuse_finished(options, work)
        journal = work.resume(options, fingerprint(files))
        return _Build(options, files, work, journal, on_progress).run()


@dataclass(frozen=True)
class Split:
    """How many sequences go where."""

    total: int
    validation: int
    per_shard: int

    def size_of(self, finished: int, written: int) -> int:
        """Sequences of the shard after ``finished`` ones that hold ``written`` sequences."""
        if finished == 0:
            return self.validation
        return min(self.per_shard, self.total - written)


def split_sequences(total: int, sequence_bytes: int, options: BuildOptions) -> Split:
    """Validation is the fraction asked for, at least one sequence, at most one shard.

    Raises:
        UsageError: too little text for one sequence of each.
    """
    if total < 2:
        raise UsageError(
            f"the corpus fills only {total} sequences of {options.sequence_length} tokens, and "
            "one for validation and one for training are needed: add text or choose a smaller "
            "--sequence-length"
        )
    per_shard = max(1, options.shard_bytes // sequence_bytes)
    wanted = round(total * options.validation_fraction)
    validation = max(1, min(wanted, per_shard, total - 1))
    # Larger shards rather than a manifest that is too large to be sent.
    per_shard = max(per_shard, -(-(total - validation) // MAX_SHARDS))
    return Split(total, validation, per_shard)


class _Build:
    """One build under way: the journal says in which phase."""

    def __init__(
        self,
        options: BuildOptions,
        files: list[InputFile],
        work: WorkFolder,
        journal: Journal,
        on_progress: ProgressCallback,
    ) -> None:
        self._options = options
        self._files = files
        self._work = work
        self._journal = journal
        self._tell = on_progress

    def run(self) -> DatasetManifest:
        """Do the phases that are left."""
        if self._journal.phase != "tokenizer":
            log.info("continuing an interrupted build", phase=self._journal.phase)
        else:
            self._make_tokenizer()
        data = self._work.tokenizer.read_bytes()
        facts = tokenizers_of_ours.inspect(tokenizers_of_ours.load(data), self._options.eos)
        if self._journal.phase == "tokenise":
            self._tokenise(data, facts)
        if self._journal.phase in ("shuffle", "shards"):
            self._shuffle_and_write(facts)
        assert self._journal.manifest is not None
        self._tell(Progress("publish", 0, 1, "sequences"))
        publish(self._work, self._journal.manifest)
        self._tell(Progress("publish", 1, 1, "sequences"))
        return self._journal.manifest

    def _advance(self, phase: Phase, **changes: object) -> None:
        self._journal = self._journal.advanced(phase=phase, **changes)
        self._work.save(self._journal)

    def _make_tokenizer(self) -> None:
        options = self._options
        total = sum(file.bytes for file in self._files)
        self._tell(Progress("tokenizer", 0, total, "bytes"))
        try:
            if tokenizers_of_ours.requested_vocab(options.tokenizer) is None:
                data = tokenizers_of_ours.read_given(Path(options.tokenizer))
            elif (workers := options.worker_count(total)) == 1:
                data = tokenizers_of_ours.train(options, self._files)
            else:
                data = in_own_process(
                    tokenizers_of_ours.train, options, self._files, threads=workers
                )
            tokenizers_of_ours.inspect(tokenizers_of_ours.load(data), options.eos)
        except UsageError:
            self._work.remove()  # nothing to continue
            raise
        write_atomically(self._work.tokenizer, data)
        self._tell(Progress("tokenizer", total, total, "bytes"))
        self._advance("tokenise")

    def _tokenise(self, tokenizer_json: bytes, facts: TokenizerFacts) -> None:
        journal = self._journal
        units = read_units(
            self._options, self._files, Cursor(journal.next_file, journal.next_fragment)
        )
        encoded = encode_units(
            units,
            self._options.worker_count(sum(file.bytes for file in self._files)),
            tokenizer_json,
            facts.eos_token_id,
            facts.dtype,
        )
        with (
            Spool(self._work.tokens, journal.tokens_bytes) as tokens,
            Spool(self._work.files, journal.files_bytes) as files,
            contextlib.closing(encoded),
        ):
            self._consume(encoded, tokens, files)
        self._advance("shuffle")

    def _consume(self, encoded: Iterator[tuple[Unit, bytes]], tokens: Spool, files: Spool) -> None:
        total = sum(file.bytes for file in self._files)
        done = sum(file.bytes for file in self._files[: self._journal.next_file])
        saved_at = time.monotonic()
        for unit, data in encoded:
            tokens.append(data)
            for record in unit.closed:
                files.append(record_line(record))
                done += record.bytes
            if time.monotonic() - saved_at >= self._options.checkpoint_s:
                self._checkpoint(unit.end, tokens, files)
                saved_at = time.monotonic()
            self._tell(Progress("tokenise", min(total, done + unit.chars), total, "bytes"))
        self._checkpoint(Cursor(len(self._files)), tokens, files)

    def _checkpoint(self, end: Cursor, tokens: Spool, files: Spool) -> None:
        self._advance(
            "tokenise",
            next_file=end.file,
            next_fragment=end.fragment,
            tokens_bytes=tokens.sync(),
            files_bytes=files.sync(),
        )

    def _shuffle_and_write(self, facts: TokenizerFacts) -> None:
        options = self._options
        sequence_bytes = options.sequence_length * np.dtype(facts.dtype).itemsize
        total = self._journal.tokens_bytes // sequence_bytes
        try:
            split = split_sequences(total, sequence_bytes, options)
        except UsageError:
            self._work.remove()
            raise
        shuffler = Shuffler(
            self._work.buckets, facts.dtype, options.sequence_length, options.buffer_bytes
        )
        if self._journal.phase == "shuffle":
            shuffler.scatter(
                self._work.tokens,
                total,
                options.seed,
                lambda done: self._tell(Progress("shuffle", done, total, "sequences")),
            )
            self._advance("shards")
        self._work.tokens.unlink(missing_ok=True)
        self._write_shards(shuffler, split)
        self._advance("publish", manifest=self._describe(facts))

    def _write_shards(self, shuffler: Shuffler, split: Split) -> None:
        finished = [info for info in (self._journal.validation, *self._journal.shards) if info]
        written = sum(info.sequences for info in finished)
        writer = ShardWriter(self._work.shards)
        with contextlib.closing(writer):
            for rows in shuffler.ordered(skip=written):
                while len(rows):
                    size = split.size_of(len(finished), written)
                    room = size - writer.sequences
                    writer.write(rows[:room])
                    rows = rows[room:]
                    if writer.sequences == size:
                        finished.append(writer.finish())
                        written += size
                        self._advance("shards", validation=finished[0], shards=tuple(finished[1:]))
                    self._tell(
                        Progress("shards", written + writer.sequences, split.total, "sequences")
                    )
        assert written == split.total

    def _describe(self, facts: TokenizerFacts) -> DatasetManifest:
        options = self._options
        shards, validation = self._journal.shards, self._journal.validation
        assert validation is not None
        sources = write_sources(options, self._work.files, self._work.path / SOURCES_NAME)
        return DatasetManifest(
            dtype=facts.dtype,
            sequence_length=options.sequence_length,
            vocab_size=facts.vocab_size,
            eos_token_id=facts.eos_token_id,
            tokenizer_sha256=file_sha256(self._work.tokenizer),
            shuffle_seed=options.seed,
            shards=shards,
            validation=validation,
            sources=sources,
            licence=joint_licence(sources),
            tokens=sum(info.sequences for info in shards) * options.sequence_length,
        )


def _refuse_finished(options: BuildOptions, work: WorkFolder) -> None:
    if options.force or not (options.out / MANIFEST_NAME).exists() or work.is_publishing:
        return
    raise UsageError(
        f"{options.out} already holds a finished dataset: give --force to replace it, or "
        "another --out"
    )


@contextlib.contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise UsageError(
                f"no space left in {out} ({error.strerror}): free some (a build needs about twice "
                "the dataset's size while it runs) and give the same command again; it continues "
                "where it stopped"
            ) from error
        if error.errno in _NOT_ALLOWED:
            raise UsageError(f"{error.filename or out}: {error.strerror}") from error
        raise


__all__ = ["Split", "build_dataset", "split_sequences"]
