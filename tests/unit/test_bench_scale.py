"""The figure of the scale of a reduce is drawn from what the reports say."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench import scale_figure
from bench.report import Row


def test_the_figure_has_a_line_for_each_topology_and_leaves_other_links_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_figure, "FIGURE", tmp_path / "scale.svg")
    shape = {"elements": 1 << 20, "chunks": 64}
    measured: list[Row] = [
        {"members": n, "reducers": n, **shape, "round_s": n / 8, "cpu_s": n / 4} for n in (2, 4, 32)
    ]
    checked: list[Row] = [{"members": n, "predicted_cpu_s": n / 5} for n in (2, 4, 32)]
    named = [("few", 100, "all"), ("few", 10_000, "all"), ("many", 100, "all"), ("few", 7, "fast")]
    model: list[Row] = [
        {"topology": topology, "homes": homes, "links": links, "round_s": 60.0, "reports_MB": 0.0}
        for topology, homes, links in named
    ]
    scale_figure.write_figure(measured, checked, model, model)
    figure = ElementTree.fromstring((tmp_path / "scale.svg").read_text())
    assert len(figure.findall(".//{*}polyline")) == 3 + 2 + 2
    texts = {text.text for text in figure.findall(".//{*}text")}
    assert {"10,000", "few", "many", "32"} <= texts
    assert "7" not in texts
