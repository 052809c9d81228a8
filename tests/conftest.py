"""Fixtures: small datasets, the demo, MovieLens-1M if it is at hand, and whole runs in process."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from client_app.data.compile import write_dataset
from client_app.data.dataset import Dataset, open_dataset
from client_app.data.demo import demo_dataset
from feddmmr.data.importers import ImportOptions, import_dataset
from feddmmr.launch.in_process import run_in_process
from server_app.privacy import ledger
from shared_model.protocol.gaussian import draw_secret
from tests.support.paths import DATA

pytest_plugins = ["tests.support.staged", "tests.support.runs_command"]  # their fixtures

MakeDataset = Callable[..., Dataset]
ML1M = DATA / "ml-1m"


# pytest-xdist hands each of three workers two files at once. So the second three wait behind the
# first three: what sleeps most (a minute without a heartbeat) behind the shortest of these.
FIRST = (
    *("test_e2e_compose", "test_readme", "test_e2e_deployment"),
    *("test_features_real", "test_e2e_ray_cluster", "test_e2e_simulation"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real runs begin first, the longest before all: other files fill the time that they wait."""

    def order(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.stem
        place = FIRST.index(name) if name in FIRST else len(FIRST)
        return place, item.get_closest_marker("slow") is None

    items.sort(key=order)


@pytest.fixture(scope="session")
def ml1m_folder() -> Path:
    """The raw MovieLens-1M folder; its licence keeps it outside the repository."""
    if not (ML1M / "interactions.parquet").is_file():
        pytest.skip("MovieLens-1M is not at hand (../shared/data/ml-1m)")
    return ML1M


@pytest.fixture(scope="session")
def ml1m_dataset(ml1m_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """MovieLens-1M, imported once a session."""
    folder = tmp_path_factory.mktemp("ml1m") / "dataset"
    import_dataset(ml1m_folder, folder, ImportOptions(name="ml-1m"))
    return open_dataset(folder)


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo dataset's folder; tests only read it."""
    return demo_dataset(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Builds a dataset from histories: make_dataset({user: [item ids]}, num_items=9, cold={3})."""
    built: list[Path] = []

    def make(
        histories: Mapping[int | str, Sequence[int]],
        *,
        num_items: int,
        cold: Sequence[int] | set[int] = (),
        features: Mapping[str, np.ndarray] | None = None,
    ) -> Dataset:
        rows = [
            (user, item, time)
            for user, history in histories.items()
            for time, item in enumerate(history)
        ]
        interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
        items = pd.DataFrame({"item_id": range(1, num_items + 1)})
        items["cold"] = items["item_id"].isin(list(cold)).astype(int)
        folder = tmp_path / f"dataset-{len(built)}"
        write_dataset(folder, interactions, items, features, "small")
        built.append(folder)
        return open_dataset(folder)

    return make


@pytest.fixture
def small_histories() -> dict[int | str, list[int]]:
    """20 users with 3 to 25 of 30 items, none twice."""
    random = np.random.default_rng(7)
    lengths = random.integers(3, 26, 20)
    return {
        100 - user: (random.permutation(30)[:length] + 1).tolist()
        for user, length in enumerate(lengths)
    }


@pytest.fixture
def small_dataset(
    make_dataset: MakeDataset, small_histories: dict[int | str, list[int]]
) -> Dataset:
    """The dataset of `small_histories`, without cold items and features."""
    return make_dataset(small_histories, num_items=30)


SMALL: dict[str, Any] = {
    "num_rounds": 3,
    "evaluate_every": 1,
    "fraction_train": 0.6,
    "hidden_size": 16,
    "num_blocks": 1,
    "max_length": 10,
    "dropout": 0.0,
    "users_per_batch": 4,
}


@pytest.fixture
def run(tmp_path: Path, small_dataset: Dataset) -> Any:
    """Runs Stage 1 in process on the small dataset, under a home of its own."""

    def go(nodes: int = 1, **overrides: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {"home": str(tmp_path / "home"), "stage": 1}
        settings["dataset"] = str(small_dataset.folder)
        return run_in_process(nodes, **(settings | SMALL | overrides))

    return go


class CutError(Exception):
    """The server process dies."""


def checkpoint(tmp_path: Path, run: str, manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    folder = tmp_path / "home" / "runs" / run
    return load_file(folder / manifest["stages"]["1"]["checkpoint"])


@pytest.fixture
def one_secret(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on all runs draw the same secret, so that they can be compared; or draw again."""
    monkeypatch.setattr(ledger, "draw_secret", lambda: bytes(range(32)))
    return lambda: monkeypatch.setattr(ledger, "draw_secret", draw_secret)
