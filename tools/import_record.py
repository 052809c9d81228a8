"""The record of an import: what was read, what each rule dropped, what was kept.

It is printed and stands in dataset.json, as "imported":

    read       interactions, users and items; an item is read if it is in either file
    dropped    a list in the order of the rules: the reason, and how many of each it took
    kept       what is left: the rows of interactions.parquet, their users, the rows of items.csv
    new_items  the items among them that have no interaction in the source; they are cold
    ties       the rule ("hash" or "rows"), and how many users share their newest time
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

COUNTED = ("interactions", "users", "items")

Counts = dict[str, int]


class ImportRecord:
    """Counts what is gone after each rule, so that read = dropped + kept for all three.

    `table` has the interactions as they were read, `catalogue` the ids of the items file (None:
    there is none). A user or an item is dropped by the rule that takes its last interaction.
    """

    def __init__(self, table: pd.DataFrame, catalogue: pd.Series | None) -> None:
        met = set(table["item_id"].astype(str).unique())
        listed = set() if catalogue is None else set(catalogue.astype(str))
        self._without = len(listed - met)  # items that no interaction, and so no filter, is about
        self._catalogue: int | None = None  # its size, once it is chosen
        self.read = self.kept = self._counts(table)
        self.dropped: list[dict[str, Any]] = []

    def filtered(self, reason: str, left: pd.DataFrame, examples: Iterable[Any] = ()) -> None:
        """A rule has left these interactions; `examples` are two ids of what it took."""
        self._add(reason, self._counts(left))
        if named := [str(one) for one in examples]:
            self.dropped[-1]["examples"] = named

    def chosen(self, reason: str, items: int) -> None:
        """The catalogue has so many items, and no later rule changes it."""
        self._catalogue = items
        self._add(reason, self.kept | {"items": items})

    def content(self, new_items: int, ties: str, sharing: int) -> dict[str, Any]:
        """The member "imported" of dataset.json."""
        return {
            "read": self.read,
            "dropped": self.dropped,
            "kept": self.kept,
            "new_items": new_items,
            "ties": {"rule": ties, "users_sharing_newest_time": sharing},
        }

    def _add(self, reason: str, left: Counts) -> None:
        gone = {what: self.kept[what] - left[what] for what in COUNTED}
        self.dropped.append({"reason": reason, **gone})
        self.kept = left

    def _counts(self, table: pd.DataFrame) -> Counts:
        items = self._catalogue
        if items is None:
            items = self._without + table["item_id"].nunique()
        return {"interactions": len(table), "users": table["user_id"].nunique(), "items": items}
