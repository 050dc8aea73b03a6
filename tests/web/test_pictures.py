"""Charts: the same numbers in every form, bounded, and nothing of a stranger's that could run."""

from __future__ import annotations

import itertools
import re
import struct
import threading
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from ledger.donors import erase_profile, short_key
from ledger.leaderboard.app import create_app
from ledger.leaderboard.pictures import gallery, scale
from ledger.leaderboard.pictures.draw import draw
from ledger.leaderboard.pictures.paper import PALETTES
from ledger.leaderboard.pictures.series import MAX_POINTS, MAX_TABLE_ROWS, Line, Mark, Series
from ledger.leaderboard.pictures.table import table_of
from ledger.leaderboard.reader import Reader

NAMES = ("goal", "loss", "compute", "members", "audits")
_SVG = "{http://www.w3.org/2000/svg}"


def _series(**fields: Any) -> Series:
    said: dict[str, Any] = {
        "name": "loss",
        "size": 9,
        "title": "Loss",
        "summary": "It falls.",
        "kind": "line",
        "x_label": "tokens",
        "x_unit": "tokens",
        "y_label": "nats",
        "y_unit": "micronats",
        "x": [1000, 2000, 4000],
        "lines": [Line(label="loss", tone="accent", values=[5_000_000, 4_500_000, 4_400_000])],
        **fields,
    }
    return Series(**said)


def _numbers(path: str) -> list[tuple[float, float]]:
    found = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)
    return [(float(x), float(y)) for x, y in found]


def _check_inside(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for path in root.iter(f"{_SVG}path"):
        for x, y in _numbers(path.get("d", "")):
            assert 0 <= x <= width
            assert 0 <= y <= height
    for text in root.iter(f"{_SVG}text"):
        assert 0 <= float(text.get("x", "")) <= width
        assert 0 <= float(text.get("y", "")) <= height


def _size_of_png(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_series_are_values_of_the_fold(audited: Any, client: TestClient) -> None:
    shown = {name: client.get(f"/api/v1/series/{name}").json() for name in NAMES}
    campaign = client.get("/api/v1/campaign").json()
    rounds = client.get("/api/v1/rounds").json()["rounds"][::-1]
    settled = [row for row in rounds if row["outcome"] == "settled"]
    assert shown["loss"]["x"] == [row["merged_tokens"] for row in settled]
    assert shown["loss"]["lines"][0]["values"] == [
        row["validation_loss_micronats"] for row in settled
    ]
    assert shown["members"]["x"] == [row["round"] for row in rounds]
    assert shown["members"]["lines"][0]["values"] == [row["members"] for row in rounds]
    assert shown["goal"]["x"] == [campaign["goal_microcredits"]]
    assert [line["values"][0] for line in shown["goal"]["lines"]] == [
        campaign["final_microcredits"],
        campaign["pending_microcredits"],
        campaign["outstanding_microcredits"],
    ]
    given_now = sum(line["values"][-1] for line in shown["compute"]["lines"])
    assert given_now == campaign["final_microcredits"] + campaign["pending_microcredits"]
    # What was taken from Bob is in no line of the stack, and is what verification took.
    assert [line["label"] for line in shown["compute"]["lines"]] == ["Ada"]
    audited_share, probation, taken = (line["values"][-1] for line in shown["audits"]["lines"])
    audits = client.get("/api/v1/audits").json()
    assert audited_share == audits["overhead_permille"]
    assert probation == 0
    assert taken > 0
    assert {one["size"] for one in shown.values()} == {campaign["size"]}


def test_compute_adds_up_over_time_and_sums_whoever_is_not_among_the_first(
    history: Any, client: TestClient
) -> None:
    more = [history.enrol(f"n{k}", display_name=f"Number {k}") for k in range(8)]
    nameless = history.enrol("nobody")
    history.settle({worker: 3 + worker for worker in [*more, nameless]})
    stack = client.get("/api/v1/series/compute").json()
    labels = [line["label"] for line in stack["lines"]]
    assert len(labels) == 8
    assert labels[-2:] == ["others", "without a name"]
    for line in stack["lines"]:
        assert all(a <= b for a, b in pairwise(line["values"]))
    sums = [line["values"][-1] for line in stack["lines"]]
    assert sums[:6] == sorted(sums[:6], reverse=True)
    assert sum(sums) == client.get("/api/v1/campaign").json()["pending_microcredits"]
    assert all(a < b for a, b in pairwise(stack["x"]))


def test_a_donors_history_ends_at_what_it_has_now(audited: Any, client: TestClient) -> None:
    rows = client.get("/api/v1/donors").json()["donors"]
    assert len(rows) > 1
    for row in rows:
        key = row["donor"]
        series = client.get(f"/api/v1/donors/{key}/series/history").json()
        ends = {line["label"]: line["values"][-1] for line in series["lines"]}
        assert ends.get("verified", 0) == row["final_microcredits"]
        assert ends.get("pending", 0) == row["pending_microcredits"]
        for line in series["lines"]:
            assert len(line["values"]) == len(series["x"])
            assert all(a <= b for a, b in pairwise(line["values"]))
        page = client.get(f"/donor/{key}").text
        assert (f'src="/pictures/donors/{key}.svg"' in page) == bool(series["lines"])
        for form in ("svg", "png"):
            picture = client.get(f"/pictures/donors/{key}.{form}?theme=dark&shape=narrow")
            assert picture.status_code == 200
        _check_inside(client.get(f"/pictures/donors/{key}.svg").text)


def test_the_browser_knows_each_colour_that_it_draws(client: TestClient) -> None:
    style = client.get("/static/site.css").text
    for palette in PALETTES.values():
        for tone in set(palette.tones) - {"pledged"}:  # only of a bar, which is not drawn again
            assert f"--tone-{tone}: {palette.tones[tone]};" in style


def test_a_history_goes_on_with_the_record_and_knows_only_donors(
    history: Any, client: TestClient
) -> None:
    worker = history.enrol("grace", display_name="Grace")
    history.settle({worker: 3})
    (row,) = client.get("/api/v1/donors?q=Grace").json()["donors"]
    path = f"/api/v1/donors/{row['donor']}/series/history"
    before = client.get(path).json()
    history.settle({worker: 4})
    after = client.get(path).json()
    assert after["size"] > before["size"]
    assert after["lines"][0]["values"][-1] > before["lines"][0]["values"][-1]
    for unknown in ("/api/v1/donors/nobody/series/history", "/pictures/donors/nobody.svg"):
        assert client.get(unknown).status_code == 404
    assert client.get("/api/v1/series/history").status_code == 422


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_in_every_form(hostile: Any, audited: Any, client: TestClient, name: str):
    drawn = set()
    for theme in ("light", "dark"):
        for shape, width in (("wide", 760), ("narrow", 360)):
            query = f"?theme={theme}&shape={shape}"
            svg = client.get(f"/pictures/{name}.svg{query}")
            assert svg.headers["content-type"] == "image/svg+xml"
            assert "default-src 'none'" in svg.headers["content-security-policy"]
            _check_inside(svg.text)
            root = ElementTree.fromstring(svg.text)
            assert root.get("width") == str(width)
            assert [root.find(f"{_SVG}{tag}") is not None for tag in ("title", "desc")] == [
                True
            ] * 2
            allowed = {"svg", "title", "desc", "rect", "path", "circle", "text"}
            assert {element.tag.removeprefix(_SVG) for element in root.iter()} <= allowed
            assert not any("style" in e.attrib or "href" in e.attrib for e in root.iter())
            drawn.add(svg.text)
            png = client.get(f"/pictures/{name}.png{query}")
            assert png.headers["content-type"] == "image/png"
            assert _size_of_png(png.content) == (2 * width, 2 * int(root.get("height", "")))
            assert len(png.content) < 150_000
    assert len(drawn) == 4


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/pictures/passwd.svg", 422),
        ("/pictures/loss.gif", 422),
        ("/pictures/loss.svg?theme=plaid", 422),
        ("/pictures/loss.png?shape=999999", 422),
        ("/pictures/../loss.svg", 404),
        ("/api/v1/series/everything", 422),
    ],
)
def test_only_what_is_listed_is_drawn(client: TestClient, path: str, status: int) -> None:
    assert client.get(path).status_code == status


def test_hostile_names_are_text_in_a_picture_too(history: Any, client: TestClient) -> None:
    names = ("</text><script>x", "a&b<c>", '"><image href="//x"/>', "]]>\u202e", "王小明 مريم")
    numbers = [history.enrol(f"x{n}", display_name=name) for n, name in enumerate(names)]
    history.settle(dict.fromkeys(numbers, 30))
    svg = client.get("/pictures/compute.svg").text
    root = ElementTree.fromstring(svg)
    words = [text.text or "" for text in root.iter(f"{_SVG}text")]
    for name in names[:2]:
        assert any(word.endswith(name) for word in words), name
    assert not any(e.tag.endswith(("script", "image")) for e in root.iter())
    assert client.get("/pictures/compute.png").status_code == 200
    page = client.get("/charts").text
    assert "<script>x" not in page
    assert "&lt;script&gt;x" in page


def test_an_erased_name_is_gone_from_every_picture(history: Any, client: TestClient) -> None:
    ada = history.workers[0][1]
    paths = ("/charts", "/pictures/compute.svg", "/api/v1/series/compute")
    before = client.get("/pictures/compute.png").content
    assert all("Ada" in client.get(path).text for path in paths)
    with Session(history.engine) as session, session.begin():
        erase_profile(session, ada)
    assert not any("Ada" in client.get(path).text for path in paths)
    assert client.get("/pictures/compute.png").content != before


def test_a_picture_is_drawn_once_for_the_same_numbers(
    history: Any, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def counting(series: Series, *how: Any) -> str:
        drawn.append(series.name)
        return draw(series, *how)

    monkeypatch.setattr(gallery, "draw", counting)
    threads = [
        threading.Thread(target=lambda: client.get("/pictures/members.png")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tag = client.get("/pictures/members.png").headers["etag"]
    again = client.get("/pictures/members.png", headers={"If-None-Match": tag})
    assert again.status_code == 304
    assert drawn == ["members"]
    history.release()  # a new head, but no other members
    client.get("/pictures/members.png")
    assert drawn == ["members"]
    history.settle({0: 1})
    assert client.get("/pictures/members.png").headers["etag"] != tag
    assert drawn == ["members"] * 2


def test_a_shelf_is_as_long_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_MOST_KEPT", 3)
    shelf = gallery.Gallery()
    for n in range(9):
        shelf.picture(_series(summary=f"number {n}"), "svg", "light", "wide")
    assert len(shelf._kept) == 3


def test_a_large_record_is_gone_through_now_and_then_but_never_names_who_was_erased(
    history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "SMALL_LEAVES", 0)
    clock = itertools.count()
    shelf, reader = gallery.Gallery(lambda: next(clock)), Reader(history.url)

    def compute() -> tuple[int, list[str]]:
        with reader.read() as reading:
            series = shelf.series(reading, "compute")
        return series.size, [line.label for line in series.lines]

    size, labels = compute()  # by this clock it took a second
    assert labels == ["Ada", "Bob"]
    with Session(history.engine) as session, session.begin():
        erase_profile(session, history.workers[0][1])
    history.settle({1: 9})
    assert compute() == (size, [short_key(history.workers[0][1]), "Bob"])
    for _ in range(30):
        next(clock)
    assert compute() == (history.size(), ["Bob", "without a name"])
    reader.close()


def test_long_runs_are_thinned_and_keep_their_ends(history: Any, client: TestClient) -> None:
    with TestClient(create_app(history.url)) as fresh:
        leaves = [leaf for n in range(300) for leaf in history.settled_leaves({0: 1 + n % 3})]
        history.write(leaves)
        history.release()
        numbers = fresh.get("/api/v1/series/loss").json()
        assert len(numbers["x"]) == MAX_POINTS
        assert numbers["x"][-1] == history.merged_tokens
        assert [mark["label"] for mark in numbers["marks"]] == ["release"]
        assert numbers["marks"][0]["x"] == history.merged_tokens
        assert len(fresh.get("/api/v1/series/members").json()["x"]) == MAX_POINTS
        for name in NAMES:
            svg = fresh.get(f"/pictures/{name}.svg?shape=narrow").text
            _check_inside(svg)
            assert len(svg) < 60_000
        page = fresh.get("/charts").text
    assert page.count("<tr>") < 5 * (MAX_TABLE_ROWS + 2)
    assert "Not every point is a row here." in page


def test_a_run_that_has_done_nothing_has_pictures_that_say_so(
    ledger_history: Any, manifest: Any, tmp_path: Any
) -> None:
    empty = ledger_history.History(manifest, f"sqlite:///{tmp_path}/empty.db")
    empty.open()
    with TestClient(create_app(empty.url)) as client:
        for name in NAMES:
            svg = client.get(f"/pictures/{name}.svg").text
            _check_inside(svg)
            assert client.get(f"/pictures/{name}.png").status_code == 200
        assert "No round is settled yet." in client.get("/pictures/loss.svg").text
        assert "Nobody has given anything yet." in client.get("/charts").text
    empty.close()


def test_the_table_says_what_the_picture_shows() -> None:
    series = _series(marks=[Mark(x=2000, label="release")])
    table = table_of(series)
    assert table.columns == ("tokens", "loss")
    assert table.rows == (("1,000", "5.000"), ("2,000", "4.500"), ("4,000", "4.400"))
    assert table.marks == ("release at 2,000",)
    goal = _series(
        kind="progress",
        x=[2_000_000],
        x_unit="microcredits",
        y_unit="microcredits",
        lines=[Line(label="verified", tone="final", values=[500_000])],
    )
    assert table_of(goal).rows == (("verified", "0.500"), ("goal", "2"))


def test_more_than_the_goal_still_fits_and_marks_it() -> None:
    over = _series(
        kind="progress",
        x=[100],
        x_unit="microcredits",
        y_unit="microcredits",
        lines=[
            Line(label="verified", tone="final", values=[150]),
            Line(label="pending", tone="pending", values=[50]),
        ],
    )
    svg = draw(over)
    _check_inside(svg)
    bars = [
        element
        for element in ElementTree.fromstring(svg).iter(f"{_SVG}rect")
        if element.get("fill") in (PALETTES["light"].tones["final"], "#d69a3a")
        and element.get("height") == "22"
    ]
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths == pytest.approx([546, 182], abs=0.2)


@given(
    st.lists(st.integers(0, 10**15), min_size=1, max_size=40),
    st.sampled_from(["micronats", "microcredits", "permille", "members"]),
    st.sampled_from(["line", "stack", "bars"]),
    st.sampled_from(["tokens", "round", "unix_seconds"]),
    st.sampled_from(["wide", "narrow"]),
)
def test_whatever_the_numbers_the_drawing_stays_on_its_paper(
    values: list[int], unit: Any, kind: Any, x_unit: Any, shape: Any
) -> None:
    x = [5 + 977 * n for n in range(len(values))]
    line = Line(label="a line", tone="accent", values=values)
    svg = draw(_series(kind=kind, x=x, x_unit=x_unit, y_unit=unit, lines=[line]), "dark", shape)
    _check_inside(svg)
    assert len(svg) < 30_000


@given(st.integers(0, 10**12), st.integers(1, 10**12), st.integers(2, 9))
def test_axes_have_few_round_ticks_within_their_range(low: int, span: int, most: int) -> None:
    step = scale.nice_step(span / most)
    found = scale.ticks(low, low + span, step)
    assert len(found) <= most + 1
    assert all(low - step * 1e-6 <= tick <= low + span + step * 1e-6 for tick in found)
    digit = f"{step:e}"[0]
    assert digit in "125"


def _contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_and_lines_of_pictures_can_be_seen(theme: Any) -> None:
    palette = PALETTES[theme]
    assert _contrast(palette.ink, palette.paper) >= 4.5
    assert _contrast(palette.soft, palette.paper) >= 4.5
    for tone in ("accent", "audited", "replicated", "rejected", "donor2"):  # thin lines and bars
        assert _contrast(palette.tones[tone], palette.paper) >= 3, tone
