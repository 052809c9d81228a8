"""The order of a user's events of one time: by the rule of docs/data.md, never by row or item."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_app.data.dataset import open_dataset
from feddmmr.data.importers import split_dataset
from feddmmr.data.ties import users_sharing_newest_time
from shared_model.errors import DataError
from tests.support.fuzzing import cases
from tests.support.imports import Rating, histories_of, import_to, write, write_ratings_csv
from tests.support.paths import DATA

HEADER = "user_id,item_id,rating,timestamp"
MASK = (1 << 64) - 1


def sha(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def finalised(x: int) -> int:
    """SplitMix64's finaliser, in Python's own integers."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def place(user: object, item: object) -> int:
    """By what the events of one user and time are ordered, from the words of the rule."""
    key = sha(f"str:user\x1fstr:{user}") ^ sha(f"str:item\x1fstr:{item}")
    return finalised(finalised((key + 0x9E3779B97F4A7C15) & MASK) ^ sha("str:ties"))


def by_the_rule(ratings: list[Rating]) -> dict[Any, list[Any]]:
    histories: dict[Any, list[Any]] = {}
    for user, item, _, _ in sorted(ratings, key=lambda r: (r[0], r[3], place(r[0], r[1]))):
        histories.setdefault(user, []).append(item)
    return histories


def tied_ratings(seed: int, times: int = 4) -> list[Rating]:
    """user, item, rating, time of 6 users and 12 items, each pair once, at few times."""
    random = np.random.default_rng(seed)
    return [
        (user, int(item), int(random.integers(1, 6)), int(random.integers(times)))
        for user in range(1, 7)
        for item in random.permutation(12)[: 5 + user] + 1
    ]


def write_csv(path: Path, ratings: list[Rating]) -> Path:
    return write(path, [HEADER, *(",".join(map(str, row)) for row in ratings)])


def test_ties_are_ordered_by_the_hash_of_user_and_item(tmp_path: Path) -> None:
    """Also in a file that is in time order already, and needs no --sort."""
    ratings = tied_ratings(1)
    write_ratings_csv(tmp_path / "source", ratings)
    expected = by_the_rule(ratings)
    assert histories_of(import_to(tmp_path / "sorted", tmp_path / "source")) == expected
    in_order = write_csv(tmp_path / "a.csv", sorted(ratings, key=lambda row: row[3]))
    assert histories_of(import_to(tmp_path / "as-it-is", in_order)) == expected
    assert expected != histories_of(import_to(tmp_path / "rows", in_order, ties="rows"))


def test_ids_of_text_follow_the_same_rule(tmp_path: Path) -> None:
    rows = [f"anna,{item},0,5" for item in ("x", "y", "z", "7", "ä")]
    dataset = import_to(tmp_path / "out", write(tmp_path / "a.csv", [HEADER, *rows]))
    found = histories_of(dataset)["anna"]
    assert found == sorted(("x", "y", "z", "7", "ä"), key=lambda item: place("anna", item))


def test_no_item_comes_first_more_often_than_another(tmp_path: Path) -> None:
    """400 users met 10 items at one time: an order by item id would be learned at once."""
    rows = [f"{user},{item},0,0" for user in range(400) for item in range(10)]
    dataset = import_to(tmp_path / "out", write(tmp_path / "a.csv", [HEADER, *rows]))
    histories = np.array(list(histories_of(dataset).values()))  # [400, 10]
    places = histories.argsort(axis=1, kind="stable")
    for item in range(10):
        assert 15 <= (histories[:, -1] == item).sum() <= 65  # 40 expected, deviation 6
        for other in range(item):
            assert 0.375 <= (places[:, item] < places[:, other]).mean() <= 0.625  # five deviations


def test_ties_as_rows_keep_the_order_of_the_file(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", [HEADER, "1,3,0,5", "1,1,0,5", "1,2,0,5", "1,4,0,6"])
    dataset = import_to(tmp_path / "out", source, ties="rows")
    assert histories_of(dataset) == {1: [3, 1, 2, 4]}
    assert dataset.info["imported"]["ties"] == {"rule": "rows", "users_sharing_newest_time": 0}


def sealed_bytes(folder: Path, ratings: list[Rating], **options: Any) -> bytes:
    """dataset.json, which has the hash of every other file, of an import of these rows."""
    source, output = folder / "source", folder / "out"
    source.mkdir(parents=True)
    write_ratings_csv(source, ratings)
    import_to(output, source, **options)
    content = (output / "dataset.json").read_bytes()
    shutil.rmtree(folder)
    return content


FILTERS = [
    {},
    {"min_rating": 2, "k_core": 2, "cold_fraction": 0.1},
    {"most_active": 3, "last": 4, "k_core": 2},
]


def test_shuffled_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """Ties in time, and users and items that are equally active, in every order of the rows."""

    @cases(15)
    @given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(FILTERS))
    def check(seed: int, order: int, options: dict[str, Any]) -> None:
        ratings = tied_ratings(seed)
        shuffled = [ratings[row] for row in np.random.default_rng(order).permutation(len(ratings))]
        folder = tmp_path / "one"
        first = sealed_bytes(folder, ratings, **options)
        assert sealed_bytes(folder, shuffled, **options) == first

    check()


@pytest.mark.parametrize("keep", ["first", "last"])
def test_which_of_two_equal_events_stays_changes_nothing(tmp_path: Path, keep: str) -> None:
    """The same user, item and time with other ratings: --min-rating looks at each before."""
    ratings = [*tied_ratings(2), *((u, i, 6 - r, t) for u, i, r, t in tied_ratings(2)[:20])]
    ratings += [(u, i, r, t + 2) for u, i, r, t in tied_ratings(2)[10:30]]
    options = {"min_rating": 3, "duplicates": keep}
    found = {
        sealed_bytes(tmp_path / "one", [ratings[row] for row in order], **options)
        for order in (np.random.default_rng(seed).permutation(len(ratings)) for seed in range(4))
    }
    assert len(found) == 1
    best = {}
    for user, item, rating, time in sorted(ratings, key=lambda row: row[3]):
        if rating >= 3 and (keep == "last" or (user, item) not in best):
            best[user, item] = (user, item, rating, time)
    write_ratings_csv(tmp_path / "source", ratings)
    dataset = import_to(tmp_path / "out", tmp_path / "source", **options)
    expected = {u: h for u, h in by_the_rule(list(best.values())).items() if len(h) >= 3}
    assert histories_of(dataset) == expected


def test_the_first_of_a_pair_is_the_earliest_and_time_order_is_checked_before(
    tmp_path: Path,
) -> None:
    """Else the row that is out of order could be the one that is dropped, or the one that stays."""
    rows = ["1,1,0,5", "1,1,0,3", "1,2,0,6", "1,3,0,7"]
    source = write(tmp_path / "a.csv", [HEADER, *rows])
    with pytest.raises(DataError, match=r"out of time order.*line 3"):
        import_to(tmp_path / "out", source, duplicates="first")
    dataset = import_to(tmp_path / "out", source, duplicates="first", sort=True)
    times = pd.read_parquet(dataset.folder / "interactions.parquet")["timestamp"]
    assert times.tolist() == [3, 6, 7]


def test_users_that_share_their_newest_time_are_counted(tmp_path: Path) -> None:
    """User 1: two events at the newest time; 2: a tie before it; 3: only one that is not cold."""
    rows = ["1,1,0,5", "1,2,0,8", "1,3,0,8", "2,1,0,5", "2,2,0,5", "2,3,0,9"]
    rows += ["3,1,0,1", "3,2,0,2", "3,3,0,3", "3,4,0,3"]
    source = write(tmp_path / "a.csv", [HEADER, *rows])
    items = write(tmp_path / "items.csv", ["item_id,cold", "1,0", "2,0", "3,0", "4,1"])
    dataset = import_to(tmp_path / "out", source, items=items)
    assert dataset.info["imported"]["ties"] == {"rule": "hash", "users_sharing_newest_time": 1}
    table = pd.read_csv(source)
    assert users_sharing_newest_time(table) == 2
    assert users_sharing_newest_time(table.sample(frac=1, random_state=0)) == 2


@pytest.mark.parametrize("ties", ["hash", "rows"])
def test_an_import_of_an_import_and_a_split_keep_the_order(tmp_path: Path, ties: str) -> None:
    """A split for either rule: it takes the order as the first import fixed it."""
    source = write_csv(tmp_path / "a.csv", sorted(tied_ratings(3), key=lambda row: row[3]))
    whole = import_to(tmp_path / "whole", source, ties=ties)
    again = import_to(tmp_path / "again", whole.folder, ties=ties)
    assert again.info["files"] == whole.info["files"]
    split_dataset(whole.folder, tmp_path / "parts", 2)
    parts = [open_dataset(tmp_path / "parts" / f"part-{part}") for part in range(2)]
    assert histories_of(parts[0]) | histories_of(parts[1]) == histories_of(whole)


def test_shuffled_rows_of_movielens_give_the_same_bytes(tmp_path: Path) -> None:
    folder = DATA / "ml-latest-small"
    if not (folder / "ratings.csv").is_file():
        pytest.skip("MovieLens latest-small is not at hand (../shared/data/ml-latest-small)")
    ratings = pd.read_csv(folder / "ratings.csv", dtype=str)
    found = []
    for seed in (0, 1):
        source = tmp_path / str(seed) / "ml"
        source.mkdir(parents=True)
        shutil.copy(folder / "movies.csv", source)
        ratings.sample(frac=1, random_state=seed).to_csv(source / "ratings.csv", index=False)
        dataset = import_to(tmp_path / str(seed) / "out", source, k_core=5)
        found.append((dataset.folder / "dataset.json").read_bytes())
    assert found[0] == found[1]
    imported = json.loads(found[0])["imported"]
    assert imported["read"] == {"interactions": 100_004, "users": 671, "items": 9_125}
    assert imported["kept"] == {"interactions": 90_072, "users": 671, "items": 3_496}
