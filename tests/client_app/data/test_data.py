"""Opening, splitting, partitioning and padding, against loops over plain lists."""

import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client_app.data.dataset import (
    Dataset,
    cold_rows,
    history_digest,
    open_dataset,
    pad_batch,
    partition_rows,
    split_view,
    training_windows,
)
from client_app.data.folder import sealed_info
from shared_model.errors import DataError
from shared_model.seeds import user_key
from tests.support.histories import (
    Histories,
    rows_of,
)
from tests.support.paths import ROOT

COLD = {2, 11, 12, 23, 30}


def naive_splits(history: list[int], cold: set[int]) -> dict[str, tuple[list[int], int]]:
    """Every split of one user, by the words of the design."""
    kept = [item for item in history if item not in cold]
    splits = {
        "train": (kept[:-2], 0),
        "valid": (kept[:-2], kept[-2]),
        "test": (kept[:-1], kept[-1]),
    }
    for place in reversed(range(len(history))):
        before = [item for item in history[:place] if item not in cold]
        if history[place] in cold and len(before) >= 10:
            splits["cold"] = (before, history[place])
            break
    return splits


def left_padded(rows: list[list[int]], max_length: int) -> list[list[int]]:
    rows = [row[-max_length:] for row in rows]
    width = max(1, *(len(row) for row in rows))
    return [[0] * (width - len(row)) + row for row in rows]


def naive_by_row(histories: Histories, cold: set[int]) -> list[dict[str, tuple[list[int], int]]]:
    enough = [u for u, h in histories.items() if len([i for i in h if i not in cold]) >= 3]
    return [naive_splits(histories[user], cold) for user in sorted(enough)]


@pytest.mark.parametrize("cold", [set(), COLD])
def test_splits_equal_a_loop_over_lists(
    make_dataset: Any, small_histories: Histories, cold: set[int]
) -> None:
    dataset = make_dataset(small_histories, num_items=30, cold=cold)
    expected = naive_by_row(small_histories, cold)
    assert len(expected) == dataset.num_users
    for row, splits in enumerate(expected):
        for split, (inputs, target) in splits.items():
            found = split_view(dataset, row, split)
            assert (found[0].tolist(), found[1]) == (inputs, target)
    with_case = [row for row, splits in enumerate(expected) if "cold" in splits]
    assert cold_rows(dataset, rows_of(dataset)).tolist() == with_case
    assert bool(with_case) == bool(cold)


@pytest.mark.parametrize("max_length", [1, 4, 9, 50])
@pytest.mark.parametrize("split", ["train", "valid", "test", "cold"])
def test_padded_batches_equal_a_loop_over_lists(
    make_dataset: Any, small_histories: Histories, split: Any, max_length: int
) -> None:
    dataset = make_dataset(small_histories, num_items=30, cold=COLD)
    expected = naive_by_row(small_histories, COLD)
    rows = np.array([row for row in range(len(expected)) if split in expected[row]] * 2)[::-1]
    assert len(rows) > 4
    inputs, targets = pad_batch(dataset, rows, split, max_length)
    views = [expected[row][split] for row in rows]
    if split == "train":
        assert inputs.tolist() == left_padded([view[0][:-1] for view in views], max_length)
        assert targets.tolist() == left_padded([view[0][1:] for view in views], max_length)
    else:
        assert inputs.tolist() == left_padded([view[0] for view in views], max_length)
        assert targets.tolist() == [view[1] for view in views]
    assert inputs.dtype == targets.dtype == np.int64


@pytest.mark.parametrize("max_length", [1, 4, 50])
def test_training_windows_are_where_the_last_items_are(
    make_dataset: Any, small_histories: Histories, max_length: int
) -> None:
    dataset = make_dataset(small_histories, num_items=30, cold=COLD)
    expected = naive_by_row(small_histories, COLD)
    rows = np.array([row for row, of in enumerate(expected) if len(of["train"][0]) > 1])[::-1]
    firsts, lengths = training_windows(dataset, rows, max_length)
    ends = firsts + lengths + 1  # the last target is behind the last input
    windows = [dataset.items[at:end].tolist() for at, end in zip(firsts, ends, strict=True)]
    assert windows == [expected[row]["train"][0][-max_length - 1 :] for row in rows]


def test_a_user_with_three_items_has_no_training_pair(make_dataset: Any) -> None:
    dataset = make_dataset({1: [4, 5, 6]}, num_items=6)
    inputs, targets = pad_batch(dataset, np.array([0]), "train", 10)
    assert inputs.tolist() == targets.tolist() == [[0]]
    assert pad_batch(dataset, np.array([0]), "valid", 10)[0].tolist() == [[4]]


def test_a_cold_case_needs_ten_items_before_it(make_dataset: Any) -> None:
    warm = list(range(1, 13))
    dataset = make_dataset(
        {1: [*warm[:10], 13], 2: [*warm[:9], 13, *warm[9:]]}, num_items=13, cold={13}
    )
    assert dataset.cold_target.tolist() == [13, 0]
    assert dataset.cold_length.tolist() == [10, 0]


def test_histories_are_the_rows_asked_for(
    small_dataset: Dataset, small_histories: Histories
) -> None:
    users = sorted(small_histories)
    items, offsets = small_dataset.histories(np.array([4, 0, 4]))
    pieces = [items[a:b].tolist() for a, b in pairwise(offsets)]
    assert pieces == [small_histories[users[row]] for row in (4, 0, 4)]


def test_unknown_split_and_missing_cold_case_are_refused(small_dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="unknown split"):
        pad_batch(small_dataset, rows_of(small_dataset), "tset", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cold_rows"):
        split_view(small_dataset, 0, "cold")


def test_rows_are_sorted_by_number_or_by_text(make_dataset: Any) -> None:
    numbers = make_dataset({10: [1, 2, 3], 9: [4, 5, 6], 100: [1, 3, 5]}, num_items=6)
    assert numbers.user_keys.tolist() == [user_key(user) for user in (9, 10, 100)]
    texts = make_dataset({"b10": [1, 2, 3], "b9": [4, 5, 6], "a": [1, 3, 5]}, num_items=6)
    assert texts.user_keys.tolist() == [user_key(user) for user in ("a", "b10", "b9")]


def test_user_keys_keep_all_64_bits(small_dataset: Dataset, small_histories: Histories) -> None:
    keys = [user_key(user) for user in sorted(small_histories)]
    assert min(keys) < 2**63 < max(keys)  # numpy makes floats of such a mix, if nobody says uint64
    assert small_dataset.user_keys.tolist() == keys


@pytest.mark.parametrize("partitions", [1, 3, 7, 20])
def test_partitions_hold_every_user_once(small_dataset: Dataset, partitions: int) -> None:
    parts = [partition_rows(small_dataset, part, partitions) for part in range(partitions)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(20))
    assert all((rows % partitions == part).all() for part, rows in enumerate(parts))


def test_more_supernodes_than_users_are_refused(small_dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"more SuperNodes than users.*at most 20.*got 21"):
        partition_rows(small_dataset, 0, 21)
    with pytest.raises(DataError, match="no such partition"):
        partition_rows(small_dataset, 3, 3)


def test_digest_adds_up_over_nodes_and_sees_every_change(
    make_dataset: Any, small_histories: Histories
) -> None:
    def digest(histories: Histories, cold: set[int] = COLD) -> int:
        dataset = make_dataset(histories, num_items=30, cold=cold)
        return history_digest(dataset, rows_of(dataset))

    dataset = make_dataset(small_histories, num_items=30, cold=COLD)
    whole = digest(small_histories)
    parts = [history_digest(dataset, partition_rows(dataset, part, 3)) for part in range(3)]
    assert sum(parts) % 2**256 == whole
    assert digest(dict(reversed(small_histories.items()))) == whole
    user = max(small_histories, key=lambda user: len(small_histories[user]))
    kept = [item for item in small_histories[user] if item not in COLD]
    assert len(kept) >= 10
    swapped = [kept[1], kept[0], *kept[2:]]
    assert digest(small_histories | {user: kept}) != digest(small_histories | {user: swapped})
    assert digest({(999 if u == user else u): h for u, h in small_histories.items()}) != whole
    cases = [small_histories | {user: [*kept, item]} for item in (2, 11)]
    assert digest(cases[0]) != digest(cases[1])


def test_users_with_too_few_items_are_skipped_and_counted(make_dataset: Any) -> None:
    histories = {1: [1, 2], 2: [3, 4, 5], 3: [1, 6, 2], 4: [6]}
    dataset = make_dataset(histories, num_items=6, cold={6})
    assert (dataset.num_users, dataset.info["skipped_users"]) == (1, 3)
    stored = pd.read_parquet(dataset.folder / "interactions.parquet")
    assert set(stored["user_id"]) == {2}
    with pytest.raises(DataError, match="no user is left"):
        make_dataset({1: [1, 2]}, num_items=2)


def test_arrays_are_memory_mapped(small_dataset: Dataset) -> None:
    for name in ("user_keys", "indptr", "items", "cold_target", "cold_length"):
        assert isinstance(getattr(small_dataset, name).base, np.memmap), name


def test_opening_needs_no_pandas(demo_folder: Path) -> None:
    code = (
        "import sys; from client_app.data.dataset import open_dataset; "
        "from client_app.data import demo; "
        f"open_dataset({str(demo_folder)!r}); "
        "sys.exit(int('pandas' in sys.modules or 'pyarrow' in sys.modules))"
    )
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == 0


def test_relative_path_is_refused_with_the_absolute_one(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_dataset.folder.parent)
    with pytest.raises(DataError, match="relative") as caught:
        open_dataset(small_dataset.folder.name)
    assert str(small_dataset.folder) in str(caught.value)


def test_missing_and_raw_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist.*nowhere.*feddmmr data import"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "interactions.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"not an imported dataset.*do: run `feddmmr data import"):
        open_dataset(tmp_path)


def test_changed_missing_and_foreign_files_are_refused(small_dataset: Dataset) -> None:
    folder = small_dataset.folder
    with (folder / "items.csv").open("a") as file:
        file.write("31,0\n")
    with pytest.raises(DataError, match=r"changed after the import.*items\.csv"):
        open_dataset(folder)
    (folder / "items.csv").unlink()
    with pytest.raises(DataError, match=r"missing or unreadable.*items\.csv"):
        open_dataset(folder)
    (folder / "dataset.json").write_text('{"format": 2, "files": {}}')
    with pytest.raises(DataError, match=r"expected format 1.*got format 2"):
        open_dataset(folder)
    (folder / "dataset.json").write_text('{"format": 1, "files": {}}')
    with pytest.raises(DataError, match=r"changed after the import.*another version of the app"):
        open_dataset(folder)
    (folder / "dataset.json").write_text(sealed_info({"format": 1, "files": {}}))
    with pytest.raises(DataError, match="lists too few files"):
        open_dataset(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json cannot be read"):
        open_dataset(folder)


def replace_array(dataset: Dataset, name: str, array: np.ndarray) -> Path:
    """Another array under the same name, with its hash: damage that hashes do not show."""
    path = dataset.folder / "arrays" / f"{name}.npy"
    np.save(path, array)
    info = dataset.info | {"files": dict(dataset.info["files"])}
    info["files"][f"arrays/{name}.npy"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (dataset.folder / "dataset.json").write_text(sealed_info(info))
    return dataset.folder


def changed(array: np.ndarray, place: int, value: int) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("items", lambda a: a.astype("<i8"), "wrong type or shape.*int32.*int64"),
        ("items", lambda a: a[:-1], "lengths of"),
        ("items", lambda a: changed(a, 3, 31), "not 1 to 30"),
        ("items", lambda a: changed(a, 3, 0), "not 1 to 30"),
        ("items", lambda a: changed(a, 3, 2), "cold item in a history"),
        ("indptr", lambda a: changed(a, 1, a[2] + 1), "fewer than 3"),
        ("indptr", lambda a: a[1:], "lengths of"),
        ("user_keys", lambda a: changed(a, 1, a[0]), "comes twice"),
        ("cold_target", lambda a: changed(a, int(a.argmax()), 1), "not a cold item"),
        ("cold_length", lambda a: changed(a, int(a.argmax()), 9), "cold_length"),
        ("cold_length", lambda a: changed(a, int(a.argmax()), 26), "cold_length"),
    ],
)
def test_inconsistent_arrays_are_refused(
    make_dataset: Any, small_histories: Histories, name: str, change: Any, message: str
) -> None:
    dataset = make_dataset(small_histories, num_items=30, cold=COLD)
    folder = replace_array(dataset, name, change(np.array(getattr(dataset, name))))
    with pytest.raises(DataError, match=message):
        open_dataset(folder)
