"""What we show when an audit asks: projections, or chunks with proofs that they were committed to.

Invariants:

* A challenge has one answer: it is signed once, written down, and sent again as it was. When what
  it showed is gone meanwhile, nothing is sent: two answers would contradict each other.
* Only verified bytes are spoken of (see :class:`worker.updates.ChunkFile`); else the answer is
  *unavailable*, with a stable word, which costs nobody anything but the unit.
* A challenge that makes no sense is answered *malformed*; it never raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from protocol.envelope import Signed, open_envelope, parse_envelope, seal
from protocol.errors import NotFound, PeerFault
from protocol.identity import Identity
from protocol.limits import MAX_RECORD_BYTES
from protocol.manifest import RunManifest
from protocol.projection import PROJECTION_BYTES
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.retained import Retained
from worker.updates import ChunkFile, open_update, sha256s

log = structlog.get_logger()

MOST_SHOWN_BYTES = 3 << 20
"""Of encoded chunks in one answer: it is one gRPC message of at most 4 MiB."""

MOST_PROJECTED_CHUNKS = (MAX_RECORD_BYTES - 4096) // PROJECTION_BYTES
"""Projections are inside the signed record."""

NOT_KEPT, MALFORMED, TOO_LARGE = "not_kept", "malformed", "too_large"
"""Why there is nothing to show."""

_ID_BYTES = 16
_SEED_BYTES = 32
_MOST_ANSWERS = 256


class _Unavailable(Exception):
    """Ends the search for an answer; private. ``args[0]`` is the stable word."""


@dataclass(frozen=True)
class Evidence:
    """Answers challenges from what is on disk. Its methods block."""

    identity: Identity
    manifest: RunManifest
    retained: Retained
    answers: Path  # folder of the answers that were given
    elements: Callable[[], int]  # of the flat vector; blocking

    def answer(self, challenge: api.Challenge) -> api.AnswerChallengeRequest | None:
        """The answer to a challenge, the same one each time.

        Returns:
            None when there is nothing to send now: what is asked for is still being written, or
            the answer that was given cannot be shown any more.
        """
        if len(challenge.challenge_id) != _ID_BYTES:
            log.warning("challenge without an id ignored")
            return None
        if challenge.group_id and self.retained.is_writing(challenge.group_id):
            return None
        given = self._given(challenge.challenge_id)
        if given is not None:
            return self._again(challenge, given)
        record = wire.ChallengeAnswer(
            run_id=self.manifest.run_id,
            challenge_id=challenge.challenge_id,
            worker=self.identity.peer_id,
        )
        chunks: list[wire.OpenedChunk] = []
        try:
            if challenge.kind == api.CHALLENGE_KIND_PROJECT:
                record.projections = self._project(challenge)
            else:
                chunks = self._show(challenge)
        except _Unavailable as error:
            record.unavailable = error.args[0]
        except NotFound as error:
            log.info("evidence not here", why=str(error))
            record.unavailable = NOT_KEPT
        record.chunk_sha256.extend(sha256s(chunks))
        envelope = seal(record, self.identity)
        self._remember(challenge.challenge_id, envelope)
        return api.AnswerChallengeRequest(answer=envelope, chunks=chunks)

    def _again(
        self, challenge: api.Challenge, given: Signed[wire.ChallengeAnswer]
    ) -> api.AnswerChallengeRequest | None:
        chunks: list[wire.OpenedChunk] = []
        if given.record.chunk_sha256:
            try:
                chunks = self._show(challenge)
            except (_Unavailable, NotFound):
                return None
        if sha256s(chunks) != list(given.record.chunk_sha256):
            return None
        return api.AnswerChallengeRequest(answer=given.envelope, chunks=chunks)

    # ---- the kinds ---------------------------------------------------------------------

    def _project(self, challenge: api.Challenge) -> bytes:
        first, end, seed = challenge.first_chunk, challenge.end_chunk, challenge.projection_seed
        if first >= end or len(seed) != _SEED_BYTES:
            raise _Unavailable(MALFORMED)
        if end - first > MOST_PROJECTED_CHUNKS:
            raise _Unavailable(TOO_LARGE)
        file = self._file(challenge, self._one_member(challenge))
        _require_chunks(file, range(first, end))
        return file.project(first, end, seed)

    def _show(self, challenge: api.Challenge) -> list[wire.OpenedChunk]:
        if challenge.kind == api.CHALLENGE_KIND_OPEN:
            members = [self._one_member(challenge)]
        elif challenge.kind == api.CHALLENGE_KIND_INPUTS:
            members = list(challenge.members)
        else:
            raise _Unavailable(MALFORMED)
        chunks = list(challenge.chunks)
        if not members or not chunks:
            raise _Unavailable(MALFORMED)
        files, total = [], 0
        for member in members:
            file = self._file(challenge, member)
            _require_chunks(file, chunks)
            files.append(file)
            total += file.bytes_of(chunks)
            if total > MOST_SHOWN_BYTES:
                raise _Unavailable(TOO_LARGE)
        return [opened for file in files for opened in file.show(chunks)]

    def _one_member(self, challenge: api.Challenge) -> str:
        if len(challenge.members) > 1:
            raise _Unavailable(MALFORMED)
        return challenge.members[0] if challenge.members else self.identity.peer_id

    def _file(self, challenge: api.Challenge, member: str) -> ChunkFile:
        """Where a member's chunks are: our own update, or what we reduced."""
        me = self.identity.peer_id
        if member == me and challenge.assignment_id:
            path = self.retained.update(challenge.assignment_id)
            if path is not None:
                return open_update(path, self.elements(), self.manifest, me)
        return self.retained.group(challenge.group_id, me).of(member)

    # ---- answers that were given -------------------------------------------------------

    def _given(self, challenge_id: bytes) -> Signed[wire.ChallengeAnswer] | None:
        try:
            envelope = parse_envelope((self.answers / challenge_id.hex()).read_bytes())
            return open_envelope(envelope, wire.ChallengeAnswer, signer=self.identity.peer_id)
        except (OSError, PeerFault):
            return None

    def _remember(self, challenge_id: bytes, envelope: wire.Envelope) -> None:
        try:
            part = self.answers / f"{challenge_id.hex()}.part"
            part.write_bytes(envelope.SerializeToString())
            part.replace(self.answers / challenge_id.hex())
            known = sorted(self.answers.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            for old in known[:-_MOST_ANSWERS]:
                old.unlink(missing_ok=True)
        except OSError as error:  # it is computed anew then, from the same bytes
            log.warning("cannot write an answer down", problem=error.strerror)


def _require_chunks(file: ChunkFile, chunks: Sequence[int]) -> None:
    if max(chunks) >= file.layout.count:
        raise _Unavailable(MALFORMED)
