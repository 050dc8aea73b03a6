"""What must hold at the end of the demonstration; each check says what it saw."""

from __future__ import annotations

import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from coordinator.database import Database
from coordinator.demo.observer import Snapshot, agreement
from coordinator.demo.processes import ChildError, Children
from coordinator.demo.story import Story
from coordinator.round_state import Phase

MIN_ROUNDS = 8
CLEARLY_BELOW = 0.9
"""The loss must end below this share of the unigram entropy."""

PROMPT = "KING.\nMy lord, "


@dataclass(frozen=True)
class Check:
    """One thing that had to hold."""

    name: str
    held: bool
    seen: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def check_rounds(snapshot: Snapshot) -> Check:
    settled = len(snapshot.settled)
    skipped = sum(view.phase == Phase.SKIPPED for view in snapshot.rounds)
    seen = f"{settled} settled, {skipped} skipped"
    return Check(f"at least {MIN_ROUNDS} rounds settled", settled >= MIN_ROUNDS, seen)


def check_loss(snapshot: Snapshot, entropy: float) -> Check:
    losses = [view.loss for view in snapshot.settled if view.loss is not None]
    first, last = snapshot.first_loss or float("nan"), losses[-1] if losses else float("inf")
    return Check(
        "validation loss fell clearly below the unigram entropy",
        last < CLEARLY_BELOW * entropy,
        f"{first:.3f} -> {last:.3f} nats a token; unigrams {entropy:.3f}",
    )


def check_agreement(database: Database) -> Check:
    with database.session() as session:
        seen = agreement(session)
    return Check(
        "every member ended every round with the coordinator's own weights digest",
        0 < seen.memberships == seen.agreeing,
        f"{seen.agreeing} of {seen.memberships} reports equal, {seen.differing} differ",
    )


def check_killed(story: Story) -> Check:
    held = story.killed_in_round is not None and story.back_in_round is not None
    seen = f"killed in round {story.killed_in_round}, merged again in round {story.back_in_round}"
    return Check("the worker killed with -9 in mid-round came back", held, seen)


def check_late(story: Story, snapshot: Snapshot) -> Check:
    view = snapshot.workers.get("latecomer")
    merged = view.merged_rounds if view else ()
    seen = f"came in round {story.late_from_round}, merged in {len(merged)} rounds"
    return Check("the late worker's work was merged", bool(merged), seen)


def check_audits(snapshot: Snapshot) -> Check:
    seen = snapshot.audits
    return Check(
        "every audit by replay passed, and credit became final",
        seen.passed > 0 and seen.other == 0 and seen.open == 0 and seen.final > 0,
        f"{seen.passed} passed, {seen.other} did not; {seen.final} contributions are final",
    )


def check_ledger(children: Children, database_url: str, root: str) -> Check:
    try:
        children.call("ledger-verify", "ledger", "verify", "--db", database_url, "--root", root)
    except ChildError as error:
        return Check("the public record verifies", False, str(error))
    return Check("the public record verifies", True, "signatures, hashes, every total")


def check_page(url: str) -> Check:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - loopback, our own
            body = reply.read().decode()
    except OSError as error:
        return Check("the leaderboard answers", False, str(error))
    return Check("the leaderboard answers", "latecomer" in body, f"{len(body):,} bytes at {url}")


def check_release(folder: Path) -> tuple[Check, str]:
    """Load the released folder as any user of transformers would, and let it write."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=60,
        do_sample=True,
        temperature=0.8,
        top_k=40,
        pad_token_id=tokenizer.eos_token_id,
    )
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    parameters = sum(value.numel() for value in model.parameters())
    held = len(output[0]) > inputs["input_ids"].shape[1] and len(text) > len(PROMPT)
    seen = f"{parameters:,} parameters, wrote {len(text)} characters"
    return Check("the released folder loads with transformers and writes", held, seen), text


def check_nothing_left(children: Children) -> Check:
    """After the end: no process of ours, and no socket or temporary file."""
    left = [*children.orphans(), *children.leftovers()]
    seen = ", ".join(left) or "nothing"
    return Check("no process, socket or temporary file is left", not left, seen)
