"""Open Collective's exports: both styles of header, refunds, and everything that files get into."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from coordinator.crowd.cli_options import day
from coordinator.crowd.opencollective import (
    MAX_EXPORT_BYTES,
    Export,
    id_kinds,
    read_donors,
    read_export,
)
from ledger.money import format_amount, parse_amount
from protocol.errors import BadRecord, UsageError
from protocol.identity import Identity

FIELDS = [
    *("datetime", "shortId", "shortGroup", "description", "type", "kind", "isRefund", "isRefunded"),
    *("shortRefundId", "displayAmount", "amount", "paymentProcessorFee", "netAmount", "balance"),
    *("currency", "accountSlug", "accountName", "oppositeAccountSlug", "oppositeAccountName"),
    *("paymentMethodService", "paymentMethodType", "expenseType", "expenseTags", "orderMemo"),
]
"""The platform's default before 2024, from its REST address."""

LABELS = [
    *("Effective Date & Time", "Transaction ID", "Description", "Credit/Debit", "Kind"),
    *("Group ID", "Amount Single Column", "Currency", "Is Reverse", "Is Reversed"),
    *("Reverse Transaction ID", "Account Handle", "Account Name", "Opposite Account Handle"),
    *("Opposite Account Name", "Payment Processor", "Contribution Memo"),
]
"""The platform's default since, from its dashboard."""


def old_row(short_id: str, **cells: Any) -> dict[str, Any]:
    return {
        "datetime": "2023-06-06T05:47:17",
        "shortId": short_id,
        "description": "Contribution",
        "type": "CREDIT",
        "kind": "CONTRIBUTION",
        "displayAmount": "$50.00 USD",
        "amount": 50,
        "paymentProcessorFee": -2.5,
        "netAmount": 47.5,
        "balance": 3059.14,
        "currency": "USD",
        "accountSlug": "our-model",
        "accountName": "Our Model",
        "oppositeAccountSlug": "olli",
        "oppositeAccountName": "Olli",
        **cells,
    }


def new_row(number: int, **cells: Any) -> dict[str, Any]:
    return {
        "Effective Date & Time": "2025-03-04T10:00:00",
        "Transaction ID": number,
        "Credit/Debit": "CREDIT",
        "Kind": "CONTRIBUTION",
        "Amount Single Column": 12.34,
        "Currency": "EUR",
        "Account Handle": "our-model",
        "Opposite Account Handle": "olli",
        "Opposite Account Name": "Olli",
        **cells,
    }


def table(fields: list[str], *rows: dict[str, Any], **dialect: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields, quoting=csv.QUOTE_ALL, **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def old(*rows: dict[str, Any]) -> Export:
    return read_export(table(FIELDS, *rows), "short")


def new(*rows: dict[str, Any], **options: Any) -> Export:
    return read_export(table(LABELS, *rows), "legacy", **options)


def test_names_of_fields() -> None:
    data = table(FIELDS, old_row("d3f98b95"))
    assert id_kinds(data) == ["short"]
    (gift,) = read_export(data, "short").gifts
    assert gift.reference == "opencollective:short:d3f98b95"
    assert (gift.amount_minor, gift.currency) == (5000, "USD")  # what was given, fees included
    assert gift.received_s == 1_686_030_437
    assert (gift.giver, gift.name, gift.account) == ("olli", "Olli", "our-model")
    assert (gift.line, gift.private) == (2, False)


def test_labels() -> None:
    data = table(LABELS, new_row(1234567))
    assert id_kinds(data) == ["legacy"]
    (gift,) = read_export(data, "legacy").gifts
    assert gift.reference == "opencollective:1234567"
    assert (gift.amount_minor, gift.currency) == (1234, "EUR")


def test_only_gifts_count() -> None:
    export = old(
        old_row("00000001"),
        old_row("00000002", type="DEBIT", kind="HOST_FEE", amount=-5),
        old_row("00000003", type="DEBIT", kind="EXPENSE", amount=-30),
        old_row("00000004", kind="ADDED_FUNDS"),
        old_row("00000005", kind="PLATFORM_TIP"),
        old_row("00000006", kind="BALANCE_TRANSFER"),
    )
    assert [gift.reference[-8:] for gift in export.gifts] == ["00000001", "00000004"]
    assert export.ignored == 4


def test_what_was_given_back_is_no_gift() -> None:
    """The gift is marked, or a debit names it, or both; in either style."""
    export = old(
        old_row("00000001", isRefunded="REFUNDED"),
        old_row("00000002", type="DEBIT", amount=-50, isRefund="REFUND", shortRefundId="00000001"),
        old_row("00000003"),
        old_row("00000004", type="DEBIT", amount=-50, isRefund="REFUND", shortRefundId="00000003"),
        old_row("00000005"),
        old_row("00000006", kind="EXPENSE", isRefund="REFUND", shortRefundId="0000000a"),
    )
    assert [gift.reference[-8:] for gift in export.gifts] == ["00000005"]
    assert {reference[-8:] for reference in export.refunded} == {"00000001", "00000003"}
    export = new(
        new_row(1, **{"Is Reversed": "REVERSED"}),
        new_row(
            2,
            **{"Credit/Debit": "DEBIT", "Is Reverse": "REVERSE", "Reverse Transaction ID": 1},
        ),
        new_row(3, **{"Is Reverse": "false", "Is Reversed": "false"}),
    )
    assert [gift.reference for gift in export.gifts] == ["opencollective:3"]
    assert export.refunded == {"opencollective:1"}


@pytest.mark.parametrize(
    ("slug", "name"),
    [("incognito-1a2b", "Incognito"), ("guest-1a2b", "Incognito"), ("", ""), ("anonymous", "x")],
)
def test_who_hides_stays_hidden(slug: str, name: str) -> None:
    (gift,) = old(old_row("00000001", oppositeAccountSlug=slug, oppositeAccountName=name)).gifts
    assert gift.private


def test_files_as_programs_save_them() -> None:
    """A byte order mark, CRLF, quoted newlines, semicolons, other columns in another order."""
    rows = [
        old_row(
            "00000001", description='two\r\nlines, and a "quote"', orderMemo="=cmd|' /C calc'!A0"
        ),
        old_row("00000002", oppositeAccountName="\x1b[2J\u202eevil\nname"),
    ]
    expected = [("opencollective:short:00000001", 2), ("opencollective:short:00000002", 4)]
    fields = ["extra", *reversed(FIELDS)]
    for data in (
        table(FIELDS, *rows),
        b"\xef\xbb\xbf" + table(FIELDS, *rows),
        table(fields, *rows, lineterminator="\n"),
        table(FIELDS, *rows, delimiter=";"),
        table(FIELDS, *rows) + b"\r\n\r\n",
    ):
        export = read_export(data, "short")
        assert [(gift.reference, gift.line) for gift in export.gifts] == expected
        assert export.gifts[1].name == "[2J evil name"


def test_the_best_id_that_the_file_has() -> None:
    row = {**old_row("d3f98b95"), "id": "d3f98b95-1111-4222-8333-444455556666", "legacyId": 77}
    data = table([*FIELDS, "id", "legacyId"], row)
    assert id_kinds(data) == ["legacy", "id", "short"]
    references = [read_export(data, kind).gifts[0].reference for kind in id_kinds(data)]
    assert references == [
        "opencollective:77",
        "opencollective:id:d3f98b95-1111-4222-8333-444455556666",
        "opencollective:short:d3f98b95",
    ]
    del row["legacyId"]
    only = table([*FIELDS, "id"], {**row, "shortId": ""})
    assert read_export(only, "short").gifts[0].reference == "opencollective:short:d3f98b95"


def test_gifts_to_several_accounts_are_not_mixed() -> None:
    rows = [new_row(1), new_row(2, **{"Account Handle": "other-model"})]
    with pytest.raises(UsageError, match="other-model, our-model: say whose count with --account"):
        new(*rows)
    assert [gift.reference for gift in new(*rows, account="other-model").gifts] == [
        "opencollective:2"
    ]


def test_a_transaction_twice_in_a_file() -> None:
    assert len(new(new_row(1), new_row(1)).gifts) == 1
    with pytest.raises(UsageError, match="line 3: the transaction of line 2 again"):
        new(new_row(1), new_row(1, **{"Amount Single Column": 99}))


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ({"Amount Single Column": "12.345"}, "more than the 2 decimals of EUR"),
        ({"Amount Single Column": "=1+1"}, "'=1\\+1' is not an amount"),
        ({"Amount Single Column": "1,234.00"}, "is not an amount"),
        ({"Amount Single Column": "1e9"}, "is not an amount"),
        ({"Amount Single Column": "NaN"}, "is not an amount"),
        ({"Amount Single Column": ""}, "is not an amount"),
        ({"Amount Single Column": "-5"}, "more than nothing"),
        ({"Amount Single Column": "0"}, "more than nothing"),
        ({"Amount Single Column": "9" * 18}, "too large"),
        ({"Currency": "euro"}, "not a currency code"),
        ({"Currency": ""}, "not a currency code"),
        ({"Effective Date & Time": "04/03/2025"}, "is not a date"),
        ({"Effective Date & Time": "1961-01-01"}, "before 1970"),
        ({"Transaction ID": ""}, "no id of the transaction"),
        ({"Transaction ID": "../../x"}, "is not an id"),
        ({"Transaction ID": "d3f98b95"}, "is not an id"),
        ({"Credit/Debit": "credit"}, "neither CREDIT nor DEBIT"),
        ({"Opposite Account Handle": "=HYPERLINK(1)"}, "not the handle"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_imported(cells: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=f"nothing was imported:\n  line 3: .*{problem}"):
        new(new_row(1), new_row(2, **cells))


def test_many_bad_rows_are_not_all_printed() -> None:
    with pytest.raises(UsageError) as caught:
        new(*(new_row(n, Currency="?") for n in range(50)))
    assert len(str(caught.value).splitlines()) == 22
    assert "and 30 more" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no ids of transactions"),
        (b"a,b\n1,2\n", "no ids of transactions"),
        (b"Transaction ID,x\n1,2\n", "not Open Collective's export"),
        ("Transaction ID\u00e4".encode("latin-1"), "not UTF-8"),
        ("Transaction ID".encode("utf-16"), "not UTF-8"),
        (b"Transaction ID\n\0\n", "null characters"),
        (table(LABELS, new_row(1)) + b"1,2,3\n", "line 3 has 3 columns, the header 17"),
        (table(LABELS, new_row(1)) + b'"open', "line 3 is not CSV"),
        (
            table(LABELS, new_row(1)) + b"Warning: totalCount is 2000 and limit was 1000",
            "not whole",
        ),
        (table([*LABELS, "Currency"], new_row(1)), "a column twice"),
        (bytes(MAX_EXPORT_BYTES + 1), "over 64 MiB"),
    ],
)
def test_what_is_no_export(data: bytes, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        for kind in id_kinds(data):
            read_export(data, kind)


def test_donors_by_handle() -> None:
    ada, bob = (Identity.from_seed(bytes([n]) * 32).peer_id for n in (1, 2))
    assert read_donors(f"\ufeffslug,donor\r\nolli,{ada}\r\n\r\neve,{bob}".encode()) == {
        "olli": ada,
        "eve": bob,
    }
    for text, problem in (
        (f"olli,{ada}\nolli,{bob}", "line 2: olli has two donor keys"),
        (f"olli,{ada[:-1]}", "line 1: not"),
        ("olli", "line 1: a handle and a donor key"),
        ('olli,"', "line 1 is not CSV"),
    ):
        with pytest.raises(UsageError, match=problem):
            read_donors(text.encode())


@pytest.mark.parametrize(
    ("text", "currency", "minor", "shown"),
    [
        ("50", "EUR", 5000, "50.00 EUR"),
        ("19.99", "USD", 1999, "19.99 USD"),
        ("500", "JPY", 500, "500 JPY"),
        ("500.0", "JPY", 500, "500 JPY"),
        ("1.234", "KWD", 1234, "1.234 KWD"),
        ("1234567.5", "EUR", 123_456_750, "1,234,567.50 EUR"),
        ("0.1", "CLF", 1000, "0.1000 CLF"),
    ],
)
def test_decimals_are_those_of_the_currency(
    text: str, currency: str, minor: int, shown: str
) -> None:
    assert parse_amount(text, currency) == minor
    assert format_amount(minor, currency) == shown


@pytest.mark.parametrize(
    ("text", "currency"),
    [
        ("0.5", "JPY"),
        ("1.2345", "KWD"),
        ("1 0", "EUR"),
        ("1234567890123.000000000000000001", "EUR"),  # over 28 digits, which Decimal rounds to
    ],
)
def test_amounts_are_exact_or_refused(text: str, currency: str) -> None:
    with pytest.raises(BadRecord):
        parse_amount(text, currency)


def test_dates_of_acts_may_lie_after_the_last_one() -> None:
    assert (day(1_686_030_437), day(2**53 - 1), day(None)) == ("2023-06-06", "9999-12-31", "")
