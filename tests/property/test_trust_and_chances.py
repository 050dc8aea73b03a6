"""Trust is a count that only audits change; chances are the policy's, or certainty."""

from __future__ import annotations

import math
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from coordinator.audit import trust
from coordinator.audit.selection import raised
from ledger.schema import Base
from protocol.audit_policy import PPM, Why
from protocol.manifest import VerificationSpec

WORKERS = ("ada", "bob")
EXECUTIONS = ("cpu", "cpu-bf16", "cuda")

policies = st.builds(
    VerificationSpec,
    p_min=st.floats(0.05, 1.0),
    probation_passes=st.integers(0, 20),
)
watches = st.sampled_from([None, Why.UNAVAILABLE_BEFORE, Why.INCONCLUSIVE_BEFORE])


@given(
    policy=policies,
    passes=st.integers(0, 10**6),
    watched=watches,
    changed=st.booleans(),
    outlying=st.booleans(),
)
def test_reasons_raise_a_chance_to_certainty_and_never_lower_it(
    policy: VerificationSpec, passes: int, watched: Why | None, changed: bool, outlying: bool
) -> None:
    plain = raised(policy, passes)
    chance = raised(policy, passes, watched=watched, device_changed=changed, outlying=outlying)
    assert math.ceil(policy.p_min * PPM) <= plain.ppm <= chance.ppm <= PPM
    assert raised(policy, passes + 1).ppm <= plain.ppm
    newcomer = passes < policy.probation_passes
    if newcomer or watched or changed or outlying:
        assert chance.ppm == PPM
    else:
        assert chance == plain
    expected = [
        (newcomer, Why.NEWCOMER),
        (watched is not None, watched),
        (changed, Why.DEVICE_CHANGED),
        (outlying, Why.SCREENING),
        (True, Why.SAMPLED),
    ]
    assert chance.why is next(why for holds, why in expected if holds)


@given(policy=policies, passes=st.integers(1, 10**6))
def test_a_sampled_chance_is_the_published_rule(policy: VerificationSpec, passes: int) -> None:
    ppm = raised(policy, passes).ppm
    if passes >= policy.probation_passes:
        assert abs(ppm / PPM - max(policy.p_min, 1 / passes)) <= 1 / PPM


steps = st.lists(
    st.tuples(
        st.sampled_from(["pass", "reset", "watch", "clear", "count"]),
        st.sampled_from(WORKERS),
        st.sampled_from(EXECUTIONS),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=50)
@given(steps=steps)
def test_trust_is_what_happened_since_the_last_conviction(
    steps: list[tuple[str, str, str]],
) -> None:
    engine = create_engine("sqlite://")
    Base.metadata.tables["trust"].create(engine)
    passes: defaultdict[tuple[str, str], int] = defaultdict(int)
    audits: defaultdict[tuple[str, str], int] = defaultdict(int)
    watched: set[tuple[str, str]] = set()
    with Session(engine) as session:
        for what, worker, execution in steps:
            key = (worker, execution)
            if what == "pass":
                trust.add_pass(session, worker, execution)
                passes[key] += 1
            elif what == "reset":
                trust.reset(session, worker)
                passes.update({(worker, each): 0 for each in EXECUTIONS})
            elif what == "watch":
                trust.watch(session, worker, execution, Why.UNAVAILABLE_BEFORE)
                watched.add(key)
            elif what == "clear":
                trust.clear_watch(session, worker, execution)
                watched.discard(key)
            else:
                trust.count_audit(session, worker, execution)
                audits[key] += 1
        rows = trust.rows_of(session, WORKERS)
        for worker in WORKERS:
            best = max(passes[(worker, execution)] for execution in EXECUTIONS)
            assert trust.best_passes(session, worker) == best
            for execution in EXECUTIONS:
                key = (worker, execution)
                assert trust.passes_of(session, worker, execution) == passes[key]
                row = rows.get(key)
                assert (row.audits if row else 0) == audits[key]
                assert bool(row and row.watch) == (key in watched)
    engine.dispose()
