"""The interpreter of a service with thousands of clients."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from coordinator.interpreter import COLLECT_AFTER, SWITCH_S, suit_a_service


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    switch_s, after = sys.getswitchinterval(), gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*after)
    sys.setswitchinterval(switch_s)


def test_what_is_loaded_is_not_collected_and_the_rest_still_is() -> None:
    suit_a_service()
    assert gc.get_freeze_count() > 10_000 and gc.isenabled()
    assert gc.get_threshold() == COLLECT_AFTER
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
