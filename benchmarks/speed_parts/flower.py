"""What is timed through Flower: real simulations on a SuperLink that the benchmark owns."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed_parts import stock as speed_stock
from feddmmr.launch.command import as_toml
from feddmmr.launch.flwr_cli import RunError
from shared_model.protocol.config import Value

_CONNECTION = "bench"
_PATIENCE = 120.0  # seconds for the SuperLink to start
WARM = 2  # rounds in which actors start and open their data: left out
_PYPROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "stock"
version = "0.0.1"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "stock:server"
clientapp = "stock:client"

[tool.flwr.app.config]
"""


@dataclass(frozen=True)
class Flower:
    """A FLWR_HOME with a SuperLink of its own, and a home for the runs."""

    home: Path
    environment: dict[str, str]

    def rounds(self, config: dict[str, Value], stage: int, nodes: int) -> list[tuple[int, float]]:
        """Users trained and seconds of each round of a stage, without those of the start and those
        that validate."""
        settings = config | {"stage": stage, "home": str(self.home), "redo": True}
        self._run(settings, nodes)
        run = self.home / "runs" / str(settings["run"])
        document: dict[str, Any] = json.loads((run / "manifest.json").read_text())
        entries = document["stages"][str(stage)]["rounds"]
        timed = [e for e in entries if e["round"] > WARM and "valid" not in e]
        return [(e["participants"], e["seconds"]) for e in timed]

    def stock(self, config: dict[str, Value], nodes: int, rounds: int) -> list[tuple[int, float]]:
        """The same of the stock app."""
        folder, output = self.home / "stock", self.home / "stock.json"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(speed_stock.__file__, folder / "stock.py")
        keys: dict[str, Value] = {"work": json.dumps(config), "output": str(output)}
        keys |= {"nodes": nodes, "num-rounds": rounds + WARM}
        (folder / "pyproject.toml").write_text(_PYPROJECT + as_toml(keys))
        run = ["run", str(folder), _CONNECTION, "--stream", "--federation-config", _nodes(nodes)]
        self._call([str(Path(sys.executable).with_name("flwr")), *run])
        if not output.exists():  # flwr ends with 0 even so
            raise RunError("the stock app failed", todo="see `flwr log` on its SuperLink")
        seconds: list[float] = json.loads(output.read_text())
        output.unlink()
        return [(nodes, each) for each in seconds[WARM:]]

    def _run(self, config: dict[str, Value], nodes: int) -> None:
        pairs = [word for key, value in config.items() for word in ("--set", _pair(key, value))]
        program = str(Path(sys.executable).with_name("feddmmr"))
        where = ["--connection", _CONNECTION, "--num-supernodes", str(nodes)]
        self._call([program, "run", *where, *pairs])

    def _call(self, command: list[str]) -> None:
        if not (Path(self.environment["FLWR_HOME"]) / "config.toml").exists():
            _start(self.environment)
        done = subprocess.run(  # noqa: S603 (our own arguments, no shell)
            command,
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RunError(" ".join(command[:3]), got=(done.stdout + done.stderr)[-2000:])


def _pair(key: str, value: Value) -> str:
    return as_toml({key: value}).strip()


def _nodes(nodes: int) -> str:
    return f"num-supernodes={nodes} client-resources-num-cpus=1"


@contextmanager
def own_flower(folder: Path) -> Iterator[Flower]:
    """A SuperLink that lives as long as the block.

    Not the one that ``flwr`` starts by itself, for which it waits 15 seconds: too short on a busy
    machine. It starts with the first run, so that a block without runs costs nothing.
    """
    environment = os.environ | {
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ADDRESS": "local",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    for name in ("home", "flwr"):
        (folder / name).mkdir()
    try:
        yield Flower(folder / "home", environment)
    finally:
        _end(folder / "flwr")


def _start(environment: dict[str, str]) -> None:
    """Start the SuperLink from an empty folder, name its connection, wait until it listens."""
    flower_home = Path(environment["FLWR_HOME"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    connection = f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (flower_home / "config.toml").write_text(connection)
    empty = flower_home / "empty"
    empty.mkdir()
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--database", str(flower_home / "runs.db")]
    with (flower_home / "superlink.log").open("w") as log:
        process = subprocess.Popen(  # noqa: S603 (our own arguments, no shell)
            [*command, "--disable-runtime-dependency-installation"],
            env=environment,
            cwd=empty,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise RunError("the SuperLink does not start", where=str(flower_home / "superlink.log"))


def _end(flower_home: Path, seconds: float = 20.0) -> None:
    """End the SuperLink and its descendants: whatever was started with this FLWR_HOME."""
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        for pid in _processes(flower_home):
            try:
                os.kill(pid, signal_)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + seconds
        while _processes(flower_home) and time.monotonic() < deadline:
            time.sleep(0.2)


def _processes(flower_home: Path) -> list[int]:
    wanted, found = f"FLWR_HOME={flower_home}".encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:  # gone, or another user's
            continue
    return found
