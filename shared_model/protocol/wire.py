"""Fewer bits on the wire: matrices as bfloat16 or as int8 with a power of two for each row.

Rounding is without bias, and by hash: up or down by a threshold that is a function of seed, array
and place (as Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015, do it by
chance). What was rounded stays as it is when it is rounded again with the same seed: so what nodes
see of a model can be its checkpoint. Vectors and scalars, a hundredth of the bytes, stay float32.

Letters: R rows and C columns of a matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared_model.errors import NodeError
from shared_model.model.recommender import Arrays
from shared_model.protocol.settings import Settings
from shared_model.seeds import UInt64, mix, stable_hash
from shared_model.stages import TABLE

ROWS = TABLE + "/rows"  # int32, rising: of a table that is not there as a whole
_EXPONENTS = "/exponents"  # int8 [R], of an int8 matrix: a row's unit is 2 to that power
_PART = 2**16  # rows that are rounded at once
_MOST = 127
_BROKEN = 127  # of a row that is not finite: 127 times 2**127 is not, either
_STORED = {"bfloat16": torch.uint16, "int8": torch.int8}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Wire:
    """One direction's format: "float32", "bfloat16" or "int8", and the seed of its rounding."""

    dtype: str
    seed: int

    def encode(self, arrays: Arrays) -> Arrays:
        """What is sent of float32 ``arrays``; ``ROWS`` says which rows the item table has."""
        if self.dtype == "float32":
            return arrays
        sent: Arrays = {}
        for name, value in arrays.items():
            if value.dim() < 2 or value.dtype != torch.float32:
                sent[name] = value
                continue
            rows = arrays.get(ROWS) if name == TABLE else None
            flat = value.detach().cpu().flatten(1)
            stored, exponents = self._stored(name, flat.numpy(), rows)
            sent[name] = torch.from_numpy(stored).reshape(value.shape)
            if self.dtype == "int8":
                sent[name + _EXPONENTS] = torch.from_numpy(exponents)
        return sent

    def decode(self, sent: Arrays) -> Arrays:
        """The arrays that were sent, float32. ``NodeError`` for a matrix in another format."""
        if self.dtype == "float32":
            return sent
        arrays: Arrays = {}
        for name, value in sent.items():
            if name.endswith(_EXPONENTS) and name.removesuffix(_EXPONENTS) in sent:
                continue
            arrays[name] = value
            if value.dim() >= 2:
                arrays[name] = self._read(name, value, sent.get(name + _EXPONENTS))
        return arrays

    def seen(self, arrays: Arrays) -> Arrays:
        """The arrays as who gets them sees them."""
        if self.dtype == "float32":
            return arrays
        seen = self.decode(self.encode(arrays))
        return {name: seen[name] for name in arrays}

    def _stored(
        self, name: str, matrix: Floats, rows: Tensor | None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int8]]:
        """A matrix [R, C] as it is stored, and the exponents of its rows [R]."""
        numbers = np.arange(len(matrix)) if rows is None else rows.cpu().numpy()
        stored = np.empty(matrix.shape, np.uint16 if self.dtype == "bfloat16" else np.int8)
        exponents = np.zeros(len(matrix), np.int8)
        seed = stable_hash(self.seed, name)
        for part in _parts(len(matrix)):
            thresholds = _thresholds(seed, numbers[part], matrix.shape[1])
            if self.dtype == "bfloat16":
                stored[part] = _as_bfloat16(matrix[part], thresholds)
            else:
                stored[part], exponents[part] = _as_int8(matrix[part], thresholds)
        return stored, exponents

    def _read(self, name: str, value: Tensor, exponents: Tensor | None) -> Tensor:
        if value.dtype != _STORED[self.dtype]:
            raise NodeError(
                "a matrix in another format",
                where=ascii(name),
                expected=self.dtype,
                got=str(value.dtype),
            )
        if self.dtype == "bfloat16":
            bits = value.numpy().astype(np.uint32) << np.uint32(16)
            return torch.from_numpy(bits.view(np.float32))
        if exponents is None or exponents.dtype != torch.int8 or exponents.shape != value.shape[:1]:
            raise NodeError("an int8 matrix without an exponent a row", where=ascii(name))
        units = _unit(exponents.numpy().astype(np.int32))
        with np.errstate(over="ignore"):  # of a row that is not finite
            wide = value.numpy().astype(np.float32) * units.reshape(-1, *[1] * (value.dim() - 1))
        return torch.from_numpy(wide)


def down(settings: Settings) -> Wire:
    """How models are sent. The rounding is the same in all rounds and stages, so that one model is
    the same on all nodes, whenever they get it, and in the stage after."""
    return Wire(settings.wire_dtype, stable_hash(settings.seed, "wire"))


def up(settings: Settings, stage: int, round_: int, node: str) -> Wire:
    """How a node's update is sent: as it is where users are clipped, since rounding would make it
    larger than what clipping promises."""
    dtype = "float32" if settings.dp_clip_norm else settings.wire_dtype
    return Wire(dtype, stable_hash(settings.seed, "wire", stage, round_, node))


def _thresholds(seed: int, rows: npt.NDArray[Any], columns: int) -> npt.NDArray[np.uint16]:
    """One of 65,536 for each place, whatever other rows there are: [R, C]."""
    lanes = -(-columns // 4)  # a hash decides about four places
    first = rows.astype(np.uint64) * np.uint64(lanes)
    keys: UInt64 = np.add.outer(first, np.arange(lanes, dtype=np.uint64))
    return mix(seed, keys).astype("<u8").view("<u2")[:, :columns]


def _as_bfloat16(matrix: Floats, thresholds: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """The upper half of the bits; the lower half is the chance to be one more."""
    bits = np.ascontiguousarray(matrix).view(np.uint32)
    more = np.where(np.isfinite(matrix), thresholds, 0).astype(np.uint32)
    halves: npt.NDArray[np.uint16] = ((bits + more) >> np.uint32(16)).astype(np.uint16)
    return halves


def _as_int8(
    matrix: Floats, thresholds: npt.NDArray[np.uint16]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """Whole multiples of each row's unit, the least power of two with which 127 are enough."""
    largest = np.abs(matrix).max(1, initial=0.0)
    broken = ~np.isfinite(largest)
    mantissa, exponents = np.frexp(np.where(broken, 0, largest))
    exponents = np.maximum(exponents - np.where(mantissa * 128 <= _MOST, 7, 6), -126)
    wanted = np.where(broken[:, None], 0, matrix) * _unit(-exponents)[:, None]
    whole = np.floor(wanted + thresholds.astype(np.float32) / np.float32(2**16)).astype(np.int8)
    whole[broken] = _MOST
    return whole, np.where(broken, _BROKEN, exponents).astype(np.int8)


def _unit(exponents: npt.NDArray[np.int32]) -> Floats:
    units: Floats = np.ldexp(np.float32(1), exponents)
    return units


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, start + _PART) for start in range(0, rows, _PART))
