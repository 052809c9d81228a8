"""A run killed with SIGKILL, several times, ends in the same bytes as the undisturbed one."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from client_app.data import Dataset

SETTINGS = [
    "stage=1",
    "num-rounds=30",
    "evaluate-every=3",
    "fraction-train=0.6",
    "hidden-size=16",
    "num-blocks=1",
    "max-length=10",
]


def command(home: Path, dataset: Dataset) -> list[str]:
    pairs = [*SETTINGS, f"home={home}", f"dataset={dataset.folder}"]
    program = [str(Path(sys.executable).with_name("feddmmr")), "run", "--in-process"]
    return program + [part for pair in pairs for part in ("--set", pair)]


def stage(home: Path) -> dict[str, Any]:
    record = json.loads((home / "runs/default/manifest.json").read_text())["stages"]["1"]
    for entry in record["rounds"]:
        entry.pop("seconds")
    return dict(record)


def kill_after_rounds(home: Path, dataset: Dataset, rounds: int) -> None:
    """SIGKILL the process once it has printed that many lines about rounds."""
    with subprocess.Popen(command(home, dataset), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            rounds -= " round " in line
            if rounds <= 0:
                break
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_sigkill_costs_nothing(tmp_path: Path, small_dataset: Dataset) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(command(whole, small_dataset), check=True, capture_output=True)
    for rounds in (2, 5, 9):
        kill_after_rounds(cut, small_dataset, rounds)
        time.sleep(0.1)
    last = subprocess.run(
        command(cut, small_dataset), check=True, capture_output=True, text=True
    ).stdout
    assert "resumed after round" in last
    assert stage(cut) == stage(whole)
    file = stage(whole)["checkpoint"]
    assert (cut / "runs/default" / file).read_bytes() == (
        whole / "runs/default" / file
    ).read_bytes()
    assert sorted(p.name for p in (cut / "runs/default").iterdir()) == sorted(
        p.name for p in (whole / "runs/default").iterdir()
    )
