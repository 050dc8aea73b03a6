"""A run's public record, written step by step as a coordinator would: for the ledger's tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.orm import Session

from ledger import tree
from ledger.authority import store_delegations
from ledger.credit import reducing_microcredits, training_microcredits
from ledger.donors import set_profile
from ledger.log import Log
from ledger.records import (
    BlockLeaf,
    CreditLeaf,
    DrawLeaf,
    EnrolLeaf,
    FinalLeaf,
    Leaf,
    ReleaseLeaf,
    ReversalLeaf,
    RoundLeaf,
    RunLeaf,
    VerdictLeaf,
    parse_leaf,
)
from ledger.schema import Base, LogLeaf, RunPage
from protocol.audit_policy import PPM, Verdict, Why
from protocol.draw import DrawChain, draw, is_selected
from protocol.identity import Identity, PeerId
from protocol.manifest import RunManifest
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

START_S = 1_700_000_000
ROUND_S = 600


def identity(name: str) -> Identity:
    """The same key for the same name."""
    return Identity.from_seed(hashlib.sha256(name.encode()).digest())


ROOT = Identity.from_seed(bytes(32))  # the root of conftest's manifest
LOG_KEY = identity("log")
DRAWS = DrawChain.of(hashlib.sha256(b"draws").digest(), rounds=1024)  # enough rounds for a test


def assignment(round_: int, worker: int, work: str = "training") -> bytes:
    """Id of the lease of a device in a round."""
    return hashlib.sha256(f"{work} {round_}/{worker}".encode()).digest()[:16]


def _inclusion_digest(round_: int) -> bytes:
    return hashlib.sha256(f"inclusion {round_}".encode()).digest()


def _without_fsync(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")  # the tests do not pull the plug


class History:
    """Writes leaves; every method is one committed transaction, followed by a signed head."""

    def __init__(self, manifest: RunManifest, url: str = "sqlite://") -> None:
        self.manifest = manifest
        self.url = url
        self.engine: Engine = create_engine(url)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _without_fsync)
        Base.metadata.create_all(self.engine)
        self.log = Log(manifest.origin, LOG_KEY, now_s=lambda: self.now_s)
        self.now_s = START_S
        self.round = 0
        self.merged_tokens = 0
        self.state = hashlib.sha256(b"initial").digest()
        self.workers: list[tuple[PeerId, PeerId]] = []  # (worker, donor)

    def close(self) -> None:
        self.engine.dispose()

    def write(self, leaves: Sequence[Leaf], also: Callable[[Session], Any] | None = None) -> str:
        """Append, commit, sign; returns the checkpoint."""
        with Session(self.engine) as session, session.begin():
            if also is not None:
                also(session)
            self.log.append(session, leaves)
        return self.sign()

    def sign(self) -> str:
        with Session(self.engine) as session, session.begin():
            return self.log.sign_head(session)

    def open(self) -> str:
        """Delegations, join link and the run leaf."""
        run_id = self.manifest.run_id
        delegation = delegate(
            ROOT,
            run_id=run_id,
            purpose=wire.KEY_PURPOSE_LOG,
            public_key=LOG_KEY.public.raw,
            serial=1,
            not_before_s=START_S - 60,
            not_after_s=START_S + 365 * 86_400,
        )
        link = f"barnraise://example.org:7443/{run_id.hex()}#root={ROOT.peer_id}"

        def also(session: Session) -> None:
            store_delegations(session, [delegation])
            session.add(
                RunPage(run_id=run_id.hex(), join_link=link, notes="", updated_at_s=START_S)
            )

        return self.write([RunLeaf.of(self.manifest, at_s=self.now_s, draw_tip=DRAWS.tip)], also)

    def enrol(
        self, name: str, *, display_name: str = "", donor: str = "", device: str = "cpu"
    ) -> int:
        """Enrol a device; returns its number."""
        worker = identity(name).peer_id
        whose = identity(donor or name).peer_id
        self.workers.append((worker, whose))
        leaf = EnrolLeaf(
            run_id=self.manifest.run_id,
            at_s=self.now_s,
            worker=worker,
            donor=whose,
            device_class=device,
        )
        self.write([leaf], lambda s: set_profile(s, whose, display_name, now_s=self.now_s))
        return len(self.workers) - 1

    def settle(
        self,
        steps: dict[int, int],
        *,
        loss_nats: float | None = 5.0,
        chances: dict[int, int] | None = None,
    ) -> str:
        """A settled round: ``steps[worker]`` done by each; the first one reduces all chunks."""
        return self.write(self.settled_leaves(steps, loss_nats=loss_nats, chances=chances))

    def settled_leaves(
        self,
        steps: dict[int, int],
        *,
        loss_nats: float | None = 5.0,
        chances: dict[int, int] | None = None,
    ) -> list[Leaf]:
        """The leaves of :meth:`settle`, not written; ``chances`` are in ppm, or certain."""
        started_s, self.now_s = self.now_s, self.now_s + ROUND_S
        ppm = chances or {}
        leaves: list[Leaf] = [
            self._credit(worker, count, ppm.get(worker, PPM)) for worker, count in steps.items()
        ]
        leaves.append(self._reducing(next(iter(steps)), 9))
        self.merged_tokens += sum(steps.values()) * self.manifest.tokens_per_step
        self.state = hashlib.sha256(self.state).digest()
        leaves.append(self._round_leaf("settled", len(steps), started_s, loss_nats))
        self.round += 1
        return leaves

    def skip(self) -> str:
        """A skipped round."""
        started_s, self.now_s = self.now_s, self.now_s + ROUND_S
        leaf = self._round_leaf("skipped", 0, started_s, None)
        self.round += 1
        return self.write([leaf])

    def release(self) -> str:
        return self.write(
            [
                ReleaseLeaf(
                    run_id=self.manifest.run_id,
                    at_s=self.now_s,
                    settled_rounds=self.round,
                    state_digest=self.state,
                    weights_sha256=hashlib.sha256(b"weights").digest(),
                )
            ]
        )

    def publish_draw(self, round_: int) -> None:
        """The draw of a settled round."""
        self.write([self.draw_leaf(round_)])

    def draw_leaf(self, round_: int) -> DrawLeaf:
        return DrawLeaf(
            run_id=self.manifest.run_id,
            at_s=self.now_s,
            round=round_,
            preimage=DRAWS.preimage(round_),
            inclusion_digest=_inclusion_digest(round_),
        )

    def is_drawn(self, round_: int, worker: int, chance_ppm: int) -> bool:
        """Whether the draw of a round chooses that contribution."""
        value = draw(DRAWS.preimage(round_), _inclusion_digest(round_))
        return is_selected(value, assignment(round_, worker), chance_ppm)

    def judge(
        self,
        round_: int,
        worker: int,
        verdict: Verdict = Verdict.PASSED,
        **fields: Any,
    ) -> int:
        """A verdict on a contribution; returns its leaf's index."""
        self.write([self.verdict_leaf(round_, worker, verdict, **fields)])
        return self.size() - 1

    def verdict_leaf(
        self, round_: int, worker: int, verdict: Verdict = Verdict.PASSED, **fields: Any
    ) -> VerdictLeaf:
        of_reducing = fields.get("subject") == "reducing"
        said = {
            "subject": "training",
            "execution": None if of_reducing else "cpu",
            "assignment_id": None if of_reducing else assignment(round_, worker),
            "chunk": 0 if of_reducing else None,
            "reason": {Verdict.PASSED: "agrees", Verdict.FAILED: "differs"}.get(verdict, "other"),
            "why": Why.NEWCOMER,
            "record_digest": hashlib.sha256(f"verdict {self.size()}".encode()).digest(),
            **fields,
        }
        return VerdictLeaf(
            run_id=self.manifest.run_id,
            at_s=self.now_s,
            round=round_,
            worker=self.workers[worker][0],
            verdict=verdict,
            **said,
        )

    def pay_probation(self, round_: int, worker: int, steps: int = 5) -> int:
        """Credit for a probation unit, which a verdict has passed; returns its leaf's index."""
        self.write([self._credit(worker, steps, PPM, work="probation", round_=round_)])
        return self.size() - 1

    def finish(self, donor: int, credits: Sequence[int]) -> None:
        """Final credit of the donor of a device."""
        self.write([self.final_leaf(donor, credits)])

    def final_leaf(self, donor: int, credits: Sequence[int]) -> FinalLeaf:
        return FinalLeaf(
            run_id=self.manifest.run_id,
            at_s=self.now_s,
            donor=self.workers[donor][1],
            credits=tuple(credits),
        )

    def reverse(self, donor: int, credits: Sequence[int], verdict_leaf: int, **fields: Any) -> None:
        """Credit of the donor of a device, taken back or, with ``restored``, given back."""
        self.write([self.reversal_leaf(donor, credits, verdict_leaf, **fields)])

    def reversal_leaf(
        self, donor: int, credits: Sequence[int], verdict_leaf: int, **fields: Any
    ) -> ReversalLeaf:
        said = {"reason": "differs", **fields}
        if "microcredits" not in said:
            paid = (self.credit_leaf(index).microcredits for index in credits)
            said["microcredits"] = sum(paid)
        return ReversalLeaf(
            run_id=self.manifest.run_id,
            at_s=self.now_s,
            donor=self.workers[donor][1],
            credits=tuple(credits),
            verdict_leaf=verdict_leaf,
            **said,
        )

    def block(self, worker: int, blocked: bool = True) -> None:
        leaf = BlockLeaf(
            run_id=self.manifest.run_id,
            at_s=self.now_s,
            key=self.workers[worker][0],
            blocked=blocked,
            reason="audit_failed" if blocked else "audit_overturned",
        )
        self.write([leaf])

    def size(self) -> int:
        """Leaves so far."""
        with Session(self.engine) as session:
            return tree.tree_size(session)

    def credits_of(self, worker: int, round_: int | None = None, work: str = "") -> list[int]:
        """Indexes of the credit leaves of a device."""
        with Session(self.engine) as session:
            rows = session.execute(
                select(LogLeaf.leaf_index, LogLeaf.data).where(LogLeaf.kind == "credit")
            )
            found = sorted((index, parse_leaf(data)) for index, data in rows)
        return [
            index
            for index, leaf in found
            if isinstance(leaf, CreditLeaf)
            and leaf.worker == self.workers[worker][0]
            and round_ in (None, leaf.round)
            and work in ("", leaf.work)
        ]

    def credit_leaf(self, index: int) -> CreditLeaf:
        with Session(self.engine) as session:
            leaf = parse_leaf(session.get_one(LogLeaf, index).data)
        assert isinstance(leaf, CreditLeaf)
        return leaf

    def _credit(
        self,
        number: int,
        steps: int,
        audit_ppm: int,
        work: str = "training",
        round_: int | None = None,
    ) -> CreditLeaf:
        worker, donor = self.workers[number]
        tokens = steps * self.manifest.tokens_per_step
        at = self.round if round_ is None else round_
        name = assignment(at, number, work)
        return CreditLeaf(
            run_id=self.manifest.run_id,
            at_s=self.now_s,
            work=work,
            round=at,
            assignment_id=name,
            worker=worker,
            donor=donor,
            tokens=tokens,
            microcredits=training_microcredits(
                tokens, self.manifest.model_config_json, self.manifest.sequence_length
            ),
            contribution_digest=hashlib.sha256(b"contribution" + name).digest(),
            execution="cpu",
            audit_ppm=audit_ppm,
        )

    def _reducing(self, number: int, chunks: int) -> CreditLeaf:
        worker, donor = self.workers[number]
        return CreditLeaf(
            run_id=self.manifest.run_id,
            at_s=self.now_s,
            work="reducing",
            round=self.round,
            worker=worker,
            donor=donor,
            chunks=chunks,
            microcredits=reducing_microcredits(chunks, self.manifest.update.chunk_elements),
        )

    def _round_leaf(
        self, outcome: str, members: int, started_s: int, loss_nats: float | None
    ) -> RoundLeaf:
        return RoundLeaf(
            run_id=self.manifest.run_id,
            at_s=self.now_s,
            round=self.round,
            outcome=outcome,
            state_digest=self.state,
            merged_tokens=self.merged_tokens,
            roster_digest=hashlib.sha256(b"roster").digest() if members else None,
            result_digest=hashlib.sha256(b"result").digest() if members else None,
            members=members,
            validation_loss_micronats=None if loss_nats is None else round(loss_nats * 10**6),
            started_at_s=started_s,
            ended_at_s=self.now_s,
        )
