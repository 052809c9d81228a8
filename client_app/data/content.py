"""The items' features as a node uses them: unit rows by modality, and both side by side.

Letters: I items, V and S sizes of visual and text features. Row 0 is PAD. A zero row is a missing
feature, in the file as in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client_app.data.dataset import Dataset
from client_app.data.feature_rows import (
    AT_ONCE,
    FeatureRows,
    MappedFile,
    SideBySide,
    survey,
)
from client_app.data.feature_rows import side_by_side as side_by_side
from client_app.data.feature_rows import unit_rows as unit_rows
from client_app.data.folder import check_file
from shared_model.errors import DataError
from shared_model.memory.cosines import FeatureTable
from shared_model.protocol.settings import MODALITY_CHOICES

Rows = Tensor | FeatureRows

FILE = "features.safetensors"
_WHOLE = 2**24  # features that become float32 when they are opened: 64 MB, and as much side by side
NO_DIM = 4  # columns of a modality that the dataset lacks: zeros, of a size that heads divide


@dataclass(frozen=True, eq=False)
class Content:
    """Features of the whole catalogue, rows of norm 1 or all zero (missing; row 0 is PAD).

    ``visual[items]`` and ``text[items]`` are those of item indices of any shape: of a large
    catalogue no more is ever float32 than what is asked for.
    """

    visual: Rows  # [I + 1, V] float32
    text: Rows  # [I + 1, S] float32
    combined: FeatureTable  # [I + 1, V + S] of both, on the CPU: for the memory's novelty

    @cached_property
    def known(self) -> npt.NDArray[np.bool_]:
        """Items that have a feature at all: [I + 1] bool."""
        both = (self.visual, self.text)
        known: npt.NDArray[np.bool_] = np.any([present(rows).cpu().numpy() for rows in both], 0)
        return known


def open_content(dataset: Dataset, modalities: str, device: str = "cpu") -> Content:
    """Open the features of a dataset, of `modalities` "both", "visual" or "text".

    A modality that is not asked for, or that the file lacks, is missing everywhere; its size is as
    `content_dims` says. Those of a small catalogue, and all that a GPU uses, become float32 at
    once; others are mapped, and the same to the bit. Raises DataError if there are no features, or
    ones that do not fit the catalogue or dataset.json, and ValueError for other modalities.
    """
    if modalities not in MODALITY_CHOICES:
        raise ValueError(f"unknown modalities {modalities!r}: {', '.join(MODALITY_CHOICES)}")
    dims = dict(zip(("visual", "text"), content_dims(dataset), strict=True))
    stored = _mapped(dataset)
    size = dataset.num_items + 1
    rows: dict[str, Rows] = {
        kind: stored[kind]
        if kind in stored and modalities in ("both", kind)
        else torch.zeros(1, dim).expand(size, dim)
        for kind, dim in dims.items()
    }
    if device == "cpu" and size * sum(dims.values()) > _WHOLE:
        return Content(rows["visual"], rows["text"], SideBySide(rows["visual"], rows["text"]))
    visual, text = whole(rows["visual"]), whole(rows["text"])
    return Content(visual.to(device), text.to(device), side_by_side(visual.numpy(), text.numpy()))


def whole(rows: Rows) -> Tensor:
    """All of the rows at once: [I + 1, F] float32."""
    return torch.cat([rows[items] for items in _parts(rows)])


def present(rows: Rows) -> Tensor:
    """Which items have the modality: [I + 1] bool."""
    return rows.present if isinstance(rows, FeatureRows) else rows.any(1)


def _parts(rows: Rows) -> Sequence[Tensor]:
    """All items, some at a time."""
    size, dim = rows.shape
    items = torch.arange(size, device=rows.device)
    parts: Sequence[Tensor] = items.split(max(1, AT_ONCE // dim))  # type: ignore[no-untyped-call]
    return parts


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


def _stored_dim(dataset: Dataset, kind: str) -> int:
    """Size of a modality in the file, 0 if it is not there, as dataset.json says."""
    dim = dataset.info.get(f"{kind}_dim", 0)
    if type(dim) is not int or dim < 0:
        raise _unfit(dataset, f"a whole number as {kind}_dim in dataset.json", repr(dim))
    return dim


def _mapped(dataset: Dataset) -> dict[str, FeatureRows]:
    """The file's arrays by modality, checked; one without columns is left out."""
    path = dataset.folder / FILE
    check_file(path, dataset.features_sha256)  # now: the dataset may have been opened hours ago
    file = MappedFile(path)
    arrays = file.arrays()
    if unknown := sorted(arrays.keys() - {"visual", "text"}):
        raise _unfit(dataset, "visual and text", ", ".join(unknown))
    for kind in ("visual", "text"):
        dim = _stored_dim(dataset, kind)
        if kind in arrays or dim:
            _check(dataset, kind, arrays.get(kind), (dataset.num_items, dim))
    kinds = [kind for kind, array in arrays.items() if array.shape[1]]
    return {kind: _rows(dataset, kind, arrays[kind], file) for kind in kinds}


def _check(
    dataset: Dataset, kind: str, array: npt.NDArray[Any] | None, shape: tuple[int, int]
) -> None:
    """Refuse an array of another type or shape."""
    expected = f"{kind} as float16 {list(shape)}"
    if array is None:
        raise _unfit(dataset, expected, "no such array")
    if array.dtype != np.float16 or array.shape != shape:
        raise _unfit(dataset, expected, f"{array.dtype} {list(array.shape)}")


def _rows(
    dataset: Dataset, kind: str, array: npt.NDArray[np.float16], file: MappedFile
) -> FeatureRows:
    """The rows of a modality; refuse a value that is no number."""
    finite, present = survey(array, file)
    if not finite.all():
        item = int(np.flatnonzero(~finite)[0]) + 1
        raise _unfit(dataset, f"finite {kind} features", f"NaN or infinity at item {item}")
    norms = np.zeros(len(array), np.float32)
    return FeatureRows(array, torch.from_numpy(np.append(False, present)), file, norms)


def _unfit(dataset: Dataset, expected: str, got: str) -> DataError:
    return DataError(
        "the features do not fit the dataset",
        where=str(dataset.folder / FILE),
        expected=expected,
        got=got,
        todo="import the source again",
    )
