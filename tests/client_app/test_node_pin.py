"""A node that is pinned to its features refuses to work with others."""

from pathlib import Path

import pytest

from client_app.data.dataset import open_dataset
from client_app.node import open_node
from shared_model.errors import ConfigError
from shared_model.protocol.config import default_config
from tests.support.paths import ROOT

CONFIG = default_config(ROOT / "pyproject.toml")


def test_a_node_is_pinned_to_its_features(demo_folder: Path) -> None:
    sha256 = open_dataset(demo_folder).features_sha256
    site = {"data-dir": str(demo_folder), "name": "site-a"}
    assert len(open_node(site | {"features-sha256": sha256}, CONFIG).rows) > 0
    for pinned in ("0" * 64, "", 7):
        with pytest.raises(ConfigError, match=r"site-a.*'features-sha256'") as raised:
            open_node(site | {"features-sha256": pinned}, CONFIG)
        assert sha256[:12] in str(raised.value)
        assert "\n" not in str(raised.value)
