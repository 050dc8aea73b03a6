"""What ``status``, ``workers`` and ``rounds`` tell: read from the database, plain data out.

They read the same rows that the server writes, so they answer also while it is down, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.panel import Panel
from rich.table import Table
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator import blocks, round_state
from coordinator.schema import (
    AssignmentRow,
    ContributionRow,
    ControlRow,
    RoundRow,
    StateRow,
    WorkerRow,
)
from ledger.donors import names_of, short_key
from protocol.errors import UsageError
from protocol.manifest import RunManifest
from protocol.wire import records_pb2 as wire

ACTIVE_WITHIN_S = 60.0

View = dict[str, Any]


def status(
    session: Session,
    manifest: RunManifest,
    now_s: float,
    *,
    serving: bool,
    troubles: Sequence[View] = (),
) -> View:
    """The run now.

    Args:
        session: a transaction.
        manifest: of the run folder.
        now_s: seconds since the epoch.
        serving: whether its server is up.
        troubles: what keeps the server from its work (:mod:`coordinator.troubles`).

    Raises:
        UsageError: the database belongs to another run, or to none.
    """
    control = session.get(ControlRow, 1)
    if control is None or control.run_id != manifest.run_id:
        raise UsageError("the database does not belong to this run folder: see [server] database")
    state = session.scalars(
        select(StateRow).order_by(StateRow.settled_rounds.desc()).limit(1)
    ).one()
    measured = session.scalars(
        select(StateRow)
        .where(StateRow.validation_loss.is_not(None))
        .order_by(StateRow.settled_rounds.desc())
        .limit(1)
    ).first()
    known = session.scalar(select(func.count()).select_from(WorkerRow)) or 0
    active = session.scalar(
        select(func.count())
        .select_from(WorkerRow)
        .where(WorkerRow.last_seen_s >= now_s - ACTIVE_WITHIN_S)
    )
    return {
        "run": manifest.name,
        "run_id": manifest.run_id.hex(),
        "serving": serving,
        "paused": control.paused,
        "finished": control.finished,
        "settled_rounds": state.settled_rounds,
        "merged_tokens": state.merged_tokens,
        "state_digest": state.digest.hex(),
        "validation_loss": measured.validation_loss if measured else None,
        "validation_loss_after": measured.settled_rounds if measured else None,
        "workers": known,
        "active_workers": active or 0,
        "round": _running(session, now_s),
        "troubles": list(troubles),
    }


def _running(session: Session, now_s: float) -> View | None:
    row = session.scalars(select(RoundRow).order_by(RoundRow.number.desc()).limit(1)).first()
    if row is None:
        return None
    machine = round_state.load(row.machine)
    left_s = None if machine.deadline_s is None else max(0.0, machine.deadline_s - now_s)
    return {
        "number": row.number,
        "phase": row.phase,
        "left_s": left_s,
        "training": len(machine.training),
        "committed": len(machine.committed),
        "attempt": machine.attempt,
        "reducers": len(machine.reducers),
    }


def workers(session: Session, now_s: float) -> list[View]:
    """Every device, the last seen first."""
    rows = session.scalars(
        select(WorkerRow).order_by(WorkerRow.last_seen_s.desc(), WorkerRow.worker)
    ).all()
    names = names_of(session, [row.donor for row in rows])
    contributed: dict[str, tuple[int, int]] = {
        worker: (count, tokens)
        for worker, count, tokens in session.execute(
            select(AssignmentRow.worker, func.count(), func.sum(ContributionRow.tokens))
            .join(ContributionRow, ContributionRow.assignment_id == AssignmentRow.assignment_id)
            .where(AssignmentRow.status == "merged")
            .group_by(AssignmentRow.worker)
        )
    }
    blocked = blocks.reasons(session)
    return [
        {
            "worker": row.worker,
            "donor": row.donor,
            "name": names.get(row.donor, ""),
            "device_class": row.device_class,
            "anchor": row.anchor,
            "client_mode": row.client_mode,
            "phase": _phase(row.phase),
            "reason": row.phase_reason,
            "tokens_per_s": row.measured_tokens_per_s or row.reported_tokens_per_s,
            "seen_s_ago": max(0.0, now_s - row.last_seen_s),
            "merged_units": contributed.get(row.worker, (0, 0))[0],
            "merged_tokens": int(contributed.get(row.worker, (0, 0))[1] or 0),
            "blocked": blocked.get(row.worker) or blocked.get(row.donor),
            "version": row.client_version,
        }
        for row in rows
    ]


def _phase(number: int) -> str:
    known = number in wire.WorkerPhase.values()
    name = wire.WorkerPhase.Name(number) if known else str(number)
    return name.removeprefix("WORKER_PHASE_").lower()


def rounds(session: Session, most: int) -> list[View]:
    """The newest rounds, newest first."""
    rows = session.scalars(select(RoundRow).order_by(RoundRow.number.desc()).limit(most)).all()
    following = [row.settled_after for row in rows if row.settled_after is not None]
    states = session.execute(
        select(StateRow.settled_rounds, StateRow.validation_loss).where(
            StateRow.settled_rounds.in_(following)
        )
    )
    losses = {state.settled_rounds: state.validation_loss for state in states}
    return [
        {
            "round": row.number,
            "phase": row.phase,
            "members": row.members,
            "tokens": row.tokens,
            "duration_s": None if row.ended_at_s is None else row.ended_at_s - row.opened_at_s,
            "validation_loss": losses.get(row.settled_after)
            if row.phase == round_state.Phase.SETTLED and row.settled_after is not None
            else None,
            "reason": row.reason,
        }
        for row in rows
    ]


# ---- for the terminal ----


def render_status(view: View) -> Panel:
    """A panel."""
    table = Table.grid(padding=(0, 2))
    running, loss = view["round"], view["validation_loss"]
    flags = [name for name in ("paused", "finished") if view[name]]
    server = "serving" if view["serving"] else "down (start it with 'barnraise coordinator serve')"
    rows = [
        ("coordinator", server + (f", {', '.join(flags)}" if flags else "")),
        ("round", "none yet" if running is None else _round_text(running)),
        ("settled", f"{view['settled_rounds']:,} rounds, {view['merged_tokens']:,} tokens"),
        (
            "validation loss",
            "-" if loss is None else f"{loss:.4f} after {view['validation_loss_after']:,} rounds",
        ),
        ("workers", f"{view['active_workers']:,} active of {view['workers']:,}"),
        ("state", view["state_digest"][:16]),
    ]
    rows += [("trouble", _trouble_text(trouble)) for trouble in view["troubles"]]
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", value)
    return Panel(table, title=f"run {view['run']} · {view['run_id'][:12]}", expand=False)


def _trouble_text(trouble: View) -> str:
    return f"[red]{_escape(trouble['doing'])}[/]: {_escape(trouble['sentence'], most=400)}"


def _round_text(running: View) -> str:
    left = "" if running["left_s"] is None else f", {running['left_s']:.0f} s left"
    attempt = f", attempt {running['attempt']}" if running["attempt"] else ""
    return (
        f"{running['number']} {running['phase']}{left}: {running['training']} training, "
        f"{running['committed']} committed{attempt}"
    )


def render_workers(views: Sequence[View]) -> Table:
    """A table."""
    table = Table(title=f"{len(views)} workers")
    for column in ("worker", "donor", "device", "doing", "tokens/s", "merged", "seen"):
        table.add_column(column)
    for view in views:
        phase, reason = view["phase"], view["reason"]
        # "waiting: waiting for ..." says one thing twice.
        doing = reason if reason.startswith(phase) else phase + (f": {reason}" if reason else "")
        kind = view["device_class"] + (" anchor" if view["anchor"] else "")
        table.add_row(
            short_key(view["worker"]),
            _escape(view["name"]) or short_key(view["donor"]),
            kind + (" (NAT)" if view["client_mode"] else ""),
            _escape(f"blocked: {view['blocked']}" if view["blocked"] else doing),
            f"{view['tokens_per_s']:,.0f}",
            f"{view['merged_tokens']:,} in {view['merged_units']:,}",
            _ago(view["seen_s_ago"]),
        )
    return table


def render_rounds(views: Sequence[View]) -> Table:
    """A table."""
    table = Table(title="rounds, newest first")
    for column in ("round", "phase", "members", "tokens", "loss", "took", "reason"):
        table.add_column(column)
    for view in views:
        loss, took = view["validation_loss"], view["duration_s"]
        table.add_row(
            str(view["round"]),
            view["phase"],
            str(view["members"]),
            f"{view['tokens']:,}",
            "-" if loss is None or math.isnan(loss) else f"{loss:.4f}",
            "-" if took is None else f"{took:.0f} s",
            _escape(view["reason"]),
        )
    return table


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _escape(text: str, *, most: int = 120) -> str:
    from rich.markup import escape

    # A worker's reason is foreign text: no escape sequences for the organiser's terminal.
    return escape("".join(c for c in text if c.isprintable())[:most])
