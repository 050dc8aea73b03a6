"""The pure fold: leaves in order -> who gave what.

Every number that is shown anywhere is a value of this fold. :class:`Board` refuses a leaf that
contradicts the leaves before it, so to fold a log is to audit it. What it insists on:

1. leaf 0 is the run, the only run, and every other leaf is of that run;
2. credit goes to a device that was enrolled, for a donor that it was enrolled for;
3. credit is what the published formula gives for the leaf's tokens or chunks, to the unit;
4. nothing is paid twice, and nothing for a skipped round;
5. rounds come in order, none is left out but those that a restore from a backup names as lost; a
   skipped round changes nothing, and a restore goes back to a state that the record knows;
6. each settled round paid exactly the members and tokens that it merged
   (:meth:`Board.check_merged`);
7. draws are those that the run fixed, chances of an audit follow from the verdicts, and a verdict
   is about work that was there to judge (:mod:`ledger.audits`);
8. credit becomes final by the rule, is taken back by a verdict and given back by its overturning
   (:mod:`ledger.finality`);
9. campaigns, pledges, money, teams and joined keys follow their rules (:mod:`ledger.crowd`), and
   what all persons have together is what the run credited (:meth:`Board.check_sums`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ledger.audits import Audits
from ledger.campaigns import Campaigns
from ledger.credit import FLOPS_PER_MICROCREDIT, flops_per_token, reducing_microcredits
from ledger.crowd import Crowd
from ledger.finality import take_final, take_reversal
from ledger.people import People
from ledger.records import (
    ActLeaf,
    BlockLeaf,
    CreditLeaf,
    CrowdLeaf,
    DrawLeaf,
    EnrolLeaf,
    FinalLeaf,
    Leaf,
    ReleaseLeaf,
    RestoreLeaf,
    ReversalLeaf,
    RoundLeaf,
    RunLeaf,
    VerdictLeaf,
    parse_leaf,
)
from ledger.tally import Accounts, Amounts, Donor, Tally, Worker
from protocol.errors import BadRecord, UsageError
from protocol.identity import PeerId
from protocol.manifest import RunManifest


@dataclass(frozen=True)
class Round:
    """A round that is over, and where the log says so."""

    leaf_index: int
    leaf: RoundLeaf
    tokens: int = 0  # that it merged


@dataclass
class Board:
    """The fold so far. Grows by :meth:`apply`; knows nothing but the leaves."""

    size: int = 0
    manifest: RunManifest | None = None
    run_id: str = ""
    opened_s: int = 0
    newest_s: int = 0  # latest time that any leaf gives
    accounts: Accounts = field(default_factory=Accounts)
    rounds: dict[int, Round] = field(default_factory=dict)  # ascending
    releases: list[tuple[int, ReleaseLeaf]] = field(default_factory=list)
    restores: list[tuple[int, RestoreLeaf]] = field(default_factory=list)
    _audits: Audits | None = None
    _crowd: Crowd | None = None
    _flops_per_token: int = 0
    _paid: set[str] = field(default_factory=set)
    _last_round: Round | None = None
    _undrawn: set[int] = field(default_factory=set)  # rounds that were lost before their draw
    _next_round: int = 0
    _merged_tokens: int = 0
    _state_digest: str | None = None  # None: no round yet, so the run's first

    @property
    def total(self) -> Tally:
        return self.accounts.total

    @property
    def donors(self) -> dict[PeerId, Donor]:
        return self.accounts.donors

    @property
    def workers(self) -> dict[PeerId, Worker]:
        return self.accounts.workers

    @property
    def credited(self) -> dict[int, Tally]:
        """What was credited, by round."""
        return self.accounts.rounds

    @property
    def audits(self) -> Audits:
        """Draws, verdicts and trust; there from the run leaf on."""
        assert self._audits is not None
        return self._audits

    @property
    def crowd(self) -> Crowd:
        """Campaigns, pledges, pools and teams; there from the run leaf on."""
        assert self._crowd is not None
        return self._crowd

    @property
    def people(self) -> People:
        """Whose key is whose."""
        return self.crowd.people

    @property
    def campaigns(self) -> Campaigns:
        return self.crowd.campaigns

    @property
    def last_round(self) -> Round | None:
        return self._last_round

    @property
    def merged_tokens(self) -> int:
        """In the model: a restore from a backup takes it back, though not the credit."""
        return self._merged_tokens

    @property
    def awaited_draws(self) -> int:
        """Rounds that paid for training, and whose draw is not published yet."""
        paid = {number for number, tally in self.credited.items() if tally.contributions}
        return len(paid - self.audits.draws.keys() - self._undrawn)

    def apply(self, data: bytes) -> Leaf:
        """Take the next leaf.

        Raises:
            BadRecord: it is malformed or contradicts the leaves before it; names the leaf.
        """
        over = None
        try:
            leaf = parse_leaf(data)
            if self._crowd is not None and self._crowd.campaigns.current is not None:
                over = self._crowd.campaigns.pass_time(self.size, max(self.newest_s, leaf.at_s))
            self._take(leaf)
        except BadRecord as error:
            if over is not None:
                self.campaigns.reopen(over)
            raise BadRecord(f"leaf {self.size}: {error}") from error
        self.newest_s = max(self.newest_s, leaf.at_s)
        self.size += 1
        return leaf

    def check_act(self, leaf: CrowdLeaf) -> None:
        """Say whether the leaf of an act may come next, and change nothing: for who writes it.

        Raises:
            BadRecord: it may not; names the reason.
        """
        if leaf.run_id != self.run_id:
            raise BadRecord("speaks of another run")
        over = self.campaigns.pass_time(self.size, max(self.newest_s, leaf.at_s))
        try:
            self.crowd.check(leaf)
        finally:
            self.campaigns.reopen(over)

    def check_merged(self) -> None:
        """Insist that every settled round paid who it merged, for what it merged.

        A round may be paid whose own leaf is still to come: it waits for a validation loss.

        Raises:
            BadRecord: naming the round and its leaf.
        """
        for number, entry in self.rounds.items():
            paid = self.credited.get(number, Tally())
            if paid.tokens != entry.tokens:
                raise BadRecord(
                    f"leaf {entry.leaf_index}: {paid.tokens} tokens were paid for round {number}, "
                    f"but {entry.tokens} were merged"
                )
            if paid.contributions != entry.leaf.members:
                raise BadRecord(
                    f"leaf {entry.leaf_index}: {paid.contributions} contributions were paid for "
                    f"round {number}, but it merged {entry.leaf.members}"
                )

    def check_sums(self) -> None:
        """Insist that persons, anonymous donors and pools have together what was credited.

        Raises:
            BadRecord: credit appeared or vanished: the fold has a bug.
        """
        if self._crowd is None:
            return
        self._crowd.pools.refresh()
        total = sum((Amounts.of(donor.tally) for donor in self.donors.values()), Amounts())
        for owner in self.people.owners():
            total += self._crowd.pools.sponsored(owner) - self._crowd.pools.given_away(owner)
        total += self._crowd.pools.anonymous
        if total != Amounts.of(self.total):
            raise BadRecord(f"all persons have {total}, but {Amounts.of(self.total)} was credited")

    def _take(self, leaf: Leaf) -> None:
        if isinstance(leaf, RunLeaf):
            self._take_run(leaf)
            return
        if self.manifest is None:
            raise BadRecord("the log does not begin with its run")
        if leaf.run_id != self.run_id:
            raise BadRecord("speaks of another run")
        if isinstance(leaf, CreditLeaf):  # nearly all are
            self._take_credit(leaf)
        elif isinstance(leaf, EnrolLeaf):
            self._take_enrol(leaf)
        elif isinstance(leaf, RoundLeaf):
            self._take_round(leaf)
        elif isinstance(leaf, ActLeaf):
            self.crowd.take(self.size, leaf)
        elif isinstance(leaf, ReleaseLeaf):
            self.releases.append((self.size, leaf))
        elif isinstance(leaf, RestoreLeaf):
            self._take_restore(leaf)
        else:
            self._take_audit(leaf)

    def _take_audit(
        self, leaf: DrawLeaf | VerdictLeaf | FinalLeaf | ReversalLeaf | BlockLeaf
    ) -> None:
        if isinstance(leaf, DrawLeaf):
            self.audits.take_draw(self.size, leaf)
        elif isinstance(leaf, VerdictLeaf):
            self.audits.take_verdict(self.size, leaf)
        elif isinstance(leaf, FinalLeaf):
            take_final(self.accounts, self.audits, self.size, leaf)
        elif isinstance(leaf, ReversalLeaf):
            take_reversal(self.accounts, self.audits, self.size, leaf)
        else:
            self.audits.take_block(leaf)

    def _take_run(self, leaf: RunLeaf) -> None:
        if self.size:
            raise BadRecord("a log holds one run, and its first leaf names it")
        manifest = leaf.run_manifest()
        try:
            self._flops_per_token = flops_per_token(
                manifest.model_config_json, manifest.sequence_length
            )
        except UsageError as error:
            raise BadRecord(str(error)) from error
        self.manifest, self.run_id, self.opened_s = manifest, leaf.run_id, leaf.at_s
        self._audits = Audits.of(leaf, manifest.verification, self.accounts)
        self._crowd = Crowd.of(leaf, manifest, self.accounts, self._audits)

    def _take_enrol(self, leaf: EnrolLeaf) -> None:
        self.crowd.check_enrol(leaf)
        self.accounts.touched.add(leaf.donor)
        donor = self.donors.setdefault(leaf.donor, Donor(leaf.donor, leaf.at_s))
        if leaf.worker not in donor.workers:
            donor.workers.append(leaf.worker)
        known = self.workers.get(leaf.worker)
        if known is None:
            self.workers[leaf.worker] = Worker(
                leaf.worker, leaf.donor, leaf.device_class, {leaf.donor}, leaf.at_s
            )
        else:
            known.donor, known.device_class = leaf.donor, leaf.device_class
            known.donors.add(leaf.donor)

    def _take_round(self, leaf: RoundLeaf) -> None:
        if leaf.round != self._next_round:
            raise BadRecord(self._out_of_order(leaf.round))
        if leaf.merged_tokens < self._merged_tokens:
            raise BadRecord("merged tokens fell")
        if leaf.outcome == "settled" and None in (leaf.roster_digest, leaf.result_digest):
            raise BadRecord("a settled round names its roster and its result")
        if leaf.outcome == "skipped":
            self._check_skipped(leaf)
        entry = Round(self.size, leaf, leaf.merged_tokens - self._merged_tokens)
        self._last_round = self.rounds[leaf.round] = entry
        self._next_round, self._merged_tokens = leaf.round + 1, leaf.merged_tokens
        self._state_digest = leaf.state_digest

    def _out_of_order(self, number: int) -> str:
        if self.restores and self.restores[-1][1].next_round == self._next_round:
            return f"the first round after the restore is {self._next_round}, not {number}"
        if self._last_round is None:
            return f"the first round of a run is 0, not {number}"
        return f"round {number} comes after round {self._next_round - 1}"

    def _check_skipped(self, leaf: RoundLeaf) -> None:
        if leaf.members or leaf.result_digest is not None:
            raise BadRecord("a skipped round has neither members nor a result")
        if leaf.merged_tokens != self._merged_tokens:
            raise BadRecord("a skipped round merged tokens")
        if self._state_digest is not None and leaf.state_digest != self._state_digest:
            raise BadRecord("a skipped round changed the state")
        paid = self.credited.get(leaf.round, Tally())
        if paid.contributions or paid.chunks:
            raise BadRecord(f"round {leaf.round} was paid, but is skipped")

    def _take_restore(self, leaf: RestoreLeaf) -> None:
        """Go back to an older state, and on with later numbers of rounds."""
        if leaf.log_size > self.size:
            raise BadRecord(f"restores {leaf.log_size} leaves; there are only {self.size}")
        if leaf.next_round <= max(self._next_round, *self.credited, 0):
            raise BadRecord(f"uses the number {leaf.next_round} of a round again")
        self._check_restored_state(leaf)
        lost = self.audits.give_up_lost(self.size, leaf.log_size)
        self._undrawn |= lost - self.audits.draws.keys()
        self._next_round, self._merged_tokens = leaf.next_round, leaf.merged_tokens
        self._state_digest = leaf.state_digest
        self.restores.append((self.size, leaf))

    def _check_restored_state(self, leaf: RestoreLeaf) -> None:
        if not leaf.merged_tokens:
            return  # the run's first state, which no round's leaf names
        settled = {(e.leaf.state_digest, e.leaf.merged_tokens) for e in self.rounds.values()}
        if (leaf.state_digest, leaf.merged_tokens) not in settled:
            raise BadRecord("goes on from a state that no round of this record led to")

    def _take_credit(self, leaf: CreditLeaf) -> None:
        worker = self.workers.get(leaf.worker)
        if worker is None or leaf.donor not in worker.donors:
            raise BadRecord("pays a device that was not enrolled for this donor")
        expected = self._microcredits(leaf)
        if leaf.microcredits != expected:
            raise BadRecord(f"pays {leaf.microcredits} microcredits; the formula gives {expected}")
        settled = self.rounds.get(leaf.round)
        skipped = settled is not None and settled.leaf.outcome == "skipped"
        if skipped and leaf.work != "probation":
            raise BadRecord(f"pays for round {leaf.round}, which was skipped")
        key = leaf.assignment_id or f"{leaf.round}/{leaf.worker}"
        if key in self._paid:
            raise BadRecord("pays the same work twice")
        verdict = self.audits.check_credit(leaf)
        self._paid.add(key)
        self.accounts.pay(self.size, leaf, verdict, self.crowd.counted_in(leaf))

    def _microcredits(self, leaf: CreditLeaf) -> int:
        assert self.manifest is not None
        if leaf.work != "reducing":
            return leaf.tokens * self._flops_per_token // FLOPS_PER_MICROCREDIT
        return reducing_microcredits(leaf.chunks, self.manifest.update.chunk_elements)


def fold(leaves: Iterable[bytes]) -> Board:
    """Fold a whole log.

    Raises:
        BadRecord: naming the first leaf that is wrong.
    """
    board = Board()
    for data in leaves:
        board.apply(data)
    board.check_merged()
    board.check_sums()
    return board
