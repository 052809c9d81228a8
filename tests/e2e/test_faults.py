"""Nodes that fail, stay silent, disagree or have bad data: named, and harmless or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from client_app.data.dataset import Dataset
from feddmmr.launch.in_process import InProcessGrid
from server_app.app import federate
from shared_model.errors import NodeError, RoundError
from shared_model.protocol.config import default_config, parse_settings
from tests.support.paths import ROOT


def test_a_silent_node_is_named_and_the_run_goes_on(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(self: InProcessGrid, messages: Any) -> list[str]:
        silent = [m.metadata for m in messages if m.metadata.message_type == "train"][1:2]
        return list(push_all(self, [m for m in messages if m.metadata not in silent]))

    push_all = InProcessGrid.push_messages
    monkeypatch.setattr(InProcessGrid, "push_messages", push)
    stage = run(3)["stages"]["1"]
    assert stage["status"] == "complete"
    for entry in stage["rounds"][1:]:
        assert [drop["node"] for drop in entry["dropped"]] == ["partition-1"]
        assert entry["nodes"] == 2


def test_a_round_is_tried_again_and_then_the_run_stops(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries: list[int] = []
    push_all = InProcessGrid.push_messages

    def push(self: InProcessGrid, messages: Any) -> list[str]:
        kept = list(messages)
        if kept[0].metadata.message_type == "train":
            tries.append(kept[0].content["plan"]["round"])
            if tries[-1] == 2 and len(tries) < limit:
                return []  # the only node is silent
        return list(push_all(self, kept))

    monkeypatch.setattr(InProcessGrid, "push_messages", push)
    limit = 3
    assert run(1, run="once")["stages"]["1"]["status"] == "complete"
    assert tries == [1, 2, 2, 3]
    tries.clear()
    limit = 99
    with pytest.raises(RoundError):
        run(1, run="twice")
    assert tries == [1, 2, 2]
    path = tmp_path / "home/runs/twice/manifest.json"
    assert json.loads(path.read_text())["stages"]["1"]["status"] == "failed"
    limit = 0
    assert run(1, run="twice")["stages"]["1"]["status"] == "complete"


def test_a_node_that_fails_once_in_a_retried_round_is_named(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_all, failures = InProcessGrid.push_messages, [1, 1]

    def push(self: InProcessGrid, messages: Any) -> list[str]:
        kept = list(messages)
        if kept[0].metadata.message_type == "train" and failures:
            failures.pop()
            kept = kept[: len(failures)]  # one node of three answers, then none
        return list(push_all(self, kept))

    monkeypatch.setattr(InProcessGrid, "push_messages", push)
    with pytest.raises(RoundError):
        run(3)
    failures.append(1)
    stage = run(3)["stages"]["1"]
    assert [drop["node"] for drop in stage["rounds"][1]["dropped"]] == [
        "partition-0",
        "partition-1",
        "partition-2",
    ]
    assert stage["rounds"][1]["nodes"] == 3


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("a", 0, 1), ("b", 0, 1)], "same name or partition"),
        ([("a", 0, 2), ("a", 1, 2)], "same name or partition"),
        ([("a", 0, 2), ("b", 1, 2), ("c", 2, 3)], "disagree on the number of partitions"),
        ([("a", 0, 2)], r"partitions \[1\] of 2"),
    ],
)
def test_nodes_that_do_not_belong_together_are_refused(
    tmp_path: Path, small_dataset: Dataset, nodes: list[tuple[str, int, int]], message: str
) -> None:
    overrides = {"home": str(tmp_path / "home"), "dataset": str(small_dataset.folder)}
    config = default_config(ROOT / "pyproject.toml") | overrides
    config["node-timeout"] = 0.5
    grid = InProcessGrid(
        [{"name": n, "partition-id": p, "num-partitions": of} for n, p, of in nodes], config
    )
    with pytest.raises(NodeError, match=message):
        federate(grid, parse_settings(config))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "node count"])
def test_bad_data_is_one_line_and_leaves_nothing(
    run: Any, tmp_path: Path, small_dataset: Dataset, damage: str
) -> None:
    broken = tmp_path / "broken"
    nodes = 1
    if damage == "cut":
        shutil.copytree(small_dataset.folder, broken)
        items = broken / "arrays" / "items.npy"
        items.write_bytes(items.read_bytes()[:-4])
    if damage == "node count":
        broken, nodes = small_dataset.folder, 21
    with pytest.raises(NodeError) as raised:
        run(nodes, dataset=str(broken))
    assert "\n" not in str(raised.value)
    assert str(broken) in str(raised.value)
    assert not (tmp_path / "home").exists()
