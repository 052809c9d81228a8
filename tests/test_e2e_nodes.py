"""A real SuperLink and three real SuperNodes, one of which is killed and started again."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from client_app.data import Dataset
from tests.conftest import SMALL
from tools.federation import Federation, eventually
from tools.in_process import run_in_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc"),
]

PROJECT, NODES = Path(__file__).parents[1], 3
# Heartbeats every 4 s instead of 20, the quickest that a SuperLink allows: it then notices within
# 20 s that a node was killed, not within 60. The program has no option for it.
SUPERNODE = """
from flwr.supercore import heartbeat
from flwr.supernode import cli, fleet_http_connection
heartbeat.HEARTBEAT_DEFAULT_INTERVAL = fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = 10
cli.flower_supernode()
"""
# One round is enough, since each message costs seconds: every node starts a Python for it. All must
# answer, so the round in which one dies waits for it, and loses nothing of what its users teach.
SETTINGS: dict[str, Any] = {
    **SMALL,
    "stage": 1,
    "num_rounds": 1,
    "seed": 1,
    "server_optimizer": "sgd",
    "server_learning_rate": 100.0,  # here the round is better than none, so its arrays are kept
    "server_schedule": "constant",
}
DEPLOYED: dict[str, Any] = {"home": "~/feddmmr", "run": "killed", "min_participation": 1.0}
DEPLOYED["node_timeout"] = 300.0  # far more than it needs, as the waits below


class Watchful(Federation):
    """A federation that soon notices who is gone."""

    supernode = (sys.executable, "-c", SUPERNODE)


def test_a_node_killed_in_mid_run_comes_back_and_nothing_is_lost(
    tmp_path: Path, small_dataset: Dataset
) -> None:
    given = SETTINGS | {"dataset": str(small_dataset.folder)}
    nodes = [f'partition-id={i} num-partitions={NODES} name="site-{i}"' for i in range(NODES)]
    with Watchful(tmp_path / "federation", nodes) as federation:
        keys = {key.replace("_", "-"): value for key, value in (given | DEPLOYED).items()}
        run_id = federation.submit(keys, PROJECT)
        # Until round 0 is saved, and round 1 begins.
        eventually(lambda: federation.manifest("killed") or federation.finished(run_id), 300)
        federation.kill(2)
        federation.restart(2)
        outcome = federation.wait(run_id)
        assert outcome.status == "finished:completed", outcome.details
        manifest = federation.manifest("killed")
    stage = manifest["stages"]["1"]
    before, after = stage["rounds"]
    assert after["left"] == after["joined"] == ["site-2"]
    assert [drop["node"] for drop in after["dropped"]] == ["site-2"]
    assert before["dropped"] == []
    assert not {"left", "joined"} & before.keys()
    assert [entry["nodes"] for entry in (before, after)] == [NODES, NODES]
    home = tmp_path / "undisturbed"
    undisturbed = run_in_process(NODES, home=str(home), run="killed", **given)
    assert stage["best_round"] == undisturbed["stages"]["1"]["best_round"] == 1
    here = load_file(federation.home / "runs/killed" / stage["checkpoint"])
    there = load_file(home / "runs/killed" / undisturbed["stages"]["1"]["checkpoint"])
    assert here.keys() == there.keys()
    assert max(float(np.abs(here[name] - there[name]).max()) for name in here) <= 1e-5
