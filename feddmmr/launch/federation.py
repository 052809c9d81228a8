"""A real deployment on one machine: SuperLink and SuperNodes as processes, to test and to try out.

Every program and the user have a HOME and a FLWR_HOME of their own below one folder, as if each had
a machine of its own. By FLWR_HOME all that a program started is found and ended.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from feddmmr.launch.access import Access
from feddmmr.launch.flwr_cli import Outcome, RunError, SuperLink, last_line, open_superlink
from feddmmr.launch.local_superlink import START_SECONDS

CONNECTION = "federation"
THREADS, IDLE = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"  # of torch, in an environment
_SITE = "client-apps-"  # with its number: the program that runs a node's apps
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal is gone
_PROGRAMS = Path(sys.executable).parent
# What Flower calls its state without a database: it lives as long as this federation. A file is
# written to in each request, even one that only asks, and a round takes up to twice as long.
_IN_MEMORY = ":flwr-in-memory:"


class Federation:
    """A SuperLink with a SuperNode for each `--node-config`; a context manager.

    With `Access.server_apps` and `client_apps` the apps run in processes of their own, which have
    to know a secret, otherwise in processes that SuperLink and SuperNodes start.
    """

    supernode: Sequence[str] = (sys.executable, "-P", "-m", "feddmmr.site.supernode")
    site: Sequence[str] = (sys.executable, "-P", "-m", "feddmmr.site")  # runs a node's ClientApps

    def __init__(
        self, folder: Path, nodes: Sequence[str], access: Access | None = None, port: int = 0
    ) -> None:
        self.folder = folder.absolute()
        self.nodes = nodes
        self.access = access or Access()
        free, *self._node_ports = free_ports(1 + len(nodes))
        self.address = f"127.0.0.1:{port or free}"
        self.nodes_reach = self.address  # where SuperNodes find the SuperLink: a proxy, say
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Federation":
        self.folder.mkdir(parents=True)
        self._write_connection()
        with ExitStack() as stack:
            stack.callback(self._end)
            self._start_superlink()
            for number in range(len(self.nodes)):
                if self.access.public_key:
                    (key,) = _of(number, [self.access.public_key])
                    self.flower.register(Path(key))
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
        """What run-config key home='~/feddmmr' is where the ServerApp runs."""
        return self.folder / ("server-apps" if self.access.server_apps else "superlink") / "feddmmr"

    @property
    def flower_home(self) -> Path:
        """The FLWR_HOME of a user of this federation."""
        return Path(self._environment("user")["FLWR_HOME"])

    @property
    def flower(self) -> SuperLink:
        """The `flwr` commands of that user."""
        return open_superlink(CONNECTION, self._environment("user"))

    def submit(self, run_config: Mapping[str, Any], app: Path) -> str:
        """Submit the app; returns the run's id."""
        path = self.folder / "run-config.toml"
        path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in run_config.items()))
        return self.flower.submit(app, path, "")

    def follow(self, run_id: str) -> None:
        """Copy what the ServerApp prints to the log of `user`."""
        self.start("user", ["flwr", "log", run_id, CONNECTION])

    def finished(self, run_id: str) -> bool:
        """Whether the run is over, by the log: a `flwr list` takes seconds of a core."""
        return re.search(rf"Finished task \S+ of run {run_id}\b", self.log("superlink")) is not None

    def wait(self, run_id: str, seconds: float = 600.0) -> Outcome:
        """How the run ended."""
        eventually(lambda: self.finished(run_id), seconds)
        return self.flower.wait(run_id)

    def watch(self) -> None:
        """Return never; RunError once a program ended by itself."""
        while True:
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise RunError(
                        f"{name} ended", where=self._log(name), got=last_line(self.log(name))
                    )
            time.sleep(1.0)

    def manifest(self, run: str) -> dict[str, Any]:
        """The manifest of a run with that home, or nothing if it is not there yet."""
        path = self.home / "runs" / run / "manifest.json"
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}

    def kill(self, number: int) -> None:
        """SIGKILL a SuperNode and all that belongs to it, as when its machine dies."""
        for name in (f"node-{number}", f"{_SITE}{number}"):
            if name in self._running:
                self._stop(name, signal.SIGKILL)

    def restart(self, number: int) -> None:
        """Start a SuperNode, again if it ran before."""
        port = self._node_ports[number]
        where = ["--superlink", self.nodes_reach, "--port", port]
        told = _of(number, [self.access.node_config])[0]
        config = ["--node-config", self.nodes[number] + told]
        program = [*self.supernode, *_of(number, self.access.node)]
        self.start(f"node-{number}", [*program, *where, *config])
        if self.access.client_apps:
            where = ["--runtime-api-address", f"127.0.0.1:{port}"]
            options = _of(number, self.access.client_apps)
            self.start(f"{_SITE}{number}", [*self.site, *options, *where])

    def start(self, name: str, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Start a program in a folder of its own, and end it with the others."""
        environment = self._environment(name)
        with Path(self._log(name)).open("ab") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 (our own arguments, no shell)
                command,
                env=environment,
                cwd=self.folder / name,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us, who then end them in order
            )
        return self._running[name]

    def start_superexec(
        self, name: str, address: str, options: Sequence[str]
    ) -> "subprocess.Popen[bytes]":
        """Start what runs the apps of the SuperLink or SuperNode at an address."""
        program = str(_PROGRAMS / "flower-superexec")
        return self.start(name, [program, *options, "--runtime-api-address", address])

    def log(self, name: str) -> str:
        """What `superlink`, `server-apps`, `node-<i>`, `client-apps-<i>` or `user` printed."""
        return Path(self._log(name)).read_text(errors="replace")

    def _log(self, name: str) -> str:
        return str(self.folder / name / "log")

    def _environment(self, name: str) -> dict[str, str]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        ours = {
            "HOME": str(home),
            "FLWR_HOME": str(home / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": os.pathsep.join([str(_PROGRAMS), os.environ.get("PATH", os.defpath)]),
        }
        return self._cores(name) | dict(os.environ) | ours

    def _cores(self, name: str) -> dict[str, str]:
        """How a program uses the cores, which it shares, unless the user's environment says.

        Sites with a thread for each core take the cores from each other, and threads that wait
        from all.
        """
        share = len(os.sched_getaffinity(0)) // max(1, len(self.nodes))
        return {IDLE: "PASSIVE"} | ({THREADS: str(max(1, share))} if name.startswith(_SITE) else {})

    def _write_connection(self) -> None:
        config = self.flower_home / "config.toml"
        config.parent.mkdir()
        address = f'address = "{self.address}"'
        config.write_text(f"[superlink.{CONNECTION}]\n{address}\n{self.access.connection}\n")

    def _start_superlink(self) -> None:
        host, _, port = self.address.partition(":")
        _refuse_taken(host, int(port))
        options = ["--host", host, "--port", port, "--database", _IN_MEMORY]
        program = str(_PROGRAMS / "flower-superlink")
        process = self.start("superlink", [program, *self.access.superlink, *options])

        def listens() -> bool:
            if process.poll() is not None:
                raise RunError("the SuperLink ended", got=last_line(self.log("superlink")))
            with suppress(OSError), socket.create_connection((host, int(port)), 1.0):
                return True
            return False

        eventually(listens, START_SECONDS)
        if self.access.server_apps:
            self.start_superexec("server-apps", self.address, self.access.server_apps)

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
        """End all programs. A second Ctrl-C, or one that `uv run` passes on, leaves no half."""
        with _undisturbed():
            for name in reversed(list(self._running)):
                self._stop(name, signal.SIGTERM)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that end a program are ignored (in the main thread, which alone gets them)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, signal.SIG_IGN) for each in ENDINGS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _refuse_taken(host: str, port: int) -> None:
    """RunError if another program listens there: it would be taken for the SuperLink."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does, after a restart
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RunError(
                "the SuperLink's port is taken",
                where=f"{host}:{port}",
                got=str(error),
                todo="end what listens there, or choose another with --port",
            ) from error


def _of(number: int, options: Sequence[str]) -> list[str]:
    """The options of one node."""
    return [option.replace("{i}", str(number)) for option in options]


def eventually(holds: Callable[[], object], seconds: float) -> None:
    """Return once something holds; RunError if that takes longer."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RunError("it did not happen in time", expected=f"within {seconds:g} s")
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
