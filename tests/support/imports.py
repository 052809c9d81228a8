"""Small sources to import, and what came of them."""

from pathlib import Path
from typing import Any

import pandas as pd

from client_app.data.dataset import Dataset, open_dataset
from feddmmr.data.importers import ImportOptions, import_dataset

Rating = tuple[int, int, int, int]


def title(item: int) -> str:
    return f"Amélie {item}: the 'best', they say (2001)"


def write_ratings_csv(folder: Path, ratings: list[Rating]) -> None:
    rows = [",".join(map(str, row)) for row in ratings]
    write(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *rows])
    movies = [f'{item},"{title(item)}",Comedy|Drama' for item in range(1, 13)]
    write(folder / "movies.csv", ["movieId,title,genres", *movies])


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def histories_of(dataset: Dataset) -> dict[Any, list[Any]]:
    users = pd.read_parquet(dataset.folder / "arrays" / "user_ids.parquet")["user_id"]
    item_ids = pd.read_csv(dataset.folder / "items.csv")["item_id"].to_numpy()
    return {
        user: item_ids[dataset.items[dataset.indptr[row] : dataset.indptr[row + 1]] - 1].tolist()
        for row, user in enumerate(users)
    }


def import_to(output: Path, source: Path, **options: Any) -> Dataset:
    import_dataset(source, output, ImportOptions(**({"k_core": 1} | options)))
    return open_dataset(output)
