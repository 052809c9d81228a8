"""The data that a run was trained on: found by fingerprint, never by the name of a folder."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from client_app.data.dataset import Dataset, open_dataset
from client_app.node import Node, Placement
from feddmmr.launch.command import defaults, own_app
from feddmmr.runs.read import Run
from server_app.nodes.census import Census
from server_app.record.results import Baselines
from server_app.record.schema import DatasetRecord, FeaturesRecord, Part
from shared_model.errors import DataError
from shared_model.protocol.config import parse_settings


def data_of(run: Run, home: Path, folder: Path | None) -> Dataset | None:
    """The run's dataset: the given folder, else a demo below ``home``, of any version, if it fits.

    ``None`` if none is given and no demo fits. ``DataError`` for a given one with other data.
    """
    if folder is not None:
        dataset = open_dataset(folder.expanduser().resolve())
        require_same(run, dataset)
        return dataset
    for path in sorted(home.absolute().glob("demo-*")):
        with suppress(DataError):  # of another version, or damaged: not this run's
            demo = open_dataset(path)
            if not differences(run, demo):
                return demo
    return None


def need_data(run: Run, home: Path, folder: Path | None) -> Dataset:
    """As ``data_of``; ``DataError`` if nothing at hand fits."""
    dataset = data_of(run, home, folder)
    if dataset is None:
        raise DataError(
            "the data of this run are not at hand",
            expected=f"a dataset with sha256 {run.data['dataset']['sha256'][:12]}",
            todo="pass the folder that the run was trained on with --dataset",
        )
    return dataset


def baselines_of(run: Run, dataset: Dataset | None) -> Baselines | None:
    """Baselines on the run's test split and its sample of candidates; ``None`` without data."""
    if dataset is None:
        return None
    from feddmmr.baselines.baselines import evaluate_baselines  # scipy

    seed = run.stages[0][1]["seed"] if run.stages else 0
    found = evaluate_baselines(dataset, "test", seed)
    return {name: report["all"] for name, report in found.items()}


def require_same(run: Run, dataset: Dataset) -> None:
    """``DataError`` unless the run was trained on these data and features."""
    if different := differences(run, dataset):
        raise DataError(
            f"the run was trained on other {' and '.join(different)}",
            where=str(dataset.folder),
            expected=f"sha256 {run.data[different[0]]['sha256'][:12] or 'none'} of {run.name}",
            got=_records(dataset)[different[0]]["sha256"][:12] or "none",
            todo="pass the dataset that the run was made with; the parts of a split one do not do",
        )


def differences(run: Run, dataset: Dataset) -> list[Part]:
    """Which of "dataset" and "features" are others than the run's, by fingerprint."""
    found = _records(dataset)
    return [name for name in found if found[name]["sha256"] != run.data[name].get("sha256")]


def _records(dataset: Dataset) -> dict[Part, DatasetRecord | FeaturesRecord]:
    """What a manifest would say of these data, if one node hosted all of them."""
    settings = parse_settings(defaults(own_app()))
    everyone = np.arange(dataset.num_users, dtype=np.int64)
    node = Node(settings, Placement("all", 0, 1, dataset.folder), dataset, everyone)
    census = Census({0: node.report()})
    return {"dataset": census.dataset(), "features": census.features()}
