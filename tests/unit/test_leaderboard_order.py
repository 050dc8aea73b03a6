"""Orders that change little by little, and what was credited lately."""

from __future__ import annotations

import random

import pytest

from ledger.leaderboard import names
from ledger.leaderboard.names import Index, web_link
from ledger.leaderboard.order import Entry, Ranking
from ledger.leaderboard.recent import Recent

HOUR = 3600
DAY = 24 * HOUR


def test_an_order_is_sorted_after_every_change_and_a_frozen_one_never_changes() -> None:
    rng = random.Random(1)
    held: dict[str, Entry] = {}
    ranking = Ranking()
    frozen = []
    for step in range(6000):
        key = f"k{rng.randrange(3000)}"
        new = None if key in held and rng.random() < 0.3 else (rng.randrange(50), key)
        ranking.replace(held.pop(key, None), new)
        if new is not None:
            held[key] = new
        if step % 1000 == 0 or step == 5999:
            frozen.append((ranking.freeze(), sorted(held.values())))
    for order, entries in frozen:
        keys = [entry[-1] for entry in entries]
        assert len(order) == len(keys)
        assert order.page(0, len(keys)) == keys
        for first in (0, 1, 511, 512, 513, 1700, len(keys) - 1, len(keys), len(keys) + 9):
            assert order.page(first, 40) == keys[first : first + 40]
        for place in range(0, len(entries), 37):
            assert order.before(entries[place]) == place
        assert order.before((49, "zzz")) == len(keys)
        assert order.before((0,)) == 0
    assert Ranking(held.values()).freeze().page(0, 9999) == frozen[-1][0].page(0, 9999)


def test_an_empty_order_has_no_pages_and_takes_a_first_entry() -> None:
    ranking = Ranking()
    assert ranking.freeze().page(0, 50) == []
    assert ranking.freeze().before((1, "a")) == 0
    ranking.replace(None, (1, "a"))
    assert ranking.freeze().page(0, 50) == ["a"]
    ranking.replace((1, "a"), None)
    assert len(ranking.freeze()) == 0


def test_credit_falls_out_of_the_day_and_the_month_by_the_hour() -> None:
    recent = Recent(0)
    recent.move_to(10 * HOUR + 5)
    recent.add("ada", 10 * HOUR + 5, 100)
    recent.add("bob", 9 * HOUR, 7)
    assert recent.move_to(32 * HOUR + 3599) == set()
    assert (recent.day("ada"), recent.day("bob")) == (100, 7)
    assert recent.move_to(33 * HOUR) == {"bob"}
    assert (recent.day("ada"), recent.day("bob")) == (100, 0)
    assert recent.move_to(34 * HOUR) == {"ada"}
    assert recent.day("ada") == 0
    assert recent.month("ada") == 100
    recent.move_to(9 * HOUR + 720 * HOUR)
    assert (recent.month("ada"), recent.month("bob")) == (100, 0)
    recent.add("ada", 10 * HOUR + 5, -100)  # taken back when only the month remembers it
    assert (recent.day("ada"), recent.month("ada"), recent.weighted("ada")) == (0, 0, 0)


def test_the_average_halves_in_seven_days_and_is_credit_a_day_of_steady_work() -> None:
    recent = Recent(0)
    recent.add("ada", 0, 10**12)
    at_once = recent.per_day()(recent.weighted("ada"))
    assert at_once == 10**12 * 693_147_181 // (7 * 10**9)
    recent.move_to(7 * DAY)
    assert recent.per_day()(recent.weighted("ada")) == at_once // 2
    recent.move_to(70 * DAY)
    assert recent.per_day()(recent.weighted("ada")) == at_once // 1024
    for hour in range(200 * 24):
        recent.move_to(70 * DAY + hour * HOUR)
        recent.add("bob", 70 * DAY + hour * HOUR, 1_000_000)
    steady = recent.per_day()(recent.weighted("bob"))
    assert 24_000_000 <= steady < 24_100_000


def test_the_average_does_not_depend_on_the_order_in_which_credit_is_counted() -> None:
    rng = random.Random(3)
    credits = [(rng.randrange(400 * DAY), rng.randrange(1, 10**15)) for _ in range(500)]
    sums = []
    for _ in range(3):
        recent = Recent(0)
        recent.move_to(400 * DAY)
        for at_s, amount in credits:
            recent.add("ada", at_s, amount)
            recent.add("ada", at_s // 2, 5)
            recent.add("ada", at_s // 2, -5)
        sums.append((recent.weighted("ada"), recent.day("ada"), recent.month("ada")))
        rng.shuffle(credits)
    assert len(set(sums)) == 1


def test_an_absurd_time_is_no_absurd_number() -> None:
    recent = Recent(1_700_000_000)
    recent.move_to((1 << 53) - 1)
    recent.add("ada", (1 << 53) - 1, 7)
    recent.add("ada", 0, 7)
    assert recent.weighted("ada").bit_length() < 10_000
    assert recent.per_day()(recent.weighted("ada")) == 0


def test_names_and_keys_are_found_by_any_part_in_any_case() -> None:
    index = Index()
    keys = [f"12D3Key{number:04d}" for number in range(1000)]
    for number, key in enumerate(keys):
        index.put(key, f"Straße {number}" if number % 2 else None)
    lines = index.freeze()
    for _ in range(2):  # the second time from memory
        assert lines.find("STRASSE 77") == {"12D3Key0077", *keys[771:780:2]}
        assert lines.find("key0500") == {"12D3Key0500"}
        assert len(lines.find("straße")) == 500
        assert lines.find("77\n") == set()
    assert index.freeze() is lines
    index.put(keys[77], None)
    assert keys[77] in lines.find("straße 77")  # what was frozen stays
    assert keys[77] not in index.freeze().find("straße 77")


def test_searches_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_MOST_KEPT_KEYS", 250)
    index = Index()
    for number in range(200):
        index.put(f"12D3Key{number:04d}", f"Ada {number}")
    lines = index.freeze()
    for _ in range(3):
        for wanted, count in (("ada", 200), ("key000", 10), ("key", 200), ("nobody", 0)):
            assert len(lines.find(wanted)) == count


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/~ada?x=1#y", True),
        ("http://[::1]:8080/", True),
        ("HTTPS://example.org", True),
        ("javascript:alert(1)", False),
        ("JaVaScRiPt:alert(1)", False),
        ("data:text/html,<script>", False),
        ("//example.org", False),
        ("https:///nohost", False),
        ("https://exa mple.org", False),
        ("https://example.org/\u202egpj.exe", False),
        ("https://[broken", False),
        ("ftp://example.org", False),
        ("", False),
    ],
)
def test_only_links_to_the_web_are_shown(url: str, shown: bool) -> None:
    assert (web_link(url) == url) is shown
