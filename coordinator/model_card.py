"""The README.md of a released model. A pure function; every foreign text is escaped.

Donors appear by the name that they chose, or by the end of their key.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ledger.credit import MICROCREDITS_PER_CREDIT
from ledger.donors import short_key
from ledger.fold import Board
from protocol.dataset import DatasetManifest
from protocol.identity import PeerId
from protocol.manifest import RunManifest

MOST_DONORS_LISTED = 1000
"""A card is for reading; the public record names all."""


@dataclass(frozen=True)
class CardFacts:
    """What the card tells."""

    manifest: RunManifest
    dataset: DatasetManifest
    board: Board
    names: Mapping[PeerId, str]
    ledger_head: str
    join_link: str
    settled_rounds: int
    merged_tokens: int
    validation_loss: float | None  # nats per predicted token
    parameters: int


def model_card(facts: CardFacts) -> str:
    """Markdown with the front matter that model hubs read."""
    manifest, board = facts.manifest, facts.board
    loss = "not measured"
    if facts.validation_loss is not None:
        loss = f"{facts.validation_loss:.4f} nats per predicted token"
    sections = [
        _front_matter(manifest),
        f"# {manifest.name}",
        plain(manifest.description) or f"A {manifest.model_config_json['model_type']} model.",
        "Strangers trained this model together with Barnraise. Who gave what is in the run's "
        "public record, signed and verifiable.",
        _table(
            ("", ""),
            [
                ("parameters", f"{facts.parameters:,}"),
                ("validation loss", loss),
                ("settled rounds", f"{facts.settled_rounds:,}"),
                ("tokens merged", f"{facts.merged_tokens:,}"),
                ("donors", f"{len(_ranked(board)):,}"),
                ("context length", f"{manifest.sequence_length:,} tokens"),
                ("licence of the weights", plain(manifest.licence)),
            ],
        ),
        "## Use it",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained(".")\n'
        'model = AutoModelForCausalLM.from_pretrained(".")\n```',
        "## Data",
        _table(
            ("source", "licence", "documents", "bytes"),
            [
                (plain(s.name), plain(s.licence), f"{s.documents:,}", f"{s.bytes:,}")
                for s in facts.dataset.sources
            ],
        ),
        f"Dataset `{manifest.dataset_sha256}`, licence: {plain(facts.dataset.licence)}.",
        "## Donors",
        _donors(facts),
        "## Provenance",
        f"Run `{manifest.run_id.hex()}`, root key `{manifest.root}`. "
        "`provenance.intoto.json` is a signed in-toto statement (SLSA provenance v1) that names "
        "the run, its data and the files here. Head of the public record at the release:",
        f"```\n{facts.ledger_head.strip()}\n```",
        f"Join link: `{plain(facts.join_link)}`",
    ]
    return "\n\n".join(sections) + "\n"


def licence_note(manifest: RunManifest, dataset: DatasetManifest) -> str:
    """The LICENSE file: which licence holds for what."""
    sources = "\n".join(f"  {source.name}: {source.licence}" for source in dataset.sources)
    return (
        f"The weights of {manifest.name} are released under: {manifest.licence}\n"
        "(an SPDX identifier where one exists; see https://spdx.org/licenses/)\n\n"
        f"They were trained on data under: {dataset.licence}\n{sources}\n"
    )


def plain(text: str) -> str:
    """Foreign text on one line, with nothing left that Markdown or HTML would act upon."""
    flat = html.escape(" ".join(text.split()))
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", flat)


def _front_matter(manifest: RunManifest) -> str:
    spdx = re.sub(r"[^a-z0-9.+-]", "-", manifest.licence.lower())
    return (
        f"---\nlicense: {spdx}\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        "tags:\n- barnraise\n- volunteer-computing\n---"
    )


def _donors(facts: CardFacts) -> str:
    ranked = _ranked(facts.board)
    rows = [
        (
            plain(facts.names.get(donor, "")) or short_key(donor),
            f"{microcredits / MICROCREDITS_PER_CREDIT:.6f}",
            f"`{donor}`",
        )
        for donor, microcredits in ranked[:MOST_DONORS_LISTED]
    ]
    if not rows:
        return "Nobody has been credited yet."
    table = _table(("donor", "credit (petaFLOP)", "key"), rows)
    rest = len(ranked) - len(rows)
    return table + (f"\n\nand {rest:,} more: see the public record" if rest else "")


def _ranked(board: Board) -> list[tuple[PeerId, int]]:
    credited = [(d.donor, d.tally.pending_microcredits) for d in board.donors.values()]
    return sorted((pair for pair in credited if pair[1]), key=lambda pair: (-pair[1], pair[0]))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
