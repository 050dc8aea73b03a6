"""Boards, campaigns, teams, pools and persons on the site, as visitors and strangers meet them."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from web_page import Page

from ledger.donors import erase_profile
from ledger.leaderboard import reader as reader_module
from ledger.leaderboard.app import create_app
from ledger.leaderboard.reader import Reader
from ledger.schema import LogLeaf, Profile, TeamProfile
from ledger.sources import HttpSource
from ledger.verify import verify

HOSTILE = (
    "<script>document.title='owned'</script>",
    "\u202eevil\u202c",
    "W" * 64,
    "👩‍👩‍👧‍👦🏴‍☠️",
    "</bdi></a><h1>x",
)


def _words(client: TestClient, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, path
    return " ".join(Page(answer.text).words.split())


def _rows(client: TestClient, query: str = "") -> dict[str, dict[str, Any]]:
    rows = client.get(f"/api/v1/donors?per_page=500&{query}").json()["donors"]
    return {row["donor"]: row for row in rows}


def _key(rig: ModuleType, name: str) -> str:
    return str(rig.identity(name).peer_id)


def test_boards_of_a_day_and_a_month_follow_the_newest_leaf(
    client: TestClient, history: Any, ledger_history: ModuleType
) -> None:
    ada, bob = _key(ledger_history, "ada"), _key(ledger_history, "bob")
    assert set(_rows(client, "board=day")) == {ada, bob}
    history.now_s += 2 * 86_400
    history.settle({1: 2})
    day = _rows(client, "board=day")
    assert set(day) == {bob}
    paid = history.credits_of(1, history.round - 1)
    assert day[bob]["day_microcredits"] == sum(history.credit_leaf(i).microcredits for i in paid)
    assert set(_rows(client, "board=month")) == {ada, bob}
    assert f"…{ada[-8:]}" not in _words(client, "/donors?board=day")
    history.now_s += 31 * 86_400
    history.settle({0: 1})
    assert set(_rows(client, "board=month")) == {ada}
    average = _rows(client, "board=average&sort=name")
    assert set(average) == {ada, bob}
    assert (
        average[ada]["average_microcredits_per_day"] > average[bob]["average_microcredits_per_day"]
    )
    assert "24 hours before the newest leaf" in _words(client, "/donors?board=day")


def test_jump_to_me_leads_to_my_row_by_key_or_name_without_a_script(
    client: TestClient, history: Any, ledger_history: ModuleType
) -> None:
    numbers = [history.enrol(f"d{n}", display_name=f"Donor {n:03}") for n in range(120)]
    history.settle({number: 1 + number for number in numbers[:-1]})
    last = _key(ledger_history, "d119")
    for who in (last, "donor 119", "DONOR 119"):
        answer = client.get("/donors", params={"me": who}, follow_redirects=False)
        assert answer.status_code == 303
        assert (
            answer.headers["location"] == f"/donors?board=all&sort=credit&page=3&me={last}#{last}"
        )
    page = Page(client.get(f"/donors?board=all&sort=credit&page=3&me={last}").text)
    marked = [a["id"] for tag, a in page.elements if tag == "tr" and a.get("class") == "me"]
    assert marked == [last]
    sorted_ = client.get("/donors", params={"me": last, "sort": "name"}, follow_redirects=False)
    assert "page=3" in sorted_.headers["location"]
    assert client.get("/donors?me=nobody-of-this-name").status_code == 404
    assert client.get(f"/donors?board=day&me={last}").status_code == 404


def test_a_person_is_all_of_its_keys_and_an_old_key_leads_to_it(
    client: TestClient, history: Any, crowd: Any, ledger_history: ModuleType
) -> None:
    ada, bob, eve = (_key(ledger_history, name) for name in ("ada", "bob", "eve"))
    before = _rows(client)
    assert set(_rows(client, "q=Bob")) == {bob}
    crowd.merge("ada", "bob")
    crowd.rotate("bob", "eve")
    after = _rows(client)
    assert set(after) == {eve}
    for field in ("pending_microcredits", "tokens", "contributions", "devices"):
        assert after[eve][field] == before[ada][field] + before[bob][field]
    assert after[eve]["keys"] == 3
    for old in (ada, bob):
        answer = client.get(f"/donor/{old}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (308, f"/donor/{eve}")
        assert client.get(f"/api/v1/donors/{old}").json()["donor"]["donor"] == eve
        assert set(_rows(client, f"q={old[-12:]}")) == {eve}
    assert _rows(client, "q=Bob") == {}, "what a key was called is nobody's name any more"
    found = client.get(f"/api/v1/donors/{eve}").json()
    assert found["keys"][0] == eve
    assert set(found["keys"]) == {ada, bob, eve}
    assert "2 earlier keys" in _words(client, f"/donor/{eve}")
    assert client.get("/api/v1/campaign").json()["donors"] == 1


def test_credit_that_money_bought_is_a_column_and_counts_and_the_unnamed_are_one_row(
    client: TestClient, history: Any, crowd: Any, ledger_history: ModuleType
) -> None:
    ada = _key(ledger_history, "ada")
    crowd.pool("pool")
    history.enrol("pool", display_name="Pool")
    crowd.donate("first", "ada", "pool", amount_minor=3000)
    crowd.donate("second", "", "pool", amount_minor=1000)
    crowd.donate("hidden", "", "pool", amount_minor=2000, visibility="secret")
    before = _rows(client)
    history.settle({3: 40})
    paid = sum(history.credit_leaf(i).microcredits for i in history.credits_of(3))
    board = client.get("/api/v1/donors").json()
    rows = {row["donor"]: row for row in board["donors"]}
    assert abs(rows[ada]["sponsored_microcredits"] - paid // 2) <= 1
    gained = rows[ada]["pending_microcredits"] - before[ada]["pending_microcredits"]
    assert gained == rows[ada]["sponsored_microcredits"]
    pool = rows[_key(ledger_history, "pool")]
    assert (pool["is_pool"], pool["pending_microcredits"]) == (True, 0)
    assert board["anonymous"]["donations"] == 2
    total = sum(row["pending_microcredits"] for row in board["donors"])
    total += board["anonymous"]["pending_microcredits"]
    assert total == client.get("/api/v1/campaign").json()["pending_microcredits"]
    words = _words(client, "/donors")
    assert "Anonymous donors 2 donations of money" in words
    shown = client.get("/api/v1/pools").json()["pools"][0]
    assert (shown["raised_minor"], shown["donations"], shown["devices"]) == (6000, 3, 1)
    assert shown["divided_microcredits"] == paid
    assert "60.00 EUR" in _words(client, "/pools")
    zero = crowd.zero.hex()
    listed = client.get(f"/api/v1/campaigns/{zero}").json()["donations"]
    assert sorted(gift["amount_minor"] for gift in listed) == [1000, 3000]  # no secret one
    assert "20.00 EUR" not in _words(client, f"/campaigns/{zero}")
    assert "30.00 EUR" in _words(client, f"/donor/{ada}")


def test_a_stranger_verifies_what_persons_and_the_unnamed_have(
    site: str, history: Any, crowd: Any
) -> None:
    crowd.pool("pool")
    history.enrol("pool")
    history.enrol("cleo")
    crowd.donate("first", "cleo", "pool", amount_minor=3000)
    crowd.donate("second", "", "pool", amount_minor=1001)
    history.settle({3: 11, 0: 2})
    crowd.merge("ada", "bob")
    crowd.rotate("bob", "eve")
    report = verify(HttpSource(site), root=history.manifest.root)
    assert report.board_compared
    assert report.donors == 3


def test_a_campaign_shows_its_bar_terms_news_and_only_what_may_be_listed(
    client: TestClient, history: Any, crowd: Any, ledger_history: ModuleType
) -> None:
    crowd.campaign(
        "spring",
        title="Spring & <b>sun</b>",
        goal_microcredits=2000,
        goal_minor=50_000,
        currency="EUR",
        ends_s=history.now_s + 86_400,
        when_missed="close",
        organisers=["Grace", HOSTILE[0]],
        reference_device="RTX 4090",
        reference_microcredits_per_hour=100,
    )
    name = client.get("/api/v1/campaigns").json()["campaigns"][0]["campaign"]
    spring = bytes.fromhex(name)
    crowd.pledge("open", "ada", campaign=spring, microcredits=800)
    crowd.pledge("quiet", "bob", campaign=spring, microcredits=70, visibility="private")
    crowd.pledge("hidden", "bob", campaign=spring, microcredits=30, visibility="secret")
    crowd.news("It <i>grows</i>", spring)
    history.settle({0: 3})
    found = client.get(f"/api/v1/campaigns/{name}").json()
    campaign = found["campaign"]
    paid = [i for i in history.credits_of(0) if history.credit_leaf(i).round == history.round - 1]
    delivered = sum(history.credit_leaf(i).microcredits for i in paid)
    assert campaign["pending_microcredits"] == delivered > 0
    assert (campaign["pledges"], campaign["pledged_microcredits"]) == (3, 900)
    assert campaign["outstanding_microcredits"] == 900 - delivered
    pledges = {(p["visibility"], p["name"], p["delivered_microcredits"]) for p in found["pledges"]}
    assert pledges == {("public", "Ada", delivered), ("private", None, None)}
    page = client.get(f"/campaigns/{name}")
    words = " ".join(Page(page.text).words.split())
    for said in (
        *("Spring & <b>sun</b>", "It <i>grows</i>", "Grace", HOSTILE[0], "somebody unnamed"),
        *("20 hours of RTX 4090", "0.00 EUR of 500.00 EUR given", "the campaign is over; what was"),
    ):
        assert said in words
    assert "<b>sun</b>" not in page.text
    assert "Open now: Spring" in _words(client, "/")
    assert "Spring" in _words(client, "/campaigns")
    row = client.get(f"/api/v1/donors/{_key(ledger_history, 'ada')}").json()["pledges"][0]
    assert row["microcredits"] == 800
    assert "Pledges" in _words(client, f"/donor/{_key(ledger_history, 'ada')}")
    assert client.get("/campaigns/" + "0" * 32).status_code == 404


def test_a_team_has_a_page_and_a_hostile_name_breaks_nothing(
    client: TestClient, history: Any, crowd: Any, ledger_history: ModuleType
) -> None:
    crowd.team("barn", "ada")
    crowd.join("ada", "barn")
    crowd.join("bob", "barn")
    history.settle({0: 5, 1: 1})
    crowd.join("bob", "")
    history.settle({1: 7})
    team = client.get("/api/v1/teams").json()["teams"][0]
    mine = [history.credit_leaf(i) for n in (0, 1) for i in history.credits_of(n, 3)]
    assert team["pending_microcredits"] == sum(leaf.microcredits for leaf in mine) > 0
    assert (team["members"], team["rank"], team["name"]) == (1, 1, None)
    found = client.get(f"/api/v1/teams/{team['team']}").json()
    assert [(m["name"], m["is_member"]) for m in found["members"]] == [
        ("Ada", True),
        ("Bob", False),
    ]
    for name in HOSTILE:
        with Session(history.engine) as session, session.begin():
            session.merge(
                TeamProfile(
                    team=team["team"],
                    display_name=name,
                    url="javascript:alert(1)",
                    about=name,
                    updated_at_s=1,
                )
            )
        for path in ("/teams", f"/team/{team['team']}", "/donors"):
            page = Page(client.get(path).text)
            assert name in page.words
            hrefs = [str(a.get("href", "")) for _, a in page.elements]
            assert not [href for href in hrefs if href.startswith("javascript")]
    assert client.get("/team/" + "0" * 32).status_code == 404
    assert "team" in _words(client, f"/donor/{_key(ledger_history, 'ada')}")


def test_a_stranger_is_shown_with_a_safe_link_and_is_gone_when_erased(
    client: TestClient, history: Any, ledger_history: ModuleType
) -> None:
    ada = _key(ledger_history, "ada")
    for name in HOSTILE:
        with Session(history.engine) as session, session.begin():
            profile = session.get_one(Profile, ada)
            profile.display_name, profile.about = name, f"About {name}"
            profile.url = "https://example.org/?a=1&b=<x>"
        page = Page(client.get(f"/donor/{ada}").text)
        assert name in page.words
        link = next(
            a for tag, a in page.elements if a.get("href") == "https://example.org/?a=1&b=<x>"
        )
        assert link["rel"] == "nofollow noopener ugc"
        for path in ("/", "/donors", "/donors?board=month&sort=name"):
            assert name in Page(client.get(path).text).words
        assert set(_rows(client, f"q={name[:20].strip()}")) == {ada}
    with Session(history.engine) as session, session.begin():
        erase_profile(session, ada)
    for path in (f"/donor/{ada}", "/", "/donors", f"/api/v1/donors/{ada}"):
        assert HOSTILE[-1] not in Page(client.get(path).text).words
    assert _rows(client)[ada]["name"] is None


def test_a_large_record_is_shown_as_it_was_while_what_is_new_is_folded(
    history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "SMALL_LEAVES", 0)
    folding, go_on = threading.Event(), threading.Event()
    reader = Reader(history.url)
    try:
        first = reader.snapshot()
        apply = reader_module.Standings.apply

        def held(self: Any, data: bytes) -> None:
            folding.set()
            assert go_on.wait(60)
            apply(self, data)

        monkeypatch.setattr(reader_module.Standings, "apply", held)
        history.settle({0: 1})
        assert reader.snapshot() is first
        assert folding.wait(60)
        assert reader.snapshot() is first  # the fold goes on, and nobody waits for it
        go_on.set()
        while reader.snapshot() is first:
            pass
        assert reader.snapshot().size == history.size()
        with reader.read() as reading:
            assert reading.board.size == reading.snapshot.size
    finally:
        go_on.set()
        reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "fold"]


def test_until_a_record_is_folded_for_the_first_time_the_site_says_so(
    history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    apply = reader_module.Standings.apply

    def held(self: Any, data: bytes) -> None:
        assert go_on.wait(60)
        apply(self, data)

    monkeypatch.setattr(reader_module.Standings, "apply", held)
    monkeypatch.setattr(reader_module, "_MOST_WAIT_S", 0.05)
    with TestClient(create_app(history.url)) as client:
        for path in ("/donors", "/", "/api/v1/donors"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
            assert "read for the first time" in answer.text
        assert client.get("/checkpoint").status_code == 200
        monkeypatch.setattr(reader_module, "_MOST_WAIT_S", 60.0)
        go_on.set()
        assert client.get("/donors").status_code == 200


def test_a_record_that_was_mended_is_shown_again(history: Any) -> None:
    with Session(history.engine) as session, session.begin():
        leaf = session.get_one(LogLeaf, 5)
        honest, leaf.data = leaf.data, b"{}"
    with TestClient(create_app(history.url)) as client:
        assert client.get("/donors").status_code == 500
        assert client.get("/api/v1/donors").json()["detail"].startswith("The record is damaged")
        with Session(history.engine) as session, session.begin():
            session.get_one(LogLeaf, 5).data = honest
        assert client.get("/donors").status_code == 200


def test_a_page_is_made_once_for_a_snapshot_and_304_needs_no_page(
    client: TestClient, history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ledger.leaderboard import donor_pages

    made: list[str] = []
    honest = donor_pages.donors

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(options["sort"])
        return honest(*arguments, **options)

    monkeypatch.setattr(donor_pages, "donors", counted)
    first = client.get("/donors?sort=name")
    again = client.get("/donors?sort=name")
    assert (first.text, len(made)) == (again.text, 1)
    tag = {"If-None-Match": first.headers["etag"]}
    assert client.get("/donors?sort=name", headers=tag).status_code == 304
    assert len(made) == 1
    elsewhere = client.get("/donors?sort=name", headers={"Host": "other.example.org"})
    assert elsewhere.status_code == 200
    assert len(made) == 2
    history.settle({0: 1})
    assert client.get("/donors?sort=name", headers=tag).status_code == 200
    assert len(made) == 3
