"""Every benchmark runs on tiny input; what it measures is not judged here."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def test_central_training_learns_and_writes_json(demo_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "central.json"
    arguments = ["--dataset", demo_folder, "--output", output, "--epochs", "4", "--hidden", "16"]
    small = ["--batch", "32", "--evaluate-every", "2", "--blocks", "1", "--learning-rate", "0.01"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.central", *arguments, *small], cwd=ROOT, check=True
    )
    result = json.loads(output.read_text())
    assert [epoch["epoch"] for epoch in result["epochs"]] == [2, 4]
    assert result["epochs"][1]["loss"] < result["epochs"][0]["loss"]
    assert set(result["test"]["all"]) == {"uniform-100", "full", "full-unseen"}
