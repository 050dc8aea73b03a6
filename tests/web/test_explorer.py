"""The pages of the log, without a browser."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any, get_args

import pytest
from crowd_rig import HOSTILE_TEXT
from sqlalchemy import delete
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from ledger.leaderboard.leaf_fields import KINDS, known_fields, rows_of
from ledger.log import read_leaves
from ledger.records import Leaf, parse_leaf
from ledger.schema import ActRow, DelegationRow
from protocol.notes import NoteKey


def _leaves(history: Any) -> list[Leaf]:
    with Session(history.engine) as session:
        return [parse_leaf(data) for data in read_leaves(session, 0, history.size())]


def _listed(html: str) -> list[int]:
    return [int(index) for index in re.findall(r'<th scope="row"[^>]*><a href="/log/(\d+)"', html)]


def test_every_kind_and_field_of_a_leaf_has_a_meaning(acted: Any) -> None:
    kinds = get_args(Leaf)
    assert {one.model_fields["kind"].default for one in kinds} == set(KINDS)
    assert {name for one in kinds for name in one.model_fields} == known_fields()
    written = _leaves(acted[0])
    assert {leaf.kind for leaf in written} == set(KINDS) - {"restore"}
    for leaf in written:
        said = {row.name: row for row in rows_of(leaf)}
        assert set(said) == {name for name, value in leaf if value is not None}
        assert all(row.values and all(text for text, _ in row.values) for row in said.values())


def test_every_leaf_has_a_page_and_no_link_on_it_is_dead(acted: Any, client: TestClient) -> None:
    history, made = acted
    linked: set[str] = set()
    for index in range(history.size()):
        answer = client.get(f"/log/{index}")
        assert answer.status_code == 200, index
        linked |= set(re.findall(r'href="(/[^"#]*)"', answer.text))
    assert {f"/acts/{made['news']:03d}", "/round/2"} <= linked
    for path in linked:
        assert client.get(path).status_code == 200, path


def test_a_signed_act_is_shown_escaped_with_who_signed_it(
    acted: Any, client: TestClient, crowd_history: ModuleType
) -> None:
    _, made = acted
    html = client.get(f"/log/{made['news']}").text
    assert HOSTILE_TEXT not in html
    assert html.count("&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;") == 2
    assert crowd_history.CAMPAIGNER.peer_id in html
    rotation = client.get(f"/log/{made['key_rotation']}").text
    assert f"signed by {crowd_history.identity('dee-new').peer_id}" in rotation
    for name in ("private pledge", "secret donation"):
        html = client.get(f"/log/{made[name]}").text
        assert "is not public" in html
        assert "/acts/" not in html
        assert client.get(f"/acts/{made[name]:03d}").status_code == 404


def test_a_damaged_act_is_not_papered_over(acted: Any, client: TestClient) -> None:
    history, made = acted
    with Session(history.engine) as session, session.begin():
        row = session.get_one(ActRow, made["news"])
        row.envelope = row.envelope[:-1]
    answer = client.get(f"/log/{made['news']}")
    assert answer.status_code == 500
    assert "The record is damaged" in answer.text


def test_the_list_is_filtered_and_walked_both_ways(acted: Any, client: TestClient) -> None:
    history, _ = acted
    for _ in range(40):
        history.settle({0: 1})
    written = _leaves(history)
    size = len(written)
    ada = history.workers[0][1]
    for query, belongs in (
        ("", lambda leaf: True),
        ("kind=credit", lambda leaf: leaf.kind == "credit"),
        (f"donor={ada}", lambda leaf: getattr(leaf, "donor", None) == ada),
        ("round=2", lambda leaf: getattr(leaf, "round", None) == 2),
        (f"kind=final&donor={ada}&round=", lambda leaf: leaf.kind == "final" and leaf.donor == ada),
        ("kind=restore", lambda leaf: False),
    ):
        expected = [index for index in range(size) if belongs(written[index])][::-1]
        html = client.get(f"/log?{query}").text
        seen = _listed(html)
        while older := re.search(r'rel="next" href="([^"]*)"', html):
            html = client.get("/log" + older[1].replace("&amp;", "&")).text
            seen += _listed(html)
        assert seen == expected, query
        back = _listed(html)
        while newer := re.search(r'rel="prev" href="([^"]*)"', html):
            html = client.get("/log" + newer[1].replace("&amp;", "&")).text
            back = _listed(html) + back
        assert back[0:1] == expected[0:1]
        assert sorted(set(back), reverse=True) == expected
    assert "The record has no such leaf." in client.get("/log?kind=restore").text


def test_a_round_that_is_not_over_is_no_link(history: Any, client: TestClient) -> None:
    index = history.size()
    history.write(history.settled_leaves({0: 3})[:-1])  # paid before the round's own leaf
    number = history.round - 1
    assert f"/round/{number}" not in client.get(f"/log/{index}").text
    assert f"/round/{number}" not in client.get("/log").text
    assert f"round {number}" in client.get("/log").text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/log?kind=nonsense", 422),
        ("/log?donor=%22%3E%3Cscript%3E", 422),
        ("/log?donor=" + "1" * 65, 422),
        ("/log?round=-1", 422),
        ("/log?round=" + "9" * 16, 422),
        ("/log?before=-1", 422),
        ("/log?after=99999999999999999999", 422),
        ("/log/-1", 404),
        ("/log/99999999999999999999", 422),
        ("/log/x", 422),
        ("/log/jump?index=x", 422),
        ("/acts/zzz", 404),
        ("/acts/000", 404),
        ("/api/v1/donors/unknown/leaves", 404),
    ],
)
def test_what_is_not_there_is_a_plain_answer(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert "<script>" not in answer.text


def test_a_number_leads_to_its_leaf(client: TestClient) -> None:
    jumped = client.get("/log/jump?index=+7+", follow_redirects=False)
    assert (jumped.status_code, jumped.headers["location"]) == (303, "/log/7")
    assert client.get("/log/jump?index=", follow_redirects=False).headers["location"] == "/log"


def test_the_page_of_heads_says_how_to_verify_and_mirror(
    audited: Any, client: TestClient, ledger_history: Any
) -> None:
    html = client.get("/log/heads").text
    vkey = NoteKey(audited.manifest.origin, ledger_history.LOG_KEY.public).vkey
    for expected in (
        vkey.replace("+", "&#43;"),
        audited.manifest.root,
        f"barnraise ledger verify --url http://testserver --root {audited.manifest.root}",
        "--old-checkpoint head.txt",
        "barnraise ledger mirror http://testserver record",
        client.get("/checkpoint").text.splitlines()[2],
    ):
        assert expected in html or expected.replace("&#43;", "+") in html, expected
    with Session(audited.engine) as session, session.begin():
        session.execute(delete(DelegationRow))
    assert "none: No delegations are published" in client.get("/log/heads").text


def test_an_expired_log_key_is_said_to_be_so(audited: Any, client: TestClient) -> None:
    audited.now_s += 2 * 365 * 86_400
    audited.settle({0: 1})
    assert "none: no key may sign this log" in client.get("/log/heads").text


def test_leaves_of_a_donor_are_those_that_its_totals_follow_from(
    audited: Any, client: TestClient
) -> None:
    bob = audited.workers[1][1]
    found = client.get(f"/api/v1/donors/{bob}/leaves").json()
    written = _leaves(audited)
    kinds = [written[index].kind for index in found["leaves"]]
    assert found["size"] == len(written)
    assert not found["more"]
    assert set(kinds) == {"credit", "reversal", "verdict"}
    mine = [i for i, leaf in enumerate(written) if getattr(leaf, "donor", None) == bob]
    assert set(mine) - set(found["leaves"]) == {
        index for index in mine if written[index].kind == "enrol"
    }
    older = client.get(f"/api/v1/donors/{bob}/leaves?size=10").json()
    assert older == {
        "size": 10,
        "leaves": [index for index in found["leaves"] if index < 10],
        "more": False,
    }
    assert client.get(f"/api/v1/donors/{bob}/leaves?size=99999").json()["size"] == len(written)


@pytest.mark.parametrize(
    ("path", "marked"),
    [
        ("/log", ("/log", "page")),
        ("/log/3", ("/log", "true")),
        ("/log/heads", ("/log", "true")),
        ("/round/2", ("/rounds", "true")),
        ("/campaigns", ("/", "true")),
        ("/pools", None),
    ],
)
def test_the_navigation_marks_where_a_page_belongs(
    client: TestClient, path: str, marked: tuple[str, str] | None
) -> None:
    navigation = client.get(path).text.partition("<nav")[2].partition("</nav>")[0]
    found = re.findall(r'<a href="([^"]*)" aria-current="([^"]*)"', navigation)
    assert found == ([marked] if marked else [])
