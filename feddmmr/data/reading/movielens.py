"""Read MovieLens in its native forms: ratings.dat, ratings.csv and u.data, with their titles."""

from pathlib import Path

import numpy as np
import pandas as pd

from feddmmr.data.reading.delimited import read_delimited
from feddmmr.data.reading.item_texts import texts_of
from feddmmr.data.reading.source import Interactions, Layout, select, with_item_id
from shared_model.errors import DataError

# Each file of ratings and that of its titles.
RATINGS = {"ratings.dat": "movies.dat", "u.data": "u.item", "ratings.csv": "movies.csv"}
TITLES = tuple(RATINGS.values())
_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_ITEM_COLUMNS = ("item_id", "title", "genres")
_UITEM_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_UITEM_COLUMNS = ("item_id", "title", "release", "video", "url", *_UITEM_GENRES)


def read_interactions(path: Path, layout: Layout) -> Interactions:
    """The ratings at `path`, a folder or a file; the catalogue is the file with the titles."""
    file = _ratings_file(path)
    if file.name == "ratings.csv":
        table = read_delimited(file, ",", latin1=True)
    else:
        table = read_delimited(
            file, "::" if file.suffix == ".dat" else "\t", names=_COLUMNS, latin1=True
        )
    return Interactions(
        name=file.parent.resolve().name,
        table=select(table, layout, file),
        file=file,
        items=file.parent / RATINGS[file.name],
        unordered=True,
    )


def read_items(path: Path) -> pd.DataFrame:
    """item_id, title, genres and text (title and genres) of movies.dat, movies.csv or u.item."""
    if path.name == "movies.csv":
        table = with_item_id(read_delimited(path, ",", latin1=True), path)
    elif path.name == "movies.dat":
        table = read_delimited(path, "::", names=_ITEM_COLUMNS, latin1=True)
    else:
        table = read_delimited(path, "|", names=_UITEM_COLUMNS, latin1=True)
        flags = (table[list(_UITEM_GENRES)] == "1").to_numpy()
        table["genres"] = ["|".join(np.array(_UITEM_GENRES)[row]) for row in flags]
        table = table[list(_ITEM_COLUMNS)].copy()
    if "text" not in table and {"title", "genres"} <= set(table.columns):
        genres = table["genres"].replace("(no genres listed)", "")
        words = genres.str.replace("|", ", ", regex=False)
        table["text"] = texts_of(table.assign(genres=words), ["title", "genres"])
    return table


def _ratings_file(path: Path) -> Path:
    files = [path / name for name in RATINGS] if path.is_dir() else [path]
    found = [file for file in files if file.is_file() and file.name in RATINGS]
    if len(found) != 1:
        raise DataError(
            "which file has the ratings?" if found else "no MovieLens ratings",
            where=str(path),
            expected=f"one of {', '.join(RATINGS)}",
            got=", ".join(file.name for file in found),
            todo="pass the file itself" if found else "",
        )
    return found[0]
