"""A SuperLink of the tests' own, and runs on it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from feddmmr.launch.federation import processes_of
from shared_model.protocol.config import Value

PROGRAM = str(Path(sys.executable).with_name("feddmmr"))
THREE_ROUNDS: dict[str, Value] = {
    "num-rounds": 3,
    "evaluate-every": 3,
    "dropout": 0.0,
    "server-learning-rate": 0.05,  # so that the third round is the best
    "fraction-train": 0.5,
    "hidden-size": 32,
    "max-length": 50,
}
TIMEOUT = 300  # seconds for one run, far more than it needs


@dataclass(frozen=True)
class Flower:
    """A FLWR_HOME with a SuperLink of its own, and a `home` for the runs."""

    home: Path
    environment: dict[str, str]

    def command(self, *arguments: str, **keys: Any) -> list[str]:
        """The `feddmmr run` of Stage 1 on CPU-light settings."""
        given = {"home": self.home, **THREE_ROUNDS, **keys}
        pairs = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
        return [PROGRAM, "run", "--stage", "1", *arguments, *pairs]

    def run(self, *arguments: str, **keys: Any) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            self.command(*arguments, **keys),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def manifest(self, run: str) -> dict[str, Any]:
        """The manifest of a run."""
        content: dict[str, Any] = json.loads(self.manifest_bytes(run))
        return content

    def manifest_bytes(self, run: str) -> bytes:
        """The same, as it lies there."""
        return (self.home / "runs" / run / "manifest.json").read_bytes()


def end_processes(flower_home: Path, seconds: float = 20.0) -> None:
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes_of(flower_home):
            try:
                os.kill(pid, signal_)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + seconds
        while processes_of(flower_home) and time.monotonic() < deadline:
            time.sleep(0.2)
    assert processes_of(flower_home) == []


def best_arrays(home: Path, run: str, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """The stage's checkpoint; here that of the last round, so that it shows all three."""
    stage = manifest["stages"]["1"]
    assert (stage["status"], stage["best_round"]) == ("complete", 3)
    return load_file(home / "runs" / run / stage["checkpoint"])


def largest_difference(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    assert left.keys() == right.keys()
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)
