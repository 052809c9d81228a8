"""An imported dataset, opened: users and items as memory-mapped CSR arrays in time order.

Letters: U users, I items, N interactions, B rows of a batch, T positions. Item indices run from 1
to I; 0 is PAD. A *row* is a user's place in the sorted user ids of its folder. Opening a dataset
needs numpy alone, since every message to a node may be a new process.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client_app.data.folder import (
    DTYPES,
    PAD,
    check_arrays,
    check_file,
    load_array,
    read_catalogue,
    read_info,
)
from client_app.data.split import Ints as Ints
from client_app.data.split import Split as Split
from client_app.data.split import ends, train_lengths, train_places
from shared_model.errors import DataError
from shared_model.seeds import STRIDE, UInt64, mix, stable_hash

Rows = npt.NDArray[np.int64]
Items = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Dataset:
    """The users of one folder. `indptr[row]:indptr[row + 1]` are a user's places in `items`."""

    folder: Path
    info: dict[str, Any] = field(repr=False)  # the content of dataset.json
    user_keys: npt.NDArray[np.uint64] = field(repr=False)  # [U]
    indptr: Ints = field(repr=False)  # [U + 1]
    items: Items = field(repr=False)  # [N], no cold item among them
    cold_target: Items = field(repr=False)  # [U], 0 = the user has no cold test case
    cold_length: Items = field(repr=False)  # [U], items before the cold test case
    cold: npt.NDArray[np.bool_] = field(repr=False)  # [I + 1]
    popularity: npt.NDArray[np.int8] = field(repr=False)  # [I + 1], place in POPULARITY, -1 = none
    catalogue_sha256: str  # of items.csv
    features_sha256: str  # of features.safetensors, "" if there is none

    @property
    def num_users(self) -> int:
        """Number of users, U."""
        return len(self.user_keys)

    @property
    def num_items(self) -> int:
        """Number of catalogue items, I, cold ones included."""
        return len(self.cold) - 1

    def lengths(self, rows: Rows) -> Ints:
        """How many (non-cold) items each user has: int64 [B]."""
        lengths: Ints = self.indptr[rows + 1] - self.indptr[rows]
        return lengths

    def train_lengths(self, rows: Rows) -> Ints:
        """How many of them are trained on: int64 [B]."""
        return train_lengths(self.lengths(rows))

    @cached_property
    def warm(self) -> npt.NDArray[np.bool_]:
        """The items that can be trained on: no cold one, no padding. bool [I + 1], not to write."""
        warm = ~self.cold
        warm[PAD] = False
        return warm

    def histories(self, rows: Rows) -> tuple[Items, Ints]:
        """Whole histories of `rows` as CSR: items int32 [n] and offsets int64 [B + 1]."""
        lengths = self.lengths(rows)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        places = np.arange(offsets[-1]) + np.repeat(self.indptr[rows] - offsets[:-1], lengths)
        return self.items[places], offsets

    def draw_keys(self, rows: Rows) -> UInt64:
        """By which users are drawn under differential privacy, of id and training part: uint64 [B].

        Two sites may give two people the same id; each has a coin of its own all the same.
        """
        items, offsets = self.histories(rows)
        lengths = np.diff(offsets)
        places = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
        names = items.astype(np.uint64) ^ (places.astype(np.uint64) * STRIDE)
        hashed = mix(stable_hash("draw"), names)
        hashed[~train_places(offsets)] = 0
        keys: UInt64 = self.user_keys[rows] + np.add.reduceat(hashed, offsets[:-1])
        return keys


def open_dataset(path: str | Path) -> Dataset:
    """Open and check an imported dataset folder.

    Raises DataError if the path is relative, missing, unreadable or not an imported dataset, if a
    file was changed since the import, or if the arrays contradict one another.
    """
    folder = Path(path)
    if not folder.is_absolute():
        raise DataError(
            "the dataset path is relative, and the app runs from another folder",
            where=f"dataset = {str(path)!r}",
            expected="an absolute path",
            todo=f"pass dataset={str(folder.resolve())!r}",
        )
    info = read_info(folder)
    for name, expected in info["files"].items():
        check_file(folder / name, expected)
    arrays = {name: load_array(folder, name) for name in DTYPES}
    cold, popularity = read_catalogue(folder / "items.csv")
    check_arrays(folder, arrays, cold, info)
    return Dataset(
        folder=folder,
        info=info,
        cold=cold,
        popularity=popularity,
        catalogue_sha256=info["files"]["items.csv"],
        features_sha256=info["files"].get("features.safetensors", ""),
        **arrays,
    )


def partition_rows(dataset: Dataset, partition: int, num_partitions: int) -> Rows:
    """Rows of the users that partition `partition` of `num_partitions` hosts: int64 [B].

    Raises DataError if there are more partitions than users, or no such partition.
    """
    if not 0 <= partition < num_partitions:
        raise DataError(
            "no such partition", expected=f"0 to {num_partitions - 1}", got=str(partition)
        )
    if num_partitions > dataset.num_users:
        raise DataError(
            "more SuperNodes than users",
            where=str(dataset.folder),
            expected=f"at most {dataset.num_users} SuperNodes",
            got=str(num_partitions),
            todo="start fewer SuperNodes, or import more users",
        )
    return np.arange(partition, dataset.num_users, num_partitions, dtype=np.int64)


def cold_rows(dataset: Dataset, rows: Rows) -> Rows:
    """Those of `rows` that have a cold test case: int64 [<= B]."""
    having: Rows = rows[dataset.cold_target[rows] != PAD]
    return having


def input_lengths(dataset: Dataset, rows: Rows, split: Split) -> Ints:
    """How many items the whole input of each row has, before it is cut: int64 [B]."""
    stops, _ = _ends_and_targets(dataset, rows, split)
    lengths: Ints = stops - dataset.indptr[rows]
    return lengths


def has_training(dataset: Dataset, rows: Rows) -> npt.NDArray[np.bool_]:
    """Which of the users have an input and a target that are neither valid nor test: bool [B]."""
    having: npt.NDArray[np.bool_] = dataset.train_lengths(rows) >= 2
    return having


def split_view(dataset: Dataset, row: int, split: Split) -> tuple[Items, int]:
    """One user's (input items int32 [n], target item) of a split; "train" has target 0 (PAD).

    Raises ValueError for an unknown split, and for "cold" if the user has no cold test case.
    """
    rows = np.array([row], dtype=np.int64)
    stops, targets = _ends_and_targets(dataset, rows, split)
    return dataset.items[dataset.indptr[row] : stops[0]], int(targets[0])


def pad_batch(
    dataset: Dataset, rows: Rows, split: Split, max_length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Left-padded batch of a split: inputs int64 [B, T], T <= max_length the longest one needed.

    Targets are int64 [B, T] for "train" (the item that follows each input, 0 = none) and int64 [B]
    for the others. Raises ValueError as `split_view` does, and for max_length < 1.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    stops, targets = _ends_and_targets(dataset, rows, split)
    starts = dataset.indptr[rows]
    if split != "train":
        return _windows(dataset.items, starts, stops, max_length), targets
    # A user with one train item has no (input, target) pair: its row is all PAD.
    inputs = _windows(dataset.items, starts, stops - 1, max_length)
    return inputs, _windows(dataset.items, starts + 1, stops, max_length)


def training_windows(dataset: Dataset, rows: Rows, max_length: int) -> tuple[Ints, Ints]:
    """Where the inputs of `pad_batch` of "train" are in `dataset.items`, for users with a target:
    the place of each one's first, and how many, int64 [B] both. Each has its target behind it.
    """
    stops, _ = _ends_and_targets(dataset, rows, "train")
    lengths = np.minimum(stops - 1 - dataset.indptr[rows], max_length)
    return stops - 1 - lengths, lengths


def membership(dataset: Dataset, rows: Rows, counts: Ints) -> npt.NDArray[np.bool_]:
    """Which items are among the first ``counts`` [B] of each user's history. [B, I+1] bool."""
    items, offsets = dataset.histories(rows)
    owner = np.repeat(np.arange(len(rows)), np.diff(offsets))
    kept = np.arange(len(items)) < np.repeat(offsets[:-1] + counts, np.diff(offsets))
    member = np.zeros((len(rows), dataset.num_items + 1), dtype=bool)
    member[owner[kept], items[kept]] = True
    return member


def history_digest(dataset: Dataset, rows: Rows) -> int:
    """Fingerprint of the users' data: the sum, modulo 2**256, of one sha256 a user.

    A sum, so that nodes' digests add up to the same number however users are spread over them.
    """
    total = 0
    for row in rows:
        history = dataset.items[dataset.indptr[row] : dataset.indptr[row + 1]]
        case = np.array([dataset.cold_target[row], dataset.cold_length[row]], dtype="<i4")
        user = hashlib.sha256(dataset.user_keys[row].astype("<u8").tobytes())
        user.update(history.astype("<i4").tobytes() + case.tobytes())
        total += int.from_bytes(user.digest(), "little")
    return total % 2**256


def _ends_and_targets(dataset: Dataset, rows: Rows, split: Split) -> tuple[Ints, Ints]:
    """Where each row's input ends in `items` (exclusive) and its target item: int64 [B] each."""
    stops = dataset.indptr[rows + 1]
    if split == "train":
        return ends(stops, split), np.zeros(len(rows), dtype=np.int64)
    if split in ("valid", "test"):
        places = ends(stops, split)
        return places, dataset.items[places].astype(np.int64)
    if split == "cold":
        targets = dataset.cold_target[rows].astype(np.int64)
        if (targets == PAD).any():
            raise ValueError("a user without a cold test case is asked for one: use cold_rows")
        return dataset.indptr[rows] + dataset.cold_length[rows], targets
    raise ValueError(f"unknown split {split!r}: train, valid, test or cold")


def _windows(items: Items, starts: Ints, ends: Ints, max_length: int) -> npt.NDArray[np.int64]:
    """The last max_length of items[start:end] of each row, left padded: int64 [B, T], T >= 1."""
    counts = np.clip(ends - starts, 0, max_length)
    width = max(int(counts.max(initial=0)), 1)
    columns = np.arange(width)
    places = ends[:, None] - width + columns  # [B, T]
    real = columns >= (width - counts)[:, None]
    return np.where(real, items[np.where(real, places, 0)], PAD).astype(np.int64)
