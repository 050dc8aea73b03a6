"""A reader checks the record in the browser; whoever serves something else is found out."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crowd_rig import HOSTILE_TEXT
from playwright.sync_api import Page, Route, expect
from proof_rig import CHECK_MS, PLAIN_HTTP_HOST, Change, Visit, check, flip, outcome, swap, tamper
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from ledger.leaderboard.app import create_app
from ledger.schema import LogLeaf, LogNode
from protocol import merkle
from protocol.envelope import parse_envelope, pre_authentication_encoding
from protocol.identity import Identity
from protocol.notes import Checkpoint, read_checkpoint, sign_checkpoint

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]

ROOT_STEP = "The root key is the one that you know"
TREE_STEP = "The tiles lead to its root"
VOUCHED_STEP = "The root key vouches for the log's key"
SIGNED_STEP = "The head is signed by that key"
SAVED_STEP = "It extends the head that you saved"
FAILED_REQUEST = ("Failed to load resource",)


def stranger() -> str:
    return Identity.from_seed(b"s" * 32).peer_id


def _other_signature(body: bytearray) -> bytearray:
    """The head with the last bytes of its signature changed."""
    return body[:-9] + b"AAAAAAA=\n"


def _other_record(position: int) -> Change:
    """The first delegation with one bit of its envelope changed."""

    def change(body: bytearray) -> bytearray:
        raw = json.loads(body)
        envelope = bytearray(base64.b64decode(raw["delegations"][0]))
        envelope[position] ^= 1
        raw["delegations"][0] = base64.b64encode(envelope).decode()
        return bytearray(json.dumps(raw).encode())

    return change


@pytest.fixture
def long(history: Any) -> Any:
    """A record of two full tiles and a part."""
    history.write([leaf for _ in range(110) for leaf in history.settled_leaves({0: 3, 1: 2, 2: 1})])
    assert 512 < history.size() < 768
    return history


def test_a_leaf_is_checked_with_the_keyboard_alone(audited: Any, site: str, visit: Visit) -> None:
    page = visit()
    page.goto(f"{site}/log/9")
    field = page.get_by_label("Root fingerprint or join link")
    page.get_by_role("link", name="Skip to the page").focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        if field.evaluate("(one) => one === document.activeElement"):
            break
    page.keyboard.type(audited.manifest.root)
    page.keyboard.press("Enter")
    assert outcome(page) == ("holds", {})
    steps = page.locator(".steps li")
    assert steps.count() == 8
    for step in steps.all():
        assert step.locator(".mark").inner_text() == "✓"
        assert step.locator(".state").inner_text() == "holds"
    expect(page.get_by_role("status").filter(has_text="All of this holds.")).to_be_visible()
    assert page.locator(".steps").get_attribute("aria-live") == "polite"


def test_a_link_brings_the_fingerprint_along(audited: Any, site: str, visit: Visit) -> None:
    page = visit()
    page.goto(f"{site}/log/heads#root={audited.manifest.root}")
    assert outcome(page) == ("holds", {})
    page.goto(f"{site}/log/heads#root={stranger()}")
    expect(page.locator('.outcome[data-state="fails"]')).to_be_attached(timeout=CHECK_MS)
    _, wrong = outcome(page)
    assert f"you know {stranger()}" in wrong[ROOT_STEP]


def test_whose_root_it_is_only_the_reader_can_know(audited: Any, site: str, visit: Visit) -> None:
    page = visit()
    page.goto(f"{site}/log/heads")
    root, run_id = audited.manifest.root, audited.manifest.run_id.hex()
    state, wrong = check(page)
    assert (state, list(wrong)) == ("open", [ROOT_STEP])
    assert root in wrong[ROOT_STEP]
    link = "barnraise://example.org:7443/{}#root={}"
    assert check(page, link.format(run_id, root)) == ("holds", {})
    state, wrong = check(page, link.format("0" * 64, root))
    assert state == "fails"
    assert f"of run {'0' * 64}, this record of {run_id}" in wrong[VOUCHED_STEP]
    state, wrong = check(page, stranger())
    assert state == "fails"
    assert f"signed by {root}, not by the root key {stranger()}" in wrong[VOUCHED_STEP]
    state, wrong = check(page, "my root key")
    assert state == "fails"
    assert "neither a root fingerprint" in wrong["What you gave can be read"]


CHANGES: list[tuple[str, Change, str, str]] = [
    ("**/tile/0/**", flip(40), TREE_STEP, "tile/0/000.p/29 and the head do not fit together"),
    ("**/tile/0/**", lambda body: body[:-1], TREE_STEP, "has 927 bytes, not 928"),
    ("**/tile/0/**", lambda body: body + b"0" * 9000, TREE_STEP, "larger than the 8192 bytes"),
    (
        "**/tile/entries/**",
        flip(-20),
        TREE_STEP,
        "entry 28 of tile/entries/000.p/29 is not the leaf",
    ),
    ("**/tile/entries/**", lambda body: body[:-1], TREE_STEP, "cut short, or longer"),
    ("**/checkpoint", swap("\n29\n", "\n28\n"), TREE_STEP, "tile/0/000.p/28 and the head do not"),
    ("**/checkpoint", swap("\n29\n", "\n30\n"), TREE_STEP, "does not serve /tile/0/000"),
    ("**/checkpoint", swap("\n29\n", "\n029\n"), "The newest head can be read", "not a number"),
    ("**/checkpoint", swap("tiny\n29", "tony\n29"), SIGNED_STEP, "bears no signature"),
    ("**/checkpoint", swap("example.org/tiny ", "example.org/tony "), SIGNED_STEP, "no signature"),
    ("**/checkpoint", _other_signature, SIGNED_STEP, "the head was changed"),
    ("**/delegations", swap('"run_id":"', '"run_id":"0'), VOUCHED_STEP, "not hex"),
    ("**/delegations", _other_record(30), VOUCHED_STEP, "signature does not hold: it was changed"),
    ("**/delegations", _other_record(-30), VOUCHED_STEP, "not by the root key"),
    ("**/delegations", lambda _: bytearray(b"{}"), VOUCHED_STEP, "not barnraise-delegations/1"),
]


def test_one_changed_byte_on_the_way_is_named(audited: Any, site: str, visit: Visit) -> None:
    assert audited.size() == 29
    page = visit(expecting=FAILED_REQUEST)
    for pattern, change, step, words in CHANGES:
        page.unroute_all()
        tamper(page, pattern, change)
        page.goto(f"{site}/log/heads")
        state, wrong = check(page, audited.manifest.root)
        assert state == "fails", words
        assert words in wrong[step]
        assert wrong.pop(step).startswith("does not hold: ")
        assert all(said.startswith("not checked: it rests on") for said in wrong.values())
        expect(page.get_by_text("Do not believe this page")).to_be_visible()


def test_of_many_tiles_the_one_that_does_not_fit_is_named(
    long: Any, site: str, visit: Visit
) -> None:
    root = long.manifest.root
    page = visit()
    for index in (3, 255, 256, 550):
        page.goto(f"{site}/log/{index}")
        assert check(page, root) == ("holds", {}), index
    page = visit()  # that has no file yet
    tamper(page, "**/tile/0/001", flip(32 * 200))
    page.goto(f"{site}/log/300")
    state, wrong = check(page, root)
    assert state == "fails"
    assert (
        "tile/0/001 does not fit: its hashes lead to" in wrong["Leaf 300 is what this page shows"]
    )
    assert "tile/1/000.p/2 has" in wrong["Leaf 300 is what this page shows"]
    page = visit()
    tamper(page, "**/tile/1/000.p/2", flip(1))
    page.goto(f"{site}/log/300")
    assert "tile/1/000.p/2" in check(page, root)[1][TREE_STEP]
    page = visit()
    tamper(page, "**/tile/entries/001", flip(20))
    page.goto(f"{site}/log/256")
    words = check(page, root)[1]["Leaf 256 is what this page shows"]
    assert "entry 0 of tile/entries/001 is not the leaf" in words


def test_a_leaf_that_was_edited_in_the_database_is_found_out(
    long: Any, site: str, visit: Visit
) -> None:
    _edit_leaf(long, 290)
    page = visit()
    page.goto(f"{site}/log/290")
    assert '"at_s":16' in page.locator("#leaf-bytes").inner_text()
    state, wrong = check(page, long.manifest.root)
    assert state == "fails"
    words = wrong["Leaf 290 is what this page shows"]
    assert "entry 34 of tile/entries/001 is not the leaf that the head signs" in words


def test_a_tree_that_was_edited_along_with_its_leaf_is_found_out(
    long: Any, site: str, visit: Visit
) -> None:
    data = _edit_leaf(long, 290)
    with Session(long.engine) as session, session.begin():
        session.get_one(LogNode, (0, 290)).hash = merkle.leaf_hash(data)
    page = visit()
    page.goto(f"{site}/log/290")
    state, wrong = check(page, long.manifest.root)
    assert state == "fails"
    assert "tile/0/001 does not fit" in wrong["Leaf 290 is what this page shows"]


def _edit_leaf(history: Any, index: int) -> bytes:
    with Session(history.engine) as session, session.begin():
        row = session.get_one(LogLeaf, index)
        row.data = row.data.replace(b'"at_s":17', b'"at_s":16')
        return row.data


def test_a_script_that_is_slipped_into_a_page_does_not_run(
    audited: Any, site: str, visit: Visit
) -> None:
    script = "<script>document.title = 'owned'</script></main>"
    page = visit(expecting=("Content Security Policy",))

    def serve(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=response.text().replace("</main>", script))

    page.route("**/log/9", serve)
    page.goto(f"{site}/log/9")
    assert page.locator("main script").count() == 1
    assert "owned" not in page.title()
    assert check(page, audited.manifest.root) == ("holds", {})


def test_a_page_that_shows_other_bytes_than_the_record_is_found_out(
    audited: Any, site: str, visit: Visit
) -> None:
    page = visit()
    tamper(page, "**/log/9", swap("microcredits&#34;:", "microcredits&#34;:9"))
    page.goto(f"{site}/log/9")
    state, wrong = check(page, audited.manifest.root)
    assert state == "fails"
    assert "other bytes there than this page shows" in wrong["Leaf 9 is what this page shows"]


def test_a_saved_head_must_be_a_beginning_of_this_one(
    long: Any, site: str, visit: Visit, tmp_path: Path, ledger_history: Any
) -> None:
    root, origin, log_key = long.manifest.root, long.manifest.origin, ledger_history.LOG_KEY
    old = long.sign()
    long.settle({0: 1})
    for _ in range(3):
        long.settle({1: 1, 2: 1})
    size = read_checkpoint(old).size
    saved = tmp_path / "head.txt"
    saved.write_text(old)

    def said(head: str) -> tuple[str, str | None]:
        page.goto(f"{site}/log/heads")
        state, wrong = check(page, root, saved=head)
        return state, wrong.get(SAVED_STEP)

    page = visit()
    page.goto(f"{site}/log/heads")
    assert check(page, root, saved=saved) == ("holds", {})
    assert said(old.replace("\n", "\r\n")) == ("holds", None)
    rewritten = sign_checkpoint(Checkpoint(origin, size, b"\x07" * 32), log_key)
    state, words = said(rewritten)
    assert state == "fails"
    assert words is not None
    assert f"the record was rewritten: its first {size} leaves have root" in words
    cut = sign_checkpoint(Checkpoint(origin, 9999, b"\x07" * 32), log_key)
    assert "the record shrank" in str(said(cut)[1])
    forged = sign_checkpoint(Checkpoint(origin, size, b"\x07" * 32), Identity.from_seed(b"s" * 32))
    assert "the saved head is not signed by this log's key" in str(said(forged)[1])
    other = sign_checkpoint(Checkpoint("example.org/other", 1, b"\x07" * 32), log_key)
    assert "you saved a head of example.org/other" in str(said(other)[1])
    assert "not a signed note" in str(said("garbage")[1])


def test_without_ed25519_the_rest_is_checked_and_said_so(
    audited: Any, site: str, visit: Visit
) -> None:
    page = visit()
    page.add_init_script(
        """crypto.subtle.importKey = async () => {
          throw new DOMException("Unrecognized name.", "NotSupportedError");
        };"""
    )
    page.goto(f"{site}/log/9")
    state, wrong = check(page, audited.manifest.root)
    assert state == "open"
    assert set(wrong) == {VOUCHED_STEP, SIGNED_STEP}
    assert "this browser cannot check Ed25519 signatures" in wrong[VOUCHED_STEP]


def test_over_plain_http_nothing_is_checked_and_nothing_pretended(
    audited: Any, site: str, visit: Visit
) -> None:
    page = visit()
    page.goto(f"{site.replace('127.0.0.1', PLAIN_HTTP_HOST)}/log/9")
    state, wrong = check(page, audited.manifest.root)
    assert state == "open"
    assert "over HTTPS" in wrong[TREE_STEP]
    assert "not checked" in wrong[SIGNED_STEP]


def test_a_site_that_cannot_be_reached_proves_nothing(
    audited: Any, site: str, visit: Visit
) -> None:
    page = visit(expecting=FAILED_REQUEST)
    page.route("**/tile/**", lambda route: route.abort())
    page.goto(f"{site}/log/9")
    state, wrong = check(page, audited.manifest.root)
    assert state == "open"
    assert "could not be read: no connection" in wrong[TREE_STEP]


# ---- a donor's own totals ----


def donor(history: Any, number: int) -> str:
    key: str = history.workers[number][1]
    return f"/donor/{key}"


def test_a_donors_totals_are_recomputed_from_proven_leaves(
    audited: Any, site: str, visit: Visit
) -> None:
    for number in (0, 1):
        page = visit()
        page.goto(site + donor(audited, number))
        assert check(page, audited.manifest.root) == ("holds", {})
        sums = page.locator(".steps li", has_text="Sum of")
        assert sums.count() == 4
        assert "microcredits" in sums.first.inner_text()


def test_totals_that_the_leaves_do_not_give_are_found_out(
    audited: Any, site: str, visit: Visit
) -> None:
    path, root = donor(audited, 0), audited.manifest.root
    page = visit()
    tamper(page, f"**{path}", swap('data-final="', 'data-final="1'))
    page.goto(site + path)
    state, wrong = check(page, root)
    assert state == "fails"
    assert list(wrong) == ["Sum of verified credit"]
    assert "this page shows 1" in wrong["Sum of verified credit"]


def test_a_list_of_leaves_that_hides_or_invents_some_is_found_out(
    audited: Any, site: str, visit: Visit
) -> None:
    listed = "The leaves that speak of this donor are in the record"
    folded = "The leaves contradict none before them"
    changes: list[tuple[Callable[[list[int]], list[Any]], str, str]] = [
        (lambda leaves: leaves[1:], folded, "no credit of this donor"),
        (lambda leaves: leaves[:-2], "Sum of pending credit", "the leaves give"),
        (lambda leaves: [*leaves, 99_999], listed, "no leaf under the head"),
        (lambda leaves: [*leaves, -1], listed, "no leaf under the head"),
        (lambda leaves: [*leaves, "9"], listed, "no leaf under the head"),
    ]
    page = visit()
    for change, step, words in changes:
        page.unroute_all()
        tamper(page, "**/leaves?*", _other_list(change))
        page.goto(site + donor(audited, 0))
        state, wrong = check(page, audited.manifest.root)
        assert state == "fails", words
        assert words in wrong[step]


def _other_list(change: Callable[[list[int]], list[Any]]) -> Change:
    def serve(body: bytearray) -> bytearray:
        raw = json.loads(body)
        return bytearray(json.dumps(raw | {"leaves": change(raw["leaves"])}).encode())

    return serve


def test_a_donor_with_more_leaves_than_a_browser_reads_is_told_so(
    audited: Any, site: str, visit: Visit
) -> None:
    page = visit()
    tamper(page, "**/leaves?*", swap('"more":false', '"more":true'))
    page.goto(site + donor(audited, 0))
    state, wrong = check(page, audited.manifest.root)
    assert state == "open"
    said = wrong["The leaves that speak of this donor are in the record"]
    assert "too many to check here; use the command" in said


def test_numbers_of_an_older_head_are_compared_at_that_head(
    audited: Any, site: str, visit: Visit
) -> None:
    page = visit()
    page.goto(site + donor(audited, 0))
    audited.settle({0: 2})
    assert check(page, audited.manifest.root) == ("holds", {})


# ---- receipts ----


def _receipt(history: Any, folder: Path) -> tuple[Path, Path]:
    index = history.credits_of(0, 0)[0]
    with TestClient(create_app(history.url)) as client:
        for name in ("json", "tlog-proof"):
            folder.joinpath(f"r.{name}").write_text(
                client.get(f"/receipts/leaf-{index}.{name}").text
            )
    return folder / "r.json", folder / "r.tlog-proof"


def _check_receipt(page: Page, leaf: Path, proof: Path, root: str) -> tuple[str, dict[str, str]]:
    page.get_by_label("Leaf, the .json file").set_input_files(leaf)
    page.get_by_label("Proof, the .tlog-proof file").set_input_files(proof)
    return check(page, root)


def test_a_receipt_is_checked_without_being_sent(
    audited: Any, site: str, visit: Visit, tmp_path: Path
) -> None:
    leaf, proof = _receipt(audited, tmp_path)
    audited.settle({0: 1})
    posted: list[str] = []
    page = visit()
    page.on("request", lambda one: posted.append(one.url) if one.method != "GET" else None)
    page.goto(f"{site}/receipt")
    assert _check_receipt(page, leaf, proof, audited.manifest.root) == ("holds", {})
    expect(page.get_by_text("Genuine", exact=True)).to_be_visible()
    forged = tmp_path / "forged.json"
    forged.write_text(leaf.read_text().replace('"round":0', '"round":1'))
    state, wrong = _check_receipt(page, forged, proof, audited.manifest.root)
    assert state == "fails"
    assert (
        "does not lead to the root"
        in wrong["The audit path leads from the leaf to the head's root"]
    )
    expect(page.get_by_text("Not genuine", exact=True)).to_be_visible()
    state, wrong = _check_receipt(page, leaf, proof, stranger())
    assert f"not by the root key {stranger()}" in str(wrong)
    state, wrong = _check_receipt(page, proof, leaf, audited.manifest.root)
    assert "canonical form" in wrong["The two files can be read"]
    large = tmp_path / "large.json"
    large.write_bytes(b"0" * (1 << 20))
    state, wrong = _check_receipt(page, large, proof, audited.manifest.root)
    assert "larger than any such file" in str(wrong)
    assert posted == []


def test_a_receipt_convicts_a_site_that_rewrote_or_cut_its_record(
    audited: Any, site: str, visit: Visit, tmp_path: Path, ledger_history: Any, manifest: Any
) -> None:
    leaf, proof = _receipt(audited, tmp_path)
    step = "This site's record still has it"
    page = visit()
    page.goto(f"{site}/receipt")
    index = int(proof.read_text().split("index ")[1].split("\n")[0])
    other = ledger_history.History(audited.manifest, f"sqlite:///{tmp_path}/other.db")
    other.open()
    with TestClient(create_app(other.url)) as client:
        cut = client.get("/checkpoint").text
    page.route("**/checkpoint", lambda route: route.fulfill(content_type="text/plain", body=cut))
    state, wrong = _check_receipt(page, leaf, proof, audited.manifest.root)
    assert state == "fails"
    assert "history was cut here" in wrong[step]
    other.close()
    page.unroute("**/checkpoint")
    _edit_leaf(audited, index)
    state, wrong = _check_receipt(page, leaf, proof, audited.manifest.root)
    assert state == "fails"
    assert "is not the leaf that the head signs" in wrong[step]


# ---- acts, and pages without JavaScript ----


def test_signed_acts_are_shown_as_text_and_checked(acted: Any, site: str, visit: Visit) -> None:
    history, made = acted
    root = history.manifest.root
    page = visit()
    for name in ("delegation", "campaign", "private pledge", "key_rotation"):
        page.goto(f"{site}/log/{made[name]}")
        assert check(page, root) == ("holds", {}), name
        is_public = name != "private pledge"
        assert page.get_by_text("The signed act is the one that it names").count() == is_public
        assert page.get_by_text("is not public").count() != is_public
        assert "owned" not in page.title()
    page.goto(f"{site}/log/{made['news']}")
    assert page.get_by_text(HOSTILE_TEXT, exact=True).count() == 2
    tamper(page, "**/acts/*", flip(50))
    _, wrong = check(page, root)
    assert "has the digest" in wrong["The signed act is the one that it names"]
    page.unroute("**/acts/*")
    tamper(page, "**/acts/*", flip(-60))
    _, wrong = check(page, root)
    assert "does not hold" in wrong["The signed act is the one that it names"]


def test_an_act_that_somebody_else_signed_is_found_out(acted: Any, site: str, visit: Visit) -> None:
    """The same payload, and a signature that holds: of a key that may not."""
    history, made = acted
    stranger = Identity.from_seed(b"s" * 32)

    def sign_anew(body: bytearray) -> bytes:
        envelope = parse_envelope(bytes(body))
        signed = pre_authentication_encoding(envelope.payload_type, envelope.payload)
        envelope.signatures[0].keyid = stranger.peer_id
        envelope.signatures[0].sig = stranger.sign(signed)
        return envelope.SerializeToString(deterministic=True)

    page = visit()
    tamper(page, "**/acts/*", sign_anew)
    for name in ("delegation", "donation", "key_rotation"):
        page.goto(f"{site}/log/{made[name]}")
        state, wrong = check(page, history.manifest.root)
        assert state == "fails", name
        assert "whose act it is" in wrong["The signed act is the one that it names"], name


def test_a_donor_of_several_keys_and_with_sponsored_credit_is_recomputed(
    acted: Any, site: str, visit: Visit
) -> None:
    history, made = acted
    page = visit()
    page.goto(site + donor(history, 0))
    assert check(page, history.manifest.root) == ("holds", {})
    assert "2 keys, joined" in page.locator(".steps li", has_text="one person").inner_text()
    hidden = _other_list(lambda leaves: [index for index in leaves if index != made["merge"]])
    tamper(page, "**/leaves?*", hidden)
    _, wrong = check(page, history.manifest.root)
    assert "no leaf joins the key" in wrong["The keys are one person's"]


def test_pages_of_the_log_are_whole_without_javascript(acted: Any, site: str, visit: Visit) -> None:
    history, made = acted
    width = 320
    page = visit(java_script_enabled=False, viewport={"width": width, "height": 800})
    for index in [*made.values(), 0, 9]:
        page.goto(f"{site}/log/{index}")
        _fits(page, width)
        verify = f"barnraise ledger verify --url {site} --root {history.manifest.root}"
        assert page.get_by_text(verify, exact=True).is_visible()
        assert not page.get_by_role("button", name="Check in this browser").is_visible()
        assert "The command below needs none" in page.locator("noscript p").inner_text()
    page.goto(f"{site}/log/heads")
    _fits(page, width)
    assert page.get_by_text(f"barnraise ledger mirror {site} record").is_visible()
    page.goto(f"{site}/log")
    _fits(page, width)
    page.get_by_label("Kind").select_option("pledge")
    page.get_by_role("button", name="Show").click()
    assert page.locator("tbody tr").count() == 2
    assert "promises" in page.locator("tbody").inner_text()
    page.get_by_label("Leaf number").fill(str(made["news"]))
    page.get_by_role("button", name="Go to it").click()
    assert page.get_by_role("heading", name=f"Leaf {made['news']} news").is_visible()
    assert page.get_by_text(HOSTILE_TEXT, exact=True).count() == 2


def _fits(page: Page, width: int) -> None:
    box = page.locator("main").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= width, page.url
