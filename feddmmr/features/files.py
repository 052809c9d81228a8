"""Feature arrays that come with a source: files of arrays, and the items their rows belong to."""

import json
import tokenize
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors import SafetensorError, safe_open

from feddmmr.features.rows import check_ids, check_matrix, places_of, unit_rows
from feddmmr.notes import note
from shared_model.errors import DataError

Say = Callable[[str], None]
KINDS = ("visual", "text")
IDS = "item_ids"
# What numpy raises on damaged files: EOFError for an empty one, MemoryError for one that claims too
# much, TokenError for a header that is cut.
DAMAGE = (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, tokenize.TokenError)


@dataclass(frozen=True)
class FeatureFiles:
    """Arrays [rows, dim] by kind, the item id of each row (None: as in items.csv), encoders.

    Raises DataError for arrays that are no features: see `check_matrix`.
    """

    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    item_ids: npt.NDArray[Any] | None = None
    encoders: dict[str, str] = field(default_factory=dict)
    source: str = "the features"  # what messages call them

    def __post_init__(self) -> None:
        for kind, array in self.arrays.items():
            check_matrix(array, kind, self.source)


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
    arrays = {kind: _read_npy(file) for kind, file in files.items()}
    return FeatureFiles(arrays, _read_npy(path / f"{IDS}.npy"), {}, str(path))


def align_features(
    files: FeatureFiles,
    item_ids: pd.Series,
    catalogue_ids: pd.Series,
    catalogue: str = "the catalogue",
    say: Say = note,
) -> dict[str, npt.NDArray[np.float16]]:
    """Rows in the order of `item_ids` [I], of norm 1; a zero row where an item has no features.

    `catalogue_ids` are the ids of the whole catalogue, which messages call `catalogue`, and those
    of the rows of a file that does not say. `say` gets a line if some items have no row or some
    rows no item. Raises DataError for bad ids, and if not one row belongs to an item.
    """
    _tell_integers(files, say)
    ids = catalogue_ids
    if files.item_ids is not None:
        ids = check_ids(files.item_ids, f"{files.source}, {IDS}")
    _check_lengths(files, ids)
    places = places_of(item_ids, ids)
    if files.item_ids is not None and files.arrays:
        _tell_misses(files.source, ids, item_ids, catalogue_ids, catalogue, say)
    return {
        kind: unit_rows(np.where((places >= 0)[:, None], array[places], 0))
        for kind, array in files.arrays.items()
    }


def _tell_integers(files: FeatureFiles, say: Say) -> None:
    """Quantised embeddings look like any integers, and often have an offset that must go first."""
    for kind, array in files.arrays.items():
        if array.dtype.kind in "iu":
            say(
                f"{files.source}: {kind} are {array.dtype}, taken as they are; if they are "
                "quantised with an offset or a scale for each column, decode them first"
            )


def _check_lengths(files: FeatureFiles, ids: pd.Series) -> None:
    """Refuse an item with two rows, and arrays with more or fewer rows than there are ids."""
    if repeated := ids[ids.duplicated()].tolist()[:1]:
        raise DataError(
            "an item has two rows of features", where=files.source, got=f"item {repeated[0]}"
        )
    for kind, array in files.arrays.items():
        if len(array) != len(ids):
            raise DataError(
                f"{kind} features do not fit the catalogue",
                where=files.source,
                expected=f"{len(ids)} rows",
                got=str(len(array)),
            )


def _tell_misses(
    source: str,
    ids: pd.Series,
    item_ids: pd.Series,
    catalogue_ids: pd.Series,
    catalogue: str,
    say: Say,
) -> None:
    """Say which items have no row and which rows no item. Raises DataError if no item has one."""
    lacking = item_ids[places_of(item_ids, ids) < 0]
    if len(lacking) == len(item_ids):
        raise DataError(
            "the features belong to another catalogue: not one row is of an item",
            where=f"{source} and {catalogue}",
            expected=f"item ids like {_examples(item_ids)}",
            got=_examples(ids),
            todo="check that both are of the same data, and that the ids are written alike",
        )
    strange = ids[places_of(ids, catalogue_ids) < 0]
    if len(lacking):
        say(f"{source}: {len(lacking):,} of {len(item_ids):,} items have no row of features, "
            f"such as {_examples(lacking)}")  # fmt: skip
    if len(strange):
        say(f"{source}: {len(strange):,} of {len(ids):,} rows belong to no item of {catalogue}, "
            f"such as {_examples(strange)}")  # fmt: skip


def _examples(ids: pd.Series) -> str:
    """The first two ids as they are written, text in quotes."""
    return ", ".join(repr(one) for one in ids.tolist()[:2]) or "no rows"


def _read_safetensors(path: Path) -> FeatureFiles:
    try:
        with safe_open(path, framework="numpy") as file:  # type: ignore[no-untyped-call]
            names = [name for name in (*KINDS, IDS) if name in file.keys()]  # noqa: SIM118
            arrays = {name: file.get_tensor(name) for name in names}
            facts = json.loads((file.metadata() or {}).get("feddmmr", "{}"))
        encoders = facts.get("encoders", {})
    # TypeError: bfloat16, which numpy lacks. AttributeError: metadata that is no table.
    except (OSError, ValueError, SafetensorError, TypeError, AttributeError) as error:
        raise DataError("the features cannot be read", where=str(path), got=str(error)) from error
    ids = arrays.pop(IDS, None)
    if not arrays:
        raise DataError("no features in the file", where=str(path), expected=" or ".join(KINDS))
    return FeatureFiles(arrays, ids, encoders, str(path))


def _read_npy(path: Path) -> npt.NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of arrays, not one array")
    except DAMAGE as error:
        raise DataError("the array cannot be read", where=str(path), got=str(error)) from error
    return array
