"""docker/: what Compose makes of its files, and keys that Flower and openssl accept.

Over 300 lines on purpose: the two files share one reading of Compose's output.
"""

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.cli.supernode.register import try_load_public_key
from flwr.common.config import parse_config_args
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from packaging.requirements import Requirement

from feddmmr.launch.access import secured
from feddmmr.launch.federation import Federation, eventually, processes_of
from feddmmr.launch.federation_command import federation
from feddmmr.launch.flwr_cli import RunError
from shared_model.errors import ConfigError
from tests.support.compose_files import (
    COMPOSE,
)
from tests.support.paths import ROOT

DOCKER, NODES = ROOT / "docker", range(3)
needs_compose = pytest.mark.skipif(COMPOSE is None, reason="docker compose is not installed")


def compose(name: str) -> dict[str, Any]:
    """A Compose file as Compose reads it: JSON, or the YAML of older versions."""
    import yaml

    assert COMPOSE is not None
    command = [*COMPOSE, "-f", str(DOCKER / name), "config"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FEDDMMR_", "PIP_"))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = yaml.safe_load(done.stdout)
    return document


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Target -> source and whether it is read-only, in the short and the long notation."""
    found = {}
    for volume in service.get("volumes", []):
        if isinstance(volume, str):
            source, target, *mode = volume.split(":")
            found[target] = (source, mode == ["ro"])
        else:
            found[volume["target"]] = (volume["source"], volume.get("read_only", False))
    return found


def secrets(service: dict[str, Any]) -> set[str]:
    return {each["source"] for each in service.get("secrets", [])}


def networks(service: dict[str, Any]) -> set[str]:
    return set(service["networks"])


@needs_compose
@pytest.mark.parametrize("name", ["compose.yaml", "compose.plain.yaml"])
def test_nothing_runs_as_root_and_only_the_superlink_is_published(name: str) -> None:
    services = compose(name)["services"]
    for service in services.values():
        assert service["user"] == "1000:1000"
        assert service["cap_drop"] == ["ALL"]
        assert service["init"]
        assert not service.get("privileged")
        assert "HEALTH_URL" in service.get("environment", {}) or service["build"]["target"] != "app"
    assert [name for name, service in services.items() if service.get("ports")] == ["superlink"]
    assert "127.0.0.1" in str(services["superlink"]["ports"])


@needs_compose
def test_every_site_has_its_own_data_key_secret_and_network() -> None:
    document = compose("compose.yaml")
    services = document["services"]
    apps = [services[f"client-app-{i}"] for i in NODES]
    assert len({mounts(app)["/data"] for app in apps}) == len(apps)
    for i in NODES:
        app, node = services[f"client-app-{i}"], services[f"supernode-{i}"]
        source, read_only = mounts(app)["/data"]
        assert source.endswith(f"/data/part-{i}")
        assert read_only
        assert "/data" not in mounts(node)
        assert secrets(node) == {"ca.crt", f"node-{i}-key", f"node-{i}-superexec"}
        assert secrets(app) == {f"node-{i}-superexec"}
        assert networks(app) == {f"site-{i}"}
        assert networks(node) == {"nodes", f"site-{i}"}
        assert document["networks"][f"site-{i}"]["internal"]
        assert f'--node-config=data-dir="/data" name="node-{i}"' in node["command"]
    assert networks(services["server-app"]) == {"server"}
    assert mounts(services["server-app"])["/state/.feddmmr"][0].endswith("/artifacts")


@needs_compose
def test_all_is_isolated_encrypted_and_authenticated() -> None:
    document = compose("compose.yaml")
    services = document["services"]
    for name in ("superlink", *(f"supernode-{i}" for i in NODES)):
        assert "--isolation=process" in services[name]["command"]
        assert "--insecure" not in services[name]["command"]
    assert "--enable-supernode-auth" in services["superlink"]["command"]
    for service in services.values():
        assert "--superexec-auth-secret-file=/run/secrets/superexec" in service["command"]
        targets = {each["target"] for each in service["secrets"] if "target" in each}
        assert any(target.endswith("superexec") for target in targets)
    assert not any("allow-runtime" in str(service) for service in services.values())
    state = [mounts(service)["/state"][0] for service in services.values()]
    assert len(set(state)) == len(services)
    assert set(state) <= {*document["volumes"]}


PARSERS = {
    "flower-superlink": ("flwr.superlink.cli.flower_superlink", "_parse_args_run_superlink"),
    "flower-supernode": ("flwr.supernode.cli.flower_supernode", "_parse_args_run_supernode"),
    "flower-superexec": ("flwr.supercore.cli.flower_superexec", "_parse_args"),
}


@needs_compose
@pytest.mark.parametrize("name", ["compose.yaml", "compose.plain.yaml"])
def test_flower_knows_every_option(name: str) -> None:
    for service in compose(name)["services"].values():
        target = service["build"]["target"]
        own = ["flower-superexec"] if target == "app" else [f"flower-{target}"]
        program, *options = [*(service.get("entrypoint") or own), *service["command"]]
        module, function = PARSERS[program]
        parser = getattr(importlib.import_module(module), function)()
        options = parser.parse_args(options)  # exits at one that it does not know
        if config := getattr(options, "node_config", None):
            assert {*parse_config_args([config])} in (
                {"data-dir", "name"},
                {"partition-id", "num-partitions"},
            )


@needs_compose
def test_the_plain_variant_needs_neither_keys_nor_data() -> None:
    document = compose("compose.plain.yaml")
    assert "secrets" not in document
    for i in NODES:
        node = document["services"][f"supernode-{i}"]
        assert node["command"] == [f"--node-config=partition-id={i} num-partitions={len(NODES)}"]
        assert [*mounts(node)] == ["/state"]


def test_the_dockerfile_pins_flower_as_the_project_does() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (version,) = re.findall(r"ARG FLWR_VERSION=(\S+)", text)
    (flower,) = (Requirement(one) for one in dependencies if one.startswith("flwr"))
    assert version in flower.specifier
    printed = python("requirements.py", str(ROOT / "pyproject.toml")).stdout.split("\n")
    assert printed[:2] == [f"flwr=={version}", "torch==2.13.0"]
    assert len(printed) == len(dependencies) + 1
    assert "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1" in text
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)
    images = [stage for stage in stages if "ENTRYPOINT" in stage]
    assert [re.findall(r"AS (\w+)", stage)[0] for stage in images] == [
        "superlink", "supernode", "app",
    ]  # fmt: skip
    assert text.count("\nUSER feddmmr\n") == 2  # of `flower`, which two are made from, and `app`
    assert not re.search(r"https?://(?!127\.0\.0\.1)", text)


def python(script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(DOCKER / script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )


def test_health_is_whether_the_program_answers() -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        proxy = {"http_proxy": "http://127.0.0.1:9"}  # is not asked
        assert python("health.py", HEALTH_URL=f"{url}/health", **proxy).returncode == 0
        assert python("health.py", HEALTH_URL=f"{url}/other").returncode == 1
        server.shutdown()
    assert python("health.py", HEALTH_URL=f"{url}/health").returncode == 1


def keys_sh(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [str(DOCKER / "keys.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "made"
    done = keys_sh(folder, len(NODES), "fed.example.org", "10.1.2.3")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_certificate_is_of_this_authority_and_for_these_names(keys: Path) -> None:
    certificate = keys / "superlink" / "server.crt"
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]
    for name in ("superlink", "localhost", "fed.example.org"):
        host = ["-verify_hostname", name]
        subprocess.run([*verify, keys / "ca.crt", *host, certificate], check=True)
    for address in ("127.0.0.1", "10.1.2.3"):
        subprocess.run([*verify, keys / "ca.crt", "-verify_ip", address, certificate], check=True)
    stranger = [*verify, keys / "ca.crt", "-verify_hostname", "example.com", certificate]
    assert subprocess.run(stranger, capture_output=True, check=False).returncode != 0
    shown = ["openssl", "x509", "-in", str(certificate), "-noout", "-ext", "basicConstraints"]
    assert "CA:FALSE" in subprocess.run(shown, capture_output=True, text=True, check=True).stdout


def test_flower_accepts_the_keys_and_they_are_all_different(keys: Path) -> None:
    public, hidden = set(), set()
    for i in NODES:
        private = load_ssh_private_key((keys / f"node-{i}" / "key").read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        registered = try_load_public_key(keys / f"node-{i}" / "key.pub")
        assert registered == public_key_to_bytes(private.public_key())
        public.add(registered)
    for owner in ("superlink", *(f"node-{i}" for i in NODES)):
        secret = load_superexec_auth_secret(str(keys / owner / "superexec-secret"))
        assert secret is not None
        assert len(secret) >= 64
        hidden.add(secret)
    assert (len(public), len(hidden)) == (len(NODES), len(NODES) + 1)


def test_all_of_it_is_for_the_owner_alone(keys: Path) -> None:
    for path in (keys, *keys.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    expected = {"ca.crt", "ca.key", "superlink", *(f"node-{i}" for i in NODES)}
    assert {path.name for path in keys.iterdir()} == expected


def test_nothing_is_overwritten_and_a_fault_leaves_nothing(keys: Path, tmp_path: Path) -> None:
    before = (keys / "ca.key").read_bytes()
    for arguments, got in (
        ((keys, 3), str(keys)),
        ((tmp_path / "new", "none"), "none"),
        ((tmp_path / "new", 2, "two names"), "two names"),
        ((tmp_path / "new", 2, "1.2.3"), "no certificate"),
        ((tmp_path / "new",), "usage"),
    ):
        done = keys_sh(*arguments)
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")
        assert got in done.stderr
    assert (keys / "ca.key").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_federation_on_this_machine_uses_the_same_folder(keys: Path, tmp_path: Path) -> None:
    access = secured(keys)
    options = (*access.superlink, *access.node, *access.server_apps, *access.client_apps)
    files = [option.replace("{i}", "0") for option in options if option.startswith("/")]
    assert len(files) == 10
    assert all(Path(file).is_file() for file in files)
    assert json.dumps(str(keys / "ca.crt")) in access.connection
    with pytest.raises(ConfigError, match=r"keys\.sh"):
        secured(tmp_path)


def test_a_program_that_ends_by_itself_is_named(tmp_path: Path) -> None:
    running = Federation(tmp_path, [])
    running.start("node-0", ["sh", "-c", "echo no key; exit 1"])
    with pytest.raises(RunError, match=r"node-0 ended.*no key"):
        running.watch()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_a_node_ends_with_all_that_it_started(tmp_path: Path) -> None:
    running = Federation(tmp_path, [])
    process = running.start("node-0", ["sh", "-c", "setsid sleep 60 & echo up; wait"])
    home = tmp_path / "node-0" / "flwr"
    eventually(lambda: "up" in running.log("node-0"), 30)
    assert process.pid in processes_of(home)
    running.kill(0)
    eventually(lambda: not processes_of(home), 10)


def test_another_programs_port_is_refused(tmp_path: Path) -> None:
    """It would be taken for the SuperLink, and the nodes would go there."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(RunError, match=rf"port is taken; where: 127\.0\.0\.1:{port}"),
            Federation(tmp_path / "new", [], port=port),
        ):
            pass
    assert processes_of(tmp_path / "new" / "superlink" / "flwr") == []


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_ctrl_c_twice_while_it_starts_leaves_no_program(tmp_path: Path) -> None:
    """The second one comes while the programs are being ended; they ignore the first signal."""

    class Stubborn(Federation):
        supernode = ("sh", "-c", "trap '' TERM; echo up; sleep 60 & wait; wait; wait")

        def restart(self, number: int) -> None:
            super().restart(number)
            eventually(lambda: "up" in self.log(f"node-{number}"), 30)
            if number == 1:
                threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), Stubborn(tmp_path / "new", ["", "", ""]):
        pass
    for name in ("superlink", "node-0", "node-1"):
        assert processes_of(tmp_path / "new" / name / "flwr") == []


def test_a_federation_wants_datasets_and_a_new_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a dataset; where: .*nothing"):
        federation(tmp_path / "new", [tmp_path / "nothing"])
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileExistsError), Federation(tmp_path, []):
        pass
