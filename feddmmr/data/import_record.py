"""The record of an import: what was read, what each rule dropped, what was kept.

It is printed and stands in dataset.json, as "imported":

    read       interactions, users and items; an item is read if it is in either file
    dropped    a list in the order of the rules: the reason, how many of each it took, and
               "examples" of items that the items file lacks
    kept       what is left: the rows of interactions.parquet, their users, the rows of items.csv
    new_items  the items among them that have no interaction in the source; they are cold
    ties       the rule ("hash" or "rows"), and how many users share their newest time
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from client_app.data.compile import compile_users
from client_app.data.folder import MIN_USER_ITEMS
from feddmmr.data.ties import users_sharing_newest_time

COUNTED = ("interactions", "users", "items")

Counts = dict[str, int]


class ImportRecord:
    """Counts what is gone after each rule, so that read = dropped + kept for all three.

    `table` has the interactions as they were read, `catalogue` the ids of the items file (None:
    there is none). A user or an item is dropped by the rule that takes its last interaction.
    """

    def __init__(self, table: pd.DataFrame, catalogue: pd.Series | None) -> None:
        self._met = set(table["item_id"].astype(str).unique())
        listed = set() if catalogue is None else set(catalogue.astype(str))
        self._unmet = len(listed - self._met)  # items that no interaction, and no filter, is about
        self._catalogue: int | None = None  # its size, once it is chosen
        self.read = self.kept = self._counts(table)
        self.dropped: list[dict[str, Any]] = []

    def filtered(self, reason: str, left: pd.DataFrame) -> None:
        """A rule has left these interactions."""
        self._add(reason, self._counts(left))

    def unknown(self, left: pd.DataFrame) -> None:
        """Items that the items file lacks are gone; two of them are named, in the order of text."""
        self.filtered("item not in the items file", left)
        gone = self._met - set(left["item_id"].astype(str).unique())
        self.dropped[-1]["examples"] = sorted(gone)[:2]

    def chosen(self, reason: str, items: int) -> None:
        """The catalogue has so many items, and no later rule changes it."""
        self._catalogue = items
        self._add(reason, self.kept | {"items": items})

    def content(
        self, table: pd.DataFrame, items: pd.DataFrame, new: npt.NDArray[np.bool_], ties: str
    ) -> dict[str, Any]:
        """The member "imported" of dataset.json, for what `write_dataset` will make of the tables.

        `new` [I] bool are the items without interactions, `ties` is the rule for ties.
        """
        kept = table[table["user_id"].isin(compile_users(table, items).user_ids)]
        self.filtered(f"user with fewer than {MIN_USER_ITEMS} items not cold", kept)
        cold = items.loc[items["cold"] == 1, "item_id"]
        sharing = users_sharing_newest_time(kept[~kept["item_id"].isin(cold)])
        return {
            "read": self.read,
            "dropped": self.dropped,
            "kept": self.kept,
            "new_items": int(new.sum()),
            "ties": {"rule": ties, "users_sharing_newest_time": sharing},
        }

    def _add(self, reason: str, left: Counts) -> None:
        gone = {what: self.kept[what] - left[what] for what in COUNTED}
        self.dropped.append({"reason": reason, **gone})
        self.kept = left

    def _counts(self, table: pd.DataFrame) -> Counts:
        items = self._catalogue
        if items is None:
            items = self._unmet + table["item_id"].nunique()
        return {"interactions": len(table), "users": table["user_id"].nunique(), "items": items}
