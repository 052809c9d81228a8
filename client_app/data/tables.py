"""Checks of tables before they are compiled: every fault is named with the row that has it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from client_app.data.columns import (
    clean_ids,
    clean_times,
    refuse_rows,
    require_columns,
    to_numbers,
)
from shared_model.errors import DataError

COLUMNS = ["user_id", "item_id", "timestamp"]
_ROW_ENDS = r"[\r\0]+"  # Python's csv writer leaves them without quotes


def check_interactions(
    table: pd.DataFrame, item_ids: pd.Series, source: str = "interactions"
) -> pd.DataFrame:
    """The three columns with clean ids, by user and then time; rows of equal time keep their order.

    Raises DataError for a missing column, an empty table, a missing or negative value, a time that
    is no number, an item that the catalogue lacks, a repeated (user, item), or a user whose rows
    are not in time order.
    """
    table = clean_interactions(table, source)
    if table["item_id"].dtype != item_ids.dtype:
        table = table.assign(item_id=table["item_id"].astype(str))
        item_ids = item_ids.astype(str)
    refuse_rows(
        table,
        ~table["item_id"].isin(item_ids),
        "unknown item",
        source,
        column="item_id",
        todo="add the item to the items file, or drop the row",
    )
    refuse_repeated(table, source)
    return sort_by_user(table, source)


def clean_interactions(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Columns and values checked one by one; the order of the rows is left as it is."""
    require_columns(table, COLUMNS, source)
    if table.empty:
        raise DataError("no interactions", where=source)
    table = table[COLUMNS].copy()
    for column in ("user_id", "item_id"):
        table[column] = clean_ids(table, column, source)
    table["timestamp"] = clean_times(table, "timestamp", source)
    return table


def refuse_repeated(table: pd.DataFrame, source: str) -> None:
    """Raise DataError if a user has an item twice: it would be a target that was seen."""
    refuse_rows(
        table,
        table.duplicated(["user_id", "item_id"]),
        "a repeated (user, item) pair",
        source,
        column="item_id",
        todo="pass --duplicates first or --duplicates last to keep one of them",
    )


def sort_by_user(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Bring users together, each in the order of its rows, which must be in time order."""
    table = table.sort_values("user_id", kind="stable")
    users, times = table["user_id"].to_numpy(), table["timestamp"].to_numpy()
    earlier = (users[1:] == users[:-1]) & (times[1:] < times[:-1])
    refuse_rows(
        table,
        pd.Series(np.append(False, earlier), table.index),
        "a user's interactions are out of time order",
        source,
        column="timestamp",
        todo="sort the file by time, or pass --sort",
    )
    return table


def refuse_strangers(ids: pd.Series, item_ids: pd.Series, source: str, items_source: str) -> None:
    """Raise DataError, with both files, if no interaction is with an item of the catalogue."""
    ids, item_ids = ids.astype(str), item_ids.astype(str)
    if ids.isin(item_ids).any():
        return
    padded = ids.str.lstrip("0").isin(item_ids.str.lstrip("0")).any()
    raise DataError(
        "no interaction is with an item of the catalogue",
        where=f"item_id of {source} and of {items_source}",
        expected=f"ids as in the catalogue, such as {', '.join(item_ids[:2])}",
        got=", ".join(ids[:2]),
        todo="write zeros in front of an id in both files or in neither: 001 is text, not 1"
        if padded
        else "take the files that belong together, or the column with the same ids",
    )


def check_items(table: pd.DataFrame, source: str = "items") -> pd.DataFrame:
    """The catalogue with clean, unique ids and a `cold` column of 0 and 1, which is the last one.

    In other columns of text, what would end a row of items.csv early becomes a space.
    Raises DataError for a missing column, a missing, negative or repeated id, or another `cold`.
    """
    require_columns(table, ["item_id"], source)
    if table.empty:
        raise DataError("no items", where=source)
    table = table.replace(_ROW_ENDS, " ", regex=True).assign(item_id=table["item_id"])
    table["item_id"] = clean_ids(table, "item_id", source)
    repeated = table.duplicated("item_id")
    refuse_rows(table, repeated, "an item that comes twice", source, column="item_id")
    cold = table.pop("cold") if "cold" in table else pd.Series(0, index=table.index)
    table["cold"] = to_numbers(cold)
    bad = ~table["cold"].isin([0, 1])
    refuse_rows(table.assign(cold=cold), bad, "bad value", source, column="cold", expected="0 or 1")
    table["cold"] = table["cold"].astype(np.int64)
    return table.reset_index(drop=True)


def check_features(features: Mapping[str, npt.NDArray[Any]], num_items: int) -> dict[str, Any]:
    """Feature arrays as float16 [I, dim], rows of norm 1 or 0 (missing).

    Raises DataError for another kind than visual and text, a wrong shape, a NaN or another norm.
    """
    checked = {}
    for kind, array in sorted(features.items()):
        if kind not in ("visual", "text"):
            raise DataError("unknown features", expected="visual or text", got=repr(kind))
        if array.ndim != 2 or len(array) != num_items:
            raise DataError(
                f"{kind} features do not fit the catalogue",
                expected=f"[{num_items}, dim]",
                got=str(list(array.shape)),
            )
        # float64: the squares of 1e-30 would be nothing, and the row missing, in float32.
        norms = np.sqrt(np.einsum("ij,ij->i", array, array, dtype=np.float64))
        bad = ~((norms == 0) | (np.abs(norms - 1) < 0.01))  # a NaN is bad as well
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{kind} features are not normalised",
                where=f"item {row + 1}",
                expected="norm 1, or 0 for missing",
                got=f"{norms[row]:.4g}",
            )
        checked[kind] = np.ascontiguousarray(array, dtype=np.float16)
    return checked
