"""Tensors as Flower arrays, and back from a peer's ``.npy`` bytes, in which nothing is believed."""

import struct
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from shared_model.errors import NodeError
from shared_model.model.recommender import Arrays

_HEADER = struct.Struct("<8sH")  # of .npy 1.0: magic and version, and the length of what follows


@lru_cache(maxsize=256)  # the same few in every round, and numpy takes a compiler to read one
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, dtype and length of an ``.npy`` header."""
    stream = BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not .npy 1.0")
    return *np.lib.format.read_array_header_1_0(stream), stream.tell()


def _tensor(name: str, data: bytes) -> torch.Tensor:
    """The array of ``.npy`` bytes. Its size has to fit them: no header makes anyone allocate."""
    try:
        _, length = _HEADER.unpack_from(data)
        shape, by_column, dtype, start = _header(data[: _HEADER.size + length])
        flat = np.frombuffer(data, dtype, offset=start).copy()
        return torch.from_numpy(flat.reshape(shape, order="F" if by_column else "C"))
    except Exception as error:  # a peer's bytes fail in a dozen ways, all of which are one
        got = f"{type(error).__name__}: {error}"[:200]
        raise NodeError("unreadable array", where=ascii(name), got=got) from error


def to_record(arrays: Arrays) -> ArrayRecord:
    """Named tensors as Flower arrays (``.npy`` bytes, no pickle)."""
    return ArrayRecord({n: Array(t.detach().cpu().numpy()) for n, t in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Flower arrays as named tensors; ``NodeError`` for bytes that are no array."""
    return {name: _tensor(name, array.data) for name, array in record.items()}
