"""How SuperLink, SuperNodes, their apps and users reach each other: plainly, or with keys."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_model.errors import ConfigError


@dataclass(frozen=True)
class Access:
    """Options of Flower's programs; `{i}` stands for a node's number. The default is plain HTTP."""

    superlink: Sequence[str] = ("--insecure",)
    node: Sequence[str] = ("--insecure", "--isolation", "process")
    server_apps: Sequence[str] = ()  # of the ServerApps' superexec; none: the SuperLink starts it
    client_apps: Sequence[str] = ("--insecure",)  # of the site's worker; none: a SuperNode's own
    connection: str = "insecure = true"  # lines of the connection in config.toml
    public_key: str = ""  # the file to register a node with
    node_config: str = ""  # what a node is told besides


def secured(keys: Path) -> Access:
    """TLS, authenticated SuperNodes, and apps that have to know a secret, by `docker/keys.sh`.

    A SuperNode speaks plain HTTP with its ClientApps: both are one machine, or one network.
    """
    keys = keys.absolute()
    if not (keys / "ca.crt").is_file():
        raise ConfigError(
            "no keys", where=str(keys), expected="ca.crt", todo="docker/keys.sh FOLDER NODES"
        )
    ca, link, node = str(keys / "ca.crt"), str(keys / "superlink"), str(keys / "node-{i}")
    isolated = ("--isolation", "process", "--superexec-auth-secret-file")
    return Access(
        superlink=(
            *("--ssl-ca-certfile", ca),
            *("--ssl-certfile", f"{link}/server.crt", "--ssl-keyfile", f"{link}/server.key"),
            "--enable-supernode-auth",
            *(*isolated, f"{link}/superexec-secret"),
        ),
        node=(
            *("--root-certificates", ca),
            *("--auth-supernode-private-key", f"{node}/key"),
            *(*isolated, f"{node}/superexec-secret"),
        ),
        server_apps=(
            *("--root-certificates", ca),
            *("--superexec-auth-secret-file", f"{link}/superexec-secret"),
        ),
        client_apps=("--insecure", "--superexec-auth-secret-file", f"{node}/superexec-secret"),
        connection=f"root-certificates = {json.dumps(ca)}",
        public_key=f"{node}/key.pub",
        node_config=_identity(keys),
    )


def _identity(keys: Path) -> str:
    """The node-config of secure sums; empty for keys that were made before there were any."""
    if not (keys / "sites").is_file():
        return ""
    own, sites = f"{keys}/node-{{i}}/identity", f"{keys}/sites"
    return f" secure-key={json.dumps(own)} secure-sites={json.dumps(sites)}"
