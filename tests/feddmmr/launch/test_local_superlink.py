"""The SuperLink of this machine: found, started, awaited, and what is said when that fails.

A real one is started by tests/e2e/test_e2e_simulation.py; here a script is started instead, since
what matters is how long it takes, and how it ends.
"""

import os
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feddmmr.launch import local_superlink
from feddmmr.launch.federation import free_ports
from feddmmr.launch.flwr_cli import RunError, SuperLink, open_superlink
from feddmmr.launch.local_superlink import reached
from tests.support.flower import end_processes

SERVES = """#!{python}
import http.server, os, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
with open({seen!r}, "a") as seen:
    print(*sys.argv[1:], os.getcwd(), file=seen)
time.sleep({seconds})
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep({answers_after})
        self.send_response({status} if self.path == "/health" else 404)
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", port), Health).serve_forever()
"""
DIES = """#!{python}
import sys
for number in range(30):
    print("line", number, file=sys.stderr)
print("sqlite3.OperationalError: table state_version already exists", file=sys.stderr)
sys.exit("[SQL: CREATE TABLE state_version]")
"""
Program = Callable[..., SuperLink]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """A `flower-superlink` of the test's own on a free port, and the connection to it."""
    (port,) = free_ports(1)
    home, programs = tmp_path / "flwr", tmp_path / "bin"
    programs.mkdir()

    def make(script: str, connection: str = "local", **given: object) -> SuperLink:
        values = {"seconds": 0, "answers_after": 0, "status": 200, "seen": str(tmp_path / "seen")}
        text = script.format(python=sys.executable, **(values | given))
        (programs / "flower-superlink").write_text(text)
        (programs / "flower-superlink").chmod(0o755)
        outer = {"FLWR_HOME": str(home), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port}
        found = open_superlink(connection, {**os.environ, **outer})
        path = os.pathsep.join([str(programs), found.environment["PATH"]])
        return SuperLink(connection, {**found.environment, "PATH": path}, found.folder)

    yield make
    end_processes(home)


def started(tmp_path: Path) -> list[str]:
    return (tmp_path / "seen").read_text().splitlines()


def test_it_is_started_once_and_awaited_however_slow(
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It needs longer to start, and to answer, than Flower's own bounds would be here."""
    monkeypatch.setattr(local_superlink, "_SAID_AFTER", 0.2)
    superlink = program(SERVES, seconds=2.0, answers_after=0.6)
    commands = [threading.Thread(target=reached, args=(superlink,)) for _ in range(3)]
    for command in commands:
        command.start()
    for command in commands:
        command.join(120)
    (line,) = started(tmp_path)
    assert str(superlink.folder) == line.split()[-1]  # not the caller's: see flwr_cli.py
    assert f"--port {superlink.port}" in line
    assert f"--database {superlink.flower_home / 'local-superlink' / 'state.db'}" in line
    said = capsys.readouterr().err
    assert "waiting for the local SuperLink" in said
    assert "waiting for another command that starts the local SuperLink" in said
    found = reached(superlink)  # runs already
    assert started(tmp_path) == [line]
    config = Path(found.environment["FLWR_HOME"]) / "config.toml"
    table = tomllib.loads(config.read_text())["superlink"]["local"]
    assert table == {"address": f"127.0.0.1:{superlink.port}", "insecure": True}


def test_flower_would_start_it_by_the_same_flags(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer Flower with other flags must be followed."""
    from flwr.cli import local_superlink as flowers

    superlink = program(SERVES)
    reached(superlink)
    (ours,) = started(tmp_path)
    end_processes(superlink.flower_home)
    monkeypatch.setenv("FLWR_HOME", str(superlink.flower_home))
    monkeypatch.setenv("PATH", superlink.environment["PATH"])
    monkeypatch.setattr(flowers, "LOCAL_SUPERLINK_HTTP_API_PORT", str(superlink.port))
    flowers._start_local_superlink()
    theirs = started(tmp_path)[1]
    assert ours.split()[:-1] == theirs.split()[:-1]


def test_one_that_dies_is_told_with_the_end_of_its_log(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    superlink = program(DIES)
    with pytest.raises(RunError, match="ended with code 1 while it started") as died:
        reached(superlink)
    assert "got sqlite3.OperationalError: table state_version already exists;" in str(died.value)
    assert f"delete {superlink.flower_home / 'local-superlink' / 'state.db'}*" in str(died.value)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "  line 22"
    assert shown[-1] == "  [SQL: CREATE TABLE state_version]"


def test_the_bound_is_named_and_nothing_is_killed(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_superlink, "START_SECONDS", 0.5)
    superlink = program(SERVES, seconds=3.0)
    with pytest.raises(RunError, match=r"does not answer.*expected an answer within 0\.5 s"):
        reached(superlink)
    monkeypatch.setattr(local_superlink, "START_SECONDS", 120.0)
    while local_superlink._health(superlink.port) == "absent":
        pass  # it goes on
    reached(superlink)
    assert len(started(tmp_path)) == 1


def test_a_foreign_program_on_its_port_is_refused(program: Program, tmp_path: Path) -> None:
    superlink = program(SERVES, status=404)
    with pytest.raises(RunError, match=r"another program has the port.*HTTP_API_PORT"):
        reached(superlink)


@pytest.mark.parametrize("config", ['[superlink.local]\naddress = "127.0.0.1:1"\n', "[broken", ""])
def test_a_superlink_that_is_not_ours_to_start_is_left_to_flower(
    program: Program, tmp_path: Path, config: str
) -> None:
    superlink = program(SERVES)
    (superlink.flower_home / "config.toml").write_text(config)
    assert reached(superlink) is superlink
    elsewhere = program(SERVES, "mine")
    assert reached(elsewhere) is elsewhere
    assert not (tmp_path / "seen").exists()


def test_a_port_that_is_none(tmp_path: Path) -> None:
    superlink = open_superlink(
        "local", {"FLWR_HOME": str(tmp_path), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "x"}
    )
    with pytest.raises(RunError, match="not a port; where: the variable FLWR_LOCAL"):
        _ = superlink.port
