"""The Python API: a run trained, opened and asked, as README shows it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import feddmmr
from client_app.data.dataset import Dataset
from feddmmr.launch.in_process import run_in_process
from shared_model.errors import ConfigError, ManifestError
from tests.conftest import SMALL


def test_a_run_is_trained_opened_and_asked(small_dataset: Dataset, tmp_path: Path) -> None:
    given: dict[str, Any] = {**SMALL, "stage": 1, "dataset": str(small_dataset.folder)}
    run = feddmmr.run(2, run="first", home=str(tmp_path / "home"), **given)
    other = run_in_process(2, run="first", home=str(tmp_path / "other"), **given)
    assert run.data["stages"]["1"]["sha256"] == other["stages"]["1"]["sha256"]
    assert feddmmr.open_run("first", tmp_path / "home") == run
    history = [1, "2", 3]
    best = feddmmr.recommend(run, history, dataset=small_dataset.folder, top=4)
    assert [found["rank"] for found in best] == [1, 2, 3, 4]
    assert not {str(found["item_id"]) for found in best} & {"1", "2", "3"}
    scores = [found["score"] for found in best]
    assert scores == sorted(scores, reverse=True)
    everything = feddmmr.recommend(run, history, dataset=small_dataset.folder, top=99, seen=True)
    assert len(everything) == small_dataset.num_items


def test_what_is_wrong_is_an_error_of_ours(tmp_path: Path) -> None:
    home = str(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown run-config key.*num-round"):
        feddmmr.run(1, num_round=3, home=home)
    with pytest.raises(ConfigError, match="no SuperNode"):
        feddmmr.run(0, home=home)
    with pytest.raises(ManifestError, match="no such run"):
        feddmmr.open_run("first", home)
    assert not any(tmp_path.iterdir())


def test_importing_it_is_light() -> None:
    code = (
        "import sys, feddmmr; heavy = ('torch', 'pandas', 'flwr', 'ray', 'rich'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
