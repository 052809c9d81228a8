"""What both real deployments of the tests train, and the model that they have to end with."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from feddmmr.launch.in_process import run_in_process
from tests.support.staged import SETTINGS

RUN = "deployed"
# One round a stage: what more rounds would show, tests in one process show in less time.
TRAINED: dict[str, Any] = {**SETTINGS, "num_rounds": 1, "seed": 1, "server_schedule": "constant"}
# All nodes have to answer, and the limits are far more than they need.
DEPLOYED: dict[str, Any] = {"run": RUN, "min_participation": 1.0, "node_timeout": 300.0}


def check_models(manifest: dict[str, Any], home: Path, dataset: Path, elsewhere: Path) -> None:
    """All stages are complete, and their models those of a simulation in one process."""
    other = run_in_process(3, dataset=str(dataset), home=str(elsewhere), run=RUN, **TRAINED)
    for stage in ("1", "2", "3"):
        here, there = manifest["stages"][stage], other["stages"][stage]
        assert here["status"] == there["status"] == "complete"
        assert here["best_round"] == there["best_round"] == 1  # the trained arrays, not the first
        paths = (
            at / "runs" / RUN / r["checkpoint"] for at, r in ((home, here), (elsewhere, there))
        )
        found = difference(*paths)
        assert found <= 1e-5, (stage, found)


def difference(here: Path, there: Path) -> float:
    """The largest one between two checkpoints of the same names."""
    ours, theirs = load_file(here), load_file(there)
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)
