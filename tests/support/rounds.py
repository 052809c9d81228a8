"""What of a run's record is compared."""

from pathlib import Path
from typing import Any

import pytest

from server_app.rounds.loop import StageRun


def last_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Collects the arrays of each stage's last round, whatever round was the best."""
    seen: dict[str, Any] = {}
    original = StageRun._save_last

    def spy(self: StageRun, round_: int, arrays: Any) -> None:
        seen[self.manifest.data["run"]] = {n: v.clone() for n, v in arrays.items()}
        original(self, round_, arrays)

    monkeypatch.setattr(StageRun, "_save_last", spy)
    return seen


def without_seconds(manifest: dict[str, Any]) -> dict[str, Any]:
    """Stage 1's record, less what a clock says."""
    stage: dict[str, Any] = manifest["stages"]["1"]
    for entry in stage["rounds"]:
        entry.pop("seconds")
    return stage
