"""Histories of many users in one row, without their padding.

On a GPU all users of a round may be one batch, padded to the longest: on MovieLens-1M half of it is
padding. Only attention needs users apart, and there a padded user costs by the square of the
longest: so short histories and long ones take turns. All else goes position by position.

Letters: B users, R real positions of all; b, r and T users, positions and longest of a part.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared_model.device import on_device

Ints = npt.NDArray[np.int64]


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
    at: Tensor  # [R] where each one's item stands in a list of all
    lengths: Tensor  # [B]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, lengths: Ints, firsts: Ints, device: torch.device) -> "Packing":
        """Of histories of these ``lengths`` [B], at least 1 each, best if rising, the first of each
        at the places ``firsts`` [B] of a list.

        A user's numbers come from the processor and a position's are made where they stay, so that
        little is sent, and nobody has to ask a GPU how many there are.
        """
        groups = _groups(lengths)
        shapes = [(len(own), int(own.max(initial=1))) for own in groups]
        places = [np.arange(users) * longest for users, longest in shapes]
        starts = np.cumsum(lengths) - lengths
        by_user = on_device(np.stack([lengths, starts, firsts, np.concatenate(places)]), device)
        sizes = [int(own.sum()) for own in groups]
        rows = torch.repeat_interleave(by_user[0], output_size=sum(sizes))
        length, start, first, place = by_user.index_select(1, rows)
        before = torch.arange(len(rows), device=device) - start
        parts = map(Part, (place + before).split_with_sizes(sizes), shapes)
        return cls(rows, length - 1 - before, first + before, by_user[0], tuple(parts))

    def by_part(self, values: Tensor) -> list[tuple[Part, Tensor]]:
        """Each part with its own of the values [R, .]: [r, .]."""
        sizes = [len(part.places) for part in self.parts]
        return list(zip(self.parts, values.split_with_sizes(sizes), strict=True))

    def inputs_and_targets(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Of the list of all ``items`` [N]: that of each position and the one after it, int64 [R]
        both."""
        return items[self.at].long(), items[self.at + 1].long()


def _groups(lengths: Ints) -> list[Ints]:
    """The users up to the first whose history is longer than half the longest, and the others:
    with more groups a GPU has more calls to wait for than it saves (docs/log.md)."""
    long = lengths * 2 > lengths.max(initial=1)
    first = int(long.argmax())
    return [lengths[:first], lengths[first:]] if first else [lengths]
