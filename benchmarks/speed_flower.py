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

from benchmarks import speed_stock
from shared_model.config import Value
from tools.run_command import as_toml
from tools.superlink import RunError

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
        self._run(None, settings, nodes)
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
        self._flwr("run", str(folder), "local", "--stream", "--federation-config", _nodes(nodes))
        seconds: list[float] = json.loads(output.read_text())
        output.unlink()
        return [(nodes, each) for each in seconds[WARM:]]

    def _run(self, app: Path | None, config: dict[str, Value], nodes: int) -> None:
        pairs = [word for key, value in config.items() for word in ("--set", _pair(key, value))]
        program = str(Path(sys.executable).with_name("feddmmr"))
        self._call([program, "run", "--num-supernodes", str(nodes), *pairs])

    def _flwr(self, *arguments: str) -> None:
        self._call([str(Path(sys.executable).with_name("flwr")), *arguments])

    def _call(self, command: list[str]) -> None:
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
    """A SuperLink that starts with the first run and ends with the block."""
    http, control = _free_ports(2)
    environment = os.environ | {
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http,
        "FLWR_LOCAL_CONTROL_API_PORT": control,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_ADDRESS": "local",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    home = folder / "home"
    home.mkdir()
    try:
        yield Flower(home, environment)
    finally:
        _end(folder / "flwr")


def _free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


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
