"""Ids, numbers and times of any type: exact, or refused in one line."""

import datetime as dt
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pytest

from client_app.data.columns import clean_ids, clean_numbers, clean_times, id_text
from client_app.data.dataset import Dataset, open_dataset
from client_app.data.tables import check_interactions, check_items
from feddmmr import cli
from feddmmr.data.importers import ImportOptions, import_dataset
from shared_model.errors import DataError, DataWarning
from shared_model.seeds import user_key

BIG = 2**53


def cleaned(values: Any, clean: Any = clean_ids) -> list[Any]:
    series = values if isinstance(values, pd.Series) else pd.Series(values)
    found: list[Any] = clean(pd.DataFrame({"x": series}), "x", "a.csv").tolist()
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([BIG + 1, BIG + 2]), [BIG + 1, BIG + 2]),
        (np.array([2**63 - 1, 0]), [2**63 - 1, 0]),
        (np.array([2**63, 7], np.uint64), ["9223372036854775808", "7"]),
        (np.array([5, 7], np.uint64), [5, 7]),
        (pd.Series([5, 7], dtype="UInt8"), [5, 7]),
        (["9223372036854775807", "1"], [2**63 - 1, 1]),
        (["9223372036854775808", "1.0"], ["9223372036854775808", "1"]),
        (["9" * 30, "1"], ["9" * 30, "1"]),
        (["1.0", "20.00", " 3 "], [1, 20, 3]),
        (np.array([1.0, 20.0], np.float32), [1, 20]),
        (pd.Series([1.0, 2.0], dtype="Float64"), [1, 2]),
        (["1.0", "x"], ["1", "x"]),  # as in a part of the column without the x
        (["001", "2"], ["001", "2"]),
        (["1.5", "a b"], ["1.5", "a b"]),
        (pd.Series(["1", 2, 3.0, Decimal("4.00")], dtype=object), [1, 2, 3, 4]),
        (pd.Series(["1", "2"], dtype="category"), [1, 2]),
        (
            pd.Series([UUID(int=0xAB), UUID(int=1)]),
            [f"{'0' * 8}-0000-0000-0000-{'0' * 10}{end}" for end in ("ab", "01")],
        ),
    ],
)
def test_ids_are_exact(values: Any, expected: list[Any]) -> None:
    assert cleaned(values) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1.0, 2e20]), "rounded.*row 1, column x; got 2e[+]20"),
        (np.array([2.0**53, 1.0]), "rounded.*row 0"),
        (np.array([2**24, 1], np.float32), "rounded.*row 0"),
        (["1", f"{BIG}.0"], "rounded.*row 1.*got 9007199254740992.0"),
        (["1", "1.23457E+12"], "rounded.*row 1"),
        (["x", "1e+22"], "rounded.*row 1"),
        (np.array([1.0, np.inf]), "no whole number"),
        ([1.0, 1.5], "no whole number"),
        ([-1, 2], "negative id"),
        (["-1", "x"], "negative id"),
        (["-0.0", "x"], "negative id"),
        ([None, "x"], "missing value"),
        ([np.nan, 1.0], "missing value"),
        ([" ", "x"], "missing value"),
        ([True, False], "not an id.*got True"),
        (pd.Series([["a"], "b"], dtype=object), "not an id"),
        (pd.Series([{"a": 1}, "b"], dtype=object), "not an id"),
        (pd.Series([b"a", b"b"], dtype=object), "not an id"),
        (pd.to_datetime(pd.Series(["2001-01-01"])), "not an id"),
        (pd.Series([1, None], dtype="Int64"), "missing value"),
    ],
)
def test_ids_that_are_none_are_refused(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cleaned(values)


def test_the_text_of_an_id_depends_on_itself_alone() -> None:
    values = ["1.0", "007", "x", "9223372036854775808", "12", " 5 ", "3.0"]
    whole = cleaned(values)
    for size in range(1, len(values)):
        for start in range(len(values) - size):
            part = cleaned(values[start : start + size])
            assert [str(one) for one in part] == whole[start : start + size]
    assert [id_text(value) for value in values] == whole


MIDNIGHT = 978_307_200  # 2001-01-01 00:00:00 UTC
ZONE = dt.timezone(dt.timedelta(hours=2))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["2001-01-01", "2001-01-01T00:00:01Z"], [MIDNIGHT, MIDNIGHT + 1]),
        (["2001-01-01 02:00:00+02:00", "2001-01-01 00:00:00"], [MIDNIGHT, MIDNIGHT]),
        (["2001-01-01T00:00:00.25", "2001-01-01"], [MIDNIGHT + 0.25, MIDNIGHT]),
        (["2001-01-01 00:00:00+00", "2000-12-31 19:00:00.5-05"], [MIDNIGHT, MIDNIGHT + 0.5]),
        (["2001-01-01 00:00:00 UTC", "2001-01-01T01:00+0100"], [MIDNIGHT, MIDNIGHT]),
        (pd.Series(["2001-01-01"]).astype("datetime64[ns]"), [MIDNIGHT]),
        (pd.Series(["2001-01-01"]).astype("datetime64[s]"), [MIDNIGHT]),
        (pd.Series(["2001-01-01"]).astype("datetime64[ms, Asia/Tokyo]"), [MIDNIGHT - 9 * 3600]),
        (pd.Series([dt.date(2001, 1, 1), dt.date(1969, 12, 31)]), [MIDNIGHT, -86400]),
        (pd.Series([dt.datetime(2001, 1, 1, 2, tzinfo=ZONE)], dtype=object), [MIDNIGHT]),
        (pd.Series([2**40], dtype="datetime64[s]"), [2**40]),
        (pd.Series(["1969-12-31T23:59:59.5"]).astype("datetime64[ns]"), [-0.5]),
        (["5", "-3", "1e3", "2.0"], [5, -3, 1000, 2]),
        ([BIG + 1, BIG], [BIG + 1, BIG]),
        ([str(BIG + 1), str(BIG)], [BIG + 1, BIG]),
        (np.array([1.5, 2.0], np.float16), [1.5, 2.0]),
        (pd.Series([5, "6", Decimal("7.5")], dtype=object), [5, 6, 7.5]),
    ],
)
def test_times_have_one_meaning(values: Any, expected: list[float]) -> None:
    assert cleaned(values, clean_times) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2001-01-01", "soon"], "not a number or a date.*row 1.*got soon"),
        (["2001-01-01", "5"], "not a number.*row 0.*expected a finite number, or an ISO date in"),
        (["2001-02-30", "2001-01-01"], "not a number or a date.*row 0"),
        (["now", "today"], "not a number or a date"),
        (["2001-01-01T05:00+1", "2001-01-01"], "not a number or a date.*row 0"),
        (["2001-01-01T25:00", "2001-01-01"], "not a number or a date.*row 0"),
        (["2001/01/01", "2001-01-01"], "not a number or a date.*row 0"),
        (pd.Series([10**400, 1], dtype=object), "not a number.*got 10000"),
        (["1e400", "1"], "not a number"),
        (np.array([2**63], np.uint64), "out of range"),
        (["9" * 30, "1"], "out of range"),
        ([2.0**63, 1.0], "out of range"),
        ([-1e30, 1.0], "out of range"),
        (pd.to_timedelta(pd.Series([1, 2]), unit="s"), "not a number"),
        ([True, False], "not a number"),
        (pd.Series([[1], [2]], dtype=object), "not a number"),
        ([None, 1.0], "missing value"),
        (pd.Series([pd.NaT, pd.Timestamp(1)]), "missing value"),
    ],
)
def test_times_that_are_none_are_refused(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cleaned(values, clean_times)


def test_numbers_are_never_cast_out_of_range() -> None:
    assert cleaned(["4.5", "3"], clean_numbers) == [4.5, 3.0]
    with pytest.raises(DataError, match="out of range"):
        cleaned([1e300, 1.0], clean_numbers)
    with pytest.raises(DataError, match="not a number"):
        cleaned(["2001-01-01"], clean_numbers)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1_000_000_000, 5], np.float32), "a.csv, column x: float32 .* are 64 apart"),
        (np.array([1_300_000_000, 5], np.float32), "are 128 apart"),
        (np.array([1.6e18, 1.0]), "float64 numbers near 16.* are 256 apart"),
        (["1600000000000000001", "0.5"], "are 256 apart"),
        (pd.Series([pd.Timestamp(1001)]).astype("datetime64[ns]"), "finer than a microsecond"),
    ],
)
def test_lost_resolution_is_said(values: Any, message: str) -> None:
    with pytest.warns(DataWarning, match=message):
        cleaned(values, clean_times)


def test_resolution_that_is_there_is_not_mentioned(recwarn: pytest.WarningsRecorder) -> None:
    cleaned(np.arange(2**24 - 2, 2**24, dtype=np.float32), clean_times)
    cleaned(np.array([1.6e9, 1.6e9 + 0.5]), clean_times)
    cleaned(pd.Series([pd.Timestamp("2001-01-01T00:00:00.000001")]), clean_times)
    assert not recwarn.list


def test_neighbours_above_2_to_53_are_two_users(tmp_path: Path) -> None:
    """As floats they are one, whose times would run backwards."""
    rows = [(BIG + user, item, 10 - 5 * user + item) for user in (0, 1) for item in (1, 2, 3)]
    columns = ["user_id", "item_id", "timestamp"]
    pd.DataFrame(rows, columns=columns).to_parquet(tmp_path / "a.parquet")
    import_dataset(tmp_path / "a.parquet", tmp_path / "out", ImportOptions(k_core=1))
    assert users_of(open_dataset(tmp_path / "out")) == [user_key(BIG), user_key(BIG + 1)]


def users_of(dataset: Dataset) -> list[int]:
    keys: list[int] = dataset.user_keys.tolist()
    return keys


def test_times_are_compared_without_overflow() -> None:
    times = [-(2**63) + 1, 2**63 - 1, 2**63 - 1]
    table = pd.DataFrame({"user_id": 1, "item_id": [1, 2, 3], "timestamp": times})
    assert check_interactions(table, pd.Series([1, 2, 3]))["timestamp"].tolist() == times


@pytest.mark.parametrize("cold", ["inf", "1e30", "0.5", "-1", "", "true"])
def test_only_0_and_1_are_cold(cold: str) -> None:
    table = pd.DataFrame({"item_id": [1, 2], "cold": ["0", cold]})
    with pytest.raises(DataError, match=r"bad value.*row 1, column cold.*expected 0 or 1"):
        check_items(table)


def test_the_command_warns_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"user_id": [1, 1, 1], "item_id": [1, 2, 3]}
    table = pd.DataFrame(rows | {"timestamp": np.array([1e9, 1e9 + 64, 1e9 + 128], np.float32)})
    table.to_parquet(tmp_path / "a.parquet")
    arguments = ["data", "import", tmp_path / "a.parquet", tmp_path / "out", "--k-core", 1]
    monkeypatch.setattr(sys, "argv", ["feddmmr", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    found = capsys.readouterr().err
    assert re.fullmatch(
        r"warning: .*a\.parquet, column timestamp: float32 numbers near 1000000128 are 64 apart, "
        "[^\n]*\n",
        found,
    ), found
