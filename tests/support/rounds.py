"""Runs that are cut off, and what of a run's record is compared."""

from pathlib import Path
from typing import Any

import pytest

from server_app.rounds.loop import StageRun
from tests.conftest import CutError


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


def cut_at(run: Any, monkeypatch: pytest.MonkeyPatch, at: int, settings: dict[str, Any]) -> None:
    """Run 'cut' until this round is finished, saved or not; there the server dies."""
    original = StageRun._finish_round

    def cut(self: StageRun, entry: Any, started: float, save: Any) -> None:
        original(self, entry, started, save)
        if entry["round"] == at:
            raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "_finish_round", cut)
        with pytest.raises(CutError):
            run(2, run="cut", **settings)
