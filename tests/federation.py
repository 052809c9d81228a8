"""A real deployment for tests: one SuperLink and its SuperNodes, as processes of this machine.

SuperLink, nodes and user have a HOME and a FLWR_HOME of their own below one folder, as if each had
a machine of its own, and free ports. By FLWR_HOME all that they started is found and ended.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tools.superlink import Outcome, SuperLink, open_superlink

PROJECT = Path(__file__).resolve().parents[1]
_PROGRAMS = Path(sys.executable).parent
# Heartbeats every 4 s instead of 20, the quickest that a SuperLink allows: it then notices within
# 20 s that a node was killed, not within 60. The program has no option for it.
_SUPERNODE = """
from flwr.supercore import heartbeat
from flwr.supernode import cli, fleet_http_connection
heartbeat.HEARTBEAT_DEFAULT_INTERVAL = fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = 10
cli.flower_supernode()
"""


@dataclass(frozen=True)
class Access:
    """How SuperLink, nodes and `flwr` reach each other: here plainly, or with TLS and keys."""

    superlink: Sequence[str] = ("--insecure",)
    node: Sequence[str] = ("--insecure",)  # `{i}` stands for the node's number
    connection: str = "insecure = true"  # lines of the connection in config.toml


class Federation:
    """A SuperLink with a SuperNode for each `--node-config`; a context manager."""

    def __init__(self, folder: Path, nodes: Sequence[str], access: Access | None = None) -> None:
        self.folder = folder
        self.nodes = nodes
        self.access = access or Access()
        self.port, *self._node_ports = free_ports(1 + len(nodes))
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Federation":
        with ExitStack() as stack:
            stack.callback(self._end)
            where = ["--host", "127.0.0.1", "--port", self.port]
            state = ["--database", str(self.folder / "state.db")]
            options = [*self.access.superlink, *where, *state]
            self._start("superlink", [str(_PROGRAMS / "flower-superlink"), *options])
            self._await_superlink()
            for number in range(len(self.nodes)):
                self.restart(number)
            stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def home(self) -> Path:
        """What run-config key home='~/feddmmr' is on the SuperLink's machine."""
        return self.folder / "superlink" / "feddmmr"

    @property
    def flower(self) -> SuperLink:
        """The `flwr` commands of a user of this federation."""
        environment = self._environment("user")
        config = Path(environment["FLWR_HOME"]) / "config.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        address = f'address = "127.0.0.1:{self.port}"'
        config.write_text(f"[superlink.tested]\n{address}\n{self.access.connection}\n")
        return open_superlink("tested", environment)

    def submit(self, run_config: Mapping[str, Any], app: Path = PROJECT) -> str:
        """Submit the app; returns the run's id."""
        path = self.folder / "run-config.toml"
        path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in run_config.items()))
        return self.flower.submit(app, path, "")

    def finished(self, run_id: str) -> bool:
        """Whether the run is over, by the log: a `flwr list` takes seconds of a core."""
        return f"of run {run_id}" in self.log("superlink").partition("Finished task ")[2]

    def wait(self, run_id: str, seconds: float = 600.0) -> Outcome:
        """How the run ended."""
        eventually(lambda: self.finished(run_id), seconds)
        return self.flower.wait(run_id)

    def manifest(self, run: str) -> dict[str, Any]:
        """The manifest of a run with that home, or nothing if it is not there yet."""
        path = self.home / "runs" / run / "manifest.json"
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}

    def kill(self, number: int) -> None:
        """SIGKILL a SuperNode and all that it started, as when its machine dies."""
        self._stop(f"node-{number}", signal.SIGKILL)

    def restart(self, number: int) -> None:
        """Start a SuperNode, again if it ran before."""
        where = ["--superlink", f"127.0.0.1:{self.port}", "--port", self._node_ports[number]]
        options = [option.replace("{i}", str(number)) for option in self.access.node]
        config = ["--node-config", self.nodes[number]]
        program = [sys.executable, "-c", _SUPERNODE]
        self._start(f"node-{number}", [*program, *options, *where, *config])

    def log(self, name: str) -> str:
        """What `superlink` or `node-<i>` printed."""
        return (self.folder / name / "log").read_text(errors="replace")

    def _environment(self, name: str) -> dict[str, str]:
        home = self.folder / name
        home.mkdir(parents=True, exist_ok=True)
        return os.environ | {
            "HOME": str(home),
            "FLWR_HOME": str(home / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([str(_PROGRAMS), os.environ.get("PATH", os.defpath)]),
        }

    def _start(self, name: str, command: Sequence[str]) -> None:
        environment = self._environment(name)
        with (self.folder / name / "log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                env=environment,
                cwd=self.folder / name,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the test, which then ends them in order
            )

    def _stop(self, name: str, with_signal: signal.Signals) -> None:
        """End a process and its descendants, which lead process groups of their own."""
        process = self._running.pop(name)
        for each in (with_signal, signal.SIGKILL):
            for pid in processes_of(self.folder / name / "flwr"):
                with suppress(ProcessLookupError):
                    os.kill(pid, each)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5.0)

    def _end(self) -> None:
        for name in reversed(list(self._running)):
            self._stop(name, signal.SIGTERM)

    def _await_superlink(self) -> None:
        def listens() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(self.port)), 1.0):
                return True
            return False

        eventually(listens, 60)


def eventually(holds: Callable[[], object], seconds: float) -> None:
    """Return once something holds; fail if that takes longer."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} s"
        time.sleep(0.1)


def processes_of(flower_home: Path) -> list[int]:
    """The processes that have this FLWR_HOME: a program that was started here, and all of its."""
    wanted, found = f"FLWR_HOME={flower_home}".encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # gone, or another user's
            if wanted in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def free_ports(count: int) -> list[str]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]
