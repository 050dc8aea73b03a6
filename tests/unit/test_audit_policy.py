"""Who is audited: BOINC's rule, in whole millionths."""

from __future__ import annotations

import pytest

from protocol.audit_policy import PPM, Verdict, Why, chance_ppm, check_execution
from protocol.errors import BadRecord, UsageError
from protocol.manifest import RunManifest, VerificationSpec

POLICY = VerificationSpec()


@pytest.mark.parametrize("passes", [0, 1, 9])
def test_newcomers_are_audited_always(passes: int) -> None:
    assert chance_ppm(POLICY, passes) == PPM


@pytest.mark.parametrize(
    ("passes", "expected"),
    [(10, 100_000), (11, 90_910), (19, 52_632), (20, 50_000), (10**9, 50_000)],
)
def test_then_one_in_so_many_passes_but_never_less_than_the_least(
    passes: int, expected: int
) -> None:
    assert chance_ppm(POLICY, passes) == expected


def test_chances_never_rise_with_trust() -> None:
    chances = [chance_ppm(POLICY, passes) for passes in range(200)]
    assert chances == sorted(chances, reverse=True)


def test_a_run_without_probation_still_audits_the_first_contribution() -> None:
    policy = VerificationSpec(probation_passes=0)
    assert chance_ppm(policy, 0) == PPM
    assert chance_ppm(policy, 1) == PPM
    assert chance_ppm(policy, 2) == PPM // 2


def test_a_chance_is_rounded_up() -> None:
    """Never below what was promised."""
    policy = VerificationSpec(p_min=0.0123456789, pending_contributions=1000)
    assert chance_ppm(policy, 10**6) == 12_346


@pytest.mark.parametrize("name", ["cpu", "cuda", "mps", "cpu-bf16", "cuda-bf16", "mps-bf16"])
def test_execution_classes(name: str) -> None:
    assert check_execution(name) == name


@pytest.mark.parametrize("name", ["", "CPU", "cpu-fp16", "cpu-bf16 ", "tpu", "cpu\n", "cpu-bf16-x"])
def test_anything_else_is_no_execution_class(name: str) -> None:
    with pytest.raises(BadRecord, match="execution"):
        check_execution(name)


def test_words_are_stable() -> None:
    """They are in signed records: a word that changes makes old records unreadable."""
    assert {verdict.value for verdict in Verdict} == {
        "passed",
        "failed",
        "inconclusive",
        "unavailable",
        "unproven",
        "unaudited-lost",
        "overturned",
    }
    assert {why.value for why in Why} >= {"newcomer", "sampled", "screening", "probation", "appeal"}


def test_cheating_does_not_pay_by_default() -> None:
    """A cheat gains one unit, and at least at p_min loses all that is pending."""
    gain, loss = 1 - POLICY.p_min, POLICY.p_min * POLICY.pending_contributions
    assert loss >= 2 * gain


def test_a_policy_by_which_cheating_pays_is_no_manifest(manifest: RunManifest) -> None:
    document = manifest.model_dump(mode="json")
    document["verification"] |= {"p_min": 0.01, "pending_contributions": 100}
    with pytest.raises(UsageError, match="cheating pays"):
        RunManifest.from_mapping(document)
