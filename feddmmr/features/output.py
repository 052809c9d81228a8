"""Write `features.safetensors` whole or not at all, and say a full disk in one line."""

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import save

from client_app.data.compile import refuse_existing
from client_app.data.tables import check_features, check_items
from feddmmr.data.reading.readers import items_file, read_items
from shared_model.errors import DataError
from shared_model.files import replacing


def catalogue(path: Path) -> pd.DataFrame:
    """A catalogue with clean, unique ids, all other columns as text: of whatever an import takes.

    Raises DataError.
    """
    return check_items(read_items(path), str(items_file(path)))


def write_features(
    output: Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    encoders: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Write arrays [I, dim] of unit or zero rows, with what made them, in one step.

    Raises DataError if `output` exists, a row has another norm, or the disk is full.
    """
    refuse_existing(output)
    rows = len(next(iter(arrays.values())))
    checked = check_features(arrays, rows)
    # One metadata entry: safetensors writes several in no fixed order, and bytes must repeat.
    content = {"encoders": dict(encoders), "row_order": "items.csv", **facts}
    metadata = {"feddmmr": json.dumps(content, sort_keys=True)}
    with disk_faults(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output, rivals=True) as temporary:
            temporary.write_bytes(save(checked, metadata=metadata))
            refuse_existing(output)  # which the rename would replace


@contextmanager
def disk_faults(path: Path, kept: str = "") -> Iterator[None]:
    """Turn a full disk and the like into a DataError that says what was `kept`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DataError(
            "the disk is full" if full else "the output cannot be written",
            where=str(path),
            got=error.strerror or str(error),
            todo=f"free some space and run the command again{kept}" if full else "",
        ) from error


def describe(arrays: Mapping[str, npt.NDArray[np.float16]], output: Path) -> list[str]:
    """Lines that say what a features file holds."""
    lines = [f"features: {output.resolve()}"]
    for kind, array in sorted(arrays.items()):
        present = int(array.any(axis=1).sum())
        lines.append(f"  {kind}: {array.shape[1]} dimensions, {present} of {len(array)} items")
    return lines
