"""The functions behind the check in the browser, run there: they give what ours give."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import rfc8785
from playwright.sync_api import Browser, Error, Page, Route
from proof_rig import call, raw

from ledger import leaderboard, tree
from ledger.authority import Delegations
from ledger.tiles import Tile, pack_entries
from protocol import merkle
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.notes import NoteKey
from protocol.tlog import Proof
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

pytestmark = pytest.mark.web

LEADERBOARD = Path(leaderboard.__path__[0])
VECTORS = Path(__file__).parents[2] / "docs" / "vectors"
RUN_ID = bytes(range(32))
ROOT, LOG = Identity.from_seed(b"r" * 32), Identity.from_seed(b"l" * 32)


def vectors(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_bytes())
    return loaded


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    """A bare page that may import the modules."""

    def serve(route: Route) -> None:
        path = urlsplit(route.request.url).path
        if path == "/":
            route.fulfill(content_type="text/html", body='<link rel="icon" href="data:,">')
        else:
            route.fulfill(content_type="text/javascript", path=LEADERBOARD / path.lstrip("/"))

    page = browser.new_page()
    page.route("http://127.0.0.1/**", serve)
    page.goto("http://127.0.0.1/")
    return page


def test_hashes_and_proofs_of_the_vectors(page: Page) -> None:
    ledger, commitment = vectors("ledger"), vectors("commitment")
    assert call(page, "tree.js", "leafHash", raw(ledger["leaf"].encode())) == {
        "hex": ledger["leaf_hash"]
    }
    proof = commitment["proof"]
    leaf, path = commitment["leaf_hashes"][proof["chunk"]], proof["path"]
    given = [{"hex": leaf}, proof["chunk"], len(commitment["chunks"])]
    steps = [{"hex": step} for step in path]
    call(page, "tree.js", "verifyInclusion", *given, steps, {"hex": commitment["root"]})
    for wrong in (steps[:-1], [*steps, steps[0]], steps[::-1]):
        with pytest.raises(Error, match="audit path"):
            call(page, "tree.js", "verifyInclusion", *given, wrong, {"hex": commitment["root"]})


def test_every_proof_of_small_trees_is_ours_and_a_changed_one_is_refused(page: Page) -> None:
    most = 13
    hashes = [merkle.leaf_hash(b"%d" % number) for number in range(most)]
    given = page.evaluate(
        """async ([module, hashes, most]) => {
          const { fromHex, hex } = await import("/static/proof/bytes.js");
          const tree = await import(module);
          const all = hashes.map(fromHex);
          const nodes = async (start, end) => {
            let row = all.slice(start, end);
            while (row.length > 1) row = await tree.parents(row);
            return row[0];
          };
          const subtree = async (start, end) => tree.combine(await Promise.all(
            tree.cover(start, end).map(([level, at]) => nodes(at << level, (at + 1) << level))));
          const said = {};
          for (let size = 1; size <= most; size += 1) {
            const root = await subtree(0, size);
            said[`root ${size}`] = hex(root);
            for (let index = 0; index < size; index += 1) {
              const path = await tree.inclusionProof(index, size, subtree);
              await tree.verifyInclusion(all[index], index, size, path, root);
              said[`${index} in ${size}`] = path.map(hex);
            }
            for (let old = 0; old <= size; old += 1) {
              const proof = await tree.consistencyProof(old, size, subtree);
              const oldRoot = await subtree(0, old);
              await tree.verifyConsistency(old, oldRoot, size, root, proof);
              said[`${old} before ${size}`] = proof.map(hex);
              for (let at = 0; at < proof.length; at += 1) {
                const other = oldRoot.map((byte) => byte ^ 1);
                const wrong = proof.map((step, place) => place === at ? other : step);
                const refused = await tree.verifyConsistency(old, oldRoot, size, root, wrong)
                  .then(() => false, () => true);
                if (!refused) said.wrong = `${old} before ${size}, step ${at}`;
              }
            }
          }
          return said;
        }""",
        ["/static/proof/tree.js", [one.hex() for one in hashes], most],
    )
    subtree = merkle.subtree_roots(hashes)
    for size in range(1, most + 1):
        assert given.pop(f"root {size}") == merkle.root(hashes[:size]).hex()
        for index in range(size):
            ours = merkle.inclusion_proof(index, size, subtree)
            assert given.pop(f"{index} in {size}") == [step.hex() for step in ours]
        for old in range(size + 1):
            ours = merkle.consistency_proof(old, size, subtree)
            assert given.pop(f"{old} before {size}") == [step.hex() for step in ours]
    assert given == {}


def test_sizes_beyond_32_bits_are_covered_as_ours_are(page: Page) -> None:
    for start, end in ((0, 2**40 + 5), (2**33, 2**33 + 2**20 + 1), (0, 2**53 - 1)):
        covered = call(page, "tree.js", "cover", start, end)
        assert [tuple(node) for node in covered] == tree.cover(start, end)
    assert call(page, "tree.js", "splitPoint", 2**45 + 1) == 2**45


def test_heads_and_verifier_keys_of_the_vectors(page: Page) -> None:
    ledger = vectors("ledger")
    key = NoteKey.parse(ledger["vkey"])
    note = ledger["checkpoint"]
    assert call(page, "note.js", "keyId", key.name, raw(key.public.raw)) == raw(key.key_id)
    verify = """async ([note, key]) => {
      const { fromHex, hex, ascii } = await import("/static/proof/bytes.js");
      const { readCheckpoint, verifyCheckpoint } = await import("/static/proof/note.js");
      const head = readCheckpoint(ascii(note));
      await verifyCheckpoint(head, [fromHex(key)]);
      return [head.origin, head.size, hex(head.root)];
    }"""
    said = page.evaluate(verify, [note, key.public.raw.hex()])
    assert said == ["example.org/barn", 1, ledger["leaf_hash"]]
    for wrong, words in (
        (note.replace("barn\n1\n", "barn\n2\n"), "the head was changed"),
        (note.replace("barn\n1\n", "barn\n01\n"), "not a number of leaves"),
        (note.replace("\n1\n", "\n9007199254740993\n"), "not a number of leaves"),
        (note.replace("— example", "- example"), "malformed signature line"),
        (note.replace("\n\n", "\n"), "not a signed note"),
        (note + "\r\n", "control characters"),
        (note.replace("— example.org/barn ", "— example.org/bern "), "bears no signature"),
        ("x" * 70_000, "at most"),
    ):
        with pytest.raises(Error, match=words):
            page.evaluate(verify, [wrong, key.public.raw.hex()])
    with pytest.raises(Error, match="bears no signature of a log key"):
        page.evaluate(verify, [note, ROOT.public.raw.hex()])


def test_keys_and_envelopes_of_the_vectors(page: Page) -> None:
    for key in vectors("identity")["keys"]:
        assert call(page, "bytes.js", "keyOfPeerId", key["peer_id"]) == {"hex": key["public_key"]}
    good = ROOT.peer_id
    wrongs = ("", good[:-1], good + "1", "1" + good[1:][::-1], good.replace("K", "0"), "2" * 52)
    for wrong in wrongs:
        with pytest.raises(Error, match=r"not the PeerID|not hex"):
            call(page, "bytes.js", "keyOfPeerId", wrong)
    vector = vectors("envelope")
    verify = """async (bytes) => {
      const { fromHex } = await import("/static/proof/bytes.js");
      const { readEnvelope, verifyEnvelope } = await import("/static/proof/delegations.js");
      const envelope = readEnvelope(fromHex(bytes));
      return [envelope.signer, envelope.payloadType, await verifyEnvelope(envelope)];
    }"""
    envelope = vector["envelope"]
    assert page.evaluate(verify, envelope) == [vector["signer"], vector["payload_type"], True]
    assert page.evaluate(verify, envelope.replace("000102", "000103", 1))[2] is False
    whole = bytes.fromhex(envelope)
    for broken in (whole[:-1], whole + b"\x1a", b"\x0f" + whole, b"\xff" * 11, whole + whole):
        with pytest.raises(Error, match=r"record|envelope"):
            page.evaluate(verify, broken.hex())


def test_paths_of_tiles_and_bundles_are_ours(page: Page) -> None:
    for index, width in itertools.product((0, 67, 999, 1000, 1_234_067, 10**9), (1, 255, 256)):
        for level in (0, 5):
            ours = Tile(level, index, width).path
            assert call(page, "tiles.js", "tilePath", level, index, width) == ours
        bundle = Tile(None, index, width).path
        assert call(page, "tiles.js", "tilePath", "entries", index, width) == bundle
    entries = [b"", b"a", b"b" * 300]
    packed = pack_entries(iter(entries))
    assert call(page, "tiles.js", "unpackEntries", raw(packed), 3) == [raw(one) for one in entries]
    for wrong, count in ((packed, 2), (packed, 4), (packed[:-1], 3), (packed + b"\0", 3)):
        with pytest.raises(Error, match="bundle"):
            call(page, "tiles.js", "unpackEntries", raw(wrong), count)


def test_canonical_json_is_ours(page: Page) -> None:
    for value in (
        *({"b": 1, "a": [True, None, 'é\u2028\n"\\']}, {"€": 1, "\r": 2, "1": 3, "😀": 4, "דּ": 5}),
        *({"f": [1e21, 1e-7, 0.003, 333333333.33333329, 4.50, 2e-3, 1.0]}, [], {}, "", 2**53 - 1),
    ):
        assert call(page, "bytes.js", "canonical", value) == rfc8785.dumps(value).decode()
    spaced, twice = '{"run_id":"","at_s":1, "x":1}', '{"at_s":1,"at_s":1,"run_id":""}'
    for text in (spaced, twice, "{", "[" * 9000):
        with pytest.raises(Error, match="canonical form"):
            call(page, "checks.js", "parseLeaf", raw(text.encode()))
    with pytest.raises(Error, match="lacks its run"):
        call(page, "checks.js", "parseLeaf", raw(b'{"at_s":-1,"run_id":""}'))


def test_a_receipt_is_taken_apart_as_ours_is(page: Page) -> None:
    proof = Proof(0, (bytes(32), b"\x01" * 32), vectors("ledger")["checkpoint"], b"extra")
    read = """async (file) => {
      const { hex } = await import("/static/proof/bytes.js");
      const { parseProof } = await import("/static/proof/receipt.js");
      const { index, path, extra, head } = parseProof(file);
      return [index, path.map(hex), hex(extra), head.origin];
    }"""
    assert page.evaluate(read, proof.text()) == [
        *(0, ["00" * 32, "01" * 32], b"extra".hex(), "example.org/barn")
    ]
    text = proof.text()
    for wrong in (
        text.replace("@v1", "@v2"),
        text.replace("index 0", "index 00"),
        text.replace("index 0\n", ""),
        text.replace("index 0\n", "index 0\n" + "AA==\n"),
        text.replace("index 0\n", "index 0\n" + "".join(text.splitlines(True)[3:4]) * 70),
        text.replace("\n\n", "\n"),
        "",
    ):
        with pytest.raises(Error, match="Misfit"):
            page.evaluate(read, wrong)


def _delegation(**changed: Any) -> wire.Envelope:
    said: dict[str, Any] = {
        "run_id": RUN_ID,
        "purpose": wire.KEY_PURPOSE_LOG,
        "public_key": LOG.public.raw,
        "serial": 7,
        "not_before_s": 1000,
        "not_after_s": 2000,
    }
    signer = changed.pop("signer", ROOT)
    return delegate(signer, **(said | changed))


def _revocation(serial: int, signer: Identity = ROOT) -> wire.Envelope:
    return seal(wire.Revocation(run_id=RUN_ID, serial=serial, reason="lost"), signer)


@pytest.mark.parametrize(
    ("records", "at_s", "words"),
    [
        (([_delegation()], []), 1000, None),
        (([_delegation()], []), 2000, None),
        (([_delegation(not_after_s=2**64 - 1)], []), 2**40, None),
        (([_delegation(serial=2**63)], [_revocation(2**63)]), 1500, "was revoked"),
        (([_delegation(), _delegation(serial=8)], [_revocation(7)]), 1500, None),
        (([_delegation()], []), 999, "begins after the newest leaf"),
        (([_delegation()], []), 2001, "had expired"),
        (([_delegation()], [_revocation(7)]), 1500, "was revoked"),
        (([_delegation()], [_revocation(7, LOG)]), 1500, "revocation 0 is signed by"),
        (([_delegation(purpose=wire.KEY_PURPOSE_ROUND)], []), 1500, "there is none"),
        (([_delegation(signer=LOG)], []), 1500, "delegation 0 is signed by"),
        (([_delegation(run_id=bytes(32))], []), 1500, "for run 0000"),
        (([_revocation(7)], []), 1500, "delegation 0 is no delegation"),
        (([], []), 1500, "there is none"),
    ],
)
def test_delegations_are_judged_as_ours_are(
    page: Page, records: tuple[Any, Any], at_s: int, words: str | None
) -> None:
    judge = """async ([records, root, run, atS]) => {
      const { ascii, fromHex, hex } = await import("/static/proof/bytes.js");
      const { logKeys, parseDelegations } = await import("/static/proof/delegations.js");
      const keys = await logKeys(parseDelegations(ascii(records)), root, fromHex(run), atS);
      return keys.map(({ publicKey }) => hex(publicKey));
    }"""
    published = Delegations(RUN_ID, tuple(records[0]), tuple(records[1])).dump().decode()
    given = [published, ROOT.peer_id, RUN_ID.hex(), at_s]
    if words is None:
        assert page.evaluate(judge, given) == [LOG.public.raw.hex()]
    else:
        with pytest.raises(Error, match=words):
            page.evaluate(judge, given)
