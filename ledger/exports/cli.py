"""``barnraise ledger certificate`` and ``dump``: what others take from the record, and keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from ledger.cli_shared import check_fingerprint
from ledger.credit import MICROCREDITS_PER_CREDIT
from ledger.exports.certificate import (
    MAX_CERTIFICATE_BYTES,
    TOTALS,
    Proven,
    check_certificate,
    totals_of,
)
from ledger.read_only import URL_HELP, open_session
from ledger.records import CreditLeaf
from ledger.tally import Status
from protocol.errors import UsageError


@click.group("certificate")
def certificate_group() -> None:
    """Certificates of what one person gave."""


@certificate_group.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--root", metavar="FINGERPRINT", required=True, help="Root key of the run, from the join link."
)
@click.option("--json", "as_json", is_flag=True, help="Print what is proven as JSON.")
def check_command(files: tuple[Path, ...], root: str, as_json: bool) -> None:
    """Check FILES, the parts of one certificate, offline.

    Recomputes every total from the leaves in the files, and says what that proves and what not.
    """
    check_fingerprint(root)
    proven = [check_certificate(_read(path), root) for path in files]
    report = _report(proven)
    click.echo(json.dumps(report, indent=2) if as_json else _describe(report))


@click.command("dump")
@click.option("--db", metavar="URL", help=URL_HELP)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Folder of a mirror.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where dumps are kept; the newest two stay.",
)
def dump_command(db: str | None, folder: Path | None, out: Path) -> None:
    """Write the record's numbers as tables, and BOINC's statistics; run it every night.

    The leaderboard shows the newest one: barnraise ledger serve --dumps OUT.
    """
    from ledger.exports.dumps import write_dump
    from ledger.exports.loading import from_database, from_folder

    if (db is None) == (folder is None):
        raise UsageError("give exactly one of --db and --dir")
    if db is not None:
        with open_session(db) as session:
            board, profiles, note = from_database(session)
    else:
        assert folder is not None
        board, profiles, note = from_folder(folder)
    written = write_dump(board, profiles, note, out)
    click.echo(f"{board.size} leaves are dumped in {written}")


def _report(proven: Sequence[Proven]) -> dict[str, object]:
    """What the parts prove together.

    Raises:
        UsageError: they are not parts of one certificate.
    """
    first = proven[0]
    if any((one.run_id, one.subject) != (first.run_id, first.subject) for one in proven):
        raise UsageError("these files are not parts of one certificate: check them one by one")
    newest = max(proven, key=lambda one: one.head.size)
    credits: dict[int, tuple[CreditLeaf, Status]] = {}
    for one in sorted(proven, key=lambda one: one.head.size):
        credits |= one.credits  # of a credit in two files, the newer head's word holds
    return {
        "subject": first.subject,
        "keys": sorted(frozenset().union(*(one.keys for one in proven))),
        "run": first.run.name,
        "run_id": first.run_id,
        "origin": first.head.origin,
        "size": newest.head.size,
        "newest_s": newest.newest_s,
        "parts": sorted({one.part for one in proven}),
        "parts_in_all": newest.parts,
        "credit_leaves": len(credits),
        "totals": totals_of(credits.values()),
        "not_proven": newest.claims,
    }


def _describe(report: dict[str, object]) -> str:
    totals, claims = report["totals"], report["not_proven"]
    assert isinstance(totals, dict)
    assert isinstance(claims, dict)
    assert isinstance(report["keys"], list)
    assert isinstance(report["parts"], list)
    missing = set(range(1, int(str(report["parts_in_all"])) + 1)) - set(report["parts"])
    lines = [
        f"genuine: {_leaves(report['credit_leaves'])} of {report['subject']}",
        f"  run           {report['run']} ({report['run_id']})",
        f"  log           {report['origin']}, signed head of {report['size']} leaves",
        f"  keys          {', '.join(report['keys'])}",
        *(
            f"  {name.removesuffix('_microcredits'):<13} {_shown(name, totals[name])}"
            for name in TOTALS
        ),
        "proven: each of these leaves is in the signed log, its amount is what the run's formula",
        "gives, and its status is what the newest leaf in the file about it says.",
        "not proven: that no leaf was left out, such as one that takes credit back later, or more",
        "credit; that audits judged rightly. The whole record shows it: barnraise ledger verify.",
    ]
    if missing:
        listed = ", ".join(str(part) for part in sorted(missing)[:10])
        lines.append(f"not here: parts {listed}{', ...' if len(missing) > 10 else ''}")
    lines += [f"only claimed: {name} {value}" for name, value in sorted(claims.items())]
    return "\n".join(lines)


def _leaves(count: object) -> str:
    return "1 credit leaf" if count == 1 else f"{count} credit leaves"


def _shown(name: str, amount: int) -> str:
    if not name.endswith("_microcredits"):
        return f"{amount}"
    return f"{amount // MICROCREDITS_PER_CREDIT}.{amount % MICROCREDITS_PER_CREDIT:06d} credits"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CERTIFICATE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise UsageError(f"{path} is over {MAX_CERTIFICATE_BYTES} bytes: not a certificate")
    return data
