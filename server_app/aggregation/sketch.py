"""Arrays as a few numbers between which inner products are kept.

A count sketch (Charikar, Chen and Farach-Colton, "Finding Frequent Items in Data Streams", ICALP
2002) whose buckets are a number's place modulo their count: linear, and of two sketches the inner
product is that of the arrays, up to 1 / sqrt(buckets) of the product of their norms.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from shared_model.model.recommender import Arrays
from shared_model.seeds import rng, stable_hash
from shared_model.stages import TABLE

BUCKETS = 4096


def sketch(arrays: Arrays, rows: Tensor | None = None, items: int = 0) -> Tensor:
    """Named arrays as float64 [BUCKETS].

    With ``rows`` [U], the item table has these of its ``items`` rows alone, and zeros elsewhere.
    """
    total = torch.zeros(BUCKETS, dtype=torch.float64)
    for name, array in arrays.items():
        first = stable_hash("bucket", name) % BUCKETS
        if name == TABLE and rows is not None:
            part = _of_rows(array, rows, _signs(name, (items, array.shape[1])))
        else:
            part = _folded(array * _signs(name, tuple(array.shape)))
        total += part.roll(first)
    return total


def _folded(signed: Tensor) -> Tensor:
    flat = signed.flatten()
    even = len(flat) - len(flat) % BUCKETS
    folded = flat[:even].view(-1, BUCKETS).sum(0, dtype=torch.float64)
    folded[: len(flat) - even] += flat[even:]
    return folded


def _of_rows(some: Tensor, rows: Tensor, signs: Tensor) -> Tensor:
    """The same of rows [U, D] of a table."""
    places = rows.long()[:, None] * some.shape[1] + torch.arange(some.shape[1])
    signed = (some * signs[rows.long()]).double()
    into = torch.zeros(BUCKETS, dtype=torch.float64)
    return into.index_add_(0, (places % BUCKETS).flatten(), signed.flatten())


@lru_cache(maxsize=256)
def _signs(name: str, shape: tuple[int, ...]) -> Tensor:
    """1 or -1 for each number of an array: int8, the same in every process."""
    drawn = rng("signs", name).integers(0, 2, shape, dtype=np.int8)
    return torch.from_numpy(np.asarray(drawn * 2 - 1, dtype=np.int8))
