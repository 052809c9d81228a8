"""A finished run, and `feddmmr` called on it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feddmmr import cli
from feddmmr.launch.in_process import run_in_process
from tests.conftest import CutError
from tests.support.staged import SETTINGS, watching, write_mixed

Feddmmr = Callable[..., tuple[int, str, str]]
SHORT = SETTINGS | {"num_rounds": 2}


@pytest.fixture
def feddmmr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Feddmmr:
    """Calls `feddmmr ARGUMENTS` in this process: its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["feddmmr", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with four runs, and the dataset: all stages, other settings, cut off, Stage 1 only."""
    folder = tmp_path_factory.mktemp("runs")
    home, dataset = folder / "home", write_mixed(folder / "dataset")
    given = {"home": str(home), "dataset": str(dataset)}
    run_in_process(2, **(SHORT | given | {"run": "whole"}))
    run_in_process(2, **(SHORT | given | {"run": "other", "dropout": 0.2, "stage": 1}))
    run_in_process(1, **(SHORT | given | {"run": "short", "num_rounds": 1, "stage": 1}))

    def cut() -> None:
        raise CutError

    with watching((2, 1), cut), pytest.raises(CutError):
        run_in_process(2, **(SHORT | given | {"run": "cut"}))
    return home, dataset


def manifest(home: Path, run: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((home / "runs" / run / "manifest.json").read_bytes())
    return data
