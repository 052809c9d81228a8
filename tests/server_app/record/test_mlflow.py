"""`mlflow=local`: what MLflow reads is what the manifest says, each point once."""

import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from feddmmr.launch.in_process import run_in_process
from server_app.rounds.loop import StageRun
from shared_model.errors import ConfigError, ManifestError
from shared_model.stages import STAGES
from tests.conftest import CutError
from tests.support.outcomes import outcome
from tests.support.staged import SETTINGS, write_mixed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("tracked") / "dataset")


@pytest.fixture(scope="module")
def plain(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the same run without MLflow."""
    home = tmp_path_factory.mktemp("plain")
    go(home, dataset)
    return home


def go(home: Path, dataset: Path, **overrides: Any) -> dict[str, Any]:
    given = {"home": str(home), "dataset": str(dataset), "num_rounds": 2}
    return run_in_process(2, **(SETTINGS | given | overrides))


def tracked(home: Path) -> tuple[MlflowClient, dict[str, Any]]:
    """A client, and the MLflow runs of run "default" by name; a name that comes twice is wrong."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("default")
    found = client.search_runs([experiment.experiment_id])
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found)
    return client, by_name


def test_mlflow_has_what_the_manifest_says_once_though_the_run_was_cut_off(
    dataset: Path, plain: Path, tmp_path: Path
) -> None:
    """Killed after a round was told and before it was saved; it ends in the same bytes."""
    save = StageRun._save_last

    def cut(self: StageRun, round_: int, arrays: Any) -> None:
        if (self.stage, round_) == (2, 1):
            raise CutError
        save(self, round_, arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "_save_last", cut)
        with pytest.raises(CutError):
            go(tmp_path, dataset, mlflow="local")
    _, before = tracked(tmp_path)
    assert {n: run.info.status for n, run in before.items()} == {
        "stage 1": "FINISHED",
        "stage 2": "FAILED",
    }
    stages = go(tmp_path, dataset, mlflow="local")["stages"]
    client, found = tracked(tmp_path)
    assert outcome(tmp_path) == outcome(plain)
    assert set(found) == {f"stage {number}" for number in STAGES}
    for number in STAGES:
        run, record = found[f"stage {number}"], stages[str(number)]
        assert run.info.status == "FINISHED"
        assert run.data.params["dropout"] == str(record["config"]["dropout"])
        losses = client.get_metric_history(run.info.run_id, "train/loss")
        assert [(m.step, m.value) for m in losses] == [
            (entry["round"], entry["loss"]) for entry in record["rounds"] if entry["round"]
        ]
        told = run.data.metrics["test_full/all/ndcg_10"]
        assert told == record["test"]["all"]["full"]["ndcg@10"]


def test_a_store_that_cannot_be_written_is_one_line(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database")
    with pytest.raises(ManifestError, match="MLflow did not take it") as raised:
        go(tmp_path, dataset, mlflow="local", stage=1)
    assert "\n" not in str(raised.value)


def test_without_the_package_the_run_is_refused_before_it_begins(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'feddmmr\[mlflow\]'"):
        go(tmp_path / "home", dataset, mlflow="local")
    assert not (tmp_path / "home").exists()
