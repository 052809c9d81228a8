"""The files of an imported dataset folder, read and checked one by one.

`open_dataset` in data.py puts them together. Each function raises DataError, with the file's path.
"""

import csv
import hashlib
import json
import os
import re
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared_model.errors import DataError
from shared_model.fingerprint import canonical, text_sha256

FORMAT = 1
PAD = 0
MIN_COLD_HISTORY = 10  # non-cold items that a cold test case has before it
POPULARITY = ("head", "middle", "tail")  # values of popularity_bucket in items.csv, if it is there
MIN_USER_ITEMS = 3  # one to train on, one to validate with, one to test with
DTYPES: dict[str, np.dtype[Any]] = {
    "user_keys": np.dtype("<u8"),
    "indptr": np.dtype("<i8"),
    "items": np.dtype("<i4"),
    "cold_target": np.dtype("<i4"),
    "cold_length": np.dtype("<i4"),
}
_RACY_NS = 1_000_000_000  # a file younger than this may change without its times showing it


def sealed_info(info: dict[str, Any]) -> str:
    """The text of dataset.json: `info` and the hash of it. ValueError for a NaN."""
    content = info | {"sha256": text_sha256(canonical(info))}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def read_info(folder: Path) -> dict[str, Any]:
    """The content of dataset.json without its own hash, which is checked."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise _not_imported(folder)
    try:
        info: dict[str, Any] = json.loads(path.read_bytes())
        _check_info(path, info)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("dataset.json cannot be read", where=str(path), got=str(error)) from error
    required = {"items.csv", *(f"arrays/{name}.npy" for name in DTYPES)}
    if lost := sorted(required - info["files"].keys()):
        raise DataError("dataset.json lists too few files", where=str(path), expected=str(lost))
    for name, sha256 in info["files"].items():
        if not re.fullmatch(r"(\w+/)?\w+\.\w+ [0-9a-f]{64}", f"{name} {sha256}", re.ASCII):
            raise DataError("dataset.json lists no such file", where=str(path), got=ascii(name))
    return info


def _check_info(path: Path, info: Any) -> None:
    """Refuse another format, and what was changed since it was written; takes its hash out."""
    found = info.get("format") if isinstance(info, dict) else "none"
    if found != FORMAT or not isinstance(info.get("files"), dict):
        raise DataError(
            "another dataset format",
            where=str(path),
            expected=f"format {FORMAT} and a list of files",
            got=f"format {found!a:.80}",
            todo="import the source again with `feddmmr data import`",
        )
    recorded = info.pop("sha256", "none: another version of the app wrote it")
    if recorded != text_sha256(canonical(info)):
        raise DataError(
            "dataset.json was changed after the import",
            where=str(path),
            expected=f"sha256 {text_sha256(canonical(info))[:12]}",
            got=ascii(recorded)[:80],
            todo="import the source again with `feddmmr data import`",
        )


def _not_imported(folder: Path) -> DataError:
    if not folder.exists():
        return DataError(
            "the dataset folder does not exist",
            where=str(folder),
            todo="check the path, or create it with `feddmmr data import SOURCE OUTPUT`",
        )
    return DataError(
        "not an imported dataset",
        where=str(folder),
        expected="a folder with dataset.json",
        got="a readable folder without it" if os.access(folder, os.R_OK) else "no read permission",
        todo=f"run `feddmmr data import {folder} OUTPUT` and use OUTPUT",
    )


def check_file(path: Path, expected: str) -> None:
    """Refuse a file of another hash; it is read anew only if it may have changed since."""
    try:
        status = path.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        racy = time.time_ns() - max(times) < _RACY_NS
        hashed = _sha256.__wrapped__ if racy else _sha256
        found = hashed(path, status.st_size, times)
    except OSError as error:
        raise DataError(
            "a dataset file is missing or unreadable", where=str(path), got=str(error.strerror)
        ) from error
    if found != expected:
        raise DataError(
            "a dataset file was changed after the import",
            where=str(path),
            expected=f"sha256 {expected[:12]}",
            got=found[:12],
            todo="import the source again",
        )


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, times_ns: tuple[int, int]) -> str:
    """File hash; size and times are there so that a file is hashed once a process and version."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_array(folder: Path, name: str) -> npt.NDArray[Any]:
    path = folder / "arrays" / f"{name}.npy"
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # numpy's reader fails in a dozen ways, all of which are one
        raise DataError("an array cannot be read", where=str(path), got=str(error)) from error
    if array.dtype != DTYPES[name] or array.ndim != 1:
        raise DataError(
            "an array has the wrong type or shape",
            where=str(path),
            expected=f"{DTYPES[name]} with one dimension",
            got=f"{array.dtype} {array.shape}",
        )
    return array


def read_catalogue(path: Path) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int8]]:
    """Columns cold and popularity_bucket of items.csv, PAD in front: bool and int8 [I + 1].

    The bucket is a place in POPULARITY, or -1 for an item or a whole catalogue that has none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError("items.csv cannot be read", where=str(path), got=str(error)) from error
    cold = _codes(path, "cold", [row.get("cold") for row in rows], ("0", "1"))
    buckets = [row.get("popularity_bucket", "") for row in rows]
    popularity = _codes(path, "popularity_bucket", buckets, ("", *POPULARITY)) - 1
    return np.append(False, cold == 1), np.append(np.int8(-1), popularity)


def _codes(
    path: Path, column: str, values: list[Any], allowed: tuple[str, ...]
) -> npt.NDArray[np.int8]:
    """Each value's place among the allowed ones: int8 [I]."""
    for number, value in enumerate(values, start=1):
        if value not in allowed:
            raise DataError(
                f"bad value in column {column}",
                where=f"{path}, item {number}",
                expected=" or ".join(repr(one) if one == "" else one for one in allowed),
                got=repr(value),
            )
    return np.array([allowed.index(value) for value in values], dtype=np.int8)


def check_arrays(
    folder: Path,
    arrays: dict[str, npt.NDArray[Any]],
    cold: npt.NDArray[np.bool_],
    info: dict[str, Any],
) -> None:
    """Refuse arrays that contradict one another: everything downstream indexes with them."""
    users, num_items = len(arrays["user_keys"]), len(cold) - 1
    indptr, items, target = arrays["indptr"], arrays["items"], arrays["cold_target"]
    length = arrays["cold_length"]
    sizes_fit = len(indptr) == users + 1 and len(target) == len(length) == users > 0
    if not sizes_fit or indptr[0] != 0 or indptr[-1] != len(items):
        raise _inconsistent(folder, "lengths of user_keys, indptr, items and the cold arrays")
    if (np.diff(indptr) < MIN_USER_ITEMS).any():
        raise _inconsistent(folder, f"indptr: a user with fewer than {MIN_USER_ITEMS} items")
    if items.min() < 1 or items.max() > num_items or cold[items].any():
        raise _inconsistent(folder, f"items: not 1 to {num_items}, or a cold item in a history")
    if target.min() < 0 or target.max() > num_items or not cold[target[target > 0]].all():
        raise _inconsistent(folder, "cold_target: not a cold item")
    cases = target > 0
    too_long = length > np.diff(indptr)
    if (length[cases] < MIN_COLD_HISTORY).any() or too_long.any() or length[~cases].any():
        raise _inconsistent(folder, "cold_length")
    if len(np.unique(arrays["user_keys"])) != users:
        raise _inconsistent(folder, "user_keys: a key that comes twice")
    counts = {"users": users, "items": num_items, "interactions": len(items)}
    if any(info.get(name) != count for name, count in counts.items()):
        raise _inconsistent(folder, "dataset.json: other counts than the arrays have")


def _inconsistent(folder: Path, what: str) -> DataError:
    return DataError(
        "the dataset's arrays are inconsistent",
        where=str(folder),
        got=what,
        todo="import the source again",
    )
