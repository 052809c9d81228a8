"""What is written and what is refused when tables are compiled into a dataset folder."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client_app.data.compile import choose_cold, write_dataset
from client_app.data.dataset import Dataset
from client_app.data.tables import check_features
from shared_model.errors import DataError

Histories = dict[int | str, list[int]]
COLD = {2, 11, 12, 23, 30}


def test_the_same_tables_give_the_same_bytes(make_dataset: Any, small_histories: Histories) -> None:
    unit = np.zeros((30, 4), np.float16)
    unit[3:, 1] = 1
    made = [
        make_dataset(small_histories, num_items=30, cold=COLD, features={"visual": unit, "text": u})
        for u in (unit, unit.copy())
    ]
    assert made[0].info == made[1].info
    assert made[0].features_sha256
    assert len(made[0].info["files"]) == 9
    for dataset in made:
        for name, sha256 in dataset.info["files"].items():
            assert hashlib.sha256((dataset.folder / name).read_bytes()).hexdigest() == sha256


def test_choice_of_cold_items_is_exact_and_a_function_of_seed_and_id() -> None:
    ids = pd.Series(range(1, 101))
    cold = choose_cold(ids, 0.13, 5)
    assert cold.sum() == 13
    shuffled = ids.sample(frac=1, random_state=0)
    assert set(shuffled[choose_cold(shuffled, 0.13, 5) == 1]) == set(ids[cold == 1])
    assert set(ids[choose_cold(ids, 0.13, 6) == 1]) != set(ids[cold == 1])


def test_features_must_fit_and_be_normalised() -> None:
    good = np.eye(3, 4)
    assert check_features({"text": good}, 3)["text"].dtype == np.float16
    for bad, message in [
        (good[:2], r"do not fit.*\[3, dim\].*\[2, 4\]"),
        (good * [[1], [1], [2]], "not normalised; where: item 3.*got 2"),
        (good * [[1], [1e-30], [1]], "not normalised; where: item 2.*got 1e-30"),  # not "missing"
        (np.where(good == 1, np.nan, good), "not normalised; where: item 1.*got nan"),
    ]:
        with pytest.raises(DataError, match=message):
            check_features({"text": bad}, 3)
    with pytest.raises(DataError, match=r"unknown features.*'audio'"):
        check_features({"audio": good}, 3)


def frame(*rows: tuple[Any, Any, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["user_id", "item_id", "timestamp"])


GOOD = [(1, 1, 0), (1, 2, 1), (1, 3, 2)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (frame(*GOOD).drop(columns="timestamp"), "no column timestamp"),
        (frame(*GOOD).iloc[:0], "no interactions"),
        (frame(*GOOD, (1, None, 3)), "missing value; where: interactions, row 3, column item_id"),
        (frame(*GOOD, (1, 2.5, 3)), "no whole number.*row 3, column item_id.*got 2.5"),
        (frame(*GOOD, (-1, 3, 3)), "negative id.*row 3, column user_id.*got -1"),
        (frame(*GOOD, (1, 4, np.nan)), "missing value.*row 3, column timestamp"),
        (frame(*GOOD, (1, 4, np.inf)), "not a number.*row 3, column timestamp"),
        (frame(*GOOD, (1, 4, "noon")), "not a number.*row 3, column timestamp.*got noon"),
        (frame(*GOOD, (1, 9, 3)), "unknown item.*row 3.*got 9"),
        (frame(*GOOD, (1, 2, 3), (1, 2, 4)), "repeated.*row 3.*and 1 more"),
        (frame(*GOOD, (2, 1, 0), (1, 4, 1)), "out of time order.*row 4.*got 1"),
    ],
)
def test_bad_tables_are_refused_and_nothing_is_written(
    tmp_path: Path, table: pd.DataFrame, message: str
) -> None:
    items = pd.DataFrame({"item_id": [1, 2, 3, 4]})
    with pytest.raises(DataError, match=message) as caught:
        write_dataset(tmp_path / "out", table, items, None, "bad")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"id": [1]}, "no column item_id"),
        ({"item_id": [1, 2, 2]}, "item that comes twice.*row 2"),
        ({"item_id": [1, -2]}, "negative id"),
        ({"item_id": [1, 2], "cold": [0, 2]}, "bad value.*row 1, column cold.*0 or 1.*got 2"),
    ],
)
def test_bad_catalogues_are_refused(tmp_path: Path, items: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "out", frame(*GOOD), pd.DataFrame(items), None, "bad")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(small_dataset: Dataset) -> None:
    before = (small_dataset.folder / "dataset.json").read_bytes()
    items = pd.DataFrame({"item_id": [1, 2, 3]})
    with pytest.raises(DataError, match="exists already"):
        write_dataset(small_dataset.folder, frame(*GOOD), items, None, "other")
    assert (small_dataset.folder / "dataset.json").read_bytes() == before


def test_a_failure_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    items = pd.DataFrame({"item_id": [1, 2, 3]})
    with pytest.raises(OSError, match="no space left"):
        write_dataset(tmp_path / "out", frame(*GOOD), items, None, "bad")
    assert list(tmp_path.iterdir()) == []
