"""Feature arrays that come with a source: files of arrays, and the items their rows belong to."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors import SafetensorError, safe_open

from shared_model.errors import DataError

KINDS = ("visual", "text")


@dataclass(frozen=True)
class FeatureFiles:
    """Arrays [rows, dim] by kind, the item id of each row (None: as in items.csv), encoders."""

    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    item_ids: npt.NDArray[Any] | None = None
    encoders: dict[str, str] = field(default_factory=dict)


def read_features(path: Path) -> FeatureFiles:
    """Features at `path`: a .safetensors file, or a folder with one or with .npy files.

    A folder may hold features.safetensors, or visual.npy and text.npy (either may lack) with
    item_ids.npy. A folder without any of them has no features. Raises DataError.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if (path / "features.safetensors").is_file():
        return _read_safetensors(path / "features.safetensors")
    files = {kind: path / f"{kind}.npy" for kind in KINDS if (path / f"{kind}.npy").is_file()}
    if not files:
        return FeatureFiles()
    ids = _read_npy(path / "item_ids.npy")
    arrays = {kind: _read_npy(file) for kind, file in files.items()}
    for kind, array in arrays.items():
        if array.ndim != 2 or len(array) != len(ids):
            raise DataError(
                "features and their item ids differ in length",
                where=str(files[kind]),
                expected=f"[{len(ids)}, dim], as item_ids.npy",
                got=str(list(array.shape)),
            )
    return FeatureFiles(arrays, ids)


def align_features(
    files: FeatureFiles, item_ids: pd.Series, catalogue_ids: pd.Series
) -> dict[str, npt.NDArray[np.float16]]:
    """Rows in the order of `item_ids` [I], of norm 1; a zero row where an item has no features.

    `catalogue_ids` are the ids of the rows of a file that does not say. Raises DataError.
    """
    ids = catalogue_ids if files.item_ids is None else pd.Series(files.item_ids)
    index = pd.Index(ids.astype(str))
    if repeated := list(index[index.duplicated()][:1]):
        raise DataError("an item has two rows of features", got=f"item {repeated[0]}")
    places = index.get_indexer(pd.Index(item_ids.astype(str)))
    aligned = {}
    for kind, array in files.arrays.items():
        if len(array) != len(index):
            raise DataError(
                f"{kind} features do not fit the catalogue",
                expected=f"{len(index)} rows",
                got=str(len(array)),
            )
        rows = np.where((places >= 0)[:, None], array[places], 0)
        aligned[kind] = _unit_rows(rows.astype(np.float32), kind)
    return aligned


def _unit_rows(rows: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.float16]:
    """Normalise rows; those that are normalised up to float16's accuracy keep their bits."""
    if not np.isfinite(rows).all():
        place = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise DataError(f"{kind} features have a NaN or infinity", where=f"item {place + 1}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = (norms > 0) & (np.abs(norms - 1) > 2e-3)
    return np.where(wrong, rows / np.where(norms > 0, norms, 1), rows).astype(np.float16)


def _read_safetensors(path: Path) -> FeatureFiles:
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {kind: file.get_tensor(kind) for kind in KINDS if kind in file.keys()}  # noqa: SIM118
            facts = json.loads((file.metadata() or {}).get("feddmmr", "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError("the features cannot be read", where=str(path), got=str(error)) from error
    if not arrays:
        raise DataError("no features in the file", where=str(path), expected=" or ".join(KINDS))
    return FeatureFiles(arrays, None, facts.get("encoders", {}))


def _read_npy(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError("the array cannot be read", where=str(path), got=str(error)) from error
    return array
