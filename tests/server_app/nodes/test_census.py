"""Who belongs to a run: the census at its start."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error, Message

from client_app.data.dataset import Dataset
from feddmmr.launch.in_process import InProcessGrid
from server_app.nodes.census import different_fields, take_census
from shared_model.errors import NodeError
from shared_model.protocol.config import Settings, Value, default_config, parse_settings
from tests.conftest import MakeDataset
from tests.support.paths import ROOT

DEFAULTS = default_config(ROOT / "pyproject.toml")


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


@pytest.mark.parametrize("other", ["features", "catalogue"])
def test_a_node_with_other_features_or_items_is_refused_by_name(
    make_dataset: MakeDataset, tmp_path: Path, other: str
) -> None:
    features = {"text": np.eye(9, 4, dtype=np.float16), "visual": np.zeros((9, 3), np.float16)}
    changed = {**features, "text": np.eye(9, 4, 1, dtype=np.float16)}
    nodes: list[dict[str, Value]] = []
    for site in range(3):
        odd = site == 1
        dataset = make_dataset(
            {10 * site: [1, 2, 3, 4], 10 * site + 1: [5, 4, 3, 1]},
            num_items=9,
            features=changed if odd and other == "features" else features,
            cold={8} if odd and other == "catalogue" else set(),
        )
        nodes.append({"data-dir": str(dataset.folder), "name": f"site-{site}"})
    config = DEFAULTS | {"home": str(tmp_path)}
    differs = rf"{other}_sha256 differs from the others'; where: site-1;"
    with pytest.raises(NodeError, match=differs):
        take_census(InProcessGrid(nodes, config), parse_settings(config))
    del nodes[1]
    census = take_census(InProcessGrid(nodes, config), parse_settings(config))
    assert census.dataset()["users"] == 4


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
