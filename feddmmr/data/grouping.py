"""Which users make up a part of a split dataset: anybody, or those who are like one another.

Letters: U users, I items.
"""

from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix, diags_array
from scipy.sparse.linalg import svds

from client_app.data.dataset import Dataset, Ints
from shared_model.seeds import rng

By = Literal["row", "size", "length", "taste"]


def owners(dataset: Dataset, parts: int, by: By) -> Ints:
    """The part of each user: int64 [U].

    "row": its row modulo parts. "size": anybody, in parts of sizes 1, 1/2, 1/3, ... "length": parts
    of equal size, from the shortest histories to the longest. "taste": the same along what tells
    users apart best, once popularity is set aside.
    """
    rows = np.arange(dataset.num_users)
    if by == "row":
        return rows % parts
    if by == "size":
        shares = np.cumsum(1 / np.arange(1, parts + 1))
        # At least one each: the first users go to the last parts.
        places = (rows[parts:] - parts + 0.5) / max(1, len(rows) - parts) * shares[-1]
        dealt = np.concatenate([rows[:parts], np.searchsorted(shares, places)])
        return rng("split by size").permutation(dealt)
    key = dataset.lengths(rows) if by == "length" else _taste(dataset)
    owner = np.empty_like(rows)
    for part, users in enumerate(np.array_split(np.argsort(key, kind="stable"), parts)):
        owner[users] = part
    return owner


def _taste(dataset: Dataset) -> np.ndarray:
    """Users along the second singular vector of who chose what, each with length 1. [U]."""
    lengths = np.diff(dataset.indptr)
    ones = np.ones(len(dataset.items))
    shape = (dataset.num_users, dataset.num_items + 1)
    chosen = csr_matrix((ones, dataset.items, dataset.indptr), shape=shape)
    start = np.ones(min(shape))  # of the search: the same split every time
    users, _, items = svds(diags_array(lengths**-0.5) @ chosen, k=2, v0=start)
    towards = np.sign(items[0][np.abs(items[0]).argmax()])  # a singular vector has no sign
    taste: np.ndarray = users[:, 0] * towards
    return taste
