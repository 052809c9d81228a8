"""Histories of many users in one row, without their padding.

On a GPU all users of a round may be one batch, padded to the longest: on MovieLens-1M half of it is
padding. Only attention needs users apart; all else goes position by position.

Letters: B users, T positions of the longest, R real positions of all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """The real positions of B histories, one user's after the other's, oldest first."""

    rows: Tensor  # [R] whose each is
    back: Tensor  # [R] how many came after it
    places: Tensor  # [R] where it stands in [B * T] if histories stand at the left
    shape: tuple[int, int]  # B and T

    @classmethod
    def of(cls, valid: Tensor, real: int) -> "Packing":
        """Of left-padded histories, ``valid`` [B, T] bool; ``real``: how many positions are that,
        so that nobody has to ask a GPU."""
        users, width = valid.shape
        lengths = valid.sum(1)
        rows = torch.repeat_interleave(lengths, output_size=real)
        before = lengths.cumsum(0) - lengths
        place = torch.arange(real, device=valid.device) - before[rows]
        return cls(rows, lengths[rows] - 1 - place, rows * width + place, (users, width))

    def packed(self, values: Tensor) -> Tensor:
        """Of values [B, T] that stand at the right: [R]."""
        return values.flatten()[(self.rows + 1) * self.shape[1] - 1 - self.back]

    def apart(self, values: Tensor) -> Tensor:
        """Values [R, .] by user, each history at the left and zeros after it: [B, T, .]."""
        wide = values.new_zeros(self.shape[0] * self.shape[1], values.shape[-1])
        return wide.index_copy_(0, self.places, values).view(*self.shape, -1)

    def together(self, values: Tensor) -> Tensor:
        """The reverse: [B, T, .] -> [R, .]."""
        return values.flatten(0, 1).index_select(0, self.places)
