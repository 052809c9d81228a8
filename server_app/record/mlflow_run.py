"""A run's rounds in MLflow, written while it goes on: `mlflow=local`, or a tracking server's URI.

Each stage is an MLflow run of its own, in an experiment with the run's name; "local" is the file
``home/mlflow.db``. Nothing else reads it: what a run is worth is in its manifest.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from server_app.record.schema import RoundRecord, StageRecord
from server_app.record.tensorboard import figures, points
from shared_model.errors import ConfigError, ManifestError
from shared_model.protocol.config import Settings

LOCAL, FILE = "local", "mlflow.db"
_FOLDER, _STAGE = "feddmmr.folder", "feddmmr.stage"  # tags by which a resumed stage is found again
_STEPS = "train/participants"  # every round has it
_BATCH = 100  # parameters that MLflow takes at once


def require_mlflow(settings: Settings) -> None:
    """``ConfigError`` if MLflow is asked for and not installed."""
    if settings.mlflow and find_spec("mlflow") is None:
        raise ConfigError(
            "tracking by MLflow needs the package mlflow-skinny",
            where="run-config key 'mlflow'",
            got=f"{settings.mlflow!r}, in an environment without it",
            todo="install the extra where the ServerApp runs: pip install 'feddmmr[mlflow]', or "
            "set mlflow=''",
        )


class MlflowStage:
    """The MLflow run of one stage, or nothing at all if none is asked for.

    ``first`` is the round that comes next. What an earlier process of this stage logged cannot be
    taken back: its rounds are not logged again, as they would be the same. ``ManifestError`` if
    MLflow does not take something.
    """

    def __init__(self, folder: Path, stage: int, first: int, record: StageRecord, uri: str) -> None:
        self._folder, self._stage, self._uri = folder, stage, _address(folder, uri)
        self._client: Any = None
        self._id, self._status, self._logged = "", "FAILED", -1
        if uri:
            with self._faults():
                self._open(first, record)

    def add(self, entry: RoundRecord) -> None:
        """A finished round."""
        if self._client is not None and entry["round"] > self._logged:
            self._log(points(entry), entry["round"])
            self._logged = entry["round"]

    def complete(self, record: StageRecord) -> None:
        """The test split, at the round that was kept."""
        if self._client is not None:
            self._log(figures(record["test"], "test"), record["best_round"])
            self._status = "FINISHED"

    def close(self) -> None:
        """Say that it is over, or that the process ended before."""
        client, self._client = self._client, None
        if client is not None:
            with self._faults():
                client.set_terminated(self._id, self._status)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_allowed(tag), value, now, step) for tag, value in values.items()]
        with self._faults():
            self._client.log_batch(self._id, metrics=metrics)

    def _open(self, first: int, record: StageRecord) -> None:
        client = _client(self._uri)
        experiment = _experiment(client, self._folder)
        named = {_FOLDER: str(self._folder), _STAGE: str(self._stage)}
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in named.items())
        found = client.search_runs([experiment], wanted, max_results=1) if first else []
        if found:
            self._id = found[0].info.run_id
            told = client.get_metric_history(self._id, _STEPS)
            self._logged = max((metric.step for metric in told), default=-1)
            client.set_terminated(self._id, "RUNNING")
        else:
            self._id = _begin(client, experiment, self._stage, named, record)
        self._client = client

    @contextmanager
    def _faults(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise ManifestError(
                "MLflow did not take it",
                where=self._uri,
                got=str(error).splitlines()[0],
                todo="see to the disk or the server, or set mlflow='', then submit the same run "
                "again",
            ) from error


def _client(uri: str) -> Any:
    """A client that neither reports its use nor writes of its database's migrations."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _address(folder: Path, uri: str) -> str:
    """Where MLflow writes; ``folder`` is ``home/runs/RUN``."""
    return f"sqlite:///{folder.parent.parent / FILE}" if uri == LOCAL else uri


def _experiment(client: Any, folder: Path) -> str:
    """The experiment of a run, made if it is not there."""
    name = folder.name
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    kind = {"mlflow.experimentKind": "custom_model_development"}  # its page opens with runs
    where = (folder / "mlflow").as_uri()
    return str(client.create_experiment(name, artifact_location=where, tags=kind))


def _begin(
    client: Any, experiment: str, stage: int, named: Mapping[str, str], record: StageRecord
) -> str:
    from mlflow.entities import Param

    tags = {**named, "feddmmr.code": record["app_sha256"][:12]}
    run = client.create_run(experiment, tags=tags, run_name=f"stage {stage}")
    config = {"seed": record["seed"], **record["config"]}
    params = [Param(key, str(value)[:500]) for key, value in config.items()]
    for start in range(0, len(params), _BATCH):
        client.log_batch(run.info.run_id, params=params[start : start + _BATCH])
    return str(run.info.run_id)


def _allowed(tag: str) -> str:
    """A tag in the letters that MLflow takes."""
    return tag.replace("@", "_")
