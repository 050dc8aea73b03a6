"""What may pass in any time, whoever asks for whatever, and that nobody waits for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from worker.pacing import SMALL_BYTES, Pacer, Rank, Ticket

RATES = st.floats(min_value=125.0, max_value=12_500_000.0)
PAUSES = st.floats(min_value=0.0, max_value=3.0)


@dataclass
class Line:
    """A pacer, a clock, and what passed when."""

    pacer: Pacer
    now_s: float = 0.0
    passed: list[tuple[float, int]] = field(default_factory=list)
    waiting: dict[int, float] = field(default_factory=dict)  # since when, by number
    longest_s: dict[Rank, float] = field(default_factory=dict)
    ranks: dict[int, Rank] = field(default_factory=dict)

    def ask(self, size_bytes: int, rank: Rank) -> Ticket:
        ticket = self.pacer.ask(size_bytes, rank, self.now_s)
        self.waiting[ticket.number] = self.now_s
        self.ranks[ticket.number] = rank
        self.serve()
        return ticket

    def serve(self) -> None:
        for ticket in self.pacer.serve(self.now_s):
            since_s = self.waiting.pop(ticket.number)
            rank = self.ranks[ticket.number]
            self.longest_s[rank] = max(self.longest_s.get(rank, 0.0), self.now_s - since_s)
            self.passed.append((self.now_s, ticket.size_bytes))

    def until(self, end_s: float) -> None:
        """Let time pass as the shell does: to the moment when the pacer wants to be asked."""
        while (wait_s := self.pacer.wait_s()) is not None and self.now_s + wait_s <= end_s:
            self.now_s += max(wait_s, 1e-6)
            self.serve()
        self.now_s = max(self.now_s, end_s)
        self.serve()

    def most_over(self, rate_bytes_s: float) -> float:
        """By how much the worst of all windows was over the rate."""
        total, least, worst = 0.0, 0.0, 0.0
        for at_s, size in self.passed:
            least = min(least, total - rate_bytes_s * at_s)
            total += size
            worst = max(worst, total - rate_bytes_s * at_s - least)
        return worst


@st.composite
def demands(draw: st.DrawFn) -> list[tuple[float, float, bool, Rank]]:
    """(pause before, size as a share of the largest, small, rank)"""
    one = st.tuples(
        PAUSES,
        st.floats(min_value=0.0, max_value=1.0),
        st.booleans(),
        st.sampled_from((Rank.REDUCE, Rank.BLOBS)),
    )
    return draw(st.lists(one, min_size=1, max_size=60))


def play(line: Line, asked: list[tuple[float, float, bool, Rank]]) -> None:
    for pause_s, share, small, rank in asked:
        line.until(line.now_s + pause_s)
        largest = SMALL_BYTES if small else line.pacer.quantum_bytes
        line.ask(1 + int(share * (largest - 1)), Rank.SMALL if small else rank)


@given(RATES, demands())
def test_no_window_has_more_than_the_rate_and_the_slack(
    rate: float, asked: list[tuple[float, float, bool, Rank]]
) -> None:
    line = Line(Pacer(rate))
    play(line, asked)
    line.until(line.now_s + 1e7)
    assert not line.waiting
    assert sum(size for _, size in line.passed) > 0
    assert line.most_over(rate) <= line.pacer.slack_bytes + 1


@given(RATES)
def test_a_line_that_has_something_to_do_is_used(rate: float) -> None:
    line = Line(Pacer(rate))
    size = line.pacer.quantum_bytes
    for _ in range(50):
        line.ask(size, Rank.REDUCE)
    line.until(line.now_s + 1e7)
    last_s = line.passed[-1][0]
    assert 49 * size >= rate * last_s * 0.999


@given(st.floats(min_value=20_000.0, max_value=12_500_000.0), st.integers(1, 40))
def test_small_messages_do_not_wait_for_bulk(rate: float, streams: int) -> None:
    line = Line(Pacer(rate))
    for _ in range(streams * 10):
        line.ask(line.pacer.quantum_bytes, Rank.REDUCE)
    for _ in range(20):  # ten times a second as much as a worker says
        line.until(line.now_s + 1.0)
        line.ask(1000, Rank.SMALL)
        assert line.longest_s[Rank.SMALL] == 0.0


@given(st.floats(min_value=20_000.0, max_value=1_250_000.0))
def test_a_flood_of_small_messages_leaves_bulk_its_part(rate: float) -> None:
    line = Line(Pacer(rate))
    bulk = line.pacer.quantum_bytes
    for _ in range(10):
        line.ask(bulk, Rank.BLOBS)
    while any(line.ranks[number] == Rank.BLOBS for number in line.waiting):
        line.ask(SMALL_BYTES, Rank.SMALL)
        line.until(line.now_s + SMALL_BYTES / rate / 2)  # twice the rate
    assert line.now_s <= 10 * bulk / (0.75 * rate) + 2.0


def test_blobs_wait_for_the_reduce_but_not_for_ever() -> None:
    line = Line(Pacer(100_000.0))
    line.ask(16_384, Rank.REDUCE)
    line.ask(16_384, Rank.REDUCE)
    blob = line.ask(16_384, Rank.BLOBS)
    for number in range(200):  # the reduce alone has always something to send
        line.ask(16_384, Rank.REDUCE)
        line.until(line.now_s + 0.1)
        if blob.number not in line.waiting:
            break
    assert 10 <= number <= 120


@given(RATES, RATES, demands())
def test_a_change_holds_at_once(
    before: float, after: float, asked: list[tuple[float, float, bool, Rank]]
) -> None:
    line = Line(Pacer(before))
    play(line, asked)
    line.pacer.change(after, line.now_s)
    line.passed, changed_s = [], line.now_s
    line.serve()
    play(line, asked)
    line.until(line.now_s + 1e7)
    line.passed = [(at_s - changed_s, size) for at_s, size in line.passed]
    # What waits already was cut for the rate before.
    largest = 1.1 * Pacer(before).quantum_bytes
    assert line.most_over(after) <= line.pacer.slack_bytes + largest + before + 1


def test_without_a_limit_everybody_passes_and_those_who_wait_are_let_go() -> None:
    line = Line(Pacer(125.0))
    for _ in range(5):
        line.ask(16_384, Rank.REDUCE)
    assert len(line.waiting) == 4
    line.pacer.change(0.0, line.now_s)
    line.serve()
    assert not line.waiting
    assert line.pacer.is_free


def test_a_clock_that_is_set_back_gives_nothing() -> None:
    pacer = Pacer(1000.0, now_s=100.0)
    pacer.charge(5000, 100.0)
    pacer.charge(0, 50.0)
    ticket = pacer.ask(5000, Rank.REDUCE, 100.0)
    assert pacer.serve(104.9) == []
    assert pacer.serve(105.1) == [ticket]


def test_the_days_end_lets_bulk_wait_and_small_messages_pass() -> None:
    line = Line(Pacer())
    line.pacer.closed_to_bulk = True
    blob, small = line.ask(16_384, Rank.BLOBS), line.ask(100, Rank.SMALL)
    assert list(line.waiting) == [blob.number]
    assert small.number not in line.waiting
    assert line.pacer.wait_s() is None
    line.pacer.closed_to_bulk = False
    line.serve()
    assert not line.waiting


def test_who_does_not_wait_any_more_keeps_nobody_waiting() -> None:
    line = Line(Pacer(1000.0))
    first, second = line.ask(1000, Rank.REDUCE), line.ask(9000, Rank.REDUCE)
    third = line.ask(1000, Rank.REDUCE)
    second.gone = True
    line.until(1.1)
    assert first.number not in line.waiting
    assert third.number not in line.waiting
