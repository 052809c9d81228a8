"""Real processes with TLS and keys: three nodes with folders of their own run all three stages.

Strangers get nothing, and a node that is killed in mid-run comes back. One federation for all of
it, since each message costs seconds: a node starts a Python for it.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.test_stages import SETTINGS, write_mixed
from tools.access import secured
from tools.federation import Federation, eventually, free_ports
from tools.importers import split_dataset
from tools.in_process import run_in_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc"),
    pytest.mark.skipif(
        "FEDDMMR_DEPLOYMENT" not in os.environ,
        reason="12 minutes of CPU, too many for CI: set FEDDMMR_DEPLOYMENT=1",
    ),
]

PROJECT, NODES = Path(__file__).parents[1], 3
# Heartbeats every 4 s instead of 20, the quickest that a SuperLink allows: it then notices within
# 20 s that a node was killed, not within 60. And a node looks for messages more often than every
# 3 s. The program has options for neither.
SUPERNODE = """
import time
from types import SimpleNamespace
from flwr.supercore import heartbeat
from flwr.supernode import cli, fleet_http_connection, start_client_internal
heartbeat.HEARTBEAT_DEFAULT_INTERVAL = fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = 10
start_client_internal.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 1)))
cli.flower_supernode()
"""
GIVEN: dict[str, Any] = {**SETTINGS, "num_rounds": 1, "seed": 1, "server_schedule": "constant"}
DEPLOYED: dict[str, Any] = {"home": "~/feddmmr", "run": "deployed", "min_participation": 1.0}
DEPLOYED["node_timeout"] = 300.0  # far more than it needs, as the waits below


class Closed(Federation):
    """The federation of this test, and the programs that nobody invited."""

    supernode = (sys.executable, "-c", SUPERNODE)

    def stranger(self, name: str, ca: Path, key: Path) -> "subprocess.Popen[bytes]":
        """A SuperNode with that certificate and key, which gives up soon."""
        reach = ["--superlink", self.address, "--root-certificates", str(ca)]
        quickly = ["--port", *free_ports(1), "--max-retries", "1"]
        identity = ["--auth-supernode-private-key", str(key)]
        return self.start(name, [*self.supernode, *reach, *identity, *quickly])

    def thief(self, ca: Path, secret: Path) -> "subprocess.Popen[bytes]":
        """A superexec that would run this federation's ServerApps, with another secret."""
        options = ["--root-certificates", str(ca), "--superexec-auth-secret-file", str(secret)]
        return self.start_superexec("thief", self.address, options)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The keys of this federation, and those of another one."""
    folder = tmp_path_factory.mktemp("keys")
    ours, theirs = folder / "ours", folder / "theirs"
    for each in (ours, theirs):
        subprocess.run([PROJECT / "docker/keys.sh", each, str(NODES)], check=True)
    return ours, theirs


def test_all_stages_with_tls_and_keys_equal_the_simulation(
    tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    ours, theirs = keys
    dataset, parts = write_mixed(tmp_path / "dataset"), tmp_path / "parts"
    split_dataset(dataset, parts, NODES)
    nodes = [f'data-dir="{parts}/part-{i}" name="site-{i}"' for i in range(NODES)]
    with Closed(tmp_path / "federation", nodes, secured(ours)) as federation:
        run_id = federation.submit(
            {key.replace("_", "-"): value for key, value in (GIVEN | DEPLOYED).items()}, PROJECT
        )
        federation.follow(run_id)
        # Until round 0 is saved, and round 1 begins.
        eventually(lambda: federation.manifest("deployed") or federation.finished(run_id), 300)
        federation.kill(2)
        keyless = federation.stranger("keyless", ours / "ca.crt", theirs / "node-0" / "key")
        deceived = federation.stranger("deceived", theirs / "ca.crt", ours / "node-2" / "key")
        thief = federation.thief(ours / "ca.crt", theirs / "superlink" / "superexec-secret")
        # A node with a key is refused as long as the SuperLink believes that it is still there.
        eventually(lambda: "waiting for site-2" in federation.log("user"), 300)
        federation.restart(2)
        outcome = federation.wait(run_id, 1800)
        assert outcome.status == "finished:completed", outcome.details
        manifest = federation.manifest("deployed")
        assert keyless.wait(60) == deceived.wait(60) == 1
        assert "Failed to activate SuperNode" in federation.log("keyless")
        assert "CERTIFICATE_VERIFY_FAILED" in federation.log("deceived")
        thief.wait(60)
        assert "SuperExec authentication failed" in federation.log("superlink")
        assert not (federation.folder / "thief" / "flwr" / "apps").exists()
    check_the_killed_node(manifest["stages"]["1"]["rounds"])
    home = tmp_path / "undisturbed"
    undisturbed = run_in_process(
        NODES, dataset=str(dataset), home=str(home), run="deployed", **GIVEN
    )
    for stage in ("1", "2", "3"):
        here, there = (each["stages"][stage] for each in (manifest, undisturbed))
        assert here["status"] == there["status"] == "complete"
        assert here["best_round"] == there["best_round"] == 1  # the trained arrays, not the first
        assert difference(
            federation.home / "runs/deployed" / here["checkpoint"],
            home / "runs/deployed" / there["checkpoint"],
        ) <= 1e-5  # fmt: skip


def check_the_killed_node(rounds: list[dict[str, Any]]) -> None:
    """The round in which it died waited for it, and lost nothing of what its users teach."""
    before, after = rounds
    assert after["left"] == after["joined"] == ["site-2"]
    assert [drop["node"] for drop in after["dropped"]] == ["site-2"]
    assert before["dropped"] == []
    assert not {"left", "joined"} & before.keys()
    assert [entry["nodes"] for entry in rounds] == [NODES, NODES]


def difference(here: Path, there: Path) -> float:
    """The largest one between two checkpoints of the same names."""
    ours, theirs = load_file(here), load_file(there)
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)
