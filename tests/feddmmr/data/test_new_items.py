"""Items that nobody has met yet: in the catalogue as cold items, and within reach of a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from client_app.data.dataset import Dataset, open_dataset
from client_app.evaluation.target_groups import candidates
from feddmmr.launch.in_process import run_in_process
from tests.support.imports import histories_of, import_to, write
from tests.support.runs_command import SHORT, Feddmmr, manifest

HEADER = "user_id,item_id,timestamp"


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, Path]:
    """Items 1 to 4 are met by three users, 5 by one. Nobody met 6 (text), 7 (picture), 8 and 9.

    Nothing is known of 8 and 9; the items file marks 9 cold.
    """
    rows = [f"{user},{item},{item}" for user in range(3) for item in range(1, 5)]
    listed = [f"{item},{int(item == 9)}" for item in (6, 1, 2, 9, 3, 4, 5, 7, 8)]
    features = tmp_path / "features"
    features.mkdir()
    np.save(features / "item_ids.npy", np.arange(1, 10))
    np.save(features / "text.npy", np.eye(9) * (np.arange(1, 10) < 7)[:, None])
    np.save(features / "visual.npy", np.eye(9) * (np.arange(1, 10) == 7)[:, None])
    return {
        "source": write(tmp_path / "a.csv", [HEADER, *rows, "0,5,5"]),
        "items": write(tmp_path / "items.csv", ["item_id,cold", *listed]),
        "features": features,
    }


def cold_of(dataset: Dataset) -> dict[int, int]:
    """Whether each item is cold, by its id, in the catalogue's order."""
    items = pd.read_csv(dataset.folder / "items.csv")
    return dict(zip(items["item_id"].tolist(), items["cold"].tolist(), strict=True))


def test_new_items_stay_as_cold_ones_if_they_can_be_reached(
    tmp_path: Path, shop: dict[str, Path]
) -> None:
    """The core takes 5, which somebody met; 8 has no features."""
    dataset = import_to(tmp_path / "out", **shop, k_core=3)
    assert list(cold_of(dataset).items()) == [
        (6, 1),
        (1, 0),
        (2, 0),
        (9, 1),
        (3, 0),
        (4, 0),
        (7, 1),
    ]
    assert histories_of(dataset) == {user: [1, 2, 3, 4] for user in range(3)}
    text = load_file(dataset.folder / "features.safetensors")["text"]
    assert [row.argmax() + 1 if row.any() else 0 for row in text] == [6, 1, 2, 0, 3, 4, 0]
    imported = dataset.info["imported"]
    dropped = {rule["reason"]: rule["items"] for rule in imported["dropped"]}
    assert (dropped["k-core of 3"], dropped["no interactions and no features"]) == (1, 1)
    assert (imported["new_items"], dataset.info["cold_items"], dataset.info["cold_cases"]) == (
        3,
        3,
        0,
    )
    buckets = pd.read_csv(dataset.folder / "items.csv")["popularity_bucket"]
    assert buckets.isna().tolist() == [True, False, False, True, False, False, True]


def test_without_features_only_what_is_marked_stays(tmp_path: Path, shop: dict[str, Path]) -> None:
    dataset = import_to(tmp_path / "out", shop["source"], items=shop["items"])
    assert cold_of(dataset) == {1: 0, 2: 0, 9: 1, 3: 0, 4: 0, 5: 0}
    assert dataset.info["imported"]["dropped"][-2]["items"] == 3


def test_new_items_are_dropped_if_that_is_wanted(tmp_path: Path, shop: dict[str, Path]) -> None:
    dataset = import_to(tmp_path / "out", **shop, new_items="drop")
    assert cold_of(dataset) == {1: 0, 2: 0, 3: 0, 4: 0, 5: 0}
    rule = dataset.info["imported"]["dropped"][-2]
    assert (rule["reason"], rule["items"]) == ("no interactions (--new-items drop)", 4)
    assert dataset.info["imported"]["new_items"] == 0


def test_an_item_that_a_filter_took_is_not_new(tmp_path: Path, shop: dict[str, Path]) -> None:
    """Not by its rating either: somebody met it."""
    rows = [f"{u},{i},{5 - 4 * (i == 4)},{i}" for u in range(3) for i in range(1, 5)]
    source = write(tmp_path / "b.csv", ["user_id,item_id,rating,timestamp", *rows])
    dataset = import_to(tmp_path / "out", **(shop | {"source": source}), min_rating=2)
    assert cold_of(dataset) == {6: 1, 1: 0, 2: 0, 9: 1, 3: 0, 5: 1, 7: 1}


def test_cold_items_are_chosen_among_those_that_have_interactions(
    tmp_path: Path, shop: dict[str, Path]
) -> None:
    """40% of the five that were met: two, the same ones as without new items."""
    dataset = import_to(tmp_path / "out", **shop, cold_fraction=0.4)
    without = import_to(tmp_path / "without", **shop, cold_fraction=0.4, new_items="drop")
    chosen = {item for item, cold in cold_of(without).items() if cold}
    assert len(chosen) == 2
    assert {item for item, cold in cold_of(dataset).items() if cold} == chosen | {6, 7, 9}
    assert histories_of(dataset) == histories_of(without)


def test_an_import_of_an_import_keeps_new_items(tmp_path: Path, shop: dict[str, Path]) -> None:
    first = import_to(tmp_path / "first", **shop)
    second = import_to(tmp_path / "second", first.folder)
    assert second.info["files"] == first.info["files"]


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with a run of all stages and its dataset: 24 users, 20 items, new ones 21 to 23."""
    folder = tmp_path_factory.mktemp("growing")
    random = np.random.default_rng(8)
    rows = [
        f"{user},{item},{time}"
        for user in range(24)
        for time, item in enumerate(random.permutation(20)[:12] + 1)
    ]
    vectors = random.standard_normal((23, 8))
    np.save(folder / "text.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    np.save(folder / "item_ids.npy", np.arange(1, 24))
    source = write(folder / "a.csv", [HEADER, *rows])
    items = write(folder / "items.csv", ["item_id,title", *(f"{i},item {i}" for i in range(1, 24))])
    dataset = import_to(folder / "dataset", source, items=items, features=folder)
    assert dataset.info["imported"]["new_items"] == 3
    home = folder / "home"
    given = {"home": str(home), "dataset": str(dataset.folder), "server_learning_rate": 0.03}
    run_in_process(2, **(SHORT | given))
    return home, dataset.folder


def test_a_new_item_can_be_recommended(
    feddmmr: Feddmmr,
    growing: tuple[Path, Path],
) -> None:
    """By Stage 3 among the best 3 of 11 that a user has not met; Stage 1 has no say about it."""
    home, dataset = growing
    where = ("recommend", "--home", home, "--dataset", dataset, "--json", "--top", 3)
    met: set[str] = set()
    for user in range(24):
        code, out, err = feddmmr(*where, "--user", user)
        assert (code, err) == (0, "")
        listed = json.loads(out)["recommendations"]
        met |= {one["item_id"] for one in listed if one["cold"]}
        first = json.loads(feddmmr(*where, "--user", user, "--stage", 1)[1])["recommendations"]
        assert not any(one["cold"] for one in first)
    assert met
    assert met <= {"21", "22", "23"}


def test_new_items_are_candidates_but_no_targets(growing: tuple[Path, Path]) -> None:
    """So there is no group "cold", and "all" is ranked among the items that somebody met."""
    home, folder = growing
    data: Any = manifest(home, "default")
    assert data["dataset"]["cold_items"] == 3
    for record in data["stages"].values():
        assert {"all", "all-with-cold"} <= record["test"].keys()
        assert not record["test"].keys() & {"cold", "cold-only"}
    dataset = open_dataset(folder)
    assert np.flatnonzero(candidates(dataset, "all")).tolist() == list(range(1, 21))
    assert np.flatnonzero(candidates(dataset, "all-with-cold")).tolist() == list(range(1, 24))
