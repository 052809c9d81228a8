"""docker/keys.sh: keys that Flower and openssl accept; a federation on this machine with them."""

import json
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from feddmmr.launch.access import secured
from feddmmr.launch.federation import Federation, eventually, processes_of
from feddmmr.launch.federation_command import federation
from feddmmr.launch.flwr_cli import RunError
from shared_model.errors import ConfigError
from shared_model.secure.identity import read_identity
from tests.support.paths import ROOT

DOCKER, NODES = ROOT / "docker", range(3)


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


def test_every_site_pins_all_and_has_its_own_identity(keys: Path) -> None:
    for i in NODES:
        known = read_identity(f"node-{i}", keys / f"node-{i}" / "identity", keys / "sites")
        assert list(known.pins or {}) == [f"node-{j}" for j in NODES]
    told = secured(keys).node_config.replace("{i}", "1")
    assert told == f' secure-key="{keys}/node-1/identity" secure-sites="{keys}/sites"'


def test_all_of_it_is_for_the_owner_alone(keys: Path) -> None:
    for path in (keys, *keys.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    expected = {"ca.crt", "ca.key", "sites", "superlink", *(f"node-{i}" for i in NODES)}
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


def test_a_run_is_over_when_its_own_task_is(tmp_path: Path) -> None:
    running = Federation(tmp_path, [])
    (tmp_path / "superlink").mkdir()
    (tmp_path / "superlink/log").write_text(
        "Started task 1 of run 11\nFinished task 1 of run 11\nStarted task 2 of run 22\n"
    )
    assert [running.finished(run) for run in ("11", "22", "1")] == [True, False, False]


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
