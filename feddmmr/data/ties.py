"""Ties in time: a user's events of one time have no order, but leave-one-out needs a last one.

By a hash of the two ids the order is the same however the rows of the source lie, and no model can
learn it, as it could an order by item id.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from shared_model.seeds import mix, stable_hash, user_key


def order_ties(table: pd.DataFrame) -> pd.DataFrame:
    """A table by user and time, with rows of equal user and time by the hash of their ids.

    Rows that are equal in all three stay in their order: they differ in nothing that is kept.
    """
    users = pd.factorize(table["user_id"])[0]  # ascending, since the rows are by user
    return table.iloc[np.lexsort((_pair_hashes(table), table["timestamp"], users))]


def users_sharing_newest_time(table: pd.DataFrame) -> int:
    """How many users have two or more rows at their newest time."""
    newest = table["timestamp"] == table.groupby("user_id")["timestamp"].transform("max")
    return int((table[newest].groupby("user_id").size() > 1).sum())


def _pair_hashes(table: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """The hash of each row's user and item: uint64 [rows]."""
    users, user_ids = pd.factorize(table["user_id"])
    items, item_ids = pd.factorize(table["item_id"])
    user_keys = np.array([user_key(str(user)) for user in user_ids], dtype=np.uint64)
    item_keys = np.array([stable_hash("item", str(item)) for item in item_ids], dtype=np.uint64)
    return mix(stable_hash("ties"), user_keys[users] ^ item_keys[items])
