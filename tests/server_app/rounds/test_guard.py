"""A node that sends the opposite of what it learned, in real rounds: found, named, left out."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from benchmarks.fault_parts.cases import FAULTS, UNDISTURBED, Fault, FaultyGrid
from server_app.app import federate
from server_app.rounds.loop import StageRun
from shared_model.protocol.config import Value, default_config, parse_settings
from shared_model.protocol.wire import Wire
from tests.support.paths import ROOT
from tests.support.rounds import without_seconds

NODES, BAD = 5, 1
[FLIPPED] = [fault for fault in FAULTS if fault.name == "update x -1"]
SMALL: dict[str, Value] = {"stage": 1, "hidden-size": 32, "num-blocks": 1, "fraction-train": 0.3}
ROUNDS: dict[str, Value] = {"num-rounds": 56, "evaluate-every": 56, "evaluate-users": 20}


@pytest.fixture
def config(tmp_path: Path, demo_folder: Path) -> dict[str, Value]:
    where = {"home": str(tmp_path), "dataset": str(demo_folder)}
    return default_config(ROOT / "pyproject.toml") | SMALL | ROUNDS | where


def run(config: dict[str, Value], fault: Fault = FLIPPED) -> dict[str, Any]:
    nodes: list[dict[str, Value]] = [
        {"partition-id": i, "num-partitions": NODES} for i in range(NODES)
    ]
    grid = FaultyGrid(nodes, config, fault, BAD, start=10)
    document: dict[str, Any] = federate(grid, parse_settings(config))
    return document


def left_out(document: dict[str, Any]) -> dict[int, dict[str, str]]:
    """By round: who, and why."""
    return {
        entry["round"]: {drop["node"]: drop["reason"] for drop in entry["dropped"]}
        for entry in document["stages"]["1"]["rounds"]
        if entry["dropped"]
    }


@pytest.mark.parametrize(
    "wire", [{}, {"wire-dtype": "int8", "candidates": 100}], ids=["float32", "int8, rows"]
)
def test_a_flipped_sign_is_found_and_nobody_else(
    config: dict[str, Value], wire: dict[str, Value]
) -> None:
    found = left_out(run(config | wire))
    assert 30 < min(found) < 56
    assert list(found) == list(range(min(found), 57))
    assert all(list(who) == [f"partition-{BAD}"] for who in found.values())
    assert "is their sign right?" in found[56][f"partition-{BAD}"]


def test_one_wild_round_does_not_make_a_liar(config: dict[str, Value]) -> None:
    """What is left out for its length is not remembered as a direction."""
    [longer] = [fault for fault in FAULTS if fault.name == "update x 1e6"]

    def wild(content: RecordDict, wire: Wire) -> None:
        for fault in (FLIPPED, longer):
            assert fault.change
            fault.change(content, wire)

    found = left_out(run(config, Fault("wild", wild, rounds=1)))
    assert list(found) == [10]
    assert "update norm" in found[10][f"partition-{BAD}"]


def test_without_it_nobody_is_left_out(config: dict[str, Value]) -> None:
    assert not left_out(run(config, UNDISTURBED))


def test_other_aggregations_leave_it_in(config: dict[str, Value]) -> None:
    assert not left_out(run(config | {"aggregation": "mean"}))


def test_who_was_found_is_known_after_a_resume(
    config: dict[str, Value], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut between two saved rounds, while turns are counted."""
    config |= {"checkpoint-every": 12}
    whole = run(config | {"run": "whole"})
    original = StageRun._finish_round

    def dies(self: StageRun, entry: Any, *rest: Any) -> None:
        original(self, entry, *rest)
        if entry["round"] == 29:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageRun, "_finish_round", dies)
    with pytest.raises(KeyboardInterrupt):
        run(config | {"run": "cut"})
    monkeypatch.undo()
    resumed = run(config | {"run": "cut"})
    assert left_out(resumed) == left_out(whole) != {}
    assert without_seconds(resumed) == without_seconds(whole)
