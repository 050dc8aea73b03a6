"""``barnraise data``: build and inspect datasets. Heavy modules load when a command runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from protocol.errors import UsageError

if TYPE_CHECKING:
    from coordinator.data.options import BuildOptions, Input
    from protocol.dataset import DatasetManifest


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Turn text into a dataset for a run, and check datasets.

    \b
    Examples:
      barnraise data build --out data/
      barnraise data build --text 'corpus/*.txt' --tokenizer train:8192 --out data/
      barnraise data inspect data/ --verify
    """


@cli.command()
@click.option("--text", multiple=True, metavar="GLOB", help="Text files, one document each.")
@click.option("--jsonl", multiple=True, metavar="GLOB", help="JSON Lines files.")
@click.option("--parquet", multiple=True, metavar="GLOB", help="Parquet files.")
@click.option(
    "--embedded",
    type=click.Choice(["shakespeare"]),
    help="A corpus that comes with barnraise; the default when no input is given.",
)
@click.option("--field", default="text", show_default=True, help="Field or column of the text.")
@click.option("--separator", help=r"Between documents within a text file, such as '\n\n\n'.")
@click.option("--encoding", default="utf-8", show_default=True, help="Of text and JSONL files.")
@click.option(
    "--tokenizer",
    default="train:8192",
    show_default=True,
    metavar="train:N|FILE",
    help="Train a byte-level BPE of N tokens, or use a tokenizer.json.",
)
@click.option("--eos", metavar="TOKEN", help="End-of-document token, if not one of the usual.")
@click.option(
    "--tokenizer-sample-mb",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Text that the tokenizer is trained on, spread over the corpus.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the dataset."
)
@click.option("--sequence-length", type=int, default=256, show_default=True, metavar="TOKENS")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the shuffle.")
@click.option("--shard-bytes", type=int, default=16 << 20, show_default=True)
@click.option("--validation-fraction", type=float, default=0.01, show_default=True)
@click.option(
    "--buffer-mb",
    type=int,
    default=256,
    show_default=True,
    help="Memory for the shuffle; the rest goes through the disk.",
)
@click.option(
    "--workers",
    type=int,
    default=0,
    help="Tokenising processes; default: one per core, fewer for little text.",
)
@click.option(
    "--licence", multiple=True, metavar="TEXT", help="Of the inputs: one for all, or one each."
)
@click.option(
    "--source-name", multiple=True, metavar="TEXT", help="Of the inputs: one for all, or one each."
)
@click.option("--force", is_flag=True, help="Replace a finished dataset in the folder.")
@click.option("--restart", is_flag=True, help="Discard an interrupted build in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def build(**given: Any) -> None:
    r"""Turn text into a dataset: tokenise, pack, shuffle, shard.

    Memory stays within bounds whatever the size of the corpus. A build that was interrupted, even
    by kill -9 or a full disk, continues when the same command is given again.

    \b
    Examples:
      barnraise data build --out data/                       Shakespeare's plays
      barnraise data build --text 'corpus/**/*.txt' --licence CC0-1.0 --out data/
      barnraise data build --text books.txt --separator '\n\n\n' --out data/
      barnraise data build --jsonl 'dump/*.jsonl' --field body --out data/
      barnraise data build --parquet 'web/*.parquet' --tokenizer tokenizer.json --out data/

    Inputs are mixed by the shuffle. With several of them, --licence and --source-name are given
    once for all, or once for each: text first, then JSONL, parquet, embedded.
    """
    _log_to_stderr()
    from coordinator.data.build import build_dataset
    from coordinator.data.inputs import UNSTATED_LICENCE
    from coordinator.data.progress import shown

    options = _options(given)
    try:
        with shown(given["quiet"]) as on_progress:
            manifest = build_dataset(options, on_progress)
    except KeyboardInterrupt:
        click.echo("Interrupted: give the same command again to continue.", err=True)
        sys.exit(130)
    if any(source.licence == UNSTATED_LICENCE for source in manifest.sources):
        click.echo("note: no --licence was given; the manifest says so.", err=True)
    _print_manifest(options.out, manifest, given["as_json"])


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every file and check its digest.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def inspect(folder: Path, verify: bool, as_json: bool) -> None:
    """Show what a dataset holds, and check it.

    \b
    Examples:
      barnraise data inspect data/
      barnraise data inspect data/ --verify --json
    """
    from protocol.dataset import read_manifest, verify_folder

    manifest = read_manifest(folder)
    if verify:
        verify_folder(folder, manifest)
    _print_manifest(folder, manifest, as_json, verified=verify)


def _options(given: dict[str, Any]) -> BuildOptions:
    from coordinator.data.options import BuildOptions

    separator = given["separator"]
    return BuildOptions(
        out=given["out"],
        inputs=tuple(_inputs(given)),
        tokenizer=given["tokenizer"],
        eos=given["eos"],
        tokenizer_sample_bytes=given["tokenizer_sample_mb"] << 20,
        sequence_length=given["sequence_length"],
        seed=given["seed"],
        shard_bytes=given["shard_bytes"],
        validation_fraction=given["validation_fraction"],
        separator=None if separator is None else _unescaped(separator),
        encoding=given["encoding"],
        buffer_bytes=given["buffer_mb"] << 20,
        workers=given["workers"],
        force=given["force"],
        restart=given["restart"],
    )


def _inputs(given: dict[str, Any]) -> Iterator[Input]:
    from coordinator.data.options import Input, InputKind

    patterns: list[tuple[InputKind, str]] = []
    patterns += [("text", pattern) for pattern in given["text"]]
    patterns += [("jsonl", pattern) for pattern in given["jsonl"]]
    patterns += [("parquet", pattern) for pattern in given["parquet"]]
    if given["embedded"] or not patterns:
        patterns.append(("shakespeare", ""))
    names = _for_each("--source-name", given["source_name"], len(patterns))
    licences = _for_each("--licence", given["licence"], len(patterns))
    for (kind, pattern), name, licence in zip(patterns, names, licences, strict=True):
        yield Input(kind, pattern, given["field"], name, licence)


def _for_each(option: str, values: tuple[str, ...], count: int) -> tuple[str, ...]:
    """One value for every input: as given, or one for all, or none."""
    if len(values) == count:
        return values
    if len(values) > 1:
        raise UsageError(f"{option} is given {len(values)} times for {count} inputs: once, or each")
    return (values[0] if values else "",) * count


def _unescaped(separator: str) -> str:
    return separator.replace("\\n", "\n").replace("\\t", "\t").replace("\\f", "\f")


def _log_to_stderr() -> None:
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.stderr))


def _print_manifest(
    folder: Path, manifest: DatasetManifest, as_json: bool, verified: bool = False
) -> None:
    facts = {
        "folder": str(folder),
        "digest": manifest.digest.hex(),
        "train_sequences": manifest.train_sequences,
        "train_tokens": manifest.tokens,
        "validation_sequences": manifest.validation.sequences,
        "sequence_length": manifest.sequence_length,
        "vocab_size": manifest.vocab_size,
        "dtype": manifest.dtype,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in (*manifest.shards, manifest.validation)),
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "shuffle_seed": manifest.shuffle_seed,
        "licence": manifest.licence,
        "sources": [source.model_dump() for source in manifest.sources],
        "verified": verified,
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        if name not in ("sources", "verified"):
            click.echo(f"{name.replace('_', ' '):<22}{value}")
    for source in manifest.sources:
        click.echo(
            f"{'source':<22}{source.name}: {source.files} files, {source.documents} documents, "
            f"{source.bytes} bytes, {source.licence}"
        )
    if verified:
        click.echo("every digest is right")
