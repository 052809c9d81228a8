"""A node works on the device that its owner gave it, and says which one it lacks."""

from pathlib import Path

import pytest
import torch

from client_app.node import open_node
from shared_model.errors import ConfigError
from shared_model.protocol.config import Value, default_config
from tests.support.paths import ROOT

CONFIG = default_config(ROOT / "pyproject.toml")
LACKING = f"cuda:{torch.cuda.device_count()}"


def opened(folder: Path, device: Value, of_run: Value) -> str:
    site = {"data-dir": str(folder), "name": "site-a", "device": device}
    return open_node(site, CONFIG | {"device": of_run}).settings.device


def test_its_own_device_is_used_whatever_the_run_has(demo_folder: Path) -> None:
    assert opened(demo_folder, "cpu", LACKING) == "cpu"
    assert opened(demo_folder, "auto", "cpu") == "auto"


def test_a_device_that_it_lacks_is_named(demo_folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no such GPU.*site-a.*got {LACKING}") as raised:
        opened(demo_folder, LACKING, "cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:0,cuda:1", 1, True, ""])
def test_what_is_no_device_is_refused(demo_folder: Path, device: Value) -> None:
    with pytest.raises(ConfigError, match=r"no device.*node-config key 'device'"):
        opened(demo_folder, device, "cpu")
