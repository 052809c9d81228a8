"""What `feddmmr federation` tells its nodes; the programs themselves: tests/e2e."""

import os
import sys
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from client_app.node import open_node
from feddmmr.launch.federation import THREADS, Federation
from feddmmr.launch.federation_command import federation, node_configs
from shared_model.errors import ConfigError
from shared_model.protocol.config import default_config
from tests.support.paths import ROOT

CONFIG = default_config(ROOT / "pyproject.toml")


def test_each_node_is_told_its_data_and_its_device(demo_folder: Path) -> None:
    plain = [parse_config_args([told]) for told in node_configs([demo_folder, demo_folder])]
    assert [node["name"] for node in plain] == ["node-0", "node-1"]
    assert not any("device" in node for node in plain)
    told = node_configs([demo_folder, demo_folder], "cpu,auto")
    nodes = [open_node(parse_config_args([each]), CONFIG | {"device": "cuda"}) for each in told]
    assert [node.settings.device for node in nodes] == ["cpu", "auto"]
    assert all(node.placement.folder == demo_folder for node in nodes)


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu,cpu", "cpu,", "cpu,gpu", "cuda:0 cuda:1"])
def test_devices_that_do_not_fit_are_refused_before_anything_starts(
    demo_folder: Path, tmp_path: Path, devices: str
) -> None:
    with pytest.raises(ConfigError, match=r"not a device for each node.*expected 2 ") as raised:
        federation(tmp_path / "new", [demo_folder, demo_folder], devices=devices)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_left_as_it_is(demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("of another federation")
    with pytest.raises(ConfigError, match=r"there already.*expected a new one.*name another"):
        federation(tmp_path, [demo_folder])
    assert [left.name for left in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("asked", [None, "7"])
def test_sites_share_the_cores_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None
) -> None:
    monkeypatch.delenv(THREADS, raising=False)
    if asked:
        monkeypatch.setenv(THREADS, asked)
    share = str(max(1, len(os.sched_getaffinity(0)) // 3))
    running = Federation(tmp_path, ["", "", ""])
    for name, alone in {"client-apps-0": share, "server-apps": "None"}.items():
        tell = f"import os; print(os.environ.get({THREADS!r}))"
        running.start(name, [sys.executable, "-c", tell]).wait()
        assert running.log(name).split() == [asked or alone]
