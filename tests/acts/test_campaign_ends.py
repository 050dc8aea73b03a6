"""Campaigns end by their own terms, once, whatever stops the coordinator in between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from acts_rig import CAMPAIGN, DAY_S, Acts
from sqlalchemy import event, select
from structlog.testing import capture_logs

from coordinator.audit.schema import AuditRow
from coordinator.audit.verdict import record_verdict
from coordinator.turn import Turn
from ledger.records import CampaignEndLeaf
from ledger.schema import LogLeaf
from protocol.audit_policy import Verdict

Start = Callable[..., Awaitable[Acts]]


def ends(acts: Acts) -> list[tuple[str, str]]:
    """Campaign and outcome of every end in the record."""
    found = acts.board().campaigns.campaigns.values()
    ended = [campaign.end[1] for campaign in found if campaign.end is not None]
    assert all(isinstance(leaf, CampaignEndLeaf) for leaf in ended)
    with acts.rig.database.session() as session:
        assert session.query(LogLeaf).filter_by(kind="campaign_end").count() == len(ended)
    return [(leaf.campaign, leaf.outcome) for leaf in ended]


def pass_audits(acts: Acts) -> None:
    """As if the auditors had replayed everything that was drawn."""
    with acts.rig.database.session() as session:
        turn = Turn(acts.rig.engine.context, session, acts.rig.now_s)
        for row in session.scalars(select(AuditRow).where(AuditRow.verdict.is_(None))).all():
            record_verdict(turn, row, Verdict.PASSED, "replay_agrees", [], [])


async def test_a_missed_campaign_ends_at_its_deadline_once(start_acts: Start) -> None:
    acts = await start_acts()
    acts.appoint()
    terms = acts.terms(ends_s=acts.now_s + 100)
    acts.record(terms, CAMPAIGN)
    acts.rig.now_s += 100
    await acts.rig.engine.keep_campaigns()
    assert ends(acts) == []
    acts.rig.now_s += 1
    for _ in range(2):
        await acts.rig.engine.keep_campaigns()
        assert ends(acts) == [(terms.campaign.hex(), "missed")]
    await acts.rig.reboot()
    await acts.rig.engine.keep_campaigns()
    assert ends(acts) == [(terms.campaign.hex(), "missed")]
    acts.record(acts.terms("b"), CAMPAIGN)  # another may begin
    acts.verify()


async def test_the_end_is_said_after_a_restart_in_between(start_acts: Start) -> None:
    """The deadline passes while the coordinator is down; then the first write fails."""
    acts = await start_acts()
    acts.appoint()
    acts.record(acts.terms(ends_s=acts.now_s + 100), CAMPAIGN)
    await acts.rig.engine.keep_campaigns()
    await acts.rig.reboot(downtime_s=200)

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO act "):
            raise OSError("no space left")

    engine = acts.rig.database.engine
    event.listen(engine, "before_cursor_execute", fail)
    with pytest.raises(OSError, match="no space"):
        await acts.rig.engine.keep_campaigns()
    event.remove(engine, "before_cursor_execute", fail)
    assert ends(acts) == []
    await acts.rig.reboot()
    await acts.rig.engine.keep_campaigns()
    assert [outcome for _, outcome in ends(acts)] == ["missed"]
    acts.verify()


async def test_terms_that_go_on(start_acts: Start) -> None:
    acts = await start_acts()
    acts.appoint()
    acts.record(acts.terms(ends_s=acts.now_s + 100, when_missed="continue"), CAMPAIGN)
    acts.rig.now_s += 1000
    await acts.rig.engine.keep_campaigns()
    assert ends(acts) == []
    assert acts.board().campaigns.current is not None


@pytest.mark.parametrize("when_reached", ["close", "continue"])
async def test_a_reached_goal_ends_a_campaign_whose_terms_say_so(
    start_acts: Start, when_reached: str
) -> None:
    """Verified credit alone reaches it."""
    acts = await start_acts(inner={"max_steps": 100, "sequences_per_batch": 32})
    acts.appoint()
    rig = acts.rig
    anchor, ada = rig.enrol(1, anchor=True), rig.enrol(2)
    acts.record(acts.terms(goal_microcredits=1, when_reached=when_reached), CAMPAIGN)
    await rig.play_round(ada)
    await rig.engine.keep_campaigns()
    assert ends(acts) == []  # pending credit is not verified
    pass_audits(acts)
    for later_s in (8 * DAY_S, 60):  # draws are published, then credit is final
        rig.now_s += later_s
        while await rig.engine.audit():
            pass
    assert acts.board().campaigns.campaigns[acts.terms().campaign.hex()].is_reached
    for _ in range(2):
        await rig.engine.keep_campaigns()
    wanted = [(acts.terms().campaign.hex(), "reached")] if when_reached == "close" else []
    assert ends(acts) == wanted
    await anchor.beat()
    acts.verify()


async def test_without_its_key_the_end_is_complained_of_and_said_later(start_acts: Start) -> None:
    acts = await start_acts()
    acts.appoint()
    acts.record(acts.terms(ends_s=acts.now_s + 100), CAMPAIGN)
    acts.rig.now_s += 10**7 + 1  # the delegation is over, too
    with capture_logs() as logs:
        for _ in range(3):
            await acts.rig.engine.keep_campaigns()
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "campaign_end_unsigned"
    ]
    assert ends(acts) == []
    acts.appoint()
    await acts.rig.engine.keep_campaigns()
    assert [outcome for _, outcome in ends(acts)] == ["missed"]
