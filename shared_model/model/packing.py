"""Histories of many users in one row, without their padding.

On a GPU all users of a round may be one batch, padded to the longest: on MovieLens-1M half of it is
padding. Only attention needs users apart, and there a padded user costs by the square of the
longest: so it takes users of similar lengths together. All else goes position by position.

Letters: B users, R real positions of all; b, r and T users, positions and longest of a part.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared_model.device import on_device

Ints = npt.NDArray[np.int64]

_PARTS = 4  # at most: each is some twenty more calls, which a GPU has to wait for


@dataclass(frozen=True)
class Part:
    """Users of similar lengths that stand one after another."""

    places: Tensor  # [r] where each position stands in [b * T] if histories stand at the left
    shape: tuple[int, int]  # b and T

    def apart(self, values: Tensor) -> Tensor:
        """Values [r, .] by user, each history at the left and zeros after it: [b, T, .]."""
        wide = values.new_zeros(self.shape[0] * self.shape[1], values.shape[-1])
        return wide.index_copy_(0, self.places, values).view(*self.shape, -1)

    def together(self, values: Tensor) -> Tensor:
        """The reverse: [b, T, .] -> [r, .]."""
        return values.flatten(0, 1).index_select(0, self.places)


@dataclass(frozen=True)
class Packing:
    """The positions of B histories, one user's after the other's, oldest first."""

    rows: Tensor  # [R] whose each is
    back: Tensor  # [R] how many came after it
    lengths: Tensor  # [B]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, lengths: Ints, device: torch.device) -> "Packing":
        """Of histories of these ``lengths`` [B], at least 1 each, best if rising.

        Made by the processor, so that a GPU has one copy to wait for, and not many small steps.
        """
        rows, before = _positions(lengths)
        shapes, places = [], []
        for first, end in pairwise([0, *_cuts(lengths), len(lengths)]):
            own = lengths[first:end]
            shapes.append((len(own), int(own.max(initial=1))))
            user, place = _positions(own)
            places.append(user * shapes[-1][1] + place)
        moved = on_device(
            np.stack([rows, lengths[rows] - 1 - before, np.concatenate(places)]), device
        )
        parts = map(Part, moved[2].split_with_sizes([len(part) for part in places]), shapes)
        return cls(moved[0], moved[1], on_device(lengths, device), tuple(parts))

    def by_part(self, values: Tensor) -> list[tuple[Part, Tensor]]:
        """Each part with its own of the values [R, .]: [r, .]."""
        sizes = [len(part.places) for part in self.parts]
        return list(zip(self.parts, values.split_with_sizes(sizes), strict=True))


def _positions(lengths: Ints) -> tuple[Ints, Ints]:
    """Whose each position is, and how many of its history came before it: [R] each."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]


def _cuts(lengths: Ints) -> list[int]:
    """Before which users a part begins: wherever histories reach another quarter of the longest."""
    reached = np.maximum.accumulate(lengths)
    quarters = -(-reached * _PARTS // lengths.max(initial=1))
    return (np.flatnonzero(np.diff(quarters)) + 1).tolist()
