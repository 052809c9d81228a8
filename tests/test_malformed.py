"""Sources that are damaged, or not what they are called: one line that names the file, no output.

So are two files whose ids do not meet.
"""

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from client_app.data import Dataset, open_dataset
from client_app.tables import check_items
from shared_model.errors import ConfigError, DataError
from tests.conftest import MakeDataset
from tools import cli
from tools.importers import ImportOptions, import_dataset, split_dataset
from tools.readers import read_items
from tools.recommend_titles import Catalogue, row_of_user

HEADER = b"user_id,item_id,timestamp\n"
INTER = b"user_id:token\titem_id:token\ttimestamp:float\n"
REVIEW = {"user_id": "u", "parent_asin": "P", "timestamp": 5, "rating": 4.0}


def review(**changes: Any) -> bytes:
    return json.dumps(REVIEW | changes).encode() + b"\n"


PACKED = gzip.compress(
    HEADER + b"".join(b"1,%d,%d\n" % (item, item) for item in range(99)), mtime=0
)
WRONG = [
    ("a.csv", b"", [], "cannot be parsed.*a.csv"),
    ("a.csv", HEADER, [], "no interactions; where: .*a.csv"),
    ("a.csv", b"\n\n", [], "cannot be parsed"),
    ("a.csv", b"\n1,2,3\n", [], "cannot be parsed|no column"),
    ("a.csv", b"\xff\xfe", [], "cannot be parsed"),
    ("a.csv", b"user_id,item_id,item_id,timestamp\n1,2,3,4\n", [], "twice.*a.csv; got 'item_id'"),
    ("a.csv", HEADER + b'1,"2,3\n', [], "cannot be parsed"),
    ("a.csv", HEADER + b"1,,3\n", [], "missing value.*line 2, column item_id"),
    ("a.csv", HEADER + b"1,nan,3\n", [], "missing value.*line 2, column item_id"),
    ("a.csv", HEADER + b"1,2.0e+20,3\n", [], "rounded.*line 2, column item_id"),
    ("a.csv", HEADER + b"1,2,3\n1,3,2001-01-01\n", [], "not a number.*line 3.*got 2001-01-01"),
    ("a.csv", b"user_id;item_id;timestamp\n1;2;3\n", [], "got user_id;item_id;timestamp.*--separ"),
    ("a.csv", b"1,2,3\n1,3,4\n", [], "no column user_id.*got 1, 2, 3.*--columns"),
    ("a.csv", b"1,2,3\n", ["--columns", "user_id,item_id"], "number of columns.*got 3: 1, 2, 3"),
    ("a.csv", b"1,2\n", ["--columns", "user_id,user_id"], "twice"),
    ("a.csv", b"1,2\n", ["--columns", "user_id,x"], "no column item_id"),
    ("a.csv", HEADER, ["--separator", "ab"], "no separator.*got 'ab'"),
    ("a.csv", HEADER, ["--rating-column", "stars"], "no column stars"),
    ("a.csv", HEADER, ["--columns", "a"], "number of columns"),
    ("a.csv.gz", PACKED[:-12], [], "cannot be read.*a.csv.gz"),
    ("a.csv.gz", PACKED[:40] + b"\0\0\0\0" + PACKED[44:], [], "cannot be read.*a.csv.gz"),
    ("a.csv.gz", HEADER, [], "cannot be read.*[Nn]ot a gzipped file"),
    ("a.tsv", HEADER, [], "no column user_id"),
    ("a.inter", b"", [], "cannot be parsed"),
    ("a.inter", INTER, [], "no interactions"),
    ("a.inter", HEADER, [], "no RecBole header.*got user_id,item_id,timestamp"),
    ("a.inter", INTER + b"1\tnan\t3\n", [], "missing value.*line 2, column item_id"),
    ("a.inter", INTER[:-1] + b"\titem_id:token\n", [], "twice.*'item_id:token'"),
    ("a.inter", INTER[:-1] + b"\titem_id:float\n", [], "twice.*'item_id'"),
    ("a.jsonl", b"", [], "no column user_id"),
    (
        "a.jsonl",
        b'{"user_id": 1, "it": 2, "at": 3}\n',
        [],
        "no column item_id.*got user_id, at, it;",
    ),
    ("a.jsonl", review(), ["--time-column", "when"], "no column when; .*got user_id, parent_asin"),
    ("a.jsonl", b"[" + review() + b"]", [], "not JSON lines.*line 1"),
    ("a.jsonl", b"[1]\n", [], "not JSON lines.*line 1"),
    ("a.jsonl", review() + b"{'user_id': 'u'}\n", [], "not JSON lines.*line 2.*Python's notation"),
    ("a.jsonl", review() + b"\n", [], "not JSON lines.*line 2"),
    ("a.jsonl", review()[:-9], [], "not JSON lines.*line 1"),
    ("a.jsonl", review() + b"[" * 99999, [], "not JSON lines.*line 2"),
    ("a.jsonl", b'{"user_id": 1, "user_id": 2}\n', [], "not JSON lines.*twice.*user_id"),
    ("a.jsonl", review(user_id="\ud800"), [], "not JSON lines.*line 1.*surrogates"),
    ("a.jsonl", b'{"timestamp": NaN}\n', [], "not JSON lines.*line 1.*NaN"),
    ("a.jsonl", b'{"user_id": "\xff"}\n', [], "not JSON lines.*line 1"),
    ("a.jsonl", review() + review(parent_asin=None), [], "missing value.*line 2, column item_id"),
    ("a.jsonl", review() + b'{"user_id": "u"}\n', [], "missing value.*line 2, column item_id"),
    ("a.jsonl", review() + review(parent_asin=["P"]), [], "not an id.*line 2, column item_id"),
    ("a.jsonl", review() + review(user_id=True), [], "not an id.*line 2, column user_id; .*True"),
    ("a.jsonl", review() + review(timestamp={}), [], "not a number.*line 2, column timestamp"),
    ("a.jsonl", review() + review(timestamp=10**400), [], "not a number.*line 2"),
    ("a.jsonl.gz", gzip.compress(review() * 50, mtime=0)[:-12], [], "cannot be read.*a.jsonl.gz"),
    ("a.parquet", b"", [], "cannot be read.*a.parquet"),
    ("a.parquet", b"PAR1" + bytes(40) + b"PAR1", [], "cannot be read.*a.parquet"),
    ("a.txt", HEADER, [], "no known format"),
    ("a.csv", HEADER, ["--format", "recbole"], "no RecBole header"),
    ("a.csv", HEADER, ["--format", "jsonl"], "not JSON lines"),
    ("a.csv", HEADER, ["--format", "folder"], "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "extra", "message"), WRONG)
def test_malformed_sources_are_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    extra: list[str],
    message: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path, monkeypatch, capsys, name, extra, message)


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "recbole", "parquet", "movielens"])
def test_a_folder_in_place_of_a_file_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    format_: str,
) -> None:
    (tmp_path / "a.csv").mkdir()
    for extra in (["--format", format_], []):
        assert_refused(tmp_path, monkeypatch, capsys, "a.csv", extra, "a.csv")


def assert_refused(
    tmp_path: Path, monkeypatch: Any, capsys: Any, name: str, extra: list[str], message: str
) -> None:
    arguments = ["data", "import", str(tmp_path / name), str(tmp_path / "out"), *extra]
    monkeypatch.setattr(sys, "argv", ["feddmmr", *arguments, "--k-core", "1"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    printed = capsys.readouterr()
    assert caught.value.code == 1
    assert re.fullmatch("error: [^\n]+\n", printed.err), printed.err
    assert re.search(message, printed.err), printed.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    names = ["user_id", "item_id", "timestamp", "item_id"]
    pq.write_table(pa.table([pa.array([1])] * 4, names=names), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="item_id"):
        import_dataset(tmp_path / "a.parquet", tmp_path / "out", ImportOptions())


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl", "a.item", "movies.dat", "x.bin"])
@pytest.mark.parametrize("content", [b"", b"\n", b"a\n", b"item_id:token\n", b"\0\1\2", None])
def test_malformed_catalogues_are_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(name)):
        check_items(read_items(tmp_path / name), str(tmp_path / name))


def test_a_folder_with_two_catalogues_is_unclear(tmp_path: Path) -> None:
    for name in ("a.item", "b.item"):
        (tmp_path / name).write_text("item_id:token\n1\n")
    with pytest.raises(DataError, match=r"which file has the items.*got a\.item, b\.item"):
        read_items(tmp_path)


def write_pair(folder: Path, items: list[Any], catalogue: list[Any]) -> tuple[Path, Path]:
    lines = [f"1,{item},{time}" for time, item in enumerate(items)]
    (folder / "a.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines, ""]))
    (folder / "items.csv").write_text("\n".join(["item_id", *map(str, catalogue), ""]))
    return folder / "a.csv", folder / "items.csv"


@pytest.mark.parametrize(
    ("items", "catalogue"),
    [([1, 2, 3], ["1.0", "2.0", "3.0"]), (["1.0", "2.00", "3.0"], ["3", "2", "1", "x"])],
)
def test_whole_floats_meet_integers(tmp_path: Path, items: list[Any], catalogue: list[Any]) -> None:
    source, file = write_pair(tmp_path, items, catalogue)
    import_dataset(source, tmp_path / "out", ImportOptions(k_core=1, items=file))
    assert open_dataset(tmp_path / "out").num_items == 3


@pytest.mark.parametrize(
    ("items", "catalogue", "message"),
    [
        (["001", "002", "003"], [1, 2, 3], "such as 1, 2; got 001, 002; do: write zeros"),
        ([1, 2, 3], ["001", "002", "003"], "such as 001, 002; got 1, 2; do: write zeros"),
        (["a", "b", "c"], ["x", "y"], "such as x, y; got a, b; do: take the files"),
    ],
)
def test_ids_that_never_meet_are_named_with_both_files(
    tmp_path: Path, items: list[Any], catalogue: list[Any], message: str
) -> None:
    source, file = write_pair(tmp_path, items, catalogue)
    with pytest.raises(DataError, match=rf"no interaction.*a\.csv and of .*items\.csv.*{message}"):
        import_dataset(source, tmp_path / "out", ImportOptions(k_core=1, items=file))
    assert not (tmp_path / "out").exists()


def test_a_part_has_the_users_of_the_whole(tmp_path: Path) -> None:
    """Ids beyond int64, with zeros or of letters: one part has plain integers only."""
    users = ["7", "007", "x y", "9223372036854775808", "8.0", "9007199254740993"]
    rows = [(user, item, item) for user in users for item in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    table.to_csv(tmp_path / "a.csv", index=False)
    import_dataset(tmp_path / "a.csv", tmp_path / "out", ImportOptions(k_core=1))
    whole = open_dataset(tmp_path / "out")
    split_dataset(whole.folder, tmp_path / "parts", 6)
    parts = [open_dataset(tmp_path / "parts" / f"part-{part}") for part in range(6)]
    assert [part.user_keys.tolist() for part in parts] == [[key] for key in whole.user_keys]
    for user in users:
        assert row_of_user(whole, f" {user} ") == row_of_user(whole, user.removesuffix(".0"))
    assert len({row_of_user(whole, user) for user in users}) == 6


def test_typed_ids_are_read_as_those_of_a_file(make_dataset: MakeDataset) -> None:
    dataset: Dataset = make_dataset({5: [1, 2, 3], 50: [2, 3, 4]}, num_items=4)
    for typed in ("5", "5.0", " 5"):
        assert row_of_user(dataset, typed) == 0
    with pytest.raises(ConfigError, match=r"no such user.*got '05'"):
        row_of_user(dataset, "05")
    assert Catalogue(dataset).find("#2.0") == 2
    with pytest.raises(ConfigError, match="no item with this id"):
        Catalogue(dataset).find("#02")


def test_texts_with_odd_line_ends_stay_one_row(tmp_path: Path) -> None:
    """Python's csv writer does not quote a carriage return, and its reader ends a row there."""
    source, file = write_pair(tmp_path, [1, 2, 3], [])
    file.write_bytes(b'item_id,title\n1,"a\rb"\n2,"c\r\nd"\n3,e\n')
    import_dataset(source, tmp_path / "out", ImportOptions(k_core=1, items=file))
    dataset = open_dataset(tmp_path / "out")
    assert Catalogue(dataset).titles[1:] == ["a b", "c \nd", "e"]
    texts = pd.DataFrame({"item_id": [1, 2], "title": ["e\0f", "g\r\rh"]})
    assert check_items(texts)["title"].tolist() == ["e f", "g h"]
    with pytest.raises(DataError, match="control character"):
        check_items(pd.DataFrame({"item_id": ["a\rb"]}))


def test_rows_of_a_catalogue_keep_ids_that_look_like_numbers(tmp_path: Path) -> None:
    from benchmarks.populations import some_users

    ids = ["007", "1e5", "NA", "null"]
    rows = [("u", item, time) for time, item in enumerate(ids)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    table.to_csv(tmp_path / "a.csv", index=False)
    import_dataset(tmp_path / "a.csv", tmp_path / "out", ImportOptions(k_core=1))
    some = open_dataset(some_users(tmp_path / "out", tmp_path / "some", 1))
    assert Catalogue(some).ids == Catalogue(open_dataset(tmp_path / "out")).ids
    assert np.array_equal(some.items, open_dataset(tmp_path / "out").items)


def test_the_command_takes_a_file_without_a_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ratings_A.csv").write_text("u;a;5;1\nu;b;4;2\nu;c;1;3\nu;d;3;4\n")
    arguments = [
        *("data", "import", tmp_path / "ratings_A.csv", tmp_path / "out", "--k-core", 1),
        *("--separator", ";", "--columns", "user_id, what, stars, timestamp"),
        *("--item-column", "what", "--rating-column", "stars", "--min-rating", 2),
    ]
    monkeypatch.setattr(sys, "argv", ["feddmmr", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0, capsys.readouterr().err
    table = pd.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert table["item_id"].tolist() == ["a", "b", "d"]
    assert table["timestamp"].tolist() == [1, 2, 4]
