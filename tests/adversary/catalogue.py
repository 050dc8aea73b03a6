"""All adversaries of the suite, in the order in which the table shows them."""

from __future__ import annotations

import math
from functools import partial

from faults import Fault
from outcome import Scenario, bound_for
from scenarios import (
    caught,
    concert,
    copycat,
    dropout,
    impostor,
    nobody,
    pair,
    reducer_convicted,
    refused,
    silent,
    slanderer,
    sleeper,
    sybils,
    yes_man,
)

_REDUCED = bound_for(1 - math.comb(13, 4) / math.comb(17, 4))
"""Rounds: four of 17 result chunks are recomputed, a member reduces four of them."""

ALL: tuple[Scenario, ...] = (
    *(
        Scenario(fault, partial(caught, fault))
        for fault in (
            Fault.RANDOM_UPDATE,
            Fault.ZERO_UPDATE,
            Fault.SIGN_FLIP,
            Fault.SCALED,
            Fault.HALF_STEPS,
            Fault.MOST_STEPS,
            Fault.HIDDEN_STEPS,
            Fault.OTHER_DATA,
            Fault.STALE_BASE,
            Fault.FALSIFIED_CHUNK,
        )
    ),
    Scenario(Fault.COPIED_UPDATE, partial(copycat, Fault.COPIED_UPDATE)),
    Scenario(Fault.COPIED_ROOT, partial(copycat, Fault.COPIED_ROOT)),
    *(
        Scenario(fault, partial(refused, fault, by=by))
        for fault, by in (
            (Fault.REPLAYED_UPDATE, "layer 1: commitment is known"),
            (Fault.REPLAYED_RECORD, "layer 1: round is over"),
            (Fault.NOT_FINITE, "layer 2: finite"),
            (Fault.LOSS_NOT_FINITE, "layer 1: loss"),
            (Fault.FORGED_TOKENS, "layer 1: tokens = steps"),
            (Fault.FORGED_STEPS, "layer 1: lease"),
            (Fault.OTHER_BYTES, "layer 2: hash = commitment"),
            (Fault.SOME_REDUCERS, "layer 2: complete everywhere"),
        )
    ),
    Scenario(Fault.IMPOSTOR, impostor),
    Scenario(Fault.WRONG_MEAN, partial(reducer_convicted, Fault.WRONG_MEAN, bound=_REDUCED)),
    Scenario(Fault.EQUIVOCATION, partial(reducer_convicted, Fault.EQUIVOCATION, bound=1)),
    Scenario(Fault.FALSE_PROJECTION, partial(reducer_convicted, Fault.FALSE_PROJECTION, bound=2)),
    Scenario(Fault.CENSOR, partial(slanderer, Fault.CENSOR)),
    Scenario(Fault.FRAME, partial(slanderer, Fault.FRAME)),
    *(
        Scenario(fault, partial(dropout, fault))
        for fault in (
            Fault.DROP_TRAINING,
            Fault.DROP_TRAINED,
            Fault.DROP_COMMITTED,
            Fault.DROP_GATHER,
            Fault.DROP_BROADCAST,
        )
    ),
    Scenario(Fault.DROP_AUDIT, silent),
    Scenario(Fault.YES_AUDITOR, yes_man, "two auditors"),
    Scenario("colluding-pair", pair),
    Scenario("sybils", sybils, "newcomers"),
    Scenario("sybils-in-concert", concert, "newcomers"),
    Scenario("sleeper", sleeper, "trust"),
)

BASELINE = Scenario("nobody", nobody)
