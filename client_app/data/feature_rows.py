"""Rows of a features file that stay on the disk: mapped, and made float32 where they are asked for.

Letters: I items, F size of a modality's features, N items of a question. Row 0 is PAD.
"""

import json
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared_model.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]

AT_ONCE = 2**22  # features that are looked at, or turned to float32, at once
_CLOSE = 4  # places a row
_INFINITY = 0x7C00  # float16's, by its bits; NaN are above
_TYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


class MappedFile:
    """A safetensors file whose arrays are read when they are used. It must stay as it was opened.

    What was mapped is what was hashed as long as nobody writes into the file, which its time would
    show: each look at the rows compares it. A file that takes its place changes nothing here.
    """

    def __init__(self, path: Path) -> None:
        """``DataError`` if it cannot be read."""
        self.path, self._looked_at = path, 0
        try:
            with safe_open(path, framework="numpy"):  # type: ignore[no-untyped-call]
                pass  # the header fits the file
            self._file = path.open("rb")
            self._status = self._version()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, SafetensorError) as error:
            raise DataError(
                "the features cannot be read", where=str(path), got=str(error)
            ) from error
        size = int.from_bytes(self._map[:8], "little")
        self._header: dict[str, Any] = json.loads(self._map[8 : 8 + size])
        self._header.pop("__metadata__", None)
        self._start = 8 + size

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays by name, mapped; one of a type that features never have as its bytes."""
        return {name: self._array(entry) for name, entry in self._header.items()}

    def _array(self, entry: dict[str, Any]) -> npt.NDArray[Any]:
        begin, end = entry["data_offsets"]
        dtype = _TYPES.get(entry["dtype"], np.dtype("u1"))
        if begin == end:  # nothing can be mapped of it
            return np.zeros(entry["shape"], dtype)
        flat: npt.NDArray[Any] = np.frombuffer(
            self._map, dtype, (end - begin) // dtype.itemsize, self._start + begin
        )
        return flat.reshape(entry["shape"] if entry["dtype"] in _TYPES else -1)

    def rows(self, array: Halves, places: Ints) -> Halves:
        """Some rows [N] of a mapped array [I, F], read and not mapped: [N, F]."""
        rows = np.empty((len(places), array.shape[1]), array.dtype)
        into, file = rows.view(np.uint8).data.cast("B"), self._file.fileno()
        start, size = self._offset(array), array.strides[0]
        for row, place in enumerate(places.tolist()):
            os.preadv(file, [into[row * size : (row + 1) * size]], start + size * place)
        self._check()  # that the file was cut, too
        return rows

    def span(self, array: Halves, places: range) -> Halves:
        """The same of rows that follow one another."""
        rows = np.empty((len(places), array.shape[1]), array.dtype)
        start = self._offset(array) + array.strides[0] * places.start
        os.preadv(self._file.fileno(), [rows.view(np.uint8).data], start)
        self._check()
        return rows

    def _offset(self, array: Halves) -> int:
        """Where in the file a mapped array begins."""
        return array.ctypes.data - np.frombuffer(self._map, np.uint8).ctypes.data

    def looked_at(self, features: int) -> None:
        """After so many were.

        Pages of a mapping count as the process's memory; after many they are given back.
        """
        self._check()
        self._looked_at += features
        if self._looked_at >= AT_ONCE and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._looked_at = 0

    def _check(self) -> None:
        """``DataError`` unless the file is as it was."""
        if self._version() != self._status:
            raise DataError(
                "a dataset file was changed while it was in use",
                where=str(self.path),
                todo="import the source again",
            )

    def _version(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """One modality of a catalogue: ``rows[items]`` are float32 rows of norm 1 or all zero.

    To be asked as a tensor [I + 1, F] would be, with item indices of any shape.
    """

    stored: Halves = field(repr=False)  # [I, F] of the file
    present: Tensor = field(repr=False)  # [I + 1] bool, items that have the modality
    file: MappedFile = field(repr=False)
    norms: Floats = field(repr=False)  # [I] of rows that were asked for; 0 = not yet

    @property
    def device(self) -> torch.device:
        """Whose tensors ask, and are answered."""
        return torch.device("cpu")

    @property
    def shape(self) -> tuple[int, int]:
        """[I + 1, F]."""
        return len(self.stored) + 1, self.stored.shape[1]

    def __getitem__(self, items: Tensor) -> Tensor:
        """Of items [...]: [..., F]."""
        names = items.flatten().numpy()
        rows = torch.empty(len(names), self.stored.shape[1])
        size = max(1, AT_ONCE // self.stored.shape[1])
        for start in range(0, len(names), size):
            part = slice(start, start + size)
            self._read(names[part], rows[part])
        return rows.view(*items.shape, rows.shape[1])

    def _read(self, names: Ints, rows: Tensor) -> None:
        """Put the rows of items [N] into ``rows`` [N, F]."""
        places = np.maximum(names, 1) - 1
        rows.copy_(torch.from_numpy(self._stored(places)))  # numpy takes ten times as long
        if not self.norms[places].all():
            self.norms[places] = norms_of(rows)
        rows.div_(torch.from_numpy(self.norms[places])[:, None])
        if not names.all():
            rows[torch.from_numpy(names == 0)] = 0

    def _stored(self, places: Ints) -> Halves:
        """Rows of the file [N, F]: at once where they lie close, or else one by one. They are read,
        since the page of a mapping costs more, and brings its neighbours."""
        first, last = int(places.min()), int(places.max())
        if last - first < _CLOSE * len(places):
            found = self.file.span(self.stored, range(first, last + 1))
            following = len(found) == len(places) and bool((np.diff(places) == 1).all())
            return found if following else found[places - first]
        distinct, back = np.unique(places, return_inverse=True)
        return self.file.rows(self.stored, distinct)[back]


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Both modalities of items [N] side by side, as an array [I + 1, V + S] would give them."""

    visual: "FeatureRows | Tensor"
    text: "FeatureRows | Tensor"

    def __getitem__(self, items: npt.NDArray[Any]) -> Floats:
        """Of items [N]: [N, V + S]."""
        names = torch.from_numpy(items.astype(np.int64))
        return side_by_side(self.visual[names].numpy(), self.text[names].numpy())


def survey(stored: Halves, file: MappedFile) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which rows [I, F] are numbers throughout, and which are not all zero: two of bool [I]."""
    largest = np.zeros(len(stored), np.uint16)  # by its bits without the sign
    size = max(1, AT_ONCE // max(1, stored.shape[1]))
    for start in range(0, len(stored), size):
        part = stored[start : start + size]
        largest[start : start + size] = (part.view(np.uint16) & 0x7FFF).max(1, initial=0)
        file.looked_at(part.size)
    return largest < _INFINITY, largest > 0


def unit_rows(rows: npt.NDArray[Any]) -> Floats:
    """Rows [I, F] divided by their norms; zero rows stay zero."""
    unit: Floats = rows.astype(np.float32)
    unit /= norms_of(torch.from_numpy(unit))[:, None]
    return unit


def norms_of(rows: Tensor) -> Floats:
    """Lengths of float32 rows [I, F], 1 for a zero row: [I].

    Of what was float16 the result is the same to the bit on any machine: squares are multiples of
    2^-48, so that their sum, which is around 1, is exact in float64 in any order.
    """
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).numpy()
    lengths: Floats = np.where(norms > 0, norms, 1).astype(np.float32)
    return lengths


def side_by_side(visual: Floats, text: Floats) -> Floats:
    """Unit rows [I, V] and [I, S] as unit rows [I, V + S]; zero where both are missing.

    A row of one modality alone keeps its bits: so do its cosines, and the memory's threshold.
    """
    present = visual.any(axis=1).astype(np.float32) + text.any(axis=1)  # [I] 0, 1 or 2
    weight = np.sqrt(1 / np.maximum(present, 1)).astype(np.float32)
    combined: Floats = np.hstack([visual, text])
    combined *= weight[:, None]
    return combined
