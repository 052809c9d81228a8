"""Leave-one-out: of each history the last item is tested, the one before it validated with.

What comes before these two is trained on. Letters: U users, N interactions.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "valid", "test", "cold"]
Ints = npt.NDArray[np.int64]

_HELD_OUT = 2


def train_lengths(lengths: Ints) -> Ints:
    """How many items of histories of these ``lengths`` are trained on: int64, same shape."""
    return lengths - _HELD_OUT


def train_places(indptr: Ints) -> npt.NDArray[np.bool_]:
    """Which places of CSR histories, ``indptr`` [U + 1], are trained on: bool [N]."""
    ends = indptr[:-1] + train_lengths(np.diff(indptr))
    trained: npt.NDArray[np.bool_] = np.arange(indptr[-1]) < np.repeat(ends, np.diff(indptr))
    return trained


def ends(stops: Ints, split: Split) -> Ints:
    """Where inputs end, and the target is, in histories that end at ``stops`` (exclusive).

    "train" has the place of the item that is validated with: its inputs end before it.
    """
    return stops - {"train": _HELD_OUT, "valid": _HELD_OUT, "test": 1}[split]
