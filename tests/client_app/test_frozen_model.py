"""A resident model is given its frozen groups once, and others when other ones are asked for."""

from pathlib import Path

import pytest
import torch

from client_app import node as node_module
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


def test_what_a_model_has_is_not_read_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = frozen(node, 0.5), frozen(node, 1.0)
    shas = arrays_sha256(first), arrays_sha256(second)
    model = node.model(STAGE)
    assert not node.load_frozen(model, shas[0], None)  # nobody has sent any
    assert node.load_frozen(model, shas[0], first)
    assert node.load_frozen(model, shas[1], second)
    assert node.load_frozen(model, shas[0], None)  # kept on the disk
    monkeypatch.setattr(node_module, "read_frozen", lambda *_: pytest.fail("read again"))
    assert node.load_frozen(node.model(STAGE), shas[0], None)
    for name, value in read_groups(model, STAGE.frozen).items():
        assert torch.equal(value, first[name])


def test_arrays_that_are_not_what_was_asked_for_leave_no_trust(node: Node) -> None:
    arrays, model = frozen(node, 0.5), node.model(STAGE)
    node.load_frozen(model, arrays_sha256(arrays), arrays)
    with pytest.raises(NodeError):
        node.load_frozen(model, "0" * 64, arrays)
    assert model.frozen_sha256 == arrays_sha256(arrays)  # what it still has
