"""Which block comes from whom: the plan, and the partial file on the disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from worker.block_plan import BlockPlan
from worker.partial_blob import BLOCK_BYTES, PartialBlob, tidy_partials


@given(
    st.integers(0, 40),
    st.sets(st.integers(0, 39)),
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["give", "give", "leave"]))),
)
def test_no_block_is_fetched_twice_before_all_are_under_way(
    count: int, here: set[int], turns: list[tuple[str, str]]
) -> None:
    done = {block for block in here if block < count}
    plan = BlockPlan(count, done)
    at: dict[str, int] = {}
    everyone = [(source, "give") for _ in range(2 * count + 2) for source in "abcd"]
    for source, what in [*turns, *everyone]:
        before = at.pop(source, None)
        if what == "leave":
            plan.leave(source)
            continue
        if before is not None and plan.claim(before):
            plan.finish(before)
            done.add(before)
        block = plan.next(source, after=before)
        assert plan.is_open == (block is not None)
        if block is None:
            continue
        free = set(range(count)) - done - set(at.values())
        assert block in free or not free
        assert block not in done
        at[source] = block
    assert plan.complete and done == set(range(count))


def test_sources_part_what_is_missing_and_each_goes_on_where_it_is() -> None:
    plan = BlockPlan(16)
    assert [plan.next(source) for source in "abc"] == [0, 8, 4]
    assert plan.claim(0) and not plan.claim(0)
    assert plan.next("a", after=0) == 1
    assert plan.next("b", after=8) == 9


def test_the_block_that_has_been_under_way_longest_is_given_to_an_idle_source_too() -> None:
    plan = BlockPlan(2)
    assert [plan.next("stalled"), plan.next("slow")] == [0, 1]
    assert plan.next("idle") == 0
    assert plan.claim(0)
    plan.finish(0)
    assert plan.next("idle", after=0) == 1
    plan.claim(1)
    plan.finish(1)
    assert plan.complete and plan.next("idle", after=1) is None


def test_what_a_liar_gave_is_missing_again() -> None:
    plan = BlockPlan(2, [0, 1])
    plan.undo([1])
    assert not plan.complete and plan.next("other") == 1


def partial(folder: Path, blocks: int = 3) -> tuple[PartialBlob, list[bytes]]:
    data = [bytes([number]) * BLOCK_BYTES for number in range(blocks - 1)] + [b"the end"]
    made = PartialBlob(folder / "ab.part", sum(map(len, data)))
    made.open()
    return made, data


def again(folder: Path, like: PartialBlob) -> PartialBlob:
    opened = PartialBlob(folder / "ab.part", like.total_bytes)
    opened.open()
    return opened


def test_blocks_are_found_again_but_for_those_that_changed(tmp_path: Path) -> None:
    made, data = partial(tmp_path)
    for block in (2, 0):
        made.keep(block, data[block], f"source-{block}")
    opened = again(tmp_path, made)
    assert {block: given.source for block, given in opened.given.items()} == {
        0: "source-0",
        2: "source-2",
    }
    with made.path.open("r+b") as file:
        file.write(b"edited")
    assert set(again(tmp_path, made).given) == {2}
    made.path.unlink()
    assert again(tmp_path, made).given == {}


def test_a_note_that_a_kill_tore_and_a_block_without_note_count_for_nothing(tmp_path: Path) -> None:
    made, data = partial(tmp_path)
    made.keep(0, data[0], "a")
    made.keep(1, data[1], "b")
    notes = tmp_path / "ab.blocks.part"
    notes.write_bytes(notes.read_bytes()[:-5])
    assert set(again(tmp_path, made).given) == {0}
    note = {"block": 7, "sha256": hashlib.sha256(data[0]).hexdigest(), "source": "a"}
    lines = [[1, 2], {"block": "0"}, {**note, "sha256": 5}, note]
    notes.write_text("\n".join(map(json.dumps, lines)) + "\n" + "x" * 1000 + "\n")
    assert again(tmp_path, made).given == {}


def test_the_last_note_of_a_block_counts_and_the_end_leaves_the_bytes_alone(tmp_path: Path) -> None:
    made, data = partial(tmp_path)
    for source in ("liar", "honest"):
        for block, content in enumerate(data):
            made.keep(block, content if source == "honest" else content[::-1], source)
    opened = again(tmp_path, made)
    assert {given.source for given in opened.given.values()} == {"honest"}
    assert opened.sha256() == hashlib.sha256(b"".join(data)).digest()
    opened.forget(["honest"])
    assert opened.given == {}
    opened.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["ab.part"]


def test_downloads_that_nobody_ends_are_not_kept_for_ever(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.part").touch()
        (tmp_path / f"{number}.blocks.part").touch()
    tidy_partials(tmp_path, {tmp_path / "0.part"})
    left = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert "0" in left and len(left) == 5
    assert len(list(tmp_path.iterdir())) == 10
