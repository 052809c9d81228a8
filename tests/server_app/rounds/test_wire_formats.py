"""All stages with int8 and rows: what holds with float32 holds with fewer bits."""

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


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("formats") / "dataset")


def go(dataset: Path, home: Path, **overrides: Any) -> dict[str, Any]:
    given = {"home": str(home), "dataset": str(dataset)}
    return run_in_process(NODES, **(SETTINGS | FORMAT | given | overrides))


def stop() -> None:
    raise CutError


def test_all_stages_resumed_or_not(dataset: Path, tmp_path: Path) -> None:
    """Invariants 2, 5 and 9."""
    with watching() as seen:
        manifest = go(dataset, tmp_path / "whole")
    stages = manifest["stages"]
    for number in ("2", "3"):
        first, parent = stages[number]["rounds"][0]["valid"], stages[str(int(number) - 1)]["valid"]
        for figure in ("hr@10", "ndcg@10", "mrr"):
            one, other = (group["all"]["full"][figure] for group in (first, parent))
            assert one == pytest.approx(other, abs=1e-6)
        assert sorted(seen.frozen_sent(int(number))) == [1000, 1001, 1002]  # once to each
    home = tmp_path / "cut"
    with watching((3, 1), stop), pytest.raises(CutError):
        go(dataset, home)
    again = go(dataset, home)["stages"]
    assert [s["sha256"] for s in again.values()] == [s["sha256"] for s in stages.values()]
    assert [s["test"] for s in again.values()] == [s["test"] for s in stages.values()]


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
