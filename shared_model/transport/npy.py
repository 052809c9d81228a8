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


@lru_cache(maxsize=256)  # as above: numpy takes 50 us to write one
def _header_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The ``.npy`` header of an array by row."""
    stream = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(stream, described | {"shape": shape})
    return stream.getvalue()


def _array(tensor: torch.Tensor) -> Array:
    """What ``Array(tensor.numpy())`` is, with one copy of the numbers instead of three."""
    array = tensor.detach().cpu().contiguous().numpy()
    data = b"".join((_header_of(array.shape, array.dtype), array.data))
    return Array(str(array.dtype), array.shape, "numpy.ndarray", data)


def to_record(arrays: Arrays) -> ArrayRecord:
    """Named tensors as Flower arrays (``.npy`` bytes, no pickle)."""
    return ArrayRecord({name: _array(tensor) for name, tensor in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Flower arrays as named tensors; ``NodeError`` for bytes that are no array."""
    return {name: _tensor(name, array.data) for name, array in record.items()}
