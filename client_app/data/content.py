"""The items' features as a node uses them: unit rows by modality, and both side by side.

Letters: I items, V and S sizes of visual and text features. Row 0 is PAD. A zero row is a missing
feature, in the file as in memory.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from client_app.data.dataset import Dataset
from client_app.data.folder import check_file
from shared_model.errors import DataError
from shared_model.protocol.settings import MODALITY_CHOICES

Floats = npt.NDArray[np.float32]

FILE = "features.safetensors"
NO_DIM = 4  # columns of a modality that the dataset lacks: zeros, of a size that heads divide


@dataclass(frozen=True, eq=False)
class Content:
    """Features of the whole catalogue, rows of norm 1 or all zero (missing; row 0 is PAD)."""

    visual: Tensor  # [I + 1, V] float32
    text: Tensor  # [I + 1, S] float32
    combined: Floats  # [I + 1, V + S], both side by side; on the CPU, for the memory's novelty


def open_content(dataset: Dataset, modalities: str, device: str = "cpu") -> Content:
    """Read the features of a dataset, of `modalities` "both", "visual" or "text".

    A modality that is not asked for, or that the file lacks, is missing everywhere; its size is as
    `content_dims` says. Raises DataError if there are no features, or ones that do not fit the
    catalogue or dataset.json, and ValueError for other modalities.
    """
    if modalities not in MODALITY_CHOICES:
        raise ValueError(f"unknown modalities {modalities!r}: {', '.join(MODALITY_CHOICES)}")
    dims = dict(zip(("visual", "text"), content_dims(dataset), strict=True))
    stored = _read(dataset)
    rows = {kind: np.zeros((dataset.num_items + 1, dim), np.float32) for kind, dim in dims.items()}
    for kind, array in stored.items():
        if modalities in ("both", kind):
            rows[kind][1:] = unit_rows(array)
    visual, text = (torch.from_numpy(rows[kind]).to(device) for kind in ("visual", "text"))
    return Content(visual, text, side_by_side(rows["visual"], rows["text"]))


def content_dims(dataset: Dataset) -> tuple[int, int]:
    """(V, S) as `open_content` will have them, from dataset.json alone; NO_DIM for one it lacks.

    Raises DataError if the dataset has no features.
    """
    if not dataset.features_sha256:
        raise DataError(
            "the dataset has no features",
            where=str(dataset.folder),
            expected=FILE,
            todo="make some with `feddmmr features encode` and import the data again with "
            "`feddmmr data import --features`, or run stage=1, which needs none",
        )
    return _stored_dim(dataset, "visual") or NO_DIM, _stored_dim(dataset, "text") or NO_DIM


def unit_rows(rows: npt.NDArray[Any]) -> Floats:
    """Rows [I, F] divided by their norms; zero rows stay zero.

    From float16 the result is the same to the bit on any machine: squares are multiples of 2^-48,
    so that their sum, which is around 1, is exact in float64 in any order.
    """
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    norms = np.sqrt(np.where(squares > 0, squares, 1)).astype(np.float32)
    unit: Floats = rows.astype(np.float32) / norms[:, None]
    return unit


def side_by_side(visual: Floats, text: Floats) -> Floats:
    """Unit rows [I, V] and [I, S] as unit rows [I, V + S]; zero where both are missing.

    A row of one modality alone keeps its bits: so do its cosines, and the memory's threshold.
    """
    present = visual.any(axis=1).astype(np.float32) + text.any(axis=1)  # [I] 0, 1 or 2
    weight = np.sqrt(1 / np.maximum(present, 1)).astype(np.float32)
    combined: Floats = np.hstack([visual, text]) * weight[:, None]
    return combined


def _stored_dim(dataset: Dataset, kind: str) -> int:
    """Size of a modality in the file, 0 if it is not there, as dataset.json says."""
    dim = dataset.info.get(f"{kind}_dim", 0)
    if type(dim) is not int or dim < 0:
        raise _unfit(dataset, f"a whole number as {kind}_dim in dataset.json", repr(dim))
    return dim


def _read(dataset: Dataset) -> dict[str, npt.NDArray[np.float16]]:
    """The file's arrays by modality, [I, dim] each, checked; one without columns is left out."""
    path = dataset.folder / FILE
    check_file(path, dataset.features_sha256)  # now: the dataset may have been opened hours ago
    try:
        with safe_open(path, framework="numpy") as file:  # type: ignore[no-untyped-call]
            arrays = {kind: file.get_tensor(kind) for kind in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError("the features cannot be read", where=str(path), got=str(error)) from error
    if unknown := sorted(arrays.keys() - {"visual", "text"}):
        raise _unfit(dataset, "visual and text", ", ".join(unknown))
    for kind in ("visual", "text"):
        dim = _stored_dim(dataset, kind)
        if kind in arrays or dim:
            _check(dataset, kind, arrays.get(kind), (dataset.num_items, dim))
    return {kind: array for kind, array in arrays.items() if array.shape[1]}


def _check(
    dataset: Dataset, kind: str, array: npt.NDArray[Any] | None, shape: tuple[int, int]
) -> None:
    """Refuse an array of another type or shape, or with a value that is no number."""
    expected = f"{kind} as float16 {list(shape)}"
    if array is None:
        raise _unfit(dataset, expected, "no such array")
    if array.dtype != np.float16 or array.shape != shape:
        raise _unfit(dataset, expected, f"{array.dtype} {list(array.shape)}")
    if not np.isfinite(array).all():
        item = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0]) + 1
        raise _unfit(dataset, f"finite {kind} features", f"NaN or infinity at item {item}")


def _unfit(dataset: Dataset, expected: str, got: str) -> DataError:
    return DataError(
        "the features do not fit the dataset",
        where=str(dataset.folder / FILE),
        expected=expected,
        got=got,
        todo="import the source again",
    )
