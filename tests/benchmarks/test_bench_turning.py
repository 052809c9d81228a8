"""The benchmark of turns on tiny input: what it reports, and what it takes for a failure."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sites.turning import failures, main
from tests.support.staged import SETTINGS, write_mixed

TINY = [f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in SETTINGS.items()]
ROUNDS = ["num-rounds=24", "evaluate-every=24", "fraction-train=1.0"]


def result_of(folder: Path, *given: str) -> list[dict[str, Any]]:
    dataset, out = write_mixed(folder / "dataset"), folder / "turning.json"
    where = ["--dataset", str(dataset), "--out", str(out), "--nodes", "3"]
    main([*where, *given, "--set", *TINY, *ROUNDS])
    rows: list[dict[str, Any]] = json.loads(out.read_bytes())["rows"]
    return rows


def test_honest_nodes_of_other_tastes_are_left_in(tmp_path: Path) -> None:
    rows = result_of(tmp_path)
    assert [(row["by"], row["stage"]) for row in rows] == [
        ("taste", stage) for stage in ("1", "2", "3")
    ]
    for row in rows:
        assert row["rounds"] == 24
        assert row["judged"] <= 4  # the first 20 turns are waited for
        assert row["left_out"] == {}
        assert row["least"] is None or row["least"] > 0.25
    assert any(row["judged"] for row in rows)


def test_a_liar_that_stays_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        result_of(tmp_path, "--bad", "1", "--start", "24", "--set", "stage=1")
    assert ended.value.code == 1
    assert "part-1 was not left out: by taste, stage 1" in capsys.readouterr().err


def test_whose_absence_is_wrong() -> None:
    row = {"by": "row", "stage": "1", "left_out": {"part-0": [30], "part-2": [31, 32]}}
    assert failures({"rows": [row]}, "part-2") == ["part-0 was left out: by row, stage 1"]
    assert len(failures({"rows": [row]}, None)) == 2
    assert failures({"rows": [row | {"left_out": {"part-2": [31]}}]}, "part-2") == []


def test_a_wrong_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", "/absent/turning.json"])
    assert capsys.readouterr().err.startswith("error: the folder of --out does not exist")
