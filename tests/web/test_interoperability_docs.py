"""``docs/interoperability.md`` shows what the programs say, to the letter."""

from __future__ import annotations

import gzip
import re
import shlex
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from starlette.testclient import TestClient

from ledger.cli import cli
from ledger.exports.dumps import newest_dump

PAGE = (Path(__file__).parents[2] / "docs" / "interoperability.md").read_text()
EXAMPLE = re.compile(r"<!-- (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
CLEO = "12D3KooWCZhKMx8z9mHgatzZG6YwmPxFRCcV9a6ioGu1Wfa7p95a"


def test_examples_of_files_are_parts_of_them(crowded: Any, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["dump", "--db", crowded.url, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    dump = newest_dump(tmp_path)
    assert dump is not None
    examples = EXAMPLE.findall(PAGE)
    assert len(examples) == 5
    for name, example in examples:
        data = (dump / name).read_bytes()
        text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
        assert example in text.replace("\r\n", "\n"), name


def test_the_shown_check_is_the_commands(crowded: Any, client: TestClient, tmp_path: Path) -> None:
    file = tmp_path / "certificate.json"
    file.write_bytes(client.get(f"/certificate/{CLEO}.json").content)
    command = ["certificate", "check", str(file), "--root", crowded.manifest.root]
    shown = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    assert CliRunner().invoke(cli, command).output == shown[1]


def test_metrics_are_those_that_are_listed(client: TestClient) -> None:
    client.get("/")
    served = set(re.findall(r"^# TYPE (barnraise_\w+)", client.get("/metrics").text, re.MULTILINE))
    assert set(re.findall(r"barnraise_\w+", PAGE)) == served


def test_commands_have_the_options_that_are_shown() -> None:
    lines = re.findall(r"^    barnraise ledger (.*)$", PAGE, re.MULTILINE)
    assert lines
    for line in lines:
        name, *options = shlex.split(line, comments=True)
        help_ = CliRunner().invoke(cli, [name, "--help"]).output
        assert all(option in help_ for option in options if option.startswith("--")), line
