"""`musidecar bench replicate` measures real commits by real processes; here briefly, and without a bar: what counts is
that every record was committed and the logs are equal in the end (measure() raises otherwise)."""

from pathlib import Path

import pytest

from musidecar.bench import replicate


@pytest.mark.parametrize("payload_bytes", [1, 64, 1001, replicate.PIECE_BYTES_MAX])
def test_commits_are_measured_beside_copies(payload_bytes: int) -> None:
    results = replicate.measure(rounds=2, payload_bytes=payload_bytes, seconds=0.02)
    assert set(results) == {"commits", "copies"}
    for rounds in results.values():
        assert len(rounds) == 2
        for one in rounds:
            assert one.count > 0
            assert 0 < one.p50 <= one.p90 <= one.p99 <= one.p999
            assert one.p50 * one.count * 0.4 <= one.seconds * 1e6, "half of all took at least the median"


def test_the_picture(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    png = tmp_path / "replicate.png"
    assert replicate.run(rounds=1, seconds=0.02, png=png) in (0, 1)
    assert png.read_bytes()[:4] == b"\x89PNG"
    told = capfd.readouterr().out
    assert "propose + commit" in told and "raw copies" in told


@pytest.mark.parametrize(("rounds", "payload_bytes"), [(0, 64), (1, 0), (1, replicate.PIECE_BYTES_MAX + 1)])
def test_nonsense_is_refused(rounds: int, payload_bytes: int) -> None:
    assert replicate.run(rounds=rounds, payload_bytes=payload_bytes) == 2
