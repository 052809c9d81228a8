"""The manifests for Kubernetes: of the right form, and saying what the Compose file says."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="no schemas of Kubernetes: uv sync --group kubernetes"
)

DOCKER = ROOT / "docker"
FILES = sorted((DOCKER / "kubernetes").glob("*.yaml"))
SERVICES = ("superlink", "server-app", "supernode-0", "client-app-0")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def everything() -> dict[tuple[str, str], dict[str, Any]]:
    """Each document by its kind and name."""
    found = [one for path in FILES for one in documents(path)]
    named = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(named) == len(found)
    return named


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The services of compose.yaml, as written."""
    return dict(yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"])


def pod(everything: dict[tuple[str, str], dict[str, Any]], name: str) -> dict[str, Any]:
    return dict(everything["Deployment", name]["spec"]["template"]["spec"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_document_is_of_its_schema(path: Path) -> None:
    for document in documents(path):
        kubernetes_validate.validate(document, "1.33", strict=True)
    broken = documents(path)[0] | {"sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.33", strict=True)


@pytest.mark.parametrize("name", SERVICES)
def test_it_runs_what_compose_runs(
    everything: dict[tuple[str, str], dict[str, Any]], compose: dict[str, Any], name: str
) -> None:
    service = compose[name]
    (container,) = pod(everything, name)["containers"]
    assert container["args"] == service["command"]
    assert container.get("command") == service.get("entrypoint")
    image = service["image"].partition(":")[0]
    assert container["image"].partition(":")[0] == image
    told = {one["name"]: one["value"] for one in container.get("env", [])}
    ports = {"superlink": 8000, "supernode-0": 9094}
    if name in ports:
        assert container["ports"] == [{"containerPort": ports[name]}]
        assert everything["Service", name]["spec"]["ports"] == [{"port": ports[name]}]
    probe = container["readinessProbe"]["exec"]["command"]
    if "healthcheck" in service:  # a site's own
        assert service["healthcheck"]["test"] == ["CMD", *probe]
        assert container["livenessProbe"]["exec"]["command"] == probe
        assert told == {}
    else:
        assert told == service.get("environment", {"HEALTH_URL": "http://127.0.0.1:9094/health"})


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_root_and_each_has_its_own_secrets(
    everything: dict[tuple[str, str], dict[str, Any]], compose: dict[str, Any], name: str
) -> None:
    spec = pod(everything, name)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 1000
    (container,) = spec["containers"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    (secrets,) = (v["projected"]["sources"] for v in spec["volumes"] if v["name"] == "secrets")
    files = {item["path"] for source in secrets for item in source["secret"]["items"]}
    wanted = {s if isinstance(s, str) else s["target"] for s in compose[name]["secrets"]}
    assert files == wanted


def test_data_is_seen_by_its_client_app_alone(
    everything: dict[tuple[str, str], dict[str, Any]],
) -> None:
    mounts = {name: pod(everything, name)["containers"][0]["volumeMounts"] for name in SERVICES}
    sees = [name for name in SERVICES if "/data" in {one["mountPath"] for one in mounts[name]}]
    assert sees == ["client-app-0"]
    reaches = everything["NetworkPolicy", "client-app-0"]["spec"]["egress"]
    assert reaches[0]["to"] == [{"podSelector": {"matchLabels": {"app": "supernode-0"}}}]
    assert reaches[0]["ports"] == [{"port": 9094}]
    admits = everything["NetworkPolicy", "supernode-0"]["spec"]["ingress"]
    assert admits[0]["from"] == [{"podSelector": {"matchLabels": {"app": "client-app-0"}}}]
