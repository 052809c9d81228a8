"""Every format of docs/data.md: the rows that it means, and the same dataset from each."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client_app.data.dataset import Dataset, history_digest, open_dataset
from feddmmr.data.importers import ImportOptions, import_dataset
from feddmmr.data.reading.readers import detect_format, read_items, read_source
from feddmmr.data.reading.source import Layout
from shared_model.errors import ConfigError, DataError

Row = tuple[int, int, int, int]
ROWS: list[Row] = [(1, 10, 5, 100), (1, 2, 4, 200), (2, 10, 3, 150), (2, 30, 1, 250)]
LAYOUT = Layout()


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def joined(rows: list[Row], by: str) -> list[str]:
    return [by.join(map(str, row)) for row in rows]


def inter(folder: Path, rows: list[Row]) -> Path:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    return write(folder / "a.inter", [header, *joined(rows, "\t")])


def csv_file(name: str, by: str, header: str, **options: Any) -> Any:
    def writer(folder: Path, rows: list[Row]) -> tuple[Path, dict[str, Any]]:
        lines = [by.join(header.split(","))] if header else []
        return write(folder / name, lines + joined(rows, by)), options

    return writer


def reviews(name: str, keys: str) -> Any:
    def writer(folder: Path, rows: list[Row]) -> Path:
        user, item, rating, time, other = keys.split()
        objects = [
            {rating: float(r[2]), "title": "ok", "text": "a\nb", "images": [], other: "B0"}
            | {user: f"{r[0]}", item: f"{r[1]}", time: r[3], "verified_purchase": True}
            for r in rows
        ]
        return write(folder / name, [json.dumps(one) for one in objects])

    return writer


def dated(unit: str, zone: str | None) -> Any:
    def writer(folder: Path, rows: list[Row]) -> Path:
        table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
        times = pd.to_datetime(table["timestamp"], unit="s").astype(f"datetime64[{unit}]")
        if zone:
            times = times.dt.tz_localize("UTC").dt.tz_convert(zone)
        table.assign(timestamp=times).to_parquet(folder / "a.parquet")
        return folder / "a.parquet"

    return writer


def iso(folder: Path, rows: list[Row]) -> Path:
    times = pd.to_datetime([row[3] for row in rows], unit="s").strftime("%Y-%m-%dT%H:%M:%S")
    lines = [f"{row[0]},{row[1]},{row[2]},{time}" for row, time in zip(rows, times, strict=True)]
    return write(folder / "a.csv", [HEADER, *lines])


def floats(folder: Path, rows: list[Row]) -> Path:
    table = pd.DataFrame(rows, columns=HEADER.split(",")).astype(float)
    table.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


HEADER = "user_id,item_id,rating,timestamp"
WRITERS: dict[str, Callable[[Path, list[Row]], Any]] = {
    "csv": csv_file("a.csv", ",", HEADER),
    "csv.gz": csv_file("a.csv.gz", ",", HEADER),
    "byte order mark": csv_file("a.csv", ",", "\ufeff" + HEADER),
    "spaces": csv_file("a.csv", ", ", HEADER),
    "semicolons": csv_file("a.csv", ";", HEADER, separator=";"),
    "tsv": csv_file("a.tsv", "\t", HEADER),
    "tsv.gz": csv_file("a.tsv.gz", "\t", HEADER),
    "tabs in a csv": csv_file("a.csv", "\t", HEADER, separator="\\t"),
    "no header": csv_file("ratings_Beauty.csv", ",", "", columns=tuple(HEADER.split(","))),
    "other names": csv_file(
        "a.csv",
        ",",
        "who,what,stars,when",
        user_column="who",
        item_column="what",
        rating_column="stars",
        time_column="when",
    ),
    "names of MovieLens": csv_file("my.csv", ",", "userId,movieId,rating,timestamp"),
    "recbole": inter,
    "recbole folder": lambda folder, rows: inter(folder, rows).parent,
    "amazon 2023": reviews("Beauty.jsonl", "user_id parent_asin rating timestamp asin"),
    "amazon 2023 packed": reviews("B.jsonl.gz", "user_id parent_asin rating timestamp asin"),
    "amazon 2014": reviews("B_5.json.gz", "reviewerID asin overall unixReviewTime reviewTime"),
    "dates in ns": dated("ns", None),
    "dates in ms": dated("ms", "Asia/Tokyo"),
    "iso dates": iso,
    "floats": floats,
}


def read(made: Any) -> Any:
    path, options = made if isinstance(made, tuple) else (made, {})
    return read_source(path, detect_format(path), Layout(**options))


@pytest.mark.parametrize("name", WRITERS)
def test_rows_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    """Here as text or numbers, as the file has them; the import makes them exact."""
    table = read(WRITERS[name](tmp_path, ROWS)).interactions
    assert table.columns.tolist() == ["user_id", "item_id", "timestamp", "rating"]
    assert table["user_id"].astype(float).tolist() == [1, 1, 2, 2]
    assert table["item_id"].astype(float).tolist() == [10, 2, 10, 30]
    assert table["rating"].astype(float).tolist() == [5, 4, 3, 1]
    assert table.index.name == ("row" if "dates in" in name else "line")


@pytest.fixture
def many() -> list[Row]:
    """8 users, 9 items, each pair once, in no order of time."""
    random = np.random.default_rng(5)
    pairs = [(user, item) for user in range(1, 9) for item in range(1, 10)]
    times = random.permutation(50) + 1_000_000_000
    chosen = random.permutation(len(pairs))[:50]
    return [
        (*pairs[place], int(random.integers(1, 6)), int(time))
        for place, time in zip(chosen, times, strict=True)
    ]


def digest(dataset: Dataset) -> int:
    return history_digest(dataset, np.arange(dataset.num_users))


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_dataset(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, many: list[Row], name: str
) -> None:
    options = {"k_core": 2, "sort": True, "min_rating": 2}
    plain = tmp_path_factory.mktemp("plain")
    import_dataset(
        csv_file("a.csv", ",", HEADER)(plain, many)[0], plain / "out", ImportOptions(**options)
    )
    made = WRITERS[name](tmp_path, many)
    path, more = made if isinstance(made, tuple) else (made, {})
    import_dataset(path, tmp_path / "out", ImportOptions(**options, **more))
    expected, found = open_dataset(plain / "out"), open_dataset(tmp_path / "out")
    for file in expected.info["files"]:
        assert found.info["files"][file] == expected.info["files"][file], file
    assert digest(found) == digest(expected)


def test_a_date_without_time_is_midnight_utc(tmp_path: Path) -> None:
    lines = ["user_id,item_id,timestamp", "1,1,2001-01-01", "1,2,2001-01-02", "1,3,2001-01-03"]
    import_dataset(write(tmp_path / "a.csv", lines), tmp_path / "out", ImportOptions(k_core=1))
    table = pd.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert table["timestamp"].tolist() == [978_307_200 + 86_400 * day for day in range(3)]


def catalogue(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_items(path).to_dict("records")
    return rows


def test_recbole_brings_its_catalogue(tmp_path: Path) -> None:
    source = inter(tmp_path, ROWS)
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tlen:float"
    lines = ["10\tToy Story\t1995\tAnimation Comedy\t1.5", '2\t"Heat"\t\tCrime\t2', "30\t\t\t\t"]
    write(tmp_path / "a.item", [header, *lines])
    found = read_source(source, "recbole", LAYOUT)
    assert found.items_file == str(tmp_path / "a.item")
    assert found.items is not None
    assert found.items.columns.tolist() == [
        *("item_id", "title", "release_year", "class", "len", "text"),
    ]
    assert found.items["item_id"].tolist() == ["10", "2", "30"]
    assert found.items["title"].fillna("").tolist() == ["Toy Story", '"Heat"', ""]
    texts = ["Toy Story. 1995. Animation Comedy.", '"Heat". Crime.', ""]
    assert found.items["text"].tolist() == texts


def test_metadata_of_amazon_2023(tmp_path: Path) -> None:
    meta = [
        {
            "main_category": "All Beauty",
            "title": "Soap ",
            "average_rating": 4.8,
            "features": ["Mild", "No salt!"],
            "description": ["First\r\nline", "Second"],
            "price": None,
            "images": [{"thumb": "x.jpg"}],
            "store": "Howard",
            "categories": ["Beauty", "Bath"],
            "parent_asin": "0007",
        },
        {"title": None, "features": [], "description": [], "parent_asin": "B01", "store": None},
    ]
    path = write(tmp_path / "meta_Beauty.jsonl.gz", [json.dumps(one) for one in meta])
    text = "Soap. Howard. Beauty, Bath. Mild, No salt! First line, Second."
    assert catalogue(path) == [
        {"item_id": "0007", "title": "Soap", "text": text},
        {"item_id": "B01", "title": "", "text": ""},
    ]


def test_metadata_of_amazon_2018(tmp_path: Path) -> None:
    meta = {"asin": 5, "title": "Pen", "brand": "Bic", "category": [["Office", "Pens"]]}
    path = write(tmp_path / "meta.json", [json.dumps(meta | {"feature": [], "description": ""})])
    assert catalogue(path) == [{"item_id": 5, "title": "Pen", "text": "Pen. Bic. Office, Pens."}]


def test_other_json_lines_keep_their_text_and_cold(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", ['{"item_id": "a", "text": "own", "cold": 1, "x": 2}'])
    assert catalogue(path) == [{"item_id": "a", "title": "", "text": "own", "cold": 1}]


def test_a_review_goes_to_its_parent_or_to_the_variant_if_that_is_asked_for(
    tmp_path: Path,
) -> None:
    review = {"user_id": "u", "asin": "V1", "parent_asin": "P1", "timestamp": 1, "rating": 5.0}
    path = write(tmp_path / "a.jsonl", [json.dumps(review)])
    for layout, item in [(LAYOUT, "P1"), (Layout(item_column="asin"), "V1")]:
        assert read_source(path, "jsonl", layout).interactions["item_id"].tolist() == [item]


def test_files_of_movielens_are_catalogues(tmp_path: Path) -> None:
    title, text = "Heat (1995)", "Heat (1995). Action, Crime."
    write(tmp_path / "a" / "movies.dat", [f"6::{title}::Action|Crime"])
    row = f"6,{title},Action|Crime"
    write(tmp_path / "b" / "movies.csv", ["movieId,title,genres", row, "7,X,(no genres listed)"])
    flags = "|".join("1" if place in (1, 6) else "0" for place in range(19))
    write(tmp_path / "c" / "u.item", [f"6|{title}|01-Jan-1995||http://x|{flags}"])
    expected = {"item_id": "6", "title": title, "genres": "Action|Crime", "text": text}
    for folder, file in [("a", "movies.dat"), ("b", "movies.csv"), ("c", "u.item")]:
        assert catalogue(tmp_path / folder / file)[0] == expected
        assert catalogue(tmp_path / folder)[0] == expected
    assert catalogue(tmp_path / "b")[1]["text"] == "X."


def test_other_items_take_the_place_of_movielens_own(tmp_path: Path) -> None:
    write(tmp_path / "ratings.dat", joined(ROWS, "::"))
    items = write(tmp_path / "items.csv", ["item_id,title", "10,a", "2,b", "30,c"])
    found = read_source(tmp_path, "movielens", LAYOUT, items)
    assert found.items is not None
    assert found.items["title"].tolist() == ["a", "b", "c"]


def test_a_folder_of_two_formats_is_unclear(tmp_path: Path) -> None:
    write(tmp_path / "ratings.dat", joined(ROWS, "::"))
    write(tmp_path / "ratings.csv", [HEADER, *joined(ROWS, ",")])
    with pytest.raises(DataError, match=r"which file has the ratings.*ratings\.dat, ratings\.csv"):
        read_source(tmp_path, detect_format(tmp_path), LAYOUT)
    inter(tmp_path, ROWS)
    with pytest.raises(DataError, match=r"which format.*movielens and recbole"):
        detect_format(tmp_path)


def test_a_csv_beside_movielens_is_what_it_is_named(tmp_path: Path) -> None:
    write(tmp_path / "movies.csv", ["movieId,title,genres", "1,x,y"])
    own = csv_file("mine.csv", ",", HEADER)(tmp_path, ROWS)[0]
    assert detect_format(own) == "csv"
    ratings = csv_file("ratings.csv", ",", "userId,movieId,rating,timestamp")(tmp_path, ROWS)[0]
    assert detect_format(ratings) == "movielens"
    assert detect_format(csv_file("ratings.csv", ",", HEADER)(tmp_path / "b", ROWS)[0]) == "csv"


@pytest.mark.parametrize(
    ("format_", "layout", "option"),
    [
        ("movielens", Layout(user_column="x"), "--user-column"),
        ("movielens", Layout(rating_column="x"), "--rating-column"),
        ("parquet", Layout(separator=";"), "--separator"),
        ("jsonl", Layout(columns=("a",)), "--columns"),
        ("recbole", Layout(separator=","), "--separator"),
    ],
)
def test_no_option_is_ignored(tmp_path: Path, format_: str, layout: Layout, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} means nothing.*{format_}"):
        read_source(tmp_path, format_, layout)
