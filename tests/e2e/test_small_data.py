"""Catalogues and histories too small for what protocols and stages ask for: told, not hidden."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_app.data.dataset import Dataset
from feddmmr.baselines.command import baselines
from feddmmr.launch.in_process import run_in_process
from feddmmr.runs.read import read_run
from feddmmr.runs.report import write_report
from server_app.record.report import shortfalls
from shared_model.errors import ConfigError, DataError, RoundError
from tests.conftest import SMALL, MakeDataset


@pytest.fixture
def nine_items(make_dataset: MakeDataset) -> Dataset:
    """Six users have met all of nine items, four others six of them."""
    histories = {u: [(u + n) % 9 + 1 for n in range(9)] for u in range(6)}
    histories |= {u: [(u + n) % 9 + 1 for n in range(6)] for u in range(6, 10)}
    return make_dataset(histories, num_items=9)


def run_on(dataset: Dataset, tmp_path: Path, **overrides: Any) -> dict[str, Any]:
    home = str(tmp_path / "home")
    given = {"home": home, "dataset": str(dataset.folder), "stage": 1}
    return run_in_process(2, **(given | SMALL | overrides))


def test_how_many_candidates_there_were_is_told_everywhere(
    nine_items: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = run_on(nine_items, tmp_path)
    told = manifest["stages"]["1"]["test"]["all"]["uniform-100"]
    assert (told["candidates"], told["users"]) == (3.0, 4.0)
    lines = capsys.readouterr().out.splitlines()
    rounds = [line for line in lines if line.startswith("stage 1 round")]
    assert all(" among 3.0 " in line for line in rounds if "valid" in line)
    for split in ("valid", "test"):
        note = f"note: stage 1 {split}, all, uniform-100:"
        assert f"{note} ranked among 3.0 on average, since fewer than 100 exist" in lines
        assert f"{note} 6 users with nothing to rank among are left out" in lines
    home = tmp_path / "home"
    page = write_report(read_run(home, "default"), home, nine_items.folder, tmp_path / "report")
    text = page.read_text()
    assert "test HR@10 among 3.0" in text
    assert "6 users with nothing to rank among are left out" in text
    baselines(nine_items.folder)
    assert "6 users with nothing to rank among are left out" in capsys.readouterr().out


def test_nobody_to_rank_is_no_figure(
    make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everyone = make_dataset({u: [(u + n) % 9 + 1 for n in range(9)] for u in range(6)}, num_items=9)
    manifest = run_on(everyone, tmp_path)
    assert set(manifest["stages"]["1"]["test"]["all"]) == {"full"}
    said = capsys.readouterr().out
    assert "HR@10 - (nothing to rank among)" in said
    assert "note: stage 1 test, all, uniform-100: 6 users with nothing to rank among" in said


def test_a_hundred_candidates_need_no_note(demo_folder: Path) -> None:
    cell = {"hr@10": 0.5, "users": 4.0, "candidates": 100.0}
    full = cell | {"candidates": 499.0}
    assert shortfalls({"all": {"uniform-100": cell, "full": full, "full-unseen": full}}) == []


def test_histories_without_a_target_are_refused_before_any_round(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    dataset = make_dataset({u: [u + 1, u + 2, u + 3] for u in range(10)}, num_items=12)
    with pytest.raises(DataError, match=r"nobody has anything to train on.*do: import longer"):
        run_on(dataset, tmp_path)
    assert not (tmp_path / "home" / "runs").exists()


def test_one_longer_history_is_enough(make_dataset: MakeDataset, tmp_path: Path) -> None:
    histories = {u: [u + 1, u + 2, u + 3] for u in range(10)} | {10: [1, 2, 3, 4]}
    manifest = run_on(make_dataset(histories, num_items=12), tmp_path, fraction_train=1.0)
    assert [entry["participants"] for entry in manifest["stages"]["1"]["rounds"]] == [0, 1, 1, 1]


@pytest.mark.parametrize("modalities", ["both", "visual"])
def test_features_of_zeros_are_refused_before_any_round(
    make_dataset: MakeDataset, tmp_path: Path, modalities: str
) -> None:
    text = np.zeros((30, 4)) if modalities == "both" else np.eye(4)[np.arange(30) % 4]
    features = {"visual": np.zeros((30, 8), "f2"), "text": text.astype("f2")}
    histories = {u: [(3 * u + n) % 30 + 1 for n in range(8)] for u in range(10)}
    dataset = make_dataset(histories, num_items=30, features=features)
    with pytest.raises(ConfigError, match="stage 2 needs features, and no item has any"):
        run_on(dataset, tmp_path, stage=0, modalities=modalities)
    assert not (tmp_path / "home" / "runs").exists()


def test_a_stage_in_which_nobody_took_part_is_not_complete(
    nine_items: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(RoundError, match=r"stage 1 trained nobody.*fraction-train=1e-06 of 10 use"):
        run_on(nine_items, tmp_path, fraction_train=1e-6)
    path = tmp_path / "home" / "runs" / "default" / "manifest.json"
    assert json.loads(path.read_text())["stages"]["1"]["status"] == "failed"
