"""The run manifest: canonical, frozen, refused unless fully understood."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from protocol.errors import UsageError
from protocol.limits import MAX_MANIFEST_BYTES
from protocol.manifest import LearningRate, RunManifest

Make = Callable[..., RunManifest]


def mapping(manifest: RunManifest) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(manifest.canonical())
    return decoded


def test_canonical_bytes_round_trip(manifest: RunManifest) -> None:
    data = manifest.canonical()
    again = RunManifest.parse(data)
    assert again == manifest
    assert again.canonical() == data
    assert manifest.run_id == hashlib.sha256(data).digest()


def test_every_default_is_written_out(manifest: RunManifest) -> None:
    raw = mapping(manifest)
    assert raw["inner"]["muon"]["ns_steps"] == 5
    assert raw["outer"] == {"learning_rate": 0.7, "momentum": 0.9}
    assert raw["credit_formula"] == "barnraise-credit/1"


def test_every_field_changes_the_run_id(make_manifest: Make, manifest: RunManifest) -> None:
    changed = [
        make_manifest(name="other"),
        make_manifest(inner={"max_steps": 11}),
        make_manifest(outer={"learning_rate": 0.5}),
        make_manifest(update={"codec": "int4"}),
        make_manifest(init={"kind": "seed", "seed": 2}),
    ]
    assert len({each.run_id for each in changed} | {manifest.run_id}) == len(changed) + 1


def test_it_is_frozen(manifest: RunManifest) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest.name = "other"  # type: ignore[misc]


def test_other_forms_of_the_same_manifest_are_refused(manifest: RunManifest) -> None:
    data = manifest.canonical()
    indented = json.dumps(mapping(manifest), indent=1).encode()
    repeated = b'{"name":"tiny",' + data[1:]
    shorter = json.dumps(
        {k: v for k, v in mapping(manifest).items() if k != "outer"},
        separators=(",", ":"),
        sort_keys=True,
    ).encode()
    for other in (indented, data + b"\n", repeated, shorter):
        with pytest.raises(UsageError, match="canonical"):
            RunManifest.parse(other)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b"[]", b'"x"'])
def test_what_is_not_a_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        RunManifest.parse(data)


def test_size_is_bounded_before_parsing() -> None:
    with pytest.raises(UsageError, match="over"):
        RunManifest.parse(b" " * (MAX_MANIFEST_BYTES + 1))


@pytest.mark.parametrize("where", [(), ("inner",), ("inner", "muon"), ("round",), ("init",)])
def test_unknown_fields_are_refused(manifest: RunManifest, where: tuple[str, ...]) -> None:
    raw = mapping(manifest)
    target = raw
    for step in where:
        target = target[step]
    target["from_the_future"] = 1
    with pytest.raises(UsageError, match="upgrade barnraise"):
        RunManifest.from_mapping(raw)


def with_config(manifest: RunManifest, **overrides: Any) -> dict[str, Any]:
    raw = mapping(manifest)
    raw["model_config_json"].update(overrides)
    return raw


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ({"model_type": "bert"}, "not one of"),
        ({"model_type": None}, "not one of"),
        ({"auto_map": {"AutoModel": "x--y"}}, "never"),
        ({"attention_dropout": 0.1}, "must be 0"),
        ({"resid_pdrop": 0.1}, "must be 0"),
        ({"max_position_embeddings": 31}, "at least sequence_length"),
        ({"max_position_embeddings": "many"}, "at least sequence_length"),
    ],
)
def test_models_that_break_the_unit_of_work(
    manifest: RunManifest, override: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        RunManifest.from_mapping(with_config(manifest, **override))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "barnraise-run/2"),
        ("name", "Not A Name"),
        ("root", "not a key"),
        ("tokenizer_sha256", "xyz"),
        ("sequence_length", 0),
        ("sequence_length", "32"),
        ("sequence_length", True),
        ("overlap", "lag2"),
        ("overlap", None),
        ("update", {"codec": "int2"}),
        ("update", {"chunk_elements": 3000}),
        ("update", {"chunk_elements": 1 << 19}),
        ("round", {"duration_s": 0}),
        ("round", {"duration_s": math.inf}),
        ("round", {"duration_s": 1, "min_members": 3, "max_members": 2}),
        ("outer", {"momentum": 1.0}),
        ("init", {"kind": "seed", "seed": -1}),
        ("init", {"kind": "other"}),
        ("campaign", {"title": "", "goal_microcredits": 1}),
    ],
)
def test_values_out_of_range_are_refused(manifest: RunManifest, field: str, value: Any) -> None:
    raw = mapping(manifest)
    raw[field] = value
    with pytest.raises(UsageError, match=field):
        RunManifest.from_mapping(raw)


NESTED = b"[" * 800 + b"]" * 800


@pytest.mark.parametrize(
    "value", [b"NaN", b"1e400", b"9007199254740993", b'"\\ud800"', NESTED, b"1" * 5000]
)
def test_values_that_have_no_canonical_form_are_refused(
    manifest: RunManifest, value: bytes
) -> None:
    data = manifest.canonical().replace(b'"hidden_size":32', b'"hidden_size":' + value)
    with pytest.raises(UsageError):
        RunManifest.parse(data)


def test_learning_rate_schedule() -> None:
    schedule = LearningRate(peak=1.0, warmup_tokens=100, total_tokens=1100, final_fraction=0.1)
    assert schedule.at(0) == pytest.approx(0.1)
    assert schedule.at(50) == pytest.approx(0.5)
    assert schedule.at(100) == pytest.approx(1.0)
    assert schedule.at(600) == pytest.approx(0.55)
    assert schedule.at(1100) == pytest.approx(0.1)
    assert schedule.at(10**12) == pytest.approx(0.1)


def test_tokens_per_step(manifest: RunManifest) -> None:
    assert manifest.tokens_per_step == 4 * 32
