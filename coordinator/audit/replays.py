"""What auditors computed: one encoded update for each job, kept until its audit is decided.

Invariants:

* A file is named by its job and its root, so an auditor that has lost its job meanwhile cannot
  replace what another one signed.
* A file is the encoded chunks, one after the other, then the leaf hash of each. So a few chunks of
  a large update are read, and proven to be those under the auditor's signed root, without reading
  the rest.
* Nothing of a worker's bytes is ever here: auditors do not see them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from coordinator.audit.store import FileStore
from protocol import merkle
from protocol.errors import BadDigest, NotFound
from protocol.manifest import Codec
from protocol.update import ChunkLayout

_FOLDER = "replays"


class ReplayStore:
    """Replays of one run, by job. Every method blocks: call it off the event loop."""

    def __init__(self, url: str) -> None:
        """Open the store.

        Args:
            url: the run's blob store (``RunFolder.blobs_url``).

        Raises:
            TransientError: it cannot be reached or written.
        """
        self._files = FileStore(url, _FOLDER)

    def save(self, job_id: bytes, chunks: Sequence[bytes]) -> tuple[bytes, int]:
        """Keep an encoded update.

        Returns:
            SHA-256 and bytes of the chunks, concatenated: ``update_sha256`` and ``update_bytes``
            of the AuditResult.

        Raises:
            TransientError: the store refused; nothing is half-written.
        """
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        leaves = [merkle.leaf_hash(chunk) for chunk in chunks]
        self._files.put(_name(job_id, merkle.root(leaves)), [*chunks, *leaves])
        return digest.digest(), sum(map(len, chunks))

    def read(
        self,
        job_id: bytes,
        layout: ChunkLayout,
        codec: Codec,
        chunks: Iterable[int],
        *,
        root: bytes,
    ) -> dict[int, bytes]:
        """Some chunks of a replay, by number; see :meth:`iterate`."""
        return dict(self.iterate(job_id, layout, codec, chunks, root=root))

    def iterate(
        self,
        job_id: bytes,
        layout: ChunkLayout,
        codec: Codec,
        chunks: Iterable[int],
        *,
        root: bytes,
    ) -> Iterator[tuple[int, bytes]]:
        """Some chunks of a replay with their numbers, one at a time: all of them may be too much.

        Args:
            job_id: whose.
            layout: of the run's update vector.
            codec: of the run.
            chunks: their numbers.
            root: as the auditor signed it; each chunk is proven to be under it.

        Raises:
            NotFound: the replay is kept no more.
            BadDigest: it has another size, or is not what was signed.
            TransientError: the store cannot be read.
        """
        name, starts = _name(job_id, root), _starts(layout, codec)
        expected = starts[-1] + merkle.HASH_BYTES * layout.count
        size = self._files.size(name)
        if size is None:
            raise NotFound(f"the replay {job_id.hex()[:16]} is kept no more")
        if size != expected:
            raise BadDigest(f"the replay {job_id.hex()[:16]} has {size} bytes, not {expected}")
        leaves = self._files.read(name, starts[-1], expected)
        hashes = [leaves[start : start + 32] for start in range(0, len(leaves), 32)]
        if merkle.root(hashes) != root:
            raise BadDigest(f"the replay {job_id.hex()[:16]} is not what its auditor signed")
        for chunk in chunks:
            data = self._files.read(name, starts[chunk], starts[chunk + 1])
            if merkle.leaf_hash(data) != hashes[chunk]:
                raise BadDigest(f"chunk {chunk} of the replay {job_id.hex()[:16]} is damaged")
            yield chunk, data

    def delete(self, job_id: bytes) -> None:
        """Forget what was computed for a job, by whomever; nothing there is fine.

        Raises:
            TransientError: the store refused.
        """
        for name in list(self._files.names()):
            if name.startswith(job_id.hex()):
                self._files.delete(name)


def _name(job_id: bytes, root: bytes) -> str:
    return f"{job_id.hex()}-{root.hex()}.update"


def _starts(layout: ChunkLayout, codec: Codec) -> list[int]:
    """Where each chunk begins, and where the last one ends."""
    starts = [0]
    for chunk in range(layout.count):
        starts.append(starts[-1] + layout.encoded_bytes(codec, chunk))
    return starts
