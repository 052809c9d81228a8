"""Datasets of a wanted size: some users of a given one, or as many made-up ones as asked for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import load_file

from client_app.data.compile import write_dataset
from client_app.data.dataset import open_dataset
from feddmmr.data.reading.readers import read_items
from shared_model.errors import DataError
from shared_model.seeds import rng, stable_hash

_LENGTHS = (10, 31)  # interactions of a made-up user, the last number excluded


def some_users(source: Path, folder: Path, users: int) -> Path:
    """The dataset ``folder`` with ``users`` users of ``source``, by hash, and all its items."""
    table = pd.read_parquet(source / "interactions.parquet")
    ids = table["user_id"].unique()
    if users > len(ids):
        raise DataError("too few users", where=str(source), expected=str(users), got=str(len(ids)))
    hashes = [stable_hash("some users", str(user)) for user in ids]
    order = np.argsort(np.array(hashes, dtype=np.uint64), kind="stable")
    chosen = table[table["user_id"].isin(ids[order[:users]])]
    items = read_items(source / "items.csv")[["item_id", "cold"]]
    file = source / "features.safetensors"
    features = load_file(file) if file.is_file() else None
    write_dataset(folder, chosen, items, features, f"{open_dataset(source).info['name']}-{users}")
    return folder


def made_up(
    folder: Path, users: int, items: int, seed: int = 0, features: Sequence[int] = ()
) -> Path:
    """The dataset ``folder`` of users who each have 10 to 30 items, low numbers more often.

    ``features`` are the sizes of pictures and texts, which are noise; none without them.
    """
    random = rng(seed, "made up", users, items)
    lengths = random.integers(*_LENGTHS, users)
    owner = np.repeat(np.arange(users), lengths)
    drawn = np.floor(items * random.random(len(owner)) ** 2).astype(np.int64) + 1
    table = pd.DataFrame({"user_id": owner, "item_id": drawn})
    table = table.drop_duplicates()
    table["timestamp"] = np.arange(len(table))
    catalogue = pd.DataFrame({"item_id": np.arange(1, items + 1)})
    noise = None
    if features:
        named = zip(("visual", "text"), features, strict=True)
        noise = {name: _unit_rows(random, items, size) for name, size in named}
    write_dataset(folder, table, catalogue, noise, f"made-up-{users}")
    return folder


def _unit_rows(random: np.random.Generator, items: int, size: int) -> npt.NDArray[np.float16]:
    rows = random.standard_normal((items, size), dtype=np.float32)
    unit: npt.NDArray[np.float16] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.astype(np.float16)
