"""The catalogue benchmark on a tiny one: where candidates are drawn, rows travel."""

import json
from pathlib import Path

import pytest

from benchmarks import catalogue


def test_it_measures_time_bytes_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--users", "20", "--participants", "10", "--rounds", "2", "--items", "2000"]
    out = tmp_path / "catalogue.json"
    catalogue.main(["--out", str(out), *small, "--set", "candidates=20", "hidden-size=16"])
    (row,) = json.loads(out.read_text())["rows"]
    table = 2_001 * 16 * 4
    assert 0 < row["up"] < table / 2
    assert row["participants"] > 0
    assert min(row["round_seconds"], row["validate_seconds"], row["peak"]) > 0
    assert "2,000" in capsys.readouterr().out
