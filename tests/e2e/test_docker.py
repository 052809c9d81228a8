"""docker/: what Compose makes of its files, and what is in the images."""

import importlib
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from flwr.common.config import parse_config_args
from packaging.requirements import Requirement

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
        own = "feddmmr_site.health" in service.get("healthcheck", {}).get("test", [])
        asks = "HEALTH_URL" in service.get("environment", {}) or service["build"]["target"] != "app"
        assert own != asks
        assert own == ("feddmmr_site" in service.get("entrypoint", []))
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
        assert secrets(app) == {f"node-{i}-superexec", f"node-{i}-identity", "sites"}
        assert networks(app) == {f"site-{i}"}
        assert networks(node) == {"nodes", f"site-{i}"}
        assert document["networks"][f"site-{i}"]["internal"]
        told = f'--node-config=data-dir="/data" name="node-{i}" secure-key="/run/secrets/identity"'
        assert f'{told} secure-sites="/run/secrets/sites"' in node["command"]
    assert networks(services["server-app"]) == {"server"}
    assert mounts(services["server-app"])["/state/.feddmmr"][0].endswith("/artifacts")


@needs_compose
@pytest.mark.parametrize("name", ["compose.yaml", "compose.plain.yaml"])
def test_every_site_is_the_first_one_but_for_its_number(name: str) -> None:
    """So what two of them do for real (test_e2e_compose.py), all of them do."""
    services = compose(name)["services"]
    kinds = {service.rpartition("-")[0] for service in services if service[-1].isdigit()}
    assert "supernode" in kinds
    for kind in kinds:
        for i in NODES:
            own = json.dumps(services[f"{kind}-{i}"])
            as_first = re.sub(rf"(-|partition-id=){i}\b", r"\g<1>0", own)
            assert json.loads(as_first) == services[f"{kind}-0"]
            assert (as_first == own) == (i == 0)


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
        started = service.get("entrypoint") or own
        if started == ["python", "-P", "-m", "feddmmr_site"]:  # takes the same options
            started = own
        program, *options = [*started, *service["command"]]
        module, function = PARSERS[program]
        parser = getattr(importlib.import_module(module), function)()
        options = parser.parse_args(options)  # exits at one that it does not know
        if config := getattr(options, "node_config", None):
            assert {*parse_config_args([config])} in (
                {"data-dir", "name", "secure-key", "secure-sites"},
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
    assert printed[:2] == [f"flwr=={version}", "torch==2.15.0"]
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
