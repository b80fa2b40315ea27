"""`bench api`: its arithmetic, and once for real."""

from __future__ import annotations

import json
from pathlib import Path

from musidecar.bench import api


def rounds(per_s: float) -> list[api.Round]:
    rates = {"many": {"per_s": per_s}, "everywhere": {"per_s": per_s / 2}, "direct": {"per_s": 2e6}}
    times = {"single": {"p50_us": 60.0, "p99_us": 90.0}, "echo": {"p50_us": 10.0}, "python": {"p50_us": 6.0}}
    return [rates | times | {"follower": {"p50_us": 150.0}}] * 3


def test_its_figures() -> None:
    figures = {figure.name: figure for figure in api.judge(rounds(250_000.0))}
    assert figures["... its share"].value == 0.1
    assert figures["... beside a bare loop over apply()"].value == 0.125
    assert all(figure.met for figure in figures.values())
    assert [figure.met for figure in api.judge(rounds(199_999.0))].count(False) == 1


def test_it_runs(tmp_path: Path) -> None:
    api.run(rounds=2, records=20_000, singles=100, out=tmp_path)  # fast or not
    found = json.loads((tmp_path / "api.json").read_text())
    assert len(found["raw"]) == 2
    for each in found["raw"]:
        assert 0 < each["everywhere"]["per_s"] < each["many"]["per_s"] < each["direct"]["per_s"]
        assert each["single"]["p50_us"] > each["python"]["p50_us"]
