"""Does cheating pay? The policy's own arithmetic, played out over many seeds.

    python -m bench economics
    python -m bench.economics --p-min 0.02 --pending 200 --cheat-share 0.1 --good-rounds 50

One donor with one device does a unit a round and is credited 1 for each. It is honest for a while,
then cheats in a share of its rounds until it is convicted. Who is audited, and how trust grows, is
the real policy (:mod:`protocol.audit_policy`, :mod:`protocol.draw`). What counts:

* gain: credit of cheated units that became final before the conviction;
* loss: credit of honest units that the conviction forfeits.

Counted against us: credit is pending by contributions only (in days it would be pending longer),
a cheat costs its donor nothing, and nothing earlier is audited again after a conviction.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from random import Random

from bench.report import Row, write_report
from protocol.audit_policy import chance_ppm
from protocol.draw import is_selected
from protocol.manifest import VerificationSpec

SEEDS = 10_000
_LONGEST = 20_000
"""Rounds after which a seed counts as never caught; none was seen to come near."""

NOTE = (
    "units of credit, mean over seeds; gain: cheated units that became final, loss: honest units "
    "that were forfeited; seeds_that_gained: share of seeds with gain > loss"
)


@dataclass(frozen=True)
class Strategy:
    """How a donor cheats."""

    good_rounds: int  # honest ones before
    cheat_share: float  # of the rounds after them
    lag_rounds: int = 2  # between a cheat and its conviction
    caught_by_audit: float = 1.0  # measured: python -m bench honest


@dataclass(frozen=True)
class Career:
    """What became of one seed."""

    cheats: int  # until the conviction, the last one included
    rounds: int
    gain: int
    loss: int


def career(policy: VerificationSpec, strategy: Strategy, seed: int) -> Career:
    """Play one donor until it is convicted."""
    random, subject = Random(seed), seed.to_bytes(16, "big")
    passes, cheated, caught_at = 0, list[bool](), None
    while caught_at is None or len(cheated) < caught_at + strategy.lag_rounds:
        number = len(cheated)
        if number >= _LONGEST:
            break
        cheats = number >= strategy.good_rounds and random.random() < strategy.cheat_share
        cheated.append(cheats)
        if not is_selected(random.randbytes(32), subject, chance_ppm(policy, passes)):
            continue
        if not cheats:
            passes += 1
        elif caught_at is None and random.random() < strategy.caught_by_audit:
            caught_at = number
    pending = cheated[-policy.pending_contributions :] if caught_at is not None else []
    final = cheated[: len(cheated) - len(pending)]
    return Career(
        cheats=sum(cheated),
        rounds=len(cheated),
        gain=sum(final),
        loss=len(pending) - sum(pending),
    )


def measure(policy: VerificationSpec, strategy: Strategy, seeds: int) -> Row:
    """One line of the table."""
    careers = [career(policy, strategy, seed) for seed in range(seeds)]
    cheats = [one.cheats for one in careers]
    return {
        "p_min": policy.p_min,
        "pending": policy.pending_contributions,
        "good_rounds": strategy.good_rounds,
        "cheat_share": strategy.cheat_share,
        "seeds": seeds,
        "cheats_until_caught_median": statistics.median(cheats),
        "cheats_until_caught_p99": sorted(cheats)[int(0.99 * (len(cheats) - 1))],
        "gain_mean": round(statistics.fmean(one.gain for one in careers), 2),
        "loss_mean": round(statistics.fmean(one.loss for one in careers), 2),
        "seeds_that_gained": sum(one.gain > one.loss for one in careers) / seeds,
    }


def run(quick: bool) -> list[Row]:
    """The default policy against the strategies of docs/verification.md."""
    policy, seeds = VerificationSpec(), 200 if quick else SEEDS
    strategies = [Strategy(good, share) for good in (0, 50, 500) for share in (1.0, 0.5, 0.1, 0.02)]
    rows = [measure(policy, strategy, seeds) for strategy in strategies]
    write_report("economics-quick" if quick else "economics", rows, note=NOTE)
    return rows


def main() -> None:
    defaults = VerificationSpec()
    parser = argparse.ArgumentParser(prog="python -m bench.economics", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--p-min", type=float, default=defaults.p_min)
    parser.add_argument("--pending", type=int, default=defaults.pending_contributions)
    parser.add_argument("--probation-passes", type=int, default=defaults.probation_passes)
    parser.add_argument("--good-rounds", type=int, default=50)
    parser.add_argument("--cheat-share", type=float, default=0.1)
    parser.add_argument("--caught-by-audit", type=float, default=1.0)
    parser.add_argument("--lag-rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    chosen = parser.parse_args()
    # Not validated: the point is to see what a policy that the manifest refuses would do.
    policy = defaults.model_copy(
        update={
            "p_min": chosen.p_min,
            "pending_contributions": chosen.pending,
            "probation_passes": chosen.probation_passes,
        }
    )
    strategy = Strategy(
        chosen.good_rounds, chosen.cheat_share, chosen.lag_rounds, chosen.caught_by_audit
    )
    write_report("economics-custom", [measure(policy, strategy, chosen.seeds)], note=NOTE)


if __name__ == "__main__":
    main()
