"""Rows of features and the ids of their items: checked before use, then brought to norm 1.

Norms are taken in float64 of rows divided by their largest value, so that no square overflows or
vanishes: a row of 1e30 or 1e-30 is a row like any other.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from client_app.data.columns import clean_ids
from shared_model.errors import DataError

Array = npt.NDArray[Any]
Wide = npt.NDArray[np.float64]

BLOCK = 4096  # rows that are float64 at once
NORMALISED = 2e-3  # a norm so near to 1 is float16's rounding; such rows keep their bits


def check_matrix(array: Array, kind: str, where: str) -> None:
    """Refuse what is no features: raises DataError unless finite real numbers [rows, dim > 0]."""
    numbers = array.dtype.kind in "iuf" and array.dtype.itemsize <= 8
    if array.ndim != 2 or array.shape[1] == 0 or not numbers:
        raise DataError(
            f"no {kind} features",
            where=where,
            expected="integers or floats of at most 64 bits, of shape [rows, dim]",
            got=f"{array.dtype} {list(array.shape)}",
        )
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{kind} features have a NaN or infinity",
            where=f"{where}, row {int(np.flatnonzero(~finite)[0]) + 1}",
            got=f"{int((~finite).sum())} such rows",
            todo="leave out the rows of items without features, or make them zero",
        )


def check_ids(ids: Array, where: str) -> pd.Series:
    """The item of each row [rows], cleaned as a table's ids are: int64 if all are, else text.

    Whole floats are integers. Raises DataError for another shape or type, and for a float that is
    not whole or so large that its neighbour was rounded to it.
    """
    if ids.ndim != 1 or ids.dtype.kind not in "iufU":
        raise DataError(
            "no item ids",
            where=where,
            expected="integers, whole floats or text, of shape [rows]",
            got=f"{ids.dtype} {list(ids.shape)}",
            todo="store them with .reshape(-1) or .astype(str)",
        )
    if ids.dtype.kind == "f":
        exact = 2.0 ** (np.finfo(ids.dtype).nmant + 1)
        bad = ~((np.abs(ids) < exact) & (ids == np.round(ids)))  # a NaN is bad as well
        if bad.any():
            place = int(np.flatnonzero(bad)[0])
            raise DataError(
                "an item id that is no whole number, or too large for its type",
                where=f"{where}, row {place + 1}",
                got=f"{ids[place]} ({ids.dtype})",
            )
        ids = ids.astype(np.int64)
    rows = pd.RangeIndex(1, len(ids) + 1, name="row")
    return clean_ids(pd.DataFrame({"item_id": ids.astype(str)}, index=rows), "item_id", where)


def places_of(wanted: pd.Series, rows: pd.Series) -> npt.NDArray[np.int64]:
    """The place among the ids `rows`, which do not repeat, of each id of `wanted`; -1 for none.

    Ids of different kinds, numbers and text, are compared as text.
    """
    if wanted.dtype != rows.dtype:
        wanted, rows = wanted.astype(str), rows.astype(str)
    places: npt.NDArray[np.int64] = pd.Index(rows).get_indexer(pd.Index(wanted)).astype(np.int64)
    return places


def unit_rows(rows: Array) -> npt.NDArray[np.float16]:
    """Finite rows [N, dim] divided by their norms, as float16; a zero row stays zero."""
    unit = np.zeros(rows.shape, dtype=np.float16)
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        unit[block] = _unit_block(rows[block].astype(np.float64))
    return unit


def row_norms(rows: Array) -> Wide:
    """Norms [N] of finite rows [N, dim], at most the largest float64."""
    peaks, lengths, _ = _scaled(rows.astype(np.float64))
    with np.errstate(over="ignore"):
        return np.minimum((peaks * lengths)[:, 0], np.finfo(np.float64).max)


def _unit_block(rows: Wide) -> Wide:
    peaks, lengths, scaled = _scaled(rows)
    with np.errstate(over="ignore"):
        wrong = np.abs(peaks * lengths - 1) > NORMALISED
    unit: Wide = np.where(wrong, scaled / np.where(lengths > 0, lengths, 1), rows)
    return unit


def _scaled(rows: Wide) -> tuple[Wide, Wide, Wide]:
    """The largest value of each row [N, 1], and the rows divided by it: norms [N, 1], rows."""
    peaks: Wide = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    scaled = rows / np.where(peaks > 0, peaks, 1)
    lengths: Wide = np.linalg.norm(scaled, axis=1, keepdims=True)
    return peaks, lengths, scaled
