"""``barnraise ledger``: read, verify and mirror the public record; serve the leaderboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from ledger.cli_mirror import mirror_command
from ledger.cli_shared import check_fingerprint, progress_bar
from ledger.credit import MICROCREDITS_PER_CREDIT
from ledger.export import export_tiles
from ledger.exports.cli import certificate_group, dump_command
from ledger.log import latest_head
from ledger.read_only import URL_HELP, open_session
from ledger.receipts import verify_receipt
from ledger.sources import DatabaseSource, HttpSource, Source, directory_source
from ledger.verify import Report, verify
from protocol.errors import UsageError
from protocol.tlog import MAX_PROOF_BYTES


@click.group()
def cli() -> None:
    """Read and verify the public record; serve the leaderboard."""


cli.add_command(certificate_group)
cli.add_command(dump_command)
cli.add_command(mirror_command)


@cli.command("verify")
@click.option("--db", metavar="URL", help=URL_HELP)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Folder of tiles.")
@click.option("--url", help="Leaderboard, or any web host with the tiles.")
@click.option("--root", metavar="FINGERPRINT", help="Root key of the run, from the join link.")
@click.option("--vkey", help="The log's verifier key, instead of --root.")
@click.option(
    "--old-checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A head saved earlier: is it still a prefix?",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify_command(
    db: str | None,
    folder: Path | None,
    url: str | None,
    root: str | None,
    vkey: str | None,
    old_checkpoint: Path | None,
    as_json: bool,
) -> None:
    """Replay the whole record with no trust in who serves it.

    Checks signatures, hashes, consistency with an earlier head, every leaf and its credit, and that
    the leaderboard's totals equal the record, to the unit.
    """
    if sum(option is not None for option in (db, folder, url)) != 1:
        raise UsageError("give exactly one of --db, --dir and --url")
    if root is not None and vkey is not None:
        raise UsageError("give --root or --vkey, not both")
    if root is not None:
        check_fingerprint(root)
    old = _read_text(old_checkpoint) if old_checkpoint is not None else None
    with _open_source(db, folder, url) as source, progress_bar("verifying") as show:
        report = verify(source, root=root, vkey=vkey, old_checkpoint=old, progress=show)
    click.echo(json.dumps(asdict(report), indent=2) if as_json else _describe(report))


@cli.command("head")
@click.option("--db", metavar="URL", required=True, help=URL_HELP)
def head_command(db: str) -> None:
    """Print the newest signed head."""
    with open_session(db) as session:
        head = latest_head(session)
    if head is None:
        raise UsageError("no head of this log was signed yet")
    click.echo(head.checkpoint, nl=False)


@cli.command("export-tiles")
@click.option("--db", metavar="URL", required=True, help=URL_HELP)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
def export_command(db: str, out: Path) -> None:
    """Write the record as static files (C2SP tlog-tiles) that any web host can mirror."""
    with open_session(db) as session, progress_bar("exporting") as show:
        head = latest_head(session)
        total = head.tree_size if head else 0
        size = export_tiles(session, out, lambda done: show(done, total))
    click.echo(f"{size} leaves are in {out}; check them with: barnraise ledger verify --dir {out}")


@cli.group("receipt")
def receipt_group() -> None:
    """Receipts of credit."""


@receipt_group.command("check")
@click.argument("proof", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--leaf",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The leaf that came with the receipt.",
)
@click.option("--root", metavar="FINGERPRINT", help="Root key of the run, from the join link.")
@click.option("--vkey", help="The log's verifier key, instead of --root.")
def check_command(proof: Path, leaf: Path, root: str | None, vkey: str | None) -> None:
    """Check PROOF (a .tlog-proof file) offline."""
    if (root is None) == (vkey is None):
        raise UsageError("give the run's --root fingerprint (from the join link) or its --vkey")
    if root is not None:
        check_fingerprint(root)
    verified = verify_receipt(_read_file(leaf), _read_text(proof), root=root, vkey=vkey)
    click.echo(
        f"genuine: leaf {verified.index} of {verified.checkpoint.size} "
        f"in the log {verified.checkpoint.origin}"
    )
    click.echo(json.dumps(verified.leaf.model_dump(mode="json"), indent=2))


@cli.command("serve")
@click.option("--db", metavar="URL", help=URL_HELP)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of tiles, for example a mirror; no database is needed.",
)
@click.option("--root", metavar="FINGERPRINT", help="With --dir: root key of the run.")
@click.option(
    "--index",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --dir: file that pages are looked up in; by default in the user's cache folder.",
)
@click.option("--listen", default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT")
@click.option(
    "--dumps",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that `ledger dump` writes to; the newest dump in it is offered.",
)
def serve_command(
    db: str | None,
    folder: Path | None,
    root: str | None,
    index: Path | None,
    listen: str,
    dumps: Path | None,
) -> None:
    """Serve the leaderboard; reads only."""
    from ledger.leaderboard.server import serve, serve_folder

    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--listen is HOST:PORT, not {listen!r}")
    if (db is None) == (folder is None):
        raise UsageError("give exactly one of --db and --dir")
    if folder is not None:
        if root is not None:
            check_fingerprint(root)
        serve_folder(folder, index, root, host.strip("[]"), int(port), dumps=dumps)
        return
    assert db is not None
    with open_session(db):
        pass  # a wrong URL should fail here, in a sentence
    serve(db, host.strip("[]"), int(port), dumps=dumps)


@contextmanager
def _open_source(db: str | None, folder: Path | None, url: str | None) -> Iterator[Source]:
    if db is not None:
        with open_session(db) as session:
            yield DatabaseSource(session)
    elif folder is not None:
        yield directory_source(folder)
    else:
        assert url is not None
        yield HttpSource(url)


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROOF_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_PROOF_BYTES:
        raise UsageError(f"{path} is over {MAX_PROOF_BYTES} bytes: not a receipt")
    return data


def _read_text(path: Path) -> str:
    try:
        return _read_file(path).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file") from error


def _describe(report: Report) -> str:
    audits, crowd = report.audits, report.crowd
    lines = [
        f"verified: {report.size} leaves of {report.origin}",
        f"  run              {report.run_id}",
        f"  root key         {report.root_fingerprint} ({report.trust})",
        f"  tree root        {report.root}",
        f"  donors, devices  {report.donors}, {report.devices}",
        f"  rounds, tokens   {report.rounds}, {report.merged_tokens}",
        f"  pending credit   {_credits(report.pending_microcredits)}",
        f"  final credit     {_credits(report.final_microcredits)}",
        f"  taken back       {_credits(report.forfeited_microcredits)} forfeited, "
        f"{_credits(report.unpaid_microcredits)} unpaid",
        f"  draws            {audits.draws} checked, {audits.awaited} not published yet",
        f"  audits           {audits.selected} contributions selected by them, {audits.open} open",
        f"  verdicts         {audits.passed} passed, {audits.failed} failed, "
        f"{audits.inconclusive} inconclusive, {audits.unavailable} unavailable, "
        f"{audits.other} other",
        f"  campaigns        {crowd.campaigns}, with {crowd.pledges} pledges, {crowd.donations} "
        f"gifts, {crowd.pools} pools; {crowd.teams} teams",
        f"  signed acts      {crowd.acts} checked; {crowd.unnamed} more are for nobody to see",
    ]
    if report.old_size is not None:
        lines.append(f"  extends          the earlier head of {report.old_size} leaves")
    lines.append(
        "  leaderboard      equal to the record, to the unit"
        if report.board_compared
        else "  leaderboard      not served here: totals above are computed from the leaves"
    )
    if report.trust == "root named by the record":
        lines.append("compare the root key with your join link, or give it as --root")
    return "\n".join(lines)


def _credits(microcredits: int) -> str:
    """In credits, to the unit."""
    return f"{microcredits // MICROCREDITS_PER_CREDIT}.{microcredits % MICROCREDITS_PER_CREDIT:06d}"
