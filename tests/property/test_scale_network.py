"""The simulator's core: bytes are conserved, links keep their rate, runs repeat, formulas hold."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.scale_fit import Fit, Fits, fit
from bench.scale_flat import FlatRound, butterfly_shares, few_shares, todays_shares
from bench.scale_grid import GridRound
from bench.scale_homes import Member, draw_members
from bench.scale_job import Job, Round, Share, divide
from bench.scale_losses import Phase, flat_loss, grid_loss
from bench.scale_network import Network, Node, Processors, Server, Transfer
from protocol.update import ChunkLayout

RATES = st.floats(1.0, 1e4)
FREE = Fit(
    dict.fromkeys(("open", "listed", "serve", "leaf", "chunk_out", "chunk_in", "element_in"), 0.0),
    0,
    1,
)
NO_WORK = Fits(
    gather=FREE,
    broadcast=Fit({**FREE.costs, "combine_element": 0.0}, 0, 1),
    coordinator=Fit({"report": 0.0, "statement": 0.0}, 0, 1),
    daemon_bytes=FREE,
    python_bytes=FREE,
)
LAYOUT = ChunkLayout(60 << 17, 1 << 17)


class WatchedServer(Server):
    """Remembers what it did when."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.rate = rate
        self.spans: list[tuple[float, float, float]] = []

    def serve(self, at_s: float, amount: float) -> float:
        end_s = super().serve(at_s, amount)
        self.spans.append((end_s - amount / self.rate, end_s, amount))
        return end_s


@st.composite
def traffic(
    draw: st.DrawFn,
) -> tuple[list[tuple[float, float]], list[tuple[float, int, int, float]]]:
    """Rates (up, down) of nodes, and transfers (when, from, to, bytes)."""
    nodes = draw(st.lists(st.tuples(RATES, RATES), min_size=2, max_size=6))
    number = st.integers(0, len(nodes) - 1)
    transfer = st.tuples(st.floats(0, 10), number, number, st.floats(1, 1e5))
    return nodes, draw(st.lists(transfer, min_size=1, max_size=40))


def _note(came: list[tuple[float, int]], number: int, now_s: float) -> None:
    came.append((now_s, number))


def run_traffic(
    rates: list[tuple[float, float]], transfers: list[tuple[float, int, int, float]]
) -> tuple[list[Node], list[tuple[float, int]]]:
    """The nodes afterwards, and (time, transfer) of each arrival."""
    nodes = [
        Node(WatchedServer(up), WatchedServer(down), Processors(2), 0.01) for up, down in rates
    ]
    network, came = Network(nodes), []
    for number, (at_s, sender, receiver, size) in enumerate(transfers):
        done = partial(_note, came, number)
        network.send(at_s, sender, [Transfer(receiver, size, 1e-4, 1e-4, done)])
    network.run()
    return nodes, came


@settings(max_examples=60, deadline=None)
@given(traffic())
def test_every_byte_leaves_once_and_arrives_once(case) -> None:
    rates, transfers = case
    nodes, came = run_traffic(rates, transfers)
    crossing = [(a, b, size) for _, a, b, size in transfers if a != b]
    for number, node in enumerate(nodes):
        assert node.up.done == pytest.approx(sum(s for a, _, s in crossing if a == number))
        assert node.down.done == pytest.approx(sum(s for _, b, s in crossing if b == number))
    assert sorted(n for _, n in came) == list(range(len(transfers)))


@settings(max_examples=60, deadline=None)
@given(traffic())
def test_a_link_does_one_thing_at_a_time_at_its_rate(case) -> None:
    nodes, _ = run_traffic(*case)
    for link in (link for node in nodes for link in (node.up, node.down)):
        assert isinstance(link, WatchedServer)
        for (_, before_s, _), (begin_s, _, _) in zip(link.spans, link.spans[1:], strict=False):
            assert begin_s >= before_s - 1e-6
        if link.spans:
            first_s, last_s = link.spans[0][0], link.spans[-1][1]
            carried = sum(amount for _, _, amount in link.spans)
            assert carried <= link.rate * (last_s - first_s) * (1 + 1e-6) + 1e-3


@settings(max_examples=30, deadline=None)
@given(traffic())
def test_no_transfer_is_faster_than_its_path(case) -> None:
    rates, transfers = case
    _, came = run_traffic(rates, transfers)
    for now_s, number in came:
        at_s, sender, receiver, size = transfers[number]
        least_s = 2e-4
        if sender != receiver:
            least_s += size / rates[sender][0] + size / rates[receiver][1] + 0.02
        assert now_s >= at_s + least_s - 1e-6


def test_what_is_urgent_does_not_wait_for_what_is_queued() -> None:
    nodes = [Node(Server(1.0), Server(1e9), Server(1.0)) for _ in range(2)]
    network, came = Network(nodes), []
    network.send(0.0, 0, [Transfer(1, 10, arrived=came.append) for _ in range(3)])
    network.send_first(5.0, 0, Transfer(1, 1, arrived=came.append))
    network.run()
    assert came == pytest.approx([10, 11, 21, 31])


def test_processors_share_what_waits() -> None:
    two = Processors(2)
    assert [two.serve(0.0, work) for work in (4, 1, 1, 5)] == [4, 1, 2, 7]
    assert two.serve(10.0, 1) == 11
    assert (two.done, two.busy_s, two.free_at_s) == (12, 12, 11)


# ---- whole rounds


def twins(count: int, *, rate: float = 1e6, latency_s: float = 0.0) -> list[Member]:
    return [Member(rate, rate, latency_s, 1, reachable=True) for _ in range(count)]


def job(pieces: int = 60) -> Job:
    return Job(LAYOUT, "int4", NO_WORK, most_pieces=pieces)


@pytest.mark.parametrize("size", [2, 3, 5, 12, 20])
def test_a_butterfly_of_twins_takes_what_the_formula_says(size: int) -> None:
    shares = butterfly_shares(twins(size), LAYOUT.count)
    done = FlatRound(job(), twins(size), shares).run()
    # Each phase: all but its own share, at the link's rate; pieces fill the pipe once.
    each_s = job().vector_bytes * (size - 1) / size / 1e6
    piece_s = job().chunk_bytes / 1e6
    assert done.gathered_at_s == pytest.approx(each_s, rel=0.03, abs=size * piece_s)
    assert max(done.finished_at_s.values()) == pytest.approx(
        2 * each_s, rel=0.06, abs=2 * size * piece_s
    )


def test_one_slow_reducer_bounds_the_round() -> None:
    members = [Member(1e9, 1e9, 0.0, 1, reachable=False) for _ in range(10)]
    members[0] = Member(1e6, 1e6, 0.0, 1, reachable=True)
    done = FlatRound(job(), members, [Share(0, LAYOUT.count)]).run()
    each_s = 9 * job().vector_bytes / 1e6
    assert max(done.finished_at_s.values()) == pytest.approx(2 * each_s, rel=0.02)


def test_one_slow_sender_bounds_the_gather() -> None:
    members = twins(10, rate=1e9)
    members[3] = Member(1e5, 1e9, 0.0, 1, reachable=False)
    done = FlatRound(job(), members, few_shares(members, LAYOUT.count, 4)).run()
    assert done.gathered_at_s == pytest.approx(job().vector_bytes / 1e5, rel=0.02)


SIMULATIONS = {
    "today": lambda members: FlatRound(job(2), members, todays_shares(members, LAYOUT.count)),
    "all": lambda members: FlatRound(job(2), members, butterfly_shares(members, LAYOUT.count)),
    "few": lambda members: FlatRound(job(2), members, few_shares(members, LAYOUT.count, 5)),
    "in turns": lambda members: GridRound(job(2), members),
    "anchors on top": lambda members: GridRound(
        job(2), members, few_shares(members, LAYOUT.count, 2)
    ),
}


def homes(seed: int, count: int = 80) -> list[Member]:
    return draw_members(count, 2, random.Random(seed))


@pytest.mark.parametrize("name", SIMULATIONS)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_member_gets_the_mean_and_bytes_are_conserved(name: str, seed: int) -> None:
    members = homes(seed)
    done = SIMULATIONS[name](members).run()
    assert sorted(done.finished_at_s) == list(range(len(members)))
    assert sum(n.up.done for n in done.nodes) == pytest.approx(sum(n.down.done for n in done.nodes))
    for member, node in zip(members, done.nodes, strict=False):
        # Whoever reduces nothing sends the update and gets the mean, once; leaves come on top.
        assert node.down.done >= job().vector_bytes * (1 if not member.reachable else 0.2)
        assert node.up.free_at_s * member.up_bytes_s >= node.up.done * (1 - 1e-9)


@pytest.mark.parametrize("name", SIMULATIONS)
def test_the_same_seed_gives_the_same_round(name: str) -> None:
    first, again, other = (SIMULATIONS[name](homes(seed)).run() for seed in (3, 3, 4))
    assert first.finished_at_s == again.finished_at_s
    assert first.load == again.load
    assert first.finished_at_s != other.finished_at_s


def statements(round_: Round) -> int:
    return round_.load.statements


def test_the_coordinator_verifies_a_statement_for_each_member_and_reducer() -> None:
    members = homes(5)
    shares = few_shares(members, LAYOUT.count, 6)
    assert statements(FlatRound(job(2), members, shares).run()) == len(members) * len(shares)


def test_two_levels_have_each_chunk_reduced_once_on_top_and_once_in_each_group() -> None:
    grid = GridRound(job(2), homes(6))
    assert sorted(i for group in grid.groups for i in group) == list(range(82))
    assert all(sum(s.chunks for s in shares) == LAYOUT.count for shares in grid.shares)
    brought = sum(chunks for brings in grid.to_top.values() for chunks in brings.values())
    assert brought == LAYOUT.count * len(grid.groups)
    assert len(grid.tops) == LAYOUT.count


# ---- the fit, the shares, the losses


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 10), min_size=3, max_size=3),
    st.lists(st.lists(st.floats(0.1, 100), min_size=3, max_size=3), min_size=5, max_size=12),
)
def test_a_fit_explains_what_is_explainable(costs: list[float], counts: list[list[float]]) -> None:
    costs[0] += 0.1
    rows = [dict(zip("abc", row, strict=True)) for row in counts]
    taken = [sum(c * n for c, n in zip(costs, row, strict=True)) for row in counts]
    found = fit(rows, taken)
    assert found.residual < 1e-3
    assert min(found.costs.values()) >= 0


def test_a_fit_finds_the_costs_and_its_residual() -> None:
    rows = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}]
    found = fit(rows, [2.0, 3.0, 5.0])
    assert found.costs == pytest.approx({"a": 2.0, "b": 3.0})
    assert found.of({"a": 2, "b": 1}) == pytest.approx(7.0)
    assert fit([{"a": 1.0}] * 2, [1.0, 3.0]).residual == pytest.approx(0.447, abs=0.001)


@given(st.integers(1, 2000), st.lists(st.floats(0.1, 1e6), min_size=1, max_size=50))
def test_chunks_are_divided_whole_and_in_proportion(chunks: int, weights: list[float]) -> None:
    counts = divide(chunks, weights)
    assert sum(counts) == chunks
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - chunks * weight / sum(weights)) <= 1


@given(st.integers(0, 500), st.floats(0.001, 0.2))
def test_more_reducers_lose_more_attempts_and_anchors_lose_none(count: int, gone: float) -> None:
    fewer, more = (
        flat_loss(Phase(60.0, reducers), 600.0, 300.0, gone) for reducers in (count, count + 1)
    )
    assert 0 <= fewer.rounds_lost <= more.rounds_lost <= 1
    assert fewer.rounds_lost < more.rounds_lost or fewer.rounds_lost > 0.999
    assert flat_loss(Phase(60.0, 0), 600.0, 300.0, gone).more_s == 0
    assert flat_loss(Phase(60.0, count), 200.0, 300.0, gone).rounds_lost == 0
    grid = grid_loss(Phase(50.0, count), Phase(10.0, 0), 60.0, 10, 300.0, gone)
    assert grid.rounds_lost == 0
    assert grid.units_lost <= grid.first_attempts_lost


def test_a_round_that_overruns_its_deadlines_is_lost_though_nobody_vanishes() -> None:
    lost = flat_loss(Phase(700.0, 0), 700.0, 600.0, 0.01)
    assert (lost.rounds_lost, lost.units_lost, lost.more_s) == (1.0, 1.0, 1200.0)
    assert grid_loss(Phase(600.0, 0), Phase(99.0, 0), 700.0, 10, 600.0, 0.01) == lost
    saved = flat_loss(Phase(700.0, 5), 400.0, 600.0, 0.01)  # by the anchors, in the last attempt
    assert (saved.rounds_lost, saved.first_attempts_lost, saved.more_s) == (0.0, 1.0, 1000.0)
