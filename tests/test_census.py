"""Who belongs to a run: the census at its start."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Error, Message

from client_app.data import Dataset
from server_app.census import different_fields, take_census
from shared_model.config import Settings, Value, default_config, parse_settings
from shared_model.errors import NodeError
from tools.in_process import InProcessGrid

DEFAULTS = default_config(Path(__file__).parents[1] / "pyproject.toml")


class Stuttering(InProcessGrid):
    """A grid whose first node is gone, for Flower too, by the time that it is first asked."""

    gone = True

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if node != 1000 or self.gone]

    def _handle(self, message: Message) -> Message:
        if message.metadata.dst_node_id != 1000:
            return super()._handle(message)
        self.gone = False
        reply = Message(Error(5, "Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply


def prepared(kind: type[InProcessGrid], folder: Path, home: Path) -> tuple[InProcessGrid, Settings]:
    """Three nodes; the first and the last one are told that they host partition 0."""
    given: dict[str, Value] = {"home": str(home), "dataset": str(folder), "node-timeout": 0.5}
    nodes: list[dict[str, Value]] = [
        {"partition-id": partition, "num-partitions": 2, "name": f"site-{partition}"}
        for partition in (0, 1, 0)
    ]
    return kind(nodes, DEFAULTS | given), parse_settings(DEFAULTS | given)


def test_a_node_that_leaves_while_it_is_asked_makes_room_for_its_successor(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    """As when a SuperNode is killed and started again just before the run."""
    census = take_census(*prepared(Stuttering, small_dataset.folder, tmp_path))
    assert {node: report.name for node, report in census.nodes.items()} == {
        1002: "site-0",
        1001: "site-1",
    }
    with pytest.raises(NodeError, match="two nodes have the same name"):
        take_census(*prepared(InProcessGrid, small_dataset.folder, tmp_path))


def test_a_place_keeps_its_order_and_its_data(small_dataset: Dataset, tmp_path: Path) -> None:
    census = take_census(*prepared(Stuttering, small_dataset.folder, tmp_path))
    before, names = census.dataset(), [report.name for report in census.nodes.values()]
    census.replace(1002, 5)
    assert list(census.nodes) == [5, 1001]
    assert [report.name for report in census.nodes.values()] == names
    assert census.dataset() == before
    assert before["users"] == 20


def test_reports_differ_in_fields_that_have_names(small_dataset: Dataset, tmp_path: Path) -> None:
    census = take_census(*prepared(Stuttering, small_dataset.folder, tmp_path))
    one, other = census.nodes.values()
    assert different_fields(one, one) == []
    assert {"name", "partition", "history_digest"} <= set(different_fields(one, other))
    assert "catalogue_sha256" not in different_fields(one, other)
