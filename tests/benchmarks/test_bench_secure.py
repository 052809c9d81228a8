"""The benchmark of secure sums runs, and its ratios are what it counted."""

import json
from pathlib import Path

import pytest

from benchmarks import secure


def test_all_forms_are_measured_beside_bare_sums(tmp_path: Path) -> None:
    out = tmp_path / "secure.json"
    small = ["--nodes", "4", "--rounds", "1", "--set", "hidden-size=16", "num-blocks=1"]
    secure.main(["--out", str(out), *small, "max-length=20"])
    bare, *forms = json.loads(out.read_text())["rows"]
    assert len(forms) == 3
    assert bare["bytes_times"] == bare["seconds_times"] == 1
    for row in forms:
        moved = row["down"] + row["up"]
        assert row["bytes_times"] == pytest.approx(moved / (bare["down"] + bare["up"]))
        assert 0.9 < row["bytes_times"] < 1.25  # an update without the headers of its arrays
        assert row["messages"] >= bare["messages"]
    assert max(row["messages"] for row in forms) == 2 * bare["messages"]


def test_a_wrong_key_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        secure.main(["--out", str(tmp_path / "secure.json"), "--set", "no-key=1"])
    assert capsys.readouterr().err.startswith("error: unknown run-config key")
