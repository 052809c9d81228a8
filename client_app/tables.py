"""Checks of tables before they are compiled: every fault is named with the row that has it.

A table's index says where its rows came from: an importer sets it to the lines of the file and
calls it "line", so that a message can say "ratings.csv, line 17".
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from shared_model.errors import DataError

COLUMNS = ["user_id", "item_id", "timestamp"]
PLAIN_INTEGER = r"-?(?:0|[1-9][0-9]{0,17})"  # fits int64; "007" is text, it would lose its zeros


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
    _refuse_rows(
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
    _require_columns(table, COLUMNS, source)
    if table.empty:
        raise DataError("no interactions", where=source)
    table = table[COLUMNS].copy()
    for column in ("user_id", "item_id"):
        table[column] = clean_ids(table, column, source)
    table["timestamp"] = clean_numbers(table, "timestamp", source)
    return table


def refuse_repeated(table: pd.DataFrame, source: str) -> None:
    """Raise DataError if a user has an item twice: it would be a target that was seen."""
    _refuse_rows(
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
    earlier = (table["timestamp"].diff() < 0) & (table["user_id"] == table["user_id"].shift())
    _refuse_rows(
        table,
        earlier,
        "a user's interactions are out of time order",
        source,
        column="timestamp",
        todo="sort the file by time, or pass --sort",
    )
    return table


def check_items(table: pd.DataFrame, source: str = "items") -> pd.DataFrame:
    """The catalogue with clean, unique ids and a `cold` column of 0 and 1, which is the last one.

    Raises DataError for a missing column, a missing, negative or repeated id, or another `cold`.
    """
    _require_columns(table, ["item_id"], source)
    if table.empty:
        raise DataError("no items", where=source)
    table = table.copy()
    table["item_id"] = clean_ids(table, "item_id", source)
    repeated = table.duplicated("item_id")
    _refuse_rows(table, repeated, "an item that comes twice", source, column="item_id")
    cold = table.pop("cold") if "cold" in table else pd.Series(0, index=table.index)
    table["cold"] = pd.to_numeric(cold, errors="coerce").fillna(-1).astype(np.int64)
    bad = ~table["cold"].isin([0, 1])
    _refuse_rows(table, bad, "bad value", source, column="cold", expected="0 or 1")
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


def clean_ids(table: pd.DataFrame, column: str, source: str) -> pd.Series:
    """Ids as int64 if every one is a plain integer, else as text. Raises DataError."""
    ids = table[column]
    text = ids.astype(str).str.strip()
    _refuse_rows(table, _missing(ids), "a missing value", source, column=column)
    if pd.api.types.is_float_dtype(ids):
        _refuse_rows(table, ids % 1 != 0, "an id that is no whole number", source, column=column)
        ids = ids.astype(np.int64)
        text = ids.astype(str)
    if not pd.api.types.is_integer_dtype(ids) and not text.str.fullmatch(PLAIN_INTEGER).all():
        return text
    numbers = text.astype(np.int64)
    _refuse_rows(table, numbers < 0, "a negative id", source, column=column)
    return numbers


def clean_numbers(table: pd.DataFrame, column: str, source: str) -> pd.Series:
    """A column as finite numbers: int64 if all are whole, else float64. Raises DataError."""
    values = table[column]
    _refuse_rows(table, _missing(values), "a missing value", source, column=column)
    numbers = pd.to_numeric(values, errors="coerce")
    bad = ~numbers.between(-np.inf, np.inf, inclusive="neither")
    _refuse_rows(table, bad, "not a number", source, column=column, expected="a finite number")
    if pd.api.types.is_float_dtype(numbers) and (numbers % 1 == 0).all():
        return numbers.astype(np.int64)
    return numbers


def _missing(values: pd.Series) -> "pd.Series[bool]":
    return values.isna() | values.astype(str).str.strip().str.lower().isin(["", "nan"])


def _require_columns(table: pd.DataFrame, columns: list[str], source: str) -> None:
    if lost := [column for column in columns if column not in table]:
        raise DataError(
            f"no column {', '.join(lost)}",
            where=source,
            expected=", ".join(columns),
            got=", ".join(map(str, table.columns)),
        )


def _refuse_rows(
    table: pd.DataFrame,
    bad: "pd.Series[bool]",
    what: str,
    source: str,
    *,
    column: str,
    expected: str = "",
    todo: str = "",
) -> None:
    """Raise DataError that names the first of the bad rows, if there is one."""
    places = np.flatnonzero(bad.to_numpy(dtype=bool))
    if len(places) == 0:
        return
    place = places[0]
    label = f"{source}, {table.index.name or 'row'} {table.index[place]}"
    more = f" (and {len(places) - 1} more such rows)" if len(places) > 1 else ""
    raise DataError(
        what,
        where=f"{label}, column {column}",
        expected=expected,
        got=f"{table[column].iloc[place]!s}{more}",
        todo=todo,
    )
