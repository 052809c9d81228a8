"""Clean one column of a table: ids, numbers and times; every value is checked before it is cast.

A table's index says where its rows came from: an importer sets it to the lines of the file and
calls it "line", so that a message can say "ratings.csv, line 17".

The text of an id depends on its own value alone, never on the rest of its column: a part of a
table, such as a split or what a filter leaves, has the same ids as the whole.
"""

import re
import warnings
from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd
from pandas.api.types import is_datetime64_any_dtype, is_float_dtype, is_integer_dtype

from shared_model.errors import DataError, DataWarning

INT64_MAX = int(np.iinfo(np.int64).max)
_EXACT = 2**53  # from here on a float64 may stand for several integers
_INTEGER = r"-?(?:0|[1-9][0-9]*)"  # "007" is text: as an integer it would lose its zeros
_WHOLE_FLOAT = rf"^({_INTEGER})\.0+$"
_ROUNDED = r"-?[0-9](?:\.[0-9]+)?[eE]\+[0-9]+"  # as spreadsheets and floats write long numbers
_ZONE = r"Z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?"  # hours alone, "+00", are DuckDB's
_ISO_DATE = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})"
    rf"(?:[T ]([0-9]{{2}}:[0-9]{{2}}(?::[0-9]{{2}}(?:\.[0-9]+)?)?) ?({_ZONE})?)?$"
)


def clean_ids(table: pd.DataFrame, column: str, source: str) -> pd.Series:
    """Ids as int64 if every one is an integer that fits, else as text without spaces around it.

    A whole float (1.0, "1.0") is that integer. Raises DataError for a missing or negative id, for
    a float that is not whole or so large that its last digits are lost, and for any other type.
    """
    ids = table[column]
    refuse_rows(table, _missing(ids), "a missing value", source, column=column)
    if is_integer_dtype(ids):
        refuse_rows(table, ids < 0, "a negative id", source, column=column)
        return ids.astype(np.int64) if (ids <= INT64_MAX).all() else ids.astype(str)
    if is_float_dtype(ids):
        return _float_ids(table, column, source)
    if not isinstance(ids.dtype, pd.StringDtype):
        other = ~ids.map(_is_id).astype(bool)
        expected = "text or a whole number"
        refuse_rows(table, other, "not an id", source, column=column, expected=expected)
    return _text_ids(table, column, source)


def id_text(text: str) -> str:
    """An id that somebody typed as `clean_ids` would make it of a file."""
    return re.sub(_WHOLE_FLOAT, r"\1", text.strip())


def to_numbers(values: pd.Series) -> pd.Series:
    """Numbers of any real type; NaN for what is none."""
    if is_integer_dtype(values) or is_float_dtype(values):
        return values
    return pd.to_numeric(values.astype(str), errors="coerce")


def clean_numbers(table: pd.DataFrame, column: str, source: str) -> pd.Series:
    """A column as finite numbers: int64 if all are whole, else float64. Raises DataError.

    Warns (DataWarning) if its floats are too coarse to tell one integer from the next.
    """
    values = table[column]
    refuse_rows(table, _missing(values), "a missing value", source, column=column)
    return _finite(table, column, to_numbers(values), source, expected="a finite number")


def clean_times(table: pd.DataFrame, column: str, source: str) -> pd.Series:
    """Times as numbers, int64 if all are whole, else float64: only their order is used.

    Numbers stay as they are, whatever their unit. Dates, as a type of their own or as ISO text,
    are seconds since 1970-01-01 UTC; a date without a time zone is UTC. Raises DataError, and
    warns as `clean_numbers` does.
    """
    values = table[column]
    refuse_rows(table, _missing(values), "a missing value", source, column=column)
    if is_datetime64_any_dtype(values):
        return _seconds(pd.to_datetime(values, utc=True), f"{source}, column {column}")
    numbers = to_numbers(values)
    if not numbers.isna().all():
        expected = "a finite number, or an ISO date in every row"
        return _finite(table, column, numbers, source, expected)
    dates = _iso_dates(values.astype(str).str.strip())
    refuse_rows(
        table,
        dates.isna(),
        "not a number or a date",
        source,
        column=column,
        expected="a finite number, or a date such as 2001-02-28 or 2001-02-28T12:30:00+01:00",
    )
    return _seconds(dates, f"{source}, column {column}")


def require_columns(table: pd.DataFrame, columns: list[str], source: str) -> None:
    """Raise DataError if the table lacks one of the columns."""
    if lost := [column for column in columns if column not in table]:
        raise DataError(
            f"no column {', '.join(lost)}",
            where=source,
            expected=", ".join(columns),
            got=", ".join(map(str, table.columns)),
        )


def refuse_rows(
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
        got=f"{table[column].iloc[place]!s:.80}{more}",
        todo=todo,
    )


def _missing(values: pd.Series) -> "pd.Series[bool]":
    return values.isna() | values.astype(str).str.strip().str.lower().isin(["", "nan"])


def _is_id(value: object) -> bool:
    """Text, a number or a UUID of parquet; a truth value is an int to Python, but no id."""
    kinds = (str, int, float, Decimal, np.integer, np.floating, UUID)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _float_ids(table: pd.DataFrame, column: str, source: str) -> pd.Series:
    """Whole floats below the first one that may stand for two integers, as int64."""
    ids = table[column]
    refuse_rows(table, ids % 1 != 0, "an id that is no whole number", source, column=column)
    refuse_rows(table, ids < 0, "a negative id", source, column=column)
    first = 2 ** (np.finfo(ids.to_numpy().dtype).nmant + 1)
    _refuse_rounded(table, ids >= first, column, source)
    return ids.astype(np.int64)


def _text_ids(table: pd.DataFrame, column: str, source: str) -> pd.Series:
    text = table[column].astype(str).str.strip()
    control = text.str.contains(r"[\x00-\x1f]")
    refuse_rows(table, control, "an id with a control character", source, column=column)
    floats = text.where(text.str.fullmatch(_WHOLE_FLOAT), "0").astype(np.float64)
    rounded = text.str.fullmatch(_ROUNDED) | (floats.abs() >= _EXACT)
    _refuse_rounded(table, rounded, column, source)
    text = text.str.replace(_WHOLE_FLOAT, r"\1", regex=True)
    integers = text.str.fullmatch(_INTEGER)
    refuse_rows(table, integers & text.str.startswith("-"), "a negative id", source, column=column)
    digits, longest = text.str.len(), str(INT64_MAX)
    fits = (digits < len(longest)) | ((digits == len(longest)) & (text <= longest))
    return text.astype(np.int64) if (integers & fits).all() else text


def _refuse_rounded(table: pd.DataFrame, bad: "pd.Series[bool]", column: str, source: str) -> None:
    refuse_rows(
        table,
        bad,
        "an id that was rounded: as a float it may stand for several",
        source,
        column=column,
        todo="write the ids as integers or text",
    )


def _finite(
    table: pd.DataFrame, column: str, numbers: pd.Series, source: str, expected: str
) -> pd.Series:
    """int64 if all are whole, else float64; refuses what is no number, or beyond int64."""
    bad = pd.Series(~np.isfinite(numbers.to_numpy(dtype=np.float64)), table.index)
    refuse_rows(table, bad, "not a number", source, column=column, expected=expected)
    if is_integer_dtype(numbers):
        large = (numbers > INT64_MAX) | (numbers < -INT64_MAX)
    else:  # INT64_MAX as a float is 2**63, which does not fit
        large = numbers.astype(np.float64).abs() >= float(2**63)
    refuse_rows(
        table, large, "a number out of range", source, column=column, expected="less than 2**63"
    )
    if is_float_dtype(numbers):
        _warn_of_rounding(numbers, f"{source}, column {column}")
    whole = is_integer_dtype(numbers) or bool((numbers % 1 == 0).all())
    return numbers.astype(np.int64 if whole else np.float64)


def _warn_of_rounding(numbers: pd.Series, where: str) -> None:
    """Say when neighbouring floats of this size are more than 1 apart."""
    largest = np.abs(numbers.to_numpy()).max()
    apart = np.spacing(largest)
    if apart > 1:
        warnings.warn(
            f"{where}: {largest.dtype} numbers near {largest:.0f} are {apart:.0f} apart, "
            "so what is finer is lost; write them as integers",
            DataWarning,
            stacklevel=2,
        )


def _iso_dates(text: pd.Series) -> pd.Series:
    """ISO dates in UTC, which is also the zone of those that name none; NaT for what is no date."""
    parts = text.str.extract(_ISO_DATE)
    # Pandas 2.2 gives a date without a zone the zone of the date before it, so each gets its own.
    zones = parts[2].fillna("Z").replace("UTC", "Z")
    iso = parts[0] + "T" + parts[1].fillna("00:00") + zones
    return pd.to_datetime(iso, format="ISO8601", utc=True, errors="coerce")


def _seconds(dates: pd.Series, where: str) -> pd.Series:
    """Seconds since 1970-01-01 UTC of dates that are UTC: int64 if all are whole, else float64."""
    exact = dates.dt.tz_convert(None).to_numpy()
    whole = exact.astype("datetime64[s]")
    if (whole == exact).all():
        return pd.Series(whole.astype(np.int64), dates.index)
    rest = exact - whole
    if (rest % np.timedelta64(1, "us") != np.timedelta64(0)).any():
        warnings.warn(
            f"{where}: what is finer than a microsecond is lost", DataWarning, stacklevel=2
        )
    return pd.Series(whole.astype(np.int64) + rest / np.timedelta64(1, "s"), dates.index)
