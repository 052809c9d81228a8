"""Compile tables into a dataset folder: validate, build the CSR arrays, write all or nothing.

The folder (format 1; data.py opens it, arrays as listed in folder.py):

    interactions.parquet   user_id, item_id, timestamp of the kept users, by user and then time
    items.csv              item_id, ..., popularity_bucket (optional: head, middle, tail or, for a
                           cold item, empty), cold (0 or 1); row i is item index i + 1
    features.safetensors   optional: visual and text, float16, rows as in items.csv, zero = missing
    arrays/                the users as the app reads them, and user_ids.parquet for the tools
    dataset.json           counts, encoders, what an import dropped ("imported", if it was one),
                           the sha256 of every file and of all this
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import save

from client_app.data.folder import DTYPES, FORMAT, MIN_COLD_HISTORY, MIN_USER_ITEMS, sealed_info
from client_app.data.popularity import popularity_buckets
from client_app.data.split import train_places
from client_app.data.tables import check_features, check_interactions, check_items
from shared_model.errors import DataError
from shared_model.seeds import stable_hash, user_key

Features = Mapping[str, npt.NDArray[Any]]


def write_dataset(
    folder: Path,
    interactions: pd.DataFrame,
    items: pd.DataFrame,
    features: Features | None,
    name: str,
    encoders: Mapping[str, str] | None = None,
    source: str = "interactions",
    popularity: bool = False,
    imported: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Validate the tables, write the dataset folder in one step, return its dataset.json.

    `interactions` has user_id, item_id, timestamp, each user's rows in time order. `items` has
    item_id and, if any item is cold, cold (0 or 1). `features` may hold "visual" and "text",
    [I, dim] with rows as in `items`; `encoders` names what made them. Raises DataError, in which
    the interactions are called `source`, for bad values and if `folder` exists; then nothing is
    written. With `popularity` the catalogue gets the column popularity_bucket: for whole data only,
    since the folders of different nodes must have the same items.csv. `imported` is the record of
    an import (feddmmr/data/import_record.py), for dataset.json.
    """
    refuse_existing(folder)
    items = check_items(items)
    interactions = check_interactions(interactions, items["item_id"], source)
    features = check_features(features or {}, len(items))
    compiled = compile_users(interactions, items)
    if popularity:
        items = _with_popularity(items, compiled)
    content: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "users": len(compiled.user_ids),
        "items": len(items),
        "interactions": len(compiled.arrays["items"]),
        "cold_items": int(items["cold"].sum()),
        "cold_cases": int((compiled.arrays["cold_target"] > 0).sum()),
        "skipped_users": compiled.skipped_users,
        "visual_dim": 0,
        "text_dim": 0,
        "encoders": {kind: (encoders or {}).get(kind, "unknown") for kind in sorted(features)},
    }
    if imported is not None:
        content["imported"] = dict(imported)
    for kind, array in features.items():
        content[f"{kind}_dim"] = array.shape[1]
        content[f"{kind}_coverage"] = round(float(array.any(axis=1).mean()), 6)
    kept = interactions[interactions["user_id"].isin(compiled.user_ids)]
    temporary = temporary_sibling(folder)
    try:
        _write_files(temporary, kept, items, features, content["encoders"], compiled)
        _write_info(temporary, content)
        publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return content


def choose_cold(item_ids: pd.Series, fraction: float, seed: int) -> npt.NDArray[np.int64]:
    """The `cold` column for exactly round(fraction * I) items, by hash of seed and id: [I] of 0, 1.

    By hash, so that the choice depends neither on the order of the items nor on the platform.
    """
    hashes = [stable_hash(seed, "cold", str(item)) for item in item_ids]
    order = np.argsort(np.array(hashes, dtype=np.uint64), kind="stable")
    cold = np.zeros(len(item_ids), dtype=np.int64)
    cold[order[: round(fraction * len(item_ids))]] = 1
    return cold


@dataclass(frozen=True)
class CompiledUsers:
    """The arrays of data.py's Dataset, the ids behind their rows, and how many were left out."""

    user_ids: npt.NDArray[Any]  # [U], sorted
    arrays: dict[str, npt.NDArray[Any]]
    skipped_users: int


def compile_users(interactions: pd.DataFrame, items: pd.DataFrame) -> CompiledUsers:
    """Checked tables, by user and then time, to CSR arrays; users with too few items are left out.

    Raises DataError if no user is left.
    """
    ids, users = np.unique(interactions["user_id"].to_numpy(), return_inverse=True)
    index = pd.Index(items["item_id"]).get_indexer(interactions["item_id"]) + 1  # [N], 1 to I
    is_cold = items["cold"].to_numpy(dtype=bool)[index - 1]
    lengths = np.bincount(users[~is_cold], minlength=len(ids))
    keep = lengths >= MIN_USER_ITEMS
    if not keep.any():
        raise DataError(
            "no user is left",
            expected=f"users with at least {MIN_USER_ITEMS} interactions with items not cold",
            got=f"{len(ids)} users with fewer",
        )
    history = keep[users] & ~is_cold
    target, length = _cold_cases(users, index, is_cold, lengths)
    arrays = {
        "user_keys": np.array([user_key(user) for user in ids[keep]], dtype=np.uint64),
        "indptr": np.concatenate(([0], np.cumsum(lengths[keep]))),
        "items": index[history],
        "cold_target": target[keep],
        "cold_length": length[keep],
    }
    typed = {
        name: array.astype(DTYPES[name], casting="same_kind") for name, array in arrays.items()
    }
    return CompiledUsers(ids[keep], typed, int((~keep).sum()))


def _with_popularity(items: pd.DataFrame, compiled: CompiledUsers) -> pd.DataFrame:
    """The catalogue with the column popularity_bucket, from the users' train interactions."""
    indptr, history = compiled.arrays["indptr"], compiled.arrays["items"]
    counts = np.bincount(history[train_places(indptr)], minlength=len(items) + 1)[1:]
    buckets = popularity_buckets(counts, items["cold"].to_numpy(dtype=bool))
    others = items.drop(columns="cold")  # to keep it the last column
    return others.assign(popularity_bucket=buckets, cold=items["cold"])


def _cold_cases(
    users: npt.NDArray[np.int64],
    index: npt.NDArray[np.int64],
    is_cold: npt.NDArray[np.bool_],
    lengths: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each user's last cold item with enough history: its index and the items before it, [U]."""
    starts = np.cumsum(lengths) - lengths
    before = np.cumsum(~is_cold) - starts[users]  # non-cold items of the user up to here
    target = np.zeros(len(lengths), dtype=np.int64)
    length = np.zeros(len(lengths), dtype=np.int64)
    cases = is_cold & (before >= MIN_COLD_HISTORY)
    target[users[cases]] = index[cases]  # in time order, so the last one stays
    length[users[cases]] = before[cases]
    return target, length


def refuse_existing(folder: Path) -> None:
    """Raise DataError if `folder` exists: nothing is ever overwritten."""
    if folder.exists():
        raise DataError(
            "the output exists already",
            where=str(folder),
            todo="choose another folder, or delete this one first",
        )


def temporary_sibling(folder: Path) -> Path:
    """A new, empty folder beside `folder`, on its file system, to be renamed when it is whole."""
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise DataError(
            "the output cannot be written", where=str(folder), got=str(error.strerror)
        ) from error
    return temporary


def publish(temporary: Path, folder: Path) -> None:
    """Rename a whole folder to its place. Raises DataError if another process was faster."""
    try:
        temporary.rename(folder)
    except OSError:
        refuse_existing(folder)
        raise


def _write_files(
    folder: Path,
    interactions: pd.DataFrame,
    items: pd.DataFrame,
    features: Features,
    encoders: Mapping[str, str],
    compiled: CompiledUsers,
) -> None:
    (folder / "arrays").mkdir()
    interactions.to_parquet(folder / "interactions.parquet", index=False)
    items.to_csv(folder / "items.csv", index=False, lineterminator="\n")
    if features:
        # One metadata entry: safetensors writes several in no fixed order, and bytes must repeat.
        facts = {"encoders": dict(encoders), "row_order": "items.csv"}
        metadata = {"feddmmr": json.dumps(facts, sort_keys=True)}
        (folder / "features.safetensors").write_bytes(save(dict(features), metadata=metadata))
    user_ids = pd.DataFrame({"user_id": compiled.user_ids})
    user_ids.to_parquet(folder / "arrays" / "user_ids.parquet", index=False)
    for name, array in compiled.arrays.items():
        np.save(folder / "arrays" / f"{name}.npy", array)


def _write_info(folder: Path, content: dict[str, Any]) -> None:
    """Write dataset.json last, with the hash of every other file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    content["files"] = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
    (folder / "dataset.json").write_text(sealed_info(content), encoding="utf-8")
