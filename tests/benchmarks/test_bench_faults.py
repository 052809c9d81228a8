"""The fault benchmark: real runs with a bad node on tiny data; no figure is judged here."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fault_parts.cases import FAULTS, UNDISTURBED, Fault, FaultyGrid
from benchmarks.fault_parts.stock import aggregate, as_stock, honest_weights, outcome
from benchmarks.faults import NAMES, main
from client_app.data.dataset import Dataset
from server_app.app import federate
from shared_model.protocol.config import Value, default_config, parse_settings
from tests.support.paths import ROOT

CONFIG = default_config(ROOT / "pyproject.toml")
TINY: dict[str, Value] = {"hidden-size": 8, "num-blocks": 1, "max-length": 10}
CHOSEN = ["NaN", "update x 1e6", "exception"]


def run_benchmark(folder: Path, dataset: Dataset, *extra: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of the command."""
    settings = [f"dataset={dataset.folder}", *(f"{k}={v}" for k, v in TINY.items())]
    out = folder / "faults.json"
    arguments = ["--out", str(out), "--rounds", "3", "--nodes", "4", "--faults", *CHOSEN]
    code = 0
    try:
        main([*arguments, "--set", *settings, "fraction-train=1.0", *extra])
    except SystemExit as stop:
        code = int(str(stop.code))
    return code, json.loads(out.read_text())


def test_every_row_completes_and_names_the_offender(
    tmp_path: Path, small_dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = run_benchmark(tmp_path, small_dataset)
    rows, users = result["rows"], small_dataset.num_users
    assert [row["fault"] for row in rows] == CHOSEN
    for row, reason in zip(rows, ("not finite", "update norm", "failed with code 2"), strict=True):
        assert row["complete"]
        assert row["bad_node"] == "partition-1"
        assert list(row["dropped"]) == ["1", "2", "3"]
        assert all(reason in said for said in row["dropped"].values())
        assert (row["seed"], row["config"]["num-rounds"], row["nodes"]) == (0, 3, 4)
        assert row["config"]["aggregation"] == "clipped"
        assert row["passed"] == (row["hr@10"] >= 0.98 * row["undisturbed"])
        bad = row["hr@10"] * users - row["others"] * (users - users // 4)  # of a quarter of them
        assert bad == pytest.approx(round(bad), abs=1e-6)
        assert 0 <= round(bad) <= users // 4
    assert "not finite" in rows[0]["stock"]["text"]
    assert rows[1]["stock"]["off"] > 1e4
    assert rows[2]["stock"]["off"] < 2
    assert code == (0 if all(row["passed"] for row in rows) else 1)
    printed = capsys.readouterr()
    assert all(name in printed.out for name in CHOSEN)
    assert ("failed rows" in printed.err) == (code == 1)


def test_a_run_that_stops_is_a_failed_row(tmp_path: Path, small_dataset: Dataset) -> None:
    code, result = run_benchmark(tmp_path, small_dataset, "min-participation=1.0")
    assert code == 1
    for row in result["rows"]:
        assert not row["complete"]
        assert not row["passed"]
        assert "too few nodes answered" in row["ours"]


def test_wrong_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--out", "/absent/x.json"], ["--out", "x.json", "--set", "seed=3"]):
        with pytest.raises(SystemExit, match="1"):
            main(arguments)
        assert capsys.readouterr().err.startswith("error: ")


@pytest.fixture
def config(tmp_path: Path, small_dataset: Dataset) -> dict[str, Value]:
    where = {"home": str(tmp_path / "home"), "dataset": str(small_dataset.folder)}
    rounds = {"stage": 1, "num-rounds": 4, "evaluate-every": 4, "fraction-train": 1.0}
    rounds |= {"dropout": 0.2}
    return {**CONFIG, **TINY, **where, **rounds}


def disturbed(fault: Fault, config: dict[str, Value]) -> tuple[FaultyGrid, list[dict[str, Any]]]:
    """The grid after a run whose fourth node is bad from round 2 on, and the rounds' record."""
    nodes: list[dict[str, Value]] = [{"partition-id": i, "num-partitions": 4} for i in range(4)]
    grid = FaultyGrid(nodes, config, fault, bad=3, start=2)
    named = config | {"run": "-".join(fault.name.replace(",", "").split())}
    return grid, federate(grid, parse_settings(named))["stages"]["1"]["rounds"]


def rounds_of(kind: str, rounds: Sequence[dict[str, Any]]) -> list[int]:
    return [r["round"] for r in rounds for what in r.get(kind, []) if "partition-3" in str(what)]


FORMATS: dict[str, dict[str, Value]] = {
    "float32": {},
    "bfloat16": {"wire-dtype": "bfloat16"},
    "rows": {"candidates": 8},
    "int8, rows": {"wire-dtype": "int8", "candidates": 8},
}


@pytest.mark.parametrize("wire", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_every_fault_is_survived(config: dict[str, Value], name: str, wire: str) -> None:
    """Each is noticed in every bad round, unless it can be an honest node's update."""
    config |= FORMATS[wire]
    [fault] = [f for f in FAULTS if f.name == name]
    fault = replace(fault, rounds=min(fault.rounds, 2))
    _, rounds = disturbed(fault, config)
    noticed = rounds_of("dropped", rounds) + rounds_of("clipped", rounds)
    assert noticed == ([] if name == "update x -1" else [2, 3] if fault.rounds else [2, 3, 4])
    if fault.behaviour == "leaves":
        assert rounds_of("left", rounds) == [3]
        assert rounds_of("joined", rounds) == ([4] if fault.rounds else [])


def test_stock_is_fedavg_of_the_mean_updates(config: dict[str, Value]) -> None:
    """FedAvg over honest replies is the weighted mean; its words follow from what it returns."""
    grid, rounds = disturbed(UNDISTURBED, config)
    assert not rounds_of("dropped", rounds)
    honest = grid.replies
    weights = honest_weights(honest)
    assert len(weights) == 4
    for name, found in aggregate(as_stock(honest, weights)).items():
        sums = [m.content.array_records["arrays"][name].numpy().astype("f8") for m in honest]
        np.testing.assert_allclose(found, sum(sums) / sum(weights.values()), atol=1e-7)
    assert outcome(honest, honest) == {"text": "moves 0 of a step off", "off": 0.0}

    def said(name: str) -> Any:
        [fault] = [f for f in FAULTS if f.name == name]
        return outcome(disturbed(fault, config)[0].replies, honest)

    assert said("inf")["text"].startswith("1 of ")
    assert said("missing array")["text"].startswith("raises InconsistentMessageReplies")
    assert said("wrong shape")["text"].startswith("raises ValueError")
    assert said("wrong dtype")["off"] < 1e-6  # FedAvg adds float64 to float32 and says nothing
    assert said("update x 1e6")["off"] > 1e4
    assert 0 < said("silence past the deadline")["off"] < 2


def test_the_grid_is_an_undisturbed_one_before_the_fault(config: dict[str, Value]) -> None:
    def loss(fault: Fault) -> list[float]:
        return [entry["loss"] for entry in disturbed(fault, config)[1][1:]]

    honest, bad = loss(UNDISTURBED), loss(FAULTS[0])
    assert honest[0] == bad[0]
    assert honest[1:] != bad[1:]
