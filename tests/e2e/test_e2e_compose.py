"""Docker Compose for real: images built from a base made here, two sites, all three stages.

The third site of the file is the same but for its number, by test_docker.py; each message to it
would cost seconds more.

BASE_IMAGE names a base that is there already, or that a registry has.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from feddmmr.data.importers import split_dataset
from feddmmr.launch.federation import eventually, free_ports
from tests.support.compose_files import COMPOSE
from tests.support.deployed import DEPLOYED, RUN, TRAINED, check_models
from tests.support.paths import ROOT
from tests.support.staged import write_mixed

PROJECT = ROOT
IMAGES, NODES = ("superlink", "supernode", "app"), 2
BUILT = ("superlink", "supernode-0", "client-app-0")  # one service of each image
SERVER = ("superlink", "server-app")
SITES = [f"{program}-{i}" for program in ("supernode", "client-app") for i in range(NODES)]
USER = 1000  # whom the containers run as
BASE = os.environ.get("BASE_IMAGE")


def _why_not() -> str:
    if COMPOSE is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "no Docker Engine, or no Compose"
    if BASE is None and (os.geteuid() or not shutil.which("debootstrap")):
        return "debootstrap, as root, makes the base image"
    return ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_why_not()), reason=_why_not())]


class Stack:
    """The services of docker/compose.yaml, with a folder, a port and images of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder / "federation", f"feddmmr-test-{os.getpid()}"
        (port,) = free_ports(1)
        self.environment = os.environ | {
            "FEDDMMR_FOLDER": str(self.folder),
            "FEDDMMR_PORT": port,
            "FEDDMMR_TAG": self.project,
            "FEDDMMR_UID": str(USER),
            "FEDDMMR_GID": str(USER),
            "BASE_IMAGE": BASE or f"{self.project}:base",
            "FLWR_HOME": str(folder / "flwr"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        connection = folder / "flwr" / "config.toml"
        connection.parent.mkdir()
        ca = json.dumps(str(self.folder / "keys" / "ca.crt"))
        connection.write_text(
            f'[superlink.compose]\naddress = "127.0.0.1:{port}"\nroot-certificates = {ca}\n'
        )

    def __call__(self, *command: str | Path, seconds: float = 300) -> str:
        """What a command prints, which has to succeed."""
        done = subprocess.run(
            list(map(str, command)),
            cwd=PROJECT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def compose(self, *arguments: str, seconds: float = 300) -> str:
        assert COMPOSE is not None
        file = str(PROJECT / "docker/compose.yaml")
        return self(*COMPOSE, "-p", self.project, "-f", file, *arguments, seconds=seconds)

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", service).strip()

    def state(self, service: str, field: str) -> str:
        return self("docker", "inspect", "-f", f"{{{{{field}}}}}", self.container(service)).strip()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A folder with data and keys, and the images; all of it is taken away again."""
    folder = tmp_path_factory.mktemp("compose")
    stack = Stack(folder)
    split_dataset(write_mixed(folder / "dataset"), stack.folder / "data", NODES)
    (stack.folder / "artifacts").mkdir()
    stack("docker/keys.sh", stack.folder / "keys", str(NODES))
    for path in [stack.folder, *stack.folder.rglob("*")]:
        os.chown(path, USER, USER)
    images = [f"feddmmr-{name}:{stack.project}" for name in IMAGES]
    try:
        if BASE is None:
            images.append(f"{stack.project}:base")
            make_base(stack)
        stack.compose("build", *BUILT, seconds=2400)
        yield stack
    finally:
        stack.compose("down", "--volumes")
        stack("docker", "rmi", "--force", *images)


def make_base(stack: Stack) -> None:
    """A base image with the packages in it."""
    requirements = stack.folder.parent / "requirements.txt"
    requirements.write_text(stack(sys.executable, "docker/requirements.py", "pyproject.toml"))
    stack("docker/base.sh", f"{stack.project}:base", requirements, seconds=2400)


def test_two_sites_run_all_stages(stack: Stack, tmp_path: Path) -> None:
    stack.compose("up", "--detach", *SERVER)
    for i in range(NODES):
        key = stack.folder / f"keys/node-{i}/key.pub"
        stack("flwr", "supernode", "register", key, "compose", "--name", f"node-{i}")
    stack.compose("up", "--detach", *SITES)
    for service in (*SERVER, *SITES):
        eventually(lambda s=service: stack.state(s, ".State.Health.Status") == "healthy", 600)  # type: ignore[misc]
    check_isolation(stack)
    settings = {key.replace("_", "-"): value for key, value in (TRAINED | DEPLOYED).items()}
    pairs = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    log = stack(
        "feddmmr", "run", "--connection=compose", f"--set=min-nodes={NODES}", *pairs, seconds=2400
    )
    assert "stage 3 round 1/1" in log
    home = stack.folder / "artifacts"
    path = home / "runs" / RUN / "manifest.json"
    assert path.stat().st_uid == USER
    manifest = json.loads(path.read_bytes())
    for stage in manifest["stages"].values():
        assert [entry["nodes"] for entry in stage["rounds"]] == [NODES, NODES]
        assert not any(entry["dropped"] for entry in stage["rounds"])
    check_models(manifest, home, stack.folder.parent / "dataset", tmp_path / "elsewhere")


def check_isolation(stack: Stack) -> None:
    """Nobody is root, a site's data is in one container, which reaches its SuperNode alone."""
    for service in ("superlink", "server-app", "supernode-0", "client-app-0"):
        status = stack("docker", "exec", stack.container(service), "cat", "/proc/1/status")
        facts = dict(line.split(":\t", 1) for line in status.splitlines())
        assert facts["Uid"].split() == [str(USER)] * 4
        assert int(facts["CapBnd"], 16) == 0
        assert int(facts["NoNewPrivs"]) == 1
    found = stack("docker", "exec", stack.container("client-app-0"), "ls", "/data")
    assert "interactions.parquet" in found
    assert "ls" in _refused(stack, "supernode-0", "ls", "/data")
    look_up = ("python", "-c", "import socket, sys; socket.gethostbyname(sys.argv[1])")
    stack("docker", "exec", stack.container("client-app-0"), *look_up, "supernode-0")
    for other in ("superlink", "supernode-1", "client-app-1"):
        assert "gaierror" in _refused(stack, "client-app-0", *look_up, other)


def _refused(stack: Stack, service: str, *command: str) -> str:
    """What a command says that has to fail in that container."""
    container = stack.container(service)
    done = subprocess.run(["docker", "exec", container, *command], capture_output=True, text=True)
    assert done.returncode != 0, done.stdout
    return done.stderr
