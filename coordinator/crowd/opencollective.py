"""Reads Open Collective's export of transactions.

Two styles of header are in use: names of fields (``legacyId``, ``netAmount``: from its REST address
and from exports before 2024) and labels (``Transaction ID``, ``Amount Single Column``: from its
dashboard). Both are understood, in any order and with any further columns.

Invariants:

* Only contributions and added funds that were credited count; fees, expenses and transfers do not.
* Nothing is guessed: a row that cannot be read exactly is named by its line, and then there is no
  export at all.
* Texts of strangers (descriptions, memos) are not read.

A gift's reference is the platform's own id of the transaction, of which an export may have up to
three kinds (:data:`ID_KINDS`); whoever imports again must stay with one of them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from ledger.donors import clean_name
from ledger.money import parse_amount
from protocol.errors import BadRecord, UsageError

MAX_EXPORT_BYTES = 64 << 20
MAX_EXPORT_ROWS = 200_000
_MAX_PROBLEMS = 20

IdKind = Literal["legacy", "id", "short"]
ID_KINDS: dict[IdKind, tuple[str, tuple[str, ...], str]] = {
    "legacy": ("legacyId", ("refundLegacyId", "reverseLegacyId"), "opencollective:"),
    "id": ("id", ("refundId", "reverseId"), "opencollective:id:"),
    "short": ("shortId", ("shortRefundId",), "opencollective:short:"),
}
"""By kind, best first: column, columns of the transaction that it undoes, prefix of references."""

_LABELS = {
    "Date & Time": "datetime",
    "Date": "date",
    "Effective Date & Time": "effectiveDate",
    "Effective Date": "effectiveDate",
    "Transaction ID": "legacyId",
    "Legacy Transaction ID": "legacyId",
    "Short Transaction ID": "shortId",
    "Credit/Debit": "type",
    "Type": "type",
    "Kind": "kind",
    "Amount Single Column": "netAmount",
    "Net Amount": "netAmount",
    "Amount": "amount",
    "Currency": "currency",
    "Is Reverse": "isReverse",
    "Is Reversed": "isReversed",
    "Reverse Transaction ID": "reverseLegacyId",
    "Is Refund": "isRefund",
    "Is Refunded": "isRefunded",
    "Refund ID": "refundId",
    "Short Refund ID": "shortRefundId",
    "Refund Transaction ID": "refundLegacyId",
    "Account Handle": "accountSlug",
    "Opposite Account Handle": "oppositeAccountSlug",
    "Opposite Account Name": "oppositeAccountName",
}
_AMOUNTS = ("amount", "creditAmount", "netAmount")
"""What was given comes first; where fees are rows of their own, the net amount is that, too."""

_DATES = ("effectiveDate", "datetime", "date")
_KINDS = ("CONTRIBUTION", "ADDED_FUNDS")
_NO = ("", "false", "no", "0")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SLUG = re.compile(r"[a-z0-9][a-z0-9_.-]{0,254}", re.IGNORECASE)
_UNNAMED = re.compile(r"(incognito|anonymous)([-_].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Gift:
    """Money that somebody gave and that was not given back, as far as the export knows."""

    line: int
    reference: str
    account: str  # that received it
    giver: str  # slug of who gave it
    name: str  # as shown there; cleaned, never trusted
    private: bool  # whoever gave it does not want to be named
    amount_minor: int
    currency: str
    received_s: int


@dataclass(frozen=True)
class Export:
    """What an export says."""

    gifts: tuple[Gift, ...]
    refunded: frozenset[str]  # references of what was given back
    ignored: int  # rows that are no gifts

    @property
    def accounts(self) -> list[str]:
        """Who received the gifts."""
        return sorted({gift.account for gift in self.gifts})


class _Table:
    """Rows by our names of the columns."""

    def __init__(self, data: bytes) -> None:
        text = _text(data)
        first_line = text.split("\n", 1)[0]
        delimiter = ";" if ";" in first_line and "," not in first_line else ","
        self._rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = next(self._read(), (0, []))[1]
        names = [_LABELS.get(cell.strip(), cell.strip()) for cell in header]
        twice = {name for name in names if name and names.count(name) > 1}
        if twice & {*_AMOUNTS, *_DATES, "type", "kind", "currency", "legacyId", "id", "shortId"}:
            raise UsageError(f"the export has a column twice: {', '.join(sorted(twice))}")
        self.names = names

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Line and cells of each row.

        Raises:
            UsageError: the file is cut off, or not CSV.
        """
        for count, (line, cells) in enumerate(self._read()):
            if count >= MAX_EXPORT_ROWS:
                raise UsageError(f"the export has more than {MAX_EXPORT_ROWS} rows: split it")
            if not any(cells):
                continue
            if cells[0].startswith("Warning: totalCount"):
                raise UsageError(
                    f"line {line}: the export says that it is not whole ({cells[0][:100]}): "
                    "export again, by months or with fetchAll=1"
                )
            if len(cells) != len(self.names):
                raise UsageError(
                    f"line {line} has {len(cells)} columns, the header {len(self.names)}: the file "
                    "is damaged, or was edited"
                )
            yield line, dict(zip(self.names, (cell.strip() for cell in cells), strict=True))

    def _read(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            line = self._rows.line_num + 1
            try:
                cells = next(self._rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise UsageError(f"line {line} is not CSV: {error}") from error
            yield line, cells


def _text(data: bytes) -> str:
    if len(data) > MAX_EXPORT_BYTES:
        raise UsageError(f"the export is over {MAX_EXPORT_BYTES >> 20} MiB: split it by months")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the export is not UTF-8 text ({error.reason} at byte {error.start}): import the file "
            "as it was downloaded, not as a spreadsheet program saved it"
        ) from error
    if "\0" in text:
        raise UsageError("the export holds null characters: it is damaged, or no CSV at all")
    return text


def id_kinds(data: bytes) -> list[IdKind]:
    """Kinds of id that an export has, the best first.

    Raises:
        UsageError: none, or the file cannot be read.
    """
    names = _Table(data).names
    kinds = [kind for kind, (column, _, _) in ID_KINDS.items() if column in names]
    if "id" in names and "shortId" not in names:
        kinds.append("short")  # its first eight characters
    if not kinds:
        raise UsageError(
            "no ids of transactions in this file: export with the column 'Transaction ID', without "
            "which nothing can be imported once only"
        )
    return kinds


def read_export(data: bytes, kind: IdKind, *, account: str | None = None) -> Export:
    """Read an export.

    Args:
        data: the file, untrusted.
        kind: of the ids that name the gifts.
        account: slug of the account whose gifts count; None: there must be but one.

    Raises:
        UsageError: a column is missing, or naming each line that cannot be read.
    """
    table = _Table(data)
    _require_columns(table.names)
    gifts: dict[str, Gift] = {}
    refunded: set[str] = set()
    ignored, problems = 0, list[str]()
    for line, row in table.rows():
        try:
            gift, undone = _read_row(line, row, kind, account)
        except BadRecord as error:
            problems.append(f"line {line}: {error}")
            continue
        refunded |= undone
        if gift is None:
            ignored += not undone
        elif gift.reference in gifts and _differs(gift, gifts[gift.reference]):
            problems.append(
                f"line {line}: the transaction of line {gifts[gift.reference].line} again, but "
                "with another content"
            )
        else:
            gifts.setdefault(gift.reference, gift)
    if problems:
        raise _refusal(problems)
    kept = tuple(gift for gift in gifts.values() if gift.reference not in refunded)
    export = Export(kept, frozenset(refunded), ignored)
    if account is None and len(export.accounts) > 1:
        raise UsageError(
            f"the export has gifts to {', '.join(export.accounts)}: say whose count with --account"
        )
    return export


def _refusal(problems: list[str]) -> UsageError:
    more = len(problems) - _MAX_PROBLEMS
    shown = problems[:_MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
    return UsageError("nothing was imported:\n  " + "\n  ".join(shown))


def _require_columns(names: list[str]) -> None:
    lacking = [name for name in ("type", "kind", "currency") if name not in names]
    for options in (_AMOUNTS, _DATES):
        if not any(name in names for name in options):
            lacking.append(" or ".join(options))
    if "oppositeAccountSlug" not in names:
        lacking.append("oppositeAccountSlug (label 'Opposite Account Handle')")
    if lacking:
        raise UsageError(
            f"this is not Open Collective's export of transactions: it has no column "
            f"{'; no '.join(lacking)}"
        )


def _read_row(
    line: int, row: dict[str, str], kind: IdKind, account: str | None
) -> tuple[Gift | None, set[str]]:
    """The gift of a row, if it is one; references of what it says was given back."""
    if row["type"] not in ("CREDIT", "DEBIT"):
        raise BadRecord(f"{row['type'][:40]!r} is neither CREDIT nor DEBIT")
    receiver = row.get("accountSlug", "")
    if row["kind"] not in _KINDS or (account is not None and receiver != account):
        return None, set()
    undoes = any(row.get(name, "").lower() not in _NO for name in ("isRefund", "isReverse"))
    if undoes:
        # A gift given back is a debit; a credit undoes a refund, and then the gift was not one.
        named = _named(row, ID_KINDS[kind][1], kind)
        return None, {named} if named and row["type"] == "DEBIT" else set()
    if row["type"] == "DEBIT":
        return None, set()
    reference = _named(row, (ID_KINDS[kind][0],), kind)
    if reference is None:
        raise BadRecord("no id of the transaction")
    if any(row.get(name, "").lower() not in _NO for name in ("isRefunded", "isReversed")):
        return None, {reference}
    return _gift(line, row, reference, receiver), set()


def _named(row: dict[str, str], columns: tuple[str, ...], kind: IdKind) -> str | None:
    """The reference in the first of these columns that has one."""
    if kind == "short":  # whole ids begin with it
        columns = (*columns, *(("id",) if columns == ("shortId",) else ("refundId", "reverseId")))
    value = next((row[name] for name in columns if row.get(name)), None)
    if value is None:
        return None
    if not _ID.fullmatch(value) or (kind == "legacy" and not value.isdecimal()):
        raise BadRecord(f"{value[:40]!r} is not an id of a transaction")
    return ID_KINDS[kind][2] + (value[:8] if kind == "short" else value)


def _gift(line: int, row: dict[str, str], reference: str, receiver: str) -> Gift:
    giver = row["oppositeAccountSlug"]
    if giver and not _SLUG.fullmatch(giver):
        raise BadRecord(f"{giver[:40]!r} is not the handle of an account")
    text = next((row[name] for name in _AMOUNTS if row.get(name)), "")
    amount = parse_amount(text, row["currency"])
    if amount <= 0:
        raise BadRecord(f"a gift of {text[:40]}: a credit is more than nothing")
    name = clean_name(row.get("oppositeAccountName", ""))
    unnamed = not giver or _UNNAMED.fullmatch(giver) is not None
    return Gift(
        line=line,
        reference=reference,
        account=receiver,
        giver=giver,
        name=name,
        private=unnamed or _UNNAMED.fullmatch(name) is not None,
        amount_minor=amount,
        currency=row["currency"],
        received_s=_seconds(row),
    )


def _seconds(row: dict[str, str]) -> int:
    """UTC, as the platform writes it."""
    text = next((row[name] for name in _DATES if row.get(name)), "")
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRecord(f"{text[:40]!r} is not a date, such as 2024-05-20T14:37:51") from error
    at_s = parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp()
    if at_s < 0:
        raise BadRecord(f"{text[:40]} is before 1970")
    return int(at_s)


def _differs(one: Gift, other: Gift) -> bool:
    def content(gift: Gift) -> tuple[object, ...]:
        return gift.amount_minor, gift.currency, gift.account, gift.giver, gift.received_s

    return content(one) != content(other)


def read_donors(data: bytes) -> dict[str, str]:
    """Donor keys by handle, from a file of lines ``handle,key``; a header is welcome.

    Raises:
        UsageError: naming the line that cannot be read.
    """
    from protocol.identity import PublicKey

    donors: dict[str, str] = {}
    rows = csv.reader(io.StringIO(_text(data), newline=""), strict=True)
    try:
        for cells in rows:
            if not any(cells) or (rows.line_num == 1 and cells[0].strip() in ("slug", "handle")):
                continue
            if len(cells) != 2:
                raise UsageError(f"line {rows.line_num}: a handle and a donor key, with a comma")
            handle, donor = cells[0].strip(), cells[1].strip()
            if donors.setdefault(handle, donor) != donor:
                raise UsageError(f"line {rows.line_num}: {handle[:64]} has two donor keys")
            PublicKey.from_peer_id(donor)
    except csv.Error as error:
        raise UsageError(f"line {rows.line_num} is not CSV: {error}") from error
    except BadRecord as error:
        raise UsageError(f"line {rows.line_num}: {error}") from error
    return donors
