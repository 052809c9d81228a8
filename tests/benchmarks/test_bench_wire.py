"""Bytes on the wire: what invariant 5 promises, counted from serialised messages."""

import json
from pathlib import Path

import pytest

from benchmarks.populations import some_users
from benchmarks.wire import Sent, main, measure, summary
from shared_model.protocol.config import Value, default_config
from tests.support.paths import ROOT

CONFIG = default_config(ROOT / "pyproject.toml")
TINY: dict[str, Value] = {"hidden-size": 16, "num-blocks": 1, "max-length": 10, "negatives": 8}
TINY |= {"targets-per-user": 4, "memory-long-term": 4, "memory-novelty": 0.3, "num-rounds": 3}
TINY |= {"fraction-train": 0.3, "evaluate-every": 3}


@pytest.fixture(scope="module")
def folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_users(demo_folder, tmp_path_factory.mktemp("some") / "users", 20)


@pytest.fixture(scope="module")
def sent(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Sent]:
    home = tmp_path_factory.mktemp("home")
    return measure(CONFIG | TINY | {"home": str(home), "dataset": str(folder)}, 2)


@pytest.mark.parametrize("stage", [2, 3])
def test_only_the_stages_groups_travel(sent: list[Sent], stage: int) -> None:
    """Up and down: the trained groups and within 2% of them plus 2 KB."""
    training = [one for one in sent if one.stage == stage and one.training]
    assert len(training) == 3 * 2
    for one in training:
        assert one.trained < one.up <= 1.02 * one.trained + 2048
        assert one.trained < one.down <= 1.02 * one.trained + 2048


@pytest.mark.parametrize("stage", [2, 3])
def test_what_is_frozen_goes_down_once_a_node(sent: list[Sent], stage: int) -> None:
    brought = [one for one in sent if one.stage == stage and one.frozen]
    assert len({one.node for one in brought}) == len(brought) == 2
    others = [one for one in sent if one.stage == stage and one not in brought]
    assert min(one.down for one in brought) > max(one.down for one in others)


def test_the_summary_counts_per_node_and_round() -> None:
    def one(round_: int, node: int, down: int, frozen: int = 0) -> Sent:
        return Sent(2, round_, bool(round_), node, down, 110, 100, frozen)

    rows = summary([one(0, 1, 500, 300), one(0, 2, 500, 300), one(1, 1, 120), one(1, 2, 120)])
    assert rows == [
        {
            "stage": 2,
            "down": 120,
            "up": 110,
            "groups": 100,
            "frozen": 300,
            "frozen_sent": 2,
            "nodes": 2,
            "whole_model": 400,
            "share": 230 / 800,
        }
    ]


def test_the_command_writes_json(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "wire.json"
    given = ["--out", str(out), "--dataset", str(folder), "--rounds", "2"]
    main([*given, "--set", *(f"{k}={v}" for k, v in TINY.items() if k != "num-rounds")])
    assert [row["stage"] for row in json.loads(out.read_text())] == [1, 2, 3]
    assert "of sending it" in capsys.readouterr().out
