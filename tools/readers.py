"""Read one source format each into the same tables; nothing is filtered or sorted here.

Every table's index is the line (or row) of its file, and says so in its name, for the messages.
"""

import csv
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from shared_model.errors import DataError
from tools.feature_files import read_features

COLUMNS = ["user_id", "item_id", "timestamp"]
UDATA_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_UNPARSABLE = (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError)
MOVIELENS_FILES = ("ratings.dat", "u.data", "ratings.csv")


@dataclass(frozen=True)
class Source:
    """A source as read: interactions (with rating, if it has one), catalogue and features."""

    name: str
    interactions: pd.DataFrame
    interactions_file: str
    items: pd.DataFrame | None = None  # None: the items of the interactions, without titles
    items_file: str = "items"
    features: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    feature_ids: npt.NDArray[Any] | None = None  # item ids of the feature rows; None: as `items`
    encoders: dict[str, str] = field(default_factory=dict)
    unordered: bool = False  # the format promises no time order: sort without being asked


def read_movielens(path: Path) -> Source:
    """`ratings.dat` (with movies.dat), `ratings.csv` (movies.csv) or `u.data` (u.item)."""
    ratings = _movielens_file(path)
    layouts = {
        "ratings.dat": ("movies.dat", _read_dat, ["user_id", "item_id", "rating", "timestamp"]),
        "ratings.csv": ("movies.csv", _read_csv_as, ["userId", "movieId", "rating", "timestamp"]),
        "u.data": ("u.item", _read_udata, ["user_id", "item_id", "rating", "timestamp"]),
    }
    movies_name, read, columns = layouts[ratings.name]
    table = read(ratings, columns)
    table.columns = pd.Index(["user_id", "item_id", "rating", "timestamp"])
    movies = ratings.parent / movies_name
    if not movies.is_file():
        raise DataError("the file with the titles is missing", where=str(movies))
    return Source(
        name=ratings.parent.resolve().name,
        interactions=table,
        interactions_file=str(ratings),
        items=_read_movies(movies),
        items_file=str(movies),
        unordered=True,
    )


def read_csv(path: Path, columns: dict[str, str]) -> Source:
    """A CSV file with a header; `columns` maps user_id, item_id and timestamp to its names."""
    table = _read_table(path, sep=",")
    return Source(path.stem, _renamed(table, columns, path), str(path))


def read_parquet(path: Path, columns: dict[str, str]) -> Source:
    """A parquet file; `columns` as in `read_csv`."""
    return Source(path.stem, _renamed(_read_parquet(path), columns, path), str(path))


def read_folder(path: Path, columns: dict[str, str]) -> Source:
    """interactions.parquet with items.csv and, if there, features (see feature_files.py)."""
    interactions, items = path / "interactions.parquet", path / "items.csv"
    table = _renamed(_read_parquet(interactions), columns, interactions)
    found = read_features(path)
    return Source(
        name=path.resolve().name,
        interactions=table,
        interactions_file=str(interactions),
        items=read_items(items),
        items_file=str(items),
        features=found.arrays,
        feature_ids=found.item_ids,
        encoders=found.encoders,
    )


def read_items(path: Path) -> pd.DataFrame:
    """A catalogue: a CSV file with item_id and any other columns, all as text."""
    return _read_table(path, sep=",")


def detect_format(path: Path) -> str:
    """movielens, folder, csv or parquet, from what lies at `path`. Raises DataError."""
    if not path.exists():
        raise DataError("the source does not exist", where=str(path), todo="check the path")
    if path.name in ("ratings.dat", "u.data") or (path.parent / "movies.csv").is_file():
        return "movielens"
    if path.is_dir() and (path / "interactions.parquet").is_file():
        return "folder"
    if path.is_dir() and any((path / name).is_file() for name in MOVIELENS_FILES):
        return "movielens"
    if path.is_file() and path.suffix in (".csv", ".parquet"):
        return path.suffix[1:]
    raise DataError(
        "no known format",
        where=str(path),
        expected=f"interactions.parquet, {', '.join(MOVIELENS_FILES)}, or a .csv or .parquet file",
        todo="pass --format with the file itself as SOURCE",
    )


def _movielens_file(path: Path) -> Path:
    candidates = [path] if path.is_file() else [path / name for name in MOVIELENS_FILES]
    for candidate in candidates:
        if candidate.is_file() and candidate.name in MOVIELENS_FILES:
            return candidate
    raise DataError("no MovieLens ratings", where=str(path), expected=", ".join(MOVIELENS_FILES))


def _read_dat(path: Path, columns: list[str]) -> pd.DataFrame:
    """Fields between "::"; made tabs, since pandas reads those fast and no field has one."""
    text = _read_bytes(path).replace(b"::", b"\t")
    return _read_table(path, sep="\t", names=columns, content=text)


def _read_csv_as(path: Path, columns: list[str]) -> pd.DataFrame:
    table = _read_table(path, sep=",")
    return _select(table, columns, path)


def _read_udata(path: Path, columns: list[str]) -> pd.DataFrame:
    return _read_table(path, sep="\t", names=columns)


def _read_movies(path: Path) -> pd.DataFrame:
    """item_id, title, genres of movies.dat, movies.csv or u.item."""
    columns = ["item_id", "title", "genres"]
    if path.name == "movies.csv":
        table = _select(_read_table(path, sep=","), ["movieId", "title", "genres"], path)
    elif path.name == "movies.dat":
        table = _read_dat(path, columns)
    else:
        names = ["item_id", "title", "release", "video", "url", *UDATA_GENRES]
        table = _read_table(path, sep="|", names=names)
        flags = (table[list(UDATA_GENRES)] == "1").to_numpy()
        table["genres"] = ["|".join(np.array(UDATA_GENRES)[row]) for row in flags]
        table = table[columns]
    table.columns = pd.Index(columns)
    return table


def _read_table(
    path: Path, sep: str, names: list[str] | None = None, content: bytes | None = None
) -> pd.DataFrame:
    """Text columns of a delimited file, with its line numbers. `names`: it has no header."""
    raw = _read_bytes(path) if content is None else content
    encoding = "utf-8" if _is_utf8(raw) else "latin-1"  # the older MovieLens files are latin-1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of fields that it drops
            table = pd.read_csv(
                io.BytesIO(raw),
                sep=sep,
                names=names,
                header=0 if names is None else None,
                index_col=False,
                dtype=str,
                encoding=encoding,
                skip_blank_lines=False,
                quoting=csv.QUOTE_MINIMAL if sep == "," else csv.QUOTE_NONE,
                keep_default_na=False,
                na_values=[""],
                on_bad_lines="error",
            )
    except (*_UNPARSABLE, UnicodeError) as error:
        raise DataError("the file cannot be parsed", where=str(path), got=str(error)) from error
    table.index = pd.RangeIndex(1 if names else 2, len(table) + (1 if names else 2), name="line")
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError("the file cannot be read", where=str(path), got=str(error)) from error
    table.index = pd.RangeIndex(len(table), name="row")
    return table


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            "the file cannot be read", where=str(path), got=str(error.strerror)
        ) from error


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _renamed(table: pd.DataFrame, columns: dict[str, str], path: Path) -> pd.DataFrame:
    """The three columns under their own names, and `rating` if there is one."""
    wanted = [columns[name] for name in COLUMNS]
    rating = ["rating"] if "rating" in table and "rating" not in wanted else []
    table = _select(table, wanted + rating, path)
    table.columns = pd.Index(COLUMNS + rating)
    return table


def _select(table: pd.DataFrame, columns: list[str], path: Path) -> pd.DataFrame:
    if lost := [column for column in columns if column not in table]:
        raise DataError(
            f"no column {', '.join(lost)}",
            where=str(path),
            expected=", ".join(columns),
            got=", ".join(map(str, table.columns)),
            todo="name the columns with --user-column, --item-column and --time-column",
        )
    return table[columns].copy()
