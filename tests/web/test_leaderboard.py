"""Pages and API of the leaderboard, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from web_page import Page

from ledger.donors import erase_profile
from ledger.fetching import WebFolder
from ledger.leaderboard import record
from ledger.leaderboard.app import create_app
from ledger.leaderboard.format import compact, credit, duration, flops
from ledger.log import read_leaves
from ledger.receipts import verify_receipt
from ledger.schema import LogLeaf, Profile
from ledger.sources import HttpSource, PublishedTotals
from ledger.verify import verify
from protocol.errors import BadDigest, BadRecord

BOTH_DATABASES = True

PAGES = [
    *("/", "/donors", "/rounds", "/round/0", "/round/1", "/audits"),
    *("/log", "/log/0", "/log/9", "/receipt"),
]


def _links(page: Page) -> set[str]:
    return {
        str(value)
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("href", "src", "action")
    }


def test_every_page_is_well_formed_and_loads_only_its_own_files(
    hostile: Any, audited: Any, client: TestClient
) -> None:
    donors = [row["donor"] for row in client.get("/api/v1/donors").json()["donors"]]
    for path in [*PAGES, *(f"/donor/{donor}" for donor in donors)]:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        page = Page(answer.text)
        for tag, attributes in page.elements:
            assert tag != "style"
            if tag == "script":
                assert set(attributes) in ({"src", "defer"}, {"src", "type"})
                assert str(attributes["src"]).startswith("/static/")
            assert not {"style", "onload", "onerror", "onclick", "onmouseover"} & set(attributes)
        assert all(link.startswith(("/", "?", "#")) for link in _links(page)), path


def test_no_link_is_dead(hostile: Any, audited: Any, client: TestClient) -> None:
    seen, waiting = set(), {"/"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = client.get(path)
        assert answer.status_code == 200, path
        if answer.headers["content-type"].startswith("text/html"):
            found = {link for link in _links(Page(answer.text)) if link.startswith("/")}
            waiting |= found - seen
    assert len(seen) > 40


def test_hostile_names_are_shown_as_text(
    hostile: tuple[str, ...], client: TestClient, history: Any
) -> None:
    for path in ("/", "/donors", f"/round/{history.round - 1}"):
        html = client.get(path).text
        page = Page(html)
        for name in hostile:
            assert name in page.words
            assert name not in html.replace("{{ 7 * 7 }}{% raw %}", "")
    assert "onmouseover" not in str(Page(client.get("/donors").text).elements)
    search = client.get("/donors", params={"q": '"><script>x</script>'})
    assert "<script>x" not in search.text


def test_an_anonymous_donor_is_shown_by_its_short_key_and_a_profile_can_be_erased(
    hostile: Any, client: TestClient, history: Any, ledger_history: ModuleType
) -> None:
    anonymous = ledger_history.identity("anonymous").peer_id
    ada = ledger_history.identity("ada").peer_id
    words = Page(client.get("/donors").text).words
    assert f"…{anonymous[-8:]}" in words
    assert "Ada" in words
    with Session(history.engine) as session, session.begin():
        erase_profile(session, ada)
    words = Page(client.get("/donors").text).words
    assert "Ada" not in words
    assert f"…{ada[-8:]}" in words


def test_a_long_list_of_profiles_is_made_once_and_forgets_at_once(
    client: TestClient, history: Any, monkeypatch: pytest.MonkeyPatch, ledger_history: ModuleType
) -> None:
    """With a hundred thousand it takes seconds: who asks often must not keep the site busy."""
    asked, load = [], record.load_profiles

    def counted(session: Session) -> Any:
        asked.append(session)
        return load(session)

    monkeypatch.setattr(record, "_FEW_NAMES", 0)
    monkeypatch.setattr(record, "_KEPT_S", 1e9)
    monkeypatch.setattr(record, "load_profiles", counted)
    with Session(history.engine) as session:
        want = load(session).dump()
    for _ in range(3):
        answer = client.get("/profiles", headers={"Accept-Encoding": "gzip"})
        assert answer.content == want and "content-encoding" not in answer.headers
    assert len(asked) == 1
    with Session(history.engine) as session, session.begin():
        erase_profile(session, ledger_history.identity("ada").peer_id)
    assert b"Ada" in want and b"Ada" not in client.get("/profiles").content


def test_campaign_page_shows_the_fold(client: TestClient, history: Any) -> None:
    campaign = client.get("/api/v1/campaign").json()
    with Session(history.engine) as session:
        leaves = [json.loads(data) for data in read_leaves(session, 0, campaign["size"])]
    pending = sum(leaf["microcredits"] for leaf in leaves if leaf["kind"] == "credit")
    assert campaign["pending_microcredits"] == pending > 0
    assert campaign["tokens"] == history.merged_tokens
    assert (campaign["settled_rounds"], campaign["skipped_rounds"]) == (2, 1)
    assert campaign["validation_loss_micronats"] == 4_800_000
    page = Page(client.get("/").text)
    assert _bar(page) == {"final": "0.0%", "pending": f"{1000 * pending // 5000 / 10}%"}
    assert "4.800" in page.words
    assert "barnraise worker join 'barnraise://example.org:7443/" in page.words
    assert f"--root {history.manifest.root}" in page.words
    assert "/pictures/loss.svg" in _links(page)


def _bar(page: Page) -> dict[str, str]:
    rects = [attributes for tag, attributes in page.elements if tag == "rect"]
    return {str(a["class"]): str(a["width"]) for a in rects if a["class"] != "pledged"}


def test_only_verified_work_moves_the_bar(audited: Any, client: TestClient) -> None:
    campaign = client.get("/api/v1/campaign").json()
    final, pending = campaign["final_microcredits"], campaign["pending_microcredits"]
    assert final == sum(audited.credit_leaf(i).microcredits for i in audited.credits_of(0, 0))
    assert campaign["forfeited_microcredits"] > 0 < campaign["unpaid_microcredits"]
    page = Page(client.get("/").text)
    share = {"final": final, "pending": pending}
    assert _bar(page) == {k: f"{1000 * v // 5000 / 10}%" for k, v in share.items()}
    assert f"{credit(final)} of {credit(5000)} credits verified" in " ".join(page.words.split())
    assert f"{credit(pending)} more pending" in page.words
    assert f"{credit(campaign['forfeited_microcredits'])} credits were forfeited" in page.words


def test_a_round_shows_chances_draw_and_verdicts(audited: Any, client: TestClient) -> None:
    found = client.get("/api/v1/rounds/2").json()
    said = [(m["work"], m["selected"], m["verdict"], m["status"]) for m in found["members"]]
    assert said == [
        ("training", True, "passed", "pending"),
        ("training", True, "failed", "forfeited"),
        ("training", True, "inconclusive", "forfeited"),
        ("reducing", None, None, "pending"),
    ]
    assert found["members"][1]["reason"] == "pooled_differs"
    assert (found["before"], found["after"]) == (1, 3)
    words = Page(client.get("/round/2").text).words
    assert "certain" in words
    assert "pooled differs" in words
    assert "not published" in Page(client.get("/round/3").text).words
    assert "leaf" in client.get(f"/log/{found['draw_leaf']}").text
    assert client.get("/api/v1/rounds/3").json()["draw_leaf"] is None


def test_a_donor_sees_what_became_of_the_work_and_why(
    audited: Any, client: TestClient, ledger_history: ModuleType
) -> None:
    bob = ledger_history.identity("bob").peer_id
    assert client.get(f"/api/v1/donors/{bob}").json()["devices"] is None
    with Session(audited.engine) as session, session.begin():
        for profile in session.query(Profile):
            profile.show_devices = True
    page = client.get(f"/api/v1/donors/{bob}").json()
    assert page["donor"]["pending_microcredits"] == page["donor"]["final_microcredits"] == 0
    assert [device["blocked"] for device in page["devices"]] == ["audit_failed", None]
    verdicts = client.get(f"/api/v1/donors/{bob}/verdicts").json()
    assert [(v["verdict"], v["reason"]) for v in verdicts["verdicts"]] == [
        ("failed", "pooled_differs"),
        ("inconclusive", "between_bounds"),
        ("unavailable", "nobody_answers"),
    ]
    second = client.get(f"/api/v1/donors/{bob}/verdicts?per_page=1&page=2").json()
    assert second["verdicts"] == verdicts["verdicts"][1:2]
    words = " ".join(Page(client.get(f"/donor/{bob}").text).words.split())
    for expected in ("pooled differs", "nobody answers", "blocked: audit failed", "forfeited"):
        assert expected in words
    ada = client.get(f"/api/v1/donors/{ledger_history.identity('ada').peer_id}").json()
    assert ada["devices"][0]["passes"] == {"cpu": 2}
    assert "verified" in Page(client.get(f"/donor/{ada['donor']['donor']}").text).words


def test_the_page_of_audits_counts_them_and_their_cost(audited: Any, client: TestClient) -> None:
    audits = client.get("/api/v1/audits").json()
    assert audits["verdicts"] == {"passed": 3, "unavailable": 1, "inconclusive": 1, "failed": 1}
    assert (audits["draws"], audits["awaited"]) == (2, 1)
    assert (audits["selected"], audits["open"], audits["blocked_keys"]) == (5, 0, 1)
    assert audits["audited_tokens"] == 32 * audited.manifest.tokens_per_step
    assert audits["overhead_permille"] == 1000 * 32 // 36
    assert len(client.get("/api/v1/verdicts").json()["verdicts"]) == 6
    assert "88.8 %" in Page(client.get("/audits").text).words


def test_a_checked_receipt_says_what_became_of_the_credit(audited: Any, client: TestClient) -> None:
    final = audited.credits_of(0, 0)[0]
    files = {
        "leaf": client.get(f"/receipts/leaf-{final}.json").text,
        "proof": client.get(f"/receipts/leaf-{final}.tlog-proof").text,
    }
    words = Page(client.post("/receipt", data=files).text).words
    assert "Genuine" in words
    assert "verified" in words.split("What became of it")[1]
    # The leaf that made it final has a receipt of its own.
    status = client.get("/api/v1/rounds/0").json()["members"][0]["status_leaf"]
    leaf = client.get(f"/receipts/leaf-{status}.json").text
    proof = client.get(f"/receipts/leaf-{status}.tlog-proof").text
    proven = verify_receipt(leaf.encode(), proof, root=audited.manifest.root).leaf
    assert proven.kind == "final"
    assert final in proven.credits


def test_board_sorts_searches_and_pages_with_stable_ties(hostile: Any, client: TestClient) -> None:
    def keys(query: str) -> list[str]:
        return [row["donor"] for row in client.get(f"/api/v1/donors?{query}").json()["donors"]]

    everyone = keys("per_page=500")
    assert len(everyone) == len(set(everyone)) == 7
    assert [key for page in range(1, 8) for key in keys(f"per_page=1&page={page}")] == everyone
    rows = client.get("/api/v1/donors").json()["donors"]
    amounts = [row["pending_microcredits"] for row in rows]
    assert amounts == sorted(amounts, reverse=True)
    tied = [row for row in rows if row["name"] and "document.title" in row["name"]][1:]
    assert len({row["rank"] for row in tied}) == 1
    for sort in ("tokens", "contributions", "since", "last", "name"):
        assert sorted(keys(f"sort={sort}")) == sorted(everyone)
    assert keys("q=ADA") == [rows[0]["donor"]]
    assert keys(f"q={everyone[3][-10:]}") == [everyone[3]]
    assert keys("q=nobody-is-called-this") == []
    assert "Nobody here." in client.get("/donors?q=nobody-is-called-this").text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/donor/unknown", 404),
        ("/round/99", 404),
        ("/log/99999", 404),
        ("/receipts/zzz.json", 404),
        (f"/receipts/{'0' * 32}.json", 404),
        ("/receipts/leaf-9999.json", 404),
        ("/tile/0/000", 404),
        ("/tile/0/%2e%2e/%2e%2e/checkpoint", 404),
        ("/donors?page=0", 422),
        ("/donors?sort=password", 422),
        ("/donors?q=" + "x" * 65, 422),
        ("/api/v1/donors/unknown", 404),
        ("/api/v1/donors/unknown/verdicts", 404),
        ("/api/v1/rounds/99", 404),
        ("/audits?page=0", 422),
        ("/api/v1/donors?per_page=501", 422),
        ("/api/v1/log/leaves/9999", 404),
        ("/docs", 404),
    ],
)
def test_what_is_not_there_is_a_plain_answer(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    if path.startswith("/api/"):
        assert answer.json()["detail"]
    else:
        assert "Back to the campaign" in answer.text


def test_etag_saves_the_body_until_the_record_grows(client: TestClient, history: Any) -> None:
    for path in ("/", "/api/v1/donors", "/checkpoint"):
        first = client.get(path)
        tag = {"If-None-Match": first.headers["etag"]}
        again = client.get(path, headers=tag)
        assert (again.status_code, again.content) == (304, b"")
    history.settle({0: 1})
    assert client.get(path, headers=tag).status_code == 200


def test_leaves_beyond_the_signed_head_are_not_shown(client: TestClient, history: Any) -> None:
    before = client.get("/api/v1/campaign").json()
    with Session(history.engine) as session, session.begin():
        history.log.append(session, history.settled_leaves({0: 4}))
    assert client.get("/api/v1/campaign").json() == before
    history.sign()
    assert client.get("/api/v1/campaign").json()["size"] == before["size"] + 3


def _receipt(client: TestClient, number: int = 0) -> tuple[str, str]:
    donor = client.get("/api/v1/donors").json()["donors"][number]["donor"]
    links = sorted(
        link
        for link in _links(Page(client.get(f"/donor/{donor}").text))
        if re.fullmatch(r"/receipts/[0-9a-f]{32}\..*", link)
    )
    return client.get(links[0]).text, client.get(links[0].replace(".json", ".tlog-proof")).text


def test_receipts_are_downloaded_verified_and_checked_on_the_page(
    client: TestClient, history: Any
) -> None:
    leaf, proof = _receipt(client)
    verify_receipt(leaf.encode(), proof, root=history.manifest.root)
    pasted = client.post("/receipt", data={"leaf": leaf, "proof": proof.replace("\n", "\r\n")})
    assert pasted.status_code == 200
    assert "Genuine" in Page(pasted.text).words
    files = {"leaf_file": ("l.json", leaf), "proof_file": ("r.tlog-proof", proof)}
    uploaded = client.post("/receipt", files=files, data={"leaf": "ignored", "proof": ""})
    assert "Genuine" in Page(uploaded.text).words
    forged = client.post("/receipt", data={"leaf": leaf.replace("1280", "9999"), "proof": proof})
    assert forged.status_code == 422
    assert "Not genuine" in Page(forged.text).words


def test_a_receipt_convicts_a_server_that_rewrote_its_record(
    client: TestClient, history: Any
) -> None:
    leaf, proof = _receipt(client)
    with Session(history.engine) as session, session.begin():
        row = session.query(LogLeaf).filter_by(data=leaf.encode()).one()
        row.data = row.data.replace(b'"at_s":17', b'"at_s":16')
    answer = client.post("/receipt", data={"leaf": leaf, "proof": proof})
    assert "history was rewritten here" in Page(answer.text).words


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"x" * (2 << 20), "application/x-www-form-urlencoded", 413),
        (b"{}", "application/json", 415),
        (b"", "application/x-www-form-urlencoded", 422),
        (b"nonsense", "multipart/form-data; boundary=x", 422),
        (b"nonsense", "multipart/form-data", 422),
    ],
)
def test_odd_posts_are_refused(client: TestClient, content: bytes, kind: str, status: int) -> None:
    answer = client.post("/receipt", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status


def test_a_damaged_record_is_not_papered_over(client: TestClient, history: Any) -> None:
    with Session(history.engine) as session, session.begin():
        session.get_one(LogLeaf, 5).data = b"{}"
    answer = client.get("/")
    assert answer.status_code == 500
    assert "The record is damaged: leaf 5" in Page(answer.text).words


def test_before_the_first_head_the_site_says_so(
    ledger_history: ModuleType, manifest: Any, tmp_path: Path
) -> None:
    empty = ledger_history.History(manifest, f"sqlite:///{tmp_path}/empty.db")
    with TestClient(create_app(empty.url)) as client:
        assert client.get("/").status_code == 503
        assert client.get("/checkpoint").status_code == 503
        empty.open()
        assert client.get("/").status_code == 200
        assert "The curve begins" in client.get("/").text
    empty.close()


def test_the_site_cannot_write(history: Any) -> None:
    app = create_app(history.url)
    with (
        app.state.reader.session() as (session, _),
        pytest.raises(DBAPIError, match=r"readonly|read-only"),
    ):
        session.execute(text("DELETE FROM log_leaf"))
    app.state.reader.close()


def test_api_is_described_and_open_to_other_sites(client: TestClient) -> None:
    schema = client.get("/api/v1/openapi.json").json()
    assert set(schema["paths"]) == {
        "/api/v1/campaign",
        "/api/v1/campaigns",
        "/api/v1/campaigns/{campaign}",
        "/api/v1/teams",
        "/api/v1/teams/{team}",
        "/api/v1/pools",
        "/api/v1/donors",
        "/api/v1/donors/{donor}",
        "/api/v1/donors/{donor}/verdicts",
        "/api/v1/donors/{donor}/leaves",
        "/api/v1/donors/{donor}/series/history",
        "/api/v1/rounds",
        "/api/v1/rounds/{number}",
        "/api/v1/audits",
        "/api/v1/verdicts",
        "/api/v1/series/{name}",
        "/api/v1/log/head",
        "/api/v1/log/leaves/{index}",
    }
    assert client.get("/api/v1/rounds").headers["access-control-allow-origin"] == "*"
    assert client.get("/api/v1/log/head").json()["checkpoint"] == client.get("/checkpoint").text


def test_a_stranger_verifies_the_site_over_http(
    hostile: Any, audited: Any, site: str, history: Any
) -> None:
    report = verify(HttpSource(site), root=history.manifest.root)
    assert report.board_compared
    assert report.donors == 7


@pytest.mark.parametrize("shown", ["pending", "final", "forfeited"])
def test_a_leaderboard_that_shows_other_totals_is_caught(
    site: str, history: Any, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    from ledger.leaderboard import donors

    honest = donors.donor_rows

    def generous(*arguments: Any) -> Any:
        rows = honest(*arguments)
        name = f"{shown}_microcredits"
        setattr(rows[0], name, getattr(rows[0], name) + 1)
        return rows

    monkeypatch.setattr(donors, "donor_rows", generous)
    with pytest.raises(BadDigest, match="the leaderboard shows"):
        verify(HttpSource(site), root=history.manifest.root)


@pytest.mark.parametrize(
    ("size", "donors"),
    [(-1, -1), (10.5, 0), (1e999, 1e999), (True, 0), (9, 0.5), (9, -1), ("9", "0"), (None, None)],
)
def test_a_leaderboard_of_no_size_is_refused(
    size: object, donors: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its totals would be compared with no fold, and yet be said to be equal to it."""
    shown = dict.fromkeys(PublishedTotals.__dataclass_fields__, 10**12)
    campaign, page = {"size": size, "donors": donors, **shown}, {"size": size, "donors": []}

    def get(_site: WebFolder, path: str, _most_bytes: int) -> bytes:
        return json.dumps(campaign if path.endswith("campaign") else page).encode()

    monkeypatch.setattr(WebFolder, "get", get)
    with pytest.raises(BadRecord, match="not understood"):
        HttpSource("http://127.0.0.1:1").board()


def test_a_leaderboard_that_shows_somebody_twice_is_caught(
    site: str, history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once as the record has it, and before that as somebody would like it."""
    from ledger.leaderboard import donors

    honest = donors.donor_rows

    def twice(*arguments: Any) -> Any:
        rows = honest(*arguments)
        return [rows[0].model_copy(update={"final_microcredits": 10**12}), *rows]

    monkeypatch.setattr(donors, "donor_rows", twice)
    with pytest.raises(BadRecord, match="twice"):
        verify(HttpSource(site), root=history.manifest.root)


def test_numbers_as_people_read_them() -> None:
    assert [compact(n) for n in (0, 9_999, 12_345, 1_234_567, 2_000_000_000)] == [
        *("0", "9,999", "12.3 k", "1.23 M", "2 B")
    ]
    assert [credit(n) for n in (0, 7, 123, 57_000, 123_456, 12_345_678, 1_234_500_000)] == [
        *("0", "0.000007", "0.000123", "0.0570", "0.123", "12.3", "1,234")
    ]
    assert [flops(n) for n in (0, 1_500, 2_000_000)] == ["0 GFLOP", "1.5 TFLOP", "2 PFLOP"]
    assert [duration(s) for s in (None, 59, 600, 7_200, 864_000)] == [
        *("–", "59 s", "10 min", "2 h", "10 days")
    ]
