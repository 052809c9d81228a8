"""The scaling benchmark on tiny populations, and its arithmetic."""

import json
from pathlib import Path

import pytest

from benchmarks.scaling import compared, main


def test_rounds_start_and_memory_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scaling.json"
    small = ["--users", "40", "80", "--items", "60", "--participants", "20", "--rounds", "2"]
    small += ["--settled", "1"]
    settings = ["hidden-size=8", "num-blocks=1", "max-length=10"]
    main(["--out", str(out), *small, "--set", *settings])
    result = json.loads(out.read_text())
    assert [row["users"] for row in result["rows"]] == [40, 80]
    for row in result["rows"]:
        assert 400 < row["interactions"] < 80 * 31
        assert 5 < row["participants"] < 40
        assert min(row["round_seconds"], row["start_seconds"]) > 0
        assert row["peak_bytes"] > 50_000_000  # Python and torch
    assert result["compared"] == compared(result["rows"])
    assert "bytes more an interaction" in capsys.readouterr().out


def test_the_comparison() -> None:
    small = {"round_seconds": 2.0, "participants": 200, "interactions": 100, "peak_bytes": 5000}
    large = {"round_seconds": 2.2, "participants": 100, "interactions": 300, "peak_bytes": 7000}
    rows = [row | {"start_seconds": 1.5} for row in (small, large)]
    found = compared(rows)
    assert found["round_ratio"] == pytest.approx(2.2)
    assert found["bytes_per_interaction"] == 10.0
    assert found["start_seconds"] == 1.5
