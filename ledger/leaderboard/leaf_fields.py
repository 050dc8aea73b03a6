"""What the fields of a leaf mean, in words, and what they point at.

Invariant: every field of every kind of leaf has a meaning here; a test holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ledger.leaderboard import format as text
from ledger.leaf import BaseLeaf

KINDS = {
    "run": "The run begins. Every later leaf is of this run, and every credit follows from it.",
    "enrol": "A device works for a donor from here on.",
    "round": "A round of training is over.",
    "credit": "Work was accepted. Whether it is verified, later leaves say.",
    "draw": "The lot that chose which contributions of a round are audited.",
    "verdict": "What an audit said.",
    "final": "Pending credit is verified: only proof that the work was false can take it away.",
    "reversal": "Credit is taken back, or given back.",
    "block": "A key takes no part any more, or does again.",
    "restore": "The run goes on from a backup.",
    "release": "The model was released.",
    "delegation": "The run's root key vouches for a key, or no longer does.",
    "campaign": "A campaign begins, or has new terms.",
    "campaign_end": "A campaign is over: later credit does not count for it.",
    "news": "The organisers said something.",
    "pledge": "Compute was promised, or a promise was changed.",
    "pool": "From here on the credit of these devices belongs to who gave the money.",
    "donation": "Money arrived.",
    "void": "An earlier pledge, donation or pool counts no more, from here on.",
    "team": "A team was founded.",
    "membership": "A donor is of a team, or of none, from here on.",
    "key_rotation": "A donor's account goes on under a new key.",
    "merge": "Two accounts are one person's, and are counted under the second key.",
}

Links = Callable[[Any], list[tuple[str, str | None]]]


@dataclass(frozen=True)
class Row:
    """A field as people read it: ``values`` are texts, each with where it leads, if anywhere."""

    name: str
    meaning: str
    values: list[tuple[str, str | None]]


def _plain(value: Any) -> list[tuple[str, str | None]]:
    return [(f"{value:,}" if isinstance(value, int) else str(value), None)]


def _said(show: Callable[[Any], str]) -> Links:
    return lambda value: [(show(value), None)]


def _leads(prefix: str) -> Links:
    return lambda value: [(str(value), f"{prefix}{value}")]


def _microcredits(value: int) -> list[tuple[str, str | None]]:
    return [(f"{value:,} microcredits = {text.credit(value)} credits", None)]


def _flag(value: bool) -> list[tuple[str, str | None]]:
    return [("yes" if value else "no", None)]


def _leaves(values: tuple[int, ...]) -> list[tuple[str, str | None]]:
    return [(str(index), f"/log/{index}") for index in values]


_moment, _word = _said(text.moment), _said(text.words)
_donor, _round, _leaf = _leads("/donor/"), _leads("/round/"), _leads("/log/")
_campaign, _team = _leads("/campaigns/"), _leads("/team/")

_FIELDS: dict[str, tuple[str, Links]] = {
    "v": ("version of this form of leaf", _plain),
    "kind": ("what kind of leaf it is", _plain),
    "run_id": ("SHA-256 of the run's manifest", _plain),
    "at_s": ("when it was written, on the coordinator's clock", _moment),
    "manifest": ("the run, whole: model, data, rules, campaign", _said(lambda _: "below")),
    "draw_tip": ("end of the chain of hashes that fixed every lot beforehand", _plain),
    "draw_rounds": ("rounds that this chain is good for", _plain),
    "worker": ("key of the device", _plain),
    "donor": ("key of the donor", _donor),
    "device_class": ("what computes there", _plain),
    "round": ("number of the round", _round),
    "outcome": ("how it ended", _word),
    "state_digest": ("digest of the model and its optimiser from here on", _plain),
    "merged_tokens": ("tokens that the model was trained on so far", _plain),
    "roster_digest": ("digest of the signed list of members", _plain),
    "result_digest": ("root over the merged update", _plain),
    "members": ("contributions that were merged", _plain),
    "validation_loss_micronats": ("loss on unseen text, in nats", _said(text.nats)),
    "started_at_s": ("when it began", _moment),
    "ended_at_s": ("when it ended", _moment),
    "work": ("what is paid for", _plain),
    "assignment_id": ("the piece of work", _plain),
    "tokens": ("tokens trained on: what is paid for", _plain),
    "chunks": ("pieces of the merged update that it computed: what is paid for", _plain),
    "microcredits": ("amount; 1 microcredit is 1 GFLOP", _microcredits),
    "status": ("of this leaf, always: what became of it, later leaves say", _plain),
    "contribution_digest": ("digest of the signed contribution", _plain),
    "execution": ("how it was computed: which tolerances an audit has", _plain),
    "audit_ppm": ("chance that it was to be audited", _said(text.chance)),
    "preimage": ("the lot: hashed, it gives the one before", _plain),
    "inclusion_digest": ("digest of the signed list of merged members, mixed into the lot", _plain),
    "subject": ("what was audited", _plain),
    "chunk": ("which piece of the merged update", _plain),
    "verdict": ("what the audit found", _word),
    "reason": ("why", _word),
    "why": ("why it was audited", _word),
    "record_digest": ("digest of the signed record behind this leaf", _plain),
    "credits": ("leaves of the credit", _leaves),
    "verdict_leaf": ("leaf of the verdict that explains it", _leaf),
    "restored": ("given back, because the verdict was overturned", _flag),
    "key": ("key of the device or donor", _plain),
    "blocked": ("takes no part any more", _flag),
    "log_size": ("leaves that the backup had", _plain),
    "next_round": ("round that the run goes on with", _plain),
    "settled_rounds": ("rounds that are in the model", _plain),
    "weights_sha256": ("SHA-256 of the released file", _plain),
    "provenance_sha256": ("SHA-256 of the statement where it comes from", _plain),
    "purpose": ("what the key may sign", _plain),
    "key_digest": ("SHA-256 of the key", _plain),
    "serial": ("number of the delegation", _plain),
    "not_before_s": ("from", _moment),
    "not_after_s": ("until", _moment),
    "revoked": ("taken back", _flag),
    "campaign": ("the campaign", _campaign),
    "revision": ("0 at first, then one more for each change", _plain),
    "goal_microcredits": ("compute that it wants", _microcredits),
    "goal_minor": ("money that it wants, in the currency's smallest unit", _plain),
    "currency": ("currency", _plain),
    "starts_s": ("when it starts", _moment),
    "ends_s": ("when it ends", _moment),
    "when_reached": ("what happens when its goal is reached", _word),
    "when_missed": ("what happens at its end", _word),
    "pledge": ("id of the pledge", _plain),
    "until_s": ("by when", _moment),
    "visibility": ("who may know who it is", _plain),
    "pool": ("key of the sponsored devices", _donor),
    "treasurer": ("key of the treasurer who signed it", _plain),
    "donation": ("id of the donation", _plain),
    "amount_minor": ("amount, in the currency's smallest unit", _plain),
    "received_s": ("when the money arrived", _moment),
    "leaf": ("the leaf that is undone", _leaf),
    "team": ("the team", _team),
    "new": ("the new key", _donor),
    "into": ("the key that goes on", _donor),
}  # fmt: skip


def rows_of(leaf: BaseLeaf, is_over: Callable[[int], bool] = lambda _: True) -> list[Row]:
    """Fields of a leaf in its own order, those that say something.

    Args:
        leaf: any kind of leaf, which the fold accepted: whom it names has a page.
        is_over: whether a round is, and so has a page.
    """
    rows = []
    for name in type(leaf).model_fields:
        value = getattr(leaf, name)
        if value is None:
            continue
        meaning, links = _FIELDS[name]
        has_page = name != "round" or is_over(value)
        rows.append(Row(name, meaning, links(value) if has_page else _plain(value)))
    return rows


def known_fields() -> frozenset[str]:
    """Names that have a meaning."""
    return frozenset(_FIELDS)
