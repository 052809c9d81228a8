"""Filters of interaction tables before they are compiled. Columns: user_id, item_id, timestamp."""

import numpy as np
import numpy.typing as npt
import pandas as pd


def k_core(table: pd.DataFrame, k: int) -> pd.DataFrame:
    """The largest part in which every user and every item has at least k interactions.

    Removing an item may take a user below k and the reverse, so both repeat until nothing changes.
    """
    users, items = _codes(table, "user_id"), _codes(table, "item_id")
    kept = np.ones(len(table), dtype=bool)
    while True:
        enough = (_counts(users, kept) >= k) & (_counts(items, kept) >= k)
        if enough[kept].all():
            return table[kept]
        kept &= enough


def most_active(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """The interactions of the `count` users that have most; among equals, lower ids first."""
    activity = table["user_id"].value_counts(sort=False).sort_index()
    chosen = activity.sort_values(ascending=False, kind="stable").index[:count]
    return table[table["user_id"].isin(chosen)]


def last_of_each_user(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Each user's last `count` rows; the rows of a user must be in time order."""
    return table[table.groupby("user_id").cumcount(ascending=False) < count]


def one_of_each_pair(table: pd.DataFrame, keep: str) -> pd.DataFrame:
    """Of repeated (user, item) pairs, the "first" or the "last" row; the rest is left out."""
    later = keep == "last"
    return table[~table.duplicated(["user_id", "item_id"], keep="last" if later else "first")]


def _codes(table: pd.DataFrame, column: str) -> npt.NDArray[np.int64]:
    return pd.factorize(table[column])[0].astype(np.int64)


def _counts(codes: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """How often each row's code comes among the rows still kept: [rows]."""
    counts: npt.NDArray[np.int64] = np.bincount(codes[kept], minlength=codes.max(initial=0) + 1)
    return counts[codes]
