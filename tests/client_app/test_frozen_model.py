"""A resident model has the frozen groups that were asked for, and says which they are."""

from pathlib import Path

import pytest
import torch

from client_app.node import Node, open_node
from shared_model.errors import NodeError
from shared_model.fingerprint import arrays_sha256
from shared_model.model.recommender import Arrays, read_groups
from shared_model.protocol.config import default_config
from shared_model.stages import STAGES
from tests.support.paths import ROOT
from tests.support.staged import write_mixed

STAGE = STAGES[2]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    config = default_config(ROOT / "pyproject.toml")
    config |= {"hidden-size": 8, "num-heads": 1, "num-blocks": 1, "max-length": 5, "stage": 2}
    config |= {"home": str(tmp_path / "home"), "dataset": str(write_mixed(tmp_path / "data"))}
    return open_node({"partition-id": 0, "num-partitions": 1}, config)


def frozen(node: Node, more: float) -> Arrays:
    arrays = read_groups(node.model(STAGE), STAGE.frozen)
    return {name: value.clone() + more for name, value in arrays.items()}


def test_a_model_has_what_was_asked_for(node: Node) -> None:
    first, second = frozen(node, 0.5), frozen(node, 1.0)
    shas = arrays_sha256(first), arrays_sha256(second)
    model = node.model(STAGE)
    assert not node.load_frozen(model, shas[0], None)  # nobody has sent any
    assert node.load_frozen(model, shas[0], first)
    assert node.load_frozen(model, shas[1], second)
    assert node.load_frozen(model, shas[0], None)  # kept on the disk
    assert model.frozen_sha256 == shas[0]
    for name, value in read_groups(model, STAGE.frozen).items():
        assert torch.equal(value, first[name])


def test_arrays_that_are_not_what_was_asked_for_leave_no_trust(node: Node) -> None:
    arrays, model = frozen(node, 0.5), node.model(STAGE)
    node.load_frozen(model, arrays_sha256(arrays), arrays)
    with pytest.raises(NodeError):
        node.load_frozen(model, "0" * 64, arrays)
    assert model.frozen_sha256 == arrays_sha256(arrays)  # what it still has
