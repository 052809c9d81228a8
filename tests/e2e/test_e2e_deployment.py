"""Real processes with TLS and keys: two nodes with folders of their own run all three stages.

Strangers get nothing, a node that is killed in mid-run comes back, and all that the nodes send is
looked through. One federation for all of it, since starting one costs most of the time.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from client_app.data.dataset import open_dataset
from feddmmr.data.importers import split_dataset
from feddmmr.launch.access import secured
from feddmmr.launch.federation import Federation, eventually, free_ports
from feddmmr.launch.federation_command import node_configs
from shared_model.stages import names_of, stage_of
from tests.support.deployed import DEPLOYED, RUN, TRAINED, check_models
from tests.support.paths import ROOT
from tests.support.recording_proxy import RecordingProxy
from tests.support.secrets_of_users import secrets_of
from tests.support.staged import write_mixed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc"),
]

PROJECT, NODES = ROOT, 2  # one that is killed, and one that is not
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
# No GPU is needed: the nodes have devices of their own, as `federation --devices cpu,cpu` says.
GIVEN: dict[str, Any] = TRAINED | DEPLOYED | {"home": "~/feddmmr", "device": "cuda"}
DEVICES = "cpu,cpu"

RECEIVED = "Receiving: "  # what a SuperNode prints of each message
# Names are draws. Under others an entry's gradient cancels down to Adam's eps, which turns another
# order of float32 sums into 1.2e-5 of a parameter; under these it is 5e-7.
USERS = [f"somebody-{number:02d}-who-is-a-stranger" for number in range(24)]


class Closed(Federation):
    """The federation of this test, and the programs that nobody invited."""

    supernode = (sys.executable, "-c", SUPERNODE)
    proxy: RecordingProxy

    def begins(self, stage: str, run_id: str) -> float:
        """When that stage has scored its initial arrays, and begins to train."""

        def stages() -> object:
            return self.finished(run_id) or stage in self.manifest(RUN).get("stages", {})

        eventually(stages, 1800)
        return time.monotonic()

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


@pytest.fixture
def federation(tmp_path: Path, keys: tuple[Path, Path]) -> Iterator[Closed]:
    """Not yet started, with `dataset` in three parts, and a proxy before the SuperLink."""
    dataset, parts = write_mixed(tmp_path / "dataset", USERS.__getitem__), tmp_path / "parts"
    split_dataset(dataset, parts, NODES)
    nodes = node_configs([parts / f"part-{i}" for i in range(NODES)], DEVICES)
    closed = Closed(tmp_path / "federation", nodes, secured(keys[0]))
    proxy = RecordingProxy(closed.address, keys[0])
    closed.nodes_reach, closed.proxy = proxy.address, proxy
    yield closed
    proxy.close()


def test_all_stages_with_tls_and_keys_equal_the_simulation(
    federation: Closed, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    ours, theirs = keys
    dataset = tmp_path / "dataset"
    with federation:
        given = {key.replace("_", "-"): value for key, value in GIVEN.items()}
        run_id = federation.submit(given, PROJECT)
        federation.follow(run_id)
        # Until round 0 is saved, and round 1 begins.
        eventually(lambda: federation.manifest(RUN) or federation.finished(run_id), 300)
        federation.kill(1)
        keyless = federation.stranger("keyless", ours / "ca.crt", theirs / "node-0" / "key")
        deceived = federation.stranger("deceived", theirs / "ca.crt", ours / "node-1" / "key")
        thief = federation.thief(ours / "ca.crt", theirs / "superlink" / "superexec-secret")
        # A node with a key is refused as long as the SuperLink believes that it is still there.
        eventually(lambda: "waiting for node-1" in federation.log("user"), 300)
        federation.restart(1)
        second, third = (federation.begins(stage, run_id) for stage in ("2", "3"))
        outcome = federation.wait(run_id, 2400)
        assert outcome.status == "finished:completed", outcome.details
        manifest = federation.manifest(RUN)
        assert keyless.wait(60) == 1
        assert "Failed to activate SuperNode" in federation.log("keyless")
        assert "CERTIFICATE_VERIFY_FAILED" in federation.log("deceived")
        assert deceived.poll() in (None, 1)  # it goes on trying for a while
        told = [
            name for name in ("keyless", "deceived", "node-0") if RECEIVED in federation.log(name)
        ]
        assert told == ["node-0"]
        thief.wait(60)
        assert "SuperExec authentication failed" in federation.log("superlink")
        assert not (federation.folder / "thief" / "flwr" / "apps").exists()
    check_the_killed_node(manifest["stages"]["1"]["rounds"])
    check_what_was_sent(federation, manifest, dataset, second, third)
    check_models(manifest, federation.home, dataset, tmp_path / "undisturbed")


def check_the_killed_node(rounds: list[dict[str, Any]]) -> None:
    """The round in which it died waited for it, and lost nothing of what its users teach."""
    before, after = rounds
    assert after["left"] == after["joined"] == ["node-1"]
    assert [drop["node"] for drop in after["dropped"]] == ["node-1"]
    assert before["dropped"] == []
    assert not {"left", "joined"} & before.keys()
    assert [entry["nodes"] for entry in rounds] == [NODES, NODES]


def check_what_was_sent(
    federation: Closed, manifest: dict[str, Any], dataset: Path, second: float, third: float
) -> None:
    """Nothing of a user in any stage, and in Stage 2 updates of its groups alone."""
    everything = federation.proxy.between(0.0, time.monotonic())
    opened = open_dataset(dataset)
    assert opened.num_users == len(USERS)
    found = [what for what, secret in secrets_of(opened, USERS) if secret in everything]
    assert found == []
    stage = stage_of(2)
    record = manifest["stages"]["2"]
    arrays = load_file(federation.home / "runs" / RUN / record["checkpoint"])
    arrays = {name.removeprefix("model/"): value for name, value in arrays.items()}
    sent = federation.proxy.between(second, third)
    for name in names_of(arrays, stage.trained):
        assert name.encode() in sent  # or else all of this would say nothing
    for name in names_of(arrays, stage.frozen):
        assert name.encode() not in sent
        values = arrays[name].tobytes()[-64:]  # a table's first row is padding
        assert any(values)
        assert values not in everything
