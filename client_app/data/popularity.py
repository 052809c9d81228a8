"""Popularity buckets of items: head, middle and tail. Letters: I items."""

import numpy as np
import numpy.typing as npt

from client_app.data.folder import POPULARITY


def popularity_buckets(counts: npt.NDArray[np.int64], cold: npt.NDArray[np.bool_]) -> list[str]:
    """Head, middle or tail by interactions [I] of each item; "" for cold items, bool [I].

    Each bucket has about a third of all interactions. What decides is the share of items that are
    more popular, so that equally popular items share a bucket.
    """
    _, place = np.unique(-counts, return_inverse=True)  # most popular first
    mass = np.bincount(place, weights=counts)
    above = (np.cumsum(mass) - mass)[place]
    third = np.minimum(3 * above // max(mass.sum(), 1), 2).astype(np.int64)
    return ["" if c else POPULARITY[n] for n, c in zip(third, cold, strict=True)]
