"""Exact cosines between items: the same to the bit on any machine, in any order and block.

Letters: I catalogue items, U items at hand, F feature size.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Items = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class FeatureTable(Protocol):
    """Features [I + 1, F] of a catalogue, of which some rows are asked for: an array, or a file."""

    def __getitem__(self, items: npt.NDArray[np.integer[Any]], /) -> Any:
        """Copies of the rows of items [N]: float32 [N, F]."""


GRID = 2.0**11  # features are rounded to multiples of 1 / GRID


class Cosines:
    """Cosines between U distinct items, each named by its place among them.

    Rounded features have products that are multiples of 1 / GRID^2, and so is every partial sum, at
    most 2^24 of them: exact in float32. Otherwise a threshold could fall either way. A cosine is
    off by about 2e-4. An item and itself have cosine 1, features or not.
    """

    def __init__(self, features: FeatureTable, items: Items, *, table: bool) -> None:
        """``features`` [I + 1, F] of length 1 or all zero, ``items`` [U] distinct and sorted.

        All cosines are computed now for a ``table`` [U, U], or else each time they are asked for.
        """
        self.items = items
        self.content: Floats = features[items]  # [U, F], rounded in place
        self.content *= np.float32(GRID)
        np.rint(self.content, out=self.content)
        self.content /= np.float32(GRID)
        self.table: Floats | None = None
        if table:
            everything = np.arange(len(items))
            self.table = self.between(everything, everything)

    def places(self, items: Items) -> Ints:
        """Where each of some items [N] is among the U. [N]."""
        places: Ints = np.searchsorted(self.items, items)
        return places

    def between(self, rows: Ints, columns: Ints) -> Floats:
        """Cosines of items, given by places. [rows, columns]."""
        if self.table is not None:
            found: Floats = self.table.take(rows[:, None] * len(self.items) + columns)
            return found
        left = self.content[rows]
        # of a product with itself numpy computes one half
        right = left if columns is rows else self.content[columns]
        cosines: Floats = left @ right.T
        cosines[rows[:, None] == columns] = 1
        return cosines
