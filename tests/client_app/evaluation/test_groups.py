"""Popularity buckets: how they are cut, what they are counted from; the table of all groups."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from client_app.data.compile import write_dataset
from client_app.data.dataset import open_dataset
from client_app.data.popularity import popularity_buckets
from client_app.evaluation.target_groups import COLD_GROUPS, WARM_GROUPS
from server_app.record.results import TABLE_GROUPS, groups_table
from shared_model.errors import DataError
from shared_model.protocol.metrics import merge
from tests.support.evaluated import evaluated
from tests.support.naive_evaluation import FEW_COLD, HISTORIES, MANY_COLD, write


def test_popularity_buckets_are_thirds_and_equals_share_one() -> None:
    counts = np.array([10, 50, 10, 0, 30, 0, 5])
    cold = np.array([0, 0, 0, 0, 0, 1, 0], dtype=bool)
    # Shares of more popular items: 80, 0, 80, 105, 50, -, 100 of 105.
    expected = ["tail", "head", "tail", "tail", "middle", "", "tail"]
    assert popularity_buckets(counts, cold) == expected
    assert popularity_buckets(np.full(4, 7), np.zeros(4, bool)) == ["head"] * 4
    assert popularity_buckets(np.zeros(2, int), np.array([False, True])) == ["head", ""]


def test_popularity_counts_train_interactions_only(tmp_path: Path) -> None:
    """Invariant 7: whoever reads items.csv learns nothing about what is held out."""
    swapped = {user: [*h[:-2], h[-1], h[-2]] for user, h in HISTORIES.items()}
    swapped[0] = [*HISTORIES[0][:-1], next(i for i in range(1, 261) if i not in HISTORIES[0])]
    texts = [
        (write(tmp_path / name, data, frozenset()).folder / "items.csv").read_text()
        for name, data in (("a", HISTORIES), ("b", swapped))
    ]
    assert texts[0] == texts[1]
    assert texts[0].startswith("item_id,popularity_bucket,cold\n")
    assert {line.split(",")[1] for line in texts[0].splitlines()[1:]} == {"head", "middle", "tail"}


def test_a_catalogue_without_popularity_has_no_such_buckets(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", HISTORIES, FEW_COLD, popularity=False)
    assert set(dataset.popularity) == {-1}
    groups = evaluated(dataset, np.arange(dataset.num_users), "test").report()
    assert not [group for group in groups if group.startswith("popularity")]
    assert "history-long" in groups


def test_a_bad_popularity_bucket_is_refused(tmp_path: Path) -> None:
    interactions = pd.DataFrame({"user_id": 1, "item_id": [1, 2, 3], "timestamp": [1, 2, 3]})
    items = pd.DataFrame({"item_id": [1, 2, 3], "popularity_bucket": ["head", "", "top"]})
    write_dataset(tmp_path / "bad", interactions, items, None, "bad")
    with pytest.raises(DataError, match=r"column popularity_bucket.*item 3.*or head.*'top'"):
        open_dataset(tmp_path / "bad")


def test_the_table_of_all_groups_leaves_buckets_out(tmp_path: Path) -> None:
    assert (*WARM_GROUPS, "as-cold", *COLD_GROUPS) == TABLE_GROUPS
    dataset = write(tmp_path / "data", HISTORIES, MANY_COLD)
    reports = {
        s: merge([evaluated(dataset, np.arange(30), s).sums]).report() for s in ("valid", "test")
    }
    document: Any = {"run": "r", "stages": {"1": {"status": "complete", **reports}}}
    with (console := Console(width=80)).capture() as said:
        console.print(groups_table(document))
    lines = [line for line in said.get().splitlines() if re.match(" *1 ", line)]
    test_rows = [["test", group] for group in TABLE_GROUPS]
    valid_rows = [["valid", group] for group in (*WARM_GROUPS, "as-cold")]
    assert [line.split()[1:3] for line in lines] == valid_rows + test_rows
