"""All stages with rows and int8 or bfloat16: what holds with float32 holds with fewer bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from feddmmr.launch.in_process import InProcessGrid, run_in_process
from shared_model.protocol import messages
from shared_model.stages import TABLE
from tests.conftest import CutError
from tests.support.staged import NODES, SETTINGS, watching, write_mixed

FORMAT = {"wire_dtype": "int8", "candidates": 8, "num_rounds": 2}
DTYPES = ["int8", "bfloat16"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("formats") / "dataset")


def go(dataset: Path, home: Path, nodes: int = NODES, **overrides: Any) -> dict[str, Any]:
    given = {"home": str(home), "dataset": str(dataset)}
    return run_in_process(nodes, **(SETTINGS | FORMAT | given | overrides))


def stop() -> None:
    raise CutError


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_stages_resumed_or_not(dataset: Path, tmp_path: Path, dtype: str) -> None:
    """Invariants 2, 5 and 9."""
    with watching() as seen:
        manifest = go(dataset, tmp_path / "whole", wire_dtype=dtype)
    stages = manifest["stages"]
    for number in ("2", "3"):
        first, parent = stages[number]["rounds"][0]["valid"], stages[str(int(number) - 1)]["valid"]
        for figure in ("hr@10", "ndcg@10", "mrr"):
            one, other = (group["all"]["full"][figure] for group in (first, parent))
            assert one == pytest.approx(other, abs=1e-6)
        assert sorted(seen.frozen_sent(int(number))) == [1000, 1001, 1002]  # once to each
    home = tmp_path / "cut"
    with watching((3, 1), stop), pytest.raises(CutError):
        go(dataset, home, wire_dtype=dtype)
    again = go(dataset, home, wire_dtype=dtype)["stages"]
    assert [s["sha256"] for s in again.values()] == [s["sha256"] for s in stages.values()]
    assert [s["test"] for s in again.values()] == [s["test"] for s in stages.values()]


@pytest.mark.parametrize(("dtype", "apart"), [("int8", 0.04), ("bfloat16", 0.01)])
def test_topology_changes_no_more_than_the_rounding(
    dataset: Path, tmp_path: Path, dtype: str, apart: float
) -> None:
    """Invariant 1: who takes part and what competes is the same, and each node rounds its sum."""
    updates, settings = [], {"stage": 1, "num_rounds": 1, "server_optimizer": "sgd"}
    for nodes in (1, 7):
        home = tmp_path / str(nodes)
        with watching() as seen:
            record = go(
                dataset, home, nodes, wire_dtype=dtype, server_learning_rate=1.0, **settings
            )
        first, last = (seen.arrays[1, round_] for round_ in (0, 1))
        updates.append({name: value - first[name] for name, value in last.items()})
        assert record["stages"]["1"]["rounds"][1]["participants"] > 7
    for name, one in updates[0].items():
        error = (one - updates[1][name]).norm() / one.norm()
        assert error < (apart if one.ndim == 2 else 1e-4), name
    assert not torch.equal(updates[0][TABLE], updates[1][TABLE])


@pytest.mark.parametrize("fault", ["float32", "nan", "no exponents", "rows of others", "no rows"])
def test_one_bad_node_is_dropped(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Invariant 10."""
    handle = InProcessGrid._handle

    def handled(self: InProcessGrid, message: Any) -> Any:
        reply = handle(self, message)
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        if node != 1001 or kind != messages.TRAIN:
            return reply
        content = reply.content
        arrays = messages.from_record(content.array_records["arrays"])
        table, exponents = arrays[TABLE], arrays[TABLE + "/exponents"]
        if fault == "float32":
            arrays[TABLE] = table.float()
        elif fault == "nan":
            exponents[0], table[0] = 127, 127
        elif fault == "no exponents":
            del arrays[TABLE + "/exponents"]
        elif fault == "rows of others":
            arrays[messages.ROWS] = torch.arange(1000, 1000 + len(table), dtype=torch.int32)
        else:
            del arrays[messages.ROWS]
        content.array_records["arrays"] = messages.to_record(arrays)
        return Message(content, reply_to=message)

    monkeypatch.setattr(InProcessGrid, "_handle", handled)
    record = go(dataset, tmp_path / "home", stage=1, num_rounds=1)["stages"]["1"]
    assert record["status"] == "complete"
    assert [drop["node"] for drop in record["rounds"][1]["dropped"]] == ["partition-1"]
    assert record["rounds"][1]["participants"] > 0
